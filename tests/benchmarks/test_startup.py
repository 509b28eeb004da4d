"""What the registered methods add to the start of every ns-* command, beside nerfstudio's own import."""

import subprocess
import sys

CODE = """
import sys, time
from nerfstudio.plugins import registry, registry_dataparser
registry.discover_methods = lambda: ({}, {})
registry_dataparser.discover_dataparsers = lambda: ({}, {})
began = time.process_time()
import nerfstudio.scripts.train
imported = time.process_time()
import style_nerf2nerf.config, eschernet_prior.config
print("SECONDS", imported - began, time.process_time() - imported)
"""


def start() -> tuple[float, float]:
    """CPU seconds of nerfstudio's import and of ours after it, in a fresh interpreter: other programs do not count."""
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    nerfstudio, ours = done.stdout.split("SECONDS")[1].split()
    return float(nerfstudio), float(ours)


def test_registration(benchmark):
    start()  # files are in the system's cache from here on
    measured = benchmark.pedantic(start, rounds=3)
    benchmark.extra_info["nerfstudio_seconds"], benchmark.extra_info["our_seconds"] = measured
    assert measured[1] < 0.3
