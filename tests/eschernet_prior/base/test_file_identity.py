"""Two versions of a model's files are told apart by content, however large, and by the commit of the hub."""

import hashlib
import json
import os
from pathlib import Path

from eschernet_prior.base.file_identity import SMALL, file_identity, folder_identity, snapshot_commit
from hub_cache import put_into_cache


def large(path: Path, last: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(bytes(SMALL) + last)
    return path


def test_large_files_of_one_size_differ_by_their_content(tmp_path):
    for name, last in (("a", b"1"), ("b", b"2"), ("c", b"1")):
        large(tmp_path / name / "unet" / "model.safetensors", last)
    identities = [folder_identity(tmp_path / name) for name in "abc"]
    assert identities[0] != identities[1]
    assert identities[0] == identities[2]


def test_configurations_count_too(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"sample_size": 32}))
    before = folder_identity(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"sample_size": 64}))
    assert folder_identity(tmp_path) != before
    (tmp_path / "README.md").write_text("words")
    same = folder_identity(tmp_path)
    (tmp_path / "README.md").write_text("other words")
    assert folder_identity(tmp_path) == same


def test_a_file_is_hashed_once_and_again_when_it_has_changed(tmp_path):
    path = large(tmp_path / "model.safetensors", b"1")
    first = file_identity(path)
    assert first == hashlib.sha256(path.read_bytes()).hexdigest()
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    large(path, b"2")
    os.utime(path, ns=times)
    assert file_identity(path) == first, "size and time of change are the same: it was not read"
    os.utime(path, ns=(1, 1))
    assert file_identity(path) == hashlib.sha256(path.read_bytes()).hexdigest() != first


def test_the_hubs_own_hash_is_taken_where_there_is_one(tmp_path, monkeypatch):
    path = large(tmp_path / "model.safetensors", b"1")
    snapshot = put_into_cache(tmp_path / "hub", "owner/name", "main", {"unet/model.safetensors": path})
    monkeypatch.setattr(Path, "open", lambda *_: 1 / 0)
    assert file_identity(snapshot / "unet" / "model.safetensors") == (
        (snapshot / "unet" / "model.safetensors").resolve().name
    )
    assert snapshot_commit(snapshot) == "a" * 40
    assert snapshot_commit(tmp_path) is None
