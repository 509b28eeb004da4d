"""Measure the effect of densification: fields from few photos, with and without generated views.

    python -m eschernet_prior.few_views --out outputs/few_views

Objects are procedural scenes that the prior was never trained on. Every field is an `eschernet-nerfacto-tiny` with
the same photos, held-out views and number of steps; *variants* differ in:

    photos alone       no generated views
    densified          the default method
    without …          one of the three trust criteria disabled, for fewer objects and one number of photos
    true views         generated views replaced by true renders from their poses, with full trust
    as many photos     photos alone, as many as photos and generated views together; equal results of true views verify
                       all pose conventions

Each measured field is a file in `OUT/fields`: repeating the command measures those that are missing or have other
options. The results are a table on screen, `OUT/metrics_15_views.json` and `OUT/fields_15_views.png`. Shapes from 36
views, as in the paper (fields from photos alone are reused):

    python -m eschernet_prior.few_views --out outputs/few_views --photos 1 2 3 5 --views 36 --close-objects 0
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import tyro
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE, get_progress
from rich.table import Table
from torch import Tensor
from torchvision.utils import make_grid, save_image

from eschernet_prior.base import image_metrics
from eschernet_prior.base.errors import exit_on_user_error
from eschernet_prior.base.files import atomic_path, read_json, write_json
from eschernet_prior.base.images import read_image, write_image
from eschernet_prior.base.trainer import RunTrainerConfig
from eschernet_prior.config import eschernet_nerfacto_tiny
from eschernet_prior.data.procedural_renders import FIRST_HELD_OUT
from eschernet_prior.densify.datamanager import DensifyDataManager, DensifyDataManagerConfig, with_generated
from eschernet_prior.evaluation.shape_metrics import shape_scores
from eschernet_prior.frames import PRIOR_FOV_DEGREES
from eschernet_prior.procedural.dataparser import ProceduralDataParserConfig
from eschernet_prior.procedural.scenes import find_scene, render

ALONE, DENSIFIED, TRUE, MORE = "photos alone", "densified", "true views", "as many photos"
LEFT_OUT = {f"without {name}": f"trust_{name}" for name in ("agreement", "nearness", "outlines")}
"""Variants without one of the trust criteria, and the option that disables it."""
METRICS = {"psnr": 2, "ssim": 4, "chamfer": 4, "iou": 3}
"""Metrics and their displayed digits."""
SHOWN = 4
"""Held-out views of an object on the sheet."""


@dataclass(frozen=True)
class FewViewsOptions:
    """Options of the command line."""

    out: Path = Path("outputs/few_views")
    """Output folder; existing results are used."""
    prior: str = "embedded"
    """The prior, as in --pipeline.datamanager.densify.prior."""
    objects: int = 8
    """Number of procedural objects."""
    first_object: int = FIRST_HELD_OUT + 1000
    """Number of the first object."""
    scenes: tuple[str, ...] = ()
    """Embedded scenes by name, instead of numbered objects."""
    photos: tuple[int, ...] = (2, 3, 5, 10)
    """Numbers of photos to evaluate."""
    views: int = 15
    """Generated views."""
    steps: int = 600
    """Training steps of each field."""
    held_out: int = 12
    """Held-out views of an object."""
    resolution: int = 64
    """Side of photos and held-out views in pixels."""
    close_look: int = 3
    """Number of photos for the variants without a trust criterion and with true views."""
    close_objects: int = 4
    """Number of objects for these variants."""

    @property
    def names(self) -> list[str]:
        """The scenes under procedural-data's names."""
        return list(self.scenes) or [str(self.first_object + index) for index in range(self.objects)]


class FieldRow(NamedTuple):
    """One field to train and evaluate."""

    scene: str
    photos: int
    variant: str

    def file(self, options: FewViewsOptions) -> Path:
        """File of its scores."""
        views = "" if self.variant == ALONE else f"_{options.views}_views"
        return options.out / "fields" / f"{self.scene}_{self.photos:02d}_{self.variant.replace(' ', '_')}{views}.json"

    def settings(self, options: FewViewsOptions) -> dict[str, Any]:
        """The options that its scores depend on, in addition to those in the file name."""
        shared = {"steps": options.steps, "held_out": options.held_out, "resolution": options.resolution}
        return shared if self.variant in (ALONE, MORE) else {**shared, "prior": options.prior}

    def scores(self, options: FewViewsOptions) -> dict[str, float] | None:
        """The scores; None if they are missing or have other options."""
        kept = read_json(self.file(options)) or {}
        return kept["scores"] if kept.get("settings") == self.settings(options) else None


