"""The one table of what is downloaded, and what is said of what it cannot pin."""

import re
from pathlib import Path

import pytest

from eschernet_prior import weight_files
from eschernet_prior.hub import BY_REPOSITORY, HUB_MODELS

ROOT = Path(__file__).parents[3]
UNPINNED = {"eschernet-6dof", "eschernet-4dof"}  # their commits are not known to us; the README says so


def test_every_model_has_a_commit_except_those_that_the_readme_names():
    assert {name for name, model in HUB_MODELS.items() if not model.pinned} == UNPINNED
    for name in UNPINNED:
        assert HUB_MODELS[name].repository in (ROOT / "README.md").read_text()


def test_no_other_file_names_a_revision():
    """A commit elsewhere would be a second table."""
    for package in ("eschernet_prior", "style_nerf2nerf"):
        for file in (ROOT / package).rglob("*.py"):
            found = re.findall(r"\b[0-9a-f]{40}\b|revision=\"\w+\"", file.read_text())
            assert not found or file == ROOT / "eschernet_prior" / "hub.py", f"{file}: {found}"


@pytest.mark.parametrize("name", sorted(UNPINNED))
def test_downloading_from_a_branch_says_which_commit_it_is(monkeypatch, capsys, tmp_path, name):
    commit, asked, model = "0123456789abcdef" * 2 + "01234567", [], HUB_MODELS[name]
    assert BY_REPOSITORY[model.repository] is model

    def download(repository, **options):
        asked.append((repository, options["revision"]))
        return str(tmp_path / "snapshots" / commit)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert weight_files.locate(model.repository).name == commit
    assert asked == [(model.repository, "main")]
    assert commit in capsys.readouterr().out.replace("\n", "")
    weight_files.locate(model.repository, revision=commit)
    assert asked[-1] == (model.repository, commit)
