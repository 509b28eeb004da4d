"""Generate the missing views of a sparse capture with the prior; cached on disk in the capture's coordinate frame.

All views are generated in one pass, in which they attend to each other. The pass is repeated for each *sample*; a view
is the mean of its samples, and their differences determine how far it is trusted (`trust`). The name of the folder is a
hash of photos, poses, prior and options, so that all runs on the same photos share the views:

    <hash>/     transforms.json  images/  trust/  manifest.json     complete
    .<hash>/    in progress: finished samples, and the latents of the current one

`trust/NAME.png` contains the agreement of the samples, 255 for 1; the other two criteria are numbers per view, in
`manifest.json`. They are combined to weights when the views are used (`Densified.weights`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import tyro
from jaxtyping import Float
from nerfstudio.cameras.cameras import Cameras, CameraType
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.utils.rich_utils import CONSOLE, get_progress
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from eschernet_prior.base.cameras import focal_length, world_to_camera
from eschernet_prior.base.dataset_io import OBJECT_FRAME, CaptureFrame, write_dataset
from eschernet_prior.base.errors import UserError
from eschernet_prior.base.file_identity import folder_identity, snapshot_commit
from eschernet_prior.base.files import atomic_path, read_json, write_json
from eschernet_prior.base.images import write_image
from eschernet_prior.base.schedulers import is_resumable
from eschernet_prior.cape import RADIUS_RANGE
from eschernet_prior.densify import trust
from eschernet_prior.densify.references import Background, References, read_references
from eschernet_prior.densify.targets import TargetPlan, plan_targets
from eschernet_prior.frames import PRIOR_FOV_DEGREES, PriorFrame

if TYPE_CHECKING:
    from eschernet_prior.pipeline import EscherNetPipeline

DECISIVE = ("prior", "num_views", "plan", "samples", "repeat_references", "num_inference_steps", "guidance_scale")
"""Options that determine the views, in addition to frame, background and seed."""


@dataclass
class DensifyConfig:
    """Views that the prior adds to a capture, and how they are weighted."""

    num_views: int = 0
    """Number of views to generate; 0 for none."""
    prior: str = "kxic/eschernet-6dof"
    """Weights of the prior: a hub id, a folder, or embedded (the small prior in this package)."""
    prior_revision: str | None = None
    """Commit, tag or branch of a prior on the hub; default: the one listed in eschernet_prior.hub."""
    plan: TargetPlan = "spiral"
    """Camera positions: spiral (spread over the captured range of elevations), orbit, or between (the photos)."""
    samples: int = 2
    """Samples per view; pixels in which the samples differ get less weight."""
    repeat_references: int = 1
    """Number of times that each photo is passed to the prior."""
    num_inference_steps: int = 50
    """Denoising steps."""
    guidance_scale: float = 3.0
    """Scale of classifier-free guidance; 1 disables it."""
    background: Background = "refuse"
    """Handling of photos without mask and alpha: refuse them, or keep their background as part of the object."""
    object_centre: tuple[float, float, float] | None = None
    """Centre of the object in the training frame; default: the point that the cameras look at."""
    seed: int = 0
    """Seed of the noise."""
    trust_agreement: bool = True
    """Weight each pixel by the agreement of the samples."""
    trust_nearness: bool = True
    """Weight each view by its angle to the nearest photo."""
    trust_outlines: bool = True
    """Drop views whose outline contradicts those of the photos."""
    fade_out: tuple[int, int] | None = None
    """First and last training step of a linear decay of the generated views' weight to 0; default: no decay."""
    folder: tyro.conf.Suppress[Path | None] = None
    """Folder of the generated views; set by the trainer's configuration."""

    def check(self) -> None:
        """Refuse options that are out of range.

        Raises:
            UserError: If an option is out of range.
        """
        least = {"num_views": 0, "samples": 1, "repeat_references": 1, "num_inference_steps": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                option = name.replace("_", "-")
                raise UserError(f"--pipeline.datamanager.densify.{option} must be at least {value}.")
        if self.fade_out is not None and not 0 <= self.fade_out[0] < self.fade_out[1]:
            raise UserError(
                "--pipeline.datamanager.densify.fade-out needs a first step of at least 0 and a later last step."
            )

    def weight_at(self, step: int) -> float:
        """Factor on the generated views' weights at a training step, in [0, 1]."""
        if self.fade_out is None:
            return 1.0
        first, last = self.fade_out
        return min(max((last - step) / (last - first), 0.0), 1.0)

    def decisive(self) -> dict[str, Any]:
        """All options that the result of a run depends on, as read back from JSON."""
        options = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "folder"}
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
        return options if self.num_views else {"num_views": 0}


