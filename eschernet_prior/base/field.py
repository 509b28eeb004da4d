"""The radiance field of both packages: a nerfacto that needs no network and refuses checkpoints that do not fit.

nerfstudio's nerfacto builds LPIPS in every run, which downloads AlexNet; it silently keeps random weights if a
checkpoint does not fit; and it has only one preset, for large GPUs.
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
"""State-dict prefixes of the radiance field itself in a nerfacto model; other weights are used only in training."""


Config = TypeVar("Config", bound="FieldModelConfig")


def has_tinycudann() -> bool:
    """Whether tiny-cuda-nn can be imported and a CUDA device is available."""
    return TCNN_EXISTS and torch.cuda.is_available()


@dataclass
class FieldModelConfig(NerfactoModelConfig):
    """Configuration of the radiance field."""

    _target: type = field(default_factory=lambda: FieldModel)
    implementation: Literal["auto", "tcnn", "torch"] = "auto"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Implementation of hash grids and MLPs: tcnn (tiny-cuda-nn), torch, or auto (tcnn if it is installed and a CUDA
    device is available). The choice is stored in config.yml, because the weights differ."""
    eval_lpips: bool = False
    """Also report LPIPS in evaluation; its AlexNet weights are downloaded on first use."""

    def prepare(self, run: TrainerConfig) -> None:
        """Resolve `auto`, so that config.yml records the choice; called by the trainer's configuration."""
        self.resolve_implementation()

    def resolve_implementation(self) -> None:
        """Replace `auto` by the implementation that this machine supports.

        Raises:
            UserError: If tcnn is selected and not available.
        """
        if self.implementation == "auto":
            self.implementation = "tcnn" if has_tinycudann() else "torch"
            CONSOLE.print(f"Hash grids and networks of the field: {self.implementation}.")
        elif self.implementation == "tcnn" and not has_tinycudann():
            raise UserError(
                "--pipeline.model.implementation tcnn needs a CUDA device and the tinycudann package: install it, or "
                "use --pipeline.model.implementation torch."
            )


class FieldModel(NerfactoModel):
    """Nerfacto that needs no network and reports the first difference of a checkpoint that does not fit."""

    config: FieldModelConfig

    def populate_modules(self) -> None:
        """Build the field, and LPIPS only with `eval_lpips`."""
        self.config.resolve_implementation()
        if self.config.eval_lpips:
            super().populate_modules()
        else:
            self._populate_without_lpips()
        moving_cameras = self.config.camera_optimizer.mode != "off"
        use_fast_grids(self, by_points=self.config.predict_normals or moving_cameras)

    def _populate_without_lpips(self) -> None:
        # NerfactoModel.populate_modules builds the metric, which downloads weights; this is the only way to prevent it.
        with mock.patch("torchmetrics.image.lpip.LearnedPerceptualImagePatchSimilarity", return_value=None):
            super().populate_modules()

    def get_image_metrics_and_images(
        self, outputs: dict[str, Tensor], batch: dict[str, Tensor]
    ) -> tuple[dict[str, float], dict[str, Tensor]]:
        """PSNR and SSIM of a rendered view, and LPIPS with `eval_lpips`."""
        if self.config.eval_lpips:
            return super().get_image_metrics_and_images(outputs, batch)
        self.lpips = lambda *_: float("nan")
        metrics, images = super().get_image_metrics_and_images(outputs, batch)
        del metrics["lpips"]
        return metrics, images

    def get_loss_dict(self, outputs: dict, batch: dict, metrics_dict: dict | None = None) -> dict[str, Tensor]:
        """Compute nerfacto's losses; the colour loss is a mean weighted by `trust`, if the batch contains it.

        Args:
            outputs: The model's outputs for the ray batch.
            batch: Colours, and if some views are generated, weights (rays,) in [0, 1] under the key "trust".
            metrics_dict: As in nerfacto.
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
        """The radiance field's weights: grids, networks and appearance table, without parts used only in training."""
        return {key: value.clone() for key, value in self.state_dict().items() if key.startswith(FIELD_PREFIXES)}

    def load_field(self, loaded: Mapping[str, Tensor], source: str) -> None:
        """Load only the radiance field from a nerfacto checkpoint: grids, networks and appearance table.

        Args:
            loaded: a model state dict (keys without the pipeline's `_model.` prefix).
            source: File of the weights, for the message.

        Raises:
            UserError: If keys or shapes differ; the message names the first difference.
        """
        new = {key: value for key, value in loaded.items() if key.startswith(FIELD_PREFIXES)}
        check_state(self.field_state(), new, source)
        self.load_state_dict(new, strict=False)


def check_state(own: Mapping[str, Tensor], loaded: Mapping[str, Tensor], source: str) -> None:
    """Refuse weights that do not fit; nerfstudio would silently keep random ones.

    Args:
        own: The model's state dict.
        loaded: The state dict to load.
        source: File of the weights, for the message.

    Raises:
        UserError: If keys or shapes differ.
    """
    if _implementation(own) != _implementation(loaded):
        raise UserError(
            f"{source} was trained with {_implementation(loaded)}, this field uses {_implementation(own)}: set "
            f"--pipeline.model.implementation {_implementation(loaded)}."
        )
    differing = sorted(set(own) ^ set(loaded))
    if differing:
        key = differing[0]
        raise UserError(
            f"{source} does not fit this field: {len(differing)} weights differ by name, for example "
            f"{key}, which is missing {'there' if key in own else 'in this field'}; use the method and the model "
            "options with which it was trained."
        )
    for key, value in own.items():
        if value.shape != loaded[key].shape:
            hint = (
                "it was trained on another number of images, so use the same data and split"
                if "embedding_appearance" in key
                else "use the method and the model options with which it was trained"
            )
            raise UserError(
                f"{source} does not fit this field: {key} has the shape {tuple(loaded[key].shape)} there and "
                f"{tuple(value.shape)} in this field; {hint}."
            )


def _implementation(state: Mapping[str, Tensor]) -> str:
    """The implementation that wrote the weights: tiny-cuda-nn stores a network in one vector named params."""
    return "tcnn" if any(key.endswith(".params") for key in state) else "torch"


def small_field(config: Config) -> Config:
    """Reduce a model to a size that two CPU cores train in minutes: small hash tables, few samples per ray.

    Args:
        config: The configuration; it is not modified.

    Returns:
        A copy with smaller sizes.
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
    """Convert nerfacto's depth along the ray to depth along the optical axis.

    Args:
        distance: (height, width, 1), scene units, along the unit ray.
        directions: (height, width, 3), unit ray directions in the world frame.
        camera: The camera of the rays; OpenGL axes, looking along its negative z.

    Returns:
        (height, width, 1), scene units.
    """
    forward = -camera.camera_to_worlds.reshape(3, 4)[:, 2].to(directions)
    return distance * (directions @ forward)[..., None]


def model_state(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The model's weights from a nerfstudio checkpoint, without the prefixes of the pipeline and of DDP."""
    prefix = "_model."
    return {
        key[len(prefix) :].removeprefix("module."): value
        for key, value in checkpoint["pipeline"].items()
        if key.startswith(prefix)
    }
