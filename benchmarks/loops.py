"""One training loop in a process of its own: python -m benchmarks.loops LOOP SHAPE, where SHAPE is JSON.

Warms up and writes `ready`; then, for every line that it reads, trains some steps and writes the tokens per second.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Steps = Callable[[int], None]  # trains so many steps


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What all loops train, and how: AdamW, clipped gradients, a rate that changes with every step."""

    n_layer: int
    d_model: int
    n_head: int
    n_vocab: int
    n_ctx: int
    batch: int
    bfloat16: bool
    compiled: bool

    @property
    def batch_tokens(self) -> int:
        return self.batch * self.n_ctx


def gptcli(shape: Shape, folder: Path, ids: np.ndarray) -> Steps:
    """The loop of `gptcli train`, on GPT-Neo's decoder with dense and banded layers by turns."""
    from gptcli.corpus import Tokens
    from gptcli.data import Windows
    from gptcli.layout import read_config
    from gptcli.model import Decoder
    from gptcli.presets import Size, config_json
    from gptcli.recipe import Recipe
    from gptcli.train import Training, initialise

    size = Size(
        n_layer=shape.n_layer, d_model=shape.d_model, n_head=shape.n_head, n_vocab=shape.n_vocab, n_ctx=shape.n_ctx,
        batch_tokens=shape.batch_tokens, learning_rate=1e-3,
    )  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config_json(size, end_id=0)))
    decoder = Decoder(read_config(folder / "config.json")[1])
    initialise(decoder, 0)
    tokens = Tokens(n=len(ids), n_train=len(ids), n_documents=1, n_bytes=0, bytes_per_id=2, tokenizer="")
    recipe = Recipe(
        n_steps=1_000_000,
        n_ctx=shape.n_ctx,
        batch=shape.batch,
        learning_rate=1e-3,
        precision="bfloat16" if shape.bfloat16 else "float32",
        compiled=shape.compiled,
    )
    steps = Training(decoder, Windows(folder, tokens, n_ctx=shape.n_ctx, seed=0), recipe).run()

    def run(n: int) -> None:
        for _ in range(n):
            next(steps)

    return run


def nano(shape: Shape, folder: Path, ids: np.ndarray) -> Steps:
    """The loop that nanoGPT made known, on its GPT-2 with fused queries, keys and values; all layers dense."""
    return _plain(shape, folder, GPT(shape))


def transformers(shape: Shape, folder: Path, ids: np.ndarray) -> Steps:
    """The same plain loop around transformers' GPTNeoForCausalLM, whose only attention is its eager one."""
    from transformers import GPTNeoConfig, GPTNeoForCausalLM

    config = GPTNeoConfig(
        vocab_size=shape.n_vocab, max_position_embeddings=shape.n_ctx, hidden_size=shape.d_model,
        num_layers=shape.n_layer, num_heads=shape.n_head, attention_types=[[["global", "local"], shape.n_layer // 2]],
        embed_dropout=0.0, attention_dropout=0.0, resid_dropout=0.0, use_cache=False,
    )  # fmt: skip
    model = GPTNeoForCausalLM(config)

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return model(x).logits

    return _plain(shape, folder, Scores())


def _plain(shape: Shape, folder: Path, model: nn.Module) -> Steps:
    """Random windows of a mapped file; autocast; AdamW with decay on matrices; clip; a cosine rate. No validation."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), fused=True)
    forward = torch.compile(model) if shape.compiled else model
    done = 0

    def batch() -> tuple[Tensor, Tensor]:
        data = np.memmap(folder / "tokens.bin", dtype=np.uint16, mode="r")
        starts = torch.randint(len(data) - shape.n_ctx, (shape.batch,))
        x = torch.stack([torch.from_numpy(data[i : i + shape.n_ctx].astype(np.int64)) for i in starts])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + shape.n_ctx].astype(np.int64)) for i in starts])
        return x, y

    def run(n: int) -> None:
        nonlocal done
        for _ in range(n):
            x, y = batch()
            for group in optimizer.param_groups:
                group["lr"] = 1e-4 + 0.5 * (1 + math.cos(math.pi * min(1.0, done / 1e6))) * 9e-4
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=shape.bfloat16):
                loss = F.cross_entropy(forward(x).flatten(0, 1).float(), y.flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            float(loss)
            done += 1

    return run


class GPT(nn.Module):
    """GPT-2 as nanoGPT has it: learned positions, pre-norm without biases, fused qkv, a tied head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(shape.n_vocab, shape.d_model), nn.Embedding(shape.n_ctx, shape.d_model)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.n_layer))
        self.norm = nn.LayerNorm(shape.d_model, bias=False)
        for p in self.parameters():
            if p.ndim >= 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return F.linear(self.norm(x), self.wte.weight)


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        C = shape.d_model
        self.n_head = shape.n_head
        self.norm_1, self.norm_2 = nn.LayerNorm(C, bias=False), nn.LayerNorm(C, bias=False)
        self.qkv, self.out = nn.Linear(C, 3 * C, bias=False), nn.Linear(C, C, bias=False)
        self.up, self.down = nn.Linear(C, 4 * C, bias=False), nn.Linear(4 * C, C, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in self.qkv(self.norm_1(x)).split(C, dim=2))
        z = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(z.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.norm_2(x))))


LOOPS = {"gptcli": gptcli, "nano": nano, "transformers": transformers}


def main() -> None:
    loop, shape = sys.argv[1], Shape(**json.loads(sys.argv[2]))
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ids = np.random.default_rng(0).integers(0, shape.n_vocab, 1 << 20, dtype=np.uint16)
        ids.tofile(folder / "tokens.bin")
        run = LOOPS[loop](shape, folder, ids)
        run(3)
        print("ready", flush=True)
        for line in sys.stdin:
            n, began = int(line), time.perf_counter()
            run(n)
            print(n * shape.batch_tokens / (time.perf_counter() - began), flush=True)


if __name__ == "__main__":
    main()
