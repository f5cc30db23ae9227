"""ZeroAdamW.save() and load(): over threads, shared memory and process groups; as if training had not been stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, List

import models
import pytest
import torch
from ranks import run_processes, run_threads

import shardplan

OPTIONS: Dict[str, Any] = dict(lr=3e-3, betas=(0.8, 0.95), eps=1e-7, weight_decay=0.1)
NAME = "save-000001-step-000000002"


def groups_of(model: torch.nn.Module) -> List[Dict[str, Any]]:
    return [
        {"params": [p for p in model.parameters() if p.dim() > 1]},
        {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
    ]


def make(model: torch.nn.Module, stage: int, groups: bool, **more: Any) -> shardplan.ZeroAdamW:
    return shardplan.ZeroAdamW(groups_of(model) if groups else model, module=model, stage=stage, max_norm=1.0,
                               **OPTIONS, **more)


def train(model: torch.nn.Module, optimizer: Any, steps: range, rank: int, ranks: int) -> None:
    for step in steps:
        models.loss_of(model, step, rank, ranks).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("groups", [False, True])
def test_training_goes_on_with_the_same_bits(tmp_path: Path, dtype: torch.dtype, groups: bool) -> None:
    ranks = 3

    def uninterrupted(rank: int, communicator: Any) -> Any:
        model = models.gpt2().to(dtype)
        optimizer = make(model, 1, groups, communicator=communicator)
        train(model, optimizer, range(4), rank, ranks)
        return models.digest(optimizer.full_parameters())

    def first(rank: int, communicator: Any) -> str:
        model = models.gpt2().to(dtype)
        optimizer = make(model, 3, groups, communicator=communicator)
        train(model, optimizer, range(2), rank, ranks)
        return optimizer.save(tmp_path / "run", client=b"place\0two" if rank == 0 else b"", keep=1)

    def through_one(rank: int, communicator: Any) -> Any:
        optimizer = make(models.gpt2().to(dtype), 1, not groups, communicator=communicator)
        loaded = optimizer.load(tmp_path / "run")
        assert loaded == shardplan.Loaded(NAME, b"place\0two", ())
        optimizer.save(tmp_path / "again")
        return optimizer.state_dict()["state"][0]["step"].item()

    def second(rank: int, communicator: Any) -> Any:
        model = models.gpt2().to(dtype)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        optimizer = make(model, 2, groups, communicator=communicator)
        assert optimizer.load(tmp_path / "again").name == NAME
        train(model, optimizer, range(2, 4), rank, ranks)
        return models.digest(optimizer.full_parameters())

    expected = run_threads(ranks, uninterrupted)
    assert run_threads(ranks, first) == [NAME] * ranks
    assert run_threads(1, through_one) == [2.0]
    assert run_threads(ranks, second) == expected


def test_saving_in_the_background_saves_what_was_there(tmp_path: Path) -> None:
    ranks = 2
    folder = tmp_path / "run"

    def uninterrupted(rank: int, communicator: Any) -> Any:
        model = models.gpt2()
        optimizer = make(model, 2, False, communicator=communicator)
        train(model, optimizer, range(3), rank, ranks)
        return models.digest(optimizer.full_parameters())

    def first(rank: int, communicator: Any) -> Any:
        model = models.gpt2()
        optimizer = make(model, 3, False, communicator=communicator)
        assert optimizer.finish_save() == ""
        train(model, optimizer, range(1), rank, ranks)
        optimizer.save_in_background(folder, client=b"one")
        train(model, optimizer, range(1, 2), rank, ranks)  # changes all of it; steps publish it sooner or later
        name = optimizer.finish_save()
        optimizer.save_in_background(folder, keep=1)
        for step in range(2, 1000):
            train(model, optimizer, range(step, step + 1), rank, ranks)
            communicator.barrier()
            if (folder / "latest").read_text().strip() != name:
                break
        return name, (folder / "latest").read_text().strip()

    def second(rank: int, communicator: Any) -> Any:
        model = models.gpt2()
        optimizer = make(model, 1, False, communicator=communicator)
        loaded = optimizer.load(folder)
        train(model, optimizer, range(2, 3), rank, ranks)
        return loaded.notes, models.digest(optimizer.full_parameters())

    names = ("save-000001-step-000000001", "save-000002-step-000000002")
    assert run_threads(ranks, first) == [names] * ranks
    assert run_threads(ranks, second) == [((), digest) for digest in run_threads(ranks, uninterrupted)]


def in_process(transport: str, folder: str, last: int) -> Any:
    import torch.distributed as dist

    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = models.llama()
    optimizer = make(model, 2, False, transport=transport)
    loaded = optimizer.load(folder)
    first = int(loaded.client or b"0")
    train(model, optimizer, range(first, last), rank, ranks)
    optimizer.save(folder, client=str(last).encode(), keep=2)
    return loaded.name, models.digest(optimizer.full_parameters())


def test_shared_memory_and_process_groups_load_each_other(tmp_path: Path) -> None:
    expected = run_processes(2, in_process, "shared", str(tmp_path / "whole"), 4)
    run_processes(2, in_process, "shared", str(tmp_path / "run"), 2)
    resumed = run_processes(2, in_process, "process_group", str(tmp_path / "run"), 4)
    assert [name for name, _ in resumed] == ["save-000001-step-000000002"] * 2
    assert [digest for _, digest in resumed] == [digest for _, digest in expected]


def test_what_is_wrong_is_raised_on_every_rank(tmp_path: Path) -> None:
    def work(rank: int, communicator: Any) -> None:
        optimizer = make(models.gpt2(), 2, False, communicator=communicator)
        before = models.digest(optimizer.full_parameters())
        nothing = optimizer.load(tmp_path / "nowhere")
        assert nothing == shardplan.Loaded("", b"", ())
        assert models.digest(optimizer.full_parameters()) == before
        optimizer.save(tmp_path / "run")
        with pytest.raises(shardplan.CheckpointError, match="latest"):
            optimizer.save(tmp_path / "run" / "latest")  # a file
        with pytest.raises(shardplan.ConfigError, match="at least 4 MiB"):
            optimizer.save(tmp_path / "run", memory_bytes=1000)
        other = make(models.llama(), 2, False, communicator=communicator)
        with pytest.raises(shardplan.ConfigError, match="is not in this checkpoint"):
            other.load(tmp_path / "run")
        half = make(models.gpt2().to(torch.bfloat16), 2, False, communicator=communicator, precision="bf16")
        with pytest.raises(shardplan.ConfigError, match="is in fp32 in this checkpoint: expected bf16"):
            half.load(tmp_path / "run")

    run_threads(2, work)


def test_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    optimizer = make(models.llama(), 1, False)
    optimizer.save(tmp_path)
    second = tmp_path / optimizer.save(tmp_path)
    file = next(second.glob("*.safetensors"))
    damaged = bytearray(file.read_bytes())
    damaged[-5] ^= 16
    file.write_bytes(damaged)
    loaded = optimizer.load(tmp_path)
    assert loaded.name == "save-000001-step-000000000"
    assert len(loaded.notes) == 1 and str(file) in loaded.notes[0]
