"""The KV cache: whatever comes in whatever portions, nothing is computed otherwise than all at once."""

from __future__ import annotations

import pytest
import torch

from gptcli import Config, Decoder, Layer, Rope
from gptcli.cache import SLACK, Cache

N_CTX, WINDOW = 400, 8
ROPE = Rope(theta=10000.0, dim=8)


def decoder(*windows: int | None, rope: Rope = ROPE) -> Decoder:
    """A small random decoder whose layers have these windows."""
    config = Config(
        n_vocab=50, n_ctx=N_CTX, d_model=32, n_head=4, n_kv_head=2, d_head=8, d_ff=64, norm="rms", gated=True,
        layers=tuple(Layer(rope=rope, window=w, scale=8**-0.5) for w in windows),
    )  # fmt: skip
    torch.manual_seed(3)
    made = Decoder(config)
    for name, p in made.named_parameters():
        torch.nn.init.normal_(p, std=0.2) if p.ndim > 1 else torch.nn.init.uniform_(p, 0.5, 2.0)
        assert p.isfinite().all(), name
    return made.eval()


IDS = torch.randint(0, 50, (2, 300), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "portions",
    [
        [300],
        [1] * 300,
        [5] * 60,
        [150, *[1] * 150],
        [WINDOW + SLACK, *[1] * 228],
        [WINDOW + SLACK + 1, *[1] * 227],
        [70, 100, 1, 1, 100, *[1] * 28],
        [1, 299],
    ],
    ids=lambda p: f"{p[0]}-then-{len(p) - 1}",
)
@torch.inference_mode()
def test_portions_make_no_difference(portions: list[int]) -> None:
    model = decoder(WINDOW, None, 1, 100)
    whole, cache = model(IDS), Cache(model.config, N_CTX, batch=2, dtype=torch.float32)
    parts, at = [], 0
    for n in portions:
        parts.append(model(IDS[:, at : at + n], cache))
        at += n
    assert at == 300 and cache.n_seen == 300
    assert (torch.cat(parts, 1) - whole).abs().max() <= 1e-5 * whole.abs().max()


@torch.inference_mode()
def test_a_layer_with_a_window_keeps_little_more_than_its_window() -> None:
    model = decoder(WINDOW, None)
    cache = Cache(model.config, N_CTX, dtype=torch.float32)
    assert [keys.k.shape[2] for keys in cache.layers] == [WINDOW + SLACK, N_CTX]


@torch.inference_mode()
def test_a_window_really_hides_what_is_beyond_it() -> None:
    model = decoder(WINDOW)
    other = IDS.clone()
    other[:, 0] = (other[:, 0] + 1) % 50
    a, b = model(IDS), model(other)
    assert not torch.equal(a[:, WINDOW - 1], b[:, WINDOW - 1])  # 0 <= i - j < window
    assert torch.equal(a[:, WINDOW:], b[:, WINDOW:])


@torch.inference_mode()
def test_a_copy_goes_its_own_way() -> None:
    model = decoder(WINDOW, None)
    cache = Cache(model.config, N_CTX, batch=2, dtype=torch.float32)
    model(IDS[:, :90], cache)
    twin = cache.copy()
    model(IDS[:, 200:240], twin)
    a = model(IDS[:, 90:91], cache)
    fresh = Cache(model.config, N_CTX, batch=2, dtype=torch.float32)
    model(IDS[:, :90], fresh)
    assert torch.equal(model(IDS[:, 90:91], fresh), a)


@torch.inference_mode()
def test_a_cleared_cache_is_as_good_as_new() -> None:
    model = decoder(WINDOW, None)
    cache = Cache(model.config, N_CTX, batch=2, dtype=torch.float32)
    first = model(IDS[:, :120], cache)
    model(IDS[:, 120:200], cache)
    cache.clear()
    assert torch.equal(model(IDS[:, :120], cache), first)


def test_more_than_it_was_made_for_is_an_error() -> None:
    model = decoder(None)
    cache = Cache(model.config, 10, batch=2, dtype=torch.float32)
    with pytest.raises(ValueError, match="10 tokens"):
        model(IDS[:, :11], cache)


def test_a_cache_is_outgrown_when_the_frequencies_change() -> None:
    long = Rope(
        theta=10000.0, dim=8, kind="longrope", n_ctx_trained=16, short_factor=(1.0,) * 4, long_factor=(2.0,) * 4
    )
    model = decoder(None, rope=long)
    cache = Cache(model.config, N_CTX, batch=2, dtype=torch.float32)
    model(IDS[:, :16], cache)
    assert cache.outgrown(17) and not cache.outgrown(16)
    with pytest.raises(ValueError, match="cannot take"):
        model(IDS[:, 16:17], cache)
