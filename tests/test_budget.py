"""gptcli budget: Lambda's 355 years and $4.6M from their own assumptions, and the same arithmetic for any model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from programs import environment, gptcli, in_terminal, inside

from gptcli.budget import PF_DAY, Machine, Terms, attention_flops, budget
from gptcli.catalogue import named
from gptcli.errors import UsageError
from gptcli.paper import LAMBDA, TABLE
from gptcli.params import subject
from gptcli.render import theme
from gptcli.render.budget import about, draw, duration, money

GPT3 = budget(subject("gpt3"), terms=Terms())


def test_lambda_s_figures_follow_from_its_assumptions() -> None:
    assert LAMBDA.flops / (28e12 * 365 * 86_400) == pytest.approx(355.6, abs=0.05)
    assert round(LAMBDA.hours) == 3_115_079
    assert LAMBDA.price == pytest.approx(1.477, abs=5e-4)
    assert LAMBDA.flops / 15e12 / (365 * 86_400) == pytest.approx(663.8, abs=0.05), "printed as 665"


def test_gpt3_takes_355_years_and_4_6_million_dollars_by_default() -> None:
    assert GPT3.n_tokens == 300_000_000_000
    assert GPT3.flops == pytest.approx(3.14e23, rel=1e-3)
    assert int(GPT3.gpu_years) == 355 and GPT3.gpu_hours == pytest.approx(3_115_079, rel=1e-3)
    assert GPT3.dollars == pytest.approx(4.6e6, rel=1e-3)
    assert GPT3.pf_days == pytest.approx(3_640, rel=1e-3) and PF_DAY == 8.64e19


def test_one_token_forward_costs_349_gflop_and_looking_back_2_8_percent_more() -> None:
    dense = budget(subject("gpt3", pattern=("dense",)), terms=Terms())
    assert dense.forward == pytest.approx(349.2e9, rel=1e-3)
    assert dense.forward_attention == 4 * 96 * 2048 * 12_288
    assert dense.attention == dense.attention_dense == pytest.approx(0.028, abs=5e-4)
    assert dense.forward_attention / dense.forward == pytest.approx(dense.attention)
    assert GPT3.attention_dense == dense.attention and GPT3.attention == pytest.approx(
        0.0277 * (2048 + 256) / 4096, rel=0.01
    )


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.label)
def test_every_size_s_compute_is_the_paper_s(row: object) -> None:
    from gptcli.paper import Row

    assert isinstance(row, Row)
    found = budget(subject(row.label), terms=Terms())
    assert found.flops == pytest.approx(row.flops, rel=0.01) == found.printed_flops
    assert found.pf_days == pytest.approx(row.pf_days, rel=0.01)


def test_speed_utilisation_and_price_do_what_they_say() -> None:
    half = budget(subject("gpt3"), terms=Terms(utilisation=0.5, price=3.0))
    assert half.gpu_years == pytest.approx(2 * GPT3.gpu_years)
    assert half.dollars == pytest.approx(3.0 * half.gpu_hours)
    assert budget(subject("gpt3"), terms=Terms(tflops=15)).gpu_years == pytest.approx(663.8, rel=2e-3)
    fewer = budget(subject("gpt3"), terms=Terms(), n_tokens=10**9)
    assert fewer.flops == GPT3.flops / 300 and fewer.printed_flops is None, "D.1 is about 300 billion"
    slow = budget(subject("gpt3"), terms=Terms(), machine=Machine(device="cpu", tflops=0.243, side=8, n_threads=1))
    assert slow.machine_seconds is not None and about(slow.machine_seconds) == "41,000 years"


@pytest.mark.parametrize(
    "wrong",
    [
        {"tflops": 0},
        {"tflops": -1},
        {"price": 0},
        {"utilisation": 1.5},
        {"utilisation": 0},
        {"utilisation": float("nan")},
        {"tflops": float("nan")},
        {"n_gpus": 0},
    ],
)
def test_terms_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="must be above 0"):
        Terms(**wrong)  # type: ignore[arg-type]


def test_attention_of_a_banded_layer_counts_its_window() -> None:
    c = named("nano", window=100).config
    assert attention_flops(c, 512, windows=True) == 12 * 128 * 2 * (512 + 100)
    assert attention_flops(c, 512, windows=False) == 12 * 128 * 4 * 512
    assert attention_flops(c, 50, windows=True) == attention_flops(c, 50, windows=False)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.1234, "0.12 seconds"),
        (5.4, "5.4 seconds"),
        (240, "4.0 minutes"),
        (7200, "2.0 hours"),
        (3 * 86_400, "3.0 days"),
        (365 * 86_400, "1.0 years"),
        (3.5e14, "11,098,427.2 years"),
    ],
)
def test_times_are_said_in_the_largest_unit_they_fill(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("dollars", "said"),
    [(0.0022, "$0.0022"), (8.2, "$8.20"), (12_345.6, "$12,346"), (4.6e6, "$4.60M"), (2e9, "$2.00B")],
)
def test_money_is_said_with_digits_that_mean_something(dollars: float, said: str) -> None:
    assert money(dollars) == said


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_picture_names_every_assumption(width: int) -> None:
    text = theme.drawn(draw(GPT3), colour=False, width=width)
    assert max(map(len, text.splitlines())) <= width
    joined = " ".join(text.split())
    for said in (
        "300,000,000,000",
        "355.9 years",
        "355.6 years",
        "printed 355",
        "3,115,079 hours",
        "$4.60M",
        "28 TFLOPS",
        '"theoretical"',
        "100%",
        "$1.477",
        "derived",
        "663.8 years",
        "printed 665",
        "3,638 PF-days",
    ):
        assert said in joined, said
    small = " ".join(theme.drawn(draw(budget(subject("gpt2"), terms=Terms())), colour=False, width=width).split())
    assert "Lambda's figures" not in small and "20 for each parameter" in small


@torch.inference_mode()
def test_the_machine_is_really_measured() -> None:
    """The speed explains how long a product takes here; loosely, for others use this machine too."""
    import time

    from gptcli.linear import linear
    from gptcli.speed import measure

    found = measure(torch.device("cpu"), seconds=0.2, side=512)
    assert (found.device, found.side, found.n_threads) == ("cpu", 512, torch.get_num_threads())
    a, best = torch.randn(512, 512), 1e9
    for _ in range(40):
        start = time.perf_counter()
        linear(a, a)  # as the decoder multiplies
        best = min(best, time.perf_counter() - start)
    assert found.tflops == pytest.approx(2 * 512**3 / best / 1e12, rel=0.8)


def test_budget_of_a_checkpoint_as_json(tiny_gpt2: Path) -> None:
    done = gptcli(
        "budget", tiny_gpt2, "--tokens", "1M", "--tflops", "1", "--utilization", "0.5", "--price", "2", "--json"
    )
    found = json.loads(done.stdout)
    assert found["flops"] == 6 * found["n_params"] * 10**6 and found["machine"] is None
    assert found["gpu_hours"] == pytest.approx(found["flops"] / 0.5e12 / 3600)
    assert found["dollars"] == pytest.approx(2 * found["gpu_hours"])


def test_measure_says_your_machine(tiny_gpt2: Path) -> None:
    found = json.loads(inside("budget", "gpt3", "--measure", "--device", "cpu", "--json")[1])
    assert found["machine_seconds"] == pytest.approx(found["flops"] / (found["machine"]["tflops"] * 1e12))
    assert 100 < found["machine_seconds"] / (365 * 86_400) < 1e8, "no CPU of today is far outside of this"


def test_at_a_terminal_the_answers_are_pink() -> None:
    seen, code = in_terminal("budget", "gpt3", env={"COLORTERM": "truecolor"})
    r, g, b = (int(theme.ANSWER[i : i + 2], 16) for i in (1, 3, 5))
    assert code == 0 and seen.count(f"48;2;{r};{g};{b}m".encode()) == 2


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["gpt3", "--utilisation", "30"], "--utilisation"),
        (["gpt3", "--tokens", "lots"], "--tokens"),
        (["gpt3", "--tflops", "0"], "--tflops"),
        (["gpt3", "--context", "2049"], "--context 2049 is more than the 2048 tokens"),
    ],
)
def test_wrong_assumptions_are_one_line_and_exit_code_2(arguments: list[str], says: str) -> None:
    code, answer, errors = inside("budget", *arguments)
    assert code == 2 and says in errors.decode() and not answer
    assert len(errors.decode().splitlines()) <= 2


def test_budget_never_imports_torch_unless_it_measures() -> None:
    program = (
        "import sys; from gptcli.cli import run; run(sys.argv[1:])\n"
        "print(sorted({'torch', 'numpy', 'safetensors', 'tokenizers'} & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, "budget", "gpt3"], capture_output=True, env=environment())
    assert done.stdout and done.stderr == b"[]\n", done.stderr


def test_gpt3_reads_its_weights_once_a_step_and_keys_and_values_once_a_text() -> None:
    from gptcli.budget import H100_NODE, most_tokens_per_s, n_read, step_bytes
    from gptcli.catalogue import named

    c = named("gpt3-175b").config
    assert n_read(c) == c.n_params() - 2048 * 12_288  # of the positions it takes one row; the tied head it reads whole
    one, more = step_bytes(c, 2048), step_bytes(c, 2048, batch=33)
    assert one == 2 * n_read(c) + c.kv_bytes(2048, 2) and more - one == 32 * c.kv_bytes(2048, 2)
    assert step_bytes(c, 2048, weight_bits=4) < step_bytes(c, 2048, weight_bits=8) < one
    assert most_tokens_per_s(c, 2048, H100_NODE) == pytest.approx(H100_NODE.read / one)
    limit = most_tokens_per_s(c, 1, H100_NODE, batch=10**6)  # many texts at once: then multiplying is what takes time
    assert limit == pytest.approx(H100_NODE.flops / (2 * n_read(c)), rel=0.01)
