"""Every family against transformers, weight for weight and number for number."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from zoo import N_CTX, ZOO, Kind, built, their_logits

from gptcli import FAMILIES, Checkpoint, Sampling, generate, load, look, save
from gptcli.cache import Cache
from gptcli.errors import BadCheckpoint, Unsupported
from gptcli.families import REFUSED
from gptcli.layout import read_config

IDS = [int(i) for i in torch.randint(1, 260, (30,), generator=torch.Generator().manual_seed(7))]
every_kind = pytest.mark.parametrize("kind", ZOO, ids=str)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference in units of the largest logit."""
    return float((a - b).abs().max() / b.abs().max())


@torch.inference_mode()
def cached_logits(checkpoint: Checkpoint, ids: list[int], first: int) -> torch.Tensor:
    """`first` tokens at once, then the others one by one, [T, V]."""
    cache = Cache(checkpoint.config, N_CTX, dtype=checkpoint.dtype)
    rows = [checkpoint.decoder(torch.tensor([ids[:first]]), cache)[0]]
    for i, id in enumerate(ids[first:], first):
        if cache.outgrown(i + 1):
            cache.clear()
            rows.append(checkpoint.decoder(torch.tensor([ids[: i + 1]]), cache)[0, -1:])
        else:
            rows.append(checkpoint.decoder(torch.tensor([[id]]), cache)[0])
    return torch.cat(rows)


def test_the_zoo_has_every_family() -> None:
    assert {kind.family for kind in ZOO} == FAMILIES.keys()


@every_kind
@pytest.mark.parametrize("n", [5, 12, 30])
def test_logits_equal_the_reference(kind: Kind, theirs: Any, ours: Checkpoint, n: int) -> None:
    with torch.inference_mode():
        logits = ours.decoder(torch.tensor([IDS[:n]]))[0]
    assert distance(logits, their_logits(kind, theirs, IDS[:n])) <= 1e-5


@every_kind
@pytest.mark.parametrize("first", [1, 11])
def test_cached_decoding_equals_computing_the_whole_text_anew(
    kind: Kind, theirs: Any, ours: Checkpoint, first: int
) -> None:
    logits = cached_logits(ours, IDS, first)
    for n in (first, 12, 17, 30):  # the row of a token as it was when it was the last one
        assert distance(logits[n - 1], their_logits(kind, theirs, IDS[:n])[-1]) <= 1e-5


@every_kind
def test_32_greedy_tokens_equal_the_reference(kind: Kind, theirs: Any, ours: Checkpoint) -> None:
    steps = generate(ours, IDS[:8], sampling=Sampling(temperature=0), max_tokens=32, ignore_eos=True)
    found, text = [step.id for step in steps], IDS[:8]
    for id in found:
        row = their_logits(kind, theirs, text)[-1]
        assert id == int(row.argmax()), f"token {len(text) - 8}"
        text = [*text, id]
    assert len(found) == 32


@every_kind
def test_batches_equal_single_texts(kind: Kind, ours: Checkpoint) -> None:
    texts = torch.tensor([IDS[:14], IDS[14:28], IDS[8:22]])
    with torch.inference_mode():
        together = ours.decoder(texts)
        for row, text in zip(together, texts, strict=True):
            assert distance(row, ours.decoder(text[None])[0]) <= 1e-5


@every_kind
def test_shapes_are_counted_without_torch_as_the_decoder_has_them(kind: Kind, ours: Checkpoint) -> None:
    parameters = {name: tuple(p.shape) for name, p in ours.decoder.named_parameters()}
    assert list(ours.config.shapes().items()) == list(parameters.items())
    assert ours.config.n_params() == sum(p.numel() for p in ours.decoder.parameters())


@every_kind
def test_saved_files_are_the_reference_s_own(kind: Kind, theirs: Any, ours: Checkpoint, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    save(ours, tmp_path / "saved")
    model, told = AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", attn_implementation="eager", output_loading_info=True
    )
    assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.dtype == torch.float32
    expected = their_logits(kind, theirs, IDS[:12])
    assert distance(their_logits(kind, model.eval(), IDS[:12]), expected) <= 1e-6
    again = load(str(tmp_path / "saved"))
    assert again.config == ours.config
    for (name, a), (_, b) in zip(ours.decoder.named_parameters(), again.decoder.named_parameters(), strict=True):
        assert torch.equal(a, b), name


class Watcher:
    """A tape that looks and changes nothing."""

    def __init__(self) -> None:
        self.places = list[str]()

    def start(self, x: torch.Tensor) -> torch.Tensor:
        self.places.append("start")
        return x

    def heads(self, layer: int, q: Any, k: Any, v: Any, mask: Any, z: torch.Tensor) -> torch.Tensor:
        self.places.append(f"{layer}.heads")
        return z

    def write(self, layer: int, part: str, x: torch.Tensor) -> torch.Tensor:
        self.places.append(f"{layer}.{part}")
        return x


@every_kind
def test_watching_changes_nothing(kind: Kind, ours: Checkpoint) -> None:
    watcher, ids = Watcher(), torch.tensor([IDS[:20]])
    with torch.inference_mode():
        assert torch.equal(ours.decoder(ids, tape=watcher), ours.decoder(ids))
    assert watcher.places == [
        "start", *(f"{i}.{place}" for i in range(ours.config.n_layer) for place in ("heads", "attn", "mlp"))
    ]  # fmt: skip


