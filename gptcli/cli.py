"""The program: names the commands, and answers every error with one line and its exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from gptcli.commands.options import ALIASES
from gptcli.errors import GptcliError
from gptcli.render.output import ClosedPipe, Output, say, silence
from gptcli.render.safe import one_line

COMMANDS = (  # each a function of its own name in gptcli.commands
    *("generate", "batch", "xray", "score", "examples", "train", "finetune", "merge", "diff", "optimize"),
    *("tokenize", "info", "families"),
    *("tour", "params", "budget", "new"),
)
HIDDEN = {"inspect": "info"}  # other tools' names for the same
ELSEWHERE = {"help": "--help", "models": "families", "list": "families", "chat": "generate", "run": "generate"}
OF_THE_PROGRAM = ("--help", "-h", "--version", "--install-completion", "--show-completion")


@contextmanager
def _printed() -> Iterator[None]:
    """Help, which typer writes. Raises GptcliError, as Output does, where standard output is closed or full."""
    Output()
    _fold_names()
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # the text has signs that ASCII has not
    try:
        yield
    except OSError as error:
        silence()
        raise GptcliError(f"cannot write to standard output: {error.strerror}") from None


def _fold_names() -> None:
    """Has typer break options between their names, or fold a name, in a narrow terminal: it would cut them off."""
    from rich.highlighter import Highlighter
    from rich.text import Text

    class Folding(Highlighter):
        def __init__(self, colours: Highlighter) -> None:
            self._colours = colours

        def highlight(self, text: Text) -> None:
            text.plain, text.overflow = text.plain.replace(",-", ", -"), "fold"
            self._colours.highlight(text)

    rich_utils: Any = import_module("typer.rich_utils")
    for name, kind in (("highlighter", "OptionHighlighter"), ("negative_highlighter", "NegativeOptionHighlighter")):
        if found := getattr(rich_utils, kind, None):  # a typer that has it otherwise cuts, as it always did
            setattr(rich_utils, name, Folding(found()))


class _Group(TyperGroup):
    def format_help(self, ctx: Any, formatter: Any) -> None:
        with _printed():
            super().format_help(ctx, formatter)


class _Command(TyperCommand):
    def format_help(self, ctx: Any, formatter: Any) -> None:
        with _printed():
            super().format_help(ctx, formatter)


def program(name: str | None = None) -> typer.Typer:
    """The whole program, or as much of it as one command needs: importing the others takes time that a person sees."""
    app = typer.Typer(
        cls=_Group,
        help="Generate text with any GPT-type checkpoint, and see how.\n\n`gptcli TEXT` means `gptcli generate TEXT`.",
        pretty_exceptions_enable=False,
        context_settings={
            "help_option_names": ["-h", "--help"],
            "token_normalize_func": lambda name: ALIASES.get(name, name),  # asked about names, not about texts
        },
    )
    app.callback()(_program)
    for command in (name,) if name in COMMANDS else (*COMMANDS, *HIDDEN):
        function = HIDDEN.get(command, command)
        module = import_module(f"gptcli.commands.{function}")
        body = getattr(module, function)
        app.command(command, cls=_Command, help=_paragraphs(body.__doc__), hidden=command in HIDDEN)(body)
    return app


def _paragraphs(doc: str | None) -> str:
    """A docstring for the help, which breaks lines as wide as the terminal is, and not where the source does."""
    return "\n\n".join(" ".join(part.split()) for part in (doc or "").split("\n\n"))  # none under python -OO


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed

        try:
            Output().line(f"gptcli {installed('gptcli')}")
        except PackageNotFoundError:  # run from a checkout
            Output().line("gptcli, not installed")
        raise typer.Exit


def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def with_default(arguments: list[str]) -> list[str]:
    """`gptcli "text"`, `gptcli -m DIR` and `echo text | gptcli` are short for `gptcli generate ...`."""
    if not arguments:
        piped = sys.stdin is not None and not sys.stdin.isatty() and "_GPTCLI_COMPLETE" not in os.environ
        return ["generate"] if piped else ["--help"]
    if arguments[0] not in (*COMMANDS, *HIDDEN, *OF_THE_PROGRAM):
        arguments = ["generate", *arguments]
    return arguments


def misspelled(arguments: list[str]) -> str:
    """The command that may have been meant, where a single word that is none stands in its place; else nothing."""
    word = arguments[0] if arguments else ""
    if not (word.isascii() and word.isalpha() and word.islower()) or word in (*COMMANDS, *HIDDEN):
        return ""
    if word in ELSEWHERE:
        return ELSEWHERE[word]
    from difflib import get_close_matches  # here: it takes a moment

    return next(iter(get_close_matches(word, COMMANDS, 1, 0.7)), "")


def _quiet() -> bool:
    from gptcli.settings import settle

    return bool(settle({})["quiet"].value)


def run(arguments: list[str]) -> int:
    """Runs one command line and returns its exit code; errors become one line on standard error."""
    meant = ""
    if len(os.environ.get("COLUMNS", "")) > 4:  # wider than any screen; every blank would be written
        os.environ["COLUMNS"] = "9999"
    try:
        word, meant = arguments[:1], misspelled(arguments)
        arguments = with_default(arguments)
        app = program(None if "_GPTCLI_COMPLETE" in os.environ else arguments[0])
        code = int(app(arguments, prog_name="gptcli", standalone_mode=False) or 0)
        if meant and not {"-q", "--quiet"} & {*arguments} and not _quiet():
            say(f"gptcli: note: {word[0]!r} is not a command, so it was a prompt; did you mean gptcli {meant}?")
        return code
    except ClosedPipe:
        return 141
    except BrokenPipeError:
        silence()
        return 141
    except (KeyboardInterrupt, typer.Abort):
        return 130
    except SystemExit as error:  # typer's own handling of a closed pipe, and completion
        if isinstance(error.__context__, BrokenPipeError):
            silence()
            return 141
        raise
    except BaseException as error:
        return _answered(error, meant)


def _answered(error: BaseException, meant: str) -> int:
    """One line that says what went wrong, and the exit code. meant: the command that may have been misspelled."""
    match error:
        case GptcliError():
            return _report(error, error.message, error.hint, error.exit_code)
        case _ if isinstance(error, _UsageProblem):
            command = error.ctx.command_path if error.ctx else "gptcli"
            hint = f"did you mean gptcli {meant}?" if meant else f"see {command} --help"
            return _report(error, error.format_message().rstrip("."), hint, 2)
        case MemoryError():
            return _report(error, "out of memory", SMALLER, 5)
        case RuntimeError() if "not enough memory" in str(error) or "tried to allocate" in str(error):  # torch's
            return _report(error, "out of memory", SMALLER, 5)
        case OSError():  # a name that is too long, a folder that is not ours to look into
            where = f"{os.fsdecode(error.filename)[:200]}: " if isinstance(error.filename, str | bytes) else ""
            return _report(error, f"{where}{error.strerror or error}", "check its name and who may read or write it", 1)
        case UnicodeEncodeError() if error.reason == "surrogates not allowed":
            return _report(error, "a name that is not UTF-8 cannot be written down here", "rename it", 2)
        case Exception():
            message = f"unexpected {type(error).__name__}: {error}"
            return _report(error, message, "this is a fault of gptcli; GPTCLI_DEBUG=1 shows where", 1)
        case _ if type(error).__name__ == "PanicException":  # of a library in Rust; no Exception
            return _report(error, f"the tokenizers library failed: {error}", "the tokenizer may be damaged", 4)
    raise error


SMALLER = "try a smaller model, a shorter text, or --dtype bfloat16"
_UsageProblem: Any = typer.BadParameter.__mro__[1]  # click's UsageError, which typer carries and does not export


def _report(error: BaseException, message: str, hint: str, exit_code: int) -> int:
    if os.environ.get("GPTCLI_DEBUG") == "1":
        import traceback

        say("".join(traceback.format_exception(error)), end="")
    say(f"gptcli: error: {one_line(message)}")
    if hint:
        say(f"hint: {one_line(hint)}")
    return exit_code
