#!/usr/bin/env python3
"""Writes megatron.json: how Megatron-LM lays out parameters in its buffers.

    pip install torch; PYTHONPATH=/path/to/Megatron-LM python3 make_megatron_goldens.py     (in this folder; no GPU)

Megatron-LM d98e8a64. Parameters are meta tensors with the shapes of GPT-like blocks, chosen by seed. Per case: `layer_wise` is what
LayerWiseDistributedOptimizer._compute_per_buffer_param_layout makes of the matrices (elements of the buffer, buckets, and
what the fullest rank updates), `distributed` what DistributedOptimizer's makes of the same (elements, buckets). `fsdp`: what
Megatron-FSDP makes of one unit with these matrices and `vectors` (_get_parameter_groups, build_data_parallel_buffer_index):
the elements of its buffers, padded.
"""
import json
import pathlib
import random
import types

import torch
from megatron.core.distributed.fsdp.src.megatron_fsdp import param_and_grad_buffer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer
from megatron.core.optimizer.layer_wise_optimizer import LayerWiseDistributedOptimizer

FOLDER = pathlib.Path(__file__).resolve().parent


def shapes_of(generator):
    width = generator.choice([48, 64, 100, 192, 256])
    feed_forward = generator.choice([width * 4, width * 3 + 8, 1000])
    heads = generator.choice([width, width // 2])
    block = [[width + 2 * heads, width], [width, width], [feed_forward, width], [width, feed_forward]]
    return block * generator.randint(1, 9)


def fullest(layout, ranks):
    updated = [0] * ranks
    for start, end, bucket in layout.param_index_map.values():
        first, last = layout.bucket_indices[bucket]
        updated[(start - first) // ((last - first) // ranks)] += end - start
    return max(updated)


class Unit(torch.nn.Module):
    def __init__(self, shapes):
        super().__init__()
        for i, shape in enumerate(shapes):
            self.register_parameter(f"p{i}", torch.nn.Parameter(torch.empty(shape, device="meta")))


def fsdp_elements(shapes, ranks):
    policy = param_and_grad_buffer.BucketingPolicy(None, [Unit], "optim_grads_params")
    groups, _, _ = param_and_grad_buffer._get_parameter_groups(torch.nn.Sequential(Unit(shapes)), policy, {})
    config = types.SimpleNamespace(data_parallel_sharding_strategy="optim_grads_params")
    return sum(param_and_grad_buffer.build_data_parallel_buffer_index(
        [p.shape for p in group.params], 0, ranks, True, config, chunk_size_factor=group.chunk_size_factor)[1].size
        for group in groups)


def main():
    generator = random.Random(7)
    cases = []
    for _ in range(60):
        shapes = shapes_of(generator)
        total = sum(rows * columns for rows, columns in shapes)
        ranks = generator.choice([1, 2, 3, 4, 8, 24])
        bucket_size = generator.choice([None, total // 3 + 1, total // 7 + 1, 1])
        bus = generator.random() < 0.2
        config = types.SimpleNamespace(pad_buckets_for_high_nccl_busbw=bus)
        parameters = [torch.nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
        whole = LayerWiseDistributedOptimizer._compute_per_buffer_param_layout(parameters, bucket_size, ranks, config)
        flat = DistributedOptimizer._compute_per_buffer_param_layout(parameters, bucket_size, ranks, config)
        vectors = [generator.choice([7, 48, 256, 1000, 4096]) for _ in range(generator.randint(0, 7))]
        unit = shapes + [[length] for length in vectors]
        cases.append({
            "shapes": shapes, "vectors": vectors, "fsdp": fsdp_elements(unit, ranks), "ranks": ranks, "bucket_size": bucket_size, "bus_padding": bus,
            "layer_wise": {"padded": whole.bucket_indices[-1][1], "buckets": len(whole.bucket_indices),
                           "most": fullest(whole, ranks)},
            "distributed": {"padded": flat.bucket_indices[-1][1], "buckets": len(flat.bucket_indices)}})
    lines = ",\n ".join(json.dumps(case) for case in cases)
    (FOLDER / "megatron.json").write_text('{"made_with": "Megatron-LM d98e8a64", "cases": [\n ' + lines + "\n]}\n")


if __name__ == "__main__":
    main()
