"""The registered methods; dataparsers are in `eschernet_prior.data_config`, which nerfstudio imports earlier."""

from __future__ import annotations

from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig
from nerfstudio.engine.optimizers import AdamOptimizerConfig
from nerfstudio.engine.schedulers import ExponentialDecaySchedulerConfig
from nerfstudio.pipelines.base_pipeline import VanillaPipelineConfig
from nerfstudio.plugins.types import MethodSpecification

from eschernet_prior.base.field import FieldModelConfig, small_field
from eschernet_prior.base.run_folder import refuse_moved_classes
from eschernet_prior.base.trainer import RunTrainerConfig, default_viewer
from eschernet_prior.densify.datamanager import DensifyDataManagerConfig
from eschernet_prior.densify.generate import DensifyConfig, small_prior
from eschernet_prior.procedural.dataparser import ProceduralDataParserConfig

refuse_moved_classes(
    *(
        f"eschernet_prior.{name}"
        for name in (
            "dataparsers.ProceduralDataParserConfig",
            "dataparsers.ProceduralDataParser",
            "densified_data.DensifyDataManagerConfig",
            "densified_data.DensifyDataManager",
            "densify.DensifyConfig",
            "field.FieldModelConfig",
            "field.FieldModel",
            "render_dataparser.ObjaverseDataParserConfig",
            "render_dataparser.ObjaverseDataParser",
            "trainer.RunTrainerConfig",
            "trainer.RunTrainer",
        )
    ),
)


def _optimizers(steps: int) -> dict:
    group = {
        "optimizer": AdamOptimizerConfig(lr=1e-2, eps=1e-15),
        "scheduler": ExponentialDecaySchedulerConfig(lr_final=1e-4, max_steps=steps),
    }
    return {"proposal_networks": dict(group), "fields": dict(group)}


def _object_field() -> FieldModelConfig:
    """A field for objects on white: white background, no appearance embedding, fixed poses."""
    field = FieldModelConfig(background_color="white", use_appearance_embedding=False, average_init_density=0.01)
    field.camera_optimizer.mode = "off"
    return field


eschernet_nerfacto = MethodSpecification(
    config=RunTrainerConfig(
        method_name="eschernet-nerfacto",
        steps_per_save=2000,
        steps_per_eval_batch=500,
        max_num_iterations=15000,
        mixed_precision=True,
        pipeline=VanillaPipelineConfig(
            datamanager=DensifyDataManagerConfig(
                dataparser=NerfstudioDataParserConfig(),
                train_num_rays_per_batch=4096,
                eval_num_rays_per_batch=4096,
                densify=DensifyConfig(num_views=36),
            ),
            model=_object_field(),
        ),
        optimizers=_optimizers(15000),
    ),
    description="Reconstruct an object from a few photos: EscherNet generates the missing views.",
)

eschernet_nerfacto_tiny = MethodSpecification(
    config=RunTrainerConfig(
        method_name="eschernet-nerfacto-tiny",
        steps_per_save=500,
        steps_per_eval_batch=500,
        max_num_iterations=1000,
        mixed_precision=False,
        pipeline=VanillaPipelineConfig(
            datamanager=DensifyDataManagerConfig(
                dataparser=ProceduralDataParserConfig(background=False, num_views=3),
                train_num_rays_per_batch=512,
                eval_num_rays_per_batch=512,
                densify=small_prior(num_views=15),
            ),
            model=small_field(_object_field()),
        ),
        viewer=default_viewer(num_rays_per_chunk=4096),
        optimizers=_optimizers(1000),
    ),
    description="eschernet-nerfacto with the small embedded prior: any CPU, no network, no downloads.",
)
