"""Computes the pages of the tour on a checkpoint. Whatever changes numbers works on a copy.

guide = Guide(load())
for key in KEYS:
    page = guide.page(key)
"""

from __future__ import annotations

import copy
import dataclasses
import math
import shlex
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from gptcli.attend import visible
from gptcli.checkpoint import Checkpoint
from gptcli.compare import difference
from gptcli.folder import SHIPPED
from gptcli.generation import generate, prepare
from gptcli.params import Account, Subject, account
from gptcli.recipe import scaled
from gptcli.records import Step
from gptcli.records_xray import Scan
from gptcli.sampling import Sampling
from gptcli.scan import run, scan
from gptcli.tokens import show
from gptcli.tour.page import (
    Budget,
    Change,
    Exercises,
    Grid,
    Masks,
    OneByOne,
    Page,
    Picture,
    Shots,
    Stack,
    Token,
    Track,
    Tracks,
    Written,
)
from gptcli.train import Once, Training, lessons

LAW = "Second law of robotics: A robot must obey the orders given it by human beings"
STORY = "Once upon a time"
OBEY = "a robot must obey the orders given it"
LEARNING, RATE = 3e-4, 1e-3  # of one step, as gptcli examples --learn has it; of the fine-tuning
EXAMPLES = tuple(f"{name} has a green kite.\n" for name in ("Tom", "Lily", "Ben", "Mia"))
CASE, ASKED = "Anna has", " a green kite."
N_WRITTEN, N_ROWS, N_FED_BACK, N_STEPS = 40, 10, 3, 20
N_MASK, N_DRAWN = 24, 48  # tokens of a mask without a band; most rows of one that are kept to be drawn
GREEDY = Sampling(temperature=0)

Made = tuple[Mapping[str, str], Picture, str]  # facts, picture, command