class TrueViews(DensifyDataManager):
    """A data manager with true renders in place of generated views, as from a perfect prior."""

    def create_train_dataset(self) -> Any:
        """The photos, and true renders at the poses of the generated views."""
        dataset = super().create_train_dataset()
        assert self.densified is not None
        scene = find_scene(self.config.dataparser.scene, background=False)  # pyright: ignore[reportAttributeAccessIssue]
        poses, size = self.densified.cameras.camera_to_worlds, int(self.densified.cameras.width[0])
        shown = render(scene, poses, size, size, PRIOR_FOV_DEGREES).colour.permute(0, 3, 1, 2)
        folder = self.densified.folder.parent / "true" / self.densified.folder.name
        for name, picture in zip(self.densified.names, shown):
            write_image(folder / "images" / f"{name}.png", picture)
        self.densified = replace(self.densified, folder=folder)
        self._weights = torch.ones(len(poses), size, size)
        photos = self.dataparser.get_dataparser_outputs(split="train")
        self.train_dataparser_outputs = with_generated(photos, self.densified)
        return type(dataset)(self.train_dataparser_outputs)


def fields(options: FewViewsOptions) -> Iterator[FieldRow]:
    """All fields to evaluate, those of the main table first."""
    for count in options.photos:
        for scene in options.names:
            yield FieldRow(scene, count, ALONE)
            yield FieldRow(scene, count, DENSIFIED)
    for scene in options.names[: options.close_objects]:
        for variant in (*LEFT_OUT, TRUE, MORE):
            yield FieldRow(scene, options.close_look, variant)


def configured(field: FieldRow, options: FewViewsOptions) -> RunTrainerConfig:
    """Trainer configuration of a field."""
    config: Any = copy.deepcopy(eschernet_nerfacto_tiny.config)
    manager: DensifyDataManagerConfig = config.pipeline.datamanager
    manager.fewest_photos = 1  # fields from fewer photos than usual are part of the measurement
    manager.dataparser = ProceduralDataParserConfig(
        scene=field.scene,
        background=False,
        num_views=field.photos + (options.views if field.variant == MORE else 0),
        num_eval_views=options.held_out,
        resolution=options.resolution,
    )
    manager.data = Path(f"object_{field.scene}")
    manager.densify.prior = options.prior
    manager.densify.num_views = 0 if field.variant in (ALONE, MORE) else options.views
    if field.variant in LEFT_OUT:
        setattr(manager.densify, LEFT_OUT[field.variant], False)
    if field.variant == TRUE:
        manager._target = TrueViews
    config.output_dir = options.out / "runs"
    made_with = hashlib.sha256(json.dumps(field.settings(options), sort_keys=True).encode()).hexdigest()[:8]
    config.timestamp = f"{field.file(options).stem}_{made_with}"
    config.vis = "tensorboard"  # no viewer
    config.max_num_iterations = options.steps
    config.steps_per_save = options.steps
    config.steps_per_eval_batch = config.steps_per_eval_image = config.steps_per_eval_all_images = 10 * options.steps
    for group in config.optimizers.values():
        group["scheduler"] = replace(group["scheduler"], max_steps=options.steps)
    return config


def measure(field: FieldRow, options: FewViewsOptions) -> dict[str, Any]:
    """Train a field and compare it with the held-out views and the object's surface.

    Returns:
        Means of PSNR (dB) and SSIM over the held-out views, Chamfer distance and volume IoU (`shape_metrics`);
        some renders are written in addition to the scores.
    """
    config = configured(field, options)
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(config.machine.seed)
    config.set_timestamp()
    trainer: Any = config.setup(local_rank=0, world_size=1)
    trainer.setup()
    trainer.train()
    shown, truth = held_out_views(trainer.pipeline)
    picture = field.file(options).with_suffix(".png")
    with atomic_path(picture) as partial:
        save_image(torch.cat((shown[:SHOWN], truth[:SHOWN])), partial, nrow=SHOWN, padding=1)
    return {
        "psnr": float(image_metrics.psnr(shown, truth).mean()),
        "ssim": float(image_metrics.ssim(shown, truth).mean()),
        **shape_scores(trainer.pipeline.model, find_scene(field.scene, background=False)),
    }


