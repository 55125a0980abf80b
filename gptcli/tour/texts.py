"""The words of the tour, one file for each language; what a text leaves open in {braces} is computed."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gptcli.errors import UsageError

HERE = Path(__file__).parent
LANGUAGES = ("en", "ru")


@dataclass(frozen=True, kw_only=True)
class Texts:
    """One language: the frame's words, and title and text of each page."""

    words: Mapping[str, str]
    titles: Mapping[str, str]
    bodies: Mapping[str, str]


def texts(language: str) -> Texts:
    """Raises UsageError for a language that is not there."""
    if language not in LANGUAGES:
        raise UsageError(f"there is no tour in {language!r}", hint=f"choose one of {', '.join(LANGUAGES)}")
    values = tomllib.loads((HERE / f"{language}.toml").read_text(encoding="utf-8"))
    pages = {key: value for key, value in values.items() if isinstance(value, dict)}
    return Texts(
        words={key: value for key, value in values.items() if isinstance(value, str)},
        titles={key: page["title"] for key, page in pages.items()},
        bodies={key: " ".join(page["text"].split()) for key, page in pages.items()},
    )
