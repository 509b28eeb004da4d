"""The loop that all trained stages share: learning rate, averaging of weights, checkpoints, log, sample sheets."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor, nn

from style_nerf2nerf.hub import EMBEDDED_FOLDER


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    recipe: Path = Path("configs/restyler_tiny.yaml")
    """The recipe file."""
    out: Path = Path("outputs/restyler")
    """Where data, checkpoints and sample sheets go; what is there already is used."""
    stage: Literal["all", "data", "vae", "diffusion", "decoder", "export"] = "all"
    """One stage, or all that are not done yet."""
    minutes_between_saves: float = 5.0
    """How often a checkpoint and a sample sheet are written."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """As accelerate understands it."""
    gradient_accumulation: int = 1
    """Batches whose gradients are averaged into one step."""
    export_to: Path = EMBEDDED_FOLDER
    """Where ``export`` writes the models."""


class Stage:
    """The loop that both trained stages share: learning rate, averaging of weights, checkpoints, log, sample sheets."""

    def __init__(
        self,
        name: str,
        model: nn.Module,
        steps: int,
        learning_rate: float,
        warmup: int,
        ema_decay: float,
        options: Options,
    ):
        self.name, self.steps, self.warmup, self.options = name, steps, warmup, options
        self.learning_rate = learning_rate
        self.path = options.out / f"{name}.pt"
        self.accelerator = Accelerator(
            mixed_precision=options.mixed_precision, gradient_accumulation_steps=options.gradient_accumulation
        )
        self.model, self.optimizer = self.accelerator.prepare(
            model, torch.optim.AdamW(model.parameters(), learning_rate, betas=(0.9, 0.99), weight_decay=1e-2)
        )
        self.average = EMAModel(model.parameters(), decay=ema_decay)
        self.average.to(self.accelerator.device)
        self.step = 0

    @property
    def bare(self) -> nn.Module:
        """The model without accelerate's wrapping."""
        return self.accelerator.unwrap_model(self.model)

    def run(self, loss_of: Callable[[int], Tensor], sheet: Callable[[], None]) -> None:
        """Trains from the last checkpoint to the last step; ``loss_of`` gives the loss of the batch of a number."""
        self._resume()
        started = saved = time.monotonic()
        first, total, counted = self.step, 0.0, 0
        batches = self.options.gradient_accumulation
        while self.step < self.steps:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate * self._pace()
            for batch in range(batches):
                with self.accelerator.accumulate(self.model):
                    loss = loss_of(self.step * batches + batch)
                    self.accelerator.backward(loss)
                    if self.accelerator.sync_gradients:
                        self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                total += float(loss.detach()) / batches
            counted += 1
            self.average.step(self.bare.parameters())
            self.step += 1
            if self.step % 20 == 0 or self.step == self.steps:
                self._log(loss=total / counted, seconds_a_step=(time.monotonic() - started) / (self.step - first))
                total, counted = 0.0, 0
            if self.step == self.steps or time.monotonic() - saved > 60 * self.options.minutes_between_saves:
                self._save()
                self._with_average(sheet)
                saved = time.monotonic()
        self.average.copy_to(self.bare.parameters())

    def _pace(self) -> float:
        """Linear warm-up, then a cosine down to a fiftieth."""
        if self.step < self.warmup:
            return (self.step + 1) / self.warmup
        share = (self.step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * share))

    def _with_average(self, action: Callable[[], None]) -> None:
        self.average.store(self.bare.parameters())
        self.average.copy_to(self.bare.parameters())
        self.bare.eval()
        if self.accelerator.is_main_process:
            with torch.no_grad():
                action()
        self.bare.train()
        self.average.restore(self.bare.parameters())

    def _save(self) -> None:
        if not self.accelerator.is_main_process:
            return
        beside = self.path.with_suffix(".part")
        state = {
            "step": self.step,
            "model": self.bare.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict(),
        }
        torch.save(state, beside)
        os.replace(beside, self.path)

    def _resume(self) -> None:
        if self.path.exists():
            state = torch.load(self.path, weights_only=True, map_location=self.accelerator.device)
            self.bare.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average.load_state_dict(state["average"])
            self.average.to(self.accelerator.device)
            self.step = state["step"]

    def _log(self, **values: float) -> None:
        if self.accelerator.is_main_process:
            line = {"stage": self.name, "step": self.step, **{key: round(value, 5) for key, value in values.items()}}
            with (self.options.out / "log.jsonl").open("a") as log:
                log.write(json.dumps(line) + "\n")
            CONSOLE.print(
                f"{self.name} {self.step}/{self.steps}: loss {line['loss']}, {line['seconds_a_step']:.2f} s a step"
            )
