"""Data manager that trains on photos and generated views, weighting each pixel by its trust."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.cameras.rays import RayBundle
from nerfstudio.data.datamanagers.base_datamanager import (
    VanillaDataManager,
    VanillaDataManagerConfig,
    variable_res_collate,
)
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.pixel_samplers import PixelSamplerConfig
from nerfstudio.engine.callbacks import TrainingCallback, TrainingCallbackAttributes, TrainingCallbackLocation
from nerfstudio.engine.trainer import TrainerConfig
from nerfstudio.utils.rich_utils import CONSOLE
from nerfstudio.viewer.viewer_elements import ViewerCheckbox
from torch import Tensor

from eschernet_prior.base.capture_dataset import CaptureDataset, CapturePixelSampler
from eschernet_prior.base.captures.account import Pictures, camera_identity
from eschernet_prior.base.captures.checks import ANY_LENS, UsableLenses, read_split
from eschernet_prior.base.dataset_io import CROP_RADIUS, noted_in
from eschernet_prior.base.errors import UserError, exit_on_user_error
from eschernet_prior.base.field import FieldModelConfig
from eschernet_prior.base.images import register_heif
from eschernet_prior.base.run_record import refuse_changed_poses
from eschernet_prior.densify.generate import Densified, DensifyConfig, densify
from eschernet_prior.densify.references import NO_OUTLINE, read_object
from eschernet_prior.densify.viewer import GeneratedCameras

ON_WHITE = "object_on_white"
"""Key of a dataparser's metadata: whether pictures show the object on white."""
TRUST = "trust"
"""Key of a ray batch: the weight of each ray's pixel, in [0, 1]."""

NONE_HELD_OUT = {
    "val": "None of the {count} photos is held out, so the field cannot be measured on views that it was not trained "
    "on: add --train-split-fraction 0.7 after nerfstudio-data or photos-data to hold some out.",
    "test": "None of the {count} photos was held out: these are views that the field was trained on.",
}
"""Messages if no photo is held out, in training ("val") and when a trained field is evaluated or viewed ("test")."""


ONE_LENS = UsableLenses(
    frozenset({CameraType.PERSPECTIVE}),
    eighth_order=False,
    advice="the prior supports only perspective photos of OpenCV's lens model: undistort the photos first, or omit "
    "the generated views with --pipeline.datamanager.densify.num-views 0.",
)
"""Lenses of photos from which views can be generated."""


class ObjectDataset(CaptureDataset):
    """A capture's pictures; those of a densified capture show the object on white, like generated views."""

    def get_data(self, image_idx: int, image_type: str = "float32") -> dict[str, Any]:
        """Read one picture, white outside its mask."""
        if not self.metadata.get(ON_WHITE):
            return super().get_data(image_idx, image_type)
        picture = read_object(self._dataparser_outputs, image_idx)[0].permute(1, 2, 0)
        if image_type == "uint8":
            picture = (picture * 255).round().to(torch.uint8)
        return {"image_idx": image_idx, "image": picture}


@dataclass
class DensifyDataManagerConfig(VanillaDataManagerConfig):
    """Configuration of nerfstudio's data manager, extended by generated views."""

    _target: type = field(default_factory=lambda: DensifyDataManager)
    densify: DensifyConfig = field(default_factory=DensifyConfig)
    """Views that the prior generates, and how they are weighted."""
    pixel_sampler: PixelSamplerConfig = field(default_factory=lambda: PixelSamplerConfig(_target=CapturePixelSampler))
    """Configuration of the sampler that draws pixels from pictures and their masks."""
    fewest_photos: int = 3
    """Smallest number of photos that is accepted if no views are generated."""

    _run: ClassVar[Path | None] = None

    @property
    def lenses(self) -> UsableLenses:
        """The lenses that these options support."""
        return ONE_LENS if self.densify.num_views else ANY_LENS

    def move_to(self, folder: Path) -> None:
        """Find the generated views after a run folder was moved: at their original place, or next to the new one.

        Called when a config.yml is read.

        Args:
            folder: The run folder.
        """
        self.__dict__["_run"] = folder
        made_in = self.densify.folder
        if made_in is not None and not made_in.is_dir():
            self.densify.folder = folder.parent.parent / made_in.name

    def prepare(self, run: TrainerConfig) -> None:
        """Check the options and set the folder of generated views; called by the trainer's configuration.

        The field of a densified capture gets a white background, like its pictures; so does that of transparent
        photos, unless the options select one other than nerfacto's default.

        Raises:
            UserError: If an option is out of range, or the photos do not show where the object ends.
        """
        self.densify.check()
        account = getattr(run, "capture", None)
        if account is not None:
            self._check_pictures(account.pictures)
        self.densify.folder = run.get_base_dir().parent.parent / "densified"
        model = run.pipeline.model
        if isinstance(model, FieldModelConfig):
            transparent = account is not None and account.pictures.transparent
            if self.densify.num_views or (transparent and model.background_color == "last_sample"):
                model.background_color = "white"

    def _check_pictures(self, pictures: Pictures) -> None:
        outlined = pictures.transparent or pictures.masked_share is not None
        if self.densify.num_views and self.densify.background == "refuse" and not outlined:
            raise UserError(f"The photos in {self.data} do not show where the object ends{NO_OUTLINE}")
        if len(pictures.sizes) > 1 and (self.train_num_rays_per_batch % 2 or self.eval_num_rays_per_batch % 2):
            raise UserError(
                "For pictures of several sizes nerfstudio draws an even number of rays: set "
                "--pipeline.datamanager.train-num-rays-per-batch and .eval-num-rays-per-batch to even numbers."
            )


