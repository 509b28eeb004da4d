"""Training loop: learning rate, processes, averaged weights, checkpoints, log, samples.

The run folder contains `checkpoint.pt` (tensors and numbers only), `log.jsonl` (one line per step), `samples/` and
TensorBoard's files. A run resumes from its checkpoint. Because the data of a step depend only on its number, a resumed
run takes the same steps as an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, InitProcessGroupKwargs
from diffusers.training_utils import EMAModel
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor, nn
from torchvision.utils import save_image

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import atomic_path
from eschernet_prior.base.recipes import LoopRecipe

LOG_EVERY = 20
"""Steps between reports."""


def accelerator_for(folder: Path, mixed_precision: str, gradient_accumulation: int) -> Accelerator:
    """Accelerator with TensorBoard logging for a run folder."""
    return Accelerator(
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=gradient_accumulation,
        log_with="tensorboard",
        project_dir=folder,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=timedelta(hours=24))
        ],  # the other processes wait while one renders
    )


def learning_rate(step: int, recipe: LoopRecipe) -> float:
    """Learning rate of a step: linear warm-up from `first_rate`, then cosine decay to `last_rate`."""
    if step < recipe.warmup:
        share = recipe.first_rate + (1.0 - recipe.first_rate) * step / recipe.warmup
    else:
        done = min((step - recipe.warmup) / max(recipe.steps - recipe.warmup, 1), 1.0)
        share = recipe.last_rate + (1.0 - recipe.last_rate) * 0.5 * (1.0 + math.cos(math.pi * done))
    return share * recipe.learning_rate


class TrainingRun:
    """One training, on any number of processes.

    Attributes:
        accelerator: Processes, precision and gradient accumulation.
        step: Optimiser steps taken.
        model: The module to call, wrapped by accelerate.
    """

    def __init__(
        self,
        module: nn.Module,
        recipe: LoopRecipe,
        folder: Path,
        accelerator: Accelerator,
        rates: Mapping[int, float] | None = None,
    ) -> None:
        """Prepare the module for training, and resume from the folder's checkpoint, if any.

        Args:
            module: The network to train.
            recipe: Steps, learning rate and optimiser.
            folder: The run folder.
            accelerator: Processes, precision and gradient accumulation.
            rates: Learning rates of individual parameters as shares of the recipe's, by `id` of the parameter.

        Raises:
            UserError: If the checkpoint belongs to another network.
        """
        self.recipe, self.folder, self.accelerator = recipe, folder, accelerator
        self.module, self.step = module, 0
        self._unreported: list[Tensor] = []
        groups: dict[float, list[nn.Parameter]] = {}
        for weight in module.parameters():
            groups.setdefault((rates or {}).get(id(weight), 1.0), []).append(weight)
        optimizer = torch.optim.AdamW(
            [{"params": weights, "share": share} for share, weights in groups.items()],
            recipe.learning_rate,
            betas=recipe.betas,
            weight_decay=recipe.weight_decay,
        )
        self.model, self.optimizer = accelerator.prepare(module.train(), optimizer)
        self.average = EMAModel(module.parameters(), decay=recipe.ema_decay)
        self.average.to(accelerator.device)
        self._resume()
        if accelerator.is_main_process:
            accelerator.init_trackers("tensorboard")

    def train(
        self,
        batches: Iterable[Any],
        loss_of: Callable[[Any], Float[Tensor, ""]],
        sample: Callable[[], Float[Tensor, "3 height width"] | None],
        *,
        sample_every: int,
        minutes_between_checkpoints: float,
        stop_after_minutes: float | None = None,
        notes: Callable[[], dict[str, int]] = dict,
    ) -> bool:
        """Take the remaining steps.

        Args:
            batches: Batches of this process, starting at the current step.
            loss_of: Mean loss of a batch.
            sample: Makes a picture with the averaged weights; called in the main process.
            sample_every: Steps between pictures; 0 for none.
            minutes_between_checkpoints: Interval of checkpoints, in addition to the final one.
            stop_after_minutes: Stop early, with a checkpoint.
            notes: Further numbers for the log.

        Returns:
            Whether all steps have been taken.
        """
        began = saved = time.monotonic()
        first, pieces = self.step, []
        for batch in batches:
            self._set_rate()
            with self.accelerator.accumulate(self.model):
                loss = loss_of(batch)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.max_gradient_norm)
                self.optimizer.step()
                self.optimizer.zero_grad()
            pieces.append(loss.detach())
            if not self.accelerator.sync_gradients:
                continue
            self._unreported.append(torch.stack(pieces).mean())
            self.average.step(self.module.parameters())
            self.step += 1
            pieces, now, last = [], time.monotonic(), self.step == self.recipe.steps
            stop = self._main_decides(stop_after_minutes is not None and now - began > 60 * stop_after_minutes)
            save = last or stop or self._main_decides(now - saved > 60 * minutes_between_checkpoints)
            if self.step % LOG_EVERY == 0 or save:
                self._report((now - began) / (self.step - first), notes())
            if save:
                self.save()
                saved = time.monotonic()
            if sample_every and (self.step % sample_every == 0 or last):
                self.draw(sample)
            if stop:
                break
        return self.step >= self.recipe.steps

    def draw(self, sample: Callable[[], Float[Tensor, "3 height width"] | None]) -> None:
        """Make a picture with the averaged weights, and write it to `samples/` and TensorBoard."""
        if self.accelerator.is_main_process:
            self.average.store(self.module.parameters())
            self.average.copy_to(self.module.parameters())
            self.module.eval()
            with torch.no_grad():
                picture = sample()
            self.module.train()
            self.average.restore(self.module.parameters())
            if picture is not None:
                with atomic_path(self.folder / "samples" / f"{self.step:07d}.png") as partial:
                    save_image(picture, partial)
                board: Any = self.accelerator.get_tracker("tensorboard", unwrap=True)
                board.add_image("samples", picture, self.step)
        self.accelerator.wait_for_everyone()

    def use_average(self) -> None:
        """Replace the module's weights by the averaged ones."""
        self.average.copy_to(self.module.parameters())
        self.module.eval()

    def save(self) -> None:
        """Write the checkpoint, atomically."""
        if self.accelerator.is_main_process:
            state = {
                "step": self.step,
                "module": self.module.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "average": self.average.state_dict(),
                "scaler": self.accelerator.scaler.state_dict() if self.accelerator.scaler is not None else {},
            }
            with atomic_path(self.folder / "checkpoint.pt") as partial:
                torch.save(state, partial)
        self.accelerator.wait_for_everyone()

    def _resume(self) -> None:
        file = self.folder / "checkpoint.pt"
        if not file.is_file():
            return
        state = torch.load(file, map_location="cpu", weights_only=True)
        try:
            self.module.load_state_dict(state["module"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise UserError(f"{file} belongs to a network other than the recipe's: choose another --out.") from error
        self.average.load_state_dict(state["average"])
        self.average.to(self.accelerator.device)
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        if self.accelerator.is_main_process:
            CONSOLE.print(f"Resuming at step {self.step} of {self.recipe.steps}.")

    def _set_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group.get("share", 1.0) * learning_rate(self.step, self.recipe)

    def _main_decides(self, mine: bool) -> bool:
        """The decision of the main process, which all processes follow because clocks differ."""
        if self.accelerator.num_processes == 1:
            return mine
        said: Any = torch.tensor([float(mine and self.accelerator.is_main_process)], device=self.accelerator.device)
        return bool(self.accelerator.reduce(said, "sum"))

    def _report(self, seconds_a_step: float, notes: dict[str, int]) -> None:
        """Write the losses of the steps since the last report, means over all processes."""
        losses: Any = self.accelerator.reduce(torch.stack(self._unreported), "mean")
        self._unreported = []
        if not self.accelerator.is_main_process:
            return
        losses = losses.tolist()
        with (self.folder / "log.jsonl").open("a", encoding="utf8") as log:
            for step, loss in enumerate(losses, self.step - len(losses) + 1):
                log.write(json.dumps({"step": step, "loss": loss}) + "\n")
        mean = sum(losses) / len(losses)
        rate = learning_rate(self.step - 1, self.recipe)
        numbers = {"loss": mean, "learning_rate": rate, "seconds_a_step": seconds_a_step, **notes}
        self.accelerator.log(numbers, step=self.step)
        counted = "".join(f", skipped {count} × {reason}" for reason, count in notes.items())
        CONSOLE.print(
            f"{self.step}/{self.recipe.steps}: loss {mean:.5f}, rate {rate:.2e}, {seconds_a_step:.2f} s a step{counted}"
        )
