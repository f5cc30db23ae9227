#!/usr/bin/env python3
"""Writes adamw_pytorch.json: what PyTorch's optimizers make of given gradients, step by step, in fp32 on the CPU.

    python3 -m venv /tmp/venv && /tmp/venv/bin/pip install torch==2.15.0 numpy
    /tmp/venv/bin/python tests/data/make_adamw_goldens.py

Values are the bits of fp32 in hexadecimal, 8 digits each. Two things keep stock PyTorch from rounding each operation
once, as IEEE 754 has it, and are put out of the way: with AVX2 its kernels fuse multiplications with additions, so
ATEN_CPU_CAPABILITY=default; and Tensor.sqrt is MKL's, which is one unit in the last place off for a fifth of all
values, so numpy's stands in for it. `parameter_stock` is the last parameter with avx2 and MKL.
"""

import json
import os
import pathlib
import subprocess
import sys

ELEMENTS = 37  # no multiple of any vector length
STEPS = 12

CASES = [
    ("adamw", "AdamW", dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2)),
    ("adamw", "AdamW", dict(lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)),
    ("adamw", "AdamW", dict(lr=3e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)),
    ("adamw", "AdamW", dict(lr=1e-2, betas=(0.3, 0.6), eps=1e-3, weight_decay=0.5)),
    ("adamw", "AdamW", dict(lr=1e-4, betas=(0.0, 0.999), eps=1e-15, weight_decay=0.01)),
    ("adam", "Adam", dict(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.1)),
    ("sgd", "SGD", dict(lr=1e-1, weight_decay=1e-2)),
    ("sgd-momentum", "SGD", dict(lr=1e-1, momentum=0.9, weight_decay=1e-2)),
]
EMA_DECAY = 0.99
STATES = {"exp_avg": "first_moment", "exp_avg_sq": "second_moment", "momentum_buffer": "first_moment"}


def bits(tensor):
    return tensor.detach().numpy().view("u4").astype(">u4").tobytes().hex()


def gradients(torch, generator):
    """Of all magnitudes: ordinary ones, and down to where a square is subnormal or 0."""
    spread = torch.randint(-24, 6, (STEPS, ELEMENTS), generator=generator).float()
    ordinary = torch.randn(STEPS, ELEMENTS, generator=generator)
    values = torch.where(torch.arange(ELEMENTS) % 3 == 0, ordinary * 10.0**spread, ordinary)
    values[:, 1] = 0.0
    values[3] = 0.0
    return values


def run(case, stock):
    import numpy
    import torch
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    torch.set_num_threads(1)
    if not stock:
        torch.Tensor.sqrt = lambda self: torch.from_numpy(numpy.sqrt(self.numpy()))
    kind, name, options = CASES[case]
    generator = torch.Generator().manual_seed(1000 + case)
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.randn(ELEMENTS, generator=generator))
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(EMA_DECAY))
    average.n_averaged += 1  # the average starts at the initial parameters instead of skipping the first update
    optimizer = getattr(torch.optim, name)(model.parameters(), foreach=False, fused=False, **options)
    grads = gradients(torch, generator)
    result = dict(kind=kind, options=options, ema_decay=EMA_DECAY, initial=bits(model.weight))
    result.update(gradients=[], parameters=[])
    for grad in grads:
        model.weight.grad = grad.clone()
        optimizer.step()
        average.update_parameters(model)
        result["gradients"].append(bits(grad))
        result["parameters"].append(bits(model.weight))
    state = optimizer.state[model.weight]
    for theirs, ours in STATES.items():
        if state.get(theirs) is not None:
            result[ours] = bits(state[theirs])
    result["ema"] = bits(average.module.weight)
    return torch.__version__, result


def run_alone(case, stock):
    environment = dict(os.environ, ATEN_CPU_CAPABILITY="avx2" if stock else "default")
    command = [sys.executable, __file__, str(case), "stock" if stock else "exact"]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE)
    return json.loads(output.stdout)


def main():
    if len(sys.argv) > 1:
        print(json.dumps(run(int(sys.argv[1]), sys.argv[2] == "stock")))
        return
    cases = []
    for case in range(len(CASES)):
        version, golden = run_alone(case, stock=False)
        golden["parameter_stock"] = run_alone(case, stock=True)[1]["parameters"][-1]
        cases.append(golden)
    lines = ",\n".join(json.dumps(golden) for golden in cases)
    path = pathlib.Path(__file__).with_name("adamw_pytorch.json")
    path.write_text(f'{{"torch": "{version}", "cases": [\n{lines}\n]}}\n')


main()
