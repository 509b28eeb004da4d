"""A step of the style and aligned terms at 256², forward and backward to the pixels, against two others.

    uv run pytest tests/benchmarks/test_style_loss.py

prints time and peak memory as multiples of the plain (released) formulation's, and time as a multiple of the floor: the
bare network's forward and backward with torch's own layers. Threads are those of the environment (OMP_NUM_THREADS).

Peak memory is the highest resident size of a process that does nothing else, above what it held when the network was
built: kept targets and their encoding count. It is read twice: with freed memory given back at once (glibc's
MALLOC_MMAP_THRESHOLD_ fixed at 1 MiB), which is what the step needs, and as glibc does by default, which keeps some of
what was freed, and keeps more of tensors just under 32 MiB than of larger ones.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from style_nerf2nerf.features import StyleLoss, StyleTargets, feature_difference
from style_nerf2nerf.vgg19 import STYLE_LAYERS, VGG19Features

SIZE = 256
SEED = 7


def images(size: int = SIZE) -> tuple[Tensor, Tensor]:
    """A render (with gradient) and a target: noise at all scales, so that no layer is trivial."""
    generator = torch.Generator().manual_seed(SEED)
    pair = torch.zeros(2, 3, size, size)
    for cells in (4, 16, 64, size):
        noise = torch.rand(2, 3, cells, cells, generator=generator)
        pair += torch.nn.functional.interpolate(noise, size=size, mode="bilinear") / 4
    rendered, target = pair.split(1)
    return rendered.clone().requires_grad_(), target.clone()


def plain_step() -> Callable[[Tensor, Tensor], Tensor]:
    from plain_style_loss import PlainLoss

    return PlainLoss(torch.Generator().manual_seed(SEED)).step


def our_step(windows: tuple[int, ...] = (1,)) -> Callable[[Tensor, Tensor], Tensor]:
    loss = StyleLoss(VGG19Features("random"), generator=torch.Generator().manual_seed(SEED), windows=windows)
    kept: dict[int, StyleTargets] = {}

    def terms(rendered: Tensor, target: Tensor) -> Tensor:
        targets = kept.setdefault(id(target), StyleTargets(loss, target))
        features, target_features = loss.features(rendered), targets[0]
        aligned = feature_difference(features, target_features, STYLE_LAYERS[-4:])
        return loss.blended(features, [(1.0, target_features)]) + aligned

    def step(rendered: Tensor, target: Tensor) -> Tensor:
        rendered.grad = None
        total = terms(rendered, target)
        total.backward()
        return total.detach()

    return step


def floor_step() -> Callable[[Tensor, Tensor], Tensor]:
    """The network alone, channels-last: no step that looks through it can take less."""
    from plain_style_loss import PlainLoss

    loss = PlainLoss(torch.Generator().manual_seed(SEED))
    loss.network.to(memory_format=torch.channels_last)

    def step(rendered: Tensor, target: Tensor) -> Tensor:
        rendered.grad = None
        x = ((rendered - loss.mean) / loss.std).contiguous(memory_format=torch.channels_last)
        total = loss.network(x).square().mean()
        total.backward()
        return total.detach()

    return step


STEPS = {"plain": plain_step, "ours": our_step}


def peak_memory(name: str, **environment: str) -> float:
    """MiB that two steps take above what the process held before, in a process of their own."""
    done = subprocess.run(
        [sys.executable, __file__, name],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
        env={**os.environ, **environment},
    )
    return json.loads(done.stdout)["mib"]


def measure_memory(name: str) -> float:
    step = STEPS[name]()
    rendered, target = images()
    held = resident("VmRSS")
    for _ in range(2):
        step(rendered, target)
    return resident("VmHWM") - held


def resident(entry: str) -> float:
    """Resident memory in MiB, now or at its highest (getrusage's would begin with the parent process's)."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition(f"{entry}:")[2].split()[0]) / 1024


def fastest(step: Callable[[Tensor, Tensor], Tensor], rounds: int) -> float:
    rendered, target = images()
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        step(rendered, target)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def test_step_at_256_against_plain(benchmark, capsys):
    plain, ours = plain_step(), our_step()
    rendered, target = images()
    torch.testing.assert_close(plain(rendered, target), ours(rendered, target), rtol=1e-3, atol=0)
    plain_seconds, floor_seconds = fastest(plain, rounds=2), fastest(floor_step(), rounds=3)
    windows_seconds = fastest(our_step(windows=(1, 2, 4)), rounds=3)
    benchmark.pedantic(ours, args=(rendered, target), rounds=4)
    our_seconds = benchmark.stats.stats.min
    returned = {"MALLOC_MMAP_THRESHOLD_": str(2**20)}
    plain_mib, our_mib = peak_memory("plain", **returned), peak_memory("ours", **returned)
    plain_resident, our_resident = peak_memory("plain"), peak_memory("ours")
    benchmark.extra_info.update(
        plain_seconds=plain_seconds,
        time_ratio=plain_seconds / our_seconds,
        floor_seconds=floor_seconds,
        times_the_floor=our_seconds / floor_seconds,
        windows_times_the_floor=windows_seconds / floor_seconds,
        plain_mib=plain_mib,
        our_mib=our_mib,
        memory_ratio=our_mib / plain_mib,
        plain_resident_mib=plain_resident,
        our_resident_mib=our_resident,
        threads=torch.get_num_threads(),
    )
    with capsys.disabled():
        print(
            f"\nstyle and aligned step at {SIZE}², {torch.get_num_threads()} thread(s): "
            f"plain {plain_seconds:.2f} s, ours {our_seconds:.2f} s: {plain_seconds / our_seconds:.1f} times as fast, "
            f"{our_seconds / floor_seconds:.2f} times the bare network's {floor_seconds:.2f} s "
            f"({windows_seconds / floor_seconds:.2f} in windows 1, 2 and 4); "
            f"peak memory plain {plain_mib:.0f} MiB, ours {our_mib:.0f} MiB: {our_mib / plain_mib:.2f} of it "
            f"({plain_resident:.0f} and {our_resident:.0f} with what glibc keeps of freed memory)"
        )


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"mib": measure_memory(sys.argv[1])}))
