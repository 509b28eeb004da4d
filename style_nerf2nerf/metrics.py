"""Measure restyled views: consistency, sharpness, outlines and agreement with the prompt.

    python -m style_nerf2nerf.metrics --data outputs/SCENE/style-nerf2nerf/TIME/restyled/round_01
    python -m style_nerf2nerf.metrics --held-out 8 --styles van_gogh mosaic

`--data` measures a round's folder, or any nerfstudio dataset with depth, using its depth and poses; the renders from
which the views were restyled are measured as well if the folder contains them. `--held-out` measures the restyling
models: held-out procedural scenes are restyled with and without shared attention, with exact depth and poses, and a
sheet shows photo | shared | alone in every style. The scores are explained in `consistency`; those whose weights are
missing are skipped with a message. The results are printed as a table and written as JSON.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from jaxtyping import Float
from nerfstudio.utils.rich_utils import CONSOLE, get_progress
from rich.markup import escape
from rich.table import Table
from torch import Tensor
from torchvision.utils import make_grid

from eschernet_prior.base.errors import UserError, exit_on_user_error
from eschernet_prior.base.files import write_json
from eschernet_prior.base.images import write_image
from style_nerf2nerf.evaluation.consistency import (
    RANGES,
    clip_scores,
    find_clip,
    find_lpips,
    neighbours,
    outlines,
    sharpness,
    warp_error,
)
from style_nerf2nerf.evaluation.restyled_views import RestyledViews, read_restyled_views

CLIP = "openai/clip-vit-large-patch14"
"""The default CLIP model, which must be in the hub's cache."""


@dataclass(frozen=True)
class MetricsOptions:
    """Options of the command line."""

    data: Path | None = None
    """A round's folder, or a nerfstudio dataset with depth."""
    held_out: int = 0
    """Number of held-out procedural scenes on which to measure the restyling models, instead of --data."""
    source: str = "embedded"
    """With --held-out: the models, as in --pipeline.restyle.source."""
    styles: tuple[str, ...] = ()
    """With --held-out: styles of the embedded models; default: all."""
    views: int = 4
    """With --held-out: number of neighbouring views of each scene."""
    size: int = 128
    """With --held-out: height and width of the views in pixels."""
    truth: bool = True
    """With --held-out: also compare with painted truth: grain, colour, sharpness, likeness, and whether a classifier
    recognises the style."""
    classifier_scenes: int = 24
    """With --held-out: number of training scenes whose paintings in every style the classifier is fitted to."""
    strength: float = 0.5
    """With --held-out: strength of the restyling, from 0 (no change) to 1 (only depth and prompt matter)."""
    num_inference_steps: int = 8
    """With --held-out: denoising steps at full strength."""
    guidance_scale: float = 1.0
    """With --held-out: scale of classifier-free guidance."""
    lpips: bool = True
    """Also measure LPIPS, if AlexNet's weights are cached or can be downloaded."""
    clip: str = CLIP
    """With --data: a CLIP model in the hub's cache, or its folder; it is not downloaded."""
    original_prompt: str = "a photo"
    """With --data: description of the original views, for the CLIP scores."""
    out: Path | None = None
    """Folder of metrics.json and the sheet; default: the folder of --data, or outputs/held_out."""


def main(options: MetricsOptions) -> dict[str, Any]:
    """Measure, print a table and write the JSON.

    Returns:
        The content of the JSON file.

    Raises:
        UserError: If the options select nothing to measure, or data that cannot be measured.
    """
    if (options.data is None) == (options.held_out < 1):
        raise UserError("Choose what to measure: --data with a round's folder, or --held-out with a number of scenes.")
    if options.data is None:
        report = measure_models(options)
        path = (options.out or Path("outputs/held_out")) / "metrics.json"
    else:
        report = measure_data(read_restyled_views(options.data), options)
        path = (options.out or options.data) / "consistency.json"
    write_json(path, report)
    CONSOLE.print(f"All results: {path}", soft_wrap=True, markup=False)
    return report


