"""Restyle one scene on several processes: assignment of views, collective operations, and handling of failures.

Under torchrun each process holds consecutive views of a scene. Shared attention gathers keys and values from all
processes, so all of them must take part: before each collective operation they exchange their state. A process that
failed reports it once, and the others stop at their next exchange instead of waiting forever. A single process is a
group of one, without communication.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

import torch
import torch.distributed as dist
from torch import Tensor

from eschernet_prior.base.errors import UserError


class ProcessState(IntEnum):
    """State of a process; the highest state of all processes applies."""

    WELL = 0
    AGAIN = 1
    """Out of memory: all processes repeat the call with fewer views at a time."""
    FAILED = 2


class RepeatError(RuntimeError):
    """Another process ran out of memory, so the current computation must be repeated."""


class FailedElsewhereError(RuntimeError):
    """Another process failed; it prints the reason itself."""


class ProcessGroup:
    """A process's rank among the processes that restyle a scene, and their communication."""

    def __init__(self, rank: int = 0, size: int = 1):
        self.rank, self.size = rank, size

    @classmethod
    def here(cls) -> ProcessGroup:
        """The processes of torch.distributed, if it is initialised; else this process alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def leads(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def counts(self, views: int) -> list[int]:
        """Number of views of each process, distributed evenly, with more in the first ones.

        Raises:
            UserError: If there are fewer views than processes.
        """
        if views < self.size:
            raise UserError(f"{self.size} processes cannot restyle {views} views: start at most {views}.")
        return [views // self.size + (rank < views % self.size) for rank in range(self.size)]

    def own(self, views: int) -> slice:
        """The views of this process."""
        counts = self.counts(views)
        first = sum(counts[: self.rank])
        return slice(first, first + counts[self.rank])

    def holder(self, view: int, views: int) -> int:
        """Rank of the process that holds a view."""
        counts = self.counts(views)
        return next(rank for rank in range(self.size) if view < sum(counts[: rank + 1]))

    @contextmanager
    def working(self) -> Iterator[None]:
        """Context of the work on one scene: if one process fails inside, all stop.

        Raises:
            FailedElsewhereError: If another process failed.
        """
        try:
            yield
        except FailedElsewhereError:
            raise
        except BaseException:
            self._highest(ProcessState.FAILED)
            raise
        self.agree()

    def agree(self, state: ProcessState = ProcessState.WELL) -> None:
        """Exchange the states of all processes.

        Raises:
            RepeatError: If a process ran out of memory.
            FailedElsewhereError: If another process failed.
        """
        state = self._highest(state)
        if state is ProcessState.FAILED:
            raise FailedElsewhereError("Another process of this restyling failed; see its own message.")
        if state is ProcessState.AGAIN:
            raise RepeatError

    def agree_on(self, fingerprint: str) -> None:
        """Check that all processes were called with the same arguments.

        Args:
            fingerprint: Digest of the arguments, of the same length in all processes.

        Raises:
            ValueError: If it differs from that of the first process.
        """
        own = torch.tensor(list(fingerprint.encode()), dtype=torch.uint8)
        if not torch.equal(self.from_one(own, 0), own):
            raise ValueError("The processes of a restyling were called with different arguments.")

    def gather(self, own: Tensor, views: int) -> Tensor:
        """All views' rows, in the order of the views.

        Args:
            own: This process's views along the first dimension; all other dimensions agree.
            views: Number of views of the scene.
        """
        if self.size == 1:
            return own
        # Everything that may fail happens before the exchange: after it, all processes must take part.
        parts = [self._letter(own, count, rank) for rank, count in enumerate(self.counts(views))]
        self.agree()
        for rank, part in enumerate(parts):
            dist.broadcast(part, src=rank)
        return torch.cat(parts).to(own.device)

    def from_one(self, tensor: Tensor, rank: int) -> Tensor:
        """Broadcast one process's tensor; the others pass one of the same shape."""
        if self.size == 1:
            return tensor
        letter = self._letter(tensor, len(tensor), rank)
        self.agree()
        dist.broadcast(letter, src=rank)
        return letter.to(tensor.device)

    def _letter(self, own: Tensor, rows: int, rank: int) -> Tensor:
        """Buffer for a broadcast, filled by the sending process."""
        letter = torch.empty(rows, *own.shape[1:], dtype=own.dtype, device=self._device)
        return letter.copy_(own) if rank == self.rank else letter

    def _highest(self, state: ProcessState) -> ProcessState:
        if self.size == 1:
            return state
        highest = torch.tensor(int(state), device=self._device)
        dist.all_reduce(highest, op=dist.ReduceOp.MAX)
        return ProcessState(int(highest))

    @property
    def _device(self) -> torch.device:
        """Device of messages: a GPU for NCCL, else the CPU."""
        return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
