"""Download or check all models that a method needs, for example for machines without a network.

    python -m style_nerf2nerf.models fetch                         # style-nerf2nerf: SDXL, depth ControlNet, VGG19
    python -m style_nerf2nerf.models fetch --for eschernet-nerfacto
    python -m style_nerf2nerf.models fetch --for style-nerf2nerf ip-adapter fast words
    python -m style_nerf2nerf.models check                         # without the network: are all files complete?

Both print a table: purpose, repository and commit, licence, size and folder of each part. HF_HOME and TORCH_HOME set
the folders of the files; copy these folders to a machine without a network. `check` reads the headers of SDXL's files,
loads EscherNet and CLIPSeg, and compares every tensor's name and shape with the network's; its exit status is 1 if
a file is missing or damaged. It also prints the memory that SDXL needs for different numbers of views.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast

import tyro
from nerfstudio.utils.rich_utils import CONSOLE
from rich.table import Table

from eschernet_prior.base.errors import UserError, exit_on_user_error
from eschernet_prior.base.hub import HubModel, ensure_downloaded
from eschernet_prior.hub import ESCHERNET
from style_nerf2nerf.restyler.models.hub import CLIPSEG, IP_ADAPTER, LIGHTNING, SDXL

Purpose = Literal["style-nerf2nerf", "eschernet-nerfacto", "ip-adapter", "fast", "words"]
"""Purposes for which models can be fetched."""
NEEDED_BY: dict[str, str] = {
    "style-nerf2nerf": "the method",
    "eschernet-nerfacto": "the method",
    "ip-adapter": "--pipeline.restyle.ip-adapter sdxl",
    "fast": "--pipeline.restyle.speed fast",
    "words": "--pipeline.masks words",
}
"""The option that requires the models of a purpose."""
OPENRAIL = "CreativeML Open RAIL++-M"
VGG19 = "VGG19_Weights.IMAGENET1K_V1"


@dataclass(frozen=True)
class Download:
    """A model, or part of one, that is downloaded."""

    name: str
    """Name for the table."""
    purpose: str
    """Its purpose, one of `Purpose`."""
    licence: str
    """Licence under which it is published."""
    model: HubModel | None
    """Its files on the hub; None for VGG19, which torchvision downloads."""


PARTS = (
    Download("SDXL base", "style-nerf2nerf", OPENRAIL, SDXL["base"]),
    Download("depth ControlNet", "style-nerf2nerf", OPENRAIL, SDXL["controlnet"]),
    Download("autoencoder for half precision", "style-nerf2nerf", "MIT", SDXL["vae"]),
    Download("VGG19 (ImageNet)", "style-nerf2nerf", "BSD-3-Clause", None),
    Download("EscherNet 6DoF", "eschernet-nerfacto", "Imperial College, non-commercial research", ESCHERNET["6dof"]),
    Download("IP-Adapter", "ip-adapter", "Apache-2.0", IP_ADAPTER),
    Download("SDXL-Lightning, 8 steps", "fast", OPENRAIL, LIGHTNING),
    Download("CLIPSeg", "words", "Apache-2.0", CLIPSEG),
)
"""All parts that can be downloaded."""


@dataclass(frozen=True)
class ModelsOptions:
    """Options of the command line."""

    action: Annotated[Literal["fetch", "check"], tyro.conf.Positional]
    """fetch: download missing files. check: report the state of all files, without using the network."""
    purposes: Annotated[tuple[Purpose, ...], tyro.conf.arg(name="for")] = ("style-nerf2nerf",)
    """Methods, and options of style-nerf2nerf that need further models."""


@dataclass(frozen=True)
class FoundWeights:
    """A download on this machine."""

    download: Download
    folder: Path | None
    """Its folder; None if it is missing."""
    problem: str | None
    """Description of a problem in one sentence; None if there is none."""

    @property
    def size(self) -> int:
        """Size of its files in bytes."""
        if self.folder is None:
            return 0
        files = [self.folder] if self.folder.is_file() else self.folder.rglob("*")
        return sum(path.stat().st_size for path in files if path.is_file())


def find(part: Download, offline: bool) -> FoundWeights:
    """Find a part on this machine, or download it.

    Args:
        part: The part.
        offline: Never use the network.
    """
    try:
        return FoundWeights(part, _vgg19(offline) if part.model is None else _snapshot(part.model, offline), None)
    except UserError as error:
        return FoundWeights(part, None, str(error))


def _snapshot(model: HubModel, offline: bool) -> Path:
    if model in ESCHERNET.values():
        from eschernet_prior.weight_files import locate

        return locate(model.repository, local_files_only=offline)
    return ensure_downloaded(model, "run python -m style_nerf2nerf.models fetch on a machine that has one", offline)


def _vgg19(offline: bool) -> Path:
    """Find torchvision's cached file, or download it."""
    import torch
    from torchvision.models import VGG19_Weights

    url = VGG19_Weights.IMAGENET1K_V1.url
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[1]
    if path.is_file():
        return path
    if offline:
        raise UserError(f"{path} is missing: run python -m style_nerf2nerf.models fetch on a machine with a network.")
    try:
        VGG19_Weights.IMAGENET1K_V1.get_state_dict(progress=True, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise UserError(f"VGG19 could not be downloaded ({type(error).__name__}): connect to the network.") from error
    return path


def verify(states: list[FoundWeights]) -> list[str]:
    """Check the files of all parts on this machine; return one sentence per problem.

    Args:
        states: States of the requested parts.
    """
    here = {state.download.name: state for state in states if state.folder is not None}
    problems = []

    def attempt(check: Callable[[], object]) -> None:
        try:
            check()
        except UserError as error:
            problems.append(str(error))

    restyling = [state for state in states if state.download.model in SDXL.values()]
    if restyling and all(state.folder for state in restyling):
        attempt(lambda: _check_sdxl(here))
    for name, folder in ((state.download.name, state.folder) for state in here.values()):
        if name == "EscherNet 6DoF":
            attempt(lambda folder=folder: _check_prior(folder))
        if name == "CLIPSeg":
            attempt(lambda folder=folder: _check_clipseg(folder))
    return problems


def _check_sdxl(here: dict[str, FoundWeights]) -> None:
    """Check every file of SDXL and of its additional models, and print the memory that they need."""
    from style_nerf2nerf.restyler.models.few_steps import check_lora
    from style_nerf2nerf.restyler.models.files import check_models
    from style_nerf2nerf.restyler.models.folders import locate_models
    from style_nerf2nerf.restyler.models.ip_adapter import check_ip_adapter

    models = check_models(locate_models("sdxl", offline=True))
    if "IP-Adapter" in here:
        check_ip_adapter("sdxl", models.networks["unet"])
    if "SDXL-Lightning, 8 steps" in here:
        check_lora(models.networks["unet"], "sdxl")
    CONSOLE.print(_needs_table(models))


def _needs_table(models) -> Table:
    """Tabulate the GPU memory for different numbers of views and sizes, in half precision."""
    import torch

    from style_nerf2nerf.restyler.compute.needs import GB, needs

    table = Table("Views", "Size", "All on the GPU", "Waiting views in the CPU's memory", title="Memory of a GPU in GB")
    for side in (768, 1024):
        for views in (4, 18, 48, 96):
            cells = [
                needs(models, torch.float16, (side, side), views, 10**15, offload=offload, max_views=1).peak / GB
                for offload in (False, True)
            ]
            table.add_row(str(views), f"{side}²", *(f"{cell:.1f}" for cell in cells))
    return table


def _check_prior(folder: Path | None) -> None:
    """Load EscherNet once, which checks every tensor's name and shape."""
    import torch

    from eschernet_prior.loading import load_layout

    assert folder is not None
    load_layout(folder, ESCHERNET["6dof"].repository, "EscherNetPipeline", None, dtype=torch.float16, given={})


def _check_clipseg(folder: Path | None) -> None:
    from style_nerf2nerf.rounds.word_masks import check_clipseg

    assert folder is not None
    check_clipseg(folder)


def table_of(states: list[FoundWeights]) -> Table:
    """Tabulate the parts, one per row."""
    table = Table("Download", "For", "Repository", "Commit", "Licence", "Size", "Folder")
    for state in states:
        download, model = state.download, state.download.model
        commit = state.folder.name[:12] if state.folder is not None and model is not None else "–"
        table.add_row(
            download.name,
            f"{download.purpose} ({NEEDED_BY[download.purpose]})",
            "torchvision" if model is None else model.repository,
            commit,
            download.licence,
            f"{state.size / 1e9:.2f} GB" if state.folder is not None else "missing",
            "–" if state.folder is None else str(state.folder),
        )
    return table


def main(options: ModelsOptions) -> None:
    """Fetch or check the requested models, and print the table.

    Args:
        options: Options of the command line.

    Raises:
        UserError: If a file is missing or damaged.
    """
    wanted = [part for part in PARTS if part.purpose in options.purposes]
    states = [find(part, offline=options.action == "check") for part in wanted]
    CONSOLE.print(table_of(states))
    problems = [state.problem for state in states if state.problem] + verify(states)
    for problem in problems:
        CONSOLE.print(problem, style="bold red", markup=False, soft_wrap=True)
    if problems:
        raise UserError(f"{len(problems)} of the parts for {', '.join(options.purposes)} are missing or damaged.")
    total = sum(state.size for state in states)
    CONSOLE.print(f"All {len(states)} parts are complete: {total / 1e9:.1f} GB.")


if __name__ == "__main__":
    with exit_on_user_error():
        main(tyro.cli(ModelsOptions, description=cast(str, __doc__)))
