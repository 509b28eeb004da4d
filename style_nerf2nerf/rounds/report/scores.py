"""What `ns-eval` says about a restyled field beside its comparison with the photos."""

from __future__ import annotations

from pathlib import Path

from nerfstudio.utils.rich_utils import CONSOLE

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import read_json
from eschernet_prior.base.sampling import evenly_spaced
from style_nerf2nerf.features import StyleLoss, VGG19Features
from style_nerf2nerf.options import StyledRun
from style_nerf2nerf.rendering import render_view
from style_nerf2nerf.rounds.losses import StyleView
from style_nerf2nerf.rounds.report.measures import least_style_distance, style_distance
from style_nerf2nerf.rounds.report.reports import SHOWN
from style_nerf2nerf.rounds.sources import ViewSources
from style_nerf2nerf.rounds.storage import RoundFolder, finished_rounds


def style_scores(pipeline: StyledRun, run_dir: Path) -> dict[str, float]:
    """How far the field is from the restyled views of the last round, by the measure of `metrics.json`.

    Args:
        pipeline: The restyled field and its capture.
        run_dir: The run folder.

    Returns:
        `style_distance`, the mean sliced Wasserstein distance to at most twelve restyled views, inside the masks where
        there are some, and `style_distance_before`, that of the field as it was before the first round, both weighted
        as the round's styles were; `style_distance_least`, below which no picture of a blend can be; empty where no
        round is finished.

    Raises:
        UserError: If the style loss's weights or the masks are missing.
    """
    rounds = finished_rounds(run_dir)
    if not rounds:
        return {}
    first, last = RoundFolder(run_dir, 1), RoundFolder(run_dir, rounds[-1])
    measured = (read_json(run_dir / "metrics.json") or {}).get(last.path.name, {})
    weights = measured.get("style_weights", pipeline.config.initial_weights)  # an interrupted round has no metrics
    names, styles = last.contents()
    names = [names[index] for index in evenly_spaced(SHOWN, len(names))]
    config, manager = pipeline.config, pipeline.datamanager
    sources = None
    if config.masks_of(manager) is not None:
        sources = ViewSources(config, manager)
        manager.restyled_names = sources.restyled_names
        sources.find_masks(manager)
    cameras = manager.cameras_of(names)
    size = (int(cameras.height[0]), int(cameras.width[0]))
    model = config.model
    features = VGG19Features(model.vgg_weights, model.loss_layers).to(pipeline.model.device)
    style_loss = StyleLoss(features, model.style_directions)
    before = [first.render(name) for name in names]
    views = [
        StyleView(last.restyled(name, styles), base, base[:1], None if sources is None else sources.mask(name, size))
        for name, base in zip(names, before)
    ]
    now = [render_view(pipeline.model, cameras[index : index + 1]).colour for index in range(len(names))]
    return {
        "style_distance": style_distance(style_loss, now, views, weights),
        "style_distance_before": style_distance(style_loss, before, views, weights),
        "style_distance_least": least_style_distance(style_loss, views, weights),
    }


def explained(metrics: dict[str, float], pipeline: StyledRun, run_dir: Path) -> dict[str, float]:
    """The scores of `ns-eval` with the style's beside them, and a line that says what each compares.

    Args:
        metrics: Means over the held-out photos, `psnr` among them.
        pipeline: The field and its capture.
        run_dir: The run folder.
    """
    if not finished_rounds(run_dir):
        return metrics
    CONSOLE.print(
        f"PSNR ({metrics['psnr']:.2f} dB) and SSIM compare the restyled field with the photos: they say how much was "
        "changed, not how well.",
        soft_wrap=True,
    )
    try:
        scores = style_scores(pipeline, run_dir)
    except UserError as error:
        CONSOLE.print(f"The style distance is left out. {error}", soft_wrap=True, markup=False)
        return metrics
    least = scores["style_distance_least"]
    CONSOLE.print(
        f"Style distance to the restyled views: {scores['style_distance']:.3f}, before the first round "
        f"{scores['style_distance_before']:.3f}; "
        + (f"no picture of this blend is below {least:.3f}." if least else "0 is the same style."),
        soft_wrap=True,
    )
    return {**metrics, **scores}
