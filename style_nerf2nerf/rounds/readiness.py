"""Checks before a run's first step: diffusion models, prompts, memory and sizes of the views."""

from __future__ import annotations

from eschernet_prior.base.errors import UserError
from style_nerf2nerf.options import StyledRun
from style_nerf2nerf.rounds.storage import RoundSettings


def check_models(pipeline: StyledRun) -> None:
    """Check that the diffusion models are complete; report truncated prompts and the memory needed.

    Raises:
        UserError: If a model's files are missing or do not fit, or an option cannot work with them.
    """
    from style_nerf2nerf.restyler.readiness import ensure_ready

    config, cameras = pipeline.config, pipeline.datamanager.style_cameras()
    options, model = config.restyle, config.model
    settings = RoundSettings(model.prompt, model.negative_prompt, options.guidance_scale, config.rounds.strength_of(1))
    ensure_ready(
        options.source,
        options.settings(settings),
        (model.prompt, *model.more_prompts),
        precision=options.precision,
        device=pipeline.model.device,
        views=len(cameras),
        view_size=(int(cameras.height[0]), int(cameras.width[0])),
        with_reference=options.reference is not None and options.reference_attention,
        max_views_per_batch=options.max_views_per_batch,
        attention_kernel=options.attention_kernel,
    )


def check_view_sizes(pipeline: StyledRun, least: int) -> None:
    """Refuse views and patches that are too small for the style loss.

    Args:
        pipeline: The pipeline, with the capture and the options.
        least: Smallest side in pixels.

    Raises:
        UserError: If a view or the patch size is smaller.
    """
    config, manager = pipeline.config, pipeline.datamanager
    if config.rounds.rounds == 0:
        return
    for cameras in (manager.style_cameras(), manager.held_out_views(config.num_eval_views)[1]):
        for height, width in zip(cameras.height.flatten().tolist(), cameras.width.flatten().tolist()):
            if min(height, width) < least:
                raise UserError(
                    f"Views of {width} × {height} pixels are too small for the style loss, which needs {least} "
                    "per side: use larger photos, or raise --pipeline.datamanager.max-view-size."
                )
    if 0 < config.model.style_patch_size < least:
        raise UserError(f"The style loss needs a --pipeline.model.style-patch-size of {least} or more, or 0.")
