"""Communication and optimizer time of one step, side by side with torch's ZeroRedundancyOptimizer.

    torchrun --nproc-per-node 2 tests/python/bench_zero.py [--hidden 512] [--layers 12] [--rounds 7]

Every rank holds the same model and its own gradients; what is timed is what it takes until all ranks have the updated
parameters:

  torch     all_reduce of the gradients, which already lie in DDP's buckets of 25 MB, and ZeroRedundancyOptimizer.step()
            with fused AdamW, over gloo
  shardplan ZeroAdamW.step() at stage 1, over shared memory and over the same gloo group

The contenders take turns, so that a noisy machine is noisy to all. Reported is the median of a rank's rounds, of the
slower rank.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Callable, Dict, List

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from transformers import LlamaConfig, LlamaForCausalLM

import shardplan

BUCKET_BYTES = 25 * 2**20


def make_model(hidden: int, layers: int) -> torch.nn.Module:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=8,
    )
    return LlamaForCausalLM(config)


def give_gradients(model: torch.nn.Module) -> None:
    torch.manual_seed(1 + dist.get_rank())
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


def torch_step(hidden: int, layers: int) -> Callable[[], None]:
    model = make_model(hidden, layers)
    optimizer = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, lr=1e-5, fused=True)
    give_gradients(model)
    buckets: List[List[torch.nn.Parameter]] = [[]]
    for parameter in reversed(list(model.parameters())):
        if sum(each.numel() * 4 for each in buckets[-1]) >= BUCKET_BYTES:
            buckets.append([])
        buckets[-1].append(parameter)
    flats = []
    for bucket in buckets:
        flat = torch.cat([parameter.grad.flatten() for parameter in bucket])
        for parameter, part in zip(bucket, flat.split([each.numel() for each in bucket])):
            parameter.grad = part.view_as(parameter)
        flats.append(flat)

    def step() -> None:
        for work in [dist.all_reduce(flat, async_op=True) for flat in flats]:
            work.wait()
        for flat in flats:
            flat.div_(dist.get_world_size())
        optimizer.step()

    return step


def our_step(hidden: int, layers: int, transport: str) -> Callable[[], None]:
    model = make_model(hidden, layers)
    optimizer = shardplan.ZeroAdamW(model, lr=1e-5, stage=1, transport=transport)
    give_gradients(model)
    return optimizer.step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    contenders: Dict[str, Callable[[], None]] = {
        "torch ZeroRedundancyOptimizer, gloo": torch_step(options.hidden, options.layers),
        "shardplan, gloo": our_step(options.hidden, options.layers, "process_group"),
        "shardplan, shared": our_step(options.hidden, options.layers, "shared"),
    }
    seconds: Dict[str, List[float]] = {name: [] for name in contenders}
    for round_number in range(options.rounds + 1):
        for name, step in contenders.items():
            dist.barrier()
            start = time.perf_counter()
            step()
            if round_number > 0:  # the first one warms up
                seconds[name].append(time.perf_counter() - start)
    medians = torch.tensor([statistics.median(each) for each in seconds.values()])
    dist.all_reduce(medians, op=dist.ReduceOp.MAX)
    if dist.get_rank() == 0:
        elements = sum(parameter.numel() for parameter in make_model(options.hidden, options.layers).parameters())
        print(f"{elements:,} parameters, {dist.get_world_size()} processes")
        for name, median in zip(contenders, medians.tolist()):
            print(f"{name:36} {1000 * median:8.1f} ms   {median / medians[0].item():5.2f} x torch")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
