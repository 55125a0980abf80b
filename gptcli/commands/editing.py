"""--ablate and --patch, the same in xray and generate: read early, checked against the model, made into edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptcli.errors import UsageError
from gptcli.places import Look, Patch, Place, check_look, check_place, check_position, read_ablation, read_patch

if TYPE_CHECKING:
    from gptcli.checkpoint import Checkpoint
    from gptcli.records import Prompt
    from gptcli.trace import Trace
    from gptcli.whatif import Edits


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be switched off or exchanged, as the command line says it."""

    ablate: tuple[Place, ...]
    looks: tuple[Look, ...]
    patches: tuple[Patch, ...]
    to_mean: bool

    @classmethod
    def read(cls, ablate: Sequence[str] | None, patch: Sequence[str] | None, *, mean: bool) -> Wanted:
        """Raises UsageError for what is no place."""
        off = [read_ablation(text) for text in ablate or ()]
        return cls(
            ablate=tuple(x for x in off if isinstance(x, Place)),
            looks=tuple(x for x in off if isinstance(x, Look)),
            patches=tuple(map(read_patch, patch or ())),
            to_mean=mean,
        )

    def __bool__(self) -> bool:
        return bool(self.ablate or self.looks or self.patches)

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(map(str, (*self.ablate, *self.looks, *self.patches)))

    @property
    def how(self) -> str:
        """A word for each kind of edit, as in `WhatIf`."""
        kinds = {look.after for look in self.looks}
        looks = "looks" if len(kinds) == 2 else "look=0" if True in kinds else "look"
        words = (("mean" if self.to_mean else "zero", self.ablate), (looks, self.looks), ("patch", self.patches))
        return " ".join(word for word, these in words if these)

    def check(self, n_layer: int, n_head: int) -> None:
        """Raises UsageError, with the range, for a layer or head that is not there."""
        named = [look.place for look in self.looks] + [patch.place for patch in self.patches]
        for place in (*self.ablate, *named):
            check_place(place, n_layer=n_layer, n_head=n_head)

    def edits(
        self, checkpoint: Checkpoint, prompt: Prompt, means: Trace | None = None, *, bos: bool | None = None
    ) -> Edits:
        """The tape that does it, for this prompt. means: the prompt's own trace, where there is one already.

        bos: whether other prompts begin with the start token, as in `prepare`.
        """
        from gptcli.generation import prepare
        from gptcli.trace import Trace, xray
        from gptcli.whatif import Edits, Exchange

        self.check(checkpoint.config.n_layer, checkpoint.config.n_head)
        if self.to_mean:
            refuse_mean_of_one(len(prompt.ids))
            means = means or xray(checkpoint, prompt.ids)
        looks = self.looks_in(prompt)
        exchanges, others = [], dict[str, Trace]()
        for patch in self.patches:
            if patch.text not in others:
                others[patch.text] = xray(checkpoint, prepare(checkpoint, patch.text, overflow="error", bos=bos).ids)
            other = others[patch.text]
            here = check_position(patch.position, len(prompt.ids), option="--patch at position")
            there = check_position(patch.position, other.n_positions, option="--patch from position")
            exchanges.append(Exchange(place=patch.place, position=here, other=other, other_position=there))
        return Edits(checkpoint.decoder, self.ablate, exchanges, looks=looks, means=means if self.to_mean else None)

    def looks_in(self, prompt: Prompt) -> list[Look]:
        """The looks with positions counted from 0. Raises UsageError for tokens that this prompt does not have."""
        return [check_look(look, len(prompt.ids)) for look in self.looks]


def refuse_mean_of_one(n: int) -> None:
    """Raises UsageError for a prompt of n tokens of which none is left for a mean."""
    if n < 2:
        raise UsageError(
            "--mean is over the prompt without its first token, and this one has no other",
            hint="a longer prompt, or without --mean: then parts are set to 0",
        )


def refuse_mean_alone(wanted: Wanted, *, mean: bool, sweep: bool = False) -> None:
    """Raises UsageError for --mean with nothing that it could be of."""
    if mean and not wanted.ablate and not sweep:
        raise UsageError("--mean says what a part is set to, and none is named", hint="add --ablate L3H1, or --sweep")
