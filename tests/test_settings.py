"""Who wins, level by level, and what every refusal says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gptcli.errors import BadCheckpoint, NotFound, UsageError
from gptcli.sampling import Sampling
from gptcli.settings import OPTIONS, Setting, config_path, load_config, settle


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment whose config file does not exist yet: `write` makes it."""
    return {"XDG_CONFIG_HOME": str(tmp_path)}


def write(environ: dict[str, str], text: str | bytes) -> Path:
    path = config_path(environ)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


# --- who wins


def test_a_variable_that_is_nearly_a_setting_s_is_not_ignored() -> None:
    with pytest.raises(UsageError, match="GPTCLI_TEMPRATURE in the environment is not a setting") as error:
        settle({}, environ={"GPTCLI_TEMPRATURE": "0", "GPTCLI_CONFIG": "/dev/null"})
    assert error.value.hint == "did you mean GPTCLI_TEMPERATURE?"
    for theirs in ("GPTCLI_HOME", "GPTCLI_WRAPPER_VERSION", "GPTCLI_DEBUG"):
        assert settle({}, environ={theirs: "1", "XDG_CONFIG_HOME": "/nonexistent"})["temperature"].source == "built-in"


def test_built_in_values_are_those_of_the_command_line_page(environ: dict[str, str]) -> None:
    settled = settle({}, None, environ)
    assert list(settled) == list(OPTIONS)
    assert {setting.source for setting in settled.values()} == {"built-in"}
    assert {key: setting.value for key, setting in settled.items()} == {
        "model": None,
        "device": "auto",
        "dtype": "auto",
        "max_tokens": 128,
        "temperature": 0.8,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "repeat_last_n": -1,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": None,
        "num_samples": 1,
        "color": "auto",
        "overflow": "error",
        "stop": (),
        "ignore_eos": False,
        "quantize": "none",
        "stats": False,
        "quiet": False,
    }


def test_each_level_beats_the_ones_below(environ: dict[str, str]) -> None:
    def top_k() -> Setting:
        return settle(flags, model, environ)["top_k"]

    flags: dict[str, Any] = {"top_k": None}
    model: dict[str, Any] = {}
    assert top_k() == Setting(value=40, source="built-in")
    model["top_k"] = 1
    assert top_k() == Setting(value=1, source="generation_config.json")
    path = write(environ, "top_k = 2")
    assert top_k() == Setting(value=2, source=f"config file {path}")
    environ["GPTCLI_TOP_K"] = "3"
    assert top_k() == Setting(value=3, source="GPTCLI_TOP_K")
    flags["top_k"] = 0
    assert top_k() == Setting(value=0, source="flag")


@pytest.mark.parametrize("zero", [("temperature", 0), ("ignore_eos", False), ("seed", 0), ("top_k", 0)])
def test_a_falsy_flag_was_given(environ: dict[str, str], zero: tuple[str, Any]) -> None:
    key, value = zero
    environ[f"GPTCLI_{key.upper()}"] = "1"
    assert settle({key: value}, None, environ)[key] == Setting(value=value, source="flag")


def test_an_empty_variable_and_an_empty_list_are_not_given(environ: dict[str, str]) -> None:
    write(environ, 'stop = ["a", "b"]')
    environ.update(GPTCLI_TOP_K="", GPTCLI_STOP="")
    settled = settle({"stop": []}, None, environ)
    assert settled["top_k"].source == "built-in"
    assert settled["stop"].value == ("a", "b")
    assert settle({"stop": ["c"]}, None, environ)["stop"].value == ("c",)


def test_whole_numbers_become_floats_where_floats_are_meant(environ: dict[str, str]) -> None:
    write(environ, "temperature = 1")
    settled = settle({"top_p": 1}, {"repetition_penalty": 1}, environ)
    for key in ("temperature", "top_p", "repetition_penalty"):
        assert type(settled[key].value) is float


def test_what_is_settled_fits_sampling(environ: dict[str, str]) -> None:
    settled = settle({}, None, environ)
    assert Sampling(**{key: settled[key].value for key in OPTIONS if hasattr(Sampling(), key)}) == Sampling()


def test_a_flag_that_is_no_option_is_a_mistake_of_ours(environ: dict[str, str]) -> None:
    with pytest.raises(TypeError, match="not options: topk"):
        settle({"topk": 3}, None, environ)


# --- the environment


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("model", "openai-community/gpt2", "openai-community/gpt2"),
        ("device", "cuda:1", "cuda:1"),
        ("dtype", "bfloat16", "bfloat16"),
        ("max_tokens", "7", 7),
        ("temperature", "0", 0.0),
        ("min_p", ".5", 0.5),
        ("repeat_last_n", "-1", -1),
        ("seed", "9223372036854775807", 2**63 - 1),
        ("color", "prob", "prob"),
        ("overflow", "slide", "slide"),
        ("stop", "a,b [c]", ("a,b [c]",)),
        ("ignore_eos", "1", True),
        ("stats", "Yes", True),
        ("quiet", "off", False),
    ],
)
def test_variables_are_typed(environ: dict[str, str], key: str, text: str, value: object) -> None:
    variable = f"GPTCLI_{key.upper()}"
    environ[variable] = text
    setting = settle({}, None, environ)[key]
    assert setting == Setting(value=value, source=variable)
    assert type(setting.value) is type(value)


