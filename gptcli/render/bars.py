"""Bars in eighths of a cell, which every terminal font has."""

from __future__ import annotations

EIGHTHS = " ▏▎▍▌▋▊▉"


def bar(share: float, width: int) -> str:
    """A bar of `share` (0 to 1) of `width` columns, in eighths of a column; anything above 0 shows."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    eighths = max(eighths, 1) if share > 0 else 0
    return "█" * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")


def percent(share: float) -> str:
    """8.3%, and <0.1% for what would round to nothing."""
    return f"{share:.1%}" if share >= 0.001 or share == 0 else "<0.1%"


if __name__ == "__main__":
    for n in range(0, 40, 3):
        print(f"{percent(n / 400):>6} {bar(n / 40, 20)}")
