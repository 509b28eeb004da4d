"""Record the capture of a run in its folder, and refuse to continue the run with another capture or other poses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import read_json, write_json

RUN_FILE = "run.json"
"""File in the run folder that records the method, the capture and the options of a run."""
TRANSFORMS_FILE = "dataparser_transforms.json"
"""File in the run folder in which nerfstudio records how it has oriented, centred and scaled the poses."""
TOLERANCE = 1e-3
"""Largest difference between the cameras of a capture as read on two machines."""


def record_capture(run_dir: Path, method: str | None, identity: dict[str, Any]) -> None:
    """Record the capture that a run is trained on; other entries of the record are kept.

    Args:
        run_dir: The run folder.
        method: The name of its method.
        identity: Identity of the capture, see `captures.account.capture_identity`.
    """
    path = run_dir / RUN_FILE
    write_json(path, {**(read_json(path) or {}), "method": method, "capture": identity})


def refuse_other_capture(run_dir: Path, identity: dict[str, Any]) -> None:
    """Refuse to continue a run with another capture, or with other options of reading it.

    Args:
        run_dir: The folder of the run that is continued.
        identity: Identity of the capture with which it is continued.

    Raises:
        UserError: If the capture or the options that read it differ.
    """
    same = "use the same data and dataparser options, or start a new run without --timestamp and --load-dir"
    recorded = (read_json(run_dir / RUN_FILE) or {}).get("capture")
    if recorded is not None:
        theirs = recorded["dataparser"]
        for name, value in identity["dataparser"].items():
            if name in theirs and theirs[name] != value:
                raise UserError(
                    f"{run_dir} was started with the dataparser's {name} = {theirs[name]} and cannot be continued "
                    f"with {value}: {same}."
                )
        moved = recorded["data"] != identity["data"]
        if recorded.get("files") != identity.get("files") or not _alike(recorded, identity, moved):
            raise UserError(f"{run_dir} was started with other data ({recorded['data']}): {same}.")
    if not same_frame(run_dir, identity):
        raise UserError(f"{run_dir} was started with poses in another frame: {same}.")


def refuse_other_poses(run_dir: Path, identity: dict[str, Any]) -> None:
    """Refuse a trained field if the poses of the capture are not those that it was trained on.

    Args:
        run_dir: The folder of the run that trained the field.
        identity: Identity of the capture.

    Raises:
        UserError: If poses, split or frame differ.
    """
    recorded = (read_json(run_dir / RUN_FILE) or {}).get("capture")
    other = recorded is not None and not _alike(recorded, identity, recorded["dataparser"] != identity["dataparser"])
    if other or not same_frame(run_dir, identity):
        raise other_poses(run_dir)


def other_poses(run_dir: Path) -> UserError:
    """The error for a field that was trained on other poses than those of the capture."""
    return UserError(
        f"The field in {run_dir} was trained on other poses, or with another orientation, centre or scale: "
        "use the data and dataparser options of its config.yml."
    )


def refuse_changed_poses(run_dir: Path, cameras: dict[str, Any]) -> None:
    """Refuse to view a finished run whose capture has other poses now than in its training.

    Args:
        run_dir: The run folder.
        cameras: Identity of the capture's present cameras, see `captures.account.camera_identity`.

    Raises:
        UserError: If poses, split or frame differ.
    """
    recorded = (read_json(run_dir / RUN_FILE) or {}).get("capture") or {}
    other = "cameras" in recorded and not _alike(recorded, cameras, True)
    if other or not same_frame(run_dir, cameras):
        raise UserError(
            f"The poses of {recorded.get('data', 'the capture')} have changed since {run_dir} was trained: restore the "
            "original poses, or train again."
        )


def same_frame(run_dir: Path, identity: dict[str, Any]) -> bool:
    """Whether poses are oriented, centred and scaled as recorded by a run; True if either is unknown."""
    noted = read_json(run_dir / TRANSFORMS_FILE)
    if noted is None or "transform" not in identity:
        return True
    return np.allclose(noted["transform"], identity["transform"], atol=1e-4) and bool(
        np.isclose(noted["scale"], identity["scale"], rtol=1e-4)
    )


def _alike(recorded: dict[str, Any], identity: dict[str, Any], otherwise: bool) -> bool:
    """Whether the cameras are the same; if neither is recorded, `otherwise` says that they are not."""
    if "cameras" not in recorded and "cameras" not in identity:
        return not otherwise
    ours, theirs = (np.asarray(each.get("cameras", [])) for each in (identity, recorded))
    return ours.shape == theirs.shape and np.allclose(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)
