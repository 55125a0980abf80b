"""Scoring: how likely a model finds a text, token by token, and what that is in bits per byte.

Bits per byte compare models with different tokenizers: the natural logarithms of the tokens' probabilities, summed,
over ln 2, over the bytes that those tokens spell.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import torch
from torch import Tensor

from gptcli.checkpoint import Checkpoint
from gptcli.errors import UsageError
from gptcli.records import Scored

ROWS = 1 << 24  # scores of the vocabulary held at once: 64 MB in float32


@torch.inference_mode()
def score(checkpoint: Checkpoint, texts: Iterable[str], *, batch: int = 16) -> Iterator[Scored]:
    """One record for each text, each scored on its own, from its first token on, behind the start token.

    Tokens past the model's context are left out and counted. A model without a start token cannot say how likely the
    first token is: that one is given. Raises UsageError for a text with nothing to score.
    """
    waiting = iter(texts)
    while group := list(islice(waiting, batch)):
        yield from _scored(checkpoint, group)


def _scored(checkpoint: Checkpoint, texts: list[str]) -> list[Scored]:
    tokenizer, n_ctx = checkpoint.tokenizer, checkpoint.config.n_ctx
    rows, dropped, start = list[list[int]](), list[int](), checkpoint.start_id
    for text in texts:
        ids = tokenizer.encode(text)
        if start is not None and ids[:1] != [start]:
            ids = [start, *ids]
        if len(ids) < 2:
            raise UsageError("there is nothing to score: the text is empty, or one token long without a start token")
        rows.append(ids[:n_ctx])
        dropped.append(len(ids) - len(rows[-1]))
    longest = max(map(len, rows))
    padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=checkpoint.device)
    x = checkpoint.decoder.stream(padded)  # [B, T, C]; what stands to the right of a token does not change it
    result = []
    for i, ids in enumerate(rows):
        labels = padded[i, 1 : len(ids)]
        logprobs = logprobs_of(checkpoint, x[i, : len(ids) - 1], labels)
        spelled = b"".join(map(tokenizer.raw, ids))  # where the context ends within a character, what it has of it
        added = tokenizer.leading_space and spelled.startswith(b" ")  # by the tokenizer: it is not of the text
        n_bytes = len(spelled) - (added if start is not None else len(tokenizer.raw(ids[0])))
        result.append(Scored(ids=tuple(ids), logprobs=tuple(logprobs.tolist()), n_bytes=n_bytes, n_dropped=dropped[i]))
    return result


def logprobs_of(checkpoint: Checkpoint, x: Tensor, labels: Tensor) -> Tensor:
    """Natural logarithm of each label's probability. x: [T, C], the stream before it; labels: [T]. Returns [T]."""
    step = max(1, ROWS // checkpoint.config.n_vocab)
    found = []
    for part, wanted in zip(torch.split(x, step), torch.split(labels, step), strict=True):
        logits = checkpoint.decoder.readout(part).float()
        found.append(logits.gather(1, wanted[:, None])[:, 0] - logits.logsumexp(1))
    return torch.cat(found)
