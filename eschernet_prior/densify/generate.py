"""Few photos, many views: the prior makes what the capture does not show, once, on disk, in the capture's own frame.

All views are generated in one pass (they attend to each other, so making them apart would give other views), and that
pass is repeated for each *sample*; a view is the mean of its samples, and how much they differ says how far it can be
trusted (`trust`). The folder's name is a digest of photos, poses, prior and options, so every run
on the same photos finds the same views:

    <hash>/     transforms.json  images/  trust/  manifest.json     whole, or not there
    .<hash>/    the same while it is being made: finished samples, and the latents of the one that is under way

`trust/NAME.png` holds the agreement of the samples, 255 for 1; the other two signs are numbers of a whole view, in
`manifest.json`. How they become weights is decided when the views are used (`Densified.weights`).
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
"""Options that decide what the views look like, in addition to frame, background and seed."""


@dataclass
class DensifyConfig:
    """Which views the prior adds to a capture, and how far they are trusted."""

    num_views: int = 0
    """Views to generate, all in one pass; 0: none."""
    prior: str = "kxic/eschernet-6dof"
    """Weights of the prior: a hub id, a folder, or embedded for the small one in this package."""
    prior_revision: str | None = None
    """Commit, tag or branch of a prior on the hub; None: that of `eschernet_prior.hub`."""
    plan: TargetPlan = "spiral"
    """Where they are seen from: spiral (spread over the captured band of elevations), orbit, or between the photos."""
    samples: int = 2
    """Times that each view is drawn; what the samples do not agree on weighs less."""
    repeat_references: int = 1
    """Times that each photo is given to the prior."""
    num_inference_steps: int = 50
    """Denoising steps."""
    guidance_scale: float = 3.0
    """Strength of classifier-free guidance; off at 1."""
    background: Background = "refuse"
    """Photos with neither mask nor alpha: refuse them, or keep their background as if it were part of the object."""
    object_centre: tuple[float, float, float] | None = None
    """Where the object is, in the training frame; default: where the cameras look."""
    seed: int = 0
    """Seed of the noise."""
    trust_agreement: bool = True
    """Weigh each pixel by how far the samples agree."""
    trust_nearness: bool = True
    """Weigh each view by its angle to the nearest photo."""
    trust_outlines: bool = True
    """Drop views whose outline contradicts the photos' outlines."""
    fade_out: tuple[int, int] | None = None
    """Training steps between which generated views lose their weight, evenly, down to nothing; they keep it if None."""
    folder: tyro.conf.Suppress[Path | None] = None
    """Where the folders of generated views lie; the trainer's configuration fills it in."""

    def check(self) -> None:
        """Refuse numbers that cannot work.

        Raises:
            UserError: the first of them.
        """
        least = {"num_views": 0, "samples": 1, "repeat_references": 1, "num_inference_steps": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                option = name.replace("_", "-")
                raise UserError(f"--pipeline.datamanager.densify.{option} must be at least {value}.")
        if self.fade_out is not None and not 0 <= self.fade_out[0] < self.fade_out[1]:
            raise UserError("--pipeline.datamanager.densify.fade-out needs a first step and a later last one.")

    def weight_at(self, step: int) -> float:
        """The share that is left of generated views' weights at a training step, in [0, 1]."""
        if self.fade_out is None:
            return 1.0
        first, last = self.fade_out
        return min(max((last - step) / (last - first), 0.0), 1.0)

    def decisive(self) -> dict[str, Any]:
        """All options that a run's result depends on, as JSON gives them back."""
        options = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "folder"}
        options = {name: list(value) if isinstance(value, tuple) else value for name, value in options.items()}
        return options if self.num_views else {"num_views": 0}


def small_prior(num_views: int) -> DensifyConfig:
    """The options for the small prior in this package: few steps, and no guidance, with which it does worse."""
    return DensifyConfig(num_views=num_views, prior="embedded", num_inference_steps=5, guidance_scale=1.0)


