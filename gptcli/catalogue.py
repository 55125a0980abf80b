"""Well-known decoders by name, as Configs: GPT-3's eight sizes, GPT-2's four, GPT-Neo's, and the laptop sizes of train.

GPT-3's own attention pattern is half known: the paper says that dense and locally banded layers alternate, and neither
how wide the bands are nor which comes first. Here the first is dense and a band sees 256 tokens, as GPT-Neo has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from typing import Any

from gptcli import configs
from gptcli.config import Config
from gptcli.config_json import Reader
from gptcli.errors import NotFound, UsageError
from gptcli.paper import TABLE, Row
from gptcli.presets import SIZES, Size, config_json

PATTERN = ("dense", "banded")


@dataclass(frozen=True, kw_only=True)
class Named:
    """One decoder of the catalogue.

    `config` is the decoder as it was published; `spelled` a config.json that saves it. Both agree but for GPT-3: no
    family's files have all that it has, and GPT-Neo's, which come nearest, lack the biases of queries, keys and values.
    """

    name: str
    title: str
    family: str
    config: Config
    spelled: Mapping[str, Any]
    row: Row | None = None  # of the paper

    @property
    def saved(self) -> Config:
        """The decoder that its files can hold."""
        return _read(self.family, self.spelled)


GPT2 = {"gpt2": (12, 768, 12), "gpt2-medium": (24, 1024, 16), "gpt2-large": (36, 1280, 20), "gpt2-xl": (48, 1600, 25)}
GPT_NEO = {"gpt-neo-125m": "small", "gpt-neo-1.3b": "xl"}


@cache
def names() -> dict[str, str]:
    """Every name that is understood, and the one that it stands for."""
    known = {"gpt3": "gpt3-175b", "gpt2-small": "gpt2"}
    for row in TABLE:
        proper = f"gpt3-{row.label.lower()}"
        known |= dict.fromkeys((proper, row.label.lower(), row.size, f"gpt3-{row.size}"), proper)
    return known | {name: name for name in (*GPT2, *GPT_NEO, *(n for n in SIZES if n not in known))}


def is_named(name: str) -> bool:
    return _plain(name) in names()


def named(name: str, *, pattern: tuple[str, ...] | None = None, window: int | None = None) -> Named:
    """The decoder of that name, in any case. pattern, window: not the usual ones. Raises NotFound, UsageError."""
    if _plain(name) not in names():
        near = get_close_matches(_plain(name), names(), n=1)
        usual = "gpt3, small to 175b, gpt2, gpt2-medium, gpt2-large, gpt2-xl, nano, micro, mini, midi"
        raise NotFound(
            f"{name!r} is neither a size nor a model here",
            hint=f"did you mean {near[0]}?" if near else f"sizes are {usual}",
        )
    proper = names()[_plain(name)]
    if proper in GPT2:
        if pattern not in (None, ("dense",)) or window is not None:
            raise UsageError(
                f"all layers of {proper} are dense", hint="--attention and --window are for GPT-3's layout"
            )
        spelled = _gpt2(*GPT2[proper])
        title = proper.replace("gpt2", "GPT-2").replace("-m", " M").replace("-l", " L").replace("-xl", " XL")
        return Named(name=proper, title=title, family="gpt2", config=_read("gpt2", spelled), spelled=spelled)
    row = next((row for row in TABLE if proper == f"gpt3-{row.label.lower()}"), None)
    size = row.corrected if row else SIZES[GPT_NEO.get(proper, proper)]
    spelled = _banded(size, pattern or PATTERN, window or size.window)
    config = _read("gpt_neo", spelled)
    if row:  # what GPT-Neo changed: no biases on queries, keys and values, and no division by sqrt(d)
        scale = config.d_head**-0.5
        config = replace(config, qkv_bias=True, layers=tuple(replace(layer, scale=scale) for layer in config.layers))
    title = row.title if row else proper.replace("gpt-neo-", "GPT-Neo ").upper().replace("NEO", "Neo")
    return Named(
        name=proper,
        title=title if row or proper in GPT_NEO else f"{proper}, in GPT-Neo's layout",
        family="gpt_neo",
        config=config,
        spelled=spelled,
        row=row,
    )


def read_pattern(text: str) -> tuple[str, ...]:
    """dense-banded -> ("dense", "banded"), repeated from the first layer to the last. Raises UsageError."""
    kinds = tuple(text.lower().replace(",", "-").split("-"))
    if not kinds or any(kind not in ("dense", "banded") for kind in kinds):
        raise UsageError(
            f"--attention {text!r} is not known", hint="dense-banded, banded-dense, dense, or any such row, repeated"
        )
    return kinds


def _plain(name: str) -> str:
    name = name.lower().replace("gpt-3", "gpt3").replace("gpt-2", "gpt2").replace("_", "-")
    return name.replace("gptneo", "gpt-neo")


def _banded(size: Size, pattern: tuple[str, ...], window: int) -> dict[str, Any]:
    spelled = config_json(size, end_id=size.n_vocab - 1)
    kinds = [{"dense": "global", "banded": "local"}[pattern[i % len(pattern)]] for i in range(size.n_layer)]
    whole, rest = divmod(size.n_layer, len(pattern))
    types: list[Any] = [[kinds, 1]] if rest or not whole else [[kinds[: len(pattern)], whole]]
    return spelled | {"attention_types": types, "window_size": window}


def _gpt2(n_layer: int, d_model: int, n_head: int) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": 50_257,
        "n_positions": 1024,
        "n_embd": d_model,
        "n_layer": n_layer,
        "n_head": n_head,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "initializer_range": 0.02,
        "bos_token_id": 50_256,
        "eos_token_id": 50_256,
        "tie_word_embeddings": True,
    }


def _read(family: str, spelled: Mapping[str, Any]) -> Config:
    reader = Reader(spelled, "config.json")
    config = {"gpt2": configs.gpt2, "gpt_neo": configs.gpt_neo}[family](reader)
    reader.finish()
    return replace(config, tied=True)
