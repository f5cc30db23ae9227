"""ZeroAdamW as a torch.optim.Optimizer, on ranks that are threads of this process."""

from __future__ import annotations

import gc
import weakref
from typing import Any, Callable, Dict, List

import models
import pytest
import torch
from ranks import run_threads

import shardplan

OPTIONS: Dict[str, Any] = dict(lr=3e-3, betas=(0.8, 0.95), eps=1e-7, weight_decay=0.1)


def steps_of(model: torch.nn.Module, optimizer: Any, steps: range, rank: int = 0, ranks: int = 1) -> List[float]:
    losses = []
    for step in steps:
        loss = models.loss_of(model, step, rank, ranks)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def values(optimizer: shardplan.ZeroAdamW) -> Dict[str, torch.Tensor]:
    return optimizer.full_parameters()


def assert_same_bits(a: Dict[str, torch.Tensor], b: Dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


def test_parameters_are_views_of_the_arena() -> None:
    model = models.gpt2()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = shardplan.ZeroAdamW(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]), name
    address = model.transformer.wte.weight.data_ptr()
    steps_of(model, optimizer, range(1))
    assert model.transformer.wte.weight.data_ptr() == address
    assert model.lm_head.weight is model.transformer.wte.weight
    assert not torch.equal(model.transformer.wte.weight, before["transformer.wte.weight"])


def test_schedulers_set_the_learning_rate() -> None:
    losses = []
    for make in (torch.optim.AdamW, shardplan.ZeroAdamW):
        model = models.llama()
        optimizer = make(model.parameters(), **OPTIONS)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=6, cycle_momentum=False)
        losses.append([])
        for step in range(5):
            losses[-1] += steps_of(model, optimizer, range(step, step + 1))
            scheduler.step()
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_groups_have_their_own_values() -> None:
    def groups(model: torch.nn.Module) -> List[Dict[str, Any]]:
        decayed = [p for p in model.parameters() if p.dim() > 1]
        return [
            {"params": decayed, "weight_decay": 0.5},
            {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0, "lr": 1e-2},
        ]

    model, ours = models.gpt2(), models.gpt2()
    theirs = torch.optim.AdamW(groups(model), **OPTIONS)
    optimizer = shardplan.ZeroAdamW(groups(ours), module=ours, stage=2, **OPTIONS)
    assert steps_of(ours, optimizer, range(5)) == pytest.approx(steps_of(model, theirs, range(5)), rel=1e-5)
    for each in (theirs, optimizer):
        each.param_groups[0].update(weight_decay=2.0, betas=(0.5, 0.6), eps=1e-3)
    assert steps_of(ours, optimizer, range(5, 9)) == pytest.approx(steps_of(model, theirs, range(5, 9)), rel=1e-5)


def test_a_closure_is_called_with_gradients() -> None:
    model = models.llama()
    optimizer = shardplan.ZeroAdamW(model, stage=2)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = models.loss_of(model, 0, 0, 1)
        loss.backward()
        return loss

    with torch.no_grad():
        first = optimizer.step(closure)
        assert optimizer.step(closure) < first
    assert optimizer.last_step.step == 2


