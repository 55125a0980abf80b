"""Neurons: what one layer's MLP put into an answer's score, hidden unit by hidden unit, exact.

An MLP writes down(h): neuron n adds h[n] times column n of the output matrix. So along the direction d of a score
(ledger.py) neuron n put in h[n] * (column n . d), and all of them with the bias add up to the MLP's row of the ledger.
What a column does to the scores of all tokens is read through the final norm's gain, whatever the text was: the tokens
that it raises most are a name for what the neuron says. (Elhage et al. 2021; Geva et al. 2022, arXiv 2203.14680.)

    T positions   C width   F neurons (mlp dim)   V vocabulary
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gptcli import proof
from gptcli.attention import gained, wide
from gptcli.checkpoint import Checkpoint
from gptcli.errors import Unsupported
from gptcli.ledger import TINY, direction, refusal, through_norm
from gptcli.lens import SLICE, head_of
from gptcli.model import MLP, Block, Decoder, Norm
from gptcli.records_xray import Neuron, Neurons
from gptcli.trace import Trace

SHOWN, RAISED = 12, 3  # neurons, and tokens of each


@dataclass(frozen=True, kw_only=True)
class NeuronLedger:
    """One layer's MLP, neuron by neuron."""

    acts: Tensor  # what each neuron gives, the gate included, [T, F]
    parts: Tensor  # what it put in, [T, F]
    bias: Tensor  # of the output matrix and the norm behind it, [T]
    relative_error: float  # of neurons and bias against the MLP's own row: the worst, in units of what is added up


def neurons(
    checkpoint: Checkpoint, trace: Trace, layer: int, position: int, target: int, rival: int | None = None
) -> Neurons:
    """Those that put most into the score of `target`, or into its lead over `rival`.

    Raises Unsupported where the stream is no running sum, and CheckFailed where they do not add up to the MLP's write.
    """
    decoder = trace.decoder
    if reason := refusal(decoder):
        raise Unsupported(f"neurons cannot be read in this model: {reason}")
    x = wide(trace.states[-1][position])[None]
    ids = [None if id is None else torch.tensor([id], device=x.device) for id in (target, rival)]
    assert ids[0] is not None
    d, _ = direction(decoder, x, ids[0], ids[1])
    at = slice(position, position + 1)
    found = neuron_ledger(trace, layer, d, at)
    error = proof.neurons_error(found.relative_error, layer, trace.embed.dtype)
    acts, parts = found.acts[0], found.parts[0]
    most = parts.abs().topk(min(SHOWN, len(parts))).indices
    words = raised(decoder, layer, most, acts[most], n=RAISED, size=checkpoint.n_tokens)
    shown = [
        Neuron(index=n, act=float(acts[n]), value=float(parts[n]), raises=tuple(ids))
        for n, ids in zip(most.tolist(), words.tolist(), strict=True)
    ]
    return Neurons(
        layer=layer,
        position=position,
        target=target,
        rival=rival,
        shown=tuple(shown),
        n_all=len(parts),
        others=float(parts.sum()) - sum(neuron.value for neuron in shown),
        bias=float(found.bias[0]),
        write=float((wide(trace.mlp_out[layer][position]) * d[0]).sum()),
        error=error,
    )


@torch.inference_mode()
def neuron_ledger(trace: Trace, layer: int, direction: Tensor, at: slice = slice(None)) -> NeuronLedger:
    """Splits what one layer's MLP put in. at: the positions, T of them; direction: a ledger's there, [T, C]."""
    c, block = trace.config, block_of(trace.decoder, layer)
    mlp = block.mlp
    assert isinstance(mlp, MLP)
    _, up, bent = hidden(block, (trace.states[layer] if c.parallel else trace.mid_of(layer))[at])
    acts = bent * up if mlp.gate else bent
    d, bias = direction * c.residual_scale, torch.zeros_like(direction[:, 0])
    if block.mlp_out_norm:
        d, bias = through_norm(block.mlp_out_norm, wide(mlp.down(acts)), d)
    parts = wide(acts) * (d @ wide(mlp.down.weight))
    if mlp.down.bias is not None:
        bias = bias + d @ wide(mlp.down.bias)
    write = wide(trace.mlp_out[layer][at]) * direction  # [T, C]
    error = (parts.sum(-1) + bias - write.sum(-1)).abs()
    size = parts.abs().sum(-1) + bias.abs() + write.abs().sum(-1)  # in 16 bits its numbers were rounded one by one
    return NeuronLedger(
        acts=wide(acts), parts=parts, bias=bias, relative_error=float((error / size.clamp(min=TINY)).max())
    )


def hidden(block: Block, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a block's MLP makes of the stream: what it reads, [T, C]; up, and the activation, of the gate or of up.

    In the dtype of the weights: in 16 bits a gate that is a small difference may be far from the exact one. x: [T, C].
    """
    mlp = block.mlp
    assert isinstance(mlp, MLP)
    norm = mlp_reads_through(block)
    own = x.to(mlp.up.weight.dtype)
    read = norm(own) if norm else own
    up = mlp.up(read)
    return read, up, mlp.act(mlp.gate(read) if mlp.gate else up)


def mlp_reads_through(block: Block) -> Norm | None:
    """The norm in front of a block's MLP; parallel blocks may have one for both parts."""
    return block.mlp_norm or (block.attn_norm if block.config.parallel else None)


@torch.inference_mode()
def raised(decoder: Decoder, layer: int, which: Tensor, acts: Tensor, *, n: int, size: int) -> Tensor:
    """The tokens whose scores some neurons raise most, by the sign of what they give. [N], [N] -> ids, [N, n].

    size: ids from here on are padding.
    """
    block = block_of(decoder, layer)
    mlp = block.mlp
    assert isinstance(mlp, MLP)
    rows = wide(mlp.down.weight).T[which] * acts.sign()[:, None]  # [N, C]
    for norm in (block.mlp_out_norm, decoder.final_norm):
        rows = gained(norm, rows)
    if decoder.embed_out:
        rows = rows @ wide(decoder.embed_out.weight).T
    parts = torch.split(head_of(decoder)[:size], SLICE)  # of a head in 16 bits, which would be large in 32
    scores = torch.cat([rows @ wide(part).T for part in parts], -1)
    return scores.topk(min(n, scores.shape[-1])).indices


def block_of(decoder: Decoder, layer: int) -> Block:
    """One layer, as what it is: a list of modules hides that."""
    block = decoder.blocks[layer]
    assert isinstance(block, Block)
    return block
