"""gptcli: generate text with any GPT-type checkpoint, and see how each token moves through the layer stack.

    from gptcli import Sampling, generate, load

    checkpoint = load()  # the one that comes along; or load("path/to/model")
    for step in generate(checkpoint, "Once upon a time", sampling=Sampling(temperature=0), max_tokens=64):
        print(step.text, end="", flush=True)

Names are imported when they are first used, so that a program which only looks at checkpoints never imports torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gptcli.batch import generate_batch
    from gptcli.checkpoint import Checkpoint, load, save
    from gptcli.config import Config, Layer, Rope
    from gptcli.describe import card
    from gptcli.errors import (
        BadCheckpoint,
        CheckFailed,
        GptcliError,
        NotFound,
        OutOfMemory,
        Unsupported,
        UsageError,
    )
    from gptcli.families import FAMILIES, Family
    from gptcli.generation import Request, Start, generate, prepare, start
    from gptcli.layout import Layout, look
    from gptcli.model import Decoder, Tape
    from gptcli.recipe import Recipe
    from gptcli.records import Candidate, Card, Chunk, Progress, Prompt, Step
    from gptcli.sampling import Sampling
    from gptcli.tokens import Tokenizer
    from gptcli.trace import Trace, xray
    from gptcli.train import Training

_EXPORTS = {
    "batch": ("generate_batch",),
    "checkpoint": ("Checkpoint", "load", "save"),
    "config": ("Config", "Layer", "Rope"),
    "describe": ("card",),
    "errors": (
        *("BadCheckpoint", "CheckFailed", "GptcliError", "NotFound", "OutOfMemory"),
        *("Unsupported", "UsageError"),
    ),
    "families": ("FAMILIES", "Family"),
    "generation": ("Request", "Start", "generate", "prepare", "start"),
    "layout": ("Layout", "look"),
    "model": ("Decoder", "Tape"),
    "recipe": ("Recipe",),
    "records": ("Candidate", "Card", "Chunk", "Progress", "Prompt", "Step"),
    "sampling": ("Sampling",),
    "tokens": ("Tokenizer",),
    "trace": ("Trace", "xray"),
    "train": ("Training",),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}

__all__ = [
    "FAMILIES",
    "BadCheckpoint",
    "Candidate",
    "Card",
    "CheckFailed",
    "Checkpoint",
    "Chunk",
    "Config",
    "Decoder",
    "Family",
    "GptcliError",
    "Layer",
    "Layout",
    "NotFound",
    "OutOfMemory",
    "Progress",
    "Prompt",
    "Recipe",
    "Request",
    "Rope",
    "Sampling",
    "Start",
    "Step",
    "Tape",
    "Tokenizer",
    "Trace",
    "Training",
    "Unsupported",
    "UsageError",
    "card",
    "generate",
    "generate_batch",
    "load",
    "look",
    "prepare",
    "save",
    "start",
    "xray",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gptcli' has no attribute {name!r}")
    return getattr(import_module(f"gptcli.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
