"""gptcli optimize: the work that is worth doing once, before a model is used often."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.commands import options as o
from gptcli.commands.loading import load_chosen
from gptcli.errors import CheckFailed, GptcliError, UsageError
from gptcli.memory import human
from gptcli.render.output import Output, hears, say, tell

if TYPE_CHECKING:
    from gptcli.compiled import Pass
    from gptcli.few import FewTokens
    from gptcli.model import Decoder

TEXT = (
    "A robot must obey the orders given it by human beings. Once upon a time there was a robot, and it said: 1, 2, 3."
)
EXACT, COARSE = 1e-4, 0.1  # of the largest score: float32, and where either side rounds to the 8 bits of bfloat16


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

    And that of 8 tokens at once, for --lookup and for many texts. It takes a minute to five and needs a C++ compiler.
    What is made is code without weights, kept in ~/.cache/gptcli/compiled: good for every checkpoint of the same shape
    and layers, checked against the model itself, found by itself from then on, and safe to delete. With --quantize it
    is made for rounded weights.
    """
    if model is not None and model_option is not None:
        raise UsageError("the model is given twice, as an argument and with --model", hint="leave one out")
    flags: dict[str, Any] = {"model": model if model_option is None else model_option}
    flags |= {"device": "cpu", "dtype": dtype, "quantize": quantize, "quiet": quiet}
    output = Output()
    checkpoint, settings = load_chosen(flags, revision=revision, allow=allow_config or (), rounded="packed")
    from gptcli import compiled, few
    from gptcli.linear import FEW, exact

    decoder = checkpoint.decoder
    figures: dict[str, Any] = {
        "model": checkpoint.name,
        "dtype": str(checkpoint.dtype).removeprefix("torch."),
        "quantize": settings["quantize"].value,
    }
    if not compiled.takes(decoder):
        reason = "this model's context or window is too short to compile for; it runs as it is"
        _not_compiled(output, figures, reason, as_json)
        return
    before = compiled.tokens_per_second(decoder, None)
    made = _made(decoder, again=again, shown=hears() and not settings["quiet"].value)
    if made is None:
        reason = "no C++ compiler here (g++ or clang++), so nothing was compiled; all works without"
        _not_compiled(output, figures, reason, as_json)
        return
    found, several, seconds = made
    text = checkpoint.tokenizer.encode(TEXT)
    most, largest = compiled.difference(decoder, found, text[: checkpoint.config.n_ctx])
    if not most <= largest * (EXACT if exact(decoder) else COARSE):
        found.file.unlink(missing_ok=True)
        raise CheckFailed(f"the compiled pass is off by {most:.2g} in scores up to {largest:.3g}; it was removed")
    after, together = compiled.tokens_per_second(decoder, found), None
    if several and not few.same(decoder, found, several, text):
        several.file.unlink(missing_ok=True)
        say("gptcli: note: the pass of several tokens gives other numbers than that of one here; it was removed")
    elif several:
        together = FEW / few.seconds(decoder, several)
    figures |= {
        "compiled": True,
        "compiled_s": round(seconds, 1),
        "tokens_per_s_before": round(before, 1),
        "tokens_per_s": round(after, 1),
        "together_per_s": together and round(together, 1),
        "largest_difference": most,
        "largest_score": largest,
        "file": str(found.file),
        "bytes": found.file.stat().st_size,
    }
    if as_json:
        output.json(figures)
    else:
        output.line(_text(figures))


def _made(decoder: Decoder, *, again: bool, shown: bool) -> tuple[Pass, FewTokens | None, float] | None:
    """The pass of one token and that of 8, made where they were not, and the seconds that took; None: no compiler.

    again: though they were. The second is None for a model that has none, or where it cannot be made.
    """
    from gptcli import compiled, few

    found = None if again else compiled.find(decoder)
    several = few.find(decoder) if found else None
    wanted = several is None and few.takes(decoder)
    if found and not wanted:
        return found, several, 0.0
    if not compiled.has_compiler():
        return None
    began = time.perf_counter()
    if found is None:
        with _waiting("compiling one token's pass, half a minute to three", shown):
            compiled.make(decoder)
    if wanted:
        try:
            with _waiting("compiling that of 8 tokens, as long again", shown):
                few.make(decoder)
        except GptcliError as error:
            say(f"gptcli: note: {error.args[0]}; 8 tokens at once go the usual way")
    seconds = time.perf_counter() - began
    found = compiled.find(decoder)
    if found is None:
        raise CheckFailed("what was compiled cannot be loaded here")
    return found, few.find(decoder), seconds


def _not_compiled(output: Output, figures: dict[str, Any], reason: str, as_json: bool) -> None:
    """Says why not; that is no error."""
    say(f"gptcli: note: {reason}")
    if as_json:
        output.json(figures | {"compiled": False, "reason": reason})


@contextmanager
def _waiting(what: str, shown: bool) -> Iterator[None]:
    """A line that says what takes so long, and goes when it is done."""
    if shown:
        tell(f"\x1b[2m{what} ...\x1b[0m")
    try:
        yield
    finally:
        if shown:
            tell("\r\x1b[K")


def _text(f: dict[str, Any]) -> str:
    made = f"compiled in {f['compiled_s']:.0f} s" if f["compiled_s"] else "was compiled before"
    together, same = "", ""
    if f["together_per_s"]:
        together = f"; 8 at once, where they can be, {f['together_per_s']:,.0f}"
        same = ", those of 8 at once to those of one by one to the bit"
    kind = f["dtype"] if f["quantize"] == "none" else f"{f['quantize']}, {f['dtype']}"
    return (
        f"{f['model']} ({kind}) {made}: {f['tokens_per_s_before']:,.0f} -> {f['tokens_per_s']:,.0f} tokens/s, "
        f"{f['tokens_per_s'] / f['tokens_per_s_before']:.1f} times as fast{together}\n"
        f"checked: scores equal to {f['largest_difference']:.1e} of {f['largest_score']:.3g}{same}; "
        f"kept as {f['file']} ({human(f['bytes'])})"
    )
