"""memcalc reads a ds_config.json as DeepSpeed does: random files, right and wrong, given to both.

    python3 tests/peers/deepspeed_reader.py build/release/bin/memcalc [--files N] [--seed S]

Needs deepspeed (0.19.x) and torch, no GPU. Both accept a file or both refuse it; where they accept it, every member of
zero_optimization, the precision and the batch that memcalc exports again is DeepSpeed's. Left out is what memcalc refuses
on purpose and DeepSpeed does later or never: nvme without a path, unknown keys that DeepSpeed ignores, set-ups that
only the engine can judge (planned for stage 3, so that offload is never wrong).
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile

os.environ.setdefault("DS_ACCELERATOR", "cpu")
import deepspeed.comm  # noqa: E402
from deepspeed.runtime.config import DeepSpeedConfig  # noqa: E402
from deepspeed.utils import logger  # noqa: E402

logger.setLevel("CRITICAL")
deepspeed.comm.get_rank = lambda group=None: 0

RANKS = 4
# Mostly right: a wrong value in every file would leave nothing to compare.
COUNTS = 8 * [0, 1, 7, 5e8, 1000.0, "auto", "12345"] + [2.5, -1, None, "many", [1]]
FLAGS = 8 * [True, False, "auto", "true", "no", 1, 0] + [2, "maybe", None, {}]
ZERO = {
    "reduce_bucket_size": COUNTS, "allgather_bucket_size": COUNTS, "sub_group_size": [1, 5e8, "auto", -5, "x"],
    "stage3_prefetch_bucket_size": COUNTS, "prefetch_bucket_size": COUNTS, "stage3_param_persistence_threshold": COUNTS,
    "param_persistence_threshold": COUNTS, "model_persistence_threshold": COUNTS, "stage3_max_live_parameters": COUNTS,
    "max_live_parameters": COUNTS, "stage3_max_reuse_distance": COUNTS, "max_reuse_distance": COUNTS,
    "contiguous_gradients": FLAGS, "reduce_scatter": FLAGS, "use_multi_rank_bucket_allreduce": FLAGS,
    "overlap_comm": FLAGS, "round_robin_gradients": FLAGS, "memory_efficient_linear": FLAGS, "stage3_gather_16bit_weights_on_model_save": FLAGS, "allgather_sequential": FLAGS,
    "zero_quantized_weights": FLAGS, "zero_hpz_partition_size": [1, 2, 4, "auto", -1], "cpu_offload": FLAGS,
    "cpu_offload_param": FLAGS, "zeropp_loco_param": [None, 3, "auto"],  # an object is refused from 0.19.8 on
    "offload_optimizer": [None, {}, {"device": "cpu"}, {"device": "none"}, {"device": "disk"}, {"device": "auto"},
                          {"device": "cpu", "ratio": 0.5, "pin_memory": False}, {"device": "cpu", "ratio": 1.5},
                          {"device": "cpu", "buffer_count": 7, "pipeline_read": True}, {"devise": "cpu"}, True],
    "offload_param": [None, {"device": "cpu", "buffer_size": 2e8}, {"device": "cpu", "max_in_cpu": "auto"},
                      {"device": "cpu", "pin_memory": "false"}, {"device": "nvme", "nvme_path": "/nvme"}, {"pin": True}],
    "zero_hpz": [1], "stage_3_prefetch_bucket_size": [1], "ignore_unused_parameters": FLAGS,
}
TOP = {
    "fp16": [{"enabled": True}, {"enabled": False}, {}, {"enable": True}, {"enabled": True, "loss_scale": 0}],
    "bf16": [{"enabled": True}, {"enabled": 1, "immediate_grad_update": True}, {"enabled": "maybe"}, {"typo": 1},
             {"enabled": True, "bf16_master_weights_and_grads": True, "bf16_optimizer_states": True},
             {"enabled": True, "bf16_optimizer_states": True}],
    "data_types": [{"grad_accum_dtype": "fp32"}, {"grad_accum_dtype": None}, {}],
    "train_batch_size": [4, 8, 24, 30, None], "train_micro_batch_size_per_gpu": [1, 2, 3, None],
    "gradient_accumulation_steps": [1, 2, None], "gradient_clipping": [1.0, 0], "steps_per_print": [100],
    "my_own_key": [1],
}


def choose(pool, least, most, rng):
    keys = rng.sample(sorted(pool), rng.randint(least, most))
    return {key: rng.choice(pool[key]) for key in keys}


def random_file(rng):
    config = choose(TOP, 1, 4, rng)
    config["zero_optimization"] = {"stage": 3, **choose(ZERO, 0, 4, rng)}
    if config.get("train_batch_size") is None and config.get("train_micro_batch_size_per_gpu") is None:
        config["train_micro_batch_size_per_gpu"] = 1  # DeepSpeed wants one of them, memcalc has --micro-batch
    return config


class Ranks:
    @staticmethod
    def get_data_parallel_world_size():
        return RANKS


def theirs(text):
    try:
        return DeepSpeedConfig(json.loads(text), mpu=Ranks()), ""
    except Exception as error:  # of many kinds
        return None, str(error)


def ours(program, path):
    done = subprocess.run([program, "plan", "pythia-70m", "--gpus", str(RANKS), "--ds-config", path, "--export",
                           "deepspeed"], capture_output=True, text=True)
    return (json.loads(done.stdout) if done.returncode == 0 else None), done.stderr


def differences(config, written):
    zero = config.zero_config
    pairs = {"micro": (config.train_micro_batch_size_per_gpu, written["train_micro_batch_size_per_gpu"]),
             "accumulation": (config.gradient_accumulation_steps, written["gradient_accumulation_steps"]),
             "global": (config.train_batch_size, written["train_batch_size"]),
             "fp16": (config.float16_config.enabled, "fp16" in written),
             "bf16": (config.bfloat16_config.enabled, "bf16" in written)}
    for key, value in written["zero_optimization"].items():
        member = getattr(zero, key.removeprefix("stage3_"))
        if isinstance(value, dict):
            pairs.update({f"{key}.{inner}": (getattr(member, inner) if hasattr(member, inner) else member[inner], ours)
                          for inner, ours in value.items()})
        else:
            pairs[key] = (member, value)
    for key in ("offload_optimizer", "offload_param"):
        member = getattr(zero, key)
        there = member is not None and member.device != "none"
        pairs[key] = (there, written["zero_optimization"].get(key, {"device": "none"})["device"] != "none")
    pairs["sub_group_size"] = (max(1, zero.sub_group_size), written["zero_optimization"]["sub_group_size"])
    return [f"{key}: DeepSpeed {pair[0]}, memcalc {pair[1]}" for key, pair in pairs.items()
            if pair[0] != pair[1] and str(pair[0]) != str(pair[1])]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("memcalc")
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    accepted, refused, failed = 0, 0, 0
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "ds_config.json")
        for _ in range(arguments.files):
            text = json.dumps(random_file(rng))
            with open(path, "w") as file:
                file.write(text)
            config, their_error = theirs(text)
            written, our_error = ours(arguments.memcalc, path)
            if (config is None) != (written is None):
                wrong = [f"DeepSpeed: {their_error or 'accepted'}", f"memcalc: {our_error or 'accepted'}"]
            else:
                wrong = differences(config, written) if config is not None else []
            accepted += config is not None and not wrong
            refused += config is None and not wrong
            failed += bool(wrong)
            if wrong:
                print(text, *wrong, sep="\n  ")
    print(f"{accepted} files read alike, {refused} refused by both, {failed} not alike")
    return 1 if failed or not accepted or not refused else 0


if __name__ == "__main__":
    sys.exit(main())
