"""softmax(scale q.k) v, in the forms that the decoder needs: all of them are the same sum, made in different orders.

attend          whole texts, and one token of each; PyTorch's own kernel, or one of the next two
attend_plain    one token of each of many texts, which gets what it gets alone, to the last bit
attend_written  as the formula stands, with a soft-cap or without
attend_apart    one token of each of many texts that differ in length, each as if it came alone
attend_blocks   whole texts in a step of training that is compiled
attend_each     few tokens on their way through the compiler, each as if it came alone

B batch   T new tokens   S tokens seen   H heads   K kv heads   D head dim
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from gptcli.linear import HALF, slow, stored

OfEach = Tensor | list[Tensor]  # the same for all new tokens, or one of each
BLOCK = 256  # queries of attend_blocks
PLAIN = 1024  # keys up to which one token's attention is made of plain products


def visible(T: int, S: int, window: int | None, device: torch.device, lengths: Tensor | None = None) -> Tensor | None:
    """Which of the last S keys each of the last T queries sees, [T, S], bool; None where causal order says it all.

    lengths: [B], where the rows' texts differ in length and end together, T is 1; then [B, 1, 1, S].
    """
    if lengths is not None:
        return torch.arange(S, device=device) >= (S - lengths)[:, None, None, None]
    if T == 1:  # the cache hands over only what is visible
        return None if window is None or window >= S else torch.arange(S, device=device)[None] >= S - window
    if T == S and (window is None or window >= S):
        return None
    query, key = torch.arange(S - T, S, device=device)[:, None], torch.arange(S, device=device)
    seen = key <= query  # compared and not subtracted: of [T, S] there are only bytes
    return seen if window is None else seen & (key > query - window)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """softmax(scale q.k) v over the visible keys. q: [B, H, T, D]; k, v: [B, K, S, D], shared by H/K neighbours."""
    T = q.shape[2]
    if slow(q, T):
        return attend(q.float(), k.float(), v.float(), mask, scale, softcap).to(q.dtype)
    if T == 1 and (mask is None or mask.ndim == 4):
        # heads that share keys ask as neighbours: no key is read twice
        asked = q.reshape(len(q), k.shape[1], -1, q.shape[3])  # [B, K, H/K, D]
        if mask is None and takes_plain(q, k):
            return attend_plain(asked, k, v, scale, softcap).to(q.dtype).reshape(q.shape)
        if softcap is None:
            return F.scaled_dot_product_attention(asked, k, v, mask, scale=scale).reshape(q.shape)
    if softcap is None:
        share = q.shape[1] != k.shape[1]
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale, enable_gqa=share)
    return attend_written(q, k, v, mask, scale, softcap)


def takes_plain(q: Tensor, k: Tensor) -> bool:
    """Whether one token's attention is made of plain products: each text then gets what it gets alone, to the last bit.

    PyTorch's own attention is rounded otherwise for many texts; for one with many keys it is faster.
    """
    training = torch.is_grad_enabled() or torch.compiler.is_compiling()
    return q.device.type == "cpu" and k.shape[2] <= PLAIN and not training


def attend_plain(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None) -> Tensor:
    """The attention of one token of each text, in float32 or wider. q: [B, K, H/K, D] -> the same."""
    q, k, v = (t.float() if t.dtype in HALF else t for t in (q, k, v))
    scores = (q * scale) @ k.transpose(-1, -2)  # [B, K, H/K, S]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return scores.softmax(-1) @ v


def attend_apart(
    q: Tensor, k: Tensor, v: Tensor, runs: list[tuple[int, int]], scale: float, softcap: float | None
) -> Tensor:
    """The same for a new token of each of many texts, exactly as if each came alone. q: [B, H, 1, D]; k: [B, K, S, D].

    runs: how many rows, keys. Neighbours with as many keys go together, unless PyTorch's own attention takes them.
    """
    S, found, row, dtype = k.shape[2], list[Tensor](), 0, q.dtype
    if dtype in HALF and S <= PLAIN:
        q, k, v = q.float(), k.float(), v.float()  # as `attend_plain` does for each, here at once
    for n, seen in runs:
        seen = min(seen, S)
        step = n if seen <= PLAIN else 1
        for i in range(row, row + n, step):
            rows = slice(i, i + step)
            found.append(attend(q[rows], k[rows, :, S - seen :], v[rows, :, S - seen :], None, scale, softcap))
        row += n
    return (torch.cat(found) if len(found) > 1 else found[0]).to(dtype)


def attend_written(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, softcap: float | None) -> Tensor:
    """The same as the formula stands: all scores at once, and so in memory."""
    T, S, n_shared = q.shape[2], k.shape[2], q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(n_shared, 1), v.repeat_interleave(n_shared, 1)
    scores = q @ k.transpose(-1, -2) * scale  # [B, H, T, S]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if mask is None and T > 1:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.float().softmax(-1).to(v.dtype) @ v


def attend_blocks(q: Tensor, k: Tensor, v: Tensor, window: int | None, scale: float, softcap: float | None) -> Tensor:
    """The same for whole texts, a block of queries after the other: none meets keys that no query of it sees.

    Forward and back that takes the compiler's code half the time of PyTorch's own attention, in bfloat16 on a CPU, as
    long as the sequences are few and their scores stay in the processor's cache. q: [B, H, T, D]; k, v: [B, K, T, D].
    """
    T, blocks = q.shape[2], []
    for start in range(0, T, BLOCK):
        stop = min(start + BLOCK, T)
        first = max(0, start + 1 - window) if window else 0
        mask = visible(stop - start, stop - first, window, q.device)
        asked, keys, values = q[:, :, start:stop], k[:, :, first:stop], v[:, :, first:stop]
        blocks.append(attend_written(asked, keys, values, mask, scale, softcap))
    return torch.cat(blocks, 2)


def attend_each(q: Tensor, k: OfEach, v: OfEach, window: int | None, scale: float, softcap: float | None) -> Tensor:
    """The same for few tokens on their way through the compiler, written out, each as if it came alone.

    q: [1, H, T, D]; k, v: [1, K, S, D], the T own ones last; or of each token what it sees, if they are of T texts.
    """
    T = q.shape[2]
    if isinstance(k, Tensor) and isinstance(v, Tensor):
        stops = [k.shape[2] - T + 1 + i for i in range(T)]
        firsts = [torch.sym_max(0, stop - window) if window and T > 1 else 0 for stop in stops]  # type: ignore[no-untyped-call]
        seen = [slice(first, stop) for first, stop in zip(firsts, stops, strict=True)]
        k, v = [k[:, :, each] for each in seen], [v[:, :, each] for each in seen]
    every = zip(q.unbind(2), k, v, strict=True)
    return torch.stack([attend_spelled(q, k, v, scale, softcap) for q, k, v in every], 2)


def attend_spelled(q: Tensor, k: Tensor, v: Tensor, scale: float, softcap: float | None) -> Tensor:
    """One token; each key and value is read once. [1, H, D]; [1, K, S, D] -> [1, H, D]"""
    asked = stored(q.reshape(1, k.shape[1], -1, q.shape[-1]).float() * scale)  # [1, K, H/K, D]
    keys, values, shared = k.float(), v.float(), range(asked.shape[2])
    scores = torch.stack([(keys * asked[:, :, i, None]).sum(-1) for i in shared], 2)  # [1, K, H/K, S]
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = (scores - scores.amax(-1, keepdim=True)).exp()
    z = torch.stack([(weights[:, :, i, :, None] * values).sum(2) for i in shared], 2)  # [1, K, H/K, D]
    return (z / weights.sum(-1, keepdim=True)).reshape(q.shape).to(q.dtype)
