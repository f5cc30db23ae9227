#!/usr/bin/env python3
"""Writes fsdp2.json: how torch's fully_shard shards ten models, as rank 0 and as the last rank.

    pip install torch transformers==4.57.6; python3 make_fsdp2_goldens.py       (in this folder; no GPU, no weights)

Models are presets of planner/data/models.json on meta tensors; the process group is torch's FakeProcessGroup. fully_shard is
applied to each module that repeats and to the root. Per case: the sum of FSDPParam's padded sharded sizes ("padded"), of
rank 0's and of the last rank's own elements ("first", "last"), and the all-gather output of each module's group ("units").
"""
import json
import pathlib
import sys

import torch
import torch.distributed
import transformers
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.testing._internal.distributed.fake_pg import FakeStore

MODELS = ["pythia-70m", "gpt2", "bert-base-uncased", "t5-small", "opt-125m", "smollm-360m", "qwen2-0.5b", "bloom-560m",
          "gemma-3-1b", "tinyllama-1.1b"]
WORLDS = [1, 2, 3, 8, 64]
FOLDER = pathlib.Path(__file__).resolve().parent


def build(config):
    model_class = getattr(transformers, config["architectures"][0])
    config_class = transformers.models.auto.configuration_auto.CONFIG_MAPPING[config["model_type"]]
    with torch.device("meta"), transformers.modeling_utils.no_init_weights():
        model = model_class(config_class.from_dict(config))
    model.tie_weights()
    return model


def blocks(model):
    """The members of lists of modules: what repeats. Lists inside of them are parts of a block."""
    outermost = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and not any(name.startswith(o + ".") for o in outermost):
            outermost.append(name)
            yield from module


def sharded(config, world, rank):
    torch.distributed.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    mesh = torch.distributed.init_device_mesh("cpu", (world,))
    model = build(config)
    for block in blocks(model):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    padded = local = 0
    units = []
    for module in model.modules():
        if not isinstance(module, FSDPModule):
            continue
        unit = 0
        group = module._get_fsdp_state()._fsdp_param_group
        for parameter in group.fsdp_params if group else []:
            padded += parameter.padded_sharded_param_size.numel()
            local += parameter.sharded_param._local_tensor.numel()
            unit += parameter.padded_sharded_param_size.numel() * world
        units.append(unit)
    torch.distributed.destroy_process_group()
    return padded, local, units


def main():
    presets = json.loads((FOLDER / "../../../planner/data/models.json").read_text())["models"]
    configs = {preset["name"]: preset["config"] for preset in presets}
    cases = []
    for name in MODELS:
        for world in WORLDS:
            padded, first, units = sharded(configs[name], world, 0)
            _, last, _ = sharded(configs[name], world, world - 1)
            case = {"model": name, "world": world, "padded": padded, "first": first, "last": last,
                    "root": units[0], "largest_block": max(units[1:])}
            cases.append(case)
            print(case)
    lines = ",\n ".join(json.dumps(case) for case in cases)
    header = json.dumps({"torch": torch.__version__, "transformers": transformers.__version__})
    (FOLDER / "fsdp2.json").write_text(header[:-1] + ', "cases": [\n ' + lines + "\n]}\n")


main()
