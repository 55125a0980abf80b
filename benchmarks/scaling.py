"""python -m benchmarks scaling: how the cost of a token grows with the model, the context and the batch.

Random weights of Llama's build, one plain step of the decoder at a time; beside each figure what reading weights, keys
and values at the machine's measured rate, or multiplying them, allows at most (gptcli/budget.py). The table of contexts
has the pass that `gptcli optimize` compiles as well, which is made here if need be. Then the same formulas for GPT-3,
which no machine here can hold.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.machine import measure
from gptcli import compiled
from gptcli.budget import H100_NODE, Rates, most_tokens_per_s, n_read, step_bytes
from gptcli.cache import Cache
from gptcli.catalogue import named
from gptcli.compiled import Pass
from gptcli.config import Config, Layer, Rope
from gptcli.memory import human
from gptcli.model import Decoder

N_CTX = 8193
SIZES = {  # name -> layers, width, heads, key heads, width of the MLP, vocabulary
    "15M": (6, 288, 6, 6, 768, 32_000),
    "42M": (8, 512, 8, 8, 1376, 32_000),
    "135M": (30, 576, 9, 3, 1536, 49_152),
    "360M": (32, 960, 15, 5, 2560, 49_152),
    "1.1B": (22, 2048, 32, 4, 5632, 32_000),
}
CONTEXTS = (128, 512, 1024, 2048, 4096, 8192)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
MIDDLE, SHORT = "135M", 128
SECONDS = 3.0  # that one cell may take after its warm-up
CARD = 80e9  # bytes of an H100


def shape(name: str) -> Config:
    layers, width, heads, key_heads, inner, vocabulary = SIZES[name]
    d_head = width // heads
    layer = Layer(rope=Rope(theta=10_000.0, dim=d_head), window=None, scale=d_head**-0.5)
    return Config(
        n_vocab=vocabulary, n_ctx=N_CTX, d_model=width, n_head=heads, n_kv_head=key_heads, d_head=d_head, d_ff=inner,
        norm="rms", gated=True, act="silu", layers=(layer,) * layers, tied=name != "1.1B",
        qkv_bias=False, out_bias=False, mlp_bias=False, norm_bias=False,
    )  # fmt: skip


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def made(config: Config, dtype: torch.dtype) -> Decoder:
    """In its dtype from the start: the largest is never held in float32."""
    with default_dtype(dtype):
        decoder = Decoder(config)
    for p in decoder.parameters():
        torch.nn.init.uniform_(p, -0.04, 0.04)
    return decoder.requires_grad_(False).eval()


@torch.inference_mode()
def speed(
    decoder: Decoder, dtype: torch.dtype, *, n_context: int, batch: int, rounds: int, one: Pass | None = None
) -> float:
    """Tokens per second of all texts together, each the one after `n_context`: median of steps. Warms up once."""
    config = decoder.config
    cache = Cache(config, n_context + 1, batch=batch, dtype=dtype)
    for keys in cache.layers:
        keys.k.fill_(0.1)
        keys.v.fill_(0.1)
        keys.end = n_context
    cache.n_seen = n_context
    ids, times = torch.ones(batch, 1, dtype=torch.int64), list[float]()
    began = time.perf_counter()
    while len(times) <= rounds and (len(times) < 3 or time.perf_counter() - began < SECONDS):
        start = time.perf_counter()
        if one:
            one(1, cache)
        else:
            decoder(ids, cache)
        times.append(time.perf_counter() - start)
        cache.back_to(n_context)
    return batch / statistics.median(times[1:])


def run(*, rounds: int, dtype: str) -> None:
    """Takes some minutes and 5 GB in bfloat16."""
    console, kind = Console(soft_wrap=True), {"bfloat16": torch.bfloat16, "float32": torch.float32}[dtype]
    machine, bits = measure(), 8 * kind.itemsize
    here = Rates(
        name="this machine",
        read=machine.read_bytes_per_s,
        flops=machine.bfloat16_flops if kind == torch.bfloat16 else machine.float32_flops,
    )
    console.print(f"{dtype}, random weights, medians of {rounds} steps")

    def row(found: Table, label: str, decoder: Decoder, n_context: int, batch: int, one: Pass | None = None) -> None:
        got = speed(decoder, kind, n_context=n_context, batch=batch, rounds=rounds, one=one)
        most = most_tokens_per_s(decoder.config, n_context, here, batch=batch, weight_bits=bits, kv_bits=bits)
        read = step_bytes(decoder.config, n_context, batch=batch, weight_bits=bits, kv_bits=bits)
        found.add_row(label, human(round(read)), f"{got:,.1f}", f"{most:,.1f}", f"{got / most:.0%}")

    found = _table(f"the model ({SHORT} tokens of context, one text)", "parameters")
    for name in SIZES:
        row(found, name, made(shape(name), kind), SHORT, 1)
    console.print(found)
    middle = made(shape(MIDDLE), kind)
    found = _table(f"the context ({MIDDLE}, one text)", "tokens")
    for n in CONTEXTS:
        row(found, f"{n:,}", middle, n, 1)
    if compiled.has_compiler():
        if compiled.find(middle) is None:
            compiled.make(middle)
        found.add_section()
        for n in CONTEXTS:
            row(found, f"{n:,}, compiled", middle, n, 1, compiled.find(middle))
    console.print(found)
    found = _table(f"the batch ({MIDDLE}, {SHORT} tokens of context)", "texts")
    for n in BATCHES:
        row(found, str(n), middle, SHORT, n)
    console.print(found)
    console.print(on_paper(named("gpt3-175b").config, 2048, here))


def _table(title: str, first: str) -> Table:
    result = Table(title=title)
    for heading in (first, "bytes a step", "tokens/s", "at most", "share"):
        result.add_column(heading, justify="right")
    return result


def on_paper(c: Config, n_context: int, here: Rates) -> Table:
    """What generating with c would take, by the formulas alone; keys and values in 16 bits."""
    dense = 2 * c.n_layer * n_context * c.n_kv_head * c.d_head * 2
    node = f"{H100_NODE.name}: {H100_NODE.read / 1e12:.1f} TB/s, {H100_NODE.flops / 1e15:.1f} PFLOP/s"
    result = Table(
        title=f"GPT-3 on paper: {c.n_params() / 1e9:.1f}B parameters, {n_read(c) / 1e9:.1f}B read for every token",
        caption=f"keys and values of {n_context:,} tokens: {human(c.kv_bytes(n_context, 2))} a text with bands of 256 "
        f"in every other layer, {human(dense)} if all were dense. {node}, {CARD / 1e9:.0f} GB a card; "
        f"this machine: {here.read / 1e9:.1f} GB/s",
    )
    headings = ("weights in", "bytes", "H100s to\nhold it", "this machine,\ns a token", "8 x H100,\ntokens/s, 1 text")
    for heading in (*headings, "8 x H100,\ntokens/s, 32 texts"):
        result.add_column(heading, justify="right")
    for name, bits in {"bfloat16": 16, "int8": 8, "int4": 4}.items():
        held = c.n_params() * bits / 8 + c.kv_bytes(n_context, 2)
        result.add_row(
            name,
            human(round(c.n_params() * bits / 8)),
            str(int(-(-held // CARD))),
            f"{1 / most_tokens_per_s(c, n_context, here, weight_bits=bits):,.1f}",
            f"{most_tokens_per_s(c, n_context, H100_NODE, weight_bits=bits):,.0f}",
            f"{most_tokens_per_s(c, n_context, H100_NODE, weight_bits=bits, batch=32):,.0f}",
        )
    return result
