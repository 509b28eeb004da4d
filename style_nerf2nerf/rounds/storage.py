"""Configuration of the rounds, and their folders on disk.

Steps are counted from 0. The first `reconstruct_steps` train the field on the photos. In rounds 1 … `rounds`, views of
the field are rendered and restyled together, and the field is retrained on them for `retrain_steps`. The
strength of the diffusion model is multiplied by `strength_decay` from round to round.

On disk, below the run folder:

    restyled/round_01/     transforms.json  images/  depth/  renders/  manifest.json    complete
        style_02/          the same views in a further style: transforms.json  images/  depth/
    restyled/.round_01/    the round in progress: finished renders, latents, decoded views
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import tyro
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from eschernet_prior.base.dataset_io import CaptureFrame, read_depth
from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import atomic_path, read_json, write_json
from eschernet_prior.base.images import read_image
from style_nerf2nerf.rounds.mask_shapes import MaskShape

if TYPE_CHECKING:
    from style_nerf2nerf.model import StyleModel
    from style_nerf2nerf.options import StyledRun


@dataclass
class RoundsConfig:
    """Number of steps of each stage, and strength of the rounds."""

    reconstruct_steps: int = 30000
    """Steps that train the field on the photos before the first round; ignored with --load-dir of a trained field."""
    rounds: int = 1
    """Number of rounds, each of which renders, restyles and retrains; 0 for the reconstruction only."""
    retrain_steps: int = 15000
    """Steps of retraining in each round."""
    strength: float = 0.85
    """Strength of the first round, from 0 (no change) to 1 (only depth and prompt matter)."""
    strength_decay: float = 0.75
    """Factor on the strength from one round to the next; a round that starts from the photos' field again has that of
    the first round."""
    start_from: Literal["photos", "current"] = "photos"
    """Field from which a round starts after the prompts were changed in the viewer: photos (before the first round) or
    current (after the last round)."""
    first_step: tyro.conf.Suppress[int] = 0
    """First step of a run that starts from a trained field; set by the trainer's configuration."""

    @property
    def reconstruction_end(self) -> int:
        """First step of the first round."""
        return self.first_step or self.reconstruct_steps

    def strength_of(self, number: int) -> float:
        """Strength of a round (counted from 1)."""
        return self.strength * self.strength_decay ** (number - 1)

    def check(self) -> None:
        """Refuse numbers that are out of range.

        Raises:
            UserError: If a number of steps is negative, or a strength is outside (0, 1].
        """
        if min(self.reconstruct_steps, self.rounds) < 0 or self.retrain_steps < 1:
            raise UserError(
                "--pipeline.rounds.reconstruct-steps and --pipeline.rounds.rounds must be at least 0, "
                "--pipeline.rounds.retrain-steps at least 1."
            )
        if not 0 < self.strength <= 1 or not 0 < self.strength_decay <= 1:
            raise UserError(
                "--pipeline.rounds.strength and --pipeline.rounds.strength-decay must be above 0 and at most 1."
            )


Start = Literal["photos", "current"]
"""The field from which a round starts: before the first round, or after the previous one."""


@dataclass(frozen=True)
class RoundSettings:
    """Settings of a round that may change from round to round."""

    prompt: str
    negative_prompt: str
    guidance_scale: float
    """At least 0."""
    strength: float | None
    """In (0, 1]; None: the configured strength of the round."""
    start: Start = "photos"
    """The field from which the round starts if its prompts differ from those of the previous round."""
    mask: MaskShape | None = None
    """Shape inside which the scene may change; None: the run's masks, or without masks the whole scene."""

    @property
    def words(self) -> tuple[str, str]:
        """The prompt and the negative prompt."""
        return self.prompt, self.negative_prompt

    @staticmethod
    def from_json(found: dict[str, Any]) -> RoundSettings:
        """Read settings from the output of `asdict` or from JSON."""
        return RoundSettings(**{**found, "mask": MaskShape.from_json(found.get("mask"))})


