"""Scan: one text through one model, all that the views show, checked against the model's own numbers.

prompt ──> the pass that writes the answer, under a tape ──> lens, ledger, lengths, attention ──> Scan, or CheckFailed
"""

from __future__ import annotations

import ctypes
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gptcli import proof
from gptcli.attention import look_lengths, role_scores, sink_share
from gptcli.checkpoint import Checkpoint
from gptcli.errors import UsageError
from gptcli.flow import flow
from gptcli.generation import generate
from gptcli.ledger import Ledger, head_ledger, ledger, logits, refusal
from gptcli.lens import Lens, depth, norms, read
from gptcli.model import Block, Tape
from gptcli.records import Prompt, Step
from gptcli.records_xray import Attention, Book, Cells, Lengths, Roles, Scan, Sources
from gptcli.sampling import Sampling
from gptcli.tables import Table
from gptcli.trace import Trace

GREEDY = Sampling(temperature=0)
Kind = Literal["rival", "alone", "mean"]  # of ledger: a lead, the logit itself, how far it is above the mean of all
N_SOURCES = 3  # positions that a head's row of the ledger names
N_NUMBERS = 48  # of a vector that are kept to be drawn
MOST_PATTERNS = 1 << 25  # numbers
N_PIECES = 1000  # of a vocabulary that tell it from others


@dataclass(frozen=True, kw_only=True)
class Run:
    """A text that was computed, and the answer that was written, under one tape."""

    trace: Trace
    prompt: Prompt
    steps: tuple[Step, ...]
    seed: int | None = None  # of the draws; None where none was made

    @property
    def ids(self) -> tuple[int, ...]:
        return (*self.prompt.ids, *(step.id for step in self.steps))


def run(
    checkpoint: Checkpoint,
    prompt: Prompt,
    *,
    max_tokens: int,
    sampling: Sampling = GREEDY,
    seed: int | None = 0,
    edits: Tape | None = None,
    top: int = 0,
    heads: bool = True,
) -> Run:
    """Writes an answer of so many tokens, or none, and keeps the trace of it: one pass, with its cache.

    heads: whether what the heads did is kept too; grid, tracks, norms and the ledger by layers need it not.
    """
    trace = Trace(checkpoint.decoder, edits=edits, heads=heads)
    steps = tuple(
        generate(checkpoint, prompt, sampling=sampling, seed=seed, max_tokens=max_tokens, top=top, tape=trace)
    )
    drawn = any(step.draw is not None for step in steps)
    done = Run(trace=trace, prompt=prompt, steps=steps, seed=seed if drawn else None)
    trace.ids = done.ids[: trace.n_positions]
    return done


@torch.inference_mode()
def scan(
    checkpoint: Checkpoint,
    done: Run,
    *,
    top: int = 5,
    cells: Sequence[int] | None = None,
    between: Sequence[int] = (),
    heads: bool = False,
    over_mean: bool = False,
    attention: bool = False,
    edits: Tape | None = None,
    edited: Sequence[str] = (),
) -> Scan:
    """All numbers of a run. cells: positions at which every layer is read, or all; that is what takes the time.

    between: positions whose states between attention and MLP are read too.

    heads: the ledger down to heads and sources. over_mean: a third ledger, of how far the answers are above the mean of
    all. attention: every pattern. edits: the run's, to check it by computing the prompt once more; `edited`: what they
    are, in words.

    Raises CheckFailed when the numbers contradict the model's.
    """
    c, trace, ids = checkpoint.config, done.trace, done.ids
    last = _last(checkpoint, done)
    cells = range(trace.n_positions) if cells is None else cells
    every = slice(None) if len(cells) == trace.n_positions else list(cells)
    lens = _read(checkpoint, trace.states[:, every], last.answers[every], top)
    middle = None
    if between and not c.parallel:
        at = torch.tensor(between, device=trace.states.device)
        middles = torch.stack([trace.mid_of(i)[at] for i in range(c.n_layer)])
        middle = _read(checkpoint, middles, last.answers[list(between)], top, final=trace.states[-1, at])
    books = _books(checkpoint, trace, last, over_mean=over_mean)
    own = [book for kind, book in books.items() if kind != "mean"]  # so that what is said does not depend on the views
    proof.ledger_error([*books.values()])
    check = proof.check(checkpoint, trace, done.prompt, done.steps, cells=cells, said=last.said, books=own, edits=edits)
    looks = _attention(trace) if attention else None
    if heads and not looks:  # whose sources are shown
        proof.pattern_error(trace)
    named = {*ids, *last.answers.tolist(), *last.rivals.tolist()}
    for found in (lens, middle):
        named |= set() if found is None else {*found.ids.flatten().tolist()}
    pieces, special = spelled(checkpoint, named)
    return Scan(
        model=checkpoint.name,
        family=checkpoint.family,
        fingerprint=fingerprint(checkpoint),
        version=_version(),
        n_layer=c.n_layer,
        n_head=c.n_head,
        n_kv_head=c.n_kv_head,
        d_model=c.d_model,
        parallel=c.parallel,
        edits=tuple(edited),
        ids=ids,
        n_prompt=len(done.prompt.ids),
        answers=tuple(last.answers.tolist()),
        rivals=tuple(last.rivals.tolist()),
        depth=tuple(depth(lens.ids[..., 0], last.answers[every]).tolist()),
        vectors=table(torch.stack([trace.embed[:, :N_NUMBERS], trace.states[-1, :, :N_NUMBERS]]).float()),
        cells=_cells(lens, ("emb", *(f"L{i}" for i in range(c.n_layer))), cells),
        between=_cells(middle, tuple(f"L{i} attn" for i in range(c.n_layer)), between) if middle else None,
        lengths=Lengths(**{name: table(x) for name, x in vars(norms(trace)).items()}),
        books=tuple(_book(trace, book, kind, heads=heads) for kind, book in books.items()),
        check=check,
        pieces=pieces,
        special=special,
        attention=looks,
        seed=done.seed,
    )


