"""What crosses from the world of tensors to the world of the terminal: plain frozen dataclasses, no torch, no rich."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Finish = Literal["eos", "stop", "length", "context"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One possible next token and what the model itself gave it, before temperature and filters."""

    id: int
    raw: bytes  # the bytes it stands for; may be half a character
    logprob: float  # natural logarithm


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """Text that became certain, and the generated token (counted from 0) it belongs to."""

    index: int
    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompt:
    """The tokens a generation starts from, as the model really sees them."""

    text: str
    ids: tuple[int, ...]
    raws: tuple[bytes, ...]  # the bytes of each id; b"" for special tokens
    n_dropped: int = 0  # oldest tokens left out because the context was too small


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One generated token.

    `chunks` is the text that this token made certain: none while a character or a possible stop string is still
    open, several when one closes. `logprob` is the model's own, natural, before temperature and filters; `p` is the
    probability the token was really drawn with, after them.
    """

    index: int
    id: int
    raw: bytes
    logprob: float
    p: float
    n_kept: int  # how many tokens the filters left to draw from
    draw: float | None  # the uniform number in [0, 1) that chose; None when greedy
    margin: float  # logit of the best token minus that of the second best
    top: tuple[Candidate, ...] = ()
    chunks: tuple[Chunk, ...] = ()
    finish: Finish | None = None
    n_dropped: int = 0  # tokens that left a sliding context just before this step

    @property
    def text(self) -> str:
        """The text this step made certain."""
        return "".join(chunk.text for chunk in self.chunks)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensor:
    """One stored tensor: its name in the file, and what the decoder calls it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    n_bytes: int
    fills: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Card:
    """What a checkpoint is, read off its headers."""

    name: str
    folder: str
    family: str
    models: str  # well-known members of the family
    n_params: int
    budget: tuple[tuple[str, int], ...]  # part of the decoder, its parameters
    dtype: str
    n_layer: int
    d_model: int
    n_head: int
    n_kv_head: int
    d_head: int
    d_ff: int
    n_vocab: int
    n_ctx: int
    traits: tuple[tuple[str, str], ...]  # what the decoder does, in words
    n_context: int  # the context that the memory below is for, in tokens
    loaded_as: str  # the dtype that it is for: what the files hold becomes this when it is loaded, on the CPU
    weight_bytes: int
    cache_bytes: int
    files: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """How likely a model found a text: ids[0] is given, logprobs[i] is that of ids[i + 1], natural."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    n_bytes: int  # spelled by the tokens that were scored
    n_dropped: int  # tokens past the context, not scored

    @property
    def nats(self) -> float:
        return -sum(self.logprobs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lesson:
    """One position of one training step, as the article draws it: features, guess, right token, error."""

    features: tuple[int, ...]  # the last ids before it
    label: int  # the right next token
    guess: int  # the one the model thought likeliest
    p_guess: float
    p_before: float  # what the model gave the right token before the step's update
    p_after: float  # and after it


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """One step of training, done. Losses are in nats a token."""

    step: int  # steps done
    n_steps: int
    n_tokens: int  # predicted so far
    loss: float
    learning_rate: float
    grad_norm: float  # before clipping
    seconds: float  # since this process began to train
    tokens_per_s: float  # of this step
    validation: float | None = None
    lesson: Lesson | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Moved:
    """How far one parameter is in one checkpoint from where it is in another."""

    name: str  # as in model.py
    shape: tuple[int, ...]
    n_changed: int  # numbers that are not the same
    relative: float  # norm of the difference over the norm of the first
    rms_before: float  # root mean square
    rms_change: float
    largest: float  # change of one number

    @property
    def layer(self) -> int | None:
        parts = self.name.split(".")
        return int(parts[1]) if parts[0] == "blocks" else None

    @property
    def part(self) -> str:
        """attn.q, mlp_norm, embed ...; a bias keeps its leaf: attn.out.bias."""
        stem = self.name.split(".", 2)[2] if self.name.startswith("blocks.") else self.name
        return stem.removesuffix(".weight")


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """Two checkpoints of one shape, parameter by parameter, in the order of the forward pass."""

    before: str
    after: str
    n_params: int
    moved: tuple[Moved, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A decoder that was made and not trained: counted on its real tensors, and by formula."""

    n_params: int
    n_expected: int
    n_tensors: int
    n_bytes: int  # of memory that its numbers take; none on the meta device
    seconds: float
    passed: tuple[int, ...] = ()  # shape of the scores of a pass through all layers, if one was made
    pass_seconds: float = 0.0
