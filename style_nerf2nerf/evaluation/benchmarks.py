"""The benchmarks of `style_nerf2nerf.benchmark`: the fields that they train and the comparisons that they make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from jaxtyping import Float
from nerfstudio.models.nerfacto import NerfactoModel
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from eschernet_prior.base import image_metrics
from eschernet_prior.base.errors import UserError
from style_nerf2nerf.embedded.data import PAINTED
from style_nerf2nerf.embedded.styles import STYLES
from style_nerf2nerf.evaluation.benchmark_runs import (
    PAPER_LOSS,
    RGB_LOSS,
    BenchmarkScene,
    restyled_views,
    viewpoints,
)
from style_nerf2nerf.evaluation.consistency import Clip, Distance, find_clip, find_lpips, sharpness
from style_nerf2nerf.evaluation.field_scores import (
    Renders,
    Viewpoints,
    path_scores,
    render_from,
    second_field_scores,
    style_scores,
    text_scores,
)
from style_nerf2nerf.evaluation.finished_runs import finished_rounds, load_run
from style_nerf2nerf.evaluation.painted_truth import PaintedScene
from style_nerf2nerf.evaluation.result_rows import Results, Rows, means
from style_nerf2nerf.evaluation.second_field import train_second_field
from style_nerf2nerf.features import StyleLoss, VGG19Features
from style_nerf2nerf.pipeline import StylePipeline
from style_nerf2nerf.rounds.storage import original_field

if TYPE_CHECKING:
    from style_nerf2nerf.benchmark import BenchmarkOptions
    from style_nerf2nerf.pipeline import StylePipelineConfig

VARIATION = 7
"""Seed of the colours and the light of an oracle's views."""
MANY_VARIATIONS = 100
"""Seed of the colours and the light of the first contradicting view; each further view has the next seed."""
FEW_STYLES = ("van_gogh", "gold", "mosaic")
BOUND = "bound: from scratch on the painted views"


class FieldMeasurement:
    """Measures fields of one capture, all in the same way."""

    def __init__(self, options: BenchmarkOptions, pipeline: StylePipeline, prompt: str) -> None:
        """Choose the viewpoints, and load the style distance's network and the optional networks found on this machine.

        Args:
            options: Options of the command.
            pipeline: Pipeline of any field of the capture.
            prompt: Description of the style, for CLIP; empty: no CLIP scores.
        """
        self.options, self.prompt = options, prompt
        self.viewpoints: Viewpoints = viewpoints(pipeline, options.held_out)
        model = pipeline.config.model
        features = VGG19Features(model.vgg_weights, model.style_layers).to(pipeline.device)
        self.style_loss = StyleLoss(features)
        self.lpips: Distance | None = find_lpips() if options.lpips else None
        self.clip: Clip | None = find_clip(options.clip) if prompt else None

    def scores(
        self, model: NerfactoModel, restyled: Float[Tensor, "views 3 height width"], before: Renders
    ) -> dict[str, float]:
        """Compute all metrics of a field.

        Args:
            model: The field.
            restyled: The restyled views.
            before: Renders of the path in the field of the photos.
        """
        path, views = render_from(model, self.viewpoints.path), render_from(model, self.viewpoints.restyled)
        found = path_scores(path, self.viewpoints.path, self.lpips)
        found |= style_scores(self.style_loss, views.colours, restyled, path.colours)
        found |= second_field_scores(model, self.viewpoints, views.colours, self.options.second_field_steps)
        if self.clip is not None:
            found |= text_scores(self.clip, path, before, self.prompt, self.options.original_prompt)
        return found


def measure_run(options: BenchmarkOptions, folder: Path, results: Results) -> Rows:
    """Measure a finished run after its last round, in a row below the field of the photos."""
    run = options.run
    assert run is not None
    if not (run / "config.yml").is_file() or not finished_rounds(run):
        raise UserError(f"{run} is not a run with a finished round: use a folder outputs/<data>/<method>/<time>.")
    pipeline = load_run(run)
    original = original_field(pipeline, run)
    if original is None:
        raise UserError(f"{run} has no reconstruction.safetensors to compare with: use a complete run folder.")
    names = pipeline.datamanager.style_names()
    number = finished_rounds(run)[-1]
    prompt = "" if pipeline.config.restyled_data else pipeline.config.model.prompt
    measurement = FieldMeasurement(options, pipeline, prompt)
    restyled = restyled_views(run, number, names)
    before = render_from(original, measurement.viewpoints.path)
    for label, model in (("photos", original), ("restyled", pipeline.model)):
        CONSOLE.print(f"Measuring: {label}")
        _keep(results, label, measurement, model, restyled, before)
    return results.rows


