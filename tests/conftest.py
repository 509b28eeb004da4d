"""What all tests share: quiet threads, no network for hubs, and the development data where it exists."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of development data beside a developer's checkout; a user's clone has none."""
    folder = Path(__file__).resolve().parents[1].parent / "shared"
    if not folder.is_dir():
        pytest.skip("needs the development data in ../shared, which a user's clone does not have")
    return folder
