"""The pass of a few tokens as machine code, beside that of one: each token's numbers are the same to the last bit.

Of one text, where its next tokens can be guessed (lookup.py), or of many texts (together.py), 8 go through in little
more time than one: the matrices come from memory once. The code is that of the decoder again, and every sum adds up in
the order in which the pass of one token adds it up, so it does not matter through which of the two a token went.
`same` holds them against each other.

One token's pass is one piece, without Python between its layers. This one is compiled by the layer, once for layers
that are alike, and called for one after the other with their weights: that costs little beside 8 tokens, and takes a
fraction of the time to compile.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gptcli.cache import SLACK, Cache
from gptcli.compiled import CONSTANT, GROUPS, OPTIONS, Pass, Seen, compiling, key, loader, opened
from gptcli.linear import FEW
from gptcli.model import Block, Decoder
from gptcli.user_cache import user_cache, written

assert FEW <= SLACK


class _Layer(nn.Module):
    def __init__(self, block: Block, decoder: Decoder) -> None:
        super().__init__()
        self.block, self.ropes = block, decoder.ropes

    def forward(self, x: Tensor, rotary: list[tuple[Tensor, Tensor]], k: Tensor, v: Tensor) -> Tensor:
        """[1, T, C] -> [1, T, C]; k, v: [1, K, S, D] with the T own places last."""
        return self.block(x, dict(zip(self.ropes, rotary, strict=True)), Seen(k, v), None)  # type: ignore[no-any-return]


class _SeenByEach:
    """The keys and values of FEW texts, each with room for one more."""

    lengths = runs = None

    def __init__(self, seen: list[tuple[Tensor, Tensor]]) -> None:
        self.seen = seen

    def append(self, k: Tensor, v: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        for i, (own_k, own_v) in enumerate(self.seen):
            own_k[:, :, -1:], own_v[:, :, -1:] = k[:, :, i : i + 1], v[:, :, i : i + 1]
        return [k for k, _ in self.seen], [v for _, v in self.seen]


class _LayerOfTexts(_Layer):
    def forward(  # type: ignore[override]
        self, x: Tensor, rotary: list[tuple[Tensor, Tensor]], seen: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """[1, T, C] -> [1, T, C], where each of the T is of another text."""
        angles = dict(zip(self.ropes, rotary, strict=True))
        return self.block(x, angles, _SeenByEach(seen), None)  # type: ignore[no-any-return]


class _End(nn.Module):
    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor:
        """[1, T, C] -> [T, V], float32."""
        return self.decoder.readout(x)[0].float()


class _Given(nn.Module):
    """A module whose weights are inputs; it is kept out of sight, or they would be taken for constants."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = (module,)

    def forward(self, weights: dict[str, Tensor], *inputs: Any) -> Tensor:
        found: Tensor = torch.func.functional_call(self.module[0], weights, inputs)
        return found


