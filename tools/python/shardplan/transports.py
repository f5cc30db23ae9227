"""Communicators: how the ranks of a torch process group reach each other's bytes."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any, List, Optional, Tuple

import torch
import torch.distributed as dist

from . import _shardplan
from .errors import ConfigError


def communicator_for(group: Any, transport: str, deadline_seconds: float) -> _shardplan.Communicator:
    """Collective over the group. "auto": shared memory where all ranks can have it, else messages through the group."""
    if transport not in ("auto", "shared", "process_group"):
        raise ConfigError(f"transport: {transport!r}: expected 'auto', 'shared' or 'process_group'", "transport")
    alone = not (dist.is_available() and dist.is_initialized()) or dist.get_world_size(group) == 1
    if alone:
        return _shardplan.local_communicators(1, deadline_seconds)[0]
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    if transport == "auto":
        transport = "shared" if len(set(_gathered(_where(), size, group))) == 1 else "process_group"
    if transport == "shared":
        return _shardplan.shared_communicator(
            rank, size, lambda mine: b"".join(_gathered(mine, size, group)), deadline_seconds
        )
    return _shardplan.staged_communicator(rank, size, _Messages(group, deadline_seconds), deadline_seconds)


def _gathered(value: Any, size: int, group: Any) -> List[Any]:
    values: List[Any] = [None] * size
    dist.all_gather_object(values, value, group=group)
    return values


def _where() -> Tuple[Any, ...]:
    """Equal where processes can reach each other's memory: one machine, one namespace of processes, one user."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        boot = file.read().strip()
    return socket.gethostname(), boot, os.stat("/proc/self/ns/pid").st_ino, os.getuid()


class _Messages:
    """Messages over tensors of the CPU (gloo), which keeps the order of those between two ranks."""

    def __init__(self, group: Any, deadline_seconds: float) -> None:
        self._group = group
        self._timeout = timedelta(seconds=deadline_seconds)

    def start(self, sends: List[Tuple[int, Any]], receives: List[Tuple[int, Any]]) -> List[Tuple[int, Any]]:
        operations = [(dist.irecv, peer, memory) for peer, memory in receives]
        operations += [(dist.isend, peer, memory) for peer, memory in sends]
        started = []
        for start, peer, memory in operations:
            whole = peer if self._group is None else dist.get_global_rank(self._group, peer)
            started.append((peer, start(torch.from_dlpack(memory), whole, group=self._group)))
        return started

    def finish(self, started: List[Tuple[int, Any]]) -> Optional[Tuple[int, str]]:
        """None, or the peer that failed and what the group says of it."""
        for peer, work in started:
            try:
                work.wait(self._timeout)
            except RuntimeError as error:
                return peer, str(error)
        return None