def small_prior(num_views: int) -> DensifyConfig:
    """Options for the small prior in this package: few steps, and no guidance, which makes its results worse."""
    return DensifyConfig(num_views=num_views, prior="embedded", num_inference_steps=5, guidance_scale=1.0)


@dataclass(frozen=True)
class Densified:
    """Generated views on disk."""

    folder: Path
    """A nerfstudio dataset."""
    names: list[str]
    """File names without suffix."""
    cameras: Cameras
    """Cameras in the training frame of the capture."""
    nearness: list[float]
    """Weight of each view by its angle to the nearest photo."""
    disagreement: list[float] | None
    """Share of each outline that contradicts the photos'; None if the photos have no outlines."""

    @property
    def images(self) -> list[Path]:
        """Files of the views."""
        return [self.folder / "images" / f"{name}.png" for name in self.names]

    def weights(self, config: DensifyConfig) -> Float[Tensor, "views height width"]:
        """Trust of each pixel in [0, 1]; 0 everywhere in a dropped view."""
        found = []
        for index, name in enumerate(self.names):
            with Image.open(self.folder / "trust" / f"{name}.png") as picture:
                weight = torch.from_numpy(np.array(picture)).float() / 255
            if not config.trust_agreement:
                weight = torch.ones_like(weight)
            if config.trust_nearness:
                weight = weight * self.nearness[index]
            if config.trust_outlines and self.disagreement is not None:
                weight = weight * float(self.disagreement[index] <= trust.MAX_DISAGREEMENT)
            found.append(weight)
        return torch.stack(found)


def densify(
    outputs: DataparserOutputs, data: Path | None, config: DensifyConfig, device: torch.device | str = "cpu"
) -> Densified:
    """Generate views, or read them from disk if they exist.

    Args:
        outputs: The dataparser's outputs for the photos.
        data: Where the capture notes earlier transforms of its poses, see `CaptureFrame`.
        config: The options, with `num_views` above 0 and a `folder`.
        device: Device of the prior.

    Raises:
        UserError: If the photos or the prior cannot be used, or there are not enough positions for the views.
    """
    assert config.folder is not None
    config.check()
    job = DensifyJob.plan(outputs, data, config, device)
    request = job.request()
    folder = config.folder / hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:16]
    if not (folder / "manifest.json").is_file():
        job.run(folder, request)
    manifest = read_json(folder / "manifest.json")
    views = manifest["views"]
    return Densified(
        folder=folder,
        names=list(views),
        cameras=job.cameras,
        nearness=[view["nearness"] for view in views.values()],
        disagreement=None
        if job.references.silhouettes is None
        else [view["disagreement_with_outlines"] for view in views.values()],
    )


