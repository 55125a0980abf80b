"""Places in a decoder that can be switched off or exchanged, as people write them: L9H4, L7.mlp, L7.attn, L3.

And looks from one token to another, which can be forbidden: L9H4:7/2, at token 7 without token 2; or set to 0 after the
others took what they take: L9H4:7/2=0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from gptcli.errors import UsageError

_PLACE = re.compile(r"L(\d{1,6})(?:H(\d{1,6})|\.(attn|mlp))?", re.IGNORECASE)
_LOOK = re.compile(r"(?P<place>[^:]*):(?P<position>[+-]?\d{1,9})?/(?P<source>[+-]?\d{1,9})(?P<after>=0)?")
_PATCH = re.compile(r"(?P<text>.*)@(?P<place>L[^:@]+?)(?::(?P<position>[+-]?\d{1,9}))?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """A head, the attention or the MLP of a layer, or the whole layer. Counted from 0."""

    layer: int
    part: Literal["head", "attn", "mlp", "layer"]
    head: int = 0

    def __str__(self) -> str:
        if self.part == "head":
            return f"L{self.layer}H{self.head}"
        return f"L{self.layer}" if self.part == "layer" else f"L{self.layer}.{self.part}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """From one token back to another, by a head or by all of a layer's. Negative positions count from the end."""

    place: Place  # a head, or an attention
    position: int | None  # who looks; None: every token that comes after the other
    source: int  # who is looked at
    after: bool = False  # set to 0 after the softmax, not forbidden before it

    def __str__(self) -> str:
        position = "" if self.position is None else self.position
        return f"{self.place}:{position}/{self.source}{'=0' * self.after}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Patch:
    """What another prompt has at a place and a position, to be put there. Negative positions count from the end."""

    text: str
    place: Place
    position: int = -1

    def __str__(self) -> str:
        return f'"{self.text}"@{self.place}:{self.position}'


def read_place(text: str, *, option: str = "--ablate") -> Place:
    """L9H4, L7.mlp, L7.attn or L3. Raises UsageError."""
    match = _PLACE.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{option} {text!r} is not a place in a model",
            hint="write L9H4 for a head, L7.mlp, L7.attn, or L3 for a layer; L9H4:7/2 for one look",
        )
    layer, head, part = int(match[1]), match[2], match[3]
    if head is not None:
        return Place(layer=layer, part="head", head=int(head))
    return Place(layer=layer, part=part.lower() if part else "layer")  # type: ignore[arg-type]  # the pattern's words


def read_ablation(text: str) -> Place | Look:
    """A place; or a look: L9H4:7/2, L7.attn:-1/0, L9H4:/2 of all that come after token 2, L9H4:7/2=0.

    Raises UsageError.
    """
    match = _LOOK.fullmatch(text.strip())
    if match is None:
        return read_place(text)
    place = read_place(match["place"])
    if place.part not in ("head", "attn"):
        raise UsageError(f"--ablate {text!r}: only heads look", hint=f"write L{place.layer}.attn:{text.split(':')[1]}")
    position = int(match["position"]) if match["position"] else None
    return Look(place=place, position=position, source=int(match["source"]), after=match["after"] is not None)


def read_patch(text: str) -> Patch:
    """ "other prompt"@L5:-1, the quotes and the position may be left out. Raises UsageError."""
    match = _PATCH.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--patch {text!r} is not TEXT@PLACE:POSITION", hint="for example 'The big dog'@L5:-1")
    other = match["text"]
    if len(other) > 1 and other[0] == other[-1] and other[0] in "\"'":
        other = other[1:-1]
    position = int(match["position"]) if match["position"] else -1
    return Patch(text=other, place=read_place(match["place"], option="--patch"), position=position)


def check_place(place: Place, *, n_layer: int, n_head: int) -> None:
    """Raises UsageError, with the range, for a layer or a head that the model does not have."""
    if place.layer >= n_layer:
        raise UsageError(f"there is no layer {place.layer}: this model's are L0 to L{n_layer - 1}")
    if place.part == "head" and place.head >= n_head:
        raise UsageError(f"there is no head {place.head} in layer {place.layer}: the heads are H0 to H{n_head - 1}")


def check_position(position: int, n: int, *, option: str) -> int:
    """The position counted from 0. Raises UsageError, with the range, for one outside."""
    if not -n <= position < n:
        raise UsageError(f"{option} {position} is out of range: tokens are 0 to {n - 1}, or -1 to -{n} from the end")
    return position % n


def check_look(look: Look, n: int) -> Look:
    """The look with positions counted from 0. Raises UsageError for tokens that are not there or do not see each other.

    n: tokens of the prompt.
    """
    source = check_position(look.source, n, option=f"--ablate {look}: token")
    if look.position is None:
        return replace(look, source=source)
    position = check_position(look.position, n, option=f"--ablate {look}: token")
    if position < source:
        raise UsageError(f"--ablate {look}: token {position} does not see token {source}, which comes after it")
    if position == 0 and not look.after:
        raise UsageError(f"--ablate {look}: token 0 has nothing else to look at", hint=f"ablate {look.place} instead")
    return replace(look, position=position, source=source)
