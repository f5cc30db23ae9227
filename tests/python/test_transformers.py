"""A client that is not ours: transformers models, trained on a text by processes of a torch.distributed group."""

from __future__ import annotations

from typing import Any, Dict, List

import models
import pytest
import torch
import torch.distributed as dist
from ranks import run_processes

import shardplan

STEPS = 6
LR = 1e-3
MAX_NORM = 1.0
# Per step, from one to the next: order of sums over ranks and torch's fused multiply-adds (docs/numerics.md).
TOLERANCE = 2e-6


def train(name: str, stage: int, transport: str, **options: Any) -> Dict[str, Any]:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = models.MODELS[name]()
    optimizer = shardplan.ZeroAdamW(
        model, lr=LR, stage=stage, max_norm=MAX_NORM, transport=transport, deadline_seconds=60, **options
    )
    losses = []
    for step in range(STEPS):
        loss = models.loss_of(model, step, rank, ranks)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    with torch.no_grad():
        evaluated = models.loss_of(model, STEPS, 0, ranks).item()
    report = optimizer.last_step
    return dict(
        losses=losses,
        evaluated=evaluated,
        norm=report.norm,
        digest=models.digest(optimizer.full_parameters()),
    )


def train_all(name: str) -> Dict[Any, Dict[str, Any]]:
    return {
        (stage, transport): train(name, stage, transport)
        for transport in ("shared", "process_group")
        for stage in (1, 2, 3)
    }


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_stages_and_transports_are_the_same_training_as_torchs(name: str, ranks: int) -> None:
    by_rank: List[Dict[Any, Dict[str, Any]]] = run_processes(ranks, train_all, name)
    losses, norm = models.train_with_torch(models.MODELS[name], ranks, STEPS, MAX_NORM, lr=LR)
    first = by_rank[0][1, "shared"]
    assert first["losses"] == pytest.approx(losses, rel=STEPS * TOLERANCE)
    assert first["norm"] == pytest.approx(norm, rel=1e-3)
    assert first["losses"][-1] < first["losses"][0] - 0.2
    for results in by_rank:
        for setup, result in results.items():
            assert result["digest"] == first["digest"], setup
            assert result["evaluated"] == first["evaluated"], setup
    for setup, result in by_rank[0].items():
        assert result["losses"] == first["losses"], setup


def train_until_inf(stage: int) -> Dict[str, Any]:
    """With a loss scale; rank 1's loss of step 2 overflows."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = models.llama()
    optimizer = shardplan.ZeroAdamW(
        model, lr=LR, stage=stage, loss_scaling=shardplan.LossScaling(init_scale=1024.0, growth_interval=3)
    )
    scaler = shardplan.GradScaler(optimizer)
    scales, skipped, digests = [], [], []
    for step in range(STEPS):
        scales.append(scaler.get_scale())
        loss = models.loss_of(model, step, rank, ranks)
        if step == 2 and rank == 1:
            loss = loss * float("inf")
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        skipped.append(optimizer.last_step.skipped)
        digests.append(models.digest(optimizer.full_parameters()))
    state = scaler.state_dict()
    assert (state["scale"], state["_growth_tracker"]) == (scaler.get_scale(), 0)  # it has just grown
    return dict(scales=scales + [scaler.get_scale()], skipped=skipped, digests=digests, steps=optimizer.last_step.step)


@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_inf_on_one_rank_skips_the_step_on_all(stage: int, ranks: int) -> None:
    for result in run_processes(ranks, train_until_inf, stage):
        assert result["skipped"] == [False, False, True, False, False, False]
        assert result["scales"] == [1024, 1024, 1024, 512, 512, 512, 1024]
        assert result["steps"] == STEPS - 1
        digests = result["digests"]
        assert digests[1] == digests[2]
        assert len(set(digests)) == STEPS - 1


def lose_a_rank() -> str:
    """Rank 1 does not come to the second step."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    model = models.llama()
    optimizer = shardplan.ZeroAdamW(model, stage=2, deadline_seconds=2)
    models.loss_of(model, 0, rank, ranks).backward()
    optimizer.step()
    if rank == 1:
        return ""
    try:
        models.loss_of(model, 1, rank, ranks).backward()
        optimizer.step()
    except shardplan.CommunicationError as error:
        return f"{error.rank} {error.operation}"
    return "nothing was noticed"


def test_a_rank_that_is_late_is_named() -> None:
    assert run_processes(2, lose_a_rank)[0].startswith("1 ")
