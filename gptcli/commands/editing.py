"""--ablate and --patch, the same in xray and generate: read early, checked against the model, made into edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gptcli.errors import UsageError
from gptcli.places import Patch, Place, check_place, check_position, read_patch, read_place

if TYPE_CHECKING:
    from gptcli.checkpoint import Checkpoint
    from gptcli.records import Prompt
    from gptcli.trace import Trace
    from gptcli.whatif import Edits


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be switched off or exchanged, as the command line says it."""

    ablate: tuple[Place, ...]
    patches: tuple[Patch, ...]
    to_mean: bool

    @classmethod
    def read(cls, ablate: Sequence[str] | None, patch: Sequence[str] | None, *, mean: bool) -> Wanted:
        """Raises UsageError for what is no place."""
        places, patches = tuple(map(read_place, ablate or ())), tuple(map(read_patch, patch or ()))
        return cls(ablate=places, patches=patches, to_mean=mean)

    def __bool__(self) -> bool:
        return bool(self.ablate or self.patches)

    @property
    def words(self) -> tuple[str, ...]:
        return (*map(str, self.ablate), *map(str, self.patches))

    @property
    def how(self) -> str:
        return "" if not self.ablate else "mean" if self.to_mean else "zero"

    def check(self, n_layer: int, n_head: int) -> None:
        """Raises UsageError, with the range, for a layer or head that is not there."""
        for place in (*self.ablate, *(patch.place for patch in self.patches)):
            check_place(place, n_layer=n_layer, n_head=n_head)

    def edits(self, checkpoint: Checkpoint, prompt: Prompt, means: Trace | None = None) -> Edits:
        """The tape that does it, for this prompt. means: the prompt's own trace, where there is one already."""
        from gptcli.trace import Trace, xray
        from gptcli.whatif import Edits, Exchange

        self.check(checkpoint.config.n_layer, checkpoint.config.n_head)
        if self.to_mean and means is None:
            means = xray(checkpoint, prompt.ids)
        exchanges, others = [], dict[str, Trace]()
        for patch in self.patches:
            if patch.text not in others:
                others[patch.text] = xray(checkpoint, patch.text)
            other = others[patch.text]
            here = check_position(patch.position, len(prompt.ids), option="--patch at position")
            there = check_position(patch.position, other.n_positions, option="--patch from position")
            exchanges.append(Exchange(place=patch.place, position=here, other=other, other_position=there))
        return Edits(checkpoint.decoder, self.ablate, exchanges, means=means if self.to_mean else None)


def refuse_mean_alone(wanted: Wanted, *, mean: bool, sweep: bool = False) -> None:
    """Raises UsageError for --mean with nothing that it could be of."""
    if mean and not wanted.ablate and not sweep:
        raise UsageError("--mean says what a part is set to, and none is named", hint="add --ablate L3H1, or --sweep")
