"""Prompt and completion, line by line of a .jsonl file: what fine-tuning for a task learns from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gptcli.corpus import rows
from gptcli.errors import GptcliError

FIELDS = ("prompt", "completion")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One example of a task: the prompt is given, the completion is to be learned."""

    prompt: str
    completion: str


def are_pairs(name: str, fields: tuple[str, str] = FIELDS) -> bool:
    """Whether a file holds pairs: its first line says so."""
    if not name.endswith(".jsonl"):
        return False
    first = next(iter(rows(name)), (0, {}))[1]
    return "text" not in first or fields[0] in first


def read_pairs(files: Iterable[str], fields: tuple[str, str] = FIELDS) -> list[Pair]:
    """All pairs of the files. Raises GptcliError that names the line of one that is none, or if all is empty."""
    found = list[Pair]()
    for name in files:
        for number, row in rows(name):
            prompt, completion = (row.get(field) for field in fields)
            for field, value in zip(fields, (prompt, completion), strict=True):
                if not isinstance(value, str) or (field == fields[1] and not value):
                    raise GptcliError(
                        f'{name}: line {number}: there is no "{field}"',
                        hint=f'a line is {{"{fields[0]}": "...", "{fields[1]}": "..."}}; finetune has --fields',
                    )
            found.append(Pair(prompt=str(prompt), completion=str(completion)))
    if not found:
        raise GptcliError("the data is empty", hint=f'a .jsonl file with "{fields[0]}" and "{fields[1]}" in each line')
    return found
