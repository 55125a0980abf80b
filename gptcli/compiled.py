"""One token's pass as machine code: made once by `gptcli optimize`, kept in the user's cache, found again by its key.

    Decoder ── make ──> KEY.pt2        torch.export, then inductor: the decoder's own code, unrolled over its layers
    Decoder ── find ──> Pass | None    the same numbers, without Python between them and two to five times as fast

The file holds code and no weights: these are handed over as they lie in memory, so it is good for every checkpoint of
the same shape and layers and can never be out of date. Its key is all that the code depends on: the shape, the layers,
the dtypes, this package's own source, torch, the processor. It is loaded by torch's C++ loader, which unpickles
nothing; and only from a folder that nobody else can write to.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from gptcli.cache import Cache
from gptcli.errors import GptcliError
from gptcli.linear import GROUP
from gptcli.model import Decoder
from gptcli.user_cache import in_use, is_ours, user_cache, written

SOURCES = (
    *("model.py", "attend.py", "linear.py", "rope.py", "cache.py", "compiled.py", "few.py", "config.py"),
    "quantize.py",
)
FORMAT = 3
T = TypeVar("T")
CONSTANT = re.compile(r"constant\d+")
GROUPS = torch.tensor(GROUP)  # inductor makes the one number that the 4-bit kernel is called with a constant
OPTIONS = {
    "always_keep_tensor_constants": True,
    "aot_inductor.package_constants_in_so": False,
    "aot_inductor.compile_wrapper_opt_level": "O1",
    "cpp.enable_floating_point_contract_flag": "fast",  # multiply and add in one instruction
}


class Seen:
    """A layer's keys and values with room for the new ones, as `Keys.room` hands them over."""

    lengths = runs = None

    def __init__(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k, v

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        T = k.shape[2]
        self.k[:, :, -T:], self.v[:, :, -T:] = k, v
        return self.k, self.v


class _OneToken(nn.Module):
    """What is compiled: the decoder for one token, everything that changes from token to token being an input."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(
        self,
        ids: Tensor,
        position: Tensor | None,
        rotary: list[tuple[Tensor, Tensor]],
        seen: list[tuple[Tensor, Tensor]],
    ) -> tuple[Tensor, Tensor]:
        """ids: [1, 1]; position: [1, C] -> scores, [V], float32, and the stream before and after each block, [R, C]."""
        angles = dict(zip(self.decoder.ropes, rotary, strict=True))
        x = self.decoder.embed_tokens(ids, position, wide=True)
        states = [x[0, -1]]
        for block, (k, v) in zip(self.decoder.blocks, seen, strict=True):
            x = block(x, angles, Seen(k, v), None)
            states.append(x[0, -1])
        return self.decoder.readout(x)[0, -1].float(), torch.stack(states)


class Pass:
    """A compiled pass and the decoder whose weights it reads."""

    def __init__(self, decoder: Decoder, file: Path) -> None:
        self.decoder, self.file = decoder, file
        self._windows = [layer.window for layer in decoder.config.layers]
        self._loader = loader(file, "model")
        weights = {f"decoder.{name}": tensor for name, tensor in _weights(decoder)}
        names = self._loader.get_constant_fqns()
        self._held = {name: GROUPS if CONSTANT.fullmatch(name) else weights[name] for name in names}
        self._loader.load_constants(self._held, False, True, True)  # addresses only: _held keeps them alive

    def fits(self) -> bool:
        """Whether the decoder still has the weights that the code was given."""
        weights = {f"decoder.{name}": tensor for name, tensor in _weights(self.decoder)}
        return all(weights.get(name) is tensor for name, tensor in self._held.items() if not CONSTANT.fullmatch(name))

    def __call__(self, id: int, cache: Cache) -> tuple[Tensor, Tensor]:
        """Scores after one more token, [V], float32, and its vector before and after each block, [R, C].

        The cache must have seen a token and have room for another.
        """
        decoder, start = self.decoder, cache.n_seen
        inputs = [torch.tensor([[id]])]
        if decoder.pos_embed:
            inputs.append(decoder.pos_embed.weight[start : start + 1])
        for pair in decoder.rotary(slice(start, start + 1), start + 1, cache).values():
            inputs += pair
        for keys, window in zip(cache.layers, self._windows, strict=True):
            inputs += keys.room(window)
        cache.n_seen += 1
        scores, states = self._loader.boxed_run(inputs)
        return scores, states


def takes(decoder: Decoder) -> bool:
    """Whether a pass can be compiled: on the CPU, with more than one token to look back on in every layer."""
    c = decoder.config
    short = min([c.n_ctx, *(layer.window for layer in c.layers if layer.window)])
    return decoder.embed.weight.device.type == "cpu" and short > 2


def find(decoder: Decoder) -> Pass | None:
    """The compiled pass, if `make` has made it on this machine; one that does not load counts as none."""
    with suppress(OSError):  # a cache that lies in another user's folder
        if user_cache("compiled").is_dir() and takes(decoder):
            return opened(Pass, decoder, place(decoder))
    return None


def opened(kind: Callable[[Decoder, Path], T], decoder: Decoder, file: Path) -> T | None:
    """The pass that a file holds; None if it is not there, not ours, or does not load."""
    try:
        return kind(decoder, in_use(file)) if is_ours(file) else None
    except (OSError, RuntimeError, KeyError):
        return None


@torch.no_grad()
def make(decoder: Decoder) -> Path:
    """Compiles one token's pass and keeps it, in half a minute to two minutes. Raises GptcliError without a compiler.

    The file appears whole or not at all.
    """
    from torch._inductor import aoti_compile_and_package
    from torch.export import Dim, export

    c = decoder.config
    cache = Cache(c, min(c.n_ctx, 64), dtype=decoder.embed.weight.dtype)
    n = min([c.n_ctx - 1, 8, *(layer.window - 1 for layer in c.layers if layer.window)])
    decoder.stream(torch.zeros(1, n, dtype=torch.long), cache)
    seen = [keys.room(layer.window) for keys, layer in zip(cache.layers, c.layers, strict=True)]
    reach = {
        layer.window: Dim(f"seen_{layer.window or 'all'}", min=2, max=layer.window or c.n_ctx) for layer in c.layers
    }
    position = decoder.pos_embed.weight[n : n + 1] if decoder.pos_embed else None
    rotary = list(decoder.rotary(slice(n, n + 1), n + 1, cache).values())
    shapes = (
        None,
        None,
        [(None, None) for _ in rotary],
        [({2: reach[layer.window]}, {2: reach[layer.window]}) for layer in c.layers],
    )
    target = place(decoder)
    with compiling(), written(target) as made:
        program = export(
            _OneToken(decoder), (torch.zeros(1, 1, dtype=torch.long), position, rotary, seen), dynamic_shapes=shapes
        )
        aoti_compile_and_package(program, package_path=str(made), inductor_configs=OPTIONS)
    return target


@contextmanager
def compiling() -> Iterator[None]:
    """Raises GptcliError for whatever a compiler raises."""
    from unittest.mock import patch  # here: loading a compiled pass, which every start does, needs none of this

    from torch._inductor.codegen.cpp import CppScheduling

    # one function for all layers takes g++ twice as long as a small one that the layers share
    shorter = patch.object(CppScheduling, "MAX_FUSED_KERNEL_ARGS_NUM", 30, create=True)
    with shorter, warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch's, of its own inner names
        try:
            yield
        except OSError as error:
            what = f"{error.filename or 'a file'}: {error.strerror or error}"
            raise GptcliError(f"what was compiled cannot be kept: {what}", hint="XDG_CACHE_HOME moves it") from error
        except Exception as error:  # what a compiler may raise is not for us to list
            first = "".join(str(error).strip().splitlines()[:1])
            raise GptcliError(f"the pass could not be compiled: {type(error).__name__}: {first}") from error


def loader(file: Path, name: str) -> torch._C._aoti.AOTIModelPackageLoader:
    """One of the functions that a file holds. Raises RuntimeError.

    torch's Python wrapper of this imports the whole compiler, and reads a description of the arguments at each call.
    """
    return torch._C._aoti.AOTIModelPackageLoader(str(file), name, False, 1, -1)


def has_compiler() -> bool:
    """Whether a C++ compiler is there, under one of the names that inductor looks for."""
    return any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++", "c++")))


@torch.inference_mode()
def difference(decoder: Decoder, one: Pass, ids: Sequence[int]) -> tuple[float, float]:
    """How far the compiled pass's scores are from the decoder's own on a text: the most, and the largest score."""
    caches = [Cache(decoder.config, len(ids), dtype=decoder.embed.weight.dtype) for _ in range(2)]
    for cache in caches:
        decoder.stream(torch.tensor([ids[:1]]), cache)
    apart, sizes = list[Tensor](), list[Tensor]()
    for id in ids[1:]:
        ours = decoder.readout(decoder.stream(torch.tensor([[id]]), caches[0]))[0, -1].float()
        apart.append((one(id, caches[1])[0] - ours).abs().max())
        sizes.append(ours.abs().max())
    return float(torch.stack(apart).max()), float(torch.stack(sizes).max())  # Python's max would lose a NaN


@torch.inference_mode()
def tokens_per_second(decoder: Decoder, one: Pass | None, *, seconds: float = 2.0) -> float:
    """Of plain decoding from the start of a context, without choosing; the best of a few stretches."""
    n = min(64, decoder.config.n_ctx - 2)
    best, end = 0.0, time.perf_counter() + seconds
    while not best or time.perf_counter() < end:
        cache = Cache(decoder.config, n + 1, dtype=decoder.embed.weight.dtype)
        decoder.stream(torch.zeros(1, 1, dtype=torch.long), cache)
        began = time.perf_counter()
        for _ in range(n):
            if one:
                one(0, cache)
            else:
                decoder.readout(decoder.stream(torch.zeros(1, 1, dtype=torch.long), cache))
        best = max(best, n / (time.perf_counter() - began))
    return best


def key(decoder: Decoder) -> str:
    """All that the machine code depends on, as 32 hex digits."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for part in (
        FORMAT,
        torch.__version__,
        torch.get_num_threads(),
        _processor(),
        decoder.config,
        decoder.config.layers,  # which the config leaves out of its repr
        list(_kinds(decoder)),
    ):
        digest.update(repr(part).encode() + b"\0")
    for name in SOURCES:
        digest.update((here / name).read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def place(decoder: Decoder) -> Path:
    """Where the compiled pass is kept; it need not exist."""
    return user_cache("compiled") / f"{key(decoder)}.pt2"


def _weights(decoder: Decoder) -> Iterable[tuple[str, Tensor]]:
    yield from decoder.named_parameters()
    yield from decoder.named_buffers()


def _kinds(decoder: Decoder) -> Iterable[tuple[Any, ...]]:
    """Names, shapes, dtypes and layout of the weights: what the code takes for granted of them."""
    for name, tensor in _weights(decoder):
        yield name, tuple(tensor.shape), tuple(tensor.stride()), str(tensor.dtype)


def _processor() -> str:
    """The processor and what it can do: code for one may not run on another that shares the folder."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found = [line for line in lines if line.startswith(("model name", "flags", "Features"))][:2]
    except OSError:
        found = []
    return "\n".join([platform.machine(), platform.processor(), torch.backends.cpu.get_cpu_capability(), *found])
