"""plan() and simulate() say what memcalc says: SHARDPLAN_MEMCALC names the program to compare with."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any, Dict, List

import pytest

import shardplan

MEMCALC = os.environ.get("SHARDPLAN_MEMCALC")
needs_memcalc = pytest.mark.skipif(not MEMCALC, reason="SHARDPLAN_MEMCALC is not set")


def memcalc(*words: str) -> Dict[str, Any]:
    return json.loads(subprocess.run([MEMCALC, *words, "--json"], check=True, capture_output=True, text=True).stdout)


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(dataclasses.asdict(value)))


def without(members: Dict[str, Any], *names: str) -> Dict[str, Any]:
    return {name: value for name, value in members.items() if name not in names}


def test_the_textbook_example() -> None:
    device = shardplan.plan(params="7e9", engine="paper", precision="fp16-mixed").worst.device
    assert (device.parameters, device.gradients, device.optimizer_states) == (14 * 10**9, 14 * 10**9, 84 * 10**9)


@needs_memcalc
def test_fit_says_what_memcalc_says() -> None:
    words = ["tinyllama-1.1b", "--gpus", "2", "--gpu", "24GiB", "--seq", "1024", "--zero", "2", "--ask", "micro-batch"]
    expected = without(memcalc("fit", *words), "schema", "seconds")
    fit = shardplan.fit("tinyllama-1.1b", gpus=2, gpu="24GiB", seq=1024, zero=2, ask="micro-batch")
    assert without(as_json(fit), "seconds") == expected
    assert fit.answer and fit.plans[0].worst.device.total == fit.plans[0].needed_bytes
    assert shardplan.fit("tinyllama-1.1b", gpu="2GiB", seq=1024).answer is None


def test_results_are_frozen_and_typed() -> None:
    plan = shardplan.plan("gpt2", gpus=4, zero=1)
    assert isinstance(plan.ranks, tuple) and plan.ranks[0] == plan.worst
    assert plan.worst.device.peak_allocated is None or plan.worst.device.peak_allocated > 0
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.fits = True  # type: ignore[misc]


def test_planning_needs_no_torch() -> None:
    code = "import sys, shardplan; shardplan.plan('gpt2'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    "keywords, source",
    [
        (dict(zero=9), "--zero"),
        (dict(gpus="many"), "--gpus"),
        (dict(gpus=0), "--gpus"),
        (dict(gpus=-1), "--gpus"),
        (dict(cadence="never"), "--cadence"),
        (dict(wire_dtype="q"), "--wire-dtype"),
        (dict(gpu="h1000"), "h1000"),
        (dict(seq=0), "--seq"),
        (dict(ema="perhaps"), "--ema"),
        (dict(tp=3, gpus=8), "--gpus"),
        (dict(quantize="int3"), "--quantize"),
        (dict(lora_targets=["c_attn"]), "--lora-targets"),
        (dict(engine="megatron", hpz=2), "--hpz"),
        (dict(params="7e9"), "model"),
    ],
)
def test_a_bad_keyword_is_named(keywords: Dict[str, Any], source: str) -> None:
    with pytest.raises(shardplan.ConfigError) as caught:
        shardplan.plan("gpt2", **keywords)
    assert isinstance(caught.value, ValueError)
    assert source in str(caught.value)
    assert caught.value.problem


def test_an_unknown_keyword_is_a_type_error() -> None:
    for function in (shardplan.explain, shardplan.simulate):
        with pytest.raises(TypeError, match="gpsu"):
            function("gpt2", gpsu=8)


def test_a_file_that_is_not_there_is_an_io_or_config_error(tmp_path: Any) -> None:
    with pytest.raises(shardplan.Error):
        shardplan.plan(tmp_path / "config.json")
    with pytest.raises(shardplan.IoError) as caught:
        shardplan.simulate("gpt2", plot=tmp_path / "no" / "such" / "folder.svg")
    assert isinstance(caught.value, OSError) and caught.value.errno > 0


def test_a_model_of_a_file(tmp_path: Any) -> None:
    tensors = [{"name": f"blocks.{i}.proj.weight", "shape": [64, 64]} for i in range(3)]
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"schema": "shardplan.tensors/1", "tensors": tensors}))
    assert shardplan.plan(path).model.parameters == 3 * 64 * 64


def test_explanations_add_up() -> None:
    explained = shardplan.explain("gpt2-xl", gpus=4, zero=1)
    assert explained.communication[-1].bytes == sum(line.bytes for line in explained.communication[:-1])
    assert all(line.formula for line in explained.device)


def test_a_simulated_step_is_as_planned(tmp_path: Any) -> None:
    simulation = shardplan.simulate("gpt2", gpus=8, zero=2, plot=tmp_path / "memory.svg")
    assert simulation.peak_bytes.max == simulation.planned_peak_bytes
    assert simulation.bytes_sent_per_rank == simulation.planned_bytes_sent_per_rank
    assert (tmp_path / "memory.svg").read_text().startswith("<svg")
    stages = shardplan.simulate("gpt2", gpus=8, compare_stages=True).stages
    assert stages is not None and [stage.zero_stage for stage in stages] == [0, 1, 2, 3]


def test_a_rank_that_fails_is_in_errors() -> None:
    simulation = shardplan.simulate("gpt2", gpus=4, fault=["kill,rank=2,operation=20"])
    assert 2 in [failure.rank for failure in simulation.errors]


def flags(command: str) -> List[str]:
    """Those that memcalc itself completes."""
    script = subprocess.run([MEMCALC, "completion"], check=True, capture_output=True, text=True).stdout
    words = next(line for line in script.splitlines() if line.strip().startswith(f"{command})"))
    return [word[2:].replace("-", "_") for word in words.split('"')[1].split()]


@needs_memcalc
def test_keywords_are_memcalcs_flags() -> None:
    of_output = {"help", "json", "verbose", "export", "against", "calibrate"}
    plan = set(shardplan.plan.__kwdefaults__)
    assert plan == set(flags("plan")) - of_output
    assert plan == set(flags("explain")) - of_output
    assert plan | set(shardplan.fit.__kwdefaults__) == set(flags("fit")) - of_output
    assert plan | set(shardplan.simulate.__kwdefaults__) == set(flags("simulate")) - of_output


CASES: List[Any] = [
    ("llama-2-7b", dict(gpus=8, zero=3, gpu="h100"), "--gpus 8 --zero 3 --gpu h100"),
    (
        "mixtral-8x7b",
        dict(gpus=64, zero=2, replicate=2, grad_accum=4, precision="fp16-mixed", optimizer="lion", ema=True),
        "--gpus 64 --zero 2 --replicate 2 --grad-accum 4 --precision fp16-mixed --optimizer lion --ema",
    ),
    (
        "gpt2",
        dict(grad_dtype="fp32", moment_dtype="bf16", freeze=["transformer.wte*", "transformer.wpe*"], recompute="full"),
        "--grad-dtype fp32 --moment-dtype bf16 --freeze transformer.wte* --freeze transformer.wpe* --recompute full",
    ),
    (
        "llama-2-7b",
        dict(seq=4096, micro_batch=2, profile="hf-sdpa", attention="flash", loss="chunked=8", recompute="full"),
        "--seq 4096 --micro-batch 2 --profile hf-sdpa --attention flash --loss chunked=8 --recompute full",
    ),
    ("gpt2", dict(ema=False, sequence_parallel=False, freeze=[]), ""),
    (
        "llama-2-7b",
        dict(
            engine="megatron", gpus=32, tp=4, pp=2, virtual_stages=2, grad_accum=2, sequence_parallel=True, offload="optimizer=cpu"
        ),
        "--engine megatron --gpus 32 --tp 4 --pp 2 --virtual-stages 2 --grad-accum 2 --sequence-parallel --offload optimizer=cpu",
    ),
    (
        "mixtral-8x7b",
        dict(engine="megatron", gpus=16, tp=2, cp=2, ep=2, etp=1, vocabulary_multiple=64),
        "--engine megatron --gpus 16 --tp 2 --cp 2 --ep 2 --etp 1 --vocabulary-multiple 64",
    ),
    (
        "llama-2-7b",
        dict(engine="deepspeed", gpus=16, zero=3, hpz=8, offload="optimizer=nvme,parameters=cpu"),
        "--engine deepspeed --gpus 16 --zero 3 --hpz 8 --offload optimizer=nvme,parameters=cpu",
    ),
    (
        "llama-2-7b",
        dict(lora_rank=16, lora_targets=["q_proj", "v_proj"], modules_to_save="lm_head", quantize="nf4"),
        "--lora-rank 16 --lora-targets q_proj,v_proj --modules-to-save lm_head --quantize nf4",
    ),
]


@needs_memcalc
@pytest.mark.parametrize("model, keywords, flags", CASES)
def test_numbers_and_members_are_memcalcs(model: str, keywords: Dict[str, Any], flags: str) -> None:
    expected = memcalc("plan", model, *flags.split())
    assert as_json(shardplan.plan(model, **keywords)) == without(expected, "schema", "against", "calibration")
    explained = memcalc("explain", model, *flags.split())
    assert as_json(shardplan.explain(model, **keywords)) == without(explained, "schema")


@needs_memcalc
def test_a_simulation_is_memcalcs() -> None:
    expected = memcalc(
        "simulate", "gpt2", "--gpus", "8", "--zero", "3", "--fault", "stall,rank=1,operation=9,seconds=1"
    )
    simulation = shardplan.simulate("gpt2", gpus=8, zero=3, fault=["stall,rank=1,operation=9,seconds=1"])
    assert without(as_json(simulation), "wall_seconds", "stages") == without(
        expected, "schema", "wall_seconds", "stages"
    )


@needs_memcalc
def test_tables_are_memcalcs() -> None:
    assert [as_json(each) for each in shardplan.models()] == memcalc("models")["models"]
    assert [as_json(each) for each in shardplan.gpus()] == memcalc("gpus")["gpus"]
