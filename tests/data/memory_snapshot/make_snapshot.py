#!/usr/bin/env python3
"""Writes step.pickle: a dict as torch.cuda.memory._snapshot() returns it, of a small step on GPU 1, written as _dump_snapshot does.

    python3 tests/data/memory_snapshot/make_snapshot.py        needs no torch

The fields are those of torch/cuda/memory.py (PyTorch 2.9); the sizes are made up, and add up.
"""
import os
import pickle

FOLDER = os.path.dirname(os.path.abspath(__file__))
MIB = 2**20


def frame(filename, name, line=1):
    return {"filename": filename, "name": name, "line": line}


TO = [frame("torch/nn/modules/module.py", "convert"), frame("torch/nn/modules/module.py", "_apply"), frame("train.py", "main")]
CALL = [frame("model.py", "forward"), frame("torch/nn/modules/module.py", "_call_impl"), frame("train.py", "main")]
STEP = [frame("torch/optim/adamw.py", "_init_group"), frame("torch/optim/optimizer.py", "wrapper"), frame("train.py", "main")]
BACKWARD = [frame("torch/autograd/graph.py", "_engine_run_backward"), frame("torch/_tensor.py", "backward")]


def block(address, size, state="active_allocated", requested=None, frames=()):
    return {"address": address, "size": size, "requested_size": size if requested is None else requested, "state": state,
            "frames": list(frames)}


def segment(device, address, total, blocks):
    active = sum(b["size"] for b in blocks if b["state"] != "inactive")
    return {"device": device, "address": address, "total_size": total, "allocated_size": active, "active_size": active,
            "requested_size": sum(b["requested_size"] for b in blocks if b["state"] != "inactive"), "stream": 0,
            "segment_type": "large", "segment_pool_id": (0, 0), "is_expandable": False, "frames": [], "blocks": blocks}


def entry(action, address, size, frames=()):
    return {"action": action, "addr": address, "size": size, "stream": 0, "time_us": 0, "frames": list(frames),
            "pool_id": (0, 0)}


A, B, C = 0x7F0000000000, 0x7F0010000000, 0x7F0020000000
segments = [
    segment(0, 0x7E0000000000, 2 * MIB, [block(0x7E0000000000, 2 * MIB, "inactive", 0)]),
    segment(1, A, 20 * MIB, [block(A, 8 * MIB, requested=8 * MIB - 100, frames=TO), block(A + 8 * MIB, 12 * MIB, "inactive", 0)]),
    segment(1, B, 40 * MIB, [block(B, 32 * MIB, frames=STEP), block(B + 32 * MIB, 8 * MIB, "active_pending_free")]),
    segment(1, C, 20 * MIB, [block(C, 20 * MIB, "inactive", 0)]),
]
trace = [
    entry("alloc", A + 8 * MIB, 12 * MIB - 5, CALL),
    entry("segment_alloc", C, 20 * MIB),
    entry("alloc", C, 16 * MIB, BACKWARD),
    entry("free_requested", A + 8 * MIB, 12 * MIB - 5),
    entry("free_completed", A + 8 * MIB, 12 * MIB - 5),
    entry("free_requested", C, 16 * MIB),
    entry("free_completed", C, 16 * MIB),
    entry("alloc", B + 32 * MIB, 8 * MIB),
    {"action": "snapshot", "addr": 0, "size": 0, "stream": 0, "time_us": -1, "frames": [], "pool_id": (0, 0)},
]
snapshot = {"segments": segments, "device_traces": [[], trace],
            "allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": "", "max_split_size": -1, "garbage_collection_threshold": 0.0,
                                   "expandable_segments": False, "roundup_power2_divisions": {"1": 0}}}
with open(os.path.join(FOLDER, "step.pickle"), "wb") as file:
    pickle.dump(snapshot, file, protocol=4)
