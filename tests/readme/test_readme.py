"""What the README tells people to type is there."""

import re
from dataclasses import is_dataclass
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest

from eschernet_prior.config import eschernet_nerfacto_tiny
from style_nerf2nerf.config import style_nerf2nerf_tiny

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
CONFIGS = (style_nerf2nerf_tiny.config, eschernet_nerfacto_tiny.config)


def has(config: object, path: str) -> bool:
    """Whether there is a field at a dotted path of options."""
    first, _, rest = path.replace("-", "_").partition(".")
    if not is_dataclass(config) or not hasattr(config, first):
        return False
    return not rest or has(getattr(config, first), rest)


@pytest.mark.parametrize("option", sorted(set(re.findall(r"--((?:pipeline|viewer|machine)[.][\w.-]*\w)", README))))
def test_an_option_of_a_method_exists(option: str):
    assert any(has(config, option) for config in CONFIGS)


def test_options_that_do_not_exist_are_found():
    assert not any(has(config, "pipeline.restyle.colour") for config in CONFIGS)
    assert not any(has(config, "pipeline.rounds.rounds.rounds") for config in CONFIGS)


@pytest.mark.parametrize(
    "module", sorted(set(re.findall(r"python -m ((?:style_nerf2nerf|eschernet_prior)\.\w+)", README)))
)
def test_a_command_exists(module: str):
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    assert '__name__ == "__main__"' in Path(spec.origin).read_text()


def test_methods_and_dataparsers_are_registered():
    named = {
        name for kind in ("method", "dataparser") for name in entry_points(group=f"nerfstudio.{kind}_configs").names
    }
    told = set(re.findall(r"ns-train ((?:style|eschernet)-[\w-]+)", README))
    assert {"style-nerf2nerf", "style-nerf2nerf-tiny", "eschernet-nerfacto"} <= told
    assert told | {"procedural-data", "objaverse-data"} <= named


@pytest.mark.parametrize(
    "path",
    sorted(set(re.findall(r"(?:\]\(|`)((?:docs|configs|tests|style_nerf2nerf|eschernet_prior)/[\w/.-]+)", README))),
)
def test_a_file_exists(path: str):
    assert (ROOT / path).exists()
