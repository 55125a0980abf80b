"""The value of every option and where it came from: flag > environment > config file > the model > built-in.

A value is checked where it takes effect: a bad one that is overridden does no harm, and the error can name the way out.
The config file is the exception: it is checked as a whole, so that a misspelt key is never silently ignored.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from gptcli.errors import BadCheckpoint, GptcliError, NotFound, UsageError
from gptcli.sampling import RANGES, Range, Sampling

GENERATION_CONFIG = "generation_config.json"
# Not top_k 50 and max_length 20, which transformers fills in where the file is silent, and never a length.
FROM_MODEL = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
SWITCH = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """A value in force and who set it."""

    value: Any
    source: str  # "flag", "GPTCLI_TOP_K", "config file PATH", "generation_config.json" or "built-in"


class Option(NamedTuple):
    """What a key may hold; `allowed` are words (N stands for a number), or a range."""

    kind: type[str] | type[int] | type[float] | type[bool] | type[tuple[str, ...]]
    default: Any
    allowed: tuple[str, ...] | Range | None = None


BUILT_IN = Sampling()
OPTIONS: Mapping[str, Option] = {
    "model": Option(str, None),
    "device": Option(str, "auto", ("auto", "cpu", "cuda", "cuda:N", "mps")),
    "dtype": Option(str, "auto", ("auto", "float32", "bfloat16", "float16")),
    "quantize": Option(str, "none", ("none", "int8", "int4")),
    "max_tokens": Option(int, 128, Range(low=-1, whole=True)),  # -1: as many as the context holds
    "temperature": Option(float, BUILT_IN.temperature, RANGES["temperature"]),
    "top_k": Option(int, BUILT_IN.top_k, RANGES["top_k"]),
    "top_p": Option(float, BUILT_IN.top_p, RANGES["top_p"]),
    "min_p": Option(float, BUILT_IN.min_p, RANGES["min_p"]),
    "repetition_penalty": Option(float, BUILT_IN.repetition_penalty, RANGES["repetition_penalty"]),
    "repeat_last_n": Option(int, BUILT_IN.repeat_last_n, RANGES["repeat_last_n"]),
    "presence_penalty": Option(float, BUILT_IN.presence_penalty, RANGES["presence_penalty"]),
    "frequency_penalty": Option(float, BUILT_IN.frequency_penalty, RANGES["frequency_penalty"]),
    "seed": Option(int, None, Range(low=0, high=2**63 - 1, whole=True)),  # None: a random one, which is then reported
    "num_samples": Option(int, 1, Range(low=1, whole=True)),
    "color": Option(str, "auto", ("auto", "always", "never", "prob")),
    "overflow": Option(str, "error", ("error", "truncate", "slide")),
    "stop": Option(tuple, ()),
    "ignore_eos": Option(bool, False),
    "stats": Option(bool, False),
    "quiet": Option(bool, False),
}


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """$GPTCLI_CONFIG, else gptcli/config.toml in $XDG_CONFIG_HOME or ~/.config; it need not exist."""
    if chosen := environ.get("GPTCLI_CONFIG"):
        return _expanded(Path(chosen))
    home = Path(environ.get("XDG_CONFIG_HOME", ""))
    if not home.is_absolute():  # the XDG specification says to ignore a relative one
        home = _expanded(Path("~/.config"))
    return home / "gptcli" / "config.toml"


def _expanded(path: Path) -> Path:
    """With the home folder for ~; as it is where there is none, so that nothing is found there."""
    try:
        return path.expanduser()
    except RuntimeError:  # no HOME and no such user
        return path


def load_config(environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """The config file, every key known and every value checked; empty when there is none and none was asked for."""
    path = config_path(environ)
    try:
        table = tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except (FileNotFoundError, NotADirectoryError):
        if environ.get("GPTCLI_CONFIG"):
            raise NotFound(f"no config file {path}", hint="GPTCLI_CONFIG names it; correct or unset it") from None
        return {}
    except OSError as error:
        raise UsageError(f"cannot read config file {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"config file {path} is not UTF-8: byte {error.start}") from None
    except (ValueError, RecursionError) as error:  # TOMLDecodeError says "(at line 3, column 7)"
        raise UsageError(f"config file {path} is not TOML: {error}") from None
    for key in table:
        if key not in OPTIONS:
            near = get_close_matches(key.lower().replace("-", "_"), OPTIONS, n=1, cutoff=0.6)
            hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(OPTIONS)}"
            raise UsageError(f"config file {path} has an unknown key {key!r}", hint=hint)
    return {key: checked(key, value, f"{key} in config file {path}") for key, value in table.items()}


def settle(
    flags: Mapping[str, Any],
    generation_config: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> dict[str, Setting]:
    """Every key of OPTIONS with the value in force; a flag that is None, or an empty list, was not given."""
    if unknown := flags.keys() - OPTIONS.keys():
        raise TypeError(f"not options: {', '.join(sorted(unknown))}")
    _check_spelling(environ)
    config, path = load_config(environ), config_path(environ)
    model = _from_model(generation_config or {})
    settled = {}
    for key, option in OPTIONS.items():
        variable = f"GPTCLI_{key.upper()}"
        if flags.get(key) is not None and flags[key] not in ([], ()):
            setting = Setting(value=checked(key, flags[key], _flag(key)), source="flag")
        elif text := environ.get(variable):
            setting = Setting(value=checked(key, _parsed(option.kind, text), variable), source=variable)
        elif key in config:
            setting = Setting(value=config[key], source=f"config file {path}")
        elif key in model:
            where, way_out = f"{key} in {GENERATION_CONFIG}", f"{_flag(key)} overrides it"
            value = checked(key, model[key], where, refusal=BadCheckpoint, hint=way_out)
            setting = Setting(value=value, source=GENERATION_CONFIG)
        else:
            setting = Setting(value=option.default, source="built-in")
        settled[key] = setting
    return settled


def _check_spelling(environ: Mapping[str, str]) -> None:
    """Raises UsageError for a variable that is nearly a setting's; what others call GPTCLI_... is theirs."""
    known = {f"GPTCLI_{key.upper()}" for key in OPTIONS} | {"GPTCLI_CONFIG", "GPTCLI_DEBUG"}
    for name in environ:
        if name.startswith("GPTCLI_") and name not in known and (near := get_close_matches(name, known, 1, 0.9)):
            raise UsageError(f"{name} in the environment is not a setting", hint=f"did you mean {near[0]}?")


