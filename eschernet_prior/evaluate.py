"""Evaluate a prior on posed renders: PSNR, SSIM and LPIPS by the number of references.

    python -m eschernet_prior.evaluate --model outputs/prior/pipeline --scenes 24 --out outputs/prior/evaluation
    python -m eschernet_prior.evaluate --model kxic/eschernet-6dof --data GSO30 --hard-alpha --out outputs/gso

Data are folders of posed renders (`render_folders`), NeRF-synthetic scenes (folders with `transforms_train.json`
and `transforms_test.json`), or held-out procedural scenes. Protocol: the views of an object are shuffled once by
the seed and the object's number. The first N views are the references, so that larger sets contain smaller ones; the
targets follow the largest set, so that all N are evaluated on the same views. Scores are means over views, then over
objects. The prior is compared with three trivial predictors (`evaluation.baselines`). The output folder contains
`metrics.json` and `OBJECT.png` with a row for each N, references | predictions, and the ground truth below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import tyro
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE, get_progress
from rich.table import Table
from torch import Tensor
from torchvision.utils import make_grid, save_image

from eschernet_prior.base import image_metrics
from eschernet_prior.base.errors import exit_on_user_error
from eschernet_prior.base.files import atomic_path, write_json
from eschernet_prior.data.nerf_synthetic import is_nerf_synthetic, read_nerf_synthetic
from eschernet_prior.data.procedural_renders import FIRST_HELD_OUT, render_scenes, scene_folder
from eschernet_prior.data.render_folders import RenderFolders
from eschernet_prior.evaluation import baselines
from eschernet_prior.pipeline import EscherNetPipeline

PRIOR = "prior"
"""Name of the evaluated pipeline among the predictors."""
Metric = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of the command line."""

    model: str
    """Folder or hub id of the prior."""
    cape: Literal["6dof", "4dof"] | None = None
    """Camera positional encoding, if the weights do not record it."""
    data: tuple[Path, ...] = ()
    """Folders of posed renders or NeRF-synthetic scenes, instead of procedural scenes."""
    scenes: int = 24
    """Number of procedural scenes, without --data."""
    first_scene: int = FIRST_HELD_OUT
    """Number of the first procedural scene."""
    views: int = 25
    """Views of each procedural scene."""
    references: tuple[int, ...] = (1, 2, 3, 5, 10)
    """Numbers of references to evaluate."""
    targets: int = 15
    """Largest number of targets of an object."""
    steps: int = 50
    """Denoising steps."""
    guidance_scale: float = 3.0
    """Scale of classifier-free guidance."""
    seed: int = 0
    """Seed of the shuffling and the noise."""
    hard_alpha: bool = False
    """Make only pixels of alpha 0 white, like the original, instead of blending."""
    lpips: bool = True
    """Measure LPIPS; its AlexNet weights are downloaded on first use."""
    half: bool = False
    """Run UNet and autoencoder in float16."""
    pictures: int = 8
    """Number of objects for which pictures are written."""
    out: Path = Path("outputs/evaluation")
    """Output folder."""


class Subject(NamedTuple):
    """One object with all its views."""

    name: str
    images: Float[Tensor, "views 3 size size"]
    """In [0, 1], on white."""
    poses: Float[Tensor, "views 4 4"]
    """World-to-camera in the prior's frame."""


Scores = dict[str, dict[int, dict[str, float]]]
"""Means by predictor, number of references and metric."""


def main(options: EvaluationOptions) -> Scores:
    """Evaluate, print a table and write the output folder.

    Returns:
        The means.

    Raises:
        UserError: If the model or the data do not fit the options.
    """
    dtype = torch.float16 if options.half else torch.float32
    pipeline = EscherNetPipeline.from_pretrained(options.model, options.cape, torch_dtype=dtype)
    pipeline.to("cuda" if torch.cuda.is_available() else "cpu").set_progress_bar_config(disable=True)
    metrics: dict[str, Metric] = {"psnr": image_metrics.psnr, "ssim": image_metrics.ssim}
    if options.lpips:
        metrics["lpips"] = image_metrics.lpips
    numbers = sorted(set(options.references))
    measured: list[Scores] = []
    subjects = list(find_subjects(options, pipeline.config["image_size"]))
    with get_progress("Measuring", suffix="objects/s") as progress:
        for index, subject in progress.track(list(enumerate(subjects))):
            scores, sheet = measure(pipeline, subject, index, numbers, metrics, options)
            measured.append(scores)
            if index < options.pictures:
                with atomic_path(options.out / f"{subject.name}.png") as partial:
                    save_image(sheet, partial)
    means = mean_scores(measured)
    write_json(options.out / "metrics.json", report(options, subjects, means, measured))
    CONSOLE.print(table(means, list(metrics)))
    return means


