"""Measures what papers measure: of a finished run, of the paper's ablation, and of losses whose truth is known.

    python -m style_nerf2nerf.benchmark outputs/SCENE/style-nerf2nerf-tiny/TIME
    python -m style_nerf2nerf.benchmark --ablation
    python -m style_nerf2nerf.benchmark --oracle
    python -m style_nerf2nerf.benchmark --contradiction

With a run, its field is rendered along a path: consistency at short and long range, sharpness, style distances, BPSNR
and BSSIM, CLIP scores where a CLIP model is on this machine; a row for the field of the photos stands above it.
`--ablation` trains and measures the paper's four columns from one reconstruction. `--oracle` retrains on views painted
by one hand and compares held-out renders with the painted truth, `--contradiction` on views painted by a hand each. All
of it works offline. What is finished is kept in the JSON, so that a command that was interrupted is repeated to go on.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal, cast

import torch
import tyro
from nerfstudio.utils.rich_utils import CONSOLE

from eschernet_prior.base.errors import UserError, exit_on_user_error
from style_nerf2nerf.evaluation.published import PUBLISHED
from style_nerf2nerf.evaluation.result_rows import Results, Rows, table_of


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """A finished run: outputs/<data>/<method>/<time>."""
    ablation: bool = False
    """Train and measure the paper's ablation instead."""
    oracle: bool = False
    """Retrain on views painted by one hand instead, against the painted truth."""
    contradiction: bool = False
    """Retrain on views painted by another hand each instead."""
    scenes: tuple[str, ...] = ("cottage", "7")
    """Embedded scenes by name, or numbers; the first one for --oracle and --contradiction."""
    styles: tuple[str, ...] = ()
    """Styles by name; default: all ten for --oracle, van_gogh, gold and mosaic else."""
    resolution: int = 64
    """Height and width of the scenes' pictures."""
    views: int = 40
    """Training views of a scene."""
    reconstruct_steps: int = 1000
    """Steps of the reconstruction that all variants start from."""
    retrain_steps: int | None = None
    """Steps of our round; default: the method's."""
    baseline_steps: int | None = None
    """Steps of the losses that look at a whole view each time and take longer; default: a third of ours."""
    second_field_steps: int = 500
    """Steps of the second field behind BPSNR and BSSIM."""
    held_out: int = 8
    """Held-out views that are measured, at most."""
    lpips: bool = False
    """Measure LPIPS, too, where AlexNet's weights are here or can be had."""
    clip: str = "openai/clip-vit-large-patch14"
    """A CLIP model in the hub's cache, or its folder; nothing is downloaded."""
    original_prompt: str = "a photo"
    """What the photos show, in words, for the CLIP scores."""
    out: Path | None = None
    """Folder of the results; default: the run's, or outputs/benchmark."""

    @property
    def kind(self) -> Literal["run", "ablation", "oracle", "contradiction"]:
        """What is measured.

        Raises:
            UserError: Nothing or several things.
        """
        asked = [name for name in ("run", "ablation", "oracle", "contradiction") if getattr(self, name)]
        if len(asked) != 1:
            raise UserError("Say what to measure: a run's folder, or one of --ablation, --oracle and --contradiction.")
        return cast(Literal["run", "ablation", "oracle", "contradiction"], asked[0])

    def check(self) -> None:
        """Refuse what cannot work, before long work.

        Raises:
            UserError: The first of it.
        """
        from style_nerf2nerf.embedded.data import PAINTED

        unknown = [style for style in self.styles if style not in PAINTED]
        if unknown:
            raise UserError(f"There is no style {unknown[0]}: choose among {', '.join(PAINTED)}.")
        counts = (self.views, self.reconstruct_steps, self.second_field_steps, self.held_out)
        given = [count for count in (self.retrain_steps, self.baseline_steps) if count is not None]
        if min(*counts, *given) < 1 or not self.scenes:
            raise UserError("Numbers of steps and of views must be at least 1, and there must be a scene.")


def main(options: Options) -> Rows:
    """Measures, shows a table, writes the JSON.

    Returns:
        The table's rows.

    Raises:
        UserError: There is nothing to measure, or it cannot be.
    """
    kind = options.kind
    options.check()
    folder = options.out or (Path("outputs/benchmark") if options.run is None else options.run)
    own = {name: value for name, value in asdict(options).items() if name != "out"}
    protocol = {name: str(value) if isinstance(value, Path) else value for name, value in own.items()}
    protocol = {name: list(value) if isinstance(value, tuple) else value for name, value in protocol.items()}
    results = Results(folder / ("benchmark.json" if kind == "run" else f"{kind}.json"), protocol)
    from style_nerf2nerf.evaluation import benchmarks

    rows = getattr(benchmarks, f"measure_{kind}")(options, folder, results)
    results.write(means=rows)
    CONSOLE.print(table_of(rows, kind))
    if kind in ("run", "ablation"):
        for source, methods in PUBLISHED.items():
            CONSOLE.print(table_of(methods, f"published: {source}"))
    CONSOLE.print(f"All figures: {results.path}", soft_wrap=True, markup=False)
    return rows


def cli() -> None:
    """The command line."""
    torch.set_float32_matmul_precision("high")
    with exit_on_user_error():
        main(tyro.cli(Options, description=__doc__))


if __name__ == "__main__":
    cli()