class FewTokens:
    """The compiled pass of FEW tokens and the decoder whose weights it reads."""

    def __init__(self, decoder: Decoder, file: Path) -> None:
        self.decoder, self.file = decoder, file
        self._weights = [list(_weights(part).values()) for part in _parts(decoder)]
        self._names = {"one": _names(decoder), "each": _names(decoder, "each")}
        self._loaders: dict[str, Any] = {}
        self._loaded("end")
        self._windows = [layer.window for layer in decoder.config.layers]

    def fits(self) -> bool:
        """Whether the decoder still has the weights that it was given."""
        held = [tensor for part in self._weights for tensor in part]
        now = [tensor for part in _parts(self.decoder) for tensor in _weights(part).values()]
        return len(held) == len(now) and all(a is b for a, b in zip(held, now, strict=True))

    def has_room(self, cache: Cache) -> bool:
        """Whether the pass can follow what the cache has seen."""
        return 0 < cache.n_seen <= cache.capacity - FEW

    def __call__(self, ids: Sequence[int], cache: Cache) -> Tensor:
        """Scores after each of FEW more tokens of one text, [FEW, V], float32; see `has_room`."""
        decoder, where = self.decoder, slice(cache.n_seen, cache.n_seen + FEW)
        rotary = [t for pair in decoder.rotary(where, where.stop, cache).values() for t in pair]
        position = decoder.pos_embed.weight[where] if decoder.pos_embed else None
        seen = [[keys.room(window, FEW)] for keys, window in zip(cache.layers, self._windows, strict=True)]
        cache.n_seen += FEW
        return self._run("one", ids, position, [rotary], seen)

    def of_texts(self, ids: Sequence[int], caches: Sequence[Cache]) -> Tensor:
        """Scores after one more token of each of n texts, FEW or a multiple, [n, V], float32.

        Each has seen some, and has room.
        """
        decoder, where = self.decoder, torch.tensor([cache.n_seen for cache in caches])
        rotary_of = [decoder.rotary(slice(c.n_seen, c.n_seen + 1), c.n_seen + 1, c) for c in caches]
        groups = [slice(i, i + FEW) for i in range(0, len(ids), FEW)]
        rotary = [
            [torch.cat([each[rope][i] for each in rotary_of[group]]) for rope in decoder.ropes for i in range(2)]
            for group in groups
        ]
        position = decoder.pos_embed.weight[where] if decoder.pos_embed else None
        seen = [
            [[t for cache in caches[group] for t in cache.layers[i].room(window)] for group in groups]
            for i, window in enumerate(self._windows)
        ]
        for cache in caches:
            cache.n_seen += 1
        return self._run("each", ids, position, rotary, seen)

    def _run(
        self,
        kind: Literal["one", "each"],
        ids: Sequence[int],
        position: Tensor | None,
        rotary: Sequence[list[Tensor]],
        seen: Sequence[Sequence[Sequence[Tensor]]],
    ) -> Tensor:
        """All groups of FEW tokens go through a layer before the next: its weights are near for all but the first.

        rotary: of each group; seen: of each layer and group.
        """
        *weights, end = self._weights
        x = self.decoder.embed_tokens(torch.tensor([list(ids)]), position, wide=True)
        groups = list(torch.split(x, FEW, 1))
        for name, given, keys in zip(self._names[kind], weights, seen, strict=True):
            code = self._loaded(name)
            groups = [
                code.boxed_run([*given, x, *angles, *each])[0]
                for x, angles, each in zip(groups, rotary, keys, strict=True)
            ]
        scores = [self._loaded("end").boxed_run([*end, x])[0] for x in groups]
        return torch.cat(scores) if len(scores) > 1 else scores[0]

    def _loaded(self, name: str) -> Any:
        """A piece of the code, from the file when it is needed first."""
        if name not in self._loaders:
            found = loader(self.file, name)
            constants = {name: GROUPS for name in found.get_constant_fqns() if CONSTANT.fullmatch(name)}
            found.load_constants(constants, False, True, True)
            self._loaders[name] = found
        return self._loaders[name]


def find(decoder: Decoder) -> FewTokens | None:
    """The compiled pass, if `make` has made it on this machine; one that does not load counts as none."""
    return opened(FewTokens, decoder, place(decoder))


@torch.no_grad()
def make(decoder: Decoder) -> Path:
    """Compiles the pass and keeps it, in some 20 seconds for each kind of layer. Raises GptcliError."""
    from torch._inductor import aot_compile
    from torch._inductor.package.package import package_aoti
    from torch.export import Dim, export

    c, target = decoder.config, place(decoder)
    cache = Cache(c, min(c.n_ctx, 64), dtype=decoder.embed.weight.dtype)
    n = min([c.n_ctx - FEW, 8, *(layer.window - 1 for layer in c.layers if layer.window)])
    decoder.stream(torch.zeros(1, n, dtype=torch.long), cache)
    rotary = list(decoder.rotary(slice(n, n + FEW), n + FEW, cache).values())
    x = torch.zeros(1, FEW, c.d_model)
    *layers, end = _parts(decoder)
    wanted: dict[str, tuple[nn.Module, tuple[Any, ...], Any]] = {"end": (end, (x,), (None,))}
    blocks = [block for block in decoder.blocks if isinstance(block, Block)]
    ones, eaches = _names(decoder), _names(decoder, "each")
    for i, (module, block, layer, keys) in enumerate(zip(layers, blocks, c.layers, cache.layers, strict=True)):
        no_rotary = [(None, None) for _ in rotary]
        seen = Dim("seen", min=FEW + 1, max=layer.window + FEW - 1 if layer.window else c.n_ctx)
        given: tuple[Any, ...] = (x, rotary, *keys.room(layer.window, FEW))
        wanted.setdefault(ones[i], (module, given, (None, no_rotary, {2: seen}, {2: seen})))
        dims = [Dim(f"seen{i}", min=2, max=c.n_ctx) for i in range(FEW)]
        k, v = copy.copy(keys).room(layer.window)
        given = x, rotary, [(k.clone(), v.clone()) for _ in dims]  # clones are laid out as what they are clones of
        shapes = None, no_rotary, [({2: dim}, {2: dim}) for dim in dims]
        wanted.setdefault(eaches[i], (_LayerOfTexts(block, decoder), given, shapes))
    with compiling(), written(target) as made:
        files: dict[str, Any] = {}
        for name, (module, inputs, shapes) in wanted.items():
            weights = _weights(module)
            dynamic = {"weights": dict.fromkeys(weights), "inputs": shapes}
            program = export(_Given(module), (weights, *inputs), dynamic_shapes=dynamic)
            given, named = program.example_inputs
            files[name] = aot_compile(program.module(), given, named, options=OPTIONS | {"aot_inductor.package": True})
        package_aoti(str(made), files)
    return target


