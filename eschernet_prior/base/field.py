"""The nerfacto that both packages build on: it trains offline, on any machine, and never on weights that do not fit.

nerfstudio's own nerfacto differs in three ways that matter here. It builds LPIPS, which downloads AlexNet, in every
run; it silently keeps random weights when a checkpoint does not fit; and it has one preset, made for large GPUs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar
from unittest import mock

import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.cameras.cameras import Cameras
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.models.nerfacto import NerfactoModel, NerfactoModelConfig
from nerfstudio.utils.external import TCNN_EXISTS
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.hashgrid import use_fast_grids

FIELD_PREFIXES = ("field.", "proposal_networks.")
"""State-dict prefixes of a nerfacto model that hold the radiance field itself; the rest belongs to its training."""


Config = TypeVar("Config", bound="FieldModelConfig")


def has_tinycudann() -> bool:
    """Whether tiny-cuda-nn can be imported and there is a CUDA device to run it on."""
    return TCNN_EXISTS and torch.cuda.is_available()


@dataclass
class FieldModelConfig(NerfactoModelConfig):
    """Configuration of the nerfacto that both packages build on."""

    _target: type = field(default_factory=lambda: FieldModel)
    implementation: Literal["auto", "tcnn", "torch"] = "auto"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Hash grids and MLPs on tiny-cuda-nn (tcnn) or plain torch; auto takes tiny-cuda-nn where it is installed beside
    a CUDA device. The choice is stored in config.yml: the two have different weights."""
    eval_lpips: bool = False
    """Whether evaluation also reports LPIPS, whose AlexNet weights are downloaded on first use."""

    def prepare(self, run: TrainerConfig) -> None:
        """Called by the trainer's configuration: fix what `auto` means, so that config.yml records it."""
        self.resolve_implementation()

    def resolve_implementation(self) -> None:
        """Replace "auto" by what this machine has.

        Raises:
            UserError: tiny-cuda-nn was asked for by name and is not there.
        """
        if self.implementation == "auto":
            self.implementation = "tcnn" if has_tinycudann() else "torch"
            CONSOLE.print(f"Hash grids and networks of the field: {self.implementation}.")
        elif self.implementation == "tcnn" and not has_tinycudann():
            raise UserError(
                "This field runs on tiny-cuda-nn, which needs a CUDA device and the tinycudann package: install it, or "
                "train with --pipeline.model.implementation torch."
            )


class FieldModel(NerfactoModel):
    """Nerfacto that needs no network, and says what differs when a checkpoint does not fit."""

    config: FieldModelConfig

    def populate_modules(self) -> None:
        """Build the field; LPIPS only where it was asked for."""
        self.config.resolve_implementation()
        if self.config.eval_lpips:
            super().populate_modules()
        else:
            self._populate_without_lpips()
        moving_cameras = self.config.camera_optimizer.mode != "off"
        use_fast_grids(self, by_points=self.config.predict_normals or moving_cameras)

    def _populate_without_lpips(self) -> None:
        # NerfactoModel builds the metric by its imported name: for the length of that call the name stands for nothing.
        with mock.patch("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", return_value=None):
            super().populate_modules()

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR and SSIM of a rendered view, LPIPS only where it was asked for."""
        if self.config.eval_lpips:
            return super().get_image_metrics_and_images(outputs, batch)
        self.lpips = lambda *_: float("nan")
        metrics, images = super().get_image_metrics_and_images(outputs, batch)
        del metrics["lpips"]
        return metrics, images

    def get_loss_dict(self, outputs: dict, batch: dict, metrics_dict: dict | None = None) -> dict[str, Tensor]:
        """Nerfacto's losses; where the batch says how far each ray is trusted, the colour loss is the mean weighted so.

        Args:
            outputs: what the model returned for a ray batch.
            batch: colours, and under "trust" (rays,) weights in [0, 1] where some views are generated.
            metrics_dict: as in nerfacto.
        """
        losses = super().get_loss_dict(outputs, batch, metrics_dict)
        if "trust" in batch:
            predicted, wanted = self.renderer_rgb.blend_background_for_loss_computation(
                pred_image=outputs["rgb"],
                pred_accumulation=outputs["accumulation"],
                gt_image=batch["image"].to(self.device),
            )
            trust = batch["trust"].to(self.device)
            errors = (predicted - wanted).square().mean(-1)
            losses["rgb_loss"] = (trust * errors).sum() / trust.sum().clamp(min=1e-6)
        return losses

    def field_state(self) -> dict[str, Tensor]:
        """The radiance field's weights: grids, networks and appearance table, without what only its training needs."""
        return {key: value.clone() for key, value in self.state_dict().items() if key.startswith(FIELD_PREFIXES)}

    def load_field(self, loaded: Mapping[str, Tensor], source: str) -> None:
        """Load only the radiance field out of a nerfacto checkpoint: its grids, networks and appearance table.

        Args:
            loaded: a model state dict (keys without the pipeline's `_model.` prefix).
            source: what the weights came from, for the message.

        Raises:
            UserError: keys or shapes differ, in one sentence that names the first difference.
        """
        new = {key: value for key, value in loaded.items() if key.startswith(FIELD_PREFIXES)}
        check_state(self.field_state(), new, source)
        self.load_state_dict(new, strict=False)


