"""Priming: examples of a task, then a new case, and the model goes on in the same way. No weight changes.

The formats are those of Brown et al. (2020, Section 2.4 and Appendix G); a separator that no text contains stands
between examples, and the answer ends where the model writes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gptcli.corpus import rows
from gptcli.errors import GptcliError, NotFound, UsageError
from gptcli.pairs import FIELDS, Pair, read_pairs

KNOWN_FIELDS = (FIELDS, ("description", "code"), ("input", "output"), ("question", "answer"), ("source", "target"))
MARK = "\n###\n"  # where even blank lines are part of the texts


@dataclass(frozen=True, kw_only=True, slots=True)
class Format:
    """How a case is written: before it, between it and its answer; which separators may stand between examples."""

    before: str = ""
    between: str
    separators: tuple[str, ...] = ("\n", "\n\n", MARK)
    also_stops: tuple[str, ...] = ()


FORMATS = {
    "arrow": Format(between=" =>"),
    "equals": Format(between=" ="),
    "qa": Format(before="Q: ", between="\n\nA:", separators=("\n\n", MARK), also_stops=("\nQ:",)),
    "plain": Format(between="", separators=("\n\n", MARK)),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Primed:
    """A prompt that ends where the answer begins, the texts that end it, and how many examples there was room for."""

    text: str
    stops: tuple[str, ...]
    n_used: int


def primed(pairs: Sequence[Pair], case: str, *, form: str, fits: Callable[[str], bool] = lambda text: True) -> Primed:
    """The newest examples that fit, oldest first, then the case. Raises UsageError."""
    if form not in FORMATS:
        raise UsageError(f"format {form!r} is not known", hint=f"choose one of {', '.join(FORMATS)}")
    shape = FORMATS[form]
    exact = form == "plain"  # texts as they are: what a model was fine-tuned on must not change by a space
    texts = [
        (pair.prompt, pair.completion) if exact else (pair.prompt.strip(), pair.completion.strip()) for pair in pairs
    ]
    case = case if exact else case.strip()
    used = [case.strip(), *(part.strip("\n") for text in texts for part in text)]
    separator = next((mark for mark in shape.separators if not any(mark in text for text in used)), None)
    if separator is None:
        raise UsageError(f"the examples contain {MARK!r}, which would have to stand between them")
    gap = shape.between + (" " if shape.between else "\n")
    if exact and texts and all(completion[:1].isspace() for _, completion in texts):
        gap = ""  # the answers bring it along
    shown = [f"{shape.before}{prompt}{gap}{completion}{separator}" for prompt, completion in texts]
    tail = f"{shape.before}{case}{gap.rstrip(' ')}"  # most models write a space together with the next word
    n = _most(len(shown), lambda n: fits("".join(shown[len(shown) - n :]) + tail))
    return Primed(
        text="".join(shown[len(shown) - n :]) + tail,
        stops=(separator, *shape.also_stops),
        n_used=n,
    )


def _most(n: int, fits: Callable[[int], bool]) -> int:
    """The largest number up to n that fits, found without trying all of a large file."""
    low, high = 0, 1
    while high <= n and fits(high):
        low, high = high, 2 * high
    high = min(high, n + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


# --- where examples come from ----------------------------------------------------------------------------------------


def read_examples(files: Sequence[str], written: Sequence[str] = ()) -> list[Pair]:
    """Pairs of .jsonl and .tsv files, then those written as "in => out". Raises GptcliError that names the line."""
    found = list[Pair]()
    for name in files:
        found += _tsv(name) if name.endswith(".tsv") else _jsonl(name)
    for text in written:
        prompt, arrow, completion = text.partition("=>")
        if not arrow or not prompt.strip() or not completion.strip():
            raise UsageError(f"--example {text!r} is not an example", hint='for example "cheese => fromage"')
        found.append(Pair(prompt=prompt.strip(), completion=completion.strip()))
    return found


def _jsonl(name: str) -> list[Pair]:
    if not name.endswith((".jsonl", ".json")):
        raise UsageError(f"{name}: examples are .jsonl or .tsv files", hint='or --example "in => out"')
    if not Path(name).is_file():
        raise NotFound(f"no such file: {name}")
    first = next(iter(rows(name)), (0, {}))[1]
    return read_pairs([name], next((fields for fields in KNOWN_FIELDS if set(fields) <= first.keys()), FIELDS))


def _tsv(name: str) -> list[Pair]:
    """Two columns, the case and its answer."""
    found = list[Pair]()
    try:
        lines = Path(name).read_bytes().decode("utf-8-sig").split("\n")
    except FileNotFoundError:
        raise NotFound(f"no such file: {name}") from None
    except UnicodeDecodeError as error:
        raise GptcliError(f"{name} is not UTF-8: byte 0x{error.object[error.start]:02x} at {error.start}") from None
    except OSError as error:
        raise GptcliError(f"{name}: cannot be read: {error.strerror or error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        columns = line.removesuffix("\r").split("\t")
        if len(columns) != 2 or not all(column.strip() for column in columns):
            raise GptcliError(f"{name}: line {number} is not two texts with a tab between", hint="one example a line")
        found.append(Pair(prompt=columns[0], completion=columns[1]))
    if not found:
        raise GptcliError(f"{name}: there is no example in it", hint="one a line, two texts with a tab between")
    return found