@dataclass(frozen=True)
class DensifyJob:
    """Everything that goes into the generation of one capture's views."""

    references: References
    sources: Float[Tensor, "references 4 4"]
    """c2w of the references in the prior's frame."""
    targets: Float[Tensor, "targets 4 4"]
    """c2w of the generated views in the prior's frame."""
    cameras: Cameras
    """The cameras of the generated views in the training frame."""
    frame: CaptureFrame
    """Transform from the training frame to the capture's own."""
    weights: Path
    """The prior's folder."""
    config: DensifyConfig
    device: torch.device | str

    @classmethod
    def plan(
        cls, outputs: DataparserOutputs, data: Path | None, config: DensifyConfig, device: torch.device | str
    ) -> DensifyJob:
        """Read the references and choose the targets.

        Raises:
            UserError: If the photos or the prior cannot be used, or the plan finds too few views.
        """
        weights, size = _prior_location(config)
        references = read_references(outputs, size, config.background)
        frame = _prior_frame(references, outputs, config)
        sources = frame.to_prior(references.camera_to_worlds)
        targets = plan_targets(sources, config.num_views, config.plan)
        cameras = _cameras(frame, targets, size)
        return cls(references, sources, targets, cameras, CaptureFrame(outputs, data), weights, config, device)

    def request(self) -> dict[str, Any]:
        """Everything that the generated views depend on, as read back from JSON."""
        digest = hashlib.sha256()
        for tensor in (self.references.images, self.sources, self.targets):
            digest.update(np.ascontiguousarray(tensor.float().numpy().round(5)).tobytes())
        return {
            "photos_and_poses": digest.hexdigest(),
            "weights": folder_identity(self.weights),
            "commit": snapshot_commit(self.weights),
            "background": self.config.background,
            "seed": self.config.seed,
            **{name: getattr(self.config, name) for name in DECISIVE},
        }

    def run(self, folder: Path, request: dict[str, Any]) -> None:
        """Generate the views and write their folder, reusing the finished parts of an interrupted run."""
        from eschernet_prior.pipeline import EscherNetPipeline

        config = self.config
        work = folder.parent / f".{folder.name}"
        samples = [work / f"sample_{number:02d}.safetensors" for number in range(config.samples)]
        if not all(path.is_file() for path in samples):
            half = torch.float16 if torch.device(self.device).type == "cuda" else torch.float32
            # Use only the files that `_prior_location` found and that the request identifies.
            pipeline = EscherNetPipeline.from_pretrained(
                config.prior, revision=config.prior_revision, torch_dtype=half, local_files_only=True
            )
            pipeline.to(self.device).set_progress_bar_config(disable=True)
            title = f"Generating {config.num_views} views from {len(self.sources)} photos"
            with get_progress(title, suffix="steps") as progress:
                task = progress.add_task("", total=config.samples * config.num_inference_steps)
                for number, path in enumerate(samples):

                    def on_step(done: int, number: int = number) -> None:
                        progress.update(task, completed=number * config.num_inference_steps + done)

                    if not path.is_file():
                        self._sample(pipeline, path, number, on_step)
                    on_step(config.num_inference_steps)
            del pipeline
        self._write(folder, request, torch.stack([load_file(path)["views"] for path in samples]))
        for path in sorted(work.glob("*")):
            path.unlink()
        work.rmdir()
        CONSOLE.print(f"{config.num_views} views generated by {config.prior} in {folder}", soft_wrap=True, markup=False)

    def _sample(self, pipeline: EscherNetPipeline, path: Path, number: int, on_step: Callable[[int], None]) -> None:
        """Generate one sample of all views; latents are saved at every step, from which an interrupted pass resumes.

        Schedulers that depend on earlier steps cannot be resumed: with them an interrupted pass starts again.
        """
        config = self.config
        kept = path.with_name(f"latents_{number:02d}.safetensors")
        resumable = is_resumable(pipeline.scheduler)
        state = load_file(kept) if resumable and kept.is_file() else None
        first_step = 0 if state is None else int(state["steps"])
        on_step(first_step)

        def keep(_: Any, step: int, __: Any, tensors: dict[str, Tensor]) -> None:
            if resumable:
                with atomic_path(kept) as partial:
                    save_file({"latents": tensors["latents"].cpu(), "steps": torch.tensor(step + 1)}, partial)
            on_step(step + 1)

        repeats = config.repeat_references
        made: Any = pipeline(
            self.references.images.repeat(repeats, 1, 1, 1),
            world_to_camera(self.sources).repeat(repeats, 1, 1),
            world_to_camera(self.targets),
            config.num_inference_steps,
            config.guidance_scale,
            generator=torch.Generator().manual_seed(1000 * config.seed + number),
            latents=None if state is None else state["latents"],
            first_step=first_step,
            output_type="pt",
            callback_on_step_end=keep,
        )
        with atomic_path(path) as partial:
            save_file({"views": made.images.cpu().float().contiguous()}, partial)
        kept.unlink(missing_ok=True)

    def _write(
        self, folder: Path, request: dict[str, Any], samples: Float[Tensor, "samples views 3 height width"]
    ) -> None:
        """Write the finished folder atomically."""
        views = (samples.mean(0) * 255).round() / 255
        agreement = trust.agreement(samples)
        near = trust.nearness(self.sources, self.targets)
        silhouettes = self.references.silhouettes
        contradicting = (
            None if silhouettes is None else trust.disagreement(silhouettes, self.sources, views, self.targets).tolist()
        )
        names = [f"generated_{index:03d}" for index in range(len(views))]
        with atomic_path(folder) as partial:
            write_dataset(partial, self.cameras, self.frame, names, list(views))
            for name, weight in zip(names, agreement):
                write_image(partial / "trust" / f"{name}.png", weight)
            angles = trust.angles_to_nearest(self.sources, self.targets).tolist()
            described = {
                name: {
                    "degrees_to_nearest_photo": round(angles[index], 2),
                    "nearness": float(near[index]),
                    "mean_agreement": float(agreement[index].mean()),
                    "disagreement_with_outlines": None if contradicting is None else contradicting[index],
                }
                for index, name in enumerate(names)
            }
            write_json(partial / "manifest.json", {"made_of": request, "views": described})