def check_state(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that do not fit, where nerfstudio would keep random ones.

    Args:
        own: the model's state dict.
        loaded: the state dict that is to be loaded into it.
        source: what it came from, for the message.

    Raises:
        UserError: keys or shapes differ.
    """
    if _implementation(own) != _implementation(loaded):
        raise UserError(
            f"{source} was trained with {_implementation(loaded)} and this field has {_implementation(own)}: use "
            f"--pipeline.model.implementation {_implementation(loaded)}."
        )
    differing = sorted(set(own) ^ set(loaded))
    if differing:
        key = differing[0]
        raise UserError(
            f"{source} does not fit this field: {len(differing)} weights differ by name, for example "
            f"{key}, which is {'only here' if key in own else 'only there'}; use the method and the model options "
            "it was trained with."
        )
    for key, value in own.items():
        if value.shape != loaded[key].shape:
            hint = (
                "it was trained on another number of images, so give it the same data and split"
                if "embedding_appearance" in key
                else "use the method and the model options it was trained with"
            )
            raise UserError(
                f"{source} does not fit this field: {key} is {tuple(loaded[key].shape)} there and "
                f"{tuple(value.shape)} here; {hint}."
            )


def _implementation(state: Mapping[str, Tensor]) -> str:
    """Whose weights these are: tiny-cuda-nn keeps all of a network's in one vector called params."""
    return "tcnn" if any(key.endswith(".params") for key in state) else "torch"


def small_field(config: Config) -> Config:
    """The same model at a size that two CPU cores train in minutes: small hash tables, few samples a ray.

    Args:
        config: the configuration to make small; it is not changed.

    Returns:
        A copy of it with the fields that set the size replaced.
    """
    proposal = {"hidden_dim": 16, "log2_hashmap_size": 14, "num_levels": 4, "use_linear": False}
    return dataclasses.replace(
        config,
        num_levels=8,
        log2_hashmap_size=14,
        max_res=512,
        hidden_dim=32,
        hidden_dim_color=32,
        num_proposal_samples_per_ray=(32, 16),
        num_nerf_samples_per_ray=16,
        proposal_net_args_list=[{**proposal, "max_res": 64}, {**proposal, "max_res": 128}],
        proposal_warmup=500,
        proposal_weights_anneal_max_num_iters=300,
        use_appearance_embedding=False,
        camera_optimizer=CameraOptimizerConfig(mode="off"),
        eval_num_rays_per_chunk=4096,
    )


def z_depth(distance: Tensor, directions: Tensor, camera: Cameras) -> Tensor:
    """Depth along the optical axis from depth along the ray, which is what nerfacto renders.

    Args:
        distance: (height, width, 1), scene units, along the unit ray.
        directions: (height, width, 3), unit ray directions in the world frame.
        camera: the one camera that the rays belong to; OpenGL axes, it looks along its negative z.

    Returns:
        (height, width, 1), scene units.
    """
    forward = -camera.camera_to_worlds.reshape(3, 4)[:, 2].to(directions)
    return distance * (directions @ forward)[..., None]


def model_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The model's weights out of a nerfstudio checkpoint, without the pipeline's and DDP's prefixes."""
    prefix = "_model."
    return {
        key[len(prefix) :].removeprefix("module."): value
        for key, value in checkpoint["pipeline"].items()
        if key.startswith(prefix)
    }
