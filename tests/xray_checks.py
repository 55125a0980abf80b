"""What must hold of the x-ray, as functions: tests call them as they are, and with seeded bugs, which they catch."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from zoo import ZOO

from gptcli import Checkpoint, Decoder, Trace
from gptcli.ledger import head_ledger, ledger
from gptcli.lens import end_of, read, scores
from gptcli.places import Place
from gptcli.whatif import Edits

IDS = [int(i) for i in torch.randint(1, 260, (20,), generator=torch.Generator().manual_seed(7))]
MORE = ("gpt2-untied-sharded", "gpt_neox-serial", "llama-biases", "gemma2-capped-hard", "stablelm-parallel", "opt-350m",
        "phi-qk-norm-old", "qwen3-slides", "llama-dynamic", "phi3-longrope")  # fmt: skip
FIRST = {kind.family: kind for kind in reversed(ZOO)}
KINDS = [*(FIRST[family] for family in sorted(FIRST)), *(kind for kind in ZOO if kind.name in MORE)]
SUMS = [kind for kind in KINDS if kind.name != "opt-350m"]  # whose stream is a running sum


@torch.inference_mode()
def traced(decoder: Decoder, ids: list[int] = IDS, edits: Any = None) -> Trace:
    trace = Trace(decoder, edits=edits, ids=ids)
    decoder.stream(torch.tensor([ids], device=decoder.embed.weight.device), None, trace)
    return trace


@torch.inference_mode()
def block_outputs(decoder: torch.nn.Module, blocks: Any, ids: list[int], **more: Any) -> list[Tensor]:
    """What each block hands on, seen by torch's own hooks; [T, C] each."""
    seen = list[Tensor]()

    def hook(module: Any, arguments: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output)[0])

    handles = [block.register_forward_hook(hook) for block in blocks]
    try:
        decoder(torch.tensor([ids]), **more)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def check_states(decoder: Decoder, ids: list[int] = IDS) -> None:
    """The states are bit for bit what goes from block to block."""
    trace = traced(decoder, ids)
    for ours, theirs in zip(trace.resid_post, block_outputs(decoder, decoder.blocks, ids), strict=True):
        assert torch.equal(ours, theirs)
    assert torch.equal(trace.resid_pre[1:], trace.resid_post[:-1])


class Reference:
    """transformers' model of one kind: its blocks, and the modules behind them."""

    def __init__(self, model: Any, *, stateful: bool) -> None:
        self.model = copy.deepcopy(model) if stateful else model
        n = self.model.config.num_hidden_layers
        self.layers = next(
            m for m in self.model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == n and n > 1
        )
        inner = next(m for m in self.model.modules() if any(child is self.layers for child in m.children()))
        names = ("ln_f", "final_layer_norm", "final_layernorm", "norm")
        self.norm = next((m for name in names if (m := getattr(inner, name, None)) is not None), None)
        self.project = getattr(inner, "project_out", None)

    @torch.inference_mode()
    def lens(self, x: Tensor) -> Tensor:
        """Their own norm and head on a state. [T, C] -> log-probabilities [T, V]."""
        config = self.model.config
        x = x if self.norm is None else self.norm(x)
        x = x if self.project is None else self.project(x)
        logits = self.model.get_output_embeddings()(x)
        if cap := getattr(config, "final_logit_softcapping", None):
            logits = cap * torch.tanh(logits / cap)
        # in float64: over 32,000 tokens torch's own in float32 is off by 4e-5
        return (logits / getattr(config, "logits_scaling", 1.0)).double().log_softmax(-1)


def check_lens(ours: Checkpoint, model: Any, *, stateful: bool = False) -> None:
    """Our reading of every layer is that of transformers' own modules on what its own blocks hand on."""
    reference = Reference(model, stateful=stateful)
    states = block_outputs(reference.model, reference.layers, IDS, use_cache=False)
    trace = traced(ours.decoder)
    expected = torch.stack([reference.lens(x) for x in states])  # [L, T, V]
    watch = torch.randint(0, ours.config.n_vocab, (len(IDS), 3), generator=torch.Generator().manual_seed(1))
    found = read(ours.decoder, trace.resid_post, watch=watch, top=4)
    best = expected.topk(4, -1)
    assert (found.logprobs - best.values).abs().max() <= 1e-4
    assert (found.logprobs.exp() - best.values.exp()).abs().max() <= 1e-5
    sure = best.values[..., 0] - best.values[..., 1] > 1e-4
    assert torch.equal(found.ids[..., 0][sure], best.indices[..., 0][sure])
    assert sure.float().mean() > 0.9 or ours.config.final_softcap == 3.0  # such a cap makes the best tokens tie
    theirs = expected.gather(-1, watch.expand(len(expected), -1, -1))
    assert (found.watched - theirs).abs().max() <= 1e-4
    apart = (expected[..., None, :] - theirs[..., None]).abs().topk(2, -1, largest=False).values[..., 1] > 1e-4
    ranks = 1 + (expected[..., None, :] > theirs[..., None]).sum(-1)
    assert torch.equal(found.rank[apart], ranks[apart])
    assert (found.entropy + (expected.exp() * expected).sum(-1)).abs().max() <= 1e-4
    kl = (expected[-1].exp() * (expected[-1] - expected)).sum(-1)
    assert (found.kl - kl).abs().max() <= 1e-4
    assert float(found.kl[-1].abs().max()) == 0.0


