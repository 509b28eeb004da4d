"""The registered methods.

nerfstudio imports this module for every `ns-*` command, so it imports nothing heavy. It also registers numpy's scalar
types for torch's safe loading, because nerfstudio's checkpoints contain learning rates of these types.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.plugins.types import MethodSpecification

from eschernet_prior.base.field import small_field
from eschernet_prior.base.run_folder import refuse_moved_classes
from eschernet_prior.base.trainer import default_viewer
from eschernet_prior.densify.generate import small_prior
from eschernet_prior.procedural.dataparser import ProceduralDataParserConfig
from style_nerf2nerf.datamanager import StyleDataManagerConfig
from style_nerf2nerf.model import StyleModelConfig
from style_nerf2nerf.options import RestyleConfig
from style_nerf2nerf.pipeline import StylePipelineConfig
from style_nerf2nerf.restyler.models.hub import EMBEDDED_FOLDER
from style_nerf2nerf.restyler.models.vocabulary import Vocabulary
from style_nerf2nerf.rounds.storage import RoundsConfig
from style_nerf2nerf.trainer import StageSchedulerConfig, StyleTrainerConfig

_numpy_scalar: Any = np.float64(0).__reduce__()[0]
torch.serialization.add_safe_globals([_numpy_scalar, np.dtype, np.dtypes.Float64DType])

refuse_moved_classes("style_nerf2nerf.rounds.RoundsConfig")


def _optimizers(learning_rate: float) -> dict:
    group = {"optimizer": AdamOptimizerConfig(lr=learning_rate, eps=1e-15), "scheduler": StageSchedulerConfig()}
    return {
        "proposal_networks": dict(group),
        "fields": dict(group),
        "camera_opt": {
            "optimizer": AdamOptimizerConfig(lr=1e-3, eps=1e-15),
            "scheduler": ExponentialDecaySchedulerConfig(lr_final=1e-4, max_steps=5000),
        },
    }


KNOWN = Vocabulary.read(EMBEDDED_FOLDER)
"""The vocabulary of the embedded models."""
_coloured = ", ".join(name.replace("_", " ") for name in KNOWN.coloured)

style_nerf2nerf = MethodSpecification(
    config=StyleTrainerConfig(
        method_name="style-nerf2nerf",
        steps_per_save=2000,
        mixed_precision=False,
        pipeline=StylePipelineConfig(
            datamanager=StyleDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(), train_num_rays_per_batch=4096, eval_num_rays_per_batch=4096
            ),
            model=StyleModelConfig(
                eval_num_rays_per_chunk=1 << 15,
                average_init_density=0.01,
                style_patch_size=256,
                camera_optimizer=CameraOptimizerConfig(mode="SO3xR3"),
            ),
        ),
        optimizers=_optimizers(learning_rate=1e-2),
    ),
    description="Restyle a captured scene with SDXL, shared attention and a sliced Wasserstein loss.",
)

style_nerf2nerf_tiny = MethodSpecification(
    config=StyleTrainerConfig(
        method_name="style-nerf2nerf-tiny",
        steps_per_save=500,
        mixed_precision=False,
        pipeline=StylePipelineConfig(
            datamanager=StyleDataManagerConfig(
                dataparser=ProceduralDataParserConfig(resolution=128),
                train_num_rays_per_batch=1024,
                eval_num_rays_per_batch=1024,
                num_style_views=12,
                max_view_size=256,
                densify=small_prior(num_views=0),
            ),
            model=small_field(
                StyleModelConfig(
                    average_init_density=0.01,
                    prompt="a scene in autumn",
                    vgg_weights="random",
                    style_every=16,
                    aligned_loss_mult=1.0,
                    aligned_layers=("conv2_2", "conv3_2", "conv4_2"),
                    style_rays_per_chunk=1 << 14,
                )
            ),
            rounds=RoundsConfig(reconstruct_steps=1000, rounds=1, retrain_steps=320, strength=0.5),
            restyle=RestyleConfig(source="embedded", num_inference_steps=8, guidance_scale=1.0, control_scale=1.0),
        ),
        viewer=default_viewer(num_rays_per_chunk=4096),
        optimizers=_optimizers(learning_rate=1e-2),
    ),
    description=(
        "style-nerf2nerf with the small embedded models: any CPU, no network, no downloads. They support the styles "
        f"{', '.join(name.replace('_', ' ') for name in KNOWN.prompts)}. With {_coloured}, the prompt can name two of "
        f"the colours {', '.join(KNOWN.colours)}."
    ),
)
