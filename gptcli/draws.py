"""One choice of a token made visible: what the model said, what temperature and filters left of it, what was drawn."""

from __future__ import annotations

import torch

from gptcli.checkpoint import Checkpoint
from gptcli.records_xray import Draw, Option
from gptcli.sample import adjust, candidates, keep
from gptcli.sampling import Sampling
from gptcli.scan import Run

N_CUT = 3  # of the tokens that were cut, so many are told at least, where there are any


@torch.inference_mode()
def draw_of(checkpoint: Checkpoint, done: Run, index: int, sampling: Sampling, *, n: int = 12) -> Draw:
    """How the `index`-th written token was chosen, with the n best tokens, itself and the best that were cut."""
    n_prompt, step = len(done.prompt.ids), done.steps[index]
    position = n_prompt - 1 + index
    logits = checkpoint.decoder.readout(done.trace.states[-1, position]).float().cpu()
    context = done.ids[: position + 1]
    adjusted = adjust(logits, sampling, context=context, generated=context[n_prompt:])[: checkpoint.n_tokens]
    if sampling.greedy:  # what every temperature above 0 tends to
        warm = torch.zeros(len(adjusted), dtype=torch.float64)
        warm[step.id] = 1.0
        ids, probs = torch.tensor([step.id]), torch.ones(1, dtype=torch.float64)
    else:
        warm = (adjusted.double() / sampling.temperature).softmax(-1)
        ids, probs = keep(adjusted, sampling)
    kept = dict(zip(ids.tolist(), probs.tolist(), strict=True))
    before = dict(zip(ids.tolist(), (probs.cumsum(0) - probs).tolist(), strict=True))
    raw = logits.double().softmax(-1)
    ranked = [i for i, _ in candidates(adjusted, max(n, len(kept) + N_CUT))]
    rank = {i: k for k, i in enumerate(ranked, 1)}
    cuts = [i for i in ranked if i not in kept][: 0 if sampling.greedy else N_CUT]
    shown = sorted({*ranked[:n], step.id, *cuts}, key=rank.__getitem__)
    cut = 1 - float(warm[ids].sum()) if len(ids) < len(adjusted) else 0.0
    return Draw(
        position=position,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        options=tuple(
            Option(
                id=i, raw=float(raw[i]), warm=float(warm[i]), kept=kept.get(i, 0.0), rank=rank[i], before=before.get(i)
            )
            for i in shown
        ),
        n_kept=step.n_kept,
        cut=max(0.0, cut),
        draw=step.draw,
        chosen=step.id,
    )
