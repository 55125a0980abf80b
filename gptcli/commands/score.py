"""gptcli score: how likely a model finds a text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gptcli.commands import options as o
from gptcli.commands.loading import load_chosen
from gptcli.commands.prompt import read_prompt
from gptcli.errors import CheckFailed, UsageError
from gptcli.render import theme
from gptcli.render.output import Output, hears, tell

if TYPE_CHECKING:
    from gptcli.records import Scored


def score(
    text: o.WholeText = None,
    file: o.File = None,
    model: o.Model = None,
    adapter: o.Adapter = None,
    documents: Annotated[
        bool, typer.Option("--documents", help="Score each part between <|endoftext|> on its own, and all together.")
    ] = False,
    last: Annotated[int | None, typer.Option("--last", metavar="N", min=1, help="Only the last N documents.")] = None,
    stride: Annotated[
        int | None,
        typer.Option("--stride", metavar="N", min=1, help="Score all of a long text, N more tokens at a time."),
    ] = None,
    fail_above: Annotated[
        float | None, typer.Option("--fail-above", metavar="X", help="Exit with 6 if bits per byte are more than X.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, every token with its probability.")] = False,
    color: o.Color = None,
    device: o.Device = None,
    dtype: o.Dtype = None,
    quantize: o.Quantize = None,
    revision: o.Revision = None,
    allow_config: o.AllowConfig = None,
) -> None:
    """Say how likely a model finds a text: perplexity, bits per byte, and at a terminal each token's probability.

    A text is scored from its first token on, behind the model's start token. What is past the context is left out,
    unless --stride is given: then the context moves on by that many tokens at a time, and all of them are scored.
    """
    output = Output()
    whole = read_prompt(text, None, file)
    if not whole:
        raise UsageError("there is no text to score", hint="gptcli score TEXT, or -f FILE, or a pipe")
    if fail_above is not None and math.isnan(fail_above):
        raise UsageError("--fail-above must be a number")
    if last is not None and not documents:
        raise UsageError("--last counts documents, and the text is scored as one", hint="add --documents")
    from gptcli.corpus import END
    from gptcli.score import score as scores

    texts = [part.strip() for part in whole.split(END) if part.strip()] if documents else [whole]
    if not texts:
        raise UsageError("there is no text to score: nothing stands between the separators")

    flags = {"model": model, "color": color, "device": device, "dtype": dtype, "quantize": quantize}
    checkpoint, settings = load_chosen(
        flags, adapter=adapter, revision=revision, allow=allow_config or (), rounded="packed"
    )
    found = list(scores(checkpoint, texts[-last:] if last else texts, stride=stride))
    figures = _figures(found)
    raw = checkpoint.tokenizer.raw
    if as_json:
        tokens = [] if documents else [
            {"id": i, "text": raw(i).decode(errors="replace"), "logprob": logprob}
            for i, logprob in zip(found[0].ids[1:], found[0].logprobs, strict=True)
        ]  # fmt: skip
        output.json({"model": checkpoint.name, **figures, "token_scores": tokens})
    else:
        choice = settings["color"].value
        if not documents and (choice == "prob" or theme.wants_colour(choice, terminal=output.is_terminal)):
            from gptcli.render.stream import legend, tinted

            parts = [(raw(i), math.exp(p)) for i, p in zip(found[0].ids[1:], found[0].logprobs, strict=True)]
            output.line(tinted(raw(found[0].ids[0]), parts) + "\n")
            if hears():
                tell(legend())
        output.line(_line(figures))
    if fail_above is not None and not figures["bits_per_byte"] <= fail_above:
        raise CheckFailed(f"{figures['bits_per_byte']:.4f} bits per byte are more than {fail_above}")


def _figures(found: list[Scored]) -> dict[str, Any]:
    nats, n = sum(s.nats for s in found), sum(len(s.logprobs) for s in found)
    n_bytes = sum(s.n_bytes for s in found)
    return {
        "documents": len(found),
        "tokens": n,
        "bytes": n_bytes,
        "dropped_tokens": sum(s.n_dropped for s in found),
        "nats_per_token": nats / n,
        "perplexity": math.exp(min(700.0, nats / n)),
        "bits_per_byte": nats / math.log(2) / n_bytes if n_bytes else math.inf,
    }


def _line(f: dict[str, Any]) -> str:
    n = f["dropped_tokens"]
    dropped = f", {n:,} tokens past the context left out (--stride scores them)" if n else ""
    return (
        f"{f['bits_per_byte']:.4f} bits per byte, perplexity {_perplexity(f['perplexity'])} a token, "
        f"{f['nats_per_token']:.4f} nats a token ({f['documents']:,} document{'s' * (f['documents'] != 1)}, "
        f"{f['tokens']:,} tokens, {f['bytes']:,} bytes{dropped})"
    )


def _perplexity(x: float) -> str:
    """12.35, 59,426, 1.2e+12."""
    return f"{x:,.0f}" if 1000 <= x < 1e9 else f"{x:.4g}"
