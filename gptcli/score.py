"""Scoring: how likely a model finds a text, token by token, and what that is in bits per byte.

Bits per byte compare models with different tokenizers: the natural logarithms of the tokens' probabilities, summed,
over ln 2, over the bytes that those tokens spell.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from gptcli.checkpoint import Checkpoint
from gptcli.errors import GptcliError, UsageError
from gptcli.generation import NOT_FINITE, culprit
from gptcli.records import Scored

ROWS = 1 << 24  # scores of the vocabulary held at once: 64 MB in float32


@torch.inference_mode()
def score(
    checkpoint: Checkpoint, texts: Iterable[str], *, batch: int = 16, stride: int | None = None
) -> Iterator[Scored]:
    """One record for each text, each scored on its own, from its first token on, behind the start token.

    Tokens past the model's context are left out and counted; with a stride they are scored too, in windows each that
    many tokens further on, in which what was scored before is only looked at. A model without a start token cannot say
    how likely the first token is: that one is given. Raises UsageError for a text with nothing to score.
    """
    if stride is not None and not 0 < stride < checkpoint.config.n_ctx:
        raise UsageError(f"a stride is 1 to {checkpoint.config.n_ctx - 1} tokens in this model, not {stride}")
    waiting = iter(texts)
    while group := list(islice(waiting, batch)):
        yield from _scored(checkpoint, group, batch, stride)


def _scored(checkpoint: Checkpoint, texts: list[str], batch: int, stride: int | None) -> Iterator[Scored]:
    tokenizer, n_ctx, start = checkpoint.tokenizer, checkpoint.config.n_ctx, checkpoint.start_id
    encoded, dropped = list[list[int]](), list[int]()
    for text in texts:
        ids = tokenizer.encode(text)
        if start is not None and ids[:1] != [start]:
            ids = [start, *ids]
        if len(ids) < 2:
            raise UsageError("there is nothing to score: the text is empty, or one token long without a start token")
        encoded.append(ids if stride else ids[:n_ctx])
        dropped.append(len(ids) - len(encoded[-1]))
    windows = [(i, *w) for i, ids in enumerate(encoded) for w in _windows(ids, n_ctx, stride or n_ctx, start)]
    found = [list[float]() for _ in encoded]
    for at in range(0, len(windows), batch):
        part = windows[at : at + batch]
        logprobs = _together(checkpoint, [row for _, row, _ in part])
        for k, (i, row, n_known) in enumerate(part):
            if not bool(logprobs[k].isfinite().all()):
                where = culprit(checkpoint, torch.tensor([row], device=checkpoint.device))
                raise GptcliError(f"the logits of the text are not finite: {where}", hint=NOT_FINITE)
            found[i] += logprobs[k][n_known - 1 :].tolist()
    for i, ids in enumerate(encoded):
        spelled = b"".join(map(tokenizer.raw, ids))  # where the context ends within a character, what it has of it
        added = tokenizer.leading_space and spelled.startswith(b" ")  # by the tokenizer: it is not of the text
        n_bytes = len(spelled) - (added if start is not None else len(tokenizer.raw(ids[0])))
        yield Scored(ids=tuple(ids), logprobs=tuple(found[i]), n_bytes=n_bytes, n_dropped=dropped[i])


def _windows(ids: list[int], n_ctx: int, stride: int, start: int | None) -> Iterator[tuple[list[int], int]]:
    """Rows of at most n_ctx ids that show all of a text, and how many of a row's are only looked at, one or more."""
    yield ids[:n_ctx], 1
    done = n_ctx
    while done < len(ids):
        stop = min(len(ids), done + stride)
        row = ids[max(0, stop - n_ctx) : stop]
        if start is not None:  # what a model rests its attention on stands in front of each window
            row[0] = start
        yield row, n_ctx - (stop - done)
        done = stop


def _together(checkpoint: Checkpoint, rows: list[list[int]]) -> dict[int, Tensor]:
    """Natural logarithms of the probabilities of each row's tokens but the first, [T - 1]."""
    decoder, alike, found = checkpoint.decoder, defaultdict[tuple[int, ...], list[int]](list), dict[int, Tensor]()
    for i, ids in enumerate(rows):  # rotary frequencies may depend on how long a text is
        alike[decoder.regimes(len(ids))].append(i)
    for group in alike.values():
        longest = max(len(rows[i]) for i in group)
        padded = torch.tensor([rows[i] + [0] * (longest - len(rows[i])) for i in group], device=checkpoint.device)
        x = decoder.stream(padded)  # [B, T, C]; what stands to the right of a token does not change it
        for i, states, ids in zip(group, x, padded, strict=True):
            n = len(rows[i])
            found[i] = logprobs_of(checkpoint, states[: n - 1], ids[1:n])
    return found


def logprobs_of(checkpoint: Checkpoint, x: Tensor, labels: Tensor) -> Tensor:
    """Natural logarithm of each label's probability. x: [T, C], the stream before it; labels: [T]. Returns [T]."""
    step = max(1, ROWS // checkpoint.config.n_vocab)
    found = []
    for part, wanted in zip(torch.split(x, step), torch.split(labels, step), strict=True):
        logits = checkpoint.decoder.readout(part).float()
        found.append(logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(1))
    return torch.cat(found)
