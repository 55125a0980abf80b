"""Scan: one text through one model, all that the views show, checked against the model's own numbers.

prompt ──> the pass that writes the answer, under a tape ──> lens, ledger, lengths, attention ──> Scan, or CheckFailed
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli.attention import role_scores, shared, sink_share
from gptcli.checkpoint import Checkpoint
from gptcli.errors import CheckFailed, UsageError
from gptcli.generation import generate
from gptcli.ledger import Ledger, head_ledger, ledger, logits, refusal
from gptcli.lens import BOUNDS, WIDE, Lens, depth, disagreement, norms, read
from gptcli.model import Tape
from gptcli.records import Prompt, Step
from gptcli.records_xray import Attention, Book, Cells, Check, Lengths, Roles, Scan
from gptcli.sampling import Sampling
from gptcli.tables import Table
from gptcli.trace import Trace

GREEDY = Sampling(temperature=0)
LEDGER_BOUND = 1e-4  # of all that is added up
N_SOURCES = 3  # positions that a head's row of the ledger names
N_NUMBERS = 48  # of a vector that are kept to be drawn
MOST_PATTERNS = 1 << 25  # numbers
N_PIECES = 1000  # of a vocabulary that tell it from others


@dataclass(frozen=True, kw_only=True)
class Run:
    """A text that was computed, and the answer that was written, under one tape."""

    trace: Trace
    prompt: Prompt
    steps: tuple[Step, ...]
    seed: int | None = None  # of the draws; None where none was made

    @property
    def ids(self) -> tuple[int, ...]:
        return (*self.prompt.ids, *(step.id for step in self.steps))


def run(
    checkpoint: Checkpoint,
    prompt: Prompt,
    *,
    max_tokens: int,
    sampling: Sampling = GREEDY,
    seed: int | None = 0,
    edits: Tape | None = None,
    top: int = 0,
    heads: bool = True,
) -> Run:
    """Writes an answer of so many tokens, or none, and keeps the trace of it: one pass, with its cache.

    heads: whether what the heads did is kept too; grid, tracks, norms and the ledger by layers need it not.
    """
    trace = Trace(checkpoint.decoder, edits=edits, heads=heads)
    steps = tuple(
        generate(checkpoint, prompt, sampling=sampling, seed=seed, max_tokens=max_tokens, top=top, tape=trace)
    )
    drawn = any(step.draw is not None for step in steps)
    done = Run(trace=trace, prompt=prompt, steps=steps, seed=seed if drawn else None)
    trace.ids = done.ids[: trace.n_positions]
    return done


@torch.inference_mode()
def scan(
    checkpoint: Checkpoint,
    done: Run,
    *,
    top: int = 5,
    cells: Sequence[int] | None = None,
    between: Sequence[int] = (),
    heads: bool = False,
    attention: bool = False,
    edits: Tape | None = None,
    edited: Sequence[str] = (),
) -> Scan:
    """All numbers of a run. cells: positions at which every layer is read, or all; that is what takes the time.

    between: positions whose states between attention and MLP are read too.

    heads: the ledger down to heads and sources. attention: every pattern. edits: the run's, to check it by computing
    the prompt once more; `edited`: what they are, in words. Raises CheckFailed when the numbers contradict the model's.
    """
    c, decoder, trace, ids = checkpoint.config, checkpoint.decoder, done.trace, done.ids
    states, T, n_prompt, size = trace.states, trace.n_positions, len(done.prompt.ids), checkpoint.n_tokens
    written = torch.tensor(ids[n_prompt:], dtype=torch.long)
    watch = torch.zeros(T, 1, dtype=torch.long, device=states.device)
    watch[T - len(written) :, 0] = written
    end = read(decoder, states[-1:], watch=watch, top=2, size=size)
    last, said = end.ids[0], end.watched[0, T - len(written) :, 0]  # [T, 2], [answer]
    answers = last[:, 0].clone()
    answers[T - len(written) :] = written
    rivals = torch.where(last[:, 0] == answers, last[:, -1], last[:, 0])
    watch = answers[:, None].to(states.device)
    cells = range(T) if cells is None else cells
    at = slice(None) if len(cells) == T else torch.tensor(cells, device=states.device)
    lens = read(decoder, states[:, at], watch=watch[at], top=top, size=size)
    middle = None
    if between and not c.parallel:
        mid = torch.tensor(between, device=states.device)
        middles = torch.stack([trace.mid_of(i)[mid] for i in range(c.n_layer)])
        middle = read(decoder, middles, final=states[-1, mid], watch=watch[mid], top=top, size=size)
    books = []
    if not refusal(decoder):
        target, rival = answers.to(states.device), rivals.to(states.device)
        own = logits(decoder, states[-1], torch.stack([target, rival]))
        books = [(True, ledger(trace, target, rival, own=own)), (False, ledger(trace, target, own=own))]
    check = _check(checkpoint, done, cells, said, [book for _, book in books], edits)
    looks = _attention(trace) if attention else None
    if heads and not looks:  # whose sources are shown
        _gathered(trace)
    named = {*ids, *answers.tolist(), *rivals.tolist(), *lens.ids.flatten().tolist()}
    if middle:
        named |= {*middle.ids.flatten().tolist()}
    length = norms(trace)
    numbers = torch.stack([trace.embed[:, :N_NUMBERS], states[-1, :, :N_NUMBERS]])
    pieces, special = spelled(checkpoint, named)
    rows = ("emb", *(f"L{i}" for i in range(c.n_layer)))
    return Scan(
        model=checkpoint.name,
        family=checkpoint.family,
        fingerprint=fingerprint(checkpoint),
        version=_version(),
        n_layer=c.n_layer,
        n_head=c.n_head,
        n_kv_head=c.n_kv_head,
        d_model=c.d_model,
        parallel=c.parallel,
        edits=tuple(edited),
        ids=ids,
        n_prompt=n_prompt,
        answers=tuple(answers.tolist()),
        rivals=tuple(rivals.tolist()),
        depth=tuple(depth(lens.ids[..., 0], watch[at, 0].cpu()).tolist()),
        vectors=table(numbers.float()),
        cells=_cells(lens, rows, cells),
        between=_cells(middle, tuple(f"L{i} attn" for i in range(c.n_layer)), between) if middle else None,
        lengths=Lengths(**{name: table(x) for name, x in vars(length).items()}),
        books=tuple(_book(trace, book, against, heads=heads) for against, book in books),
        check=check,
        pieces=pieces,
        special=special,
        attention=looks,
        seed=done.seed,
    )


def table(x: Tensor) -> Table:
    """A tensor as a table: whole numbers in 32 bits, others as they are."""
    x = x.detach().cpu().contiguous()
    if not x.dtype.is_floating_point:
        x = x.to(torch.int32)
    kind = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.int32: "I32"}[x.dtype]
    return Table(kind, tuple(x.shape), ctypes.string_at(x.data_ptr(), x.nbytes))


def spelled(checkpoint: Checkpoint, ids: set[int]) -> tuple[dict[int, bytes], dict[int, str]]:
    """What ids stand for, and the names of those that stand for no text."""
    tokenizer = checkpoint.tokenizer
    pieces = {i: tokenizer.raw(i) for i in sorted(ids)}
    return pieces, {i: tokenizer.piece(i) or f"#{i}" for i, raw in pieces.items() if not raw}


def fingerprint(checkpoint: Checkpoint) -> str:
    """Of family, shape and vocabulary: traces with different ones are of different models.

    config.json itself may differ between copies of one model: a library that saves it adds its version.
    """
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    some = range(0, tokenizer.size, 1 + tokenizer.size // N_PIECES)  # all of a large vocabulary takes too long
    known = (checkpoint.family, dataclasses.asdict(config), tokenizer.size, [tokenizer.piece(i) for i in some])
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gptcli")
    except PackageNotFoundError:
        return "not installed"


def _cells(lens: Lens, rows: tuple[str, ...], positions: Sequence[int]) -> Cells:
    return Cells(
        rows=rows,
        positions=tuple(positions),
        ids=table(lens.ids),
        logprobs=table(lens.logprobs.float()),
        entropy=table(lens.entropy.float()),
        kl=table(lens.kl.float()),
        rank=table(lens.rank[..., 0]),
        logprob=table(lens.watched[..., 0].float()),
    )


def _book(trace: Trace, book: Ledger, against_rival: bool, *, heads: bool) -> Book:
    shares, biases, at, values = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    n, dtype = min(N_SOURCES, trace.n_positions), trace.embed.dtype
    bound = LEDGER_BOUND if dtype in WIDE else BOUNDS[dtype]
    for i in range(trace.config.n_layer) if heads else ():  # one by one: every source of every head is a large table
        split = head_ledger(trace, i, book.direction)
        if not split.relative_error <= bound:
            raise CheckFailed(
                f"the x-ray does not hold, so it is not shown: the heads of L{i} do not add up to its attention "
                f"(relative error {split.relative_error:.1e})",
                hint=f"the bound in {_name(dtype)} is {bound:.0e}; how heads share the output matrix, its bias or the "
                "norm behind it was misread",
            )
        shares.append(split.heads)
        biases.append(split.bias)
        at.append(split.sources.abs().topk(n, -1).indices)  # [H, T, n]
        values.append(split.sources.gather(-1, at[-1]))
    return Book(
        against_rival=against_rival,
        names=book.names,
        parts=table(book.parts.float()),
        const=table(book.const.float()),
        total=table(book.total.float()),
        logit=table(book.logit.float()),
        capped=None if book.capped is None else table(book.capped.float()),
        heads=table(torch.stack(shares).float()) if heads else None,
        head_bias=table(torch.stack(biases).float()) if heads else None,
        source_positions=table(torch.stack(at)) if heads else None,
        source_parts=table(torch.stack(values).float()) if heads else None,
    )


def _attention(trace: Trace) -> Attention:
    c, T = trace.config, trace.n_positions
    if (n := c.n_layer * c.n_head * T * T) > MOST_PATTERNS:
        raise UsageError(f"{n:,} numbers of attention are too many to keep", hint="a shorter text, or fewer tokens")
    patterns, sinks, error = [], [], _gathered(trace)
    for i in range(c.n_layer):
        pattern = trace.pattern_of(i)
        patterns.append(pattern.half())
        sinks.append(sink_share(pattern))
    return Attention(patterns=table(torch.stack(patterns)), sink=table(torch.stack(sinks)), error=error)


def _gathered(trace: Trace) -> float:
    """How far what the patterns gather is from what the heads did, relative. Raises CheckFailed."""
    c, errors = trace.config, []
    for i in range(c.n_layer):
        pattern = trace.pattern_of(i)
        gathered = pattern @ shared(trace.v[i], c.n_head).to(pattern.dtype)
        z = trace.z[i].to(pattern.dtype)
        off = (gathered - z).abs().masked_fill(trace.replaced(i)[..., None].to(z.device), 0)
        errors.append(off.max() / z.abs().max().clamp(min=1e-30))
    bound, error = BOUNDS[trace.z.dtype], float(torch.stack(errors).max())  # Python's max would lose a NaN
    if not error <= 2 * bound:
        raise CheckFailed(
            f"the x-ray does not hold, so it is not shown: the attention patterns gather something else than the heads "
            f"did (relative error {error:.1e}, bound {2 * bound:.0e})",
            hint="which keys a head sees, how heads share them, the scale or the cap of the scores was misread",
        )
    return error


def _check(
    checkpoint: Checkpoint,
    done: Run,
    cells: Sequence[int],
    read: Tensor,
    books: Sequence[Ledger],
    edits: Tape | None,
) -> Check:
    """Compares with the model's own numbers. Raises CheckFailed, and says which convention failed.

    cells: the positions that are shown; those of the prompt are compared score by score, the others state by state.
    read: what the lens of the last layer gives the written tokens, natural logarithms, [answer].
    """
    decoder, trace, n = checkpoint.decoder, done.trace, len(done.prompt.ids)
    T = trace.n_positions
    # a text that outgrows its rotary frequencies was computed anew with others: so it is here
    whole = n if decoder.regimes(n) == decoder.regimes(T) else T
    true = decoder.stream(torch.tensor([done.ids[:whole]], device=checkpoint.device), None, edits)[0, :n]
    seen, bound = trace.states[-1, :n], BOUNDS[checkpoint.dtype]
    # of few rows, whose largest score may be small: of 256 of SmolLM2 in bfloat16 one is off by 0.011
    row = 2 * bound
    apart = float((seen - true).abs().max() / true.abs().max().clamp(min=1e-30))
    at = torch.tensor([i for i in cells if i < n] or [n - 1], device=seen.device)
    off = disagreement(decoder, seen[at], true[at])
    if not (off <= row and apart <= bound):
        what = (
            f"what was recorded does not add up to the stream (relative error {apart:.1e})"
            if not apart <= bound
            else "the lens of the last layer is not the model's logits: the final norm, the head, its scale or its cap"
        )
        raise CheckFailed(
            f"the x-ray does not hold, so it is not shown: {what} (off by {off:.1e} of the largest logit)",
            hint=f"the bound in {_name(checkpoint.dtype)} is {row:.0e}",
        )
    emitted = None
    if done.steps:
        said = torch.tensor([step.logprob for step in done.steps])
        same = torch.tensor([decoder.regimes(n + i) == decoder.regimes(T) for i in range(len(said))])
        largest = max(1.0, float(decoder.readout(true[-1]).abs().max()))
        emitted = float((read - said)[same].abs().max()) / largest
        if not emitted <= row:
            raise CheckFailed(
                "the x-ray does not hold, so it is not shown: the lens gives the written tokens other probabilities "
                f"than the model did (off by {emitted:.1e} of the largest logit)",
                hint="what is captured token by token differs from what was computed",
            )
    worst = max((book.relative_error for book in books), default=None)
    if worst is not None and not worst <= LEDGER_BOUND:
        raise CheckFailed(
            "the x-ray does not hold, so it is not shown: the parts of the ledger do not add up to the logit "
            f"(relative error {worst:.1e})",
            hint=f"the bound is {LEDGER_BOUND:.0e}; the final norm's statistics, gain or shift was misread",
        )
    tokenizer, first = checkpoint.tokenizer, done.prompt.ids[0]
    start = tokenizer.piece(first) if checkpoint.begins(done.prompt.ids) else None
    return Check(
        lens=off,
        lens_bound=row,
        emitted=emitted,
        ledger=worst,
        ledger_bound=LEDGER_BOUND,
        no_ledger=refusal(decoder),
        dtype=_name(checkpoint.dtype),
        device=str(checkpoint.device),
        start=start or "",
        n_tokenizer=tokenizer.size,
        n_head_rows=checkpoint.config.n_vocab,
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.inference_mode()
def roles(checkpoint: Checkpoint, *, n: int = 24, seed: int = 0) -> Roles | None:
    """What each head does on n random tokens said twice, behind the start token if there is one.

    None for a model whose context has no room for two tokens twice, or whose vocabulary has fewer.
    """
    c, first = checkpoint.config, [] if checkpoint.start_id is None else [checkpoint.start_id]
    n = min(n, (c.n_ctx - len(first)) // 2, checkpoint.n_tokens)
    if n < 2:
        return None
    drawn = torch.randperm(checkpoint.n_tokens, generator=torch.Generator().manual_seed(seed))[:n].tolist()
    ids = [*first, *drawn, *drawn]
    trace = Trace(checkpoint.decoder, ids=ids)
    checkpoint.decoder.stream(torch.tensor([ids], device=checkpoint.device), None, trace)
    found = [role_scores(trace.pattern_of(i), len(first), n) for i in range(c.n_layer)]
    return Roles(n_tokens=n, **{name: table(torch.stack([scores[name] for scores in found])) for name in found[0]})
