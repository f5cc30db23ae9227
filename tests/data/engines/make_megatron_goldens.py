#!/usr/bin/env python3
"""Writes megatron.json: how Megatron-LM lays out parameters in its buffers.

    pip install torch; PYTHONPATH=/path/to/Megatron-LM python3 make_megatron_goldens.py     (in this folder; no GPU)

Megatron-LM d98e8a64. Parameters are meta tensors with the shapes of GPT-like blocks, chosen by seed. Per case: `layer_wise` is what
LayerWiseDistributedOptimizer._compute_per_buffer_param_layout makes of the matrices (elements of the buffer, buckets, and
what the fullest rank updates), `distributed` what DistributedOptimizer's makes of the same (elements, buckets).
"""
import json
import pathlib
import random
import types

import torch
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
        cases.append({
            "shapes": shapes, "ranks": ranks, "bucket_size": bucket_size, "bus_padding": bus,
            "layer_wise": {"padded": whole.bucket_indices[-1][1], "buckets": len(whole.bucket_indices),
                           "most": fullest(whole, ranks)},
            "distributed": {"padded": flat.bucket_indices[-1][1], "buckets": len(flat.bucket_indices)}})
    lines = ",\n ".join(json.dumps(case) for case in cases)
    (FOLDER / "megatron.json").write_text('{"made_with": "Megatron-LM d98e8a64", "cases": [\n ' + lines + "\n]}\n")


if __name__ == "__main__":
    main()
