"""Examples before the prompt, for `gptcli generate`: read from the command line, made to fit, said when some do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from gptcli.commands.loading import look_chosen
from gptcli.errors import UsageError
from gptcli.priming import FORMATS, Primed, primed, read_examples
from gptcli.records import Prompt
from gptcli.render import theme
from gptcli.render.output import Output, say
from gptcli.render.stream import TextView
from gptcli.settings import Setting

if TYPE_CHECKING:
    from gptcli.pairs import Pair
    from gptcli.tokens import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Priming:
    """What to put before every case, and how."""

    pairs: Sequence[Pair]
    form: str

    @classmethod
    def asked(cls, files: Sequence[str] | None, written: Sequence[str] | None, form: str | None) -> Priming | None:
        """What the command line asks for; None for plain generation. Raises UsageError, GptcliError, NotFound."""
        if not files and not written:
            if form is not None:
                raise UsageError("--format is for --examples", hint='give --examples FILE, or --example "in => out"')
            return None
        if form is not None and form not in FORMATS:
            raise UsageError(f"--format {form!r} is not known", hint=f"choose one of {', '.join(FORMATS)}")
        return cls(pairs=read_examples(files or (), written or ()), form=form or "arrow")

    def prompts(
        self,
        cases: Sequence[str],
        settings: Mapping[str, Setting],
        *,
        tokenizer: Tokenizer,
        n_ctx: int,
        bos: bool | None,
    ) -> list[Primed]:
        """A prompt for each case, with room for an answer of --max-tokens, or of half the context."""
        longest = settings["max_tokens"].value
        room = n_ctx - min(longest if longest >= 0 else n_ctx, n_ctx // 2)
        newest = self.pairs[-n_ctx:]  # no example is shorter than a token
        found = [
            primed(newest, case, form=self.form, fits=lambda text: len(tokenizer.encode(text, bos=bos)) <= room)
            for case in cases
        ]
        short = [len(self.pairs) - prompt.n_used for prompt in found if prompt.n_used < len(self.pairs)]
        if short and not settings["quiet"].value:
            n = f"{max(short):,} oldest of {len(self.pairs):,}"
            which = f"in {len(short):,} of {len(cases):,} cases up to the" if len(cases) > 1 else "the"
            say(f"gptcli: note: {which} {n} examples were left out to fit the context of {n_ctx:,} tokens")
        return found


def with_stops(settings: Mapping[str, Setting], stops: Sequence[str]) -> dict[str, Setting]:
    """The settings with more texts that end an answer."""
    stop = settings["stop"]
    return {**settings, "stop": dataclasses.replace(stop, value=(*stop.value, *stops))}


def show(
    output: Output,
    priming: Priming | None,
    text: str,
    cases: Sequence[str],
    flags: Mapping[str, Any],
    *,
    adapter: str | None,
    revision: str | None,
    allow: Sequence[str],
    bos: bool | None,
) -> None:
    """Every prompt as the model would be given it, made to fit its context; the weights are not read."""
    from gptcli.tokens import Tokenizer

    layout, settings = look_chosen(flags, adapter=adapter, revision=revision, allow=allow)
    prompts = [text]
    if priming:
        tokenizer = Tokenizer.from_folder(layout.source.folder, n_vocab=layout.config.n_vocab)
        found = priming.prompts(cases, settings, tokenizer=tokenizer, n_ctx=layout.config.n_ctx, bos=bos)
        prompts = [each.text for each in found]
    coloured = theme.wants_colour(settings["color"].value, terminal=output.is_terminal)
    view = TextView(output, look="article" if coloured else "plain", echo=True)
    for i, prompt in enumerate(prompts):
        if i:
            output.write("\n" * (2 - output.at_line_start))
        view.begin(Prompt(text=prompt, ids=(), raws=()))
        view.end()
