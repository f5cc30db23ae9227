"""DeepSpeed's universal checkpoints, in both of the forms that ds_to_universal writes, as ours."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any, Dict

import models
import pytest
import torch

import shardplan
from shardplan.import_universal import import_universal, main

OPTIONS: Dict[str, Any] = dict(lr=3e-3, betas=(0.8, 0.95), eps=1e-7, weight_decay=0.1)


def train(model: torch.nn.Module, optimizer: Any, steps: range) -> None:
    for step in steps:
        models.loss_of(model, step, 0, 1).backward()
        optimizer.step()
        optimizer.zero_grad()


def write_universal(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, stage: int) -> None:
    """As DeepSpeed 0.19's ds_to_universal leaves a folder: of stages 1 and 2 with shapes, tied names, buffers and a step for
    each tensor, of stage 3 flat."""
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    owners = {id(parameter): name for name, parameter in model.named_parameters()}
    shared = {
        name: owners[id(parameter)]
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if owners[id(parameter)] != name
    }
    step = 0
    for name, parameter in model.named_parameters():
        states = optimizer.state[parameter]
        step = int(states["step"])
        values = {"fp32": parameter.detach(), "exp_avg": states["exp_avg"], "exp_avg_sq": states["exp_avg_sq"]}
        (folder / "zero" / name).mkdir(parents=True)
        for state, value in values.items():
            flat = {"cat_dim": 0, "param": value.clone()} if stage < 3 else value.reshape(-1).clone()
            torch.save(flat, folder / "zero" / name / f"{state}.pt")
        if stage < 3:
            torch.save(torch.tensor(float(step)), folder / "zero" / name / "step.pt")
    buffers = [name for name, _ in model.named_buffers()] + ["rope.inverse"]
    if stage < 3:
        for name in [*shared, "rope.inverse"]:
            (folder / "zero" / name).mkdir(parents=True)
            torch.save({"param": torch.ones(2)}, folder / "zero" / name / "fp32.pt")
    state = {
        "module": dict(model.state_dict()) if stage < 3 else {},
        "buffer_names": buffers,
        "param_shapes": [shapes],
        "frozen_param_shapes": None,
        "shared_params": shared,
        "global_steps": step + 2,
        "skipped_steps": 2,
        "ds_version": "0.19.8",
    }
    torch.save(state, folder / ("mp_rank_00_model_states.pt" if stage < 3 else "zero_pp_rank_0_mp_rank_00_model_states.pt"))


@pytest.mark.parametrize("stage", [1, 3])
def test_training_goes_on_from_it(tmp_path: Path, stage: int) -> None:
    model = models.gpt2()
    theirs = torch.optim.AdamW(model.parameters(), **OPTIONS)
    train(model, theirs, range(3))
    write_universal(tmp_path / "universal", model, theirs, stage)
    name = import_universal(tmp_path / "universal", tmp_path / "run")
    assert name == "save-000001-step-000000003"

    ours = models.gpt2()
    optimizer = shardplan.ZeroAdamW(ours, stage=2, **OPTIONS)
    assert optimizer.load(tmp_path / "run") == shardplan.Loaded(name, b"", ())
    state = optimizer.state_dict()["state"]
    for index, (parameter_name, parameter) in enumerate(model.named_parameters()):
        assert state[index]["step"].item() == 3.0
        assert torch.equal(state[index]["master"], parameter.detach()), parameter_name
        for kind in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[index][kind], theirs.state[parameter][kind]), f"{parameter_name} {kind}"
    # Loaded through torch's own format it is the same, and goes on with the same bits.
    other = models.gpt2()
    with torch.no_grad():
        for to, parameter in zip(other.parameters(), model.parameters()):
            to.copy_(parameter)
    through_torch = shardplan.ZeroAdamW(other, stage=2, **OPTIONS)
    through_torch.load_state_dict(theirs.state_dict())
    train(ours, optimizer, range(3, 6))
    train(other, through_torch, range(3, 6))
    assert models.digest(optimizer.full_parameters()) == models.digest(through_torch.full_parameters())


def test_a_tensor_without_a_gradient_has_no_moments(tmp_path: Path) -> None:
    model = models.llama()
    theirs = torch.optim.AdamW(model.parameters(), **OPTIONS)
    train(model, theirs, range(1))
    write_universal(tmp_path / "universal", model, theirs, 2)
    for state in ("exp_avg", "exp_avg_sq", "step"):
        (tmp_path / "universal" / "zero" / "model.norm.weight" / f"{state}.pt").unlink()
    import_universal(tmp_path / "universal", tmp_path / "run")
    optimizer = shardplan.ZeroAdamW(models.llama(), **OPTIONS)
    optimizer.load(tmp_path / "run")
    states = dict(zip([name for name, _ in model.named_parameters()], optimizer.state_dict()["state"].values()))
    assert torch.count_nonzero(states["model.norm.weight"]["exp_avg"]) == 0
    assert torch.equal(states["model.norm.weight"]["master"], model.model.norm.weight)
    assert torch.count_nonzero(states["model.embed_tokens.weight"]["exp_avg"]) > 0


def test_a_frozen_tensor_keeps_its_dtype(tmp_path: Path) -> None:
    """Of stage 1: it is in the module and in no list, and widened to fp32."""
    model = models.llama()
    model.model.norm.requires_grad_(False)
    theirs = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **OPTIONS)
    train(model, theirs, range(1))
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.linspace(0.5, 1.5, 64).bfloat16())
    model.model.norm.requires_grad_(True)
    theirs.state[model.model.norm.weight] = {
        "step": torch.tensor(1.0), **{kind: torch.zeros(64) for kind in ("exp_avg", "exp_avg_sq")}
    }
    folder = tmp_path / "universal"
    write_universal(folder, model, theirs, 1)
    for state in ("exp_avg", "exp_avg_sq", "step"):
        (folder / "zero" / "model.norm.weight" / f"{state}.pt").unlink()
    saved = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=True)
    del saved["param_shapes"][0]["model.norm.weight"]
    saved["module"]["model.norm.weight"] = saved["module"]["model.norm.weight"].bfloat16()
    torch.save(saved, folder / "mp_rank_00_model_states.pt")
    import_universal(folder, tmp_path / "run")

    ours = models.llama().to(torch.bfloat16)
    ours.model.norm.requires_grad_(False)
    optimizer = shardplan.ZeroAdamW(ours, **OPTIONS)
    optimizer.load(tmp_path / "run")
    full = optimizer.full_parameters()
    for name, parameter in model.named_parameters():
        assert torch.equal(full[name], parameter.detach()), name


def test_what_is_no_universal_checkpoint_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(shardplan.ConfigError, match="is no universal checkpoint"):
        import_universal(tmp_path, tmp_path / "out")
    model = models.llama()
    theirs = torch.optim.AdamW(model.parameters(), **OPTIONS)
    train(model, theirs, range(1))
    folder = tmp_path / "universal"
    write_universal(folder, model, theirs, 1)
    torch.save({"param": torch.ones(3)}, folder / "zero" / "model.norm.weight" / "exp_avg.pt")
    with pytest.raises(shardplan.ConfigError, match="exp_avg.pt: has 3 elements"):
        import_universal(folder, tmp_path / "out")
    torch.save(torch.tensor(7.0), folder / "zero" / "model.norm.weight" / "step.pt")
    with pytest.raises(shardplan.ConfigError, match=r"different steps: \[1, 7\]"):
        import_universal(folder, tmp_path / "out")
    (folder / "zero" / "model.norm.weight" / "fp32.pt").write_bytes(b"no archive")
    assert main([str(folder), str(tmp_path / "out")]) == 3
    assert "fp32.pt: cannot be read" in capsys.readouterr().err
    assert not (tmp_path / "out" / "latest").exists()

    class Arbitrary:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "executed"),)

    torch.save(Arbitrary(), folder / "zero" / "model.norm.weight" / "fp32.pt")
    with pytest.raises(shardplan.ConfigError, match="cannot be read"):
        import_universal(folder, tmp_path / "out")
    assert not (tmp_path / "executed").exists()


@pytest.mark.skipif("SHARDPLAN_CHECKPOINT" not in os.environ, reason="SHARDPLAN_CHECKPOINT is not set")
def test_the_tool_reads_what_was_imported(tmp_path: Path) -> None:
    model = models.gpt2()
    theirs = torch.optim.AdamW(model.parameters(), **OPTIONS)
    train(model, theirs, range(1))
    write_universal(tmp_path / "universal", model, theirs, 1)
    assert main([str(tmp_path / "universal"), str(tmp_path / "run")]) == 0
    for words in (["verify", "run"], ["consolidate", "run", "whole"]):
        paths = [str(tmp_path / word) for word in words[1:]]
        subprocess.run([os.environ["SHARDPLAN_CHECKPOINT"], words[0], *paths], check=True)
    assert (tmp_path / "whole" / "model.safetensors").exists()
