"""What was used and is free again goes back to the kernel."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest
from programs import environment

from gptcli import memory

HOLES = """
import torch
from gptcli.memory import give_back

def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS:")).split()[1]) * 1024

small = [torch.ones(2000) for _ in range(4000)]  # 32 MB
last = small[-1]  # above all others, so that the C library does not give them back by itself
full = resident()
del small
kept = resident()
give_back()
print(full - kept, kept - resident())
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="another C library keeps nothing, or has no way to say so"
)
def test_what_is_free_between_what_stays_is_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, env=environment(), check=True)
    before, after = map(int, done.stdout.split())
    assert after > 20e6 > before + 10e6


def test_where_the_c_library_has_no_such_function_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[object]()

    def none(name: object) -> None:
        asked.append(name)
        raise OSError("no such library")

    def other(name: object) -> object:
        asked.append(name)
        return object()

    for library in (none, other):
        monkeypatch.setattr(ctypes, "CDLL", library)
        memory.give_back()
    assert asked == [None, None]
