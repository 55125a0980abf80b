"""From a Layout to what `gptcli info` says about it. Free of torch."""

from __future__ import annotations

from pathlib import Path

from gptcli.config import Config
from gptcli.families import FAMILIES
from gptcli.layout import FLOATS, Layout
from gptcli.records import Card, Tensor


def card(layout: Layout, *, n_context: int | None = None) -> Card:
    """What a checkpoint is, and the memory it will need at a context of `n_context` tokens (default: all it has)."""
    c, n_bytes = layout.config, FLOATS[layout.runs_as()]
    tensors = (
        Tensor(name=p.tensor.name, shape=p.tensor.shape, dtype=p.tensor.dtype, n_bytes=p.tensor.nbytes,
               fills=tuple(part.name for part in p.parts))
        for p in layout.placements
    )  # fmt: skip
    context = n_context or c.n_ctx
    return Card(
        name=layout.source.folder.resolve().name if Path(layout.source.name).exists() else layout.source.name,
        folder=str(layout.source.folder),
        family=layout.family,
        models=FAMILIES[layout.family].models,
        n_params=c.n_params(),
        budget=budget(c),
        dtype=layout.dtype,
        n_layer=c.n_layer,
        d_model=c.d_model,
        n_head=c.n_head,
        n_kv_head=c.n_kv_head,
        d_head=c.d_head,
        d_ff=c.d_ff,
        n_vocab=c.n_vocab,
        n_ctx=c.n_ctx,
        traits=traits(c),
        n_context=context,
        loaded_as=layout.runs_as(),
        weight_bytes=c.n_params() * n_bytes,
        cache_bytes=c.kv_bytes(context, n_bytes),
        files=tuple(file.name for file in layout.source.files),
        tensors=tuple(tensors),
        notes=layout.notes,
    )


def budget(c: Config) -> tuple[tuple[str, int], ...]:
    """Parameters of each part of the decoder; they add up to all of them."""
    parts = {"embedding": 0, "positions": 0, "attention": 0, "MLP": 0, "norms": 0, "head": 0}
    for name, shape in c.shapes().items():
        n = 1
        for side in shape:
            n *= side
        head, *_ = name.split(".")
        if "norm" in name:
            parts["norms"] += n
        elif head == "blocks":
            parts["attention" if ".attn." in name else "MLP"] += n
        else:
            parts[{"embed": "embedding", "embed_in": "embedding", "pos_embed": "positions"}.get(head, "head")] += n
    return tuple((part, n) for part, n in parts.items() if n)


def traits(c: Config) -> tuple[tuple[str, str], ...]:
    """What the decoder does, in the words of the field."""
    ropes = [layer.rope for layer in c.layers if layer.rope]
    positions = "learned" if c.learned_positions else "none"
    if ropes:
        kinds = sorted({f"rotary, base {r.theta:g}" + (f", {r.kind} x{r.factor:g}" if r.factor != 1 else
                        f", {r.kind}" if r.kind != "default" else "") for r in ropes})  # fmt: skip
        share = ropes[0].dim / c.d_head
        positions = "; ".join(kinds) + (f", {share:.0%} of each head" if share < 1 else "")
        if len(ropes) < c.n_layer:
            positions += f", none in {c.n_layer - len(ropes)} layers"
    windows = [layer.window for layer in c.layers if layer.window]
    attention = (
        "all heads have keys of their own"
        if c.n_head == c.n_kv_head
        else f"{c.n_head // c.n_kv_head} heads share a key"
    )
    if windows:
        attention += f"; {len(windows)} of {c.n_layer} layers see only the last {windows[0]:,} tokens"
    if c.qk_norm:
        attention += "; queries and keys normed"
    if c.attn_softcap:
        attention += f"; scores capped at {c.attn_softcap:g}"
    where = "on the sum" if c.post_norm else {2: "before", 4: "before and after", 1: "before"}[len(c.norms)]
    if c.norms[0] == "attn_out_norm":
        where = "after"
    block = f"{'LayerNorm' if c.norm == 'layer' else 'RMSNorm'} {where}, {'parallel' if c.parallel else 'serial'}"
    head = "shares the embedding" if c.tied else "a matrix of its own"
    if c.final_softcap:
        head += f", logits capped at {c.final_softcap:g}"
    mlp = f"{'gated ' if c.gated else ''}{c.act.replace('_', ' ')}"
    return (("positions", positions), ("attention", attention), ("block", block), ("MLP", mlp), ("head", head))
