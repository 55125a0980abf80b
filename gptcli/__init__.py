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
    from gptcli.families import FAMILIES
    from gptcli.generation import Request, generate, prepare, start
    from gptcli.layout import Layout, look
    from gptcli.model import Decoder, Tape
    from gptcli.recipe import Recipe
    from gptcli.records import Candidate, Card, Chunk, Progress, Prompt, Step
    from gptcli.sampling import Sampling
    from gptcli.tokens import Tokenizer
    from gptcli.trace import Trace, xray
    from gptcli.train import Training

_HOME = {
    "card": "describe",
    "generate_batch": "batch",
    **dict.fromkeys(("Checkpoint", "load", "save"), "checkpoint"),
    **dict.fromkeys(("Config", "Layer", "Rope"), "config"),
    **dict.fromkeys(("BadCheckpoint", "CheckFailed", "GptcliError", "NotFound", "OutOfMemory"), "errors"),
    **dict.fromkeys(("Unsupported", "UsageError"), "errors"),
    "FAMILIES": "families",
    **dict.fromkeys(("Request", "generate", "prepare", "start"), "generation"),
    **dict.fromkeys(("Layout", "look"), "layout"),
    **dict.fromkeys(("Decoder", "Tape"), "model"),
    "Recipe": "recipe",
    **dict.fromkeys(("Candidate", "Card", "Chunk", "Progress", "Prompt", "Step"), "records"),
    "Sampling": "sampling",
    "Tokenizer": "tokens",
    "Training": "train",
    **dict.fromkeys(("Trace", "xray"), "trace"),
}

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
