"""gptcli params: GPT-3's own integers, the paper's table counted again, and configs held against their files."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
import torch
import zoo
from programs import environment, gptcli, in_terminal, inside
from safetensors import safe_open
from test_render import SGR

from gptcli import Decoder, look
from gptcli.catalogue import named, names, read_pattern
from gptcli.checkpoint import load
from gptcli.errors import CheckFailed, UsageError
from gptcli.memory import binary
from gptcli.paper import BOUND_FLOPS, BOUND_PARAMS, TABLE
from gptcli.params import account, closed_form, count_stored, proof, recount, subject
from gptcli.presets import SIZES
from gptcli.render import theme
from gptcli.render.params import draw, draw_layer, draw_table

EXACT = {
    "gpt3-125m": 125_226_240, "gpt3-350m": 355_871_744, "gpt3-760m": 760_300_032, "gpt3-1.3b": 1_315_723_264,
    "gpt3-2.7b": 2_651_553_280, "gpt3-6.7b": 6_658_404_352, "gpt3-13b": 12_853_386_240, "gpt3": 174_604_259_328,
    "gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200,
    "gpt-neo-125m": 125_198_592, "gpt-neo-1.3b": 1_315_575_808,
}  # fmt: skip
GIB, MIB = 1 << 30, 1 << 20


# --- the numbers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXACT)
def test_known_decoders_have_exactly_their_parameters(name: str) -> None:
    counted = account(subject(name))
    assert counted.n_params == counted.config.n_params() == EXACT[name]
    assert sum(part.n for part in counted.parts) == EXACT[name]
    assert closed_form(counted.config) is not None and counted.checks[0].holds


def test_gpt3_has_96_layers_of_1_8_billion_and_these_two_tables() -> None:
    counted = account(subject("GPT-3"))
    assert counted.n_in_layer == 1_812_099_072 and counted.config.n_layer == 96
    assert {sum(m.n for m in counted.of_layer(i)) for i in range(96)} == {1_812_099_072}
    sizes = {part.does: part.n for part in counted.parts}
    assert sizes["embedding"] == 617_558_016 and sizes["positions"] == 25_165_824
    assert sum(len(m.shape) > 1 for m in counted.matrices) == 578
    assert dict(counted.memory) == {"float32": 698_417_037_312, "bfloat16": 349_208_518_656, "float16": 349_208_518_656}


def test_the_cache_is_2_l_d_t_and_banded_layers_keep_their_window() -> None:
    dense = named("gpt3", pattern=("dense",)).config
    assert dense.kv_bytes(1, 2) == 4.5 * MIB and dense.kv_bytes(2048, 2) == 9 * GIB
    assert named("gpt2").config.kv_bytes(1024, 2) == 36 * MIB
    for window in (1, 64, 256, 2048, 5000):
        banded, T = named("gpt3", window=window).config, 2048
        assert banded.kv_bytes(T, 2) == 2 * 12_288 * 2 * 48 * (T + min(T, window))
    caches = account(subject("gpt3"), contexts=[512, 2048, 100_000]).caches
    assert [(k.n_tokens, k.dense) for k in caches] == [(1, 4.5 * MIB), (512, 2.25 * GIB), (2048, 9 * GIB)]
    assert caches[-1].kept == 5.0625 * GIB


@pytest.mark.parametrize(
    ("n", "said"), [(0, "0 bytes"), (999, "999 bytes"), (1024, "1.0 KiB"), (36 * MIB, "36 MiB"), (4.5 * MIB, "4.5 MiB"),
                    (9 * GIB, "9.0 GiB"), (1000 * MIB, "1.0 GiB"), (1 << 43, "8.0 TiB")]
)  # fmt: skip
def test_binary_sizes_are_said_with_their_own_units(n: float, said: str) -> None:
    assert binary(n) == said


# --- the paper -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("each", recount(), ids=lambda each: each.row.label)
def test_every_row_of_table_d1_is_met(each: object) -> None:
    from gptcli.params import Recount

    assert isinstance(each, Recount) and each.holds
    assert abs(each.params - each.row.params) <= BOUND_PARAMS * each.row.params
    assert abs(6 * each.params * 300e9 - each.row.flops) <= BOUND_FLOPS * each.row.flops
    assert each.row.flops / 8.64e19 == pytest.approx(each.row.pf_days, rel=0.005), "D.1 agrees with itself"
    size = each.row.corrected
    assert (size.n_layer, size.batch_tokens, size.learning_rate) == (
        each.row.n_layer, each.row.batch_tokens, each.row.learning_rate,
    )  # fmt: skip
    assert size.n_head * each.row.d_head == size.d_model, "the corrected row multiplies out"


def test_the_two_typos_are_found_and_proved() -> None:
    assert {row.label: row.typo for row in TABLE if row.typo} == {"1.3B": "n_head", "13B": "d_model"}
    xl, large = (next(row for row in TABLE if row.label == label) for label in ("1.3B", "13B"))
    assert "24 heads of 128, which make 3,072" in proof(xl) and "16 × 128 = 2,048" in proof(xl)
    assert "12,953M" in proof(large) and "12,850M" in proof(large) and "12,853M" in proof(large)
    d = large.d_model
    wrong = 40 * (12 * d * d + 13 * d) + 52_305 * d + 2 * d
    assert abs(wrong / large.params - 1) > BOUND_PARAMS, "as printed, the row is outside of what all others keep"


# --- names -----------------------------------------------------------------------------------------------------------


def test_sizes_are_known_by_all_their_names() -> None:
    for alike in (("gpt3", "GPT-3", "175B", "gpt3-175b"), ("small", "125m", "gpt3-small", "GPT3-125M"),
                  ("xl", "1.3b", "gpt-3-xl"), ("gpt2", "gpt-2", "gpt2-small")):  # fmt: skip
        assert len({named(name).name for name in alike}) == 1, alike
    assert set(SIZES) <= set(names())
    for name in names():
        assert account(subject(name)).n_params > 0


def test_a_pattern_is_repeated_down_the_stack() -> None:
    def windows(pattern: str, size: str = "nano") -> list[int | None]:
        return [layer.window for layer in named(size, pattern=read_pattern(pattern), window=7).config.layers]

    assert windows("dense-banded") == [None, 7, None, 7]
    assert windows("banded-dense") == [7, None, 7, None]
    assert windows("dense") == [None] * 4 and windows("banded") == [7] * 4
    assert windows("dense-banded-banded") == [None, 7, 7, None]
    assert windows("dense-" * 4 + "banded") == [None] * 4
    with pytest.raises(UsageError, match="sparse"):
        read_pattern("sparse")
    with pytest.raises(UsageError, match="dense"):
        named("gpt2", window=3)


# --- configs and checkpoints -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", {kind.family: kind for kind in zoo.ZOO[::-1]}.values(), ids=str)
def test_a_count_from_config_equals_the_tensors_for_every_family(kind: zoo.Kind, zoo_root: Path) -> None:
    folder, _ = zoo.built(kind.name, zoo_root)
    found = subject(str(folder))
    assert found.layout is not None
    counted = account(found)
    assert [check.holds for check in counted.checks][-1:] == [True]
    stored = set[str]()
    n = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  # a handle, not a mapping
                shape = tensors.get_slice(name).get_shape()
                n += math.prod(shape) - (2 * shape[-1] if name.endswith("embed_positions.weight") else 0)
                stored.add(name)
    assert stored and counted.n_params == n == count_stored(found.layout)
    with torch.device("meta"):
        decoder = Decoder(counted.config)
    assert n == sum(p.numel() for p in decoder.parameters())
    theirs = json.loads((folder / "config.json").read_text())
    if "text_config" not in theirs:
        alone = account(subject(str(folder / "config.json")))
        assert alone.n_params == n or counted.config.tied != alone.config.tied


def test_counts_that_differ_are_exit_code_6(tiny_gpt2: Path) -> None:
    found = subject(str(tiny_gpt2))
    wider = replace(found.config, n_ctx=65)
    with pytest.raises(CheckFailed, match="headers"):
        account(replace(found, config=wider))


def test_a_folder_of_a_size_s_name_needs_a_path(
    tiny_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.write_gpt2(tmp_path / "gpt2")
    assert account(subject("gpt2")).n_params == EXACT["gpt2"]
    assert account(subject("./gpt2")).n_params == look(str(tiny_gpt2)).config.n_params()
    (tmp_path / "gpt2" / "model.safetensors").unlink()
    assert subject("./gpt2").layout is None, "a config.json alone is counted, and held against nothing"


# --- the layout of GPT-3 ---------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_alternating_dense_and_banded_layers_against_an_explicit_mask() -> None:
    """GPT-3's build, its biases and scale included, computed a second time with the mask written out."""
    full = named("gpt3-125m", window=3).config
    c = replace(
        full, n_vocab=50, n_ctx=24, d_model=16, n_head=2, n_kv_head=2, d_head=8, d_ff=64, layers=full.layers[:4]
    )
    assert [layer.window for layer in c.layers] == [None, 3, None, 3] and c.qkv_bias
    torch.manual_seed(1)
    decoder = Decoder(c).eval()
    for p in decoder.parameters():
        torch.nn.init.normal_(p, std=0.5)
    ids = torch.randint(0, 50, (2, 24), generator=torch.Generator().manual_seed(2))
    x = decoder.embed.weight[ids] + decoder.pos_embed.weight  # type: ignore[union-attr]
    for i, block in enumerate(decoder.blocks):
        a, read = block.attn, block.attn_norm(x)
        q, k, v = (m(read).view(2, 24, 2, 8).transpose(1, 2) for m in (a.q, a.k, a.v))
        mask = torch.tensor([[r >= s and (i % 2 == 0 or r - s < 3) for s in range(24)] for r in range(24)])
        scores = (q @ k.mT * c.layers[i].scale).masked_fill(~mask, -math.inf)
        x = x + a.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 24, 16))
        x = x + block.mlp(block.mlp_norm(x))
    expected = decoder.readout(x)
    assert (decoder(ids) - expected).abs().max() <= 1e-5 * expected.abs().max()
    everywhere = Decoder(replace(c, layers=(c.layers[0],) * 4)).eval()
    everywhere.load_state_dict(decoder.state_dict())
    assert (everywhere(ids) - expected).abs().max() > 1e-2, "with this window the bands do make a difference"