@torch.no_grad()
def held_out_views(
    pipeline: Any,
) -> tuple[Float[Tensor, "views 3 height width"], Float[Tensor, "views 3 height width"]]:
    """(renders, truth) of all held-out views, in [0, 1]."""
    dataset, model = pipeline.datamanager.eval_dataset, pipeline.model
    model.eval()
    shown, truth = [], []
    for index in range(len(dataset)):
        made = model.get_outputs_for_camera(dataset.cameras[index : index + 1].to(pipeline.device))
        shown.append(made["rgb"].clamp(0, 1).permute(2, 0, 1).cpu())
        picture = dataset[index]["image"]
        truth.append(picture[..., :3].permute(2, 0, 1))
    return torch.stack(shown), torch.stack(truth)


def main(options: FewViewsOptions) -> dict[str, Any]:
    """Evaluate missing fields, print the table and write the output folder.

    Returns:
        Means by variant, number of photos and metric.
    """
    todo = list(fields(options))
    with get_progress("Training fields", suffix="fields") as progress:
        task = progress.add_task("", total=len(todo))
        for done, field in enumerate(todo):
            progress.update(task, completed=done)
            if field.scores(options) is None:
                write_json(
                    field.file(options), {"settings": field.settings(options), "scores": measure(field, options)}
                )
        progress.update(task, completed=len(todo))
    means = mean_scores(todo, options)
    protocol = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
    write_json(options.out / f"metrics_{options.views}_views.json", {"protocol": protocol, "means": means})
    write_sheet(options)
    CONSOLE.print(table(means))
    return means


def mean_scores(measured: list[FieldRow], options: FewViewsOptions) -> dict[str, Any]:
    """Means over objects; variants with fewer objects are compared on these objects, under "close look"."""

    def mean(some: list[FieldRow]) -> dict[str, float]:
        scores: list[Any] = [field.scores(options) for field in some]
        return {name: float(np.mean([score[name] for score in scores])) for name in METRICS}

    close = {field.scene for field in measured if field.variant not in (ALONE, DENSIFIED)}
    main_table = {
        variant: {
            str(count): mean([field for field in measured if (field.photos, field.variant) == (count, variant)])
            for count in options.photos
        }
        for variant in (ALONE, DENSIFIED)
    }
    looked = [field for field in measured if field.photos == options.close_look and field.scene in close]
    variants = dict.fromkeys(field.variant for field in looked)
    return {
        "by_photos": main_table,
        "close_look": {variant: mean([field for field in looked if field.variant == variant]) for variant in variants},
    }


def write_sheet(options: FewViewsOptions) -> None:
    """Write a sheet of held-out views of every object: photos alone | densified | ground truth."""
    rows = []
    for scene in options.names:
        pictures = [
            FieldRow(scene, options.close_look, variant).file(options).with_suffix(".png")
            for variant in (ALONE, DENSIFIED)
        ]
        if all(path.is_file() for path in pictures):
            alone, densified = (read_image(path) for path in pictures)
            half = alone.shape[1] // 2
            rows.append(torch.cat((alone[:, :half], densified[:, :half], densified[:, half : 2 * half]), dim=2))
    if rows:
        write_image(options.out / f"fields_{options.views}_views.png", make_grid(torch.stack(rows), nrow=1, padding=2))


def table(means: dict[str, Any]) -> Table:
    """Table of the means, one row per variant."""
    counts = list(next(iter(means["by_photos"].values())))
    columns = max(len(counts), len(METRICS))  # the close look has one column per metric
    shown = Table("", "", *(f"{count} photos" for count in counts), *[""] * (columns - len(counts)))
    for metric, digits in METRICS.items():
        for variant, scores in means["by_photos"].items():
            shown.add_row(metric.upper(), variant, *(f"{scores[count][metric]:.{digits}f}" for count in counts))
    for variant, scores in means["close_look"].items():
        shown.add_row("close look", variant, *(f"{metric} {scores[metric]:.{METRICS[metric]}f}" for metric in METRICS))
    return shown


def cli() -> None:
    """The command line."""
    with exit_on_user_error():
        main(tyro.cli(FewViewsOptions, description=__doc__))


if __name__ == "__main__":
    cli()
