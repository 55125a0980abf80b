"""Training: show a text, predict each next token, measure the error, update; the article's loop, a record a step.

    for progress in Training(decoder, batches, recipe).run():
        ...

Everything is a function of the parameters, the optimizers' state and the step: no random number is drawn here, so a
run that was interrupted and resumed computes what it would have computed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gptcli.compiled import has_compiler
from gptcli.data import IGNORED, Batch, Batches, Pairs
from gptcli.errors import GptcliError
from gptcli.model import Attention, Decoder
from gptcli.optimizer import is_matrix, optimizers, restore, share, states
from gptcli.recipe import Precision, Recipe
from gptcli.records import Lesson, Progress

MICRO_TOKENS, MICRO_SCORES = 16_384, 1 << 27  # more than these are not sent through the decoder at once
CACHED_TOKENS = 4096  # nor these where it attends in blocks: 16 x 512 takes 2.4 times what 4 x 4 x 512 does
LONGEST_IN_BLOCKS = 2048  # tokens of a text; at 4,096 PyTorch's own attention is as fast, and keeps no scores
COMPILE_FLOPS = 1e14  # a run of less is over before compiling it has paid


def initialise(decoder: Decoder, seed: int, std: float = 0.02) -> None:
    """GPT-2's: N(0, 0.02) matrices, and smaller by sqrt(2L) where a matrix writes to the stream; no biases."""
    generator = torch.Generator().manual_seed(seed)
    n_writes = 2 * decoder.config.n_layer
    for name, p in decoder.named_parameters():
        if not is_matrix(name, p):
            (nn.init.zeros_ if name.endswith("bias") else nn.init.ones_)(p)
        else:
            writes = name.endswith(("attn.out.weight", "mlp.down.weight"))
            size = std * share(decoder, name) / math.sqrt(n_writes if writes else 1)
            p.data.copy_(torch.empty(p.shape).normal_(0.0, size, generator=generator))


def losses(decoder: Decoder, ids: Tensor, labels: Tensor) -> Tensor:
    """The cross-entropy of every next token that is asked for, summed; nats. ids, labels: [B, T]."""
    logits = decoder(ids)  # [B, T, V]
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED, reduction="sum")