@dataclass(frozen=True)
class _Last:
    """What the last layer says at every position."""

    answers: Tensor  # [T]: the token that was written behind it, or its best guess
    rivals: Tensor  # [T]: the best other one
    said: Tensor  # [answer]: log-probabilities of what was written


def _last(checkpoint: Checkpoint, done: Run) -> _Last:
    states, T, n_prompt = done.trace.states, done.trace.n_positions, len(done.prompt.ids)
    written = torch.tensor(done.ids[n_prompt:], dtype=torch.long)
    asked = torch.zeros(T, dtype=torch.long)
    asked[T - len(written) :] = written
    lens = _read(checkpoint, states[-1:], asked, top=2)
    best = lens.ids[0]  # [T, 2]
    answers = best[:, 0].clone()
    answers[T - len(written) :] = written
    rivals = torch.where(best[:, 0] == answers, best[:, -1], best[:, 0])
    return _Last(answers, rivals, lens.watched[0, T - len(written) :, 0])


def _read(checkpoint: Checkpoint, states: Tensor, answers: Tensor, top: int, final: Tensor | None = None) -> Lens:
    """states: [R, T, C]; answers: [T], of which it is read how likely they are."""
    watch = answers[:, None].to(states.device)
    return read(checkpoint.decoder, states, final=final, watch=watch, top=top, size=checkpoint.n_tokens)


def _books(checkpoint: Checkpoint, trace: Trace, last: _Last, *, over_mean: bool) -> dict[Kind, Ledger]:
    """The ledgers of the answers: against their rivals, alone, over the mean of all; none where a logit is no sum."""
    decoder, (target, rival) = checkpoint.decoder, (x.to(trace.states.device) for x in (last.answers, last.rivals))
    if refusal(decoder):
        return {}
    raw, capped = logits(decoder, trace.states[-1], torch.stack([target, rival]), mean=over_mean)
    found: dict[Kind, Ledger] = {
        "rival": ledger(trace, target, rival, own=(raw, capped)),
        "alone": ledger(trace, target, own=(raw, capped)),
    }
    if over_mean:
        without_rival = raw[[0, 2]], None if capped is None else capped[[0, 2]]
        found["mean"] = ledger(trace, target, over_mean=True, own=without_rival)
    return found


def table(x: Tensor) -> Table:
    """A tensor as a table: whole numbers in 32 bits, others as they are."""
    x = x.detach().cpu().contiguous()
    if not x.dtype.is_floating_point:
        x = x.to(torch.int32)
    kind = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.int32: "I32"}[x.dtype]
    return Table(kind, tuple(x.shape), ctypes.string_at(x.data_ptr(), x.nbytes))


def spelled(checkpoint: Checkpoint, ids: set[int]) -> tuple[dict[int, bytes], dict[int, str]]:
    """What ids stand for, and the names of those that stand for no text."""
    tokenizer = checkpoint.tokenizer
    pieces = {i: tokenizer.raw(i) for i in sorted(ids)}
    return pieces, {i: tokenizer.piece(i) or f"#{i}" for i, raw in pieces.items() if not raw}


