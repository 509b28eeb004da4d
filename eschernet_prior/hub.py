"""The EscherNet checkpoints on the hub, by the camera positional encoding that they were trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eschernet_prior.base.hub import HubModel

if TYPE_CHECKING:
    from eschernet_prior.cape import CapeKind

# The commits were not known at the time of writing: the loader checks every key and shape, refuses anything but
# tensors, and prints the commit.
ESCHERNET: dict[CapeKind, HubModel] = {
    "6dof": HubModel("kxic/eschernet-6dof", "main"),
    "4dof": HubModel("kxic/eschernet-4dof", "main"),
}


def published_cape(repository: str) -> CapeKind | None:
    """The encoding of the checkpoint with a hub id; None for other models."""
    return next((cape for cape, model in ESCHERNET.items() if model.repository == repository), None)