def find_subjects(options: EvaluationOptions, size: int) -> Iterator[Subject]:
    """All objects that the options select, at the size of the prior.

    Raises:
        UserError: If an object has too few views, or there is no object.
    """
    needed = max(options.references) + 1
    scenes = [path for path in options.data if is_nerf_synthetic(path)]
    folders = [path for path in options.data if path not in scenes]
    for path in scenes:
        yield Subject(path.name, *read_nerf_synthetic(path, size, max(options.references), options.targets))
    if not options.data:
        seeds = range(options.first_scene, options.first_scene + options.scenes)
        folder = options.out / "renders" / f"{options.views}_views_{size}"
        render_scenes(folder, seeds, options.views, size)
        folders = [scene_folder(folder, seed) for seed in seeds]
    if not folders:
        return
    renders = RenderFolders(folders, size, min_views=needed, hard_alpha=options.hard_alpha)
    for index, folder in enumerate(renders.objects):
        views = renders.read(index, range(renders.num_views(index)))
        order = torch.randperm(
            len(views), generator=torch.Generator().manual_seed(1000 * options.seed + index)
        ).tolist()[: max(options.references) + options.targets]
        images = torch.stack([views[place].image for place in order]).float() / 255
        yield Subject(folder.name, images, torch.stack([views[place].pose for place in order]))
    for reason, count in renders.counts().items():
        CONSOLE.print(f"Skipped: {count} × {reason}.")


def measure(
    pipeline: EscherNetPipeline,
    subject: Subject,
    index: int,
    numbers: list[int],
    metrics: dict[str, Metric],
    options: EvaluationOptions,
) -> tuple[Scores, Float[Tensor, "3 height width"]]:
    """Evaluate one object: scores of all predictors, and a sheet of the prior's predictions."""
    most = numbers[-1]
    truth, target_poses = subject.images[most:], subject.poses[most:]

    def prior(references: Tensor, source_poses: Tensor, wanted: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * options.seed + index)
        made: Any = pipeline(
            references,
            source_poses,
            wanted,
            options.steps,
            options.guidance_scale,
            generator=generator,
            output_type="pt",
        )
        return made.images.cpu()

    scores: Scores = {}
    rows = []
    for name, predictor in {**baselines.TRIVIAL, PRIOR: prior}.items():
        scores[name] = {}
        for number in numbers:
            made = predictor(subject.images[:number], subject.poses[:number], target_poses)
            scores[name][number] = {metric: float(of(made, truth).mean()) for metric, of in metrics.items()}
            if name == PRIOR:
                blank = torch.ones_like(subject.images[: most - number])
                rows.append(torch.cat((subject.images[:number], blank, made)))
    rows.append(torch.cat((torch.ones_like(subject.images[:most]), truth)))
    return scores, make_grid(torch.cat(rows), nrow=len(rows[0]), padding=2)


def mean_scores(measured: list[Scores]) -> Scores:
    """Means over objects."""
    first = measured[0]
    return {
        name: {
            number: {
                metric: sum(scores[name][number][metric] for scores in measured) / len(measured) for metric in metrics
            }
            for number, metrics in by_number.items()
        }
        for name, by_number in first.items()
    }


def report(
    options: EvaluationOptions, subjects: list[Subject], means: Scores, measured: list[Scores]
) -> dict[str, Any]:
    """The content of `metrics.json`: the protocol, the means, and the prior's scores of each object."""
    protocol = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
    protocol["data"] = [str(path) for path in options.data]
    return {
        "protocol": protocol,
        "objects": len(subjects),
        "target_views": sum(len(subject.images) - max(options.references) for subject in subjects),
        "means": means,
        "by_object": {subject.name: scores[PRIOR] for subject, scores in zip(subjects, measured)},
    }


def table(means: Scores, metrics: list[str]) -> Table:
    """Table of the means: predictors by numbers of references."""
    numbers = list(next(iter(means.values())))
    shown = Table("", "", *(f"N = {number}" for number in numbers))
    for metric in metrics:
        for name, by_number in means.items():
            digits = 2 if metric == "psnr" else 4
            cells = (f"{by_number[number][metric]:.{digits}f}" for number in numbers)
            shown.add_row(metric.upper(), name, *cells, style="bold" if name == PRIOR else None)
    return shown


def cli() -> None:
    """The command line."""
    with exit_on_user_error():
        main(tyro.cli(EvaluationOptions, description=__doc__))


if __name__ == "__main__":
    cli()