def _prior_location(config: DensifyConfig) -> tuple[Path, int]:
    """The prior's folder, downloaded if necessary, and the side of its views in pixels."""
    from eschernet_prior import weight_files

    folder = weight_files.locate(config.prior, revision=config.prior_revision)
    index = read_json(folder / "model_index.json") or {}
    return folder, int(index.get("image_size", weight_files.OFFICIAL_IMAGE_SIZE))


def _prior_frame(references: References, outputs: DataparserOutputs, config: DensifyConfig) -> PriorFrame:
    """The prior's frame: the capture's own if its cameras are at the right distances, else one around the object.

    Raises:
        UserError: If the object's centre cannot be determined.
    """
    own = bool(outputs.metadata.get(OBJECT_FRAME))
    given = config.object_centre or ((0.0, 0.0, 0.0) if own else None)
    centre = None if given is None else torch.tensor(given, dtype=torch.float64)
    positions = references.camera_to_worlds[:, :3, 3]
    if own and config.object_centre is None:
        distances = positions.norm(dim=-1)
        if RADIUS_RANGE[0] <= float(distances.min()) and float(distances.max()) <= RADIUS_RANGE[1]:
            return PriorFrame(torch.zeros(3, dtype=torch.float64), 1.0)
    try:
        return PriorFrame.around(references.camera_to_worlds, centre)
    except ValueError as error:
        raise UserError(
            "The object's centre cannot be determined from the cameras: set "
            "--pipeline.datamanager.densify.object-centre X Y Z, in the training frame."
        ) from error


def _cameras(frame: PriorFrame, targets: Float[Tensor, "targets 4 4"], size: int) -> Cameras:
    """Cameras in the training frame for c2w in the prior's frame, with the prior's own intrinsics."""
    c2w = frame.to_world(targets)
    focal = focal_length(PRIOR_FOV_DEGREES, size)
    return Cameras(
        camera_to_worlds=c2w[:, :3].float(),
        fx=focal,
        fy=focal,
        cx=size / 2,
        cy=size / 2,
        width=size,
        height=size,
        camera_type=CameraType.PERSPECTIVE,
    )
