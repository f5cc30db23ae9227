"""Gives what `memcalc --export` writes to the programs that read it.

    python3 check_exports.py MEMCALC [--megatron MEGATRON_LM]

accelerate's own loader and launcher (the package accelerate must be installed) read each exported YAML; with a checkout
of Megatron-LM, its argument parser and its checks read each exported set of arguments, on a CPU. What they make of the
files is compared with the set-up that was asked for. Prints one line for each kind of file. The tests do not need it.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile

import yaml


def memcalc(program, *arguments):
    done = subprocess.run([program, "plan", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, arguments))}: exit status {done.returncode}: {done.stderr}")
    return done.stdout


def require(what, found, expected):
    if found != expected:
        raise SystemExit(f"{what}: found {found!r}, expected {expected!r}")


def launched(path):
    """The environment in which accelerate would launch the file."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    config = load_config_from_file(path)
    arguments = launch_command_parser().parse_args(["--config_file", path, "train.py"])
    arguments, defaults, _ = _validate_launch_command(arguments)
    # As launch_command sets it (accelerate/commands/launch.py).
    arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)
    if arguments.use_deepspeed:
        _, environment = prepare_deepspeed_cmd_env(arguments)
    else:
        environment = prepare_multi_gpu_env(arguments)
    return config, environment


def fsdp_plugin(environment):
    from accelerate import FullyShardedDataParallelPlugin

    before = dict(os.environ)
    os.environ.update({key: value for key, value in environment.items() if key.startswith("FSDP_")})
    try:
        return FullyShardedDataParallelPlugin()
    finally:
        os.environ.clear()
        os.environ.update(before)


def check_fsdp(program, folder):
    files = 0
    for stage, offload, precision, replicate in itertools.product(
            (2, 3), (False, True), ("fp32", "fp16-mixed", "bf16-mixed"), (1, 2)):
        text = memcalc(program, "gpt2", "--gpus", 16, "--zero", stage, "--precision", precision, "--replicate", replicate,
                       *(("--offload", "parameters=cpu") if offload else ()), "--export", "fsdp")
        path = os.path.join(folder, "fsdp.yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        config, environment = launched(path)
        require("num_processes", config.num_processes, 16)
        require("num_machines", config.num_machines, 2)
        plugin = fsdp_plugin(environment)
        require("fsdp_version", plugin.fsdp_version, 2)
        require("reshard_after_forward", plugin.reshard_after_forward, stage == 3)
        require("cpu_offload", bool(plugin.cpu_offload) and "CPUOffload" in type(plugin.cpu_offload).__name__, offload)
        require("mixed precision", environment["ACCELERATE_MIXED_PRECISION"], {"fp32": "no"}.get(precision, precision[:4]))
        if replicate > 1:
            require("replicas", environment["PARALLELISM_CONFIG_DP_REPLICATE_SIZE"], str(replicate))
            require("shards", environment["PARALLELISM_CONFIG_DP_SHARD_SIZE"], str(16 // replicate))
        files += 1
    print(f"accelerate, FSDP: {files} files")


def check_deepspeed(program, folder):
    files = 0
    for stage, offload, steps in itertools.product((0, 1, 2, 3), (False, True), (1, 4)):
        if offload and stage == 0:
            continue
        text = memcalc(program, "gpt2", "--engine", "deepspeed", "--gpus", 8, "--zero", stage, "--grad-accum", steps,
                       *(("--offload", "optimizer=cpu") if offload else ()), "--export", "accelerate")
        path = os.path.join(folder, "deepspeed.yaml")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        config, environment = launched(path)
        require("num_processes", config.num_processes, 8)
        require("stage", environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"], str(stage))
        require("offload", environment["ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE"], "cpu" if offload else "none")
        require("steps", environment["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"], str(steps))
        files += 1
    print(f"accelerate, DeepSpeed: {files} files")


# Its checks ask which GPU there is: one of Hopper's generation.
PARSE = """
import json, sys, types, typing
import torch
torch.cuda.get_device_properties = lambda device: types.SimpleNamespace(major=9, minor=0)
typing.override = getattr(typing, "override", lambda function: function)
from megatron.training import arguments
import contextlib, io
with contextlib.redirect_stdout(io.StringIO()):
    parsed = arguments.parse_args()
    arguments.validate_args(parsed)
    from megatron.core.tokenizers.utils.build_tokenizer import vocab_size_with_padding
    padded = vocab_size_with_padding(parsed.vocab_size, parsed)
names = json.loads(sys.stdin.read())
result = {name: getattr(parsed, name) for name in names}
result["padded"] = padded
print(json.dumps(result, default=str))
"""


def parsed_by_megatron(checkout, text, names):
    file = yaml.safe_load(text)
    line = []
    for name, value in file["MODEL_ARGS"].items():
        if value is True:
            line.append(name)
        elif value is not False:
            line += [name, *(str(value).strip("[]").split(" ") if name == "--spec" else [str(value)])]
    environment = {**os.environ, "PYTHONPATH": checkout, "WORLD_SIZE": str(file["world_size"]),
                   "CUDA_DEVICE_MAX_CONNECTIONS": "8" if "--use-megatron-fsdp" in line else "1"}
    done = subprocess.run([sys.executable, "-c", PARSE, *line], input=json.dumps(names), capture_output=True, text=True,
                          env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(line)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def check_megatron(program, checkout):
    files = 0
    runs = [
        ("llama-2-7b", ["--gpus", 16, "--tp", 2, "--pp", 2, "--zero", 1, "--sequence-parallel"], 128 * 2),
        ("llama-3-8b", ["--gpus", 16, "--tp", 4, "--pp", 1, "--zero", 0], 128 * 4),
        ("gpt2", ["--gpus", 8, "--zero", 1], 128),
        ("qwen2.5-7b", ["--gpus", 8, "--tp", 2, "--zero", 1, "--recompute", "full"], 128 * 2),
        ("mixtral-8x7b", ["--gpus", 16, "--ep", 4, "--zero", 1], 128),
        ("llama-2-7b", ["--gpus", 8, "--zero", 3], 128),
    ]
    for model, flags, multiple in runs:
        text = memcalc(program, model, *flags, "--precision", "bf16-mixed-fp32grad", "--micro-batch", 2, "--grad-accum", 4,
                       "--seq", 1024, "--export", "megatron")
        names = ["num_layers", "hidden_size", "ffn_hidden_size", "num_attention_heads", "tensor_model_parallel_size",
                 "data_parallel_size", "global_batch_size", "params_dtype", "accumulate_allreduce_grads_in_fp32",
                 "use_distributed_optimizer", "vocab_size"]
        parsed = parsed_by_megatron(checkout, text, names)
        written = yaml.safe_load(text)["MODEL_ARGS"]
        for name in names:
            key = "--" + name.replace("_", "-")
            if key in written:
                require(f"{model}: {name}", parsed[name], written[key])
        require(f"{model}: batch", parsed["global_batch_size"], 2 * 4 * parsed["data_parallel_size"])
        require(f"{model}: padding", parsed["padded"] % multiple, 0)
        require(f"{model}: gradients", parsed["accumulate_allreduce_grads_in_fp32"], True)
        files += 1
    print(f"Megatron-LM: {files} sets of arguments")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("memcalc")
    parser.add_argument("--megatron", metavar="MEGATRON_LM")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        check_fsdp(options.memcalc, folder)
        check_deepspeed(options.memcalc, folder)
    if options.megatron:
        check_megatron(options.memcalc, options.megatron)


if __name__ == "__main__":
    main()