class DensifyDataManager(VanillaDataManager[ObjectDataset]):
    """Data manager that adds generated views to the photos, and a trust weight to each ray.

    Attributes:
        densified: The generated views; None without densification.
        num_photos: Number of photos, which precede the generated views.
    """

    config: DensifyDataManagerConfig
    densified: Densified | None = None
    num_photos: int

    def __init__(self, config: DensifyDataManagerConfig, *args: Any, **kwargs: Any) -> None:
        """Read the capture; a `UserError` ends any command with its sentence."""
        with exit_on_user_error():
            data = config.data or config.dataparser.data
            if not hasattr(config.dataparser, "prepare") and not data.exists():
                where = "" if data.is_absolute() else f" in {Path.cwd()}, the working folder of this command"
                raise UserError(f"There is no {data}{where}: move the capture back to where it was during training.")
            register_heif()  # nerfstudio's dataparser opens a picture itself
            super().__init__(config, *args, **kwargs)
            if config._run is not None:
                splits = {"train": self._photos, "val": read_split(self.dataparser, "val")}
                refuse_changed_poses(config._run, camera_identity(splits))

    def create_train_dataset(self) -> ObjectDataset:
        """Create the dataset of the photos and the generated views, which are generated now unless they are on disk."""
        photos = self._photos = self.train_dataparser_outputs = self._with_crop(self.train_dataparser_outputs)
        self.num_photos = len(photos.image_filenames)
        if (
            self.test_mode == "val"
            and self.num_photos < self.config.fewest_photos
            and not self.config.densify.num_views
        ):
            raise UserError(
                f"{self.num_photos} photos are too few for a field: take at least "
                f"{self.config.fewest_photos}, preferably 30 for a scene, or generate further views of an "
                "object with --pipeline.datamanager.densify.num-views 15."
            )
        if self.config.densify.num_views:
            self.densified = densify(photos, self.noted_in, self.config.densify, self.device)
            self.train_dataparser_outputs = with_generated(photos, self.densified)
            self._weights = self.densified.weights(self.config.densify)
            self._add_viewer_controls()
        return super().create_train_dataset()

    @property
    def noted_in(self) -> Path | None:
        """Where the capture notes earlier transforms of its poses; None if its dataparser ignores them."""
        return noted_in(self.config.dataparser, self.get_datapath())

    def create_eval_dataset(self) -> ObjectDataset:
        """Create the dataset of held-out photos; those of a densified capture are on white, like its training views.

        If no photo is held out, commands that use a trained field (`ns-eval`, `ns-render`) get the training photos, and
        a message is printed.
        """
        outputs = self._with_crop(read_split(self.dataparser, self.test_split))
        if not outputs.image_filenames:
            if self.test_mode == "test":
                outputs = self._photos
            if self.test_mode in NONE_HELD_OUT:
                CONSOLE.print(NONE_HELD_OUT[self.test_mode].format(count=self.num_photos), soft_wrap=True)
        return self._dataset(outputs)

    def _with_crop(self, outputs: DataparserOutputs) -> DataparserOutputs:
        """Scale the radius of the fisheye rim to reduced pictures; nerfstudio keeps that of the full-size ones."""
        metadata, factor = outputs.cameras.metadata or {}, getattr(self.dataparser, "downscale_factor", None) or 1
        if CROP_RADIUS in metadata and factor != 1:
            outputs.cameras.metadata = {**metadata, CROP_RADIUS: metadata[CROP_RADIUS] / factor}
        return outputs

    def setup_eval(self) -> None:
        """Prepare the loaders for evaluation, then make sure that `ns-render interpolate` has a path.

        The path connects the cameras of `eval_dataset`. If only one photo is held out, this is replaced by the training
        photos.
        """
        sides = [getattr(self.eval_dataset.cameras, side).flatten().tolist() for side in ("height", "width")]
        if len(set(zip(*sides))) > 1:
            # nerfstudio chooses this by the sizes of the training photos only.
            self.config.collate_fn = variable_res_collate
        super().setup_eval()
        if self.test_mode == "test" and len(self.eval_dataset) == 1:
            self.eval_dataset = self._dataset(self._photos)

    def next_train(self, step: int) -> tuple[RayBundle, dict[str, Any]]:
        """Draw a ray batch; for a densified capture it contains `TRUST` (rays,), which is 1 for photos."""
        rays, batch = super().next_train(step)
        if self.densified is not None:
            batch[TRUST] = self._trust_of(batch["indices"], step)
        return rays, batch

    def get_training_callbacks(
        self, training_callback_attributes: TrainingCallbackAttributes
    ) -> list[TrainingCallback]:
        """List the callbacks, including one that colours the generated cameras in the viewer."""
        callbacks = super().get_training_callbacks(training_callback_attributes)
        trainer = training_callback_attributes.trainer
        if self.densified is not None and trainer is not None:
            callbacks.append(
                TrainingCallback(
                    where_to_run=[TrainingCallbackLocation.BEFORE_TRAIN_ITERATION],
                    func=lambda step: self._paint_cameras(trainer),
                )
            )
        return callbacks

    def _dataset(self, outputs: DataparserOutputs) -> ObjectDataset:
        """Create a dataset of photos in the form in which the field is trained on them."""
        if self.densified is not None:
            outputs = replace(outputs, metadata={**outputs.metadata, ON_WHITE: True})
        return ObjectDataset(outputs, scale_factor=self.config.camera_res_scale_factor)

    def _trust_of(self, indices: Tensor, step: int) -> Float[Tensor, " rays"]:
        """Trust of pixels (view, row, column) at a training step."""
        view, row, column = indices.cpu().unbind(-1)
        weights = torch.ones(len(view))
        generated = view >= self.num_photos
        trusted = self._weights[view[generated] - self.num_photos, row[generated], column[generated]]
        weights[generated] = trusted * self.config.densify.weight_at(step)
        return weights

    def _add_viewer_controls(self) -> None:
        self.show_generated_cameras = ViewerCheckbox(
            "Show generated cameras", default_value=True, cb_hook=self._show_cameras
        )
        self._painted: GeneratedCameras | None = None

    def _paint_cameras(self, trainer: Any) -> None:
        viewer = trainer.viewer_state
        if self._painted is None and getattr(viewer, "camera_handles", None):
            self._painted = GeneratedCameras(viewer, self.train_dataset, self.num_photos)
            self._painted.show(self.show_generated_cameras.value)

    def _show_cameras(self, checkbox: Any) -> None:
        if self._painted is not None:
            self._painted.show(checkbox.value)