def measure_ablation(options: BenchmarkOptions, folder: Path, results: Results) -> Rows:
    """Measure the paper's four columns and the field of the photos; means over scenes and styles."""
    labels = ["photos", "views not aligned", "field from scratch", "RGB loss", "full"]
    styles, parts = options.styles or FEW_STYLES, []
    for name in options.scenes:
        scene = _scene(options, folder, name)
        for style in styles:
            part = f"{name}, {style}"
            parts.append(part)
            if all(f"{part}: {label}" in results.rows for label in labels):
                continue
            CONSOLE.print(f"Ablation: {part}")
            _ablate(options, scene, style, lambda label, measure, part=part: results.row(f"{part}: {label}", measure))
    return means(results.rows, labels, parts)


def _ablate(
    options: BenchmarkOptions,
    scene: BenchmarkScene,
    style: str,
    row: Callable[[str, Callable[[], dict[str, float]]], dict[str, float]],
) -> None:
    original = scene.reconstruction().pipeline.model
    prompt = STYLES[style].prompt
    full = scene.variant(f"{style}-full", {}, prompt=prompt)
    pipeline = full.pipeline
    measurement = FieldMeasurement(options, pipeline, prompt)
    names = pipeline.datamanager.style_names()
    run_dir = scene.run_dir(f"{style}-full")
    restyled = restyled_views(run_dir, 1, names)
    before = render_from(original, measurement.viewpoints.path)
    row("photos", lambda: measurement.scores(original, restyled, before))
    row("full", lambda: measurement.scores(pipeline.model, restyled, before))

    def alone() -> dict[str, float]:
        run = scene.variant(f"{style}-alone", {}, prompt=prompt, share_attention=False)
        own = restyled_views(scene.run_dir(f"{style}-alone"), 1, names)
        return measurement.scores(run.pipeline.model, own, before)

    def rgb() -> dict[str, float]:
        pictures = run_dir / "restyled" / "round_01" / "images"
        run = scene.variant(f"{style}-rgb", RGB_LOSS, restyled=pictures, retrain_steps=_baseline_steps(options, scene))
        return measurement.scores(run.pipeline.model, restyled, before)

    def scratch() -> dict[str, float]:
        field = train_second_field(
            measurement.viewpoints.restyled,
            restyled,
            measurement.viewpoints.scene_box,
            scene.reconstruct_steps + scene.retrain_steps,
            device=pipeline.device,
        )
        return measurement.scores(field, restyled, before)

    row("RGB loss", rgb)
    row("field from scratch", scratch)
    row("views not aligned", alone)


def measure_oracle(options: BenchmarkOptions, folder: Path, results: Results) -> Rows:
    """Compare held-out renders with the painted truth of consistently painted views; means over styles."""
    labels = ["before", "RGB loss", "paper's loss", "ours", BOUND]
    styles, scene, painted = options.styles or PAINTED, _scene(options, folder, options.scenes[0]), None
    for style in styles:
        if all(f"{style}: {label}" in results.rows for label in labels):
            continue
        CONSOLE.print(f"Oracle: {style}")
        painted = painted or PaintedScene(scene.parser)
        scene.reconstruction()
        _Oracle(options, scene, painted, style, folder).measure(results)
    return means(results.rows, labels, styles)


