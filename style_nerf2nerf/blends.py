"""Blend two styles: retrain a field at several shares of the second style, and compare the results.

    python -m style_nerf2nerf.blends OUT.png NS_TRAIN_ARGUMENTS …

The arguments after the picture's name are those of an `ns-train` command with two styles: two prompts
(`--prompt` and `--pipeline.model.more-prompts`) or two folders (`--pipeline.restyled-data`, twice). Each share is
a run of its own, named blend_000 … blend_100; repeating the command resumes unfinished runs. Views are restyled once.
OUT.json contains the distances to both styles and the changes for each share.
"""

from __future__ import annotations

import copy
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import tyro
from jaxtyping import Float
from nerfstudio.configs.method_configs import AnnotatedBaseConfigUnion
from nerfstudio.scripts.train import main as ns_train
from nerfstudio.utils.eval_utils import eval_setup
from nerfstudio.utils.rich_utils import CONSOLE
from torch import Tensor

from eschernet_prior.base.errors import UserError, exit_on_user_error
from eschernet_prior.base.files import read_json, write_json
from eschernet_prior.base.images import write_image
from eschernet_prior.base.sampling import evenly_spaced
from style_nerf2nerf.datamanager import StyleDataManager
from style_nerf2nerf.rendering import render_view
from style_nerf2nerf.rounds.report.previews import contact_sheet
from style_nerf2nerf.rounds.storage import RoundFolder
from style_nerf2nerf.trainer import StyleTrainerConfig

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the second style."""
SHOWN = 3
"""Number of views on the sheet."""


def train_blend(config: StyleTrainerConfig, share: float, first: Path | None) -> Path:
    """Train one blend, or resume it.

    Args:
        config: An ns-train command with two styles; it is not modified.
        share: Share of the second style.
        first: The run of another blend whose reconstruction and restyled views are reused; None to make them.

    Returns:
        Its run folder.
    """
    config = copy.deepcopy(config)
    config.timestamp = f"blend_{round(100 * share):03d}"
    config.pipeline.style_weights = (1 - share, share)
    config.viewer.quit_on_train_completion = True
    if first is not None:
        ours = RoundFolder(first.parent / config.timestamp, 1)
        if not ours.path.exists():
            shutil.copytree(RoundFolder(first, 1).path, ours.path)
        config.viewer.websocket_port = None  # a given port is still in use by the first run
        # This run would reconstruct the same field again.
        config.load_dir = config.load_dir or first / "nerfstudio_models"
    ns_train(config)
    return config.get_base_dir()


def show_run(run: Path, count: int) -> list[Float[Tensor, "3 height width"]]:
    """Render evenly spaced held-out views of a trained run, RGB in [0, 1]."""
    _, pipeline, _, _ = eval_setup(run / "config.yml", test_mode="test")
    model, datamanager = cast(Any, pipeline.model), cast(StyleDataManager, pipeline.datamanager)
    cameras = datamanager.eval_dataset.cameras
    indices = evenly_spaced(count, len(cameras))
    return [render_view(model, cameras[index : index + 1]).colour for index in indices]


def measured(run: Path) -> dict[str, Any]:
    """Read the metrics of the run's round on held-out views (see `style_nerf2nerf.rounds.report.measures`)."""
    return read_json(run / "metrics.json")["round_01"]["held_out"]


def main(out: Path, config: StyleTrainerConfig) -> None:
    """Train all blends, and write the sheet and the table.

    Args:
        out: Path of the sheet.
        config: An ns-train command with two styles.

    Raises:
        UserError: If the number of styles is not two, or the method is another one.
    """
    if not isinstance(config, StyleTrainerConfig):
        raise UserError("Only the style-nerf2nerf methods blend styles: put one of them after the name of the picture.")
    styles = config.pipeline.num_styles
    if styles != 2:
        raise UserError(
            f"A blend needs two styles, not {styles}: give --prompt and --pipeline.model.more-prompts, or "
            "--pipeline.restyled-data twice."
        )
    config.pipeline.rounds.rounds = 1
    runs: list[Path] = []
    for share in SHARES:
        runs.append(train_blend(config, share, runs[0] if runs else None))
    write_json(out.with_suffix(".json"), {f"{share:g}": measured(run) for share, run in zip(SHARES, runs)})
    columns = {f"{share:.0%}": show_run(run, SHOWN) for share, run in zip(SHARES, runs)}
    write_image(out, contact_sheet(columns))
    CONSOLE.print(
        f"From one style to the other: {out}; measurements: {out.with_suffix('.json')}",
        soft_wrap=True,
        markup=False,
    )


def cli(arguments: Sequence[str]) -> None:
    """The command line."""
    with exit_on_user_error():
        if len(arguments) < 2 or not arguments[0].endswith(".png"):
            raise UserError("The arguments must be the picture to write, OUT.png, followed by those of ns-train.")
        torch.set_float32_matmul_precision("high")
        main(Path(arguments[0]), tyro.cli(AnnotatedBaseConfigUnion, args=list(arguments[1:])))


if __name__ == "__main__":
    cli(sys.argv[1:])
