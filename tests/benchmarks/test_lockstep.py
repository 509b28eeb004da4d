"""Peak memory and time of views in lockstep against one call on all of them, for 4, 8 and 16 views on the CPU.

Run with ``pytest tests/benchmarks/test_lockstep.py`` (about a minute on one CPU core). The models are small ones of
SDXL's classes with random weights. *Unchunked* is the plain call: ControlNet, then UNet under shared attention, both
guidance halves of all views at once. Peak memory is the largest sum of the sizes of all tensors alive at a time, beside
the weights, which a dispatch mode adds up exactly. Both ways must make the same prediction.
"""

import time

import pytest
import torch
from live_bytes import peak_of

from style_nerf2nerf.attention import Sharing, share_attention
from style_nerf2nerf.lockstep import Pace, in_lockstep
from view_models import guided_call, unet_and_controlnet

SIDE = 16
"""Height and width of the latents: 256 tokens a view in the first shared attention."""


@pytest.mark.parametrize("views", [4, 8, 16])
def test_lockstep_against_one_call(benchmark, capsys, views):
    models = unet_and_controlnet()

    def unchunked() -> torch.Tensor:
        with share_attention(models[0], views):
            return guided_call(*models, 2 * views, side=SIDE)

    def lockstep(views_per_batch: int):
        def call() -> torch.Tensor:
            with in_lockstep(*models, Sharing(views), Pace(views_per_batch), num_views=views):
                return guided_call(*models, 2 * views, side=SIDE)

        return call

    ways = {"unchunked": unchunked} | {f"{size} at a time": lockstep(size) for size in (1, 2, 4)}
    best, made = dict.fromkeys(ways, float("inf")), {}

    def round_of_all() -> None:
        for name, call in ways.items():
            begin = time.process_time()
            made[name] = call()
            best[name] = min(best[name], time.process_time() - begin)

    benchmark.pedantic(round_of_all, rounds=2, warmup_rounds=1)
    peaks = {name: peak_of(models, call) for name, call in ways.items()}
    with capsys.disabled():
        print(f"\n{views} views, {torch.get_num_threads()} thread(s):")
        for name in ways:
            torch.testing.assert_close(made[name], made["unchunked"], atol=1e-4, rtol=0)
            memory, seconds = peaks[name] / peaks["unchunked"], best[name] / best["unchunked"]
            benchmark.extra_info[name] = {"memory": round(memory, 3), "time": round(seconds, 3)}
            print(f"  {name:12s} {peaks[name] / 2**20:7.2f} MiB {memory:5.2f} ×   {best[name]:6.2f} s {seconds:5.2f} ×")


if __name__ == "__main__":
    pytest.main([__file__])