class _Oracle:
    """One style of the oracle."""

    def __init__(
        self, options: BenchmarkOptions, scene: BenchmarkScene, painted: PaintedScene, style: str, folder: Path
    ) -> None:
        pictures = painted.with_one_variation(style, VARIATION)
        self.scene, self.style = scene, style
        self.train, self.truth = pictures[: painted.num_train], pictures[painted.num_train :]
        self.target = painted.write(pictures, folder / "painted" / scene.scene / style)
        self.slow = _baseline_steps(options, scene)
        self.held_out = scene.parser.setup().get_dataparser_outputs(split="test").cameras

    def measure(self, results: Results) -> None:
        results.row(f"{self.style}: before", self._before)
        results.row(f"{self.style}: ours", lambda: self._retrained("ours", {}, None))
        results.row(f"{self.style}: paper's loss", lambda: self._retrained("paper", PAPER_LOSS, self.slow))
        results.row(f"{self.style}: RGB loss", lambda: self._retrained("rgb", RGB_LOSS, self.slow))
        results.row(f"{self.style}: {BOUND}", self._bound)

    def _before(self) -> dict[str, float]:
        return self._compared(self.scene.reconstruction().pipeline.model)

    def _retrained(self, label: str, model: dict[str, Any], steps: int | None) -> dict[str, float]:
        run = self.scene.variant(f"oracle-{self.style}-{label}", model, restyled=self.target, retrain_steps=steps)
        return self._compared(run.pipeline.model)

    def _bound(self) -> dict[str, float]:
        outputs = self.scene.parser.setup().get_dataparser_outputs(split="train")
        steps = self.scene.reconstruct_steps + self.scene.retrain_steps
        return self._compared(train_second_field(outputs.cameras, self.train, outputs.scene_box, steps))

    def _compared(self, model: NerfactoModel) -> dict[str, float]:
        shown = render_from(model, self.held_out).colours
        return {
            "psnr": float(image_metrics.psnr(shown, self.truth).mean()),
            "ssim": float(image_metrics.ssim(shown, self.truth).mean()),
            "sharpness_ratio": float(sharpness(shown).mean() / sharpness(self.truth).mean()),
        }


def measure_contradiction(options: BenchmarkOptions, folder: Path, results: Results) -> Rows:
    """Measure sharpness, style distance and consistency of each loss on contradicting views; means over styles."""
    variants = {"ours": {}, "paper's loss": PAPER_LOSS, "RGB loss": RGB_LOSS}
    labels = ["photos", "RGB loss", "paper's loss", "ours"]
    styles, scene, painted = options.styles or FEW_STYLES, _scene(options, folder, options.scenes[0]), None
    for style in styles:
        if all(f"{style}: {label}" in results.rows for label in labels):
            continue
        CONSOLE.print(f"Contradiction: {style}")
        painted = painted or PaintedScene(scene.parser)
        pictures = painted.with_many_variations(style, MANY_VARIATIONS)
        target = painted.write(pictures, folder / "painted" / scene.scene / f"{style}-many-variations")
        base = scene.reconstruction().pipeline
        # The style cameras are all training cameras, and all of them are restyled already.
        base.datamanager.restyled_names = frozenset(painted.names[: painted.num_train])
        measurement = FieldMeasurement(options, base, "")
        restyled = pictures[: painted.num_train]
        before = render_from(base.model, measurement.viewpoints.path)
        _keep(results, f"{style}: photos", measurement, base.model, restyled, before)
        for label, model in variants.items():
            if f"{style}: {label}" not in results.rows:
                steps = None if label == "ours" else _baseline_steps(options, scene)
                name = f"contradiction-{style}-{label.replace(chr(39), '').replace(' ', '-')}"
                run = scene.variant(name, model, restyled=target, retrain_steps=steps)
                _keep(results, f"{style}: {label}", measurement, run.pipeline.model, restyled, before)
    return means(results.rows, labels, styles)


def _keep(
    results: Results,
    label: str,
    measurement: FieldMeasurement,
    model: NerfactoModel,
    restyled: Float[Tensor, "views 3 height width"],
    before: Renders,
) -> None:
    results.row(label, lambda: measurement.scores(model, restyled, before))


def _scene(options: BenchmarkOptions, folder: Path, name: str) -> BenchmarkScene:
    from style_nerf2nerf.config import style_nerf2nerf_tiny

    pipeline = cast("StylePipelineConfig", style_nerf2nerf_tiny.config.pipeline)
    steps = options.retrain_steps or pipeline.rounds.retrain_steps
    return BenchmarkScene(folder, name, options.resolution, options.views, options.reconstruct_steps, steps)


def _baseline_steps(options: BenchmarkOptions, scene: BenchmarkScene) -> int:
    return options.baseline_steps or max(scene.retrain_steps // 3, 1)
