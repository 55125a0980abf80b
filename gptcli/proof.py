"""Proof: an x-ray is compared with the model's own numbers before it is shown; where they differ it is refused.

Each function hands back how far apart the two are, or raises CheckFailed, which says what was misread.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gptcli.attention import shared
from gptcli.checkpoint import Checkpoint
from gptcli.errors import CheckFailed
from gptcli.ledger import Ledger, refusal
from gptcli.lens import BOUNDS, WIDE, disagreement
from gptcli.model import Decoder, Tape
from gptcli.records import Prompt, Step
from gptcli.records_xray import Check
from gptcli.trace import Trace

LEDGER_BOUND = 1e-4  # of all that is added up
REFUSED = "the x-ray does not hold, so it is not shown: "


def check(
    checkpoint: Checkpoint,
    trace: Trace,
    prompt: Prompt,
    steps: Sequence[Step],
    *,
    cells: Sequence[int],
    said: Tensor,
    books: Sequence[Ledger],
    edits: Tape | None = None,
) -> Check:
    """The line under every view. Raises CheckFailed.

    cells: the positions that are shown; those of the prompt are compared score by score, the others state by state.
    said: what the lens of the last layer gives the written tokens, natural logarithms, [answer]. edits: the run's.
    """
    decoder, bound = checkpoint.decoder, row_bound(checkpoint.dtype)
    whole = [*prompt.ids, *(step.id for step in steps)][: trace.n_positions]
    # a text that outgrows its rotary frequencies was computed anew with others: so it is here
    n = len(prompt.ids) if decoder.regimes(len(prompt.ids)) == decoder.regimes(len(whole)) else len(whole)
    true = decoder.stream(torch.tensor([whole[:n]], device=checkpoint.device), None, edits)[0, : len(prompt.ids)]
    off = lens_error(decoder, trace, true, cells)
    emitted = written_error(decoder, trace, true, steps, said) if steps else None
    start = checkpoint.tokenizer.piece(prompt.ids[0]) if checkpoint.begins(prompt.ids) else None
    return Check(
        lens=off,
        lens_bound=bound,
        emitted=emitted,
        ledger=ledger_error(books),
        ledger_bound=LEDGER_BOUND,
        no_ledger=refusal(decoder),
        dtype=name(checkpoint.dtype),
        device=str(checkpoint.device),
        start=start or "",
        n_tokenizer=checkpoint.tokenizer.size,
        n_head_rows=checkpoint.config.n_vocab,
    )


def row_bound(dtype: torch.dtype) -> float:
    """Of few rows, whose largest score may be small: of 256 of SmolLM2 in bfloat16 one is off by 0.011."""
    return 2 * BOUNDS[dtype]


def lens_error(decoder: Decoder, trace: Trace, true: Tensor, cells: Sequence[int]) -> float:
    """How far the last lens is from the logits, of the largest one. true: the prompt's last states, [n_prompt, C]."""
    n, dtype = len(true), decoder.embed.weight.dtype
    seen, bound = trace.states[-1, :n], row_bound(dtype)
    apart = float((seen - true).abs().max() / true.abs().max().clamp(min=1e-30))
    at = torch.tensor([i for i in cells if i < n] or [n - 1], device=seen.device)
    off = disagreement(decoder, seen[at], true[at])
    if off <= bound and apart <= BOUNDS[dtype]:
        return off
    what = (
        f"what was recorded does not add up to the stream (relative error {apart:.1e})"
        if not apart <= BOUNDS[dtype]
        else "the lens of the last layer is not the model's logits: the final norm, the head, its scale or its cap"
    )
    raise CheckFailed(
        f"{REFUSED}{what} (off by {off:.1e} of the largest logit)",
        hint=f"the bound in {name(dtype)} is {bound:.0e}",
    )


def written_error(decoder: Decoder, trace: Trace, true: Tensor, steps: Sequence[Step], said: Tensor) -> float:
    """How far the lens is from what was computed token by token: log-probabilities, by the largest logit."""
    n, T = len(true), trace.n_positions
    then = torch.tensor([step.logprob for step in steps])
    same = torch.tensor([decoder.regimes(n + i) == decoder.regimes(T) for i in range(len(steps))])
    largest = max(1.0, float(decoder.readout(true[-1]).abs().max()))
    off = float((said - then)[same].abs().max()) / largest
    if not off <= row_bound(decoder.embed.weight.dtype):
        raise CheckFailed(
            f"{REFUSED}the lens gives the written tokens other probabilities than the model did (off by {off:.1e} of "
            "the largest logit)",
            hint="what is captured token by token differs from what was computed",
        )
    return off


def ledger_error(books: Sequence[Ledger]) -> float | None:
    """The worst of all rows, relative to what is added up; None where the model has no ledger."""
    worst = max((book.relative_error for book in books), default=None)
    if worst is not None and not worst <= LEDGER_BOUND:
        raise CheckFailed(
            f"{REFUSED}the parts of the ledger do not add up to the logit (relative error {worst:.1e})",
            hint=f"the bound is {LEDGER_BOUND:.0e}; the final norm's statistics, gain or shift was misread",
        )
    return worst


def heads_error(relative_error: float, layer: int, dtype: torch.dtype) -> float:
    """How far one layer's heads are from what its attention wrote, if no farther than they may be."""
    return _added_up(relative_error, f"the heads of L{layer}", "attention", "how heads share the output matrix", dtype)


def neurons_error(relative_error: float, layer: int, dtype: torch.dtype) -> float:
    """How far one layer's neurons are from what its MLP wrote, if no farther than they may be."""
    return _added_up(relative_error, f"the neurons of L{layer}", "MLP", "its gate, its activation", dtype)


def parts_error(relative_error: float, layer: int, dtype: torch.dtype) -> float:
    """How far what one layer took from each position is from what its attention wrote, if no farther than it may be."""
    return _added_up(relative_error, f"the looks of L{layer}", "attention", "who looked where, what was taken", dtype)


def _added_up(error: float, parts: str, whole: str, misread: str, dtype: torch.dtype) -> float:
    bound = LEDGER_BOUND if dtype in WIDE else BOUNDS[dtype]
    if not error <= bound:
        raise CheckFailed(
            f"{REFUSED}{parts} do not add up to its {whole} (relative error {error:.1e})",
            hint=f"the bound in {name(dtype)} is {bound:.0e}; {misread}, its bias or the norm behind it was misread",
        )
    return error


def pattern_error(trace: Trace) -> float:
    """How far what the attention patterns gather is from what the heads did, relative, at worst."""
    errors = []
    for i in range(trace.config.n_layer):
        pattern = trace.pattern_of(i)
        gathered = pattern @ shared(trace.v[i], trace.config.n_head).to(pattern.dtype)
        z = trace.z[i].to(pattern.dtype)
        off = (gathered - z).abs().masked_fill(trace.replaced(i)[..., None].to(z.device), 0)
        errors.append(off.max() / z.abs().max().clamp(min=1e-30))
    bound, error = row_bound(trace.z.dtype), float(torch.stack(errors).max())  # Python's max would lose a NaN
    if not error <= bound:
        raise CheckFailed(
            f"{REFUSED}the attention patterns gather something else than the heads did (relative error {error:.1e}, "
            f"bound {bound:.0e})",
            hint="which keys a head sees, how heads share them, the scale or the cap of the scores was misread",
        )
    return error


def name(dtype: torch.dtype) -> str:
    """float32, not torch.float32."""
    return str(dtype).removeprefix("torch.")
