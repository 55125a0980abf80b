"""The x-ray as records: what a trace file holds and every view is drawn from. No torch, no rich.

L layers, R = L + 1 rows (the embedding, then the state after each block), T positions, H heads. Logarithms are natural,
entropy and KL are in nats. The state at position i says what comes at position i + 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gptcli.tables import Table

SCHEMA = "1"


@dataclass(frozen=True, kw_only=True)
class Cells:
    """What the states of some rows say of the next token, at some positions (P)."""

    rows: tuple[str, ...]  # "emb", "L0", ...: after the block; "L0 attn": between its attention and its MLP
    positions: tuple[int, ...]
    ids: Table  # likeliest tokens, best first, [R, P, top]
    logprobs: Table  # theirs, [R, P, top]
    entropy: Table  # [R, P]
    kl: Table  # KL(final || this one), [R, P]
    rank: Table  # of the answer at that position, [R, P]
    logprob: Table  # of the answer, [R, P]


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Lengths of vectors, and the cosine of each write to what it is added to."""

    states: Table  # [R, T]
    attn: Table  # [L, T]
    mlp: Table  # [L, T]
    attn_cos: Table  # [L, T]
    mlp_cos: Table  # [L, T]


@dataclass(frozen=True, kw_only=True)
class Book:
    """The ledger at every position: the answer's logit, its lead over the rival, or over the mean of all, as a sum."""

    against_rival: bool
    names: tuple[str, ...]  # "token", "position", "L0 attn", "L0 mlp", ..., "rounding"
    parts: Table  # [N, T]
    const: Table  # [T]
    total: Table  # [T]
    logit: Table  # the model's own, before a soft cap, [T]
    capped: Table | None  # and after it
    heads: Table | None  # of each layer's attention, [L, H, T]
    head_bias: Table | None  # [L, T]
    source_positions: Table | None  # where most of it came from, [L, H, T, S]
    source_parts: Table | None  # how much, [L, H, T, S]
    over_mean: bool = False


@dataclass(frozen=True, kw_only=True)
class Attention:
    """Who looked where."""

    patterns: Table  # [L, H, T, T], rows sum to 1, or less where looks were set to 0
    sink: Table  # mean share of position 0 over the queries after it, [L, H]
    error: float  # what the patterns gather, against what was gathered, relative
    lengths: Table | None = None  # of the vector that a head would add if it looked at one position alone, [L, H, T]

    def row(self, layer: int, head: int, position: int, *, weighted: bool) -> tuple[float, ...]:
        """Where a head looks from a position, [T]; weighted: what it takes from where, as shares of these lengths."""
        looks = self.patterns.row(layer, head, position)
        if not weighted or self.lengths is None:
            return looks
        taken = [look * length for look, length in zip(looks, self.lengths.row(layer, head), strict=True)]
        return tuple(x / (sum(taken) or 1.0) for x in taken)


@dataclass(frozen=True, kw_only=True)
class Sources:
    """Of which tokens each vector is made after each layer: shares, whose rows sum to 1."""

    shares: Table  # by what was taken and how close it is to the whole, [L, T, T]
    rollout: Table  # by the looks alone, [L, T, T]
    bias: Table  # closeness of what comes from no position, as a share of all, [L, T]
    error: float  # of what was taken, added up, against what attention wrote, relative

    def row(self, layer: int, position: int, *, rollout: bool) -> tuple[float, ...]:
        """Of one vector, [T]. Raises ValueError for what can be no shares, as a trace may hold."""
        found = (self.rollout if rollout else self.shares).row(layer, position)
        if not (all(0 <= x <= 1.01 for x in found) and abs(sum(found) - 1) <= 0.01):
            raise ValueError(f"the shares of position {position} after L{layer} do not add up to 1")
        return found


@dataclass(frozen=True, kw_only=True)
class Roles:
    """What heads do on random tokens said twice: shares of attention from 0 to 1, each [L, H]."""

    n_tokens: int
    previous: Table
    duplicate: Table
    induction: Table
    sink: Table


