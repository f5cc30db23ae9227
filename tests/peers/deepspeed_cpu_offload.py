"""An offloaded optimizer step in mixed precision: DeepSpeed's CPU offload beside ours, on the same parameters.

    pip install torch deepspeed ninja       (DeepSpeed compiles its cpu_adam at first use)
    tests/peers/deepspeed_cpu_offload.py build/release/bin/shardplan-bench [--elements 64000000] [--rounds 7] [--threads 1]

What DeepSpeed does with a 16-bit gradient in ZeRO-Offload (0.19.8, runtime/zero/stage_1_and_2.py):

  check    update_offload_overflow_tracker: is every element finite?
  norm     set_norm_for_param_grad: the gradient in get_norm_dtype(), its norm
  cast     async_inplace_copy_grad_to_fp32_buffer_from_gpu: to fp32, then into the fp32 gradient
  unscale  unscale_and_clip_grads: the fp32 gradient times clip / scale
  update   DeepSpeedCPUAdam.step on fp32 master, gradient and moments, with --threads OpenMP threads
  copy     the master to the 16-bit parameter

Ours is step() as `offload_step_host` has it: norm and finite check, agreement, and one pass that unscales, updates and rounds, on one thread.
Both are told with check and norm, and theirs without (where a GPU does them, DeepSpeed's host has the other four). The two take turns;
a ratio is of neighbours.
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
        from deepspeed.runtime.utils import has_inf_or_nan
        from deepspeed.runtime.zero.utils import get_norm_dtype

        self._has_inf_or_nan, self._norm_dtype = has_inf_or_nan, get_norm_dtype()

        self.weights = (torch.arange(elements, dtype=torch.float32) % 97 * 0.01 - 0.5).to(torch.bfloat16)
        self.gradient = torch.full((elements,), 2.0**-7, dtype=torch.bfloat16)
        self.master = torch.nn.Parameter(self.weights.float())
        self.master.grad = torch.zeros(elements)
        self.optimizer = DeepSpeedCPUAdam([self.master], lr=1e-7, weight_decay=0.01, adamw_mode=True)

    def step_seconds(self) -> tuple[float, float]:
        """Of the whole step, and of it without check and norm."""
        start = time.perf_counter()
        finite = not self._has_inf_or_nan(self.gradient)
        norm = self.gradient.to(self._norm_dtype).norm(2)
        reduced = time.perf_counter()
        self.master.grad.copy_(self.gradient.to(self.master.dtype))
        self.master.grad.mul_(1.0 / max(1.0, float(norm) * 1e-9))
        self.optimizer.step()
        self.weights.copy_(self.master.data)
        end = time.perf_counter()
        if not finite:
            raise SystemExit("a gradient is not finite")
        return end - start, end - reduced

    def medians(self) -> tuple[float, float]:
        times = [self.step_seconds() for _ in range(5)]
        return statistics.median(t[0] for t in times), statistics.median(t[1] for t in times)


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
    theirs.medians()
    ratios: list[tuple[float, float]] = []
    for _ in range(arguments.rounds):
        before = theirs.medians()
        ours = our_step_seconds(arguments.bench, arguments.elements)
        after = theirs.medians()
        ratios.append(((before[0] + after[0]) / 2 / ours, (before[1] + after[1]) / 2 / ours))
        print(f"DeepSpeed {before[0] * 1e3:.1f} and {after[0] * 1e3:.1f} ms, without check and norm {before[1] * 1e3:.1f} and "
              f"{after[1] * 1e3:.1f} ms, ours {ours * 1e3:.1f} ms: {ratios[-1][0]:.2f} and {ratios[-1][1]:.2f} times")
    for which, what in ((0, "the whole step"), (1, "without its check and norm")):
        some = sorted(pair[which] for pair in ratios)
        print(f"{what}: {statistics.median(some):.2f} times ({some[0]:.2f} to {some[-1]:.2f})")
    print(f"{arguments.elements} elements, DeepSpeed with {arguments.threads} threads, PyTorch {torch.__version__}")


if __name__ == "__main__":
    main()
