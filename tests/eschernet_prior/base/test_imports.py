"""Every ns-* command imports the registered methods: they must cost little and work without optional parts."""

import subprocess
import sys

HEAVY = ("diffusers", "transformers", "timm", "accelerate")


def loaded_after(statement: str, names: tuple[str, ...]) -> str:
    """Which of the named modules a fresh interpreter has loaded after a statement."""
    code = f"import sys; {statement}; print('LOADED', [name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split("LOADED")[1].strip()


def test_the_packages_import_no_nerfstudio():
    assert loaded_after("import eschernet_prior, style_nerf2nerf", ("nerfstudio", "torch", *HEAVY)) == "[]"


def test_the_maths_import_no_nerfstudio_and_no_diffusion():
    maths = "import eschernet_prior.cape, eschernet_prior.base.cameras, eschernet_prior.procedural.scenes"
    maths += ", style_nerf2nerf.swd"
    assert loaded_after(maths, ("nerfstudio", *HEAVY)) == "[]"


def test_registering_the_methods_loads_no_diffusion():
    assert loaded_after("import style_nerf2nerf.config, eschernet_prior.config", HEAVY) == "[]"


def test_registering_the_methods_loads_little_that_nerfstudio_has_not_loaded():
    """What every ns-* command pays for this package, counted in packages: seconds differ from machine to machine."""
    code = """
import sys
from nerfstudio.plugins import registry, registry_dataparser
registry.discover_methods = lambda: ({}, {})
registry_dataparser.discover_dataparsers = lambda: ({}, {})
import nerfstudio.scripts.train
before = set(sys.modules)
import style_nerf2nerf.config, eschernet_prior.config
packages = {name.partition(".")[0] for name in set(sys.modules) - before}
print("LOADED", sorted(packages - sys.stdlib_module_names - {"style_nerf2nerf", "eschernet_prior"}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = done.stdout.split("LOADED")[1].strip()
    assert loaded == "['safetensors']"