@dataclass(frozen=True)
class RoundRequest:
    """All inputs of a round's restyled views: equal requests have equal results."""

    number: int
    step: int
    """Training step of the field at which the views are rendered."""
    settings: RoundSettings
    """Settings of the round, including the strength."""
    views: tuple[str, ...]
    """Names of the views."""
    size: tuple[int, int]
    """Height and width of the views."""
    restyler: dict[str, Any]
    """The restyler's options."""
    more_prompts: tuple[str, ...] = ()
    """Further styles, each restyled separately."""
    restyled_data: tuple[str, ...] = ()
    """Folders of given pictures, one per style, instead of restyling."""
    masks: str | None = None
    """Masks of the region to restyle: a folder, or "dataset"."""
    start: str = "current"
    """The field whose views are restyled: photos (before the first round) or current."""

    @property
    def styles(self) -> tuple[str, ...]:
        """The prompt or the folder of each style."""
        return self.restyled_data or (self.settings.prompt, *self.more_prompts)

    def as_json(self) -> dict[str, Any]:
        """The request as read back from JSON, with lists for tuples."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


class RoundFolder:
    """Folder of a round on disk."""

    def __init__(self, run_dir: Path, number: int) -> None:
        """Set the paths; nothing is created."""
        self.path = run_dir / "restyled" / f"round_{number:02d}"
        self.work = run_dir / "restyled" / f".round_{number:02d}"

    def is_done(self, request: RoundRequest) -> bool:
        """Whether the round of this request is finished on disk."""
        manifest = read_json(self.path / "manifest.json")
        return manifest is not None and manifest["request"] == request.as_json()

    def open_work(self, request: RoundRequest) -> None:
        """Create the working folder; files of an interrupted run are kept if its request is the same."""
        if read_json(self.work / "request.json") != request.as_json():
            shutil.rmtree(self.work, ignore_errors=True)
            write_json(self.work / "request.json", request.as_json())

    def renders(
        self, names: Sequence[str], render: Callable[[int], tuple[Tensor, Tensor]], on_view: Callable[[int], None]
    ) -> list[tuple[Tensor, Tensor]]:
        """Render colour and depth of every view; views rendered before an interruption are read from disk.

        Args:
            names: Names of the views.
            render: Function that renders the colour (3, H, W) and depth (1, H, W) of the view of an index.
            on_view: Called with the number of finished views.
        """
        results = []
        for index, name in enumerate(names):
            path = self.work / "field" / f"{name}.safetensors"
            if not path.is_file():
                colour, depth = render(index)
                with atomic_path(path) as partial:
                    save_file({"colour": colour.contiguous(), "depth": depth.contiguous()}, partial)
            tensors = load_file(path)
            results.append((tensors["colour"], tensors["depth"]))
            on_view(index + 1)
        return results

    def finish(self, request: RoundRequest, write: Callable[[Path], None], provenance: dict[str, Any]) -> None:
        """Write the finished round atomically, and remove the working folder.

        Args:
            request: The round's request.
            write: Function that writes the dataset into a given folder.
            provenance: Models and settings of the pictures, for manifest.json.
        """
        with atomic_path(self.path, temporary_in=self.work) as partial:
            write(partial)
            write_json(partial / "manifest.json", {"request": request.as_json(), **provenance})
        shutil.rmtree(self.work)

    def style_folder(self, style: int, inside: Path | None = None) -> Path:
        """Folder of the dataset of a style (counted from 0): that of the first style is the round's folder.

        Args:
            style: Index of the style.
            inside: The round's folder; default: the final one.
        """
        return (inside or self.path) / (f"style_{style + 1:02d}" if style else "")

    def contents(self) -> tuple[list[str], int]:
        """Names of the finished round's views, and the number of styles."""
        request = read_json(self.path / "manifest.json")["request"]
        return request["views"], len(request["restyled_data"]) or 1 + len(request["more_prompts"])

    def restyled(self, name: str, styles: int) -> tuple[Float[Tensor, "3 height width"], ...]:
        """Read a view of the finished round in each style, RGB in [0, 1]."""
        return tuple(read_image(self.style_folder(style) / "images" / f"{name}.png") for style in range(styles))

    def render(self, name: str) -> Float[Tensor, "3 height width"]:
        """Read the render from which a view was restyled, RGB in [0, 1]."""
        return read_image(self.path / "renders" / f"{name}.png")

    def depth(self, name: str, frame: CaptureFrame) -> Float[Tensor, "1 height width"]:
        """Read the depth of a view along the optical axis in training units, 0 without a surface."""
        return read_depth(self.path / "depth" / f"{name}.npy", frame)


def finished_rounds(run_dir: Path) -> list[int]:
    """Numbers of the rounds of a run that are complete on disk, counted from 1."""
    folders = sorted((run_dir / "restyled").glob("round_*"))
    return [int(folder.name.removeprefix("round_")) for folder in folders if (folder / "manifest.json").is_file()]


RECONSTRUCTION = "reconstruction.safetensors"
"""File in the run folder with the reconstructed field, from which other styles start."""


def original_field(pipeline: StyledRun, run_dir: Path) -> StyleModel | None:
    """Load the field from before the first round as a second, frozen model.

    The global random state is not changed.

    Args:
        pipeline: The run's pipeline.
        run_dir: The run folder.

    Returns:
        The field on the pipeline's device; None before the end of the reconstruction.

    Raises:
        UserError: If the file belongs to another field.
    """
    model = pipeline.model
    path = run_dir / RECONSTRUCTION
    if not path.is_file():
        return None
    with torch.random.fork_rng(devices=[]):
        original: StyleModel = model.config.setup(
            scene_box=model.scene_box,
            num_train_data=model.num_train_data,
            metadata=pipeline.datamanager.train_dataset.metadata,
            device=str(model.device),
        )
    original.load_field(load_file(path), str(path))
    return original.to(model.device).eval().requires_grad_(False)
