"""Peak memory and time of views in lockstep against one call on all of them, and against a loop over the views.

Run with `pytest tests/benchmarks/test_lockstep.py` (about a minute on one CPU core). On the CPU, for 4, 8 and 16
views, the models are small ones of SDXL's classes; where there is a CUDA GPU, UNet and ControlNet of SDXL's full size
at 1024² in half precision (7.5 GB of weights), for 4 to 96 views. All weights are random. *Unchunked* is the plain
call: ControlNet, then UNet under shared attention, both guidance halves of all views at once. *View by view* shares
nothing. Peak memory is that of tensors beside weights and inputs: on the CPU the largest sum of their sizes alive at a
time, which a dispatch mode adds up exactly, on a GPU what torch says. All ways that share make the same prediction, in
half precision but for its rounding, which is told.
"""

import time
from collections.abc import Callable

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from live_bytes import peak_of
from torch import Tensor

import sdxl_sizes
from style_nerf2nerf.attention import Sharing, share_attention
from style_nerf2nerf.restyler.compute.lockstep import BatchLimit, in_lockstep
from view_models import inputs_of, predict, unet_and_controlnet

SIDE = 16
"""Height and width of the small models' latents: 256 tokens a view in the first shared attention."""
SDXL_SIDE = 128
"""Height and width of SDXL's latents at 1024²."""
Models = tuple[UNet2DConditionModel, ControlNetModel]
Ways = dict[str, Callable[[], Tensor]]


def ways_of(models: Models, inputs: dict[str, Tensor], views: int) -> Ways:
    """The ways through UNet and ControlNet, by name."""

    def unchunked() -> Tensor:
        with share_attention(models[0], views):
            return predict(*models, inputs)

    def view_by_view() -> Tensor:
        pairs = ({name: tensor[view::views] for name, tensor in inputs.items()} for view in range(views))
        return torch.cat([predict(*models, pair) for pair in pairs])

    def lockstep(views_per_batch: int, offload: bool = False) -> Callable[[], Tensor]:
        def call() -> Tensor:
            with in_lockstep(*models, Sharing(views), BatchLimit(views_per_batch), num_views=views, offload=offload):
                return predict(*models, inputs)

        return call

    return {"unchunked": unchunked, "view by view": view_by_view, "4, offloaded": lockstep(4, offload=True)} | {
        f"{size} at a time": lockstep(size) for size in (1, 2, 4)
    }


def peak(models: Models, call: Callable[[], Tensor]) -> int:
    """The most bytes beside what is there already."""
    if models[0].device.type == "cpu":
        return peak_of(models, call)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    return torch.cuda.max_memory_allocated() - before


def timed(call: Callable[[], Tensor]) -> tuple[Tensor | None, float]:
    """A prediction and its seconds; none where the memory of a GPU is too small for it."""
    begin = time.perf_counter()
    try:
        return call().cpu(), time.perf_counter() - begin
    except torch.cuda.OutOfMemoryError:
        torch.cuda.empty_cache()
        return None, float("inf")


def compare(benchmark, capsys, models: Models, views: int, side: int, words: int = 5) -> float:
    """Measures and tells all ways; returns the largest difference between the predictions of those that share."""
    ways = ways_of(models, inputs_of(*models, 2 * views, side, words), views)
    best, made = dict.fromkeys(ways, float("inf")), {}

    def round_of_all() -> None:
        for name, call in ways.items():
            made[name], seconds = timed(call)
            best[name] = min(best[name], seconds)

    benchmark.pedantic(round_of_all, rounds=2, warmup_rounds=1)
    fit = [name for name in ways if made[name] is not None]
    peaks = {name: peak(models, ways[name]) for name in fit}
    sharing = [made[name] for name in fit if name != "view by view"]
    apart = max(float((prediction - sharing[-1]).abs().max()) for prediction in sharing)
    with capsys.disabled():
        print(
            f"\n{views} views of {side}², {models[0].device}, {torch.get_num_threads()} thread(s), {apart:.1e} apart:"
        )
        for name in ways:
            if name not in fit:
                print(f"  {name:12s} does not fit into the memory")
                continue
            line = f"  {name:12s} {peaks[name] / 2**20:9.2f} MiB {best[name] / views:8.3f} s a view"
            for other in ("unchunked", "view by view"):
                if other in fit and other != name:
                    memory, seconds = peaks[name] / peaks[other], best[name] / best[other]
                    benchmark.extra_info[f"{name} / {other}"] = {"memory": round(memory, 3), "time": round(seconds, 3)}
                    line += f";  {other}: {memory:5.2f} × memory, {seconds:5.2f} × time"
            print(line)
    return apart


def sdxl() -> Models:
    """UNet and ControlNet of SDXL's size, on the default device."""
    unet = UNet2DConditionModel(sample_size=SDXL_SIDE, **sdxl_sizes.UNET, **sdxl_sizes.UP)
    return unet.eval(), ControlNetModel(**sdxl_sizes.UNET).eval()


@pytest.mark.parametrize("views", [4, 8, 16])
def test_lockstep_against_one_call(benchmark, capsys, views):
    assert compare(benchmark, capsys, unet_and_controlnet(), views, SIDE) < 1e-4


@pytest.fixture(scope="module")
def on_gpu() -> Models:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    with torch.device("cuda"):
        unet, controlnet = sdxl()
    return unet.half(), controlnet.half()


@pytest.mark.parametrize("views", [4, 8, 16, 18, 48, 96])
def test_lockstep_at_sdxls_full_size(on_gpu, benchmark, capsys, views):
    compare(benchmark, capsys, on_gpu, views, SDXL_SIDE, words=77)


def test_the_full_size_is_sdxls():
    with torch.device("meta"):
        unet, controlnet = sdxl()
    assert sum(weight.numel() for weight in unet.parameters()) == sdxl_sizes.UNET_WEIGHTS
    assert unet.down_blocks.state_dict().keys() == controlnet.down_blocks.state_dict().keys()


if __name__ == "__main__":
    pytest.main([__file__])
