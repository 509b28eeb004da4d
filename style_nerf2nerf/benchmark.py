"""Compute the papers' metrics for a finished run and for the paper's ablation, and test losses against ground truth.

    python -m style_nerf2nerf.benchmark outputs/SCENE/style-nerf2nerf-tiny/TIME
    python -m style_nerf2nerf.benchmark --ablation
    python -m style_nerf2nerf.benchmark --oracle
    python -m style_nerf2nerf.benchmark --contradiction

For a run, its field is rendered along a path: consistency at short and long range, sharpness, style distances, BPSNR
and BSSIM, and CLIP scores if a CLIP model is on this machine; the row above it is for the field of the photos.
`--ablation` trains and measures the paper's four columns from one reconstruction. `--oracle` retrains on views painted
in the same colours and light, and compares held-out renders with the painted truth; `--contradiction` retrains on views
painted in different colours and light. All benchmarks work offline. Finished rows are kept in the JSON file: repeat an
interrupted command to resume it.
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
class BenchmarkOptions:
    """Options of the command line."""

    run: Annotated[Path | None, tyro.conf.Positional] = None
    """A finished run: outputs/<data>/<method>/<time>."""
    ablation: bool = False
    """Train and measure the paper's ablation, instead of measuring a run."""
    oracle: bool = False
    """Retrain on consistently painted views and compare with the painted truth, instead of measuring a run."""
    contradiction: bool = False
    """Retrain on views that are each painted in other colours and light, instead of measuring a run."""
    scenes: tuple[str, ...] = ("cottage", "7")
    """Embedded scenes by name, or numbers of random ones; --oracle and --contradiction use only the first."""
    styles: tuple[str, ...] = ()
    """Styles by name; default: all for --oracle, otherwise van_gogh, gold and mosaic."""
    resolution: int = 64
    """Height and width of the scenes' pictures."""
    views: int = 40
    """Training views of a scene."""
    reconstruct_steps: int = 1000
    """Steps of the reconstruction that all variants start from."""
    retrain_steps: int | None = None
    """Steps of a round with the method's losses; default: the method's."""
    baseline_steps: int | None = None
    """Steps of a round with losses on whole views, which take longer; default: a third of the method's."""
    second_field_steps: int = 500
    """Training steps of the second field, for BPSNR and BSSIM."""
    held_out: int = 8
    """Largest number of held-out views to measure."""
    lpips: bool = False
    """Also measure LPIPS, if AlexNet's weights are cached or can be downloaded."""
    clip: str = "openai/clip-vit-large-patch14"
    """A CLIP model in the hub's cache, or its folder; it is not downloaded."""
    original_prompt: str = "a photo"
    """Description of the photos, for the CLIP scores."""
    out: Path | None = None
    """Folder of the results; default: the run's, or outputs/benchmark."""

    @property
    def kind(self) -> Literal["run", "ablation", "oracle", "contradiction"]:
        """The selected benchmark.

        Raises:
            UserError: If none or several are selected.
        """
        asked = [name for name in ("run", "ablation", "oracle", "contradiction") if getattr(self, name)]
        if len(asked) != 1:
            raise UserError("Choose what to measure: a run's folder, --ablation, --oracle or --contradiction.")
        return cast(Literal["run", "ablation", "oracle", "contradiction"], asked[0])

    def check(self) -> None:
        """Refuse options that are out of range, before long work starts.

        Raises:
            UserError: If an option is out of range.
        """
        from style_nerf2nerf.embedded.data import PAINTED

        unknown = [style for style in self.styles if style not in PAINTED]
        if unknown:
            raise UserError(f"There is no style {unknown[0]}: choose from {', '.join(PAINTED)}.")
        counts = (self.views, self.reconstruct_steps, self.second_field_steps, self.held_out)
        given = [count for count in (self.retrain_steps, self.baseline_steps) if count is not None]
        if min(*counts, *given) < 1 or not self.scenes:
            raise UserError("Numbers of steps and of views must be at least 1, and --scenes needs at least one scene.")


def main(options: BenchmarkOptions) -> Rows:
    """Run the benchmark, print a table and write the JSON file.

    Returns:
        The table's rows.

    Raises:
        UserError: If there is nothing to measure, or the options do not fit.
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
    CONSOLE.print(f"All results: {results.path}", soft_wrap=True, markup=False)
    return rows


def cli() -> None:
    """The command line."""
    torch.set_float32_matmul_precision("high")
    with exit_on_user_error():
        main(tyro.cli(BenchmarkOptions, description=__doc__))


if __name__ == "__main__":
    cli()