@dataclass(frozen=True, kw_only=True)
class Occlusion:
    """How much log-probability the answer loses without each token of the text."""

    position: int  # whose answer
    target: int
    neutral: int  # the id that stood in
    loss: tuple[float, ...]  # for each position up to that one


@dataclass(frozen=True, kw_only=True)
class Option:
    """One token that could have been drawn."""

    id: int
    raw: float  # the model's own probability
    warm: float  # after biases, penalties and temperature
    kept: float  # after top-k, top-p and min-p; 0 if these cut it
    rank: int | None = None  # 1 + how many stood above it
    before: float | None = None  # what these kept together: a draw from there to `before + kept` means this token


@dataclass(frozen=True, kw_only=True)
class Draw:
    """One choice made visible."""

    position: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    options: tuple[Option, ...]  # best first
    n_kept: int
    cut: float  # probability, after temperature, of what the filters cut
    draw: float | None  # the number in [0, 1) that chose; None when greedy
    chosen: int


@dataclass(frozen=True, kw_only=True)
class Stop:
    """One line of a walk: what a part put in by the way that leads through the lines it hangs from."""

    depth: int  # 0: what the answer's score is the sum of; then what that read, and so on
    name: str  # "word", "place", "L3H2", "L3 mlp", "constant"; "others": all that is not named here
    position: int  # of the state that was read: where a head took it from; for the others, where it stands
    value: float
    n_parts: int  # 1, or how many others


@dataclass(frozen=True, kw_only=True)
class Walk:
    """An answer's score followed back to the words, with looks, gates and the norms' statistics as they were."""

    position: int
    target: int
    rival: int | None  # None: the logit itself, not its lead
    score: float  # the model's own, before a soft cap
    stops: tuple[Stop, ...]  # in the order in which they are drawn
    words: tuple[float, ...]  # what each token's vector gives through all ways together, [T]
    places: tuple[float, ...]  # and the learned vector of its place; empty where there is none
    constant: float  # what no word gives: biases and shifts, through all ways
    rounding: float  # in 16 bits: what the model's arithmetic lost or won on the way; with the others, the score
    error: float  # worst of the sums, and of what one layer lost, relative to all that was added up there
    bound: float


@dataclass(frozen=True, kw_only=True)
class Neuron:
    """One hidden unit of an MLP at one position."""

    index: int
    act: float  # what it gives, the gate included
    value: float  # what it put into the score
    raises: tuple[int, ...]  # the tokens whose scores its write raises most, best first, whatever the text


@dataclass(frozen=True, kw_only=True)
class Neurons:
    """One layer's MLP as the sum of its neurons, along an answer's score."""

    layer: int
    position: int
    target: int
    rival: int | None  # None: of the logit itself, not of its lead
    shown: tuple[Neuron, ...]  # those that put in most, the largest first, whatever the sign
    n_all: int
    others: float  # what all that are not shown put in
    bias: float  # of the output matrix and the norm behind it
    write: float  # the MLP's own row of the ledger: what neurons and bias add up to
    error: float  # of that sum, relative to all that was added up


@dataclass(frozen=True, kw_only=True)
class WhatIf:
    """The same text with something switched off or exchanged: pairs are before and after."""

    edits: tuple[str, ...]
    how: str  # of each kind of edit a word: "zero", "mean"; "look" if forbidden, "look=0" if set to 0, "looks"; "patch"
    before: tuple[int, ...]  # the answers
    after: tuple[int, ...]
    target: int  # the likeliest token before, whether or not the answer was drawn
    rival: int
    logprob: tuple[float, float]
    rank: tuple[int, int]
    best: tuple[int, int]
    kl: float
    lead: tuple[float, float]  # logit of the target minus that of the rival
    direct: float | None  # change of the lead by what the parts themselves wrote
    js: float | None = None  # Jensen-Shannon divergence of the two predictions, nats, 0 to ln 2
    moved: float | None = None  # share of the probability that is elsewhere after it: total variation, 0 to 1


