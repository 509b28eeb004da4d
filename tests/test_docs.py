"""Paths, links and commands in the pages of docs/ and in CONTRIBUTING.md exist."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"])
PATH = re.compile(r"(?:docs|configs|tests|style_nerf2nerf|eschernet_prior|\.ci)/[\w/.-]*\w/?")
LINK = re.compile(r"\]\(((?!https?:)[^)#]+)\)")
MODULE = re.compile(r"python -m ((?:style_nerf2nerf|eschernet_prior)[.\w]*\w)")


def missing(page: Path) -> list[str]:
    """Paths from the root, relative links, and modules in a page that do not exist."""
    text = page.read_text("utf8")
    paths = [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    links = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    return paths + links + [module for module in MODULE.findall(text) if find_spec(module) is None]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_refers_to_exists(page: Path):
    assert missing(page) == []


def test_what_does_not_exist_is_found(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text("`docs/none.md`, [a link](none.png), `python -m style_nerf2nerf.none`, `docs/gpu.md`")
    assert missing(page) == ["docs/none.md", "none.png", "style_nerf2nerf.none"]