@torch.inference_mode()
def same(decoder: Decoder, one: Pass, few: FewTokens, ids: Sequence[int]) -> bool:
    """Whether texts get the same scores, and leave the same behind, through either pass, to the last bit.

    Tried after each of the first FEW tokens, and where a text grows longer than a window. ids: some tokens.
    """
    windows = {layer.window for layer in decoder.config.layers if layer.window}
    most = decoder.config.n_ctx - 2 * FEW
    firsts = [min(n, most) for n in (*range(1, FEW + 1), *(window - FEW // 2 for window in sorted(windows)))]
    return _same_of_texts(decoder, one, few, ids, firsts[-FEW:]) and all(
        _same_from(decoder, one, few, ids, first) for first in dict.fromkeys(firsts)
    )


def _same_of_texts(decoder: Decoder, one: Pass, few: FewTokens, ids: Sequence[int], firsts: Sequence[int]) -> bool:
    """Of FEW texts, after so many tokens of each."""
    dtype, n = decoder.embed.weight.dtype, max(firsts) + FEW
    ids = [ids[i % len(ids)] for i in range(n + FEW)]
    alone, together = ([Cache(decoder.config, n, dtype=dtype) for _ in firsts] for _ in range(2))
    for i, first in enumerate(firsts):
        for cache in (alone[i], together[i]):
            decoder.stream(torch.tensor([ids[i : i + first]]), cache)
    for step in range(FEW):
        new = [ids[i + first + step] for i, first in enumerate(firsts)]
        scores = torch.stack([one(id, cache)[0] for id, cache in zip(new, alone, strict=True)])
        if not torch.equal(scores, few.of_texts(new, together)):
            return False
    return True


def _same_from(decoder: Decoder, one: Pass, few: FewTokens, ids: Sequence[int], first: int) -> bool:
    """After a text's first tokens, for 2 FEW more."""
    n = first + 2 * FEW
    ids = [ids[i % len(ids)] for i in range(n)]
    caches = [Cache(decoder.config, n, dtype=decoder.embed.weight.dtype) for _ in range(2)]
    for cache in caches:
        decoder.stream(torch.tensor([ids[:first]]), cache)
    for start in (first, first + FEW):
        alone = [one(id, caches[0])[0] for id in ids[start : start + FEW]]
        if not torch.equal(torch.stack(alone), few(ids[start : start + FEW], caches[1])):
            return False
    for a, b, layer in zip(caches[0].layers, caches[1].layers, decoder.config.layers, strict=True):
        seen = min(n, layer.window - 1) if layer.window else n  # by the next token
        for ours, theirs in ((a.k, b.k), (a.v, b.v)):
            if not torch.equal(ours[:, :, a.end - seen : a.end], theirs[:, :, b.end - seen : b.end]):
                return False
    return True


@torch.inference_mode()
def seconds(decoder: Decoder, few: FewTokens, *, tries: int = 8) -> float:
    """Of one pass near the start of a context, at best."""
    best = math.inf
    cache = Cache(decoder.config, 1 + FEW, dtype=decoder.embed.weight.dtype)
    for _ in range(tries):
        cache.clear()
        decoder.stream(torch.zeros(1, 1, dtype=torch.long), cache)
        began = time.perf_counter()
        few([0] * FEW, cache)
        best = min(best, time.perf_counter() - began)
    return best


def takes(decoder: Decoder) -> bool:
    """Whether a context has room for the pass, and the windows for all of its tokens."""
    c = decoder.config
    return not c.d_embed and min([c.n_ctx, *(layer.window for layer in c.layers if layer.window)]) > 2 * FEW


def place(decoder: Decoder) -> Path:
    """Where the compiled pass is kept; it need not exist."""
    return user_cache("compiled") / f"{key(decoder)}.few.pt2"


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """What a part reads: of the decoder, what is not in its blocks."""
    every = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    return {name: tensor for name, tensor in every.items() if ".blocks." not in name}


def _names(decoder: Decoder, kind: Literal["one", "each"] = "one") -> list[str]:
    """A name for each block; blocks share one where the code for the one is good for the other.

    kind: for tokens of one text, or each of another; then the windows are no matter, as what is handed over ends there.
    """
    first: dict[Any, str] = {}
    names = list[str]()
    for layer, block in zip(decoder.config.layers, decoder.blocks, strict=True):
        weights = tuple((n, tuple(t.shape), tuple(t.stride()), t.dtype) for n, t in _weights(block).items())
        config = replace(layer, window=None) if kind == "each" else layer
        names.append(first.setdefault((config, weights), f"{kind}{len(names)}"))
    return names


def _parts(decoder: Decoder) -> list[nn.Module]:
    """All that is compiled, in the order of a pass."""
    blocks = [_Layer(block, decoder) for block in decoder.blocks if isinstance(block, Block)]
    return [*blocks, _End(decoder)]
