"""GPT-3's sizes as Brown et al. printed them (2020, arXiv 2005.14165), mistakes included, and Lambda's bill for them.

Everything here is a quotation. What a recount gives is worked out elsewhere, so that the two can be set side by side.
"""

from __future__ import annotations

from dataclasses import dataclass

from gptcli.presets import SIZES, Size


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One model: a row of Table 2.1 and the same model's row of Table D.1."""

    size: str  # its name in presets.SIZES, where the corrected shape is
    label: str  # 125M, as the paper calls it
    n_layer: int
    d_model: int
    n_head: int
    d_head: int
    batch_tokens: int
    learning_rate: float
    params: float  # D.1, which prints millions
    pf_days: float
    flops: float

    @property
    def title(self) -> str:
        return f"GPT-3 {self.label}" if self.label in self.size.upper() else f"GPT-3 {_word(self.size)} {self.label}"

    @property
    def corrected(self) -> Size:
        return SIZES[self.size]

    @property
    def typo(self) -> str | None:
        """Which number of Table 2.1 cannot be: n_head, d_model or none."""
        size = self.corrected
        return next((name for name in ("d_model", "n_head") if getattr(self, name) != getattr(size, name)), None)


def _word(size: str) -> str:
    return size.upper() if size == "xl" else size.capitalize()


def _row(
    size: str,
    label: str,
    stack: tuple[int, int, int, int],
    training: tuple[float, float],
    d1: tuple[float, float, float],
) -> Row:
    n_layer, d_model, n_head, d_head = stack
    batch, rate = training
    params_m, pf_days, flops = d1
    return Row(
        size=size,
        label=label,
        n_layer=n_layer,
        d_model=d_model,
        n_head=n_head,
        d_head=d_head,
        batch_tokens=round(batch * 1e6),
        learning_rate=rate,
        params=params_m * 1e6,
        pf_days=pf_days,
        flops=flops,
    )


TABLE = (  # layers, width, heads, width of a head; batch in millions of tokens, learning rate; D.1's three
    _row("small", "125M", (12, 768, 12, 64), (0.5, 6.0e-4), (125, 2.60, 2.25e20)),
    _row("medium", "350M", (24, 1024, 16, 64), (0.5, 3.0e-4), (356, 7.42, 6.41e20)),
    _row("large", "760M", (24, 1536, 16, 96), (0.5, 2.5e-4), (760, 15.8, 1.37e21)),
    _row("xl", "1.3B", (24, 2048, 24, 128), (1, 2.0e-4), (1_320, 27.5, 2.38e21)),
    _row("2.7b", "2.7B", (32, 2560, 32, 80), (1, 1.6e-4), (2_650, 55.2, 4.77e21)),
    _row("6.7b", "6.7B", (32, 4096, 32, 128), (2, 1.2e-4), (6_660, 139, 1.20e22)),
    _row("13b", "13B", (40, 5140, 40, 128), (2, 1.0e-4), (12_850, 268, 2.31e22)),
    _row("175b", "175B", (96, 12_288, 96, 128), (3.2, 0.6e-4), (174_600, 3_640, 3.14e23)),
)
TOKENS = 300_000_000_000  # every size was trained on so many (Appendix B)
BOUND_PARAMS, BOUND_FLOPS = 0.004, 0.01  # how near a recount must come to what D.1 rounds


@dataclass(frozen=True, kw_only=True, slots=True)
class Bill:
    """What a blog post of 2020-06-03 (Lambda, Chuan Li) made of D.1's FLOPs for the largest size."""

    flops: float = 3.14e23
    tflops: float = 28.0  # a V100's, "theoretical"
    years: int = 355  # of 365 days
    dollars: float = 4.6e6
    rtx_tflops: float = 15.0  # an RTX 8000's
    rtx_years: int = 665  # as printed; the division gives 664

    @property
    def hours(self) -> float:
        return self.flops / (self.tflops * 1e12) / 3600

    @property
    def price(self) -> float:
        """Dollars for an hour of one GPU: not printed, but what $4.6M implies."""
        return self.dollars / self.hours


LAMBDA = Bill()
