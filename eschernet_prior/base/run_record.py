"""What a run was begun with, in its folder: a run that is continued on other data, or on other poses, is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eschernet_prior.base.errors import UserError
from eschernet_prior.base.files import read_json, write_json

RUN_FILE = "run.json"
"""What a run was asked for, in its folder."""
TRANSFORMS_FILE = "dataparser_transforms.json"
"""nerfstudio's note of how it has turned, centred and scaled the poses, in a run's folder."""
TOLERANCE = 1e-3
"""How far the cameras of one capture may differ between two readings, on two machines."""


def record_capture(run_dir: Path, method: str | None, identity: dict[str, Any]) -> None:
    """Write down what a run is trained on, leaving what else its record says.

    Args:
        run_dir: The run folder.
        method: Its method.
        identity: Of the capture, see `captures.account.capture_identity`.
    """
    path = run_dir / RUN_FILE
    write_json(path, {**(read_json(path) or {}), "method": method, "capture": identity})


def refuse_other_capture(run_dir: Path, identity: dict[str, Any]) -> None:
    """Refuse to continue a run with another capture, or with other options of reading it.

    Args:
        run_dir: The folder of the run that is continued.
        identity: Of the capture that it is continued with.

    Raises:
        UserError: It is another one.
    """
    same = "give the same data and dataparser options, or begin another run without --timestamp and --load-dir"
    recorded = (read_json(run_dir / RUN_FILE) or {}).get("capture")
    if recorded is not None:
        theirs = recorded["dataparser"]
        for name, value in identity["dataparser"].items():
            if name in theirs and theirs[name] != value:
                raise UserError(
                    f"{run_dir} was begun with the dataparser's {name} {theirs[name]} and cannot be continued with "
                    f"{value}: {same}."
                )
        moved = recorded["data"] != identity["data"]
        if recorded.get("files") != identity.get("files") or not _alike(recorded, identity, moved):
            raise UserError(f"{run_dir} was begun with other data ({recorded['data']}): {same}.")
    if not same_frame(run_dir, identity):
        raise UserError(f"{run_dir} was begun with poses in another frame: {same}.")


def refuse_other_poses(run_dir: Path, identity: dict[str, Any]) -> None:
    """Refuse a trained field that is looked at from other places than it was trained from.

    Args:
        run_dir: The folder of the run that made the field.
        identity: Of the capture that is looked at.

    Raises:
        UserError: The poses, the split or the frame are others.
    """
    recorded = (read_json(run_dir / RUN_FILE) or {}).get("capture")
    other = recorded is not None and not _alike(recorded, identity, recorded["dataparser"] != identity["dataparser"])
    if other or not same_frame(run_dir, identity):
        raise UserError(
            f"The field in {run_dir} was trained on other poses or another orientation, centre or scale of them: "
            "give the same data and dataparser options as its config.yml."
        )


def refuse_changed_poses(run_dir: Path, cameras: dict[str, Any]) -> None:
    """Refuse to view a finished run whose capture has other poses now than in its training.

    Args:
        run_dir: The run folder.
        cameras: Of its capture as it is now, see `captures.account.camera_identity`.

    Raises:
        UserError: The poses, the split or the frame are others.
    """
    recorded = (read_json(run_dir / RUN_FILE) or {}).get("capture") or {}
    other = "cameras" in recorded and not _alike(recorded, cameras, True)
    if other or not same_frame(run_dir, cameras):
        raise UserError(
            f"The poses of {recorded.get('data', 'the capture')} have changed since {run_dir} was trained on them: "
            "restore the capture as it was, or train again."
        )


def same_frame(run_dir: Path, identity: dict[str, Any]) -> bool:
    """Whether poses are turned, centred and scaled as a run has noted; so where either says nothing."""
    noted = read_json(run_dir / TRANSFORMS_FILE)
    if noted is None or "transform" not in identity:
        return True
    return np.allclose(noted["transform"], identity["transform"], atol=1e-4) and bool(
        np.isclose(noted["scale"], identity["scale"], rtol=1e-4)
    )


def _alike(recorded: dict[str, Any], identity: dict[str, Any], otherwise: bool) -> bool:
    """Whether the cameras are the same ones; `otherwise` says that they are not, where neither record has any."""
    if "cameras" not in recorded and "cameras" not in identity:
        return not otherwise
    ours, theirs = (np.asarray(each.get("cameras", [])) for each in (identity, recorded))
    return ours.shape == theirs.shape and np.allclose(ours, theirs, atol=TOLERANCE, rtol=TOLERANCE)
