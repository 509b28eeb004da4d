"""Both methods with the full-size models that `build.py` wrote: do they come to their end, in which time and memory?

    python tests/fullsize/run.py FOLDER style-nerf2nerf --size 256 --views 3 --steps 2
    python tests/fullsize/run.py FOLDER eschernet-nerfacto --views 2 --steps 2

SDXL at 256² with 3 views and 2 steps needs about 11 GB of memory and, on two CPU cores, ten minutes. The last line is a
row of a table: method, device, precision, size, views, steps, seconds of restyling, peak memory, and the memory that
was announced before.
"""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Annotated, Literal

import tyro

sys.path.insert(0, str(Path(__file__).parents[1]))


class Tee(StringIO):
    """Keeps what is printed, and prints it."""

    def write(self, text: str) -> int:
        """Both."""
        sys.__stderr__.write(text)
        return super().write(text)


@dataclass(frozen=True)
class Options:
    """Options of the command line."""

    folder: Annotated[Path, tyro.conf.Positional]
    """Where `build.py` wrote the models."""
    method: Annotated[Literal["style-nerf2nerf", "eschernet-nerfacto"], tyro.conf.Positional]
    """What to run."""
    views: int = 3
    """Views that are restyled, or generated."""
    steps: int = 2
    """Denoising steps."""
    size: int = 256
    """Working size of the restyling."""
    precision: str = "auto"
    """As `--pipeline.restyle.precision`."""


def main(options: Options) -> str:
    """Runs the method, and returns the table's row."""
    os.environ.update(
        HF_HUB_OFFLINE="1",
        HF_HUB_CACHE=str(options.folder / "hub"),
        TORCH_HOME=str(options.folder / "torch"),
        STYLE_NERF2NERF_CACHE=str(options.folder / "cache"),
    )
    import huggingface_hub.constants
    import torch

    import ns

    huggingface_hub.constants.HF_HUB_CACHE = os.environ["HF_HUB_CACHE"]
    outputs = options.folder / f"outputs_{os.getpid()}"
    scene = (
        "procedural-data",
        "--num-views",
        str(max(options.views, 3)),
        "--num-eval-views",
        "1",
        "--resolution",
        "64",
    )
    small = {
        "pipeline__model__implementation": "torch",
        "pipeline__model__log2_hashmap_size": 14,
        "pipeline__datamanager__train_num_rays_per_batch": 64,
    }
    if options.method == "style-nerf2nerf":
        chosen = {
            "prompt": "a painting of gold",
            "pipeline__restyle__size": options.size,
            "pipeline__restyle__precision": options.precision,
            "pipeline__restyle__num_inference_steps": options.steps,
            "pipeline__rounds__strength": 1.0,
            "pipeline__rounds__rounds": 1,
            "pipeline__rounds__reconstruct_steps": 4,
            "pipeline__rounds__retrain_steps": 1,
            "pipeline__datamanager__num_style_views": options.views,
            "pipeline__turntable_frames": 0,
            "pipeline__num_eval_views": 1,
        }
    else:
        densify = "pipeline__datamanager__densify__"
        chosen = {
            f"{densify}num_views": options.views,
            f"{densify}num_inference_steps": options.steps,
            f"{densify}samples": 1,
            "max_num_iterations": 4,
        }
    printed = Tee()
    with redirect_stdout(printed):
        ns.train(outputs, method=options.method, parser=scene, **small, **chosen)
    text = " ".join(printed.getvalue().split())
    announced = re.search(r"needs about ([\d.]+ GB)", text)
    on_gpu = torch.cuda.is_available()
    peak = torch.cuda.max_memory_allocated() if on_gpu else 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    manifests = sorted(outputs.rglob("manifest.json"))
    manifest = json.loads(manifests[0].read_text())
    seconds = manifest.get("seconds", {}).get("restyle", "–")
    precision = (manifest.get("models") or {}).get("dtype", "–") if "models" in manifest else "–"
    device = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    row = (
        f"| {options.method} | {device} | {precision} | {options.size}² | {options.views} | {options.steps} "
        f"| {seconds} s | {peak / 1e9:.1f} GB | {announced.group(1) if announced else '–'} |"
    )
    print(row)
    return row


if __name__ == "__main__":
    main(tyro.cli(Options, description=__doc__))
