"""How much memory is free, asked before anything large is loaded."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from gptcli.errors import OutOfMemory

if TYPE_CHECKING:
    import torch


def free_bytes() -> int | None:
    """What the kernel and, inside a container, its limit would still give; None where neither says."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                found.append(int(line.split()[1]) * 1024)
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            stat = dict(line.split() for line in Path("/sys/fs/cgroup/memory.stat").read_text().splitlines())
            found.append(int(limit) - used + int(stat.get("inactive_file", 0)))  # file pages that would make room
    except (OSError, ValueError, IndexError):
        pass
    return min(found) if found else None


def check_fits(
    need: int,
    device: torch.device | None = None,
    *,
    what: str,
    hint: str = "try --dtype bfloat16, --quantize int8, a shorter context (--max-tokens), or a smaller model",
) -> None:
    """Raises OutOfMemory if `need` bytes are clearly more than is free on the device (None: the CPU)."""
    if device is not None and device.type == "cuda":
        import torch

        free: int | None = torch.cuda.mem_get_info(device)[0]
    else:
        free = free_bytes()
    if free is not None and need > free:
        raise OutOfMemory(
            f"{what} need {human(need)} and {human(free)} of memory are free",
            hint=hint,
        )


def give_back() -> None:
    """Hands to the kernel what was used for a while and is free again, where the C library keeps it: in glibc.

    Reading a vocabulary of 49,152 leaves 11 MB. It takes a millisecond.
    """
    with suppress(AttributeError, OSError, TypeError):  # another library has no such function, or no such name
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)


def human(n_bytes: int) -> str:
    """Bytes with a unit a person reads: 269 MB, 9.7 GB (powers of 1000)."""
    value = float(n_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if value >= 99.5 or unit == "bytes" else f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def binary(n_bytes: float) -> str:
    """The same in powers of 1024, as caches are known by: 36 MiB, 9.0 GiB."""
    value, units = float(n_bytes), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1000 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.1f} {units[0]}" if value < 9.95 and units[0] != "bytes" else f"{value:.0f} {units[0]}"
