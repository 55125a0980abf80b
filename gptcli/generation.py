"""Generation: a prompt in, one record for each token out. Everything long-running here is an iterator.

prompt ── prepare ──> Prompt ── start ──> Start ── generate ──> Step, Step, Step ...
         the tokens           the prompt computed once          one forward pass each
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from gptcli.cache import Cache
from gptcli.checkpoint import Checkpoint
from gptcli.compiled import Pass
from gptcli.errors import GptcliError, UsageError
from gptcli.lookup import Lookup
from gptcli.memory import check_fits
from gptcli.model import Tape
from gptcli.records import Candidate, Chunk, Finish, Prompt, Step
from gptcli.sample import Choice, candidates, choose, finite, rng
from gptcli.sampling import Sampling
from gptcli.text_stream import TextStream

Overflow = Literal["error", "truncate", "slide"]


@dataclass(frozen=True, kw_only=True)
class Start:
    """A computed prompt, from which any number of texts can begin."""

    prompt: Prompt
    cache: Cache
    logits: Tensor  # of the last position, [V], float32


NOT_FINITE = "the weights are damaged, or too large for this dtype: try --dtype float32"


@runtime_checkable
class Watcher(Tape, Protocol):
    """A tape that may do with less: with how the newest position stood before and after each block."""

    only_states: bool  # whether that is all it needs; else it wants its places in the pass

    def saw(self, states: Tensor) -> None:
        """What the compiled pass of one token hands over, [R, C]."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One text to generate; the fields are the arguments of `generate`."""

    prompt: str | Sequence[int] | Prompt
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 128
    seed: int | None = None
    sample: int = 0
    stop: Sequence[str] = ()
    ignore_eos: bool = False
    top: int = 0
    overflow: Overflow = "error"


