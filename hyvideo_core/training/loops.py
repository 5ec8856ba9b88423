"""One training loop for every network here: scheduled, averaged, logged, and resumable at any step.

A step's batch depends on the seed and the step alone, so a run that was stopped and resumed is the same run.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..errors import NonFiniteError, OptionError
from .optimizers import BETAS, Muon

logger = logging.getLogger(__name__)

ModuleT = TypeVar("ModuleT", bound=nn.Module)
LossAt = Callable[[ModuleT, torch.Generator], Tensor]
"""The loss of a module on the batch that a generator (seeded by the step) draws."""

Evaluate = Callable[[ModuleT], dict[str, float]]
"""Named figures of a module with averaged weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How long and how fast: warm-up, then a cosine down to `final_share` of the learning rate.

    Attributes:
        muon: whether hidden matrices learn by Muon instead of AdamW.
    """

    steps: int
    learning_rate: float
    warmup: int = 50
    final_share: float = 0.02
    weight_decay: float = 0.01
    average_decay: float = 0.998
    clip_norm: float = 1.0
    seed: int = 0
    save_every: int = 200
    evaluate_every: int = 200
    muon: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise OptionError(f"a training stage of {self.steps} steps was asked for; give at least 1")

    def rate(self, step: int) -> float:
        """Learning rate at a step."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
        return self.learning_rate * (self.final_share + (1 - self.final_share) * cosine)

    def optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        """A fresh optimizer of a module's parameters."""
        if self.muon:
            return Muon(module, lr=self.learning_rate, weight_decay=self.weight_decay)
        return torch.optim.AdamW(
            module.parameters(), lr=self.learning_rate, betas=BETAS, weight_decay=self.weight_decay
        )

    def generator(self, step: int) -> torch.Generator:
        """The only source of chance in a step."""
        return torch.Generator().manual_seed(self.seed * 1_000_003 + step)


class Run(Generic[ModuleT]):
    """A module in training, with its averaged weights, its optimizer and the number of steps taken."""

    def __init__(self, module: ModuleT, schedule: Schedule) -> None:
        self.module = module
        self.averaged = copy.deepcopy(module).requires_grad_(False)
        self.schedule = schedule
        self.step = 0
        self.optimizer = schedule.optimizer(module)

    def advance(self, loss_at: LossAt[ModuleT]) -> float:
        """Takes one step and gives back its loss.

        Raises:
            NonFiniteError: the loss is NaN or infinite; the weights are left as they were.
        """
        schedule = self.schedule
        for group in self.optimizer.param_groups:
            group["lr"] = schedule.rate(self.step)
        loss = loss_at(self.module, schedule.generator(self.step))
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"the loss became {loss.item()} at training step {self.step}, a finite number was expected; "
                "lower the learning rate and resume from the last checkpoint"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.module.parameters(), schedule.clip_norm)
        self.optimizer.step()
        self.step += 1
        self._average()
        return float(loss.detach())

    def _average(self) -> None:
        """Moves the averaged weights towards the module's, fast at first."""
        weight = 1.0 - min(self.schedule.average_decay, (self.step + 1) / (self.step + 20))
        with torch.no_grad():
            for mean, value in zip(self.averaged.parameters(), self.module.parameters(), strict=True):
                mean.lerp_(value, weight)

    def save(self, path: Path) -> None:
        """Writes everything that `load` needs, replacing the file in one move."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        state = {
            "step": self.step,
            "module": self.module.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        torch.save(state, part)
        part.replace(path)

    def load(self, path: Path) -> None:
        """Continues where `save` stood."""
        state = torch.load(path, map_location="cpu", weights_only=True)
        self.module.load_state_dict(state["module"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])


def train(
    module: ModuleT,
    schedule: Schedule,
    loss_at: LossAt[ModuleT],
    *,
    folder: Path,
    name: str,
    evaluate: Evaluate[ModuleT] | None = None,
) -> ModuleT:
    """Trains to the end of the schedule, from the stage's own checkpoint where there is one.

    Args:
        folder: gets `<name>.pt` (checkpoint) and `<name>.jsonl` (log of losses and figures).
    Returns:
        the module with averaged weights, without gradients.
    """
    # hosts call code under inference_mode; tensors born there can never be trained on
    with torch.inference_mode(False), torch.enable_grad():
        run = Run(module, schedule)
        checkpoint, log = folder / f"{name}.pt", folder / f"{name}.jsonl"
        if checkpoint.exists():
            run.load(checkpoint)
            logger.info("%s: resumed at step %d of %d", name, run.step, schedule.steps)
        with tqdm(total=schedule.steps, initial=run.step, desc=name) as bar:
            _walk(run, loss_at, evaluate, checkpoint, log, bar)
    return run.averaged


def _walk(run: Run, loss_at: LossAt, evaluate: Evaluate | None, checkpoint: Path, log: Path, bar: tqdm[None]) -> None:
    """The steps themselves; the checkpoint is written last, so that a log line may repeat but never miss."""
    schedule, recent, started = run.schedule, [], time.monotonic()
    while run.step < schedule.steps:
        recent.append(run.advance(loss_at))
        bar.update()
        is_last = run.step == schedule.steps
        if is_last or run.step % schedule.evaluate_every == 0:
            figures = {"loss": sum(recent) / len(recent), "seconds": time.monotonic() - started}
            if evaluate is not None:
                with torch.no_grad():
                    figures |= evaluate(run.averaged)
            _append(log, {"step": run.step, **figures})
            bar.set_postfix({key: f"{value:.4g}" for key, value in figures.items()})
            recent = []
        if is_last or run.step % schedule.save_every == 0:
            run.save(checkpoint)


def _append(log: Path, figures: dict[str, float]) -> None:
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps({key: round(value, 5) for key, value in figures.items()}) + "\n")