@pytest.mark.parametrize(
    ("variable", "text", "message"),
    [
        ("GPTCLI_TOP_K", "many", "GPTCLI_TOP_K must be a whole number, 0 or more, not 'many'"),
        ("GPTCLI_TOP_K", "1.5", "GPTCLI_TOP_K must be a whole number, 0 or more, not '1.5'"),
        ("GPTCLI_TOP_P", "1.5", "GPTCLI_TOP_P must be a number from 0 to 1, not 1.5"),
        ("GPTCLI_TEMPERATURE", "nan", "GPTCLI_TEMPERATURE must be a number, 0 or more, not nan"),
        ("GPTCLI_SEED", "-1", "GPTCLI_SEED must be a whole number from 0 to 9223372036854775807, not -1"),
        ("GPTCLI_STATS", "maybe", "GPTCLI_STATS must be true or false, not 'maybe'"),
        ("GPTCLI_DEVICE", "gpu", "GPTCLI_DEVICE must be one of auto, cpu, cuda, cuda:N, mps, not 'gpu'"),
        ("GPTCLI_MAX_TOKENS", "-2", "GPTCLI_MAX_TOKENS must be a whole number, -1 or more, not -2"),
    ],
)
def test_bad_variables_are_refused(environ: dict[str, str], variable: str, text: str, message: str) -> None:
    environ[variable] = text
    with pytest.raises(UsageError) as caught:
        settle({}, None, environ)
    assert (caught.value.message, caught.value.exit_code) == (message, 2)


def test_what_is_overridden_is_not_checked(environ: dict[str, str]) -> None:
    environ["GPTCLI_TOP_K"] = "many"
    assert settle({"top_k": 5}, {"top_k": -7}, environ)["top_k"].value == 5


@pytest.mark.parametrize("device", ["auto", "cpu", "cuda", "cuda:0", "cuda:15", "mps"])
def test_devices(environ: dict[str, str], device: str) -> None:
    assert settle({"device": device}, None, environ)["device"].value == device


@pytest.mark.parametrize("device", ["cuda:", "cuda:-1", "cuda:N", "cuda:0\n", "CPU", "mps:0", "", "cuda:123456"])
def test_bad_devices(environ: dict[str, str], device: str) -> None:
    with pytest.raises(UsageError, match="--device must be one of"):
        settle({"device": device}, None, environ)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("num_samples", 0, "--num-samples must be a whole number, 1 or more, not 0"),
        ("top_k", True, "--top-k must be a whole number, 0 or more, not True"),
        ("stop", ["a", ""], "--stop must be a list of texts in UTF-8, none of them empty, not ['a', '']"),
        ("model", "", "--model must be a text that is not empty, not ''"),
        ("dtype", "int8", "--dtype must be one of auto, float32, bfloat16, float16, not 'int8'"),
    ],
)
def test_bad_flags_are_named_as_typed(environ: dict[str, str], key: str, value: object, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        settle({key: value}, None, environ)
    assert caught.value.message == message


# --- the config file


def test_where_the_config_file_is() -> None:
    home = Path(os.path.expanduser("~"))
    assert config_path({"GPTCLI_CONFIG": "/x/y.toml", "XDG_CONFIG_HOME": "/z"}) == Path("/x/y.toml")
    assert config_path({"GPTCLI_CONFIG": "~/y.toml"}) == home / "y.toml"
    assert config_path({"GPTCLI_CONFIG": "", "XDG_CONFIG_HOME": "/z"}) == Path("/z/gptcli/config.toml")
    for relative in ({}, {"XDG_CONFIG_HOME": ""}, {"XDG_CONFIG_HOME": "z"}):
        assert config_path(relative) == home / ".config/gptcli/config.toml"


def test_no_config_file_is_fine_unless_it_was_asked_for(environ: dict[str, str], tmp_path: Path) -> None:
    assert load_config(environ) == {}
    environ["GPTCLI_CONFIG"] = str(tmp_path / "none.toml")
    with pytest.raises(NotFound) as caught:
        load_config(environ)
    assert caught.value.message == f"no config file {tmp_path / 'none.toml'}" and caught.value.exit_code == 3


def test_a_full_config_file(environ: dict[str, str]) -> None:
    text = 'model = "gpt2"\ndevice = "cuda:1"\nseed = 3\nstop = ["\\n"]\r\nquiet = true\nmin_p = 0.1 # why\n'
    write(environ, text)
    want = {"model": "gpt2", "device": "cuda:1", "seed": 3, "stop": ("\n",), "quiet": True, "min_p": 0.1}
    assert load_config(environ) == want


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("top_k = 3\ntop_p = \n", "is not TOML: Invalid value (at line 2, column 9)", ""),
        ("top_k = 3\ntop_k = 4", "is not TOML: Cannot overwrite a value (at ", ""),
        ("x = " + "[" * 100_000, "is not TOML", ""),
        ("seed = " + "1" * 5000, "is not TOML", ""),
        (b"\xff = 1", "is not UTF-8: byte 0", ""),
        ("temprature = 1", "has an unknown key 'temprature'", "did you mean temperature?"),
        ("top-k = 1", "has an unknown key 'top-k'", "did you mean top_k?"),
        ("[sampling]\ntop_k = 1", "has an unknown key 'sampling'", ""),
        ("zzz = 1", "has an unknown key 'zzz'", "known keys: model, device, "),
        ('top_k = "3"', "must be a whole number, 0 or more, not '3'", ""),
        ("top_k = true", "must be a whole number, 0 or more, not True", ""),
        ("quiet = 1", "must be true or false, not 1", ""),
        ("top_p = inf", "must be a number from 0 to 1, not inf", ""),
        ('stop = "x"', "must be a list of texts in UTF-8, none of them empty, not 'x'", ""),
        ('device = "tpu"', "must be one of auto, cpu, cuda, cuda:N, mps, not 'tpu'", ""),
    ],
)
def test_bad_config_files(environ: dict[str, str], text: str | bytes, message: str, hint: str) -> None:
    path = write(environ, text)
    with pytest.raises(UsageError) as caught:
        load_config(environ)
    assert f"config file {path} " in caught.value.message and message in caught.value.message
    assert "\n" not in caught.value.message and len(caught.value.message) < 300
    assert caught.value.hint.startswith(hint) and caught.value.exit_code == 2