@every_kind
def test_info_names_the_family_and_counts_as_the_reference(kind: Kind, theirs: Any, zoo_root: Path) -> None:
    layout = look(str(built(kind.name, zoo_root)[0]))
    assert layout.family == kind.family
    unread = 2 * 32 if kind.family == "opt" else 0  # the two rows of its positions that nothing ever reads
    assert layout.config.n_params() == theirs.num_parameters() - unread


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_s_default_config_is_understood(family: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    values = AutoConfig.for_model(family).to_dict()
    if family == "ministral":
        values["rope_parameters"] = {"rope_type": "default", "rope_theta": 10000.0}  # its class leaves out the base
    (tmp_path / "config.json").write_text(json.dumps(values))
    assert read_config(tmp_path / "config.json")[0] == family


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("gpt2", {"n_ctx": N_CTX // 2, "hidden_act": "relu"}),
        ("gpt2", {"is_causal": True}),
        ("gpt_bigcode", {"pad_key_length": True, "inference_runner": 0, "validate_runner_input": True}),
        ("phi3", {"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False}),
        ("phi3-longrope", {"original_max_position_embeddings": None}),
        (
            "starcoder2",
            {
                "activation_function": "gelu",
                "mlp_type": "default",
                "norm_type": "layer_norm",
                "layer_norm_epsilon": 1e-5,
                "scale_attn_weights": True,
                "attention_softmax_in_fp32": True,
            },
        ),
        ("gemma2", {"sliding_window_size": 8}),
        ("opt", {"learned_embeddings": True, "scale_embeddings": False}),
    ],
)
def test_what_published_files_say_besides_counts_as_in_the_reference(
    kind: str, values: dict[str, Any], zoo_root: Path, tmp_path: Path
) -> None:
    """None: what they leave out."""
    from transformers import AutoModelForCausalLM

    folder = shutil.copytree(built(kind, zoo_root)[0], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | values
    config = {key: value for key, value in config.items() if value is not None or key not in values}
    (folder / "config.json").write_text(json.dumps(config))
    theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.inference_mode():
        logits = load(str(folder)).decoder(torch.tensor([IDS]))[0]
        assert distance(logits, theirs(torch.tensor([IDS])).logits[0]) <= 1e-5


WILD: list[dict[str, Any]] = [  # what one family obeys another may not know
    {"partial_rotary_factor": 0.5}, {"rotary_pct": 0.5}, {"rotary_dim": 8},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    {"rope_theta": 777.0}, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {"attn_logit_softcapping": 5.0}, {"clip_qkv": 0.1}, {"sliding_window": 8}, {"window_size": 4},
    {"rms_norm_eps": 0.5}, {"layer_norm_eps": 0.5}, {"layer_norm_epsilon": 0.5}, {"norm_epsilon": 0.5},
    {"attention_multiplier": 0.3}, {"query_pre_attn_scalar": 10}, {"scale_attn_weights": False},
    {"use_parallel_residual": False}, {"hidden_act": "relu"}, {"activation_function": "relu"},
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("family", [family for family in FAMILIES if any(kind.family == family for kind in ZOO)])
def test_a_key_is_obeyed_as_the_reference_obeys_it_or_refused(family: str, zoo_root: Path, tmp_path: Path) -> None:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoModelForCausalLM

    first = next(kind for kind in ZOO if kind.family == family)
    folder = shutil.copytree(built(first.name, zoo_root)[0], tmp_path / "model")
    values, ids, obeyed = json.loads((folder / "config.json").read_text()), torch.tensor([IDS]), 0
    for wild in WILD:
        config = values | wild
        if wild.keys() & {"rope_theta", "rope_scaling"}:  # the older spelling, and no other beside it
            config.pop("rope_parameters", None)
        (folder / "config.json").write_text(json.dumps(config))
        try:
            ours = load(str(folder)).decoder
        except (BadCheckpoint, Unsupported):
            continue
        try:
            theirs = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
        except StrictDataclassError:  # Phi-3's newest class knows no other stretching than its own
            continue
        with torch.inference_mode():
            assert distance(ours(ids)[0], theirs(ids).logits[0]) <= 2e-5, wild
        obeyed += 1
    assert obeyed  # some of these every family knows, or is indifferent to


def test_refused_families_are_none_of_the_supported() -> None:
    assert not REFUSED.keys() & FAMILIES.keys()
    assert all(REFUSED.values())


@every_kind
def test_the_zoo_is_as_wild_as_its_names_say(kind: Kind, zoo_root: Path) -> None:
    folder = built(kind.name, zoo_root)[0]
    layout = look(str(folder))
    assert (len(layout.source.files) > 1) == ("sharded" in kind.name)
    if ":" in kind.name and "sharded" in kind.name:
        assert layout.config.tied == (":tied" in kind.name)
    if ":old-bare" in kind.name:
        prefix = FAMILIES[kind.family].prefix
        assert not any(p.tensor.name.startswith(prefix) for p in layout.placements)
        assert "rope_parameters" not in layout.config_json and "dtype" not in layout.config_json
