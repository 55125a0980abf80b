"""Every error a person can meet, each with its exit code.

    GptcliError        1  something failed while running
    ├── UsageError     2  the command line or a call asks for what cannot be
    ├── NotFound       3  no such model, file or folder
    ├── BadCheckpoint  4  malformed files
    │   └── Unsupported   a sound checkpoint of a kind this tool does not run
    ├── OutOfMemory    5  it would not fit, found before loading
    └── CheckFailed    6  a self-check did not hold

The message is one line: what, where. The hint is what to do next. Neither is markup, and neither is trusted:
whoever prints them passes them through `gptcli.render.safe` first.
"""

from __future__ import annotations


class GptcliError(Exception):
    """What went wrong and where, in one line; `hint` says what to do next."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(GptcliError):
    """The command line, or a call, asks for something that cannot be."""

    exit_code = 2


class NotFound(GptcliError):
    """No such model, file or folder."""

    exit_code = 3


class BadCheckpoint(GptcliError):
    """A malformed checkpoint; the message names the first offending file, key or tensor."""

    exit_code = 4


class Unsupported(BadCheckpoint):
    """A sound checkpoint of a kind that this tool does not run; the message says why."""


class OutOfMemory(GptcliError):
    """The work would not fit into memory; found before anything large was loaded."""

    exit_code = 5


class CheckFailed(GptcliError):
    """A self-check did not hold, so the numbers are not shown."""

    exit_code = 6