def test_a_banded_layer_s_cache_holds_only_its_window() -> None:
    """Measured on the tensors themselves; a band keeps 64 rows more, so that it is not shifted at every token."""
    from gptcli.cache import SLACK, Cache

    c = named("gpt3-125m", window=100).config
    cache = Cache(c, 2048, dtype=torch.float16)
    sizes = [keys.k.untyped_storage().nbytes() + keys.v.untyped_storage().nbytes() for keys in cache.layers]
    row = 2 * c.d_model * 2
    assert sizes == [2048 * row, (100 + SLACK) * row] * 6
    assert sum(sizes) == c.kv_bytes(2048, 2) + 6 * SLACK * row


def test_a_published_neo_checkpoint_has_the_layout_of_its_size(tmp_path: Path) -> None:
    """What the catalogue spells is read back by the same strict reader as anyone's config.json."""
    for name in ("gpt3-1.3b", "micro", "gpt2-xl"):
        found = named(name)
        (tmp_path / "config.json").write_text(json.dumps(found.spelled))
        assert subject(str(tmp_path / "config.json")).config == found.saved


# --- the program -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 120])
def test_pictures_fit_the_screen_and_need_no_colour(width: int) -> None:
    for name in ("gpt3", "gpt2", "nano", "gpt3-13b"):
        counted = account(subject(name))
        for picture in (draw(counted), draw_layer(counted, 1), draw_table(recount())):
            plain = theme.drawn(picture, colour=False, width=width)
            coloured = theme.drawn(picture, colour=True, width=width)
            assert max(map(len, plain.splitlines())) <= width and "…" not in plain
            assert "\x1b" not in plain and "\x1b[" in coloured
            same = [re.sub("[█▉▒]", "#", re.sub(" +\n", "\n", SGR.sub("", text))) for text in (coloured, plain)]
            assert same[0] == same[1], "only what colour says is said by another pattern"
    text = theme.drawn(draw(account(subject("gpt3"))), colour=False, width=width)
    assert text.count("▉") == 48 and "174,604,259,328" in text


