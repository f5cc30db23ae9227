#!/usr/bin/env python3
"""Writes torchtitan.json: what one rank of torchtitan's Llama keeps for backward, and the peak of its step, under tensor, context and
pipeline parallelism.

    python3 tests/data/activations/make_titan_goldens.py CHECKOUT [--live]     needs torch, triton and g++, no GPU

CHECKOUT is pytorch/torchtitan at commit 9dec370 (December 2024): its own model, its own apply_tp, apply_ac and context-parallel
context run, on fake CUDA tensors and a process group whose collectives move nothing (torch.testing._internal.distributed.fake_pg),
as its scripts/estimate does. --live lists what is live at the peak, too. Fully sharded data parallelism is left out: parameters are
there as they are while a block computes. The tests read the file alone; README.md in this folder has what its fields mean.
"""
import contextlib
import gc
import importlib
import json
import os
import random
import sys
import types
import warnings

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed._functional_collectives import AsyncCollectiveTensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

import torch_step

FOLDER = os.path.dirname(os.path.abspath(__file__))
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def local(tensor):
    """What a rank holds of a tensor, and of one that a collective is filling."""
    while isinstance(tensor, (DTensor, AsyncCollectiveTensor)):
        tensor = tensor._local_tensor if isinstance(tensor, DTensor) else tensor.elem
    return tensor


class LocalStorages(torch_step.LiveStorages):
    """Sees the operations on a rank's own tensors that one on a DTensor becomes."""

    def _add(self, tensor, made_by):
        return super()._add(local(tensor), made_by)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(issubclass(kind, (DTensor, AsyncCollectiveTensor)) for kind in types):
            return NotImplemented
        if func is torch.ops._c10d_functional.wait_tensor.default:
            return args[0]  # on a GPU the tensor itself; on fake ones another
        return super().__torch_dispatch__(func, types, args, kwargs)


class Inferring:
    """While DTensor works out the shapes of a whole result, on tensors of its own: no rank has those."""

    def __init__(self):
        self.depth = 0
        infer = torch.distributed.tensor._sharding_prop.ShardingPropagator._propagate_tensor_meta_non_cached

        def inferred(propagator, schema):
            self.depth += 1
            try:
                return infer(propagator, schema)
            finally:
                self.depth -= 1
        torch.distributed.tensor._sharding_prop.ShardingPropagator._propagate_tensor_meta_non_cached = inferred


