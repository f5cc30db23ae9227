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
Told are three ratios, all against that: the whole step; the step without check and norm, for where a GPU does them; and the last four passes at
their best, the gradient cast straight into its place. The two take turns; a ratio is of neighbours.
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

    def check_and_norm_seconds(self) -> float:
        start = time.perf_counter()
        if self._has_inf_or_nan(self.gradient):
            raise SystemExit("a gradient is not finite")
        self.gradient.to(self._norm_dtype).norm(2)
        return time.perf_counter() - start

    def update_seconds(self, at_best: bool) -> float:
        start = time.perf_counter()
        self.master.grad.copy_(self.gradient if at_best else self.gradient.to(self.master.dtype))
        self.master.grad.mul_(1.0 / 1.5)
        self.optimizer.step()
        self.weights.copy_(self.master.data)
        return time.perf_counter() - start

    def medians(self) -> list[float]:
        """Of the whole step, of it without check and norm, and at its best."""
        reduced = statistics.median(self.check_and_norm_seconds() for _ in range(3))
        updated = statistics.median(self.update_seconds(False) for _ in range(3))
        return [reduced + updated, updated, statistics.median(self.update_seconds(True) for _ in range(5))]


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
    ratios = []
    for _ in range(arguments.rounds):
        before = theirs.medians()
        ours = our_step_seconds(arguments.bench, arguments.elements)
        pairs = list(zip(before, theirs.medians()))
        ratios.append([(a + b) / 2 / ours for a, b in pairs])
        print(f"ours {ours * 1e3:.1f} ms, DeepSpeed", ", ".join(f"{a * 1e3:.1f} and {b * 1e3:.1f}" for a, b in pairs), "ms:",
              ", ".join(f"{ratio:.2f}" for ratio in ratios[-1]), "times", flush=True)
    for which, what in enumerate(("the whole step", "without check and norm", "four passes at their best")):
        some = [each[which] for each in ratios]
        print(f"{what}: {statistics.median(some):.2f} times ({min(some):.2f} to {max(some):.2f})")
    print(f"{arguments.elements} elements, DeepSpeed with {arguments.threads} threads, PyTorch {torch.__version__}")


if __name__ == "__main__":
    main()