def measure_data(views: RestyledViews, options: MetricsOptions) -> dict[str, Any]:
    """Measure a round's views, and the renders from which they were restyled."""
    lpips = find_lpips() if options.lpips else None
    pictures = {"restyled": views.images} | ({} if views.originals is None else {"renders": views.originals})
    report: dict[str, Any] = {
        "data": str(options.data),
        "views": len(views.images),
        "sharpness": {name: float(sharpness(images).mean()) for name, images in pictures.items()},
        "outlines": {name: outlines(images, views.depths) for name, images in pictures.items()},
    }
    for name, place in RANGES.items():
        pairs = neighbours(views.cameras, place)
        report[f"{name}_range"] = {
            kind: warp_error(images, views.depths, views.cameras, pairs, lpips).as_json()
            for kind, images in pictures.items()
        }
    if views.originals is not None and views.prompt and (clip := find_clip(options.clip)):
        pairs, words = neighbours(views.cameras, RANGES["short"]), (views.prompt, options.original_prompt)
        scores = clip_scores(clip, views.images, views.originals, *words, pairs)
        report["clip"] = {"model": options.clip, "prompt": words[0], "original_prompt": words[1], **scores}
    CONSOLE.print(data_table(report))
    return report


def data_table(report: dict[str, Any]) -> Table:
    """Table of the scores by kind of pictures."""
    kinds = list(report["sharpness"])
    table = Table("", *kinds)
    for name in RANGES:
        for metric in report[f"{name}_range"]["restyled"]:
            if metric != "pairs":
                row = (f"{report[f'{name}_range'][kind][metric]:.4f}" for kind in kinds)
                table.add_row(f"warp {metric.upper()}, {name} range", *row)
    table.add_row("variance of the Laplacian", *(f"{report['sharpness'][kind]:.1f}" for kind in kinds))
    if report["outlines"]["restyled"] is not None:
        table.add_row("outlines of the depth (ROC AUC)", *(f"{report['outlines'][kind]:.3f}" for kind in kinds))
    for metric in ("direction_similarity", "direction_consistency"):
        if "clip" in report:
            table.add_row(f"CLIP {metric.replace('_', ' ')}", f"{report['clip'][metric]:.4f}")
    return table


def measure_models(options: MetricsOptions) -> dict[str, Any]:
    """Measure restyling with and without shared attention on held-out scenes."""
    from style_nerf2nerf.evaluation.likeness import fitted_classifier
    from style_nerf2nerf.evaluation.sharing import compare, sheet_row
    from style_nerf2nerf.restyler import Restyler, Settings

    unknown = [style for style in options.styles if style not in Restyler.known_styles]
    if unknown:
        raise UserError(f"There is no style “{unknown[0]}”: choose from {', '.join(Restyler.known_styles)}.")
    if options.views < 2:
        raise UserError("Consistency needs at least two views: use --views 2 or more.")
    styles = options.styles or tuple(Restyler.known_styles)
    settings = {name: getattr(options, name) for name in ("strength", "num_inference_steps", "guidance_scale")}
    Settings(prompt="any", **settings).check()
    restyler = Restyler.from_pretrained(options.source, "cuda" if torch.cuda.is_available() else "cpu")
    lpips = find_lpips() if options.lpips else None
    known = tuple(Restyler.known_styles)
    classifier = fitted_classifier(known, options.classifier_scenes, options.size) if options.truth else None
    rows: list[Float[Tensor, "tiles 3 size size"]] = []
    with get_progress("Restyling", suffix="restylings/s") as progress:
        task = progress.add_task("", total=options.held_out * len(styles))

        def on_done(scene: int, style: str, made: dict[str, Tensor]) -> None:
            progress.advance(task)
            # One row per style, each from a different scene.
            if scene == styles.index(style) % options.held_out:
                rows.append(sheet_row(made))

        comparison = compare(
            restyler, styles, options.held_out, options.views, options.size, lpips, classifier, on_done, **settings
        )
    sheet = make_grid(torch.cat(rows), nrow=len(rows[0]), padding=2, pad_value=1.0)
    write_image((options.out or Path("outputs/held_out")) / "held_out.png", sheet)
    table = Table("", *(f"{metric}\n{word}" for metric in comparison.mean("shared") for word in ("shared", "ratio")))
    for style in ["photo", *styles, None]:
        scores = comparison.mean("shared") if style is None else comparison.scores[style]["shared"]
        ratios = comparison.ratios(style)
        cells = [text for metric in scores for text in (f"{scores[metric]:.4g}", f"{ratios[metric]:.3f}")]
        table.add_row(escape(style) if style else "all", *cells, style=None if style else "bold")
    CONSOLE.print(table)
    CONSOLE.print("Ratio: the value with shared attention, divided by that without.")
    protocol = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
    return {
        "protocol": protocol,
        "models": restyler.provenance(),
        "scores": comparison.scores,
        "ratios": {style: comparison.ratios(style) for style in styles} | {"all": comparison.ratios()},
    }


def cli() -> None:
    """The command line."""
    with exit_on_user_error():
        main(tyro.cli(MetricsOptions, description=__doc__))


if __name__ == "__main__":
    cli()
