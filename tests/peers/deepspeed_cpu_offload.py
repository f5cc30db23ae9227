"""An offloaded optimizer step in mixed precision: DeepSpeed's CPU offload beside ours, on the same parameters.

    pip install torch deepspeed ninja       (DeepSpeed compiles its cpu_adam at first use)
    tests/peers/deepspeed_cpu_offload.py build/release/bin/shardplan-bench [--elements 64000000] [--rounds 7] [--threads 1]

What DeepSpeed does with a 16-bit gradient in ZeRO-Offload (runtime/zero/stage_1_and_2.py), each a pass over memory:

  cast       async_inplace_copy_grad_to_fp32_buffer_from_gpu: 16 bits to the pinned fp32 gradient
  unscale    unscale_and_clip_grads: the fp32 gradient times 1 / scale
  update     DeepSpeedCPUAdam.step on fp32 master, gradient and moments, with --threads OpenMP threads
  copy       the master to the 16-bit parameter

The norm, which it takes during backward, is left out; ours is in: what is timed of ours is step() as `offload_step_host` has it, norm,
agreement and update, on one thread. The two take turns; the ratio is of neighbours.
"""

import argparse
import json
import os
import statistics
import subprocess
import time


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench")
    parser.add_argument("--elements", type=int, default=64_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


class DeepSpeed:
    def __init__(self, elements: int) -> None:
        import torch
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        self.weights = (torch.arange(elements, dtype=torch.float32) % 97 * 0.01 - 0.5).to(torch.bfloat16)
        self.gradient = torch.full((elements,), 2.0**-7, dtype=torch.bfloat16)
        self.master = torch.nn.Parameter(self.weights.float())
        self.master.grad = torch.zeros(elements)
        self.optimizer = DeepSpeedCPUAdam([self.master], lr=1e-7, weight_decay=0.01, adamw_mode=True)

    def step_seconds(self) -> float:
        start = time.perf_counter()
        self.master.grad.copy_(self.gradient)
        self.master.grad.mul_(1.0 / 1.0)
        self.optimizer.step()
        self.weights.copy_(self.master.data)
        return time.perf_counter() - start


def our_step_seconds(bench: str, elements: int) -> float:
    text = subprocess.run(
        [bench, f"--benchmark_filter=^offload_step_host/elements:{elements}/", "--benchmark_format=json"],
        check=True, capture_output=True, text=True).stdout
    rows = json.loads(text)["benchmarks"]
    if len(rows) != 1:
        raise SystemExit(f"{bench} has no offload_step_host of {elements} elements")
    return elements / rows[0]["elements_per_second"]


def main() -> None:
    arguments = parse_arguments()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    import torch

    torch.set_num_threads(arguments.threads)
    theirs = DeepSpeed(arguments.elements)
    for _ in range(2):
        theirs.step_seconds()
    ratios = []
    for _ in range(arguments.rounds):
        before = statistics.median(theirs.step_seconds() for _ in range(5))
        ours = our_step_seconds(arguments.bench, arguments.elements)
        after = statistics.median(theirs.step_seconds() for _ in range(5))
        ratios.append((before + after) / 2 / ours)
        print(f"DeepSpeed {before * 1e3:.1f} and {after * 1e3:.1f} ms, ours {ours * 1e3:.1f} ms: {ratios[-1]:.2f} times")
    print(f"median of {arguments.rounds}: {statistics.median(ratios):.2f} times, "
          f"{min(ratios):.2f} to {max(ratios):.2f}; {arguments.elements} elements, DeepSpeed with {arguments.threads} "
          f"threads, PyTorch {torch.__version__}")


if __name__ == "__main__":
    main()
