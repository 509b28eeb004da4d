"""What is downloaded: listed in two files named hub.py, each model pinned to a commit where that is known."""

import re
from pathlib import Path

import pytest

from eschernet_prior import weight_files
from eschernet_prior.hub import ESCHERNET
from hub_cache import BRANCH_COMMIT, put_into_cache
from style_nerf2nerf.restyler.models.hub import CLIPSEG, IP_ADAPTER, LIGHTNING, SDXL, locate_lora

ROOT = Path(__file__).parents[4]
LISTS = {ROOT / "eschernet_prior" / "hub.py", ROOT / "style_nerf2nerf" / "restyler" / "models" / "hub.py"}


def test_every_model_has_a_commit_except_those_that_the_readme_names():
    assert all(model.pinned for model in (*SDXL.values(), IP_ADAPTER))
    for model in ESCHERNET.values():
        assert not model.pinned
        assert model.repository in (ROOT / "README.md").read_text()
    for model in (LIGHTNING, CLIPSEG):
        assert not model.pinned
        assert model.repository in (ROOT / "docs" / "gpu.md").read_text()


def test_no_other_file_names_a_revision():
    for package in ("eschernet_prior", "style_nerf2nerf"):
        for file in (ROOT / package).rglob("*.py"):
            found = re.findall(r"\b[0-9a-f]{40}\b|revision=\"\w+\"", file.read_text())
            assert not found or file in LISTS, f"{file}: {found}"


@pytest.mark.parametrize("cape", ESCHERNET)
def test_downloading_from_a_branch_says_which_commit_it_is(monkeypatch, capsys, tmp_path, cape):
    commit, asked, model = "0123456789abcdef" * 2 + "01234567", [], ESCHERNET[cape]

    def download(repository, **options):
        asked.append((repository, options["revision"]))
        return str(tmp_path / "snapshots" / commit)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert weight_files.locate(model.repository).name == commit
    assert asked == [(model.repository, "main")]
    assert commit in capsys.readouterr().out.replace("\n", "")
    weight_files.locate(model.repository, revision=commit)
    assert asked[-1] == (model.repository, commit)


def test_a_branch_in_the_cache_is_used_and_its_commit_is_printed(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "lora").write_bytes(b"numbers")
    snapshot = put_into_cache(tmp_path / "hub", LIGHTNING.repository, "main", {LIGHTNING.weights[0]: tmp_path / "lora"})
    assert locate_lora("sdxl") == snapshot / LIGHTNING.weights[0]
    assert f"{LIGHTNING.repository}: commit {BRANCH_COMMIT}" in capsys.readouterr().out.replace("\n", "")