def arguments_of(config):
    """Those of torchtitan's ModelArgs. It makes a width of the MLP of the hidden one, by a factor, and rounds it up."""
    hidden = config["hidden_size"]
    return {"dim": hidden, "n_layers": config["num_hidden_layers"], "n_heads": config["num_attention_heads"],
            "n_kv_heads": config["num_key_value_heads"], "vocab_size": config["vocab_size"],
            "multiple_of": config["intermediate_size"], "ffn_dim_multiplier": 1.5 / (8 * hidden // 3)}


class Rank:
    """One rank's part of the model, its batch, and the forward of one micro-batch."""

    def __init__(self, titan, config, setup, mesh):
        self.setup, self.mesh, self.titan = setup, mesh, titan
        self.dims = dims = dict(zip(mesh.mesh_dim_names, mesh.shape))
        self.loss_parallel = dims["tp"] > 1 and setup.get("loss_parallel", True)
        dtype = DTYPES[setup["dtype"]]
        sequence = setup["sequence"]
        arguments = titan.model.ModelArgs(**arguments_of(config), max_seq_len=sequence)
        with torch.device("cuda"):
            torch.set_default_dtype(dtype)
            self.model = titan.model.Transformer.from_model_args(arguments)
            torch.set_default_dtype(torch.float32)
        self.cut_stage(arguments.n_layers)
        if dims["tp"] > 1:
            titan.parallelize.apply_tp(self.model, self.mesh["tp"], loss_parallel=self.loss_parallel,
                                       enable_float8=False, enable_async_tp=False)
        if "recompute" in setup:
            titan.parallelize.ptd_checkpoint_wrapper._count = 0  # of the models before
            titan.parallelize.apply_ac(self.model, Checkpointing(setup["recompute"]))
        self.model.train()
        self.inputs = [torch.empty(setup["batch"], sequence, dtype=torch.int64, device="cuda") for _ in range(2)]
        self.hidden = arguments.dim

    def cut_stage(self, layers):
        """As pipeline_llama_manual_split does."""
        first, end = self.setup.get("layers", [0, layers])
        for name in list(self.model.layers):
            if not first <= int(name) < end:
                del self.model.layers[name]
        if first > 0:
            self.model.tok_embeddings = None
        if end < layers:
            self.model.norm = self.model.output = None

    @contextlib.contextmanager
    def context(self):
        cp = self.titan.utils.create_context_parallel_ctx(
            cp_mesh=self.mesh["cp"], cp_buffers=[*self.inputs, self.model.freqs_cis], cp_seq_dims=[1, 1, 0],
            cp_no_restore_buffers=set(self.inputs), cp_rotate_method=self.setup.get("rotate", "allgather"),
        ) if self.dims["cp"] > 1 else None
        with self.titan.utils.get_train_context(self.loss_parallel, False)(cp):
            yield

    def received(self):
        sequence = self.setup["sequence"] // self.dims["cp"] // self.dims["tp"]
        return torch.empty(self.setup["batch"], sequence, self.hidden, dtype=DTYPES[self.setup["dtype"]], device="cuda",
                           requires_grad=True)

    def forward(self):
        """The loss, or of a stage that has none where gradients of its output go: the output is let go of once it was sent."""
        tokens, labels = self.inputs
        if self.model.tok_embeddings is None:
            self.read = tokens = self.received()
        predicted = self.model(tokens)
        if self.model.output is None:
            return torch.autograd.graph.get_gradient_edge(predicted)
        # loss_fn of train.py
        return F.cross_entropy(predicted.flatten(0, 1).float(), labels.flatten(0, 1))


class Checkpointing:
    """What apply_ac reads: "full", "op", or that every N-th block is recomputed."""

    def __init__(self, recompute):
        self.mode = "full" if recompute == "full" else "selective"
        self.selective_ac_option = recompute


def saved_tensors(loss):
    """[[autograd node, name, shape, dtype, bytes of the storage] ...] of what the graph keeps on this rank, each storage once."""
    found, counted = [], {}
    for node in torch_step._nodes(types.SimpleNamespace(grad_fn=loss.node) if not isinstance(loss, torch.Tensor) else loss):
        for name, tensor in torch_step._saved_of(node):
            tensor = local(tensor)
            key = torch_step._key(tensor)
            if key not in counted:
                counted[key] = tensor  # holds it: an address is not used twice
                found.append((key, [type(node).__name__.removesuffix("Backward0"), name, list(tensor.shape),
                                    str(tensor.dtype).removeprefix("torch."), tensor.untyped_storage().nbytes()]))
    return found


def step_memory(rank, inferring):
    """The live bytes of a micro-batch's forward and backward; of a stage that is not the last with a gradient that came for what it
    puts out."""
    gc.collect()
    model = rank.model
    known = {"parameters": list(model.parameters()), "buffers": list(model.buffers()), "inputs": rank.inputs}
    resident = {kind: sum(torch_step.rounded(local(t).untyped_storage().nbytes()) for t in tensors)
                for kind, tensors in known.items()}

    class Tracker(LocalStorages):
        def _add(self, tensor, made_by):
            return not inferring.depth and super()._add(tensor, made_by)

    tracker = Tracker(known)
    start = tracker.exact
    known = None
    with tracker:
        tracker.phase = "forward"
        output = rank.forward()
        after_forward = tracker.exact - start
        tracker.phase = "backward"
        gradient = None if isinstance(output, torch.Tensor) else (rank.received().detach(),)
        torch.autograd.backward(output if gradient is None else (output,), gradient)
    made, live = tracker.at_peak
    step = {"kept": after_forward, "resident": sum(resident.values()), "peak": tracker.peak,
            "at": {"phase": made[0], "operator": made[1], "node": made[3]}}
    if "--live" in sys.argv:
        at_peak = {}
        for size, (kind, operator, _, node), shape, dtype in live:
            key = json.dumps([kind, operator, node, shape, dtype])
            at_peak[key] = at_peak.get(key, 0) + 1
        step["live_at_peak"] = [[*json.loads(key), count] for key, count in at_peak.items()]
    return step


def measured(titan, config, setup, inferring):
    tensor = setup.get("tp", 1)
    dist.init_process_group("fake", rank=setup.get("rank", 0) * tensor, world_size=setup.get("cp", 1) * tensor,
                            store=FakeStore())
    math = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = torch_step._sdpa_on_gpu(math)
    F.scaled_dot_product_attention.__name__ = math.__name__  # by which context parallelism puts its own in place
    try:
        mesh = init_device_mesh("cuda", (setup.get("cp", 1), setup.get("tp", 1)), mesh_dim_names=("cp", "tp"))
        with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True):
            rank = Rank(titan, config, setup, mesh)
            with rank.context():
                own = {torch_step._key(local(t)) for t in [*rank.model.parameters(), *rank.model.buffers(), *rank.inputs]}
                saved = [] if "recompute" in setup else [entry for key, entry in saved_tensors(rank.forward())
                                                         if key not in own]
                step = step_memory(rank, inferring)
    finally:
        F.scaled_dot_product_attention = math
        dist.destroy_process_group()
    return {"setup": setup, "saved_bytes": sum(entry[-1] for entry in saved), "saved": saved, **step}


def llama(layers=3, hidden=64, heads=4, groups=2, width=88, words=96):
    return {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": words, "hidden_size": hidden,
            "intermediate_size": width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": groups, "tie_word_embeddings": False}


def bf16(batch, sequence, **more):
    return {"dtype": "bf16", "batch": batch, "sequence": sequence, **more}


CASES = [
    ("grouped queries", llama(), [
        bf16(2, 24), bf16(2, 24, tp=2), bf16(1, 40, tp=2), bf16(2, 24, tp=2, loss_parallel=False),
        *(bf16(3, 16, tp=tp, recompute=kind) for tp in (1, 2) for kind in ("op", "full", "2"))]),
    ("a large vocabulary", llama(layers=2, words=1000), [
        bf16(2, 24), bf16(2, 24, tp=2), bf16(2, 24, tp=2, loss_parallel=False), bf16(2, 24, tp=2, recompute="op"),
        bf16(2, 24, tp=2, recompute="full", loss_parallel=False)]),
    ("four groups", llama(layers=4, hidden=128, heads=8, groups=4, width=192, words=160), [
        bf16(2, 32), bf16(2, 32, tp=2), bf16(2, 32, tp=4), bf16(1, 64, tp=4, recompute="op"),
        bf16(1, 64, tp=4, recompute="full"), bf16(2, 64, tp=4, loss_parallel=False)]),
    ("as many key heads", llama(layers=3, hidden=96, heads=6, groups=6, width=168, words=111), [
        bf16(2, 36), bf16(2, 36, tp=2), bf16(1, 36, tp=3), bf16(1, 36, tp=3, recompute="op")]),
    ("words that do not divide", llama(layers=2, hidden=144, heads=6, groups=3, width=75, words=101), [
        bf16(1, 30, tp=3), bf16(2, 36, tp=3, cp=2), bf16(2, 36, tp=3, loss_parallel=False),
        {**bf16(2, 30, tp=3), "dtype": "fp32"}, {**bf16(2, 30), "dtype": "fp32"}]),
    ("stages", llama(layers=5), [
        bf16(2, 24, layers=[0, 2]), bf16(2, 24, layers=[0, 2], tp=2), bf16(2, 24, layers=[2, 4]),
        bf16(2, 24, layers=[2, 4], tp=2), bf16(2, 24, layers=[3, 5], tp=2), bf16(2, 24, layers=[3, 5]),
        *(bf16(2, 24, layers=[1, 4], tp=2, recompute=kind) for kind in ("op", "full", "2"))]),
    ("a shared text", llama(), [
        *(bf16(2, 16 * cp, cp=cp, rank=max(cp - 2, 0), **more) for cp in (2, 3, 4) for more in ({}, {"rotate": "alltoall"})),
        bf16(1, 96, cp=2), bf16(2, 64, cp=2, tp=2), bf16(2, 64, cp=2, recompute="full"), bf16(2, 64, cp=2, recompute="op"),
        bf16(2, 64, cp=2, tp=2, recompute="op"), bf16(2, 64, cp=4, rank=2, layers=[1, 3])]),
    ("a shared text, as many key heads", llama(layers=2, hidden=96, heads=6, groups=6, width=168, words=111), [
        bf16(2, 72, cp=2), bf16(1, 72, cp=3, rank=1, tp=3), bf16(1, 64, cp=4, rank=2, rotate="alltoall")]),
]


def drawn(seed, count):
    """Cases of one run each, of sizes and meshes that the seed draws."""
    random_of = random.Random(seed)
    one_of, between = random_of.choice, random_of.randint
    cases = []
    for i in range(count):
        tp, cp, layers = one_of([1, 2, 3, 4]), one_of([1, 1, 2, 3, 4]), between(1, 5)
        groups = tp * between(1, 3)
        heads, width = groups * between(1, 3), one_of([8, 16, 24, 32])
        first = between(0, layers - 1)
        part = [first, between(first + 1, layers)]
        setup = {"tp": tp, "cp": cp, "rank": max(cp - 2, 0), "layers": one_of([part, None, None]),
                 "rotate": one_of(["alltoall", None]) if cp > 1 else None, "recompute": one_of(["op", "full", "2", None, None]),
                 "loss_parallel": one_of([False, None]) if tp > 1 else None}
        dtype = one_of(["fp32", "bf16", "bf16"]) if cp == 1 else "bf16"
        setup = {"dtype": dtype, "batch": between(1, 3), "sequence": 2 * cp * tp * between(1, 12),
                 **{key: value for key, value in setup.items() if value is not None and value != [0, layers]}}
        cases.append((f"drawn {i}", llama(layers, heads * width, heads, groups, tp * between(8, 60), between(50, 700)), [setup]))
    return cases


def compact(value):
    return json.dumps(value, separators=(",", ":"))


def text_of_run(run):
    return "  {" + ",\n   ".join(f'"{key}":{compact(value)}' for key, value in run.items()) + "}"


class Titan:
    """Modules of the checkout."""

    def __init__(self, checkout):
        sys.path.insert(0, checkout)
        self.model = importlib.import_module("torchtitan.models.llama.model")
        self.parallelize = importlib.import_module("torchtitan.parallelisms.parallelize_llama")
        self.utils = importlib.import_module("torchtitan.utils")
        self.model.Transformer.init_weights = lambda model: None  # it looks at what it drew


def main():
    warnings.simplefilter("ignore")
    torch_step.work_without_gpu()
    titan, inferring = Titan(sys.argv[1]), Inferring()
    written = []
    for name, config, setups in CASES + drawn(seed=1, count=24):
        runs = []
        for setup in setups:
            runs.append(measured(titan, config, setup, inferring))
            print(name, "|", compact(setup), runs[-1]["saved_bytes"], runs[-1]["kept"], runs[-1]["peak"], flush=True)
        written.append(f'{{"name":{compact(name)},\n "config":{compact(config)},\n "runs":[\n'
                       + ",\n".join(text_of_run(run) for run in runs) + "]}")
    with open(os.path.join(FOLDER, "torchtitan.json"), "w", encoding="utf-8") as file:
        file.write(f'{{"versions":{compact({"torch": torch.__version__, "torchtitan": "9dec370"})},\n"cases":[\n'
                   + ",\n".join(written) + "\n]}\n")


if __name__ == "__main__":
    main()