@dataclass(frozen=True, kw_only=True)
class Mosaic:
    """Every head or MLP switched off by itself; tables are [L, H] or [L, 1]."""

    what: str  # "heads" or "mlps"
    how: str
    target: int
    rival: int
    logprob: Table  # change of the target's log-probability
    lead: Table  # change of its lead: total effect
    direct: Table | None  # direct effect
    best: Table  # ids


@dataclass(frozen=True, kw_only=True)
class Strip:
    """How each row stood to one written token, R rows from the embedding up."""

    logprobs: tuple[float, ...]  # of the token
    kl: tuple[float, ...]  # KL(final || this row), nats
    stands: tuple[bool, ...]  # whether it is the best of all there
    rank: int  # of the token in the last row
    error: float  # of the last row's log-probability against the model's, in units of its largest logit

    @property
    def depth(self) -> int:
        """The first row from which on the token is the best in every row; R if not even in the last."""
        wrong = [i for i, stands in enumerate(self.stands) if not stands]
        return wrong[-1] + 1 if wrong else 0

    @property
    def decided(self) -> str:
        """`L9/12`, `emb/12`; or where it stood at last, `#3`."""
        last = len(self.stands) - 2
        if self.depth > last + 1:
            return f"#{self.rank}"
        return f"L{self.depth - 1}/{last}" if self.depth else f"emb/{last}"


@dataclass(frozen=True, kw_only=True)
class Check:
    """How the picture proves itself."""

    lens: float  # the last row's scores against the model's own, in units of the largest
    lens_bound: float
    emitted: float | None  # the same for the log-probabilities of the tokens that were written
    ledger: float | None  # sum minus logit, relative to all that was added; None where there is no ledger
    ledger_bound: float
    no_ledger: str  # why
    dtype: str
    device: str
    start: str  # the start token in front, or ""
    n_tokenizer: int
    n_head_rows: int  # rows of the head


@dataclass(frozen=True, kw_only=True)
class Scan:
    """One text in one model, from the embedding to the answer."""

    model: str
    family: str
    fingerprint: str  # of shape and vocabulary, so that traces of different models are not compared
    version: str  # of gptcli
    n_layer: int
    n_head: int
    n_kv_head: int
    d_model: int
    parallel: bool
    edits: tuple[str, ...]  # what was switched off, in words
    ids: tuple[int, ...]  # prompt, then answer
    n_prompt: int
    answers: tuple[int, ...]  # the token that follows each position: the one that was written, else the likeliest, [T]
    rivals: tuple[int, ...]  # the best other one, [T]
    depth: tuple[int, ...]  # row from which on the answer stands; R if not even in the last, [P] as in `cells`
    vectors: Table  # the first numbers of what goes in and comes out, [2, T, n]
    cells: Cells  # of every position, or of those that are to be shown
    between: Cells | None  # the states between attention and MLP
    lengths: Lengths
    books: tuple[Book, ...]
    check: Check
    pieces: Mapping[int, bytes]  # what each id that occurs stands for
    special: Mapping[int, str]  # names of those that stand for no text
    attention: Attention | None = None
    roles: Roles | None = None
    occlusion: Occlusion | None = None
    draw: Draw | None = None
    walk: Walk | None = None
    flow: Sources | None = None
    neurons: Neurons | None = None
    what_if: WhatIf | None = None
    mosaic: Mosaic | None = None
    seed: int | None = None  # of the draws; None where none was made
    adapter: str | None = None  # that was added to the weights, by name
    rounding: str | None = None  # "int8", "int4": to what the weights were rounded

    @property
    def n_positions(self) -> int:
        return len(self.answers)

    def depth_at(self, position: int) -> int:
        """The row from which on the answer stands there. Raises ValueError for a position whose cells were not read."""
        return self.depth[self.cells.positions.index(position)]

    def n_same(self, other: Scan) -> int:
        """How many tokens both texts begin with alike."""
        pairs = zip(self.ids, other.ids, strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(self.ids), len(other.ids)))

    @property
    def n_answer(self) -> int:
        return len(self.ids) - self.n_prompt
