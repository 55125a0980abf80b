"""A decoder before training: of any size on the meta device, which has shapes and no numbers, or really, at random."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gptcli.checkpoint import Checkpoint
from gptcli.config import Config
from gptcli.errors import CheckFailed
from gptcli.layout import generation_config
from gptcli.memory import check_fits
from gptcli.model import Decoder
from gptcli.records import Built
from gptcli.tokens import Tokenizer
from gptcli.train import initialise


@torch.inference_mode()
def on_meta(config: Config) -> Built:
    """The whole decoder without its numbers, and a full context sent through it. Raises CheckFailed."""
    start = time.perf_counter()
    with torch.device("meta"):
        decoder = Decoder(config)
    built = time.perf_counter()
    scores = decoder(torch.empty(1, config.n_ctx, dtype=torch.int64, device="meta"))  # [1, T, V]
    passed = time.perf_counter()
    return _counted(decoder, built - start, passed=tuple(scores.shape[1:]), pass_seconds=passed - built)


def at_random(
    family: str, config: Config, spelled: Mapping[str, Any], *, folder: Path, seed: int
) -> tuple[Checkpoint, Built]:
    """A checkpoint with GPT-2's random values in float32; `folder` holds all else. Raises OutOfMemory."""
    check_fits(4 * config.n_params(), what="the weights")  # nothing larger than they is ever held
    tokenizer = Tokenizer.from_folder(folder, n_vocab=config.n_vocab)
    start = time.perf_counter()
    decoder = Decoder(config)
    initialise(decoder, seed)
    made = _counted(decoder, time.perf_counter() - start)
    end = spelled.get("eos_token_id")
    checkpoint = Checkpoint(
        name=folder.name,
        folder=folder,
        family=family,
        config=config,
        decoder=decoder.requires_grad_(False).eval(),
        tokenizer=tokenizer,
        config_json=dict(spelled),
        generation_config=generation_config(folder),
        eos_ids=frozenset({end} if isinstance(end, int) else ()),
        start_id=end if isinstance(end, int) else None,
    )
    return checkpoint, made


def _counted(decoder: Decoder, seconds: float, *, passed: tuple[int, ...] = (), pass_seconds: float = 0.0) -> Built:
    parameters = list(decoder.parameters())
    found = Built(
        n_params=sum(p.numel() for p in parameters),
        n_expected=decoder.config.n_params(),
        n_tensors=len(parameters),
        n_bytes=sum(p.untyped_storage().nbytes() for p in parameters if not p.is_meta),
        seconds=seconds,
        passed=passed,
        pass_seconds=pass_seconds,
    )
    if found.n_params != found.n_expected:
        raise CheckFailed(f"the decoder holds {found.n_params:,} numbers and not {found.n_expected:,}")
    return found