def fingerprint(checkpoint: Checkpoint) -> str:
    """Of family, shape and vocabulary: traces with different ones are of different models.

    config.json itself may differ between copies of one model: a library that saves it adds its version.
    """
    config, tokenizer = checkpoint.config, checkpoint.tokenizer
    some = range(0, tokenizer.size, 1 + tokenizer.size // N_PIECES)  # all of a large vocabulary takes too long
    known = (checkpoint.family, dataclasses.asdict(config), tokenizer.size, [tokenizer.piece(i) for i in some])
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()[:16]


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("gptcli")
    except PackageNotFoundError:
        return "not installed"


def _cells(lens: Lens, rows: tuple[str, ...], positions: Sequence[int]) -> Cells:
    return Cells(
        rows=rows,
        positions=tuple(positions),
        ids=table(lens.ids),
        logprobs=table(lens.logprobs.float()),
        entropy=table(lens.entropy.float()),
        kl=table(lens.kl.float()),
        rank=table(lens.rank[..., 0]),
        logprob=table(lens.watched[..., 0].float()),
    )


def _book(trace: Trace, book: Ledger, kind: Kind, *, heads: bool) -> Book:
    shares, biases, at, values = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    n = min(N_SOURCES, trace.n_positions)
    for i in range(trace.config.n_layer) if heads else ():  # one by one: every source of every head is a large table
        split = head_ledger(trace, i, book.direction)
        proof.heads_error(split.relative_error, i, trace.embed.dtype)
        shares.append(split.heads)
        biases.append(split.bias)
        at.append(split.sources.abs().topk(n, -1).indices)  # [H, T, n]
        values.append(split.sources.gather(-1, at[-1]))
    return Book(
        against_rival=kind == "rival",
        over_mean=kind == "mean",
        names=book.names,
        parts=table(book.parts.float()),
        const=table(book.const.float()),
        total=table(book.total.float()),
        logit=table(book.logit.float()),
        capped=None if book.capped is None else table(book.capped.float()),
        heads=table(torch.stack(shares).float()) if heads else None,
        head_bias=table(torch.stack(biases).float()) if heads else None,
        source_positions=table(torch.stack(at)) if heads else None,
        source_parts=table(torch.stack(values).float()) if heads else None,
    )


def _attention(trace: Trace) -> Attention:
    c, T = trace.config, trace.n_positions
    if (n := c.n_layer * c.n_head * T * T) > MOST_PATTERNS:
        raise UsageError(f"{n:,} numbers of attention are too many to keep", hint="a shorter text, or fewer tokens")
    patterns, sinks, lengths, error = [], [], [], proof.pattern_error(trace)
    for i, block in enumerate(trace.decoder.blocks):
        assert isinstance(block, Block)
        pattern = trace.pattern_of(i)
        patterns.append(pattern.half())
        sinks.append(sink_share(pattern))
        lengths.append(look_lengths(block, trace.v[i]))
    return Attention(
        patterns=table(torch.stack(patterns)),
        sink=table(torch.stack(sinks)),
        lengths=table(torch.stack(lengths).float()),
        error=error,
    )


def sources(trace: Trace) -> Sources:
    """Of which tokens each vector is made. Raises as `flow` does."""
    found = flow(trace)
    shares, rollout = table(found.shares.half()), table(found.rollout.half())
    return Sources(shares=shares, rollout=rollout, bias=table(found.bias.float()), error=found.error)


@torch.inference_mode()
def roles(checkpoint: Checkpoint, *, n: int = 24, seed: int = 0) -> Roles | None:
    """What each head does on n random tokens said twice, behind the start token if there is one.

    None for a model whose context has no room for two tokens twice, or whose vocabulary has fewer.
    """
    c, first = checkpoint.config, [] if checkpoint.start_id is None else [checkpoint.start_id]
    n = min(n, (c.n_ctx - len(first)) // 2, checkpoint.n_tokens)
    if n < 2:
        return None
    drawn = torch.randperm(checkpoint.n_tokens, generator=torch.Generator().manual_seed(seed))[:n].tolist()
    ids = [*first, *drawn, *drawn]
    trace = Trace(checkpoint.decoder, ids=ids)
    checkpoint.decoder.stream(torch.tensor([ids], device=checkpoint.device), None, trace)
    found = [role_scores(trace.pattern_of(i), len(first), n) for i in range(c.n_layer)]
    return Roles(n_tokens=n, **{name: table(torch.stack([scores[name] for scores in found])) for name in found[0]})