def test_bars_are_in_proportion() -> None:
    lines = theme.drawn(draw(account(subject("gpt3"))), colour=False, width=120).splitlines()
    up, down, out = (
        next(line for line in lines if line.startswith(w)).count("█") for w in ("MLP up", "MLP down", "att")
    )
    assert up == down and up // 4 == out > 5


def test_params_of_gpt3_as_json() -> None:
    found = json.loads(inside("params", "gpt3", "--json")[1])
    assert (found["n_params"], found["layer_params"], found["n_layer"]) == (174_604_259_328, 1_812_099_072, 96)
    assert sum(m["n_params"] for m in found["matrices"]) == found["n_params"] and found["checks"][0]["holds"]
    rows = json.loads(inside("params", "--table", "--json")[1])
    assert [row["typo"] for row in rows if row["typo"]] == ["n_head", "d_model"]


def test_params_of_a_checkpoint_shows_that_both_counts_agree(tiny_gpt2: Path) -> None:
    done = gptcli("params", tiny_gpt2)
    n = sum(p.numel() for p in load(str(tiny_gpt2)).decoder.parameters())
    assert done.returncode == 0 and f"✓ numbers in the headers of 1 file = {n:,}" in done.stdout.decode()
    assert gptcli("params", env={"GPTCLI_MODEL": str(tiny_gpt2)}).stdout == done.stdout