def at_once(recipe: Recipe, n_vocab: int, *, cached: bool) -> int:
    """Sequences that are sent through the decoder together; in parts of one size, if the step is compiled for it.

    cached: whether their scores are to stay in the processor's cache.
    """
    most = min(MICRO_TOKENS, MICRO_SCORES // n_vocab, CACHED_TOKENS if cached else MICRO_TOKENS)
    most = max(1, most // recipe.n_ctx)
    if not recipe.compiled or most >= recipe.batch:
        return most
    even = max(n for n in range(1, most + 1) if recipe.batch % n == 0)
    return even if 2 * even >= most else most  # a batch of 13 goes in two sizes, each of which is compiled


class Training:
    """A decoder being trained. `step` counts the steps done; parameters with requires_grad are the ones that move."""

    def __init__(
        self,
        decoder: Decoder,
        batches: Batches,
        recipe: Recipe,
        *,
        step: int = 0,
        n_tokens: int = 0,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.decoder, self.batches, self.recipe = decoder, batches, recipe
        self.step, self.n_tokens = step, n_tokens
        self.saved = step  # the last step that is kept on the disk; 0: none
        self.torn = False  # while an update is half made: then the parameters are those of no step
        self.stops = False  # whether it is to stop once the update is made, as by Ctrl-C
        self.device = decoder.embed.weight.device
        self.parameters = {name: p for name, p in decoder.named_parameters() if p.requires_grad}
        self._autocast = recipe.precision == "bfloat16"
        self.optimizers = optimizers(decoder, recipe, torch.bfloat16 if self._autocast else torch.float32)
        if state is not None:
            restore(self.optimizers, state)
        uneven = isinstance(batches, Pairs)  # as wide as a batch's longest row; or each width would be compiled anew
        in_blocks = recipe.compiled and self._autocast and self.device.type == "cpu" and not uneven
        in_blocks = in_blocks and recipe.n_ctx <= LONGEST_IN_BLOCKS
        for module in decoder.modules():
            if isinstance(module, Attention):
                module.in_blocks = in_blocks
        self._micro = recipe.micro_batch or at_once(recipe, decoder.config.n_vocab, cached=in_blocks)
        self._fast = torch.compile(self._sum, dynamic=uneven) if recipe.compiled else self._sum
        self._fixed = list(batches.validation())

    def run(self, *, validate_every: int = 0, show_every: int = 0) -> Iterator[Progress]:
        """One record for each step that is left. Raises GptcliError when a loss or a gradient is not a number."""
        r, began, first = self.recipe, time.perf_counter(), self.step
        while self.step < r.n_steps:
            t0 = time.perf_counter()
            batch = self._here(self.batches.train(r.first(self.step), r.first(self.step + 1)))
            rate = r.rate(self.step)
            loss, norm = self._gradients(batch, self._losses)
            shown = show_every and (self.step - first) % show_every == 0
            before = self._lesson(batch) if shown else None
            self.torn = True
            for optimizer in self.optimizers:
                optimizer.step(rate)
            self.step += 1
            self.n_tokens += count(batch)
            lesson, validation, interrupted = None, None, False
            seconds, n_new, last = time.perf_counter() - t0, count(batch), self.step == r.n_steps
            try:
                self.torn = False
                if self.stops:
                    raise KeyboardInterrupt
                lesson = self._learned(before, batch)
                if validate_every and (last or self.step % validate_every == 0):
                    validation = self.validate()
            except KeyboardInterrupt:  # the step is made, and belongs into the record of the run
                interrupted = True
            if validation is not None:
                self._check(self.step, "validation loss", validation)
            yield Progress(
                step=self.step,
                n_steps=r.n_steps,
                n_tokens=self.n_tokens,
                loss=loss,
                learning_rate=rate,
                grad_norm=norm,
                tokens_per_s=n_new / seconds,
                validation=validation,
                seconds=time.perf_counter() - began,
                lesson=lesson,
            )
            if interrupted:
                raise KeyboardInterrupt

    def validate(self) -> float | None:
        """Mean loss on the validation batches, nats a token; None if there are none."""
        with torch.no_grad():
            total = sum(float(self._sum(*part)) for batch in self._fixed for part in self._parts(self._here(batch)))
        return total / sum(map(count, self._fixed)) if self._fixed else None

    def check(self) -> None:
        """Raises GptcliError where a save would be of no use: one more sequence must give a loss and a gradient."""
        first = self.recipe.first(self.step)
        self._gradients(self._here(self.batches.train(first, first + 1)), self._sum)
        for name, p in self.parameters.items():
            self._check(self.step, f"sum of {name}", float(p.detach().sum()))

    def _check(self, step: int, what: str, value: float) -> None:
        """Raises GptcliError, which names the last save, where a value is not a finite number."""
        if math.isfinite(value):
            return
        kept, hint = "", "a lower --learning-rate may help"
        if self.saved:
            kept, hint = f"; the last good save is step {self.saved}", f"--resume goes on from there; {hint}"
        raise GptcliError(f"step {step}: the {what} is {value}{kept}", hint=hint)

    def state(self) -> dict[str, Tensor]:
        """What the optimizers remember, by parameter: `blocks.0.attn.q.weight:exp_avg` and its like."""
        return dict(states(self.optimizers))

    def _sum(self, ids: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            return losses(self.decoder, ids, labels)

    def _losses(self, ids: Tensor, labels: Tensor) -> Tensor:
        """The same as the recipe has it computed; a growing batch would have each number of rows compiled anew."""
        n = self._micro - len(ids)
        if self.recipe.compiled and self.recipe.ramp_tokens and n > 0:  # rows that count for nothing
            ids, labels = F.pad(ids, (0, 0, 0, n)), F.pad(labels, (0, 0, 0, n), value=IGNORED)
        with self._in_order():
            return self._fast(ids, labels)

    @contextmanager
    def _in_order(self) -> Iterator[None]:
        """What a compiled step adds up from several threads, the embedding's gradient, in one order every time."""
        if not self.recipe.compiled or self.device.type != "cpu":
            yield
            return
        memory: Any = torch.utils.deterministic
        was = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False  # all of it is written before it is read
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(was[0])
            memory.fill_uninitialized_memory = was[1]

    def _gradients(self, batch: Batch, summed: Callable[[Tensor, Tensor], Tensor]) -> tuple[float, float]:
        """The mean loss of a batch and the norm of its gradient, which is left in the parameters, clipped."""
        for p in self.parameters.values():
            p.grad = None
        n, total = count(batch), 0.0
        for ids, labels in self._parts(batch):
            loss = summed(ids, labels)
            with self._in_order():
                torch.autograd.backward(loss / n)
            total += float(loss.detach())
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self.recipe.clip))
        self._check(self.step + 1, "loss", total / n)
        self._check(self.step + 1, "gradient's norm", norm)
        return total / n, norm

    def _parts(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """What is sent through the decoder at once: as many sequences as fit."""
        yield from zip(torch.split(batch.ids, self._micro), torch.split(batch.labels, self._micro), strict=True)

    def _here(self, batch: Batch) -> Batch:
        return Batch(ids=batch.ids.to(self.device), labels=batch.labels.to(self.device))

    @torch.no_grad()
    def _lesson(self, batch: Batch) -> tuple[Lesson, int] | None:
        """A position early in the batch's first sequence, as it is before the update; and where it is."""
        learned = (batch.labels[0] != IGNORED).nonzero().flatten()
        if not len(learned):
            return None
        at = int(learned[min(len(learned) - 1, 8 + self.step * 7 % 24)])
        p, label = self._probabilities(batch, at), int(batch.labels[0, at])
        guess, features = int(p.argmax()), tuple(batch.ids[0, max(0, at - 15) : at + 1].tolist())
        before = float(p[label])
        return Lesson(
            features=features, label=label, guess=guess, p_guess=float(p[guess]), p_before=before, p_after=before
        ), at

    def _learned(self, before: tuple[Lesson, int] | None, batch: Batch) -> Lesson | None:
        """The same lesson with what the update made of it."""
        if before is None:
            return None
        lesson, at = before
        return replace(lesson, p_after=float(self._probabilities(batch, at)[lesson.label]))

    @torch.no_grad()
    def _probabilities(self, batch: Batch, at: int) -> Tensor:
        x = self.decoder.stream(batch.ids[:1, : at + 1])
        return self.decoder.readout(x[0, -1]).float().softmax(-1)


class Once:
    """One text, the same at every step."""

    def __init__(self, ids: Sequence[int], device: torch.device) -> None:
        row = torch.tensor([list(ids)], device=device)
        self._batch = Batch(ids=row[:, :-1], labels=row[:, 1:])

    def train(self, start: int, stop: int) -> Batch:
        return self._batch

    def validation(self) -> Sequence[Batch]:
        return ()


def lessons(decoder: Decoder, ids: Sequence[int], learning_rate: float) -> list[Lesson]:
    """One step of Adam on one text, and what each of its examples gave before and after. It changes the decoder.

    ids: two or more, and no more than the context and one. Raises GptcliError when the loss is not a number.
    """
    device = decoder.embed.weight.device
    recipe = Recipe(n_steps=1, n_ctx=len(ids) - 1, batch=1, learning_rate=learning_rate, schedule="constant")
    labels = torch.tensor(ids[1:], device=device)[:, None]

    @torch.no_grad()
    def chances() -> Tensor:
        logits: Tensor = decoder(torch.tensor([list(ids[:-1])], device=device))
        return logits[0].float().softmax(-1)  # [T, V]

    before = chances()
    p_guess, guess = before.max(-1)
    next(Training(decoder.requires_grad_(True), Once(ids, device), recipe).run())
    rows = zip(
        guess.tolist(),
        p_guess.tolist(),
        before.gather(1, labels)[:, 0].tolist(),
        chances().gather(1, labels)[:, 0].tolist(),
        strict=True,
    )
    return [
        Lesson(features=tuple(ids[: i + 1]), label=ids[i + 1], guess=g, p_guess=p, p_before=b, p_after=a)
        for i, (g, p, b, a) in enumerate(rows)
    ]


def best_precision(device: torch.device) -> Precision:
    """bfloat16 where the machine multiplies it natively, and so many times faster; float32 elsewhere."""
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":
        native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
        return "bfloat16" if native else "float32"
    return "float32"


def worth_compiling(n_params: int, recipe: Recipe) -> bool:
    """Whether a run is long enough, and a compiler is there."""
    work = 6 * n_params * recipe.n_tokens(recipe.n_steps)
    return work > COMPILE_FLOPS and has_compiler()


def count(batch: Batch) -> int:
    return max(1, int((batch.labels != IGNORED).sum()))