def with_generated(photos: DataparserOutputs, densified: Densified) -> DataparserOutputs:
    """Combine a capture's photos with generated views, all with the object on white."""
    return replace(
        photos,
        image_filenames=[*photos.image_filenames, *densified.images],
        cameras=_joined(photos.cameras, densified.cameras),
        mask_filenames=_masks(photos, densified),
        metadata={**_without_pictures(photos), ON_WHITE: True},
    )


def _masks(photos: DataparserOutputs, densified: Densified) -> list[Any] | None:
    """The photos' masks, and None for generated views, which are white around the object."""
    return None if photos.mask_filenames is None else [*photos.mask_filenames, *[None] * len(densified.names)]


def _without_pictures(photos: DataparserOutputs) -> dict[str, Any]:
    """Metadata without lists that have one entry per photo and none for generated views."""
    count = len(photos.image_filenames)
    return {
        key: value for key, value in photos.metadata.items() if not (isinstance(value, list) and len(value) == count)
    }


def _joined(first: Cameras, second: Cameras) -> Cameras:
    """Concatenate two sets of cameras; missing distortion parameters become zeros."""

    def both(name: str) -> Tensor:
        return torch.cat([getattr(cameras, name).cpu() for cameras in (first, second)])

    distortion = [
        torch.zeros(len(cameras), 6) if cameras.distortion_params is None else cameras.distortion_params.cpu()
        for cameras in (first, second)
    ]
    return Cameras(
        both("camera_to_worlds"),
        fx=both("fx"),
        fy=both("fy"),
        cx=both("cx"),
        cy=both("cy"),
        width=both("width"),
        height=both("height"),
        camera_type=both("camera_type"),
        distortion_params=torch.cat(distortion) if first.distortion_params is not None else None,
    )