def test_at_a_terminal_layers_are_pink_and_violet() -> None:
    seen, code = in_terminal("params", "gpt3", env={"COLORTERM": "truecolor"}, size=(40, 110))
    assert code == 0
    for colour in (theme.ANSWER, theme.LABEL, theme.PROMPT):
        r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
        assert f"38;2;{r};{g};{b}m".encode() in seen, colour
    strip = next(line for line in seen.decode().splitlines() if line.count("▉") > 90)
    assert len(re.findall("▉", strip)) == 96


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["gtp3"], 3, "did you mean gpt3?"),
        (["gpt3", "--layer", "96"], 2, "layers 0 to 95"),
        (["gpt3", "--attention", "sparse"], 2, "sparse"),
        (["--table", "gpt3"], 2, "--table"),
        (["--table", "--context", "512"], 2, "--context changes nothing there"),
        (["--table", "--attention", "dense"], 2, "--attention changes nothing there"),
        (["--table", "--window", "8"], 2, "--window changes nothing there"),
        (["./nowhere"], 3, "nowhere"),
        (["gpt2", "--window", "8"], 2, "dense"),
    ],
)
def test_wrong_questions_are_one_line(arguments: list[str], code: int, says: str) -> None:
    found, answer, errors = inside("params", *arguments)
    lines = errors.decode().splitlines()
    assert found == code and not answer and len(lines) <= 2
    assert lines[0].startswith("gptcli: error: ") and says in errors.decode()


def test_params_never_imports_torch(tiny_gpt2: Path) -> None:
    program = (
        "import sys; from gptcli.cli import run; run(sys.argv[1:])\n"
        "print(sorted({'torch', 'numpy', 'safetensors', 'tokenizers'} & sys.modules.keys()), file=sys.stderr)"
    )
    for arguments in (["params", "gpt3"], ["params", str(tiny_gpt2), "--layer", "0"], ["params", "--table"]):
        done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, env=environment())
        assert done.stdout and done.stderr == b"[]\n", done.stderr


@pytest.mark.parametrize("command", [("params",), ("params", "-m"), ("budget",), ("new", "--meta")])
def test_a_model_that_is_not_there_has_the_exit_code_of_all_commands(command: tuple[str, ...]) -> None:
    done = gptcli(*command, "nosuch")
    assert done.returncode == 3 and "'nosuch' is neither a size nor a model here" in done.stderr.decode()
