"""Masks from words, made once a run, before its first round: from what the reconstructed field looks like.

They are pictures in `RUN/masks/words`, named like the photos, white where the scene is restyled. A run that goes on
uses what is there, so that they can be corrected with any paint program; `--pipeline.masks RUN/masks/words` uses them
in another run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import atomic_path
from eschernet_prior.base.images import write_image
from eschernet_prior.base.trainer import RunTrainer
from style_nerf2nerf.options import StyledRun
from style_nerf2nerf.rendering import render_view
from style_nerf2nerf.reprojection import ViewCameras
from style_nerf2nerf.restyler.models.hub import locate_clipseg
from style_nerf2nerf.rounds.sources import ViewSources
from style_nerf2nerf.word_masks import WordSegmenter, consistent, masks_from

Rendered = tuple[Float[Tensor, "3 height width"], Float[Tensor, "1 height width"]]
"""Colour and depth of a view."""


def ensure_word_masks(
    pipeline: StyledRun,
    sources: ViewSources,
    views: Sequence[Rendered],
    trainer: RunTrainer,
    keep_going: Callable[[], None],
) -> None:
    """Makes the masks that the words ask for, unless they are there.

    Args:
        pipeline: Whose field is looked at.
        sources: Where the masks are looked up from then on.
        views: The restyled views before restyling.
        trainer: Whose training lock is taken while held-out views are rendered.
        keep_going: Is called between the views; what it raises ends the work.

    Raises:
        UserError: if nothing in the views is what the words say.
    """
    if not sources.lacks_word_masks:
        return
    config, manager = pipeline.config, pipeline.datamanager
    held_names, held_cameras = manager.held_out_views(config.num_eval_views)

    def render(camera: Cameras) -> Rendered:
        keep_going()
        with trainer.train_lock:
            view = render_view(pipeline.model, camera)
        return view.colour, view.depth

    held_out = [render(held_cameras[index : index + 1]) for index in range(len(held_names))]
    segmenter = WordSegmenter(locate_clipseg(config.mask_model), pipeline.model.device)
    # Only views of one size are compared with each other.
    groups = [(manager.style_names(), manager.style_cameras(), views), (held_names, held_cameras, held_out)]
    found: dict[str, Tensor] = {}
    for names, cameras, rendered in groups:
        if not names:
            continue
        keep_going()
        colours, depths = (torch.stack([view[part] for view in rendered]) for part in (0, 1))
        probabilities = segmenter.probabilities(colours, config.mask_words)
        means = consistent(probabilities, depths, ViewCameras.from_nerfstudio(cameras))
        found |= dict(zip(names, masks_from(means, config.mask_threshold)))
    if not any(bool(found[name].any()) for name in manager.style_names()):
        raise UserError(
            f"CLIPSeg finds no “{config.mask_words}” in any view: choose other --pipeline.mask-words, or a lower "
            f"--pipeline.mask-threshold than {config.mask_threshold}."
        )
    with atomic_path(sources.word_masks) as partial:
        for name, mask in found.items():
            write_image(partial / f"{name}.png", mask)
    sources.read_word_masks()
    CONSOLE.print(
        f"Masks of “{config.mask_words}”, which can be looked at and corrected: {sources.word_masks}",
        markup=False,
        soft_wrap=True,
    )