def test_a_config_file_is_checked_even_where_it_is_overridden(environ: dict[str, str]) -> None:
    write(environ, "top_k = -3")
    with pytest.raises(UsageError, match="top_k in config file"):
        settle({"top_k": 5}, None, environ)


def test_a_config_file_that_cannot_be_read(environ: dict[str, str], tmp_path: Path) -> None:
    environ["GPTCLI_CONFIG"] = str(tmp_path)
    with pytest.raises(UsageError, match="cannot read config file"):
        load_config(environ)


# --- the model's generation_config.json


def test_only_five_numbers_are_taken_from_the_model(environ: dict[str, str]) -> None:
    file = {
        "temperature": 0.6,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": None,
        "repetition_penalty": 1.1,
        "do_sample": True,
        "max_length": 20,
        "max_new_tokens": 2048,
        "presence_penalty": 1.5,
        "eos_token_id": [1, 2],
        "seed": 3,
    }
    settled = settle({}, file, environ)
    taken = {key: setting.value for key, setting in settled.items() if setting.source == "generation_config.json"}
    assert taken == {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1}
    assert settled["max_tokens"].value == 128


@pytest.mark.parametrize("file", [None, {}, {"do_sample": True}, {"do_sample": None}, {"eos_token_id": 50256}])
def test_where_the_model_is_silent_our_own_values_hold(environ: dict[str, str], file: dict[str, Any] | None) -> None:
    assert {setting.source for setting in settle({}, file, environ).values()} == {"built-in"}


@pytest.mark.parametrize("file", [{"do_sample": False}, {"do_sample": False, "temperature": 0.9}])
def test_do_sample_false_is_greedy_and_can_be_overridden(environ: dict[str, str], file: dict[str, Any]) -> None:
    assert settle({}, file, environ)["temperature"] == Setting(value=0.0, source="generation_config.json")
    assert settle({"temperature": 0.7}, file, environ)["temperature"].value == 0.7


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ({"temperature": "hot"}, "temperature in generation_config.json must be a number, 0 or more, not 'hot'"),
        ({"top_k": -1}, "top_k in generation_config.json must be a whole number, 0 or more, not -1"),
        ({"top_k": 5.0}, "top_k in generation_config.json must be a whole number, 0 or more, not 5.0"),
        ({"top_p": True}, "top_p in generation_config.json must be a number from 0 to 1, not True"),
        ({"do_sample": "no"}, "do_sample in generation_config.json must be true or false, not 'no'"),
    ],
)
def test_malformed_values_of_the_model(environ: dict[str, str], file: dict[str, Any], message: str) -> None:
    with pytest.raises(BadCheckpoint) as caught:
        settle({}, file, environ)
    assert (caught.value.message, caught.value.exit_code) == (message, 4)


def test_a_malformed_value_of_the_model_comes_with_the_way_out(environ: dict[str, str]) -> None:
    with pytest.raises(BadCheckpoint) as caught:
        settle({}, {"top_k": -1}, environ)
    assert caught.value.hint == "--top-k overrides it"
    assert settle({"top_k": 0}, {"top_k": -1}, environ)["top_k"].value == 0


def test_settings_import_neither_torch_nor_rich() -> None:
    code = "import sys, gptcli.settings; print(sorted({'torch', 'rich', 'typer'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, cwd=Path(__file__).parents[1])
    assert (done.returncode, done.stdout) == (0, b"[]\n")