class Guide:
    """The pages, each computed when it is asked for, and once. `name`: what the commands call the model."""

    def __init__(self, checkpoint: Checkpoint, *, name: str | None = None) -> None:
        self.checkpoint, self.config = checkpoint, checkpoint.config
        self._option = f" -m {shlex.quote(name)}" if name else ""
        self._name = name or SHIPPED
        self._kept: dict[str, Page] = {}

    def page(self, key: str) -> Page:
        """One of KEYS."""
        if key not in self._kept:
            began = time.perf_counter()
            facts, picture, command = PAGES[key](self)
            self._kept[key] = Page(
                key=key, facts=facts, picture=picture, command=command, seconds=time.perf_counter() - began
            )
        return self._kept[key]

    # --- what several pages need -------------------------------------------------------------------------------------

    @cached_property
    def account(self) -> Account:
        return account(
            Subject(
                title=self.checkpoint.name,
                family=self.checkpoint.family,
                config=self.config,
                spelled=self.checkpoint.config_json,
            )
        )

    @cached_property
    def written(self) -> tuple[tuple[Token, ...], tuple[Token, ...]]:
        """The story's beginning, and how the model goes on: greedy, so that the commands say the same."""
        given = prepare(self.checkpoint, STORY, max_tokens=N_WRITTEN, overflow="truncate")
        return tuple(Token(raw=raw) for raw in given.raws), self._answer(STORY, N_WRITTEN)

    def _answer(self, text: str, n: int) -> tuple[Token, ...]:
        steps: list[Step] = list(generate(self.checkpoint, text, sampling=GREEDY, max_tokens=n, overflow="truncate"))
        return tuple(Token(raw=step.raw, p=math.exp(step.logprob)) for step in steps if step.finish != "eos")

    @cached_property
    def law(self) -> list[int]:
        return self.checkpoint.tokenizer.encode(LAW, bos=False)[: self.config.n_ctx]

    def pieces(self, ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(show(self.checkpoint.tokenizer.raw(i)) for i in ids)

    def _copy(self) -> Checkpoint:
        """A checkpoint that may be changed, in float32."""
        decoder = copy.deepcopy(self.checkpoint.decoder).float()
        return dataclasses.replace(self.checkpoint, decoder=decoder.requires_grad_(True))

    # --- the pages ---------------------------------------------------------------------------------------------------

    def generate(self) -> Made:
        prompt, answer = self.written
        facts = {"n_new": number(len(answer)), "n_vocab": number(self.config.n_vocab)}
        command = f'gptcli "{STORY}" -t 0 -n {N_WRITTEN}{self._option}'
        return facts, Written(prompt=prompt, answer=answer), command

    def examples(self) -> Made:
        n = len(self.law)
        facts = {"n_tokens": number(n), "n_examples": number(n - 1)}
        return facts, Exercises(pieces=self.pieces(self.law)), f'gptcli examples "{LAW}"{self._option}'

    def step(self) -> Made:
        found = lessons(self._copy().decoder, self.law, LEARNING)
        before, after = (
            -sum(math.log(max(p, 1e-45)) for p in given) / len(found)
            for given in ([row.p_before for row in found], [row.p_after for row in found])
        )
        picture = Exercises(
            pieces=self.pieces(self.law), guesses=self.pieces([row.guess for row in found]), lessons=tuple(found)
        )
        facts = {"before": f"{before:.2f}", "after": f"{after:.2f}"}
        return facts, picture, f'gptcli examples --learn "{LAW}"{self._option}'

    def tokens(self) -> Made:
        prompt, answer = self.written
        return (
            {},
            OneByOne(prompt=prompt, answer=answer[:N_ROWS]),
            (f'gptcli "{STORY}" -t 0 -n {N_ROWS} --color prob{self._option}'),
        )

    def budget(self) -> Made:
        from gptcli.catalogue import named

        n, large = self.account.n_params, named("gpt3").config.n_params()
        facts = {
            "n_params": number(n),
            "n_matrices": number(self.account.n_matrices),
            "gpt3": number(large),
            "times": number(round(large / n)),
        }
        return facts, Budget(account=self.account), f"gptcli params{self._target}"

    @property
    def _target(self) -> str:
        return "" if not self._option else f" {shlex.quote(self._name)}"

    def tracks(self) -> Made:
        prompt, answer = (tuple(show(token.raw) for token in part) for part in self.written)
        free = self.config.n_ctx - len(prompt) - len(answer)
        facts = {
            "n_ctx": number(self.config.n_ctx),
            "n_prompt": number(len(prompt)),
            "n_new": number(len(answer)),
            "n_free": number(free),
        }
        picture = Tracks(n_ctx=self.config.n_ctx, prompt=prompt, answer=answer)
        return facts, picture, f'gptcli tokenize "{STORY}"{self._option}'

    def track(self) -> Made:
        found = self._scan(0)
        at = found.n_positions - 1
        facts = {
            "word": found.pieces.get(found.ids[at], b"").decode(errors="replace").strip(),
            "next": found.pieces.get(found.answers[at], b"").decode(errors="replace").strip(),
            "d_model": number(self.config.d_model),
            "n_writes": number(2 * self.config.n_layer),
        }
        return facts, Track(scan=found, position=at), f'gptcli xray "{OBEY}" --token {at}{self._option}'

    def _scan(self, n: int) -> Scan:
        prompt = prepare(self.checkpoint, OBEY, max_tokens=n, overflow="truncate")
        done = run(self.checkpoint, prompt, max_tokens=n)
        return scan(self.checkpoint, done, between=[done.trace.n_positions - 1])

    def stack(self) -> Made:
        from gptcli.catalogue import named

        layer = self.account.of_layer(0)
        large = named("gpt3").config
        attention, mlp = (
            sum(m.n for m in layer if f".{part}." in m.name and "norm" not in m.name) for part in ("attn", "mlp")
        )
        inside = self.account.n_in_layer
        gpt3_layer = sum(math.prod(shape) for name, shape in large.shapes().items() if name.startswith("blocks.0."))
        facts = {
            "n_layer": number(self.config.n_layer),
            "layer_params": number(inside),
            "gpt3_layer": number(gpt3_layer),
        }
        picture = Stack(
            windows=tuple(layer.window for layer in self.config.layers),
            attention=attention,
            mlp=mlp,
            other=inside - attention - mlp,
            outside=self.account.n_params - inside * self.config.n_layer,
        )
        return facts, picture, f"gptcli params{self._target} --layer 0"

    def masks(self) -> Made:
        layers: dict[int | None, list[int]] = {}
        for i, layer in enumerate(self.config.layers):
            layers.setdefault(layer.window, []).append(i)
        narrow = [window for window in layers if window is not None]
        # as many tokens as show the narrowest band end, or a few if there is none
        n = min(self.config.n_ctx, 2 * min(narrow) if narrow else N_MASK)
        step = -(-n // N_DRAWN)  # a window may be of thousands: its whole mask would take gigabytes
        kinds = []
        for window, where in layers.items():
            rows = (_seen(i, n, window)[::step].tolist() for i in range(0, n, step))
            kinds.append((window, tuple(where), tuple(map(tuple, rows))))
        n_banded = sum(len(where) for window, where in layers.items() if window is not None)
        facts = {
            "n_dense": number(self.config.n_layer - n_banded),
            "n_banded": number(n_banded),
            "window": f" ({', '.join(map(number, narrow))})" if narrow else "",
        }
        picture = Masks(n_tokens=n, step=step, kinds=tuple(kinds))
        return facts, picture, "gptcli tour --page masks" + self._option

    def xray(self) -> Made:
        found = self._scan(N_FED_BACK)
        return {}, Grid(scan=found), f'gptcli xray "{OBEY}" -n {N_FED_BACK}{self._option}'

    def priming(self) -> Made:
        tokenizer = self.checkpoint.tokenizer
        n_asked = len(self._continued(CASE, ASKED)[1])
        asked = ["".join(EXAMPLES[:n]) + CASE for n in range(len(EXAMPLES) + 1)]
        prompts = tuple(text for text in asked if len(tokenizer.encode(text)) + n_asked <= self.config.n_ctx)
        counts = tuple(range(len(prompts)))
        written = tuple(
            "".join(step.text for step in generate(self.checkpoint, prompt, sampling=GREEDY, max_tokens=n_asked))
            for prompt in prompts
        )
        picture = Shots(
            prompts=prompts,
            counts=counts,
            answer=ASKED,
            chances=tuple(self._chance(prompt, ASKED) for prompt in prompts),
            written=written,
        )
        facts = {"n_prompt": number(len(tokenizer.encode(prompts[-1])))}
        escaped = prompts[-1].replace("\n", "\\n")
        return facts, picture, f'gptcli -e "{escaped}" -t 0 -n {n_asked}{self._option}'

    def _continued(self, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """The tokens of a prompt, and those of the answer behind it, which by itself might begin with others."""
        tokenizer = self.checkpoint.tokenizer
        given, ids = tokenizer.encode(prompt), tokenizer.encode(prompt + answer)
        n = next((i for i, (a, b) in enumerate(zip(given, ids, strict=False)) if a != b), len(given))
        return ids[:n], ids[n:]

    @torch.inference_mode()
    def _chance(self, prompt: str, answer: str) -> float:
        """Probability of an answer behind a prompt, all its tokens together."""
        given, wanted = self._continued(prompt, answer)
        ids = torch.tensor([given + wanted], device=self.checkpoint.device)
        rows = self.checkpoint.decoder(ids)[0, len(given) - 1 : -1].float().log_softmax(-1)
        return float(rows.gather(1, torch.tensor(wanted, device=rows.device)[:, None]).sum().exp())

    def finetuning(self) -> Made:
        tuned = self._copy()
        tokenizer, ends = (
            self.checkpoint.tokenizer,
            sorted(self.checkpoint.tokenizer.eos_ids or self.checkpoint.eos_ids),
        )
        ids = [*ends[:1], *tokenizer.encode(LAW), *ends[:1]][: self.config.n_ctx + 1]  # as finetune has a text
        n = len(ids) - 1
        recipe = scaled(
            n_tokens=N_STEPS * n, n_ctx=n, batch_tokens=n, learning_rate=RATE, schedule="constant", growth=(0, 0)
        )
        deque(Training(tuned.decoder, Once(ids, self.checkpoint.device), recipe).run(), maxlen=0)
        found = difference(
            self.checkpoint.folder.name, f"after {N_STEPS} steps", self.checkpoint.decoder, tuned.decoder
        )
        facts = {
            "n_steps": number(N_STEPS),
            "n_changed": number(sum(m.n_changed for m in found.moved)),
            "n_params": number(found.n_params),
        }
        model = shlex.quote(self._name)
        how = f"--steps {N_STEPS} --batch 1 --lr {RATE} --schedule constant --precision float32"
        command = f'echo "{LAW}" | gptcli finetune {model} - {how} --out tuned && gptcli diff {model} tuned'
        return facts, Change(found=found), command


PAGES: dict[str, Callable[[Guide], Made]] = {
    "generate": Guide.generate,
    "examples": Guide.examples,
    "step": Guide.step,
    "tokens": Guide.tokens,
    "budget": Guide.budget,
    "tracks": Guide.tracks,
    "track": Guide.track,
    "stack": Guide.stack,
    "masks": Guide.masks,
    "xray": Guide.xray,
    "priming": Guide.priming,
    "finetuning": Guide.finetuning,
}


def _seen(i: int, n: int, window: int | None) -> Tensor:
    """Which of n tokens the model lets token i see: [n], bool."""
    row, mask = torch.zeros(n, dtype=torch.bool), visible(1, i + 1, window, torch.device("cpu"))
    row[: i + 1] = True if mask is None else mask[0]
    return row


def number(n: int) -> str:
    return f"{n:,}"
