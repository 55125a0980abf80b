"""Input attribution by occlusion: how much less likely the answer is when one token of the text is not there.

Each token in turn is replaced by one neutral token, and the text computed again: no gradient, no baseline to choose
but that token, and every number is a difference of two that the model really gave.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gptcli.checkpoint import Checkpoint
from gptcli.lens import end_of, log_probs, scores

TOKENS = 2048  # positions sent through at once


def neutral_token(checkpoint: Checkpoint) -> int:
    """What stands for nothing: a lone space where that is a token, else a comma, else the start token, else id 0."""
    for text in (" ", ","):
        found = checkpoint.tokenizer.id_of(text)
        if found is not None:
            return found
    return checkpoint.start_id or 0


@torch.inference_mode()
def occlusion(checkpoint: Checkpoint, ids: tuple[int, ...], target: int, neutral: int) -> Tensor:
    """log p(target | text) - log p(target | text without token i), natural: above 0 it spoke for the target. [T]."""
    decoder, T = checkpoint.decoder, len(ids)
    text = torch.tensor(ids, device=checkpoint.device)
    texts = text.repeat(T + 1, 1)  # the last is whole
    texts[torch.arange(T), torch.arange(T)] = neutral
    step, end, found = max(1, TOKENS // T), end_of(decoder), []
    for group in torch.split(texts, step):
        found.append(log_probs(scores(end, decoder.stream(group)[:, -1]))[:, target])
    logprobs = torch.cat(found).cpu()
    return logprobs[-1] - logprobs[:-1]
