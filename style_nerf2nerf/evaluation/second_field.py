"""Train a plain field on given pictures, to measure how consistent they are or how well a field can reproduce them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.scene_box import SceneBox
from torch import Tensor

from eschernet_prior.base.field import FieldModel, FieldModelConfig, small_field

LEARNING_RATE = 1e-2
LAST_SHARE = 0.1
"""Share of the learning rate at the last step; it falls exponentially."""


def train_second_field(
    cameras: Cameras,
    images: Float[Tensor, "views 3 height width"],
    scene_box: SceneBox,
    steps: int,
    rays: int = 1024,
    seed: int = 0,
    config: FieldModelConfig | None = None,
    device: torch.device | str = "cpu",
    on_step: Callable[[int], None] | None = None,
) -> FieldModel:
    """Train a field from scratch on pictures, as the tiny methods do, without appearance or camera corrections.

    The global random state is restored afterwards.

    Args:
        cameras: Cameras of the pictures, of shape (views,).
        images: RGB in [0, 1].
        scene_box: Bounding box of the capture.
        steps: Training steps, each of which minimises the mean squared colour error of a ray batch.
        rays: Rays per batch.
        seed: Seed of the initial weights and of the rays.
        config: Configuration of the field; None: `small_field`.
        device: Device of the training.
        on_step: Called with the number of finished steps.

    Returns:
        The field, in evaluation mode.
    """
    config = config or small_field(FieldModelConfig(average_init_density=0.01))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: FieldModel = config.setup(scene_box=scene_box, num_train_data=len(images), metadata={}, device=device)
        model.to(device).train()
        groups = model.get_param_groups()
        weights = [*groups["proposal_networks"], *groups["fields"]]
        optimizer = torch.optim.Adam(weights, LEARNING_RATE, eps=1e-15)
        views, _, height, width = images.shape
        sides = torch.tensor([views, height, width])
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * LAST_SHARE ** (step / steps)
            _anneal(model, step)
            view, row, column = (torch.rand(3, rays) * sides[:, None]).long().unbind()
            coords = torch.stack([row, column], -1) + 0.5
            bundle = cameras.generate_rays(camera_indices=view[:, None], coords=coords).to(model.device)
            outputs, batch = model(bundle), {"image": images[view, :, row, column].to(model.device)}
            losses = model.get_loss_dict(outputs, batch, model.get_metrics_dict(outputs, batch))
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            model.proposal_sampler.step_cb(step)
            if on_step is not None:
                on_step(step + 1)
    return model.eval()


def _anneal(model: FieldModel, step: int) -> None:
    """Anneal the proposal weights like nerfacto's callback before every step (Barron et al. 2022, eq. 18)."""
    config = model.config
    done, slope = min(step / config.proposal_weights_anneal_max_num_iters, 1.0), config.proposal_weights_anneal_slope
    model.proposal_sampler.set_anneal(slope * done / ((slope - 1) * done + 1))
