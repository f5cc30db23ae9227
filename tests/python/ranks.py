"""N ranks for a test: threads that share one process, or processes of a gloo group."""

from __future__ import annotations

import multiprocessing
import tempfile
import threading
import traceback
from typing import Any, Callable, List

import torch
import torch.distributed as dist

from shardplan import _shardplan

DEADLINE_SECONDS = 60.0

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["torch", "transformers", "shardplan.zero_adamw"])


def run_threads(ranks: int, work: Callable[[int, _shardplan.Communicator], Any]) -> List[Any]:
    """work(rank, communicator) on each rank; their results. The first rank that raises ends the others."""
    communicators = _shardplan.local_communicators(ranks, DEADLINE_SECONDS)
    results: List[Any] = [None] * ranks
    errors: List[BaseException] = []

    def run(rank: int) -> None:
        try:
            results[rank] = work(rank, communicators[rank])
        except BaseException as error:
            errors.append(error)
            communicators[rank].abort(repr(error))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def run_processes(ranks: int, work: Callable[..., Any], *arguments: Any) -> List[Any]:
    """work(*arguments) in `ranks` processes of a gloo group; their results by rank. `work` is a module's function."""
    with tempfile.TemporaryDirectory() as folder:
        queue = _processes.Queue()
        processes = [
            _processes.Process(target=_rank, args=(rank, ranks, f"file://{folder}/store", queue, work, arguments))
            for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        results = dict(queue.get(timeout=5 * DEADLINE_SECONDS) for _ in processes)
        for process in processes:
            process.join()
    for rank, (worked, result) in sorted(results.items()):
        assert worked, f"rank {rank}: {result}"
    return [results[rank][1] for rank in range(ranks)]


def _rank(rank: int, ranks: int, store: str, queue: Any, work: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=ranks)
        result = (True, work(*arguments))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        result = (False, traceback.format_exc())
    queue.put((rank, result))
