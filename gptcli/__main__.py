"""Where the program starts: gptcli, and python -m gptcli. Takes care of Ctrl-C before anything slow is imported."""

from __future__ import annotations

import os
import signal
import sys
import threading
import warnings
from contextlib import suppress
from types import FrameType
from typing import NoReturn


def main() -> None:
    """Runs the program and ends the process."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where a parent has us ignore it
        signal.signal(signal.SIGINT, _interrupt)
    # torch can do without numpy, and so can we where nothing is saved; it says on every start that it has to
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    from gptcli.cli import run

    code = run(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # all is said; taking the libraries down is not to be disturbed
    _leave(code)


def _leave(code: int) -> NoReturn:
    """Ends the process; one that holds torch at once, as to take its modules down one by one takes 0.1 s."""
    if "torch" in sys.modules and threading.active_count() == 1:
        with suppress(OSError, ValueError):  # a stream that cannot be flushed is Python's to report
            for stream in (sys.stdout, sys.stderr):
                if stream is not None:
                    stream.flush()
            os._exit(code)
    sys.exit(code)


def _interrupt(number: int, frame: FrameType | None) -> None:
    """Ctrl-C. While a library is imported it ends the process at once: some swallow the exception, or crash on it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            if sys.stderr is not None and sys.stderr.isatty():
                sys.stderr.write("\r\x1b[K")
                sys.stderr.flush()
            os._exit(130)
        frame = frame.f_back
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