def check_ledger(decoder: Decoder) -> None:
    """Every split adds up: parts to the logit, heads to a part, sources to a head; the logit is the model's own."""
    trace = traced(decoder)
    target = torch.randint(0, decoder.config.n_vocab, (len(IDS),), generator=torch.Generator().manual_seed(2))
    against = (target + 1) % decoder.config.n_vocab
    with torch.inference_mode():
        logits = decoder(torch.tensor([IDS]))[0]
    for other, over_mean in ((None, False), (against, False), (None, True)):
        book = ledger(trace, target, other, over_mean=over_mean)
        assert book.relative_error <= 1e-5
        own = logits.gather(1, target[:, None]) - (logits.gather(1, other[:, None]) if other is not None else 0)
        own = own - logits.mean(1, keepdim=True) if over_mean else own
        said = book.logit if book.capped is None else book.capped
        assert (said - own[:, 0]).abs().max() <= 1e-5 * logits.abs().max()
        for i in range(decoder.config.n_layer):
            split, part = head_ledger(trace, i, book.direction), book.parts[book.names.index(f"L{i} attn")]
            scale = split.heads.abs().sum(0) + split.bias.abs()
            assert ((split.heads.sum(0) + split.bias - part).abs() / scale).max() <= 1e-5
            assert ((split.sources.sum(-1) - split.heads).abs() / split.sources.abs().sum((0, -1))).max() <= 1e-5


@torch.inference_mode()
def check_attention(ours: Checkpoint, model: Any, *, stateful: bool = False) -> None:
    """Patterns are the weights that transformers' eager attention computes; what they gather is what was gathered."""
    model = copy.deepcopy(model) if stateful else model
    theirs = model(torch.tensor([IDS]), output_attentions=True, use_cache=False).attentions
    trace = traced(ours.decoder)
    groups = ours.config.n_head // ours.config.n_kv_head
    assert len(theirs) == ours.config.n_layer
    for i, weights in enumerate(theirs):
        pattern = trace.pattern_of(i)
        assert (pattern - weights[0].float()).abs().max() <= 1e-5
        assert (pattern.sum(-1) - 1).abs().max() <= 1e-5
        hidden = torch.ones(len(IDS), len(IDS), dtype=torch.bool).triu(1)
        if window := ours.config.layers[i].window:
            hidden |= torch.ones(len(IDS), len(IDS), dtype=torch.bool).tril(-window)
        assert float(pattern[:, hidden].abs().max()) == 0.0
        gathered = torch.stack([pattern[h] @ trace.v[i, h // groups] for h in range(ours.config.n_head)])
        assert (gathered - trace.z[i]).abs().max() <= 1e-5 * trace.z[i].abs().max()
    assert torch.equal(trace.pattern[1], trace.pattern_of(1))


@torch.inference_mode()
def check_ablation(decoder: Decoder, layer: int = 1, head: int = 2) -> None:
    """Without a head, the attention's write lacks exactly that head's own part: the bias of the matrix stays."""
    place = Place(layer=layer, part="head", head=head)
    before, after = traced(decoder), traced(decoder, edits=Edits(decoder, [place]))
    D, out = decoder.config.d_head, decoder.blocks[layer].attn.out  # type: ignore[union-attr]
    write = before.z[layer, head] @ out.weight[:, head * D : (head + 1) * D].T
    difference = after.attn_out[layer] - (before.attn_out[layer] - write)
    assert difference.abs().max() <= 1e-12 * before.attn_out[layer].abs().max()
    assert torch.equal(after.attn_out[:layer], before.attn_out[:layer])
    assert not torch.equal(after.states[-1], before.states[-1])


@torch.inference_mode()
def check_top(ours: Checkpoint) -> None:
    """The best tokens are in the order of the scores in float32, whatever the dtype of the weights."""
    trace = traced(ours.decoder)
    exact = copy.deepcopy(ours.decoder).float()
    expected = torch.stack([exact.readout(x.float()) for x in trace.states])
    assert torch.equal(read(ours.decoder, trace.states, top=5).ids, expected.topk(5, -1).indices)
    assert scores(end_of(ours.decoder), trace.states[-1]).dtype == torch.float32
