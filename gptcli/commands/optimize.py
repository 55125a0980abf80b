"""gptcli optimize: the work that is worth doing once, before a model is used often."""

from __future__ import annotations

import json
import shutil
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.commands import options as o
from gptcli.commands.loading import load_chosen
from gptcli.errors import CheckFailed
from gptcli.memory import human
from gptcli.render.output import Output, hears, say, tell

if TYPE_CHECKING:
    from gptcli.checkpoint import Checkpoint

TEXT = (
    "A robot must obey the orders given it by human beings. Once upon a time there was a robot, and it said: 1, 2, 3."
)
BOUNDS = {"float32": 1e-4, "bfloat16": 0.1, "float16": 0.02}  # of the largest score; bfloat16 has 8 bits of each number


def optimize(
    model: Annotated[
        str | None, typer.Argument(metavar="[MODEL]", show_default=False, help="As for --model of generate.")
    ] = None,
    model_option: o.Model = None,
    quantize: o.Quantize = None,
    dtype: o.Dtype = None,
    revision: o.Revision = None,
    allow_config: o.AllowConfig = None,
    again: Annotated[bool, typer.Option("--again", help="Compile even if that was done before.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    quiet: o.Quiet = None,
) -> None:
    """Compile the pass of one token for this machine, once, so that every later answer comes faster.

    It takes half a minute to two minutes and needs a C++ compiler. What is made is code without weights, kept in
    ~/.cache/gptcli/compiled: good for every checkpoint of the same shape, checked against the model itself, found by
    itself from then on, and safe to delete. With --quantize it is made for rounded weights.
    """
    flags: dict[str, Any] = {"model": model if model_option is None else model_option}
    flags |= {"device": "cpu", "dtype": dtype, "quantize": quantize, "quiet": quiet}
    output, loud = Output(), not quiet
    checkpoint, settings = load_chosen(flags, revision=revision, allow=allow_config or (), rounded="packed")
    from gptcli import compiled

    decoder = checkpoint.decoder
    if not compiled.takes(decoder):
        say("gptcli: note: this model's context or window is too short to compile for; it runs as it is")
        return
    found, seconds = None if again else compiled.find(decoder), 0.0
    before = compiled.tokens_per_second(decoder, None)
    if found is None:
        if not has_compiler():
            say("gptcli: note: no C++ compiler here (g++ or clang++), so nothing was compiled; all works without")
            return
        if loud and hears():
            tell("\x1b[2mcompiling, half a minute to two minutes ...\x1b[0m")
        began = time.perf_counter()
        try:
            compiled.make(decoder)
        finally:
            if loud and hears():
                tell("\r\x1b[K")
        seconds = time.perf_counter() - began
        found = checked(checkpoint, compiled.find(decoder))
    after = compiled.tokens_per_second(decoder, found)
    most, largest = compiled.difference(decoder, found, checkpoint.tokenizer.encode(TEXT)[: checkpoint.config.n_ctx])
    figures = {
        "model": checkpoint.name,
        "dtype": str(checkpoint.dtype).removeprefix("torch."),
        "quantize": settings["quantize"].value,
        "compiled_s": round(seconds, 1),
        "tokens_per_s_before": round(before, 1),
        "tokens_per_s": round(after, 1),
        "largest_difference": most,
        "largest_score": largest,
        "file": str(found.file),
        "bytes": found.file.stat().st_size,
    }
    output.line(json.dumps(figures, ensure_ascii=False) if as_json else _text(figures))


def has_compiler() -> bool:
    """Whether inductor will find a C++ compiler: $CXX, or one of the usual names."""
    import os

    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++", "g++"))


def checked(checkpoint: Checkpoint, found: Any) -> Any:
    """The pass, if its scores are the model's own to within rounding; else it is removed. Raises CheckFailed."""
    from gptcli import compiled

    if found is None:
        raise CheckFailed("what was compiled cannot be loaded here")
    ids = checkpoint.tokenizer.encode(TEXT)[: checkpoint.config.n_ctx]
    most, largest = compiled.difference(checkpoint.decoder, found, ids)
    bound = BOUNDS["float32" if str(checkpoint.dtype) == "torch.float32" and not _rounded(checkpoint) else "bfloat16"]
    if not most <= bound * largest:
        found.file.unlink(missing_ok=True)
        raise CheckFailed(f"the compiled pass is off by {most:.2g} in scores up to {largest:.3g}; it was removed")
    return found


def _rounded(checkpoint: Checkpoint) -> bool:
    return any(True for _ in checkpoint.decoder.buffers())


def _text(f: dict[str, Any]) -> str:
    made = f"compiled in {f['compiled_s']:.0f} s" if f["compiled_s"] else "was compiled before"
    kind = f["dtype"] if f["quantize"] == "none" else f"{f['quantize']}, {f['dtype']}"
    return (
        f"{f['model']} ({kind}) {made}: {f['tokens_per_s_before']:.0f} -> {f['tokens_per_s']:.0f} tokens/s, "
        f"{f['tokens_per_s'] / f['tokens_per_s_before']:.1f} times as fast\n"
        f"checked: scores equal to {f['largest_difference']:.1e} of {f['largest_score']:.3g}; "
        f"kept as {f['file']} ({human(f['bytes'])})"
    )