def _from_model(generation_config: Mapping[str, Any]) -> dict[str, Any]:
    """What the model's makers chose, unchecked; null means that they did not choose.

    `do_sample: false` written out is their choice of greedy: transformers then ignores the file's own temperature.
    Left out it means nothing here, although transformers reads that as greedy too: so do most files that sample.
    """
    chosen = {key: generation_config[key] for key in FROM_MODEL if generation_config.get(key) is not None}
    do_sample = generation_config.get("do_sample")
    if do_sample not in (None, True, False):
        raise BadCheckpoint(f"do_sample in {GENERATION_CONFIG} must be true or false, not {do_sample!r}")
    if do_sample is False:
        chosen["temperature"] = 0.0
    return chosen


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _parsed(kind: type, text: str) -> Any:
    """The text of an environment variable as a value of that kind, or as it was when it cannot be one."""
    if kind is bool:
        return SWITCH.get(text.strip().lower(), text)
    if kind is tuple:
        return (text,)  # one stop text: any separator could be part of it
    try:
        return kind(text)
    except ValueError:
        return text


def _is_text(value: str) -> bool:
    """Not empty, and no bytes in it that are not UTF-8; these arrive as lone surrogates."""
    return bool(value) and not any("\ud800" <= character <= "\udfff" for character in value)


def checked(key: str, value: Any, where: str, *, refusal: type[GptcliError] = UsageError, hint: str = "") -> Any:
    """The value in its exact type, or an error that says where it stands and what is allowed."""
    kind, _, allowed = OPTIONS[key]
    if isinstance(allowed, Range):
        if value in allowed:
            return kind(value)
        expected = str(allowed)
    elif kind is bool:
        if isinstance(value, bool):
            return value
        expected = "true or false"
    elif kind is tuple:
        if isinstance(value, (list, tuple)) and all(isinstance(text, str) and _is_text(text) for text in value):
            return tuple(value)
        expected = "a list of texts in UTF-8, none of them empty"
    elif allowed:
        if isinstance(value, str) and any(re.fullmatch(word.replace("N", "[0-9]{1,4}"), value) for word in allowed):
            return value
        expected = f"one of {', '.join(allowed)}"
    else:
        if isinstance(value, str) and value:
            return value
        expected = "a text that is not empty"
    raise refusal(f"{where} must be {expected}, not {value!r}", hint=hint)
