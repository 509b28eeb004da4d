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
    maths = "import eschernet_prior.cape, eschernet_prior.cameras, eschernet_prior.scenes, style_nerf2nerf.swd"
    assert loaded_after(maths, ("nerfstudio", *HEAVY)) == "[]"


def test_registering_the_methods_loads_no_diffusion():
    assert loaded_after("import style_nerf2nerf.config, eschernet_prior.config", HEAVY) == "[]"
