"""The model that a command runs, with its adapter, and the settings in force with what their makers chose."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from gptcli.ahead import read_ahead
from gptcli.render.output import hears, tell
from gptcli.settings import Setting, settle
from gptcli.strict_json import no_garbage_collection

if TYPE_CHECKING:
    from gptcli.checkpoint import Checkpoint
    from gptcli.layout import Layout
    from gptcli.tokens import Tokenizer

TOKENIZER = "tokenizer.json"


def look_chosen(
    flags: Mapping[str, Any], *, adapter: str | None = None, revision: str | None = None, allow: Sequence[str] = ()
) -> tuple[Layout, dict[str, Setting]]:
    """What is there, without its weights. flags: of OPTIONS. Raises NotFound and its like."""
    from gptcli.layout import generation_config, look
    from gptcli.model_choice import adapter_folder, chosen_model

    layout = look(chosen_model(settle(flags)), revision=revision, allow=allow)
    wishes = generation_config(adapter_folder(adapter)) if adapter is not None else {}
    return layout, settle(flags, layout.generation_config | wishes)


def chosen_tokenizer(settings: Mapping[str, Setting], revision: str | None) -> Tokenizer:
    """The tokenizer of the model; a tokenizer.json, or a folder with nothing else in it, does as well."""
    from gptcli.folder import resolve
    from gptcli.model_choice import chosen_model
    from gptcli.tokens import Tokenizer

    path = Path(name := chosen_model(settings))
    folder = path.parent if path.name == TOKENIZER and path.is_file() else path
    return Tokenizer.from_folder(folder if (folder / TOKENIZER).is_file() else resolve(name, revision=revision).folder)


def load_chosen(
    flags: Mapping[str, Any],
    *,
    adapter: str | None = None,
    revision: str | None = None,
    allow: Sequence[str] = (),
    rounded: Literal["never", "packed", "whole"] = "never",
) -> tuple[Checkpoint, dict[str, Setting]]:
    """The checkpoint; a person who waits is told so.

    rounded: whether --quantize counts here, and as what: for the fast kernels, or as ordinary matrices to look into.
    """
    waiting = hears() and not settle(flags)["quiet"].value

    def wait(what: str) -> None:
        if waiting:
            tell(f"\r\x1b[2m{what} ...\x1b[0m")

    wait("loading")
    try:
        layout, settings = look_chosen(flags, adapter=adapter, revision=revision, allow=allow)
        bits: Any = settings["quantize"].value if rounded != "never" else "none"
        now = bits if adapter is None else "none"  # an adapter is added before anything is rounded
        device, dtype = settings["device"].value, settings["dtype"].value
        ahead = read_ahead(layout, device=device, dtype=dtype) if now == "none" else None
        with no_garbage_collection():  # what torch makes when it is imported stays: looking through it takes 0.2 s
            from gptcli.checkpoint import load_layout
        gc.freeze()
        rounding = f"rounding to {bits.removeprefix('int')} bits"
        checkpoint = load_layout(
            layout, device=device, dtype=dtype, quantize=now, ahead=ahead, on_rounding=lambda: wait(f"{rounding}, once")
        )
        if adapter is not None:
            from gptcli.lora import apply
            from gptcli.model_choice import adapter_folder

            apply(checkpoint, adapter_folder(adapter))
        if bits != now or (bits != "none" and rounded == "whole"):
            from gptcli.quantize import quantize, whole

            if bits != now:
                wait(rounding)
                quantize(checkpoint.decoder, bits)
            if rounded == "whole":
                whole(checkpoint.decoder)
    finally:
        if waiting:
            tell("\r\x1b[K")
    return checkpoint, settings