@dataclass(frozen=True)
class Densified:
    """Generated views on disk."""

    folder: Path
    """The nerfstudio dataset that they are."""
    names: list[str]
    """Their file names without suffix."""
    cameras: Cameras
    """Their cameras, in the training frame of the capture."""
    nearness: list[float]
    """Weight of each by its angle to the nearest photo."""
    disagreement: list[float] | None
    """Share of each outline that contradicts the photos'; None where the photos have no outlines."""

    @property
    def images(self) -> list[Path]:
        """Their files."""
        return [self.folder / "images" / f"{name}.png" for name in self.names]

    def weights(self, config: DensifyConfig) -> Float[Tensor, "views height width"]:
        """How far each pixel is trusted, in [0, 1]; 0 everywhere in a dropped view."""
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
    outputs: DataparserOutputs, data: Path, config: DensifyConfig, device: torch.device | str = "cpu"
) -> Densified:
    """The views that the options ask for: those on disk, or new ones.

    Args:
        outputs: what the dataparser said of the photos.
        data: the capture, for the frame of what is written.
        config: the options; `num_views` is above 0 and `folder` is there.
        device: where the prior runs.

    Raises:
        UserError: the photos or the prior cannot be used, or the plan finds no such views.
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
    """The way from the training frame to the capture's own."""
    weights: Path
    """The prior's folder."""
    config: DensifyConfig
    device: torch.device | str

    @classmethod
    def plan(
        cls, outputs: DataparserOutputs, data: Path, config: DensifyConfig, device: torch.device | str
    ) -> DensifyJob:
        """Read the references and choose the targets.

        Raises:
            UserError: if the photos or the prior cannot be used, or the plan finds too few views.
        """
        weights, size = _prior_location(config)
        references = read_references(outputs, size, config.background)
        frame = _prior_frame(references, outputs, config)
        sources = frame.to_prior(references.camera_to_worlds)
        targets = plan_targets(sources, config.num_views, config.plan)
        cameras = _cameras(frame, targets, size)
        return cls(references, sources, targets, cameras, CaptureFrame(outputs, data), weights, config, device)

    def request(self) -> dict[str, Any]:
        """All that the generated views depend on, as JSON gives it back."""
        digest = hashlib.sha256()
        for tensor in (self.references.images, self.sources, self.targets):
            digest.update(np.ascontiguousarray(tensor.float().numpy().round(5)).tobytes())
        return {
            "photos_and_poses": digest.hexdigest(),
            "weights": _weights_digest(self.weights),
            "background": self.config.background,
            "seed": self.config.seed,
            **{name: getattr(self.config, name) for name in DECISIVE},
        }

    def run(self, folder: Path, request: dict[str, Any]) -> None:
        """Generate the views and write their folder, resuming from what an interrupted run has finished."""
        from eschernet_prior.pipeline import EscherNetPipeline

        config = self.config
        work = folder.parent / f".{folder.name}"
        samples = [work / f"sample_{number:02d}.safetensors" for number in range(config.samples)]
        if not all(path.is_file() for path in samples):
            half = torch.float16 if torch.device(self.device).type == "cuda" else torch.float32
            # Only what `_prior_location` has fetched: those weights are what the request names.
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
        """One pass over all views; its latents are saved at every step, so that an interrupted pass is resumed there.

        Schedulers that look back at earlier steps cannot be resumed: with them an interrupted pass starts again.
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
        """Write the finished folder, whole or not at all."""
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
    """The prior's folder, fetched where it is not here, and the pixels of its views."""
    from eschernet_prior import weight_files

    folder = weight_files.locate(config.prior, revision=config.prior_revision)
    index = read_json(folder / "model_index.json") or {}
    return folder, int(index.get("image_size", weight_files.OFFICIAL_IMAGE_SIZE))


def _prior_frame(references: References, outputs: DataparserOutputs, config: DensifyConfig) -> PriorFrame:
    """The way into the prior's frame: none for captures that are in it, else around what the cameras look at.

    Raises:
        UserError: the cameras do not tell where the object is.
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
            "The cameras do not tell where the object is: say so with --pipeline.datamanager.densify.object-centre "
            "X Y Z, in the training frame."
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


def _weights_digest(folder: Path) -> str:
    """Tells two priors apart: of small weights the content, of large ones the sizes."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.safetensors")) + sorted(folder.rglob("*.bin")):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}".encode())
        if path.stat().st_size < 1 << 26:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
