"""Masks that a run makes itself: of an object, or of what words describe.

They are made once a run, before its first round, from renders of the reconstructed field: pictures in
`RUN/masks/object` or `RUN/masks/words`, named like the photos, white where the scene is restyled. A resumed run reads
them again, so they can be corrected with any paint program; `--pipeline.masks RUN/masks/words` uses them in another
run.
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
from style_nerf2nerf.options import OBJECT, StyledRun, StylePipelineOptions
from style_nerf2nerf.rendering import render_view
from style_nerf2nerf.reprojection import ViewCameras
from style_nerf2nerf.restyler.models.hub import locate_clipseg
from style_nerf2nerf.rounds.sources import ViewSources
from style_nerf2nerf.rounds.word_masks import WordSegmenter, consistent, masks_from

BEHIND = 2.0
"""Surfaces farther than so many median depths of their view do not belong to an object."""

Rendered = tuple[Float[Tensor, "3 height width"], Float[Tensor, "1 height width"]]
"""Colour and depth of a view."""
Masks = Float[Tensor, "views 1 height width"]


def ensure_made_masks(
    pipeline: StyledRun,
    sources: ViewSources,
    views: Sequence[Rendered],
    trainer: RunTrainer,
    keep_going: Callable[[], None],
) -> None:
    """Make the masks that the run makes itself, unless they exist.

    Args:
        pipeline: The run with its field.
        sources: The run's masks, which are read again afterwards.
        views: Renders of the views that will be restyled.
        trainer: The trainer, whose training lock is taken while held-out views are rendered.
        keep_going: Called between the views; it may raise to end the work.

    Raises:
        UserError: If CLIPSeg finds the words in no view.
    """
    if not sources.lacks_made_masks:
        return
    config, manager = pipeline.config, pipeline.datamanager
    assert sources.made_masks is not None
    held_names, held_cameras = manager.held_out_views(config.num_eval_views)

    def render(camera: Cameras) -> Rendered:
        keep_going()
        with trainer.train_lock:
            view = render_view(pipeline.model, camera)
        return view.colour, view.depth

    held_out = [render(held_cameras[index : index + 1]) for index in range(len(held_names))]
    find_words = None if sources.masks_from == OBJECT else _WordMasks(config, pipeline.model.device)
    # Only views of the same size are compared with each other.
    groups: list[tuple[list[str], Cameras, Sequence[Rendered]]]
    groups = [(manager.style_names(), manager.style_cameras(), views)]
    sizes = list(zip(held_cameras.height.flatten().tolist(), held_cameras.width.flatten().tolist()))
    for size in dict.fromkeys(sizes):
        chosen = [index for index, each in enumerate(sizes) if each == size]
        cameras = held_cameras[torch.tensor(chosen)]
        groups.append(([held_names[index] for index in chosen], cameras, [held_out[index] for index in chosen]))
    found: dict[str, Tensor] = {}
    for names, cameras, rendered in groups:
        keep_going()
        colours, depths = (torch.stack([view[part] for view in rendered]) for part in (0, 1))
        found |= dict(zip(names, object_masks(depths) if find_words is None else find_words(colours, depths, cameras)))
    if not any(bool(found[name].any()) for name in manager.style_names()):
        if find_words is not None:
            raise UserError(
                f"CLIPSeg finds no “{config.mask_words}” in any view: choose other --pipeline.mask-words, or a lower "
                f"--pipeline.mask-threshold than {config.mask_threshold}."
            )
        CONSOLE.print("The field shows no object in any view, so everything is restyled.")
        found = {name: torch.ones_like(mask) for name, mask in found.items()}
    with atomic_path(sources.made_masks) as partial:
        for name, mask in found.items():
            write_image(partial / f"{name}.png", mask)
    sources.read_made_masks()
    what = "the object" if find_words is None else f"“{config.mask_words}”"
    CONSOLE.print(f"Masks of {what}, to check and correct: {sources.made_masks}", markup=False, soft_wrap=True)


def object_masks(depths: Float[Tensor, "views 1 height width"]) -> Masks:
    """Masks of what views show in front of their background, 1 inside and 0 outside.

    Args:
        depths: Depth along the optical axis, 0 where nothing is.
    """
    masks = []
    for depth in depths:
        there = depth > 0
        near = depth <= BEHIND * depth[there].median() if bool(there.any()) else there
        masks.append((there & near).float())
    return masks_from(torch.stack(masks), 0.5)


class _WordMasks:
    """Masks of what `mask_words` describes."""

    def __init__(self, config: StylePipelineOptions, device: torch.device) -> None:
        self._config = config
        self._segmenter = WordSegmenter(locate_clipseg(config.mask_model), device)

    def __call__(
        self,
        colours: Float[Tensor, "views 3 height width"],
        depths: Float[Tensor, "views 1 height width"],
        cameras: Cameras,
    ) -> Masks:
        probabilities = self._segmenter.probabilities(colours, self._config.mask_words)
        means = consistent(probabilities, depths, ViewCameras.from_nerfstudio(cameras))
        return masks_from(means, self._config.mask_threshold)
