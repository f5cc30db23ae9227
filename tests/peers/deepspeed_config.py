"""DeepSpeed's own DeepSpeedConfig over files that memcalc exports: it accepts each, and its values are memcalc's.

    python3 tests/peers/deepspeed_config.py build/release/bin/memcalc [--every N]

Needs deepspeed (0.19.x) and torch, no GPU. Each case of the grid is exported, parsed by DeepSpeedConfig for its number of
ranks, and compared: batch sizes, precision, every member of zero_optimization that memcalc knows. Then the file is read
back by memcalc: the set-up and every byte of the report must be those of the case. Prints how many cases there were.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile

os.environ.setdefault("DS_ACCELERATOR", "cpu")
import deepspeed.comm  # noqa: E402
from deepspeed.runtime.config import DeepSpeedConfig, DtypeEnum  # noqa: E402
from deepspeed.utils import logger  # noqa: E402

logger.setLevel("ERROR")
deepspeed.comm.get_rank = lambda group=None: 0  # no process group: DeepSpeedConfig would take the world for 1

MODEL = "pythia-70m"


class Ranks:
    """The part of an mpu that DeepSpeedConfig asks: how many ranks have batches of their own."""

    def __init__(self, data):
        self.data = data

    def get_data_parallel_world_size(self):
        return self.data


def cases():
    """Flags of each case, as one list."""
    worlds = [["--gpus", "1"], ["--gpus", "8"], ["--gpus", "16", "--cp", "2"], ["--gpus", "16", "--tp", "2"]]
    precisions = [["--precision", name] for name in ("fp32", "fp16-mixed", "bf16-mixed", "bf16-mixed-fp32grad",
                                                     "amp-bf16", "amp-fp16", "bf16", "bf16-fp32state")]
    precisions += [["--precision", "fp16-mixed", "--grad-accum-dtype", "fp32"],
                   ["--precision", "bf16-mixed", "--wire-dtype", "fp32"]]
    batches = [[], ["--micro-batch", "4", "--grad-accum", "3"]]
    offloads = {0: [[]],
                1: [[], ["--offload", "optimizer=cpu"]],
                2: [[], ["--offload", "optimizer=cpu"]],
                3: [[], ["--offload", "optimizer=cpu"], ["--offload", "optimizer=cpu,parameters=cpu"],
                    ["--offload", "optimizer=nvme:/nvme,parameters=file:/nvme"], ["--hpz", "2"]]}
    optimizers = [["--optimizer", name] for name in ("adamw", "adam", "lion", "sgd", "sgd-momentum")]
    for stage, offload_choices in offloads.items():
        for choice in itertools.product(worlds, precisions, batches, offload_choices, optimizers):
            yield ["--zero", str(stage)] + [word for words in choice for word in words]


def memcalc(program, *words):
    return subprocess.run([program, "plan", MODEL, *words], capture_output=True, text=True)


def expected_dtypes(setup):
    param = setup["param_dtype"]
    return {"fp16": param == "fp16", "bf16": param == "bf16",
            "grad_accum": setup["grad_accum_dtype"] if setup["grad_accum_dtype"] != param else None,
            "masters": param != "fp32" and setup["master_dtype"] in (None, param),
            "moments": param == "bf16" and setup["moment_dtype"] == "bf16"}


def compare(config, written, setup):
    """Pairs of DeepSpeed's value and memcalc's, by name."""
    zero, dtypes = config.zero_config, expected_dtypes(setup)
    masters = (config.float16_config.fp16_master_weights_and_grads
               or config.bfloat16_config.bf16_master_weights_and_grads)
    micro, accumulation = setup["micro_batch"], setup["grad_accum"]
    pairs = {
        "train_batch_size": (config.train_batch_size, micro * accumulation * setup["data_parallel"]),
        "micro": (config.train_micro_batch_size_per_gpu, micro),
        "accumulation": (config.gradient_accumulation_steps, accumulation),
        "stage": (int(config.zero_optimization_stage), setup["zero_stage"]),
        "fp16": (config.float16_config.enabled, dtypes["fp16"]),
        "bf16": (config.bfloat16_config.enabled, dtypes["bf16"]),
        "autocast": (config.torch_autocast_enabled, setup["compute_dtype"] != setup["param_dtype"]),
        "grad_accum_dtype": (config.grad_accum_dtype, dtypes["grad_accum"]),
        "masters": (masters, dtypes["masters"]),
        "moments": (config.bfloat16_config.bf16_optimizer_states, dtypes["moments"]),
        "hpz": (zero.zero_hpz_partition_size, setup["hpz"]),
    }
    if config.torch_autocast_enabled:
        pairs["autocast dtype"] = (config.torch_autocast_dtype, DtypeEnum(setup["compute_dtype"]).value)
    offload = dict(part.split("=") for part in (setup["offload"] or "").split(",") if part)
    for name, member in (("optimizer", zero.offload_optimizer), ("parameters", zero.offload_param)):
        device = offload.get(name, "none").split(":")[0].replace("file", "nvme")
        pairs["offload " + name] = ((member.device if member else "none"), device)
    # Nothing that is written is read as another thing, or by another name.
    for key, value in written["zero_optimization"].items():
        if isinstance(value, dict):
            for inner, inner_value in value.items():
                pairs[f"{key}.{inner}"] = (getattr(getattr(zero, key), inner), inner_value)
        else:
            pairs[key] = (getattr(zero, key.removeprefix("stage3_")), value)
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1] and str(pair[0]) != str(pair[1])}


def run(program, words, folder):
    """None where memcalc refuses the set-up for DeepSpeed, else a list of what is wrong."""
    exported = memcalc(program, *words, "--export", "deepspeed")
    planned = memcalc(program, *words, "--engine", "deepspeed", "--json")
    if exported.returncode != 0:
        return None if exported.returncode == 2 else [exported.stderr]
    if planned.returncode != 0:
        return [planned.stderr]
    plan, written = json.loads(planned.stdout), json.loads(exported.stdout)
    setup = plan["setup"]
    try:
        config = DeepSpeedConfig(json.loads(exported.stdout), mpu=Ranks(setup["data_parallel"]))
    except Exception as error:  # whatever DeepSpeed says is a finding
        return [f"refused: {error}"]
    wrong = [f"{name}: DeepSpeed {theirs}, memcalc {ours}"
             for name, (theirs, ours) in compare(config, written, setup).items()]
    path = os.path.join(folder, "ds_config.json")
    with open(path, "w") as file:
        file.write(exported.stdout)
    launcher = ["--gpus", str(setup["world_size"])]
    again = memcalc(program, *launcher, "--ds-config", path, "--json")
    if again.returncode != 0:
        return wrong + [again.stderr]
    back = json.loads(again.stdout)
    same = ("world_size", "data_parallel", "tensor_parallel", "context_parallel", "zero_stage", "engine", "micro_batch",
            "grad_accum", "compute_dtype", "param_dtype", "grad_dtype", "grad_accum_dtype", "moment_dtype", "wire_dtype",
            "optimizer", "hpz", "mics")
    wrong += [f"read back, {key}: {back['setup'][key]}, not {setup[key]}"
              for key in same if back["setup"][key] != setup[key]]
    wrong += [f"read back, {key} differs" for key in ("ranks", "communication") if back[key] != plan[key]]
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("memcalc")
    parser.add_argument("--every", type=int, default=1, help="only each N-th case")
    arguments = parser.parse_args()
    accepted, refused, failed = 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        for words in itertools.islice(cases(), 0, None, arguments.every):
            wrong = run(arguments.memcalc, words, folder)
            if wrong is None:
                refused += 1
            elif wrong:
                failed += 1
                print(" ".join(words), *wrong, sep="\n  ")
            else:
                accepted += 1
    print(f"{accepted} exported files accepted and equal, {failed} not; {refused} set-ups that memcalc does not export")
    return 1 if failed or not accepted else 0


if __name__ == "__main__":
    sys.exit(main())