def test_stage_1_takes_gradients_as_they_are_at_step() -> None:
    def change(model: torch.nn.Module) -> None:
        models.loss_of(model, 0, 0, 1).backward()
        models.loss_of(model, 1, 0, 1).backward()
        torch.nn.utils.clip_grad_value_(model.parameters(), 1e-3)

    model, ours = models.llama(), models.llama()
    plain, optimizer = torch.optim.AdamW(model.parameters()), shardplan.ZeroAdamW(ours)
    for each in (model, ours):
        change(each)
    for each in (plain, optimizer):
        each.step()
    for a, b in zip(model.parameters(), ours.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_parameter_without_a_gradient_has_zeros() -> None:
    def training(stage: int) -> Callable[..., Any]:
        def work(rank: int, communicator: Any) -> Any:
            with models.seeded(3):
                model = torch.nn.ModuleDict(
                    {"a": torch.nn.Linear(5, 7), "b": torch.nn.Linear(7, 3), "c": torch.nn.Linear(5, 3)}
                )
            optimizer = shardplan.ZeroAdamW(model, stage=stage, communicator=communicator, max_norm=0.5)
            for step in range(4):
                x = torch.full((2, 5), 1.0 + step + rank)
                # Rank 0 does without "c" and rank 1 without "a" and "b" in odd steps.
                use_c = rank == 1 and step % 2 == 1
                (model["c"](x) if use_c else model["b"](model["a"](x))).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
            return values(optimizer)

        return work

    first, second = (run_threads(2, training(stage)) for stage in (1, 2))
    for result in first + second:
        assert_same_bits(result, first[0])


@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stages_have_the_same_bits(accumulation: int, dtype: torch.dtype) -> None:
    def training(stage: int, ranks: int) -> Callable[..., Any]:
        made = [models.gpt2().to(dtype) for _ in range(ranks)]

        def work(rank: int, communicator: Any) -> Any:
            model = made[rank]
            optimizer = shardplan.ZeroAdamW(
                model, stage=stage, communicator=communicator, accumulation=accumulation, max_norm=1.0, **OPTIONS
            )
            for step in range(2):
                for micro_batch in range(accumulation):
                    models.loss_of(model, step * accumulation + micro_batch, rank, ranks).backward()
                optimizer.step()
                optimizer.zero_grad()
            return models.digest(values(optimizer))

        return work

    # Stage 1 accumulates before it reduces (cadence `step`), which has other last bits with more than one micro-batch.
    stages = (1, 2, 3) if accumulation == 1 else (2, 3)
    digests = {digest for stage in stages for digest in run_threads(2, training(stage, 2))}
    assert len(digests) == 1


def test_recomputed_blocks_have_the_same_bits_too() -> None:
    """Compared with recompute at stage 1: torch adds gradients up in another order then."""

    def training(stage: int) -> Callable[..., Any]:
        made = [models.llama() for _ in range(2)]

        def work(rank: int, communicator: Any) -> Any:
            made[rank].gradient_checkpointing_enable({"use_reentrant": False})
            optimizer = shardplan.ZeroAdamW(made[rank], stage=stage, communicator=communicator)
            steps_of(made[rank], optimizer, range(3), rank, 2)
            return models.digest(values(optimizer))

        return work

    assert set(run_threads(2, training(3))) == set(run_threads(2, training(1)))


def test_a_released_parameter_is_not_a_number() -> None:
    made = [models.llama() for _ in range(2)]

    def work(rank: int, communicator: Any) -> None:
        model = made[rank]
        optimizer = shardplan.ZeroAdamW(model, stage=3, communicator=communicator)
        weight = model.lm_head.weight
        assert weight.shape == (256, 64) and bool(weight.isnan().all())
        with torch.no_grad():
            models.loss_of(model, 0, 0, 1)
        assert bool(weight.isnan().all())
        with pytest.raises(RuntimeError, match="expected the module"):
            model.lm_head(torch.zeros(1, 64))
        models.loss_of(model, 0, 0, 1)
        with pytest.raises(RuntimeError, match="torch.no_grad"):
            models.loss_of(model, 0, 0, 1)
        communicator.barrier()
        optimizer.close()

    run_threads(2, work)


@pytest.mark.parametrize("before, after", [((1, 1), (3, 3)), ((2, 2), (1, 1)), ((3, 4), (2, 3))])
def test_a_resume_goes_on_with_the_same_values(before: Any, after: Any) -> None:
    """(stage, ranks). Ranks have the same batches here, so that the mean does not depend on how many there are."""

    def part(stage: int, ranks: int, steps: range, state: Any) -> Any:
        made = [models.gpt2() for _ in range(ranks)]

        def work(rank: int, communicator: Any) -> Any:
            optimizer = shardplan.ZeroAdamW(made[rank], stage=stage, communicator=communicator, **OPTIONS)
            if state is not None:
                optimizer.load_state_dict(state)
            start = models.digest(values(optimizer))
            losses = steps_of(made[rank], optimizer, steps)
            return dict(start=start, losses=losses, end=values(optimizer), state=optimizer.state_dict())

        return run_threads(ranks, work)[0]

    whole = part(*before, range(6), None)
    first = part(*before, range(3), None)
    resumed = part(*after, range(3, 6), first["state"])
    assert resumed["start"] == models.digest(first["end"])
    assert resumed["losses"] == pytest.approx(whole["losses"][3:], rel=1e-6)
    same = part(*before, range(3, 6), first["state"])
    assert same["losses"] == whole["losses"][3:]
    assert_same_bits(same["end"], whole["end"])
    assert same["state"]["state"][0]["step"] == 6


def test_states_are_torch_adamws() -> None:
    model, ours = models.llama(), models.llama()
    plain = torch.optim.AdamW(model.parameters(), **OPTIONS)
    steps_of(model, plain, range(3))
    optimizer = shardplan.ZeroAdamW(ours, **OPTIONS)
    ours.load_state_dict(model.state_dict())
    optimizer.load_state_dict(plain.state_dict())
    assert steps_of(ours, optimizer, range(3, 6)) == pytest.approx(steps_of(model, plain, range(3, 6)), rel=1e-5)

    back = models.llama()
    back.load_state_dict(ours.state_dict())
    again = torch.optim.AdamW(back.parameters(), **OPTIONS)
    again.load_state_dict(optimizer.state_dict())
    assert steps_of(back, again, range(6, 8)) == pytest.approx(steps_of(ours, optimizer, range(6, 8)), rel=1e-5)


def test_a_state_of_another_model_is_refused() -> None:
    optimizer = shardplan.ZeroAdamW(models.llama())
    steps_of(models.llama(), torch.optim.SGD(models.llama().parameters(), lr=0.0), range(1))
    state = optimizer.state_dict()
    state["state"][0]["exp_avg"] = torch.zeros(3)
    with pytest.raises(shardplan.ConfigError, match="embed_tokens.*exp_avg has the shape"):
        optimizer.load_state_dict(state)
    del state["state"][0]
    with pytest.raises(shardplan.ConfigError, match="nothing for model.embed_tokens"):
        optimizer.load_state_dict(state)


def test_frozen_parameters_stay() -> None:
    def work(rank: int, communicator: Any) -> Any:
        model = made[rank]
        model.transformer.wpe.weight.requires_grad_(False)
        for parameter in model.transformer.h[0].parameters():
            parameter.requires_grad_(False)
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        optimizer = shardplan.ZeroAdamW(model, stage=3, communicator=communicator)
        steps_of(model, optimizer, range(2), rank, 2)
        after = values(optimizer)
        for name, tensor in before.items():
            frozen = name == "transformer.wpe.weight" or name.startswith("transformer.h.0.")
            assert torch.equal(tensor, after[name]) == frozen, name

    made = [models.gpt2() for _ in range(2)]
    run_threads(2, work)


def test_plain_parameters_are_trained_too() -> None:
    torch.manual_seed(5)
    model, x = torch.nn.Sequential(torch.nn.Linear(9, 33), torch.nn.Tanh(), torch.nn.Linear(33, 1)), torch.randn(8, 9)
    optimizer = shardplan.ZeroAdamW(list(model.parameters()), stage=2, lr=1e-2)
    losses = []
    for _ in range(20):
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_what_cannot_be_trained_is_refused() -> None:
    model = torch.nn.Linear(3, 3)
    for arguments, message in [
        (dict(stage=4), "expected 1, 2 or 3"),
        (dict(stage=0), "expected 1, 2 or 3"),
        (dict(transport="pigeon"), "expected 'auto'"),
        (dict(precision="int8"), "int8"),
    ]:
        with pytest.raises(shardplan.ConfigError, match=message):
            shardplan.ZeroAdamW(model, **arguments)
    with pytest.raises(shardplan.ConfigError, match="needs the module"):
        shardplan.ZeroAdamW(model.parameters(), stage=3)
    with pytest.raises(shardplan.ConfigError, match="meta"):
        shardplan.ZeroAdamW(torch.nn.Linear(3, 3, device="meta"))
    with pytest.raises(shardplan.ConfigError, match="float64"):
        shardplan.ZeroAdamW(torch.nn.Linear(3, 3, dtype=torch.float64))
    optimizer = shardplan.ZeroAdamW(model)
    with pytest.raises(RuntimeError, match="cannot be added"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2))]})
    with pytest.raises(RuntimeError, match="shardplan.GradScaler"):
        scaler = torch.amp.GradScaler("cpu")
        scaler.scale(model(torch.ones(1, 3)).sum()).backward()
        scaler.step(optimizer)


@pytest.mark.parametrize("stage", [1, 2])
def test_an_optimizer_that_is_dropped_frees_its_arena(stage: int) -> None:
    model = models.llama()
    optimizer = shardplan.ZeroAdamW(model, stage=stage)
    steps_of(model, optimizer, range(1))
    client = weakref.ref(optimizer._client)
    del optimizer, model
    gc.collect()
    assert client() is None
