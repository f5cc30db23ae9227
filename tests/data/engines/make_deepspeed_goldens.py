#!/usr/bin/env python3
"""Writes deepspeed.json: how DeepSpeed itself pads and partitions the parameters of ten models.

    DS_BUILD_OPS=0 pip install deepspeed==0.19.6 torch transformers==4.57.6
    DS_ACCELERATOR=cpu python3 make_deepspeed_goldens.py       (in this folder; no GPU, no weights)

Models are presets of planner/data/models.json, built by transformers on meta tensors. The numbers come from DeepSpeed's
own methods, called with the world size in place of a process group:

    flat, partition      DeepSpeedZeroOptimizer.flatten_dense_tensors_aligned, get_data_parallel_partitions (stages 1, 2)
    bf16_flat            the same for BF16_Optimizer (stage 1 with fp32 gradients)
    stage3               Init._partition_param: the sum of all ds_tensor
    persistent           DeepSpeedZeRoOffload.mark_persistent_parameters at the default threshold: tensors and elements
    sub_groups           DeepSpeedZeroOptimizer_Stage3._create_fp16_sub_groups with sub_group_size = parameters / world / 7:
                         the elements of each (listed up to world 8)
"""
import json
import pathlib
import types

import torch
import transformers
import deepspeed
from deepspeed.runtime import bf16_optimizer
from deepspeed.runtime.zero import parameter_offload, partition_parameters, stage3, stage_1_and_2

MODELS = ["pythia-70m", "gpt2", "bert-base-uncased", "t5-small", "opt-125m", "smollm-360m", "qwen2-0.5b", "bloom-560m",
          "gemma-3-1b", "tinyllama-1.1b"]
WORLDS = [1, 2, 3, 8, 64]
FOLDER = pathlib.Path(__file__).resolve().parent


def build(config):
    model_class = getattr(transformers, config["architectures"][0])
    config_class = transformers.models.auto.configuration_auto.CONFIG_MAPPING[config["model_type"]]
    with torch.device("meta"), transformers.modeling_utils.no_init_weights():
        model = model_class(config_class.from_dict(config)).to(torch.bfloat16)
    model.tie_weights()
    return model


class World:
    """Stands for deepspeed.comm: rank 0 of a world of any size."""

    def __init__(self, size):
        self.size = size

    def get_world_size(self, group=None):
        return self.size

    def get_rank(self, group=None):
        return 0


def flat_groups(parameters, world):
    stage_1_and_2.dist = World(world)
    optimizer = object.__new__(stage_1_and_2.DeepSpeedZeroOptimizer)
    optimizer.flatten = stage_1_and_2._flatten_dense_tensors
    optimizer.real_dp_process_group = [None]
    alignment = 2 * world  # nccl_start_alignment_factor x world, as in its constructor
    flat = optimizer.flatten_dense_tensors_aligned(parameters, alignment)
    partitions = optimizer.get_data_parallel_partitions(flat, 0)
    assert sum(p.numel() for p in partitions) == flat.numel()

    bf16 = object.__new__(bf16_optimizer.BF16_Optimizer)
    bf16.flatten = optimizer.flatten
    bf16_flat = bf16._flatten_dense_tensors_aligned(parameters, alignment)
    return flat.numel(), max(p.numel() for p in partitions), bf16_flat.numel()


def partition(model, world):
    """Partitions every parameter as zero.Init does."""
    partition_parameters.dist = World(world)
    init = object.__new__(partition_parameters.Init)
    init.remote_device = init.local_device = "meta"
    init.pin_memory = init.quantized_nontrainable_weights = False
    init.get_partition_dp_group = lambda parameter: None
    init.get_partition_rank = lambda parameter: 0
    init._partition_rank = lambda parameter: 0
    for parameter in model.parameters():
        parameter.ds_status = partition_parameters.ZeroParamStatus.AVAILABLE
        parameter.ds_tensor = None
        parameter.ds_persist = False
        parameter.ds_active_sub_modules = set()
        parameter.ds_id = 0
        parameter.ds_numel = parameter.numel()
        parameter.ds_shape = parameter.shape
        init._partition_param(parameter)
        parameter.partition_numel = types.MethodType(lambda p, init=init: init._partition_numel(p), parameter)


def stage_3(model, world):
    partition(model, world)
    parameters = list(model.parameters())
    offload = object.__new__(parameter_offload.DeepSpeedZeRoOffload)
    offload.module = model
    persistent = offload.mark_persistent_parameters(100000, 2**63 - 1)
    optimizer = object.__new__(stage3.DeepSpeedZeroOptimizer_Stage3)
    optimizer.sub_group_size = sum(p.ds_numel for p in parameters) // world // 7
    groups = optimizer._create_fp16_sub_groups(parameters)
    return {
        "stage3": sum(p.ds_tensor.ds_numel for p in parameters),
        "persistent": [len(persistent), sum(p.ds_numel for p in persistent)],
        "sub_group_size": optimizer.sub_group_size,
        "sub_groups": [sum(p.partition_numel() for p in group) for group in groups],
    }


def main():
    presets = json.loads((FOLDER / "../../../planner/data/models.json").read_text())["models"]
    configs = {preset["name"]: preset["config"] for preset in presets}
    cases = []
    for name in MODELS:
        for world in WORLDS:
            model = build(configs[name])
            flat, part, bf16 = flat_groups(list(model.parameters()), world)
            case = {"model": name, "world": world, "flat": flat, "partition": part, "bf16_flat": bf16, **stage_3(model, world)}
            if world > 8:
                del case["sub_groups"]
            cases.append(case)
            print(name, world, flat, case["stage3"])
    lines = ",\n ".join(json.dumps(case) for case in cases)
    header = json.dumps({"deepspeed": deepspeed.__version__, "transformers": transformers.__version__})
    (FOLDER / "deepspeed.json").write_text(header[:-1] + ', "cases": [\n ' + lines + "\n]}\n")


main()