def prepare(
    checkpoint: Checkpoint,
    prompt: str | Sequence[int] = "",
    *,
    max_tokens: int = 128,
    overflow: Overflow = "error",
    bos: bool | None = None,
) -> Prompt:
    """The prompt as tokens, made to fit. An empty one becomes the model's own start token.

    bos: None as the tokenizer does, True one start token, False none; ids are taken as they are. overflow: "truncate"
    and "slide" drop the oldest tokens of a prompt that is too long, so many that max_tokens have room, but never more
    than half of the context, and a start token stays.

    Raises UsageError for a prompt that leaves no room for a token, for an id outside the vocabulary, and for an empty
    prompt where the model has no start token.
    """
    tokenizer, n_ctx = checkpoint.tokenizer, checkpoint.config.n_ctx
    text = prompt if isinstance(prompt, str) else tokenizer.decode(prompt)
    ids = tokenizer.encode(prompt, bos=bos) if isinstance(prompt, str) else list(prompt)
    bad = next((i for i in ids if not 0 <= i < checkpoint.config.n_vocab), None)
    if bad is not None:
        raise UsageError(f"token id {bad} is outside the vocabulary of {checkpoint.config.n_vocab}")
    if not ids:
        if checkpoint.start_id is None:
            raise UsageError(
                "an empty prompt, and this model has no start token", hint="give it some text to go on from"
            )
        ids = [checkpoint.start_id]
    n_dropped = 0
    if len(ids) > n_ctx - (max_tokens != 0) and overflow == "error":
        raise UsageError(
            f"the prompt has {len(ids)} tokens and the model's context {n_ctx}: no room for an answer",
            hint="shorten it; gptcli generate --overflow truncate drops its oldest tokens",
        )
    if overflow != "error":
        room = n_ctx - min(max_tokens if max_tokens >= 0 else n_ctx, n_ctx // 2)
        n_bos = int(checkpoint.begins(ids))
        n_dropped = max(0, len(ids) - room)
        ids = ids[:n_bos] + ids[n_bos + n_dropped :]
    return Prompt(text=text, ids=tuple(ids), raws=tuple(tokenizer.raw(i) for i in ids), n_dropped=n_dropped)


@torch.inference_mode()
def start(checkpoint: Checkpoint, prompt: Prompt, *, max_tokens: int = 128, tape: Tape | None = None) -> Start:
    """Computes the prompt, once for all samples.

    max_tokens: how many more the cache has room for; -1 for as many as the context holds. Raises OutOfMemory, before it
    allocates, if that would not fit, and GptcliError for logits that are not finite.
    """
    config, n = checkpoint.config, len(prompt.ids)
    capacity = capacity_of(checkpoint, n, max_tokens)
    need = config.kv_bytes(capacity, checkpoint.dtype.itemsize) + 4 * config.n_vocab
    check_fits(need, checkpoint.device, what=f"the cache of {capacity} tokens and the scores")
    cache = Cache(config, capacity, device=checkpoint.device, dtype=checkpoint.dtype)
    return Start(prompt=prompt, cache=cache, logits=_next_logits(checkpoint, prompt.ids, cache, tape))


def generate(
    checkpoint: Checkpoint,
    prompt: str | Sequence[int] | Prompt | Start = "",
    *,
    sampling: Sampling | None = None,
    max_tokens: int = 128,
    seed: int | None = None,
    sample: int = 0,
    stop: Sequence[str] = (),
    ignore_eos: bool = False,
    top: int = 0,
    overflow: Overflow = "error",
    tape: Tape | None = None,
    lookup: bool = False,
) -> Iterator[Step]:
    """Yields one Step for each token, as soon as it is chosen; the last one says why it is the last (`finish`).

    prompt: a text, token ids, a Prompt, or a Start, from which several calls may begin. sampling: None for Sampling().
    max_tokens: -1 for as many as the context holds. seed: None for a random one; sample i of seed s is sample 0 of
    seed s + i. stop: texts that end the answer and are not part of it. ignore_eos: an end token does not end it.
    top: how many candidates each step carries. overflow: "error" refuses a prompt that leaves no room for an answer,
    "truncate" drops its oldest tokens, "slide" also goes on when the context is full, without its older half.
    tape: sees every pass, and may edit it. lookup: where the text repeats itself several tokens are computed at once,
    which changes none of them (see lookup.py for when it is done).

    Raises UsageError, OutOfMemory before the cache is allocated, and GptcliError for logits that are not finite.
    """
    if lookup and tape is not None:
        raise UsageError("a tape sees a text token by token, and lookup computes several at once")
    request = Request(
        prompt=prompt.prompt if isinstance(prompt, Start) else prompt,
        sampling=sampling or Sampling(),
        max_tokens=max_tokens,
        seed=seed,
        sample=sample,
        stop=stop,
        ignore_eos=ignore_eos,
        top=top,
        overflow=overflow,
    )
    if isinstance(prompt, Start):
        begin = replace(prompt, cache=prompt.cache.copy())  # others begin there too
    else:
        if not isinstance(prompt, Prompt):
            prompt = prepare(checkpoint, prompt, max_tokens=max_tokens, overflow=overflow)
        begin = start(checkpoint, prompt, max_tokens=max_tokens, tape=tape)
    yield from answer(checkpoint, request, begin, tape=tape, lookup=lookup)


def answer(
    checkpoint: Checkpoint, request: Request, begin: Start, *, tape: Tape | None = None, lookup: bool = False
) -> Iterator[Step]:
    """The steps of a request whose prompt is computed; `begin`'s cache is filled by them."""
    n, room = len(begin.prompt.ids), begin.cache.capacity
    if room < capacity_of(checkpoint, n, request.max_tokens):
        raise UsageError(f"this start has room for {room - n} tokens, and {request.max_tokens} are asked for")
    cache, logits = begin.cache, begin.logits
    text = Text(checkpoint, begin.prompt, request, capacity=room)
    watches = isinstance(tape, Watcher) and tape.only_states
    fast = checkpoint.one_token() if tape is None or watches else None
    plain = partial(_next_logits, checkpoint, cache=cache, tape=tape, fast=fast)
    few = checkpoint.few_tokens() if lookup else None
    look = partial(Lookup, checkpoint.decoder, cache, plain=plain, few=few, cautious=fast is not None and few is None)
    ahead = look(ids=text.ids) if lookup else None
    while not text.finish:
        if text.generated:
            if text.slide():
                cache.clear()
                ahead = look(ids=text.ids[:-1]) if lookup else None
            logits = ahead.scores(text.ids) if ahead else plain(text.ids)
        draw = text.draw()
        choice = text.choose(logits, draw)
        if ahead and ahead.doubtful(
            logits, choice, request.sampling, generated=text.generated, size=checkpoint.n_tokens
        ):
            logits = ahead.again(text.ids, logits)
            choice = text.choose(logits, draw)
        yield text.take(logits, choice)


class Text:
    """One text as it grows, token after token, until something ends it."""

    def __init__(
        self, checkpoint: Checkpoint, prompt: Prompt, request: Request, *, capacity: int | None = None
    ) -> None:
        """capacity: of its cache, in tokens; None for as many as the request may need."""
        self.checkpoint, self.request = checkpoint, request
        self.ids = list(prompt.ids)  # that the model sees
        self.n_prefill = len(self.ids)  # how many of them were computed at once, not one after the other
        self.capacity = capacity or capacity_of(checkpoint, self.n_prefill, request.max_tokens)
        self.generated = list[int]()
        self.finish: Finish | None = "length" if request.max_tokens == 0 else None
        self._uniform = rng(secrets.randbits(32) if request.seed is None else request.seed, request.sample)
        strip = checkpoint.tokenizer.leading_space and not prompt.text
        self._stream = TextStream(stops=request.stop, strip_leading_space=strip)
        self._n_dropped = 0

    def slide(self) -> bool:
        """Whether the context was full, so that its older half had to go and the rest must be computed anew."""
        if len(self.ids) <= self.capacity:
            return False
        self.ids, self._n_dropped = _slid(self.checkpoint, self.ids, self.capacity)
        self.n_prefill = len(self.ids)
        return True

    @property
    def outgrows(self) -> bool:
        """Whether it may come to be computed with other rotary frequencies than it begins with."""
        ropes = {layer.rope for layer in self.checkpoint.config.layers if layer.rope}
        return any(rope.regime(1) != rope.regime(self.capacity) for rope in ropes)

    def logits(self, cache: Cache) -> Tensor:
        """Scores after it, [V]; the cache has seen its first tokens, alone."""
        return _next_logits(self.checkpoint, self.ids, cache, None, self.checkpoint.one_token())

    def alone(self) -> tuple[Tensor, Cache]:
        """Scores after it, [V], and its cache, as it gets them alone: its beginning at once, the rest one by one."""
        checkpoint = self.checkpoint
        cache = Cache(checkpoint.config, self.capacity, device=checkpoint.device, dtype=checkpoint.dtype)
        for n in range(self.n_prefill, len(self.ids) + 1):
            logits = _next_logits(checkpoint, self.ids[:n], cache, None, checkpoint.one_token())
        return logits, cache

    def draw(self) -> float:
        """The uniform number of the next token; 0 where none is drawn."""
        return 0.0 if self.request.sampling.greedy else self._uniform()

    def choose(self, logits: Tensor, draw: float) -> Choice:
        """The next token. logits: [V]."""
        return choose(
            logits,
            self.request.sampling,
            context=self.ids,
            generated=self.generated,
            uniform=lambda: draw,
            size=self.checkpoint.n_tokens,
        )

    def take(self, logits: Tensor, choice: Choice) -> Step:
        """Goes on with a token, chosen from `logits` [V]."""
        checkpoint, request, index = self.checkpoint, self.request, len(self.generated)
        self.ids.append(choice.id)
        self.generated.append(choice.id)
        ended = choice.id in checkpoint.eos_ids and not request.ignore_eos
        raw = b"" if ended else checkpoint.tokenizer.raw(choice.id)
        chunks = self._stream.feed(index, raw)
        finish: Finish | None = None
        if ended:
            finish = "eos"
        elif self._stream.stopped:
            finish = "stop"
        elif index + 1 == request.max_tokens:
            finish = "length"
        elif len(self.ids) >= checkpoint.config.n_ctx and request.overflow != "slide":
            finish = "context"
        if finish:
            chunks = _merged(chunks + self._stream.finish())
            finish = "stop" if self._stream.stopped else finish
        n_dropped, self._n_dropped, self.finish = self._n_dropped, 0, finish
        return Step(
            index=index,
            id=choice.id,
            raw=raw,
            logprob=choice.logprob,
            p=choice.p,
            n_kept=choice.n_kept,
            draw=choice.draw,
            margin=choice.margin,
            top=top_candidates(checkpoint, logits, request.top),
            chunks=chunks,
            finish=finish,
            n_dropped=n_dropped,
        )


def top_candidates(checkpoint: Checkpoint, logits: Tensor, n: int) -> tuple[Candidate, ...]:
    """The n best next tokens by the model's own probabilities, best first. logits: [V]."""
    found = candidates(logits, n, size=checkpoint.n_tokens) if n else []
    return tuple(Candidate(id=i, raw=checkpoint.tokenizer.raw(i), logprob=logprob) for i, logprob in found)


def _merged(chunks: tuple[Chunk, ...]) -> tuple[Chunk, ...]:
    """Neighbouring chunks of one token become one."""
    merged = list[Chunk]()
    for chunk in chunks:
        if merged and merged[-1].index == chunk.index:
            merged[-1] = Chunk(index=chunk.index, text=merged[-1].text + chunk.text)
        else:
            merged.append(chunk)
    return tuple(merged)


def capacity_of(checkpoint: Checkpoint, n: int, max_tokens: int) -> int:
    """How many tokens a text may come to have, its beginning of `n` included."""
    n_ctx = checkpoint.config.n_ctx
    return n_ctx if max_tokens < 0 else min(n_ctx, n + max_tokens)


def _slid(checkpoint: Checkpoint, ids: list[int], n_ctx: int) -> tuple[list[int], int]:
    """The newer half of a full context, behind the start token if there is one, and how many tokens went."""
    n_bos = int(checkpoint.begins(ids))
    kept = ids[:n_bos] + ids[len(ids) - n_ctx // 2 + n_bos :]
    return kept, len(ids) - len(kept)


@torch.inference_mode()
def _next_logits(
    checkpoint: Checkpoint, ids: Sequence[int], cache: Cache, tape: Tape | None, fast: Pass | None = None
) -> Tensor:
    """Scores after the last of `ids`, of which the cache has seen the first. [V], float32, on the CPU, all finite."""
    if cache.outgrown(len(ids)):  # exact, as if never cached; dynamic rotary scaling pays it at every token
        cache.clear()
    if fast and 0 < cache.n_seen == len(ids) - 1:
        logits, states = fast(ids[-1], cache)
        if tape is not None and isinstance(tape, Watcher):  # a look at a protocol takes a sixth of a millisecond
            tape.saw(states)
    else:
        tokens = torch.tensor([ids[cache.n_seen :]], device=checkpoint.device)
        x = checkpoint.decoder.stream(tokens, cache, tape)
        logits = checkpoint.decoder.readout(x[:, -1:])[0, -1].to("cpu", torch.float32)
    if not finite(logits):
        tokens = torch.tensor([list(ids)], device=checkpoint.device)
        raise GptcliError(
            f"the logits after token {cache.n_seen} are not finite: {culprit(checkpoint, tokens)}",
            hint=NOT_FINITE,
        )
    return logits


class _FiniteTape:
    """Remembers the first place of a pass that was not finite."""

    def __init__(self) -> None:
        self.first = ""

    def _check(self, x: Tensor, place: str) -> Tensor:
        if not self.first and not bool(x.isfinite().all()):
            self.first = place
        return x

    def start(self, x: Tensor) -> Tensor:
        return self._check(x, "the embedding")

    def heads(self, layer: int, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, z: Tensor) -> Tensor:
        return self._check(z, f"the heads of layer {layer}")

    def write(self, layer: int, part: Literal["attn", "mlp"], x: Tensor) -> Tensor:
        return self._check(x, f"{'attention' if part == 'attn' else 'the MLP'} in layer {layer}")


def culprit(checkpoint: Checkpoint, tokens: Tensor) -> str:
    """Where numbers were lost, found by running the same tokens once more under a tape."""
    tape = _FiniteTape()
    checkpoint.decoder.stream(tokens, None, tape)
    return f"{tape.first} is the first that is not finite" if tape.first else "the final norm or the head lost them"
