"""Checkpoints and the Python package safetensors: each reads what the other writes.

SHARDPLAN_TRAIN and SHARDPLAN_CHECKPOINT name the programs. Needs safetensors and numpy, nothing of the package shardplan.
"""

from __future__ import annotations

import json
import os
import re
import struct
import subprocess
from pathlib import Path
from typing import Any, Dict

import pytest

np = pytest.importorskip("numpy", reason="numpy is not installed")
safetensors = pytest.importorskip("safetensors", reason="the package safetensors is not installed")
from safetensors.numpy import load_file, save_file  # noqa: E402

TRAIN = os.environ.get("SHARDPLAN_TRAIN")
CHECKPOINT = os.environ.get("SHARDPLAN_CHECKPOINT")
pytestmark = pytest.mark.skipif(
    not TRAIN or not CHECKPOINT, reason="SHARDPLAN_TRAIN and SHARDPLAN_CHECKPOINT are not set"
)

SMALL = ["--text", __file__, "--layers", "1", "--width", "16", "--heads", "2", "--context", "8", "--micro-batch", "2"]
SLICE = re.compile(r"(parameter|first_moment|second_moment|ema)/(.+)\[(\d+):(\d+)\]$")


def train(*flags: str) -> Dict[str, Any]:
    done = subprocess.run([str(TRAIN), *SMALL, "--json", *flags], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def tool(*words: str) -> str:
    return subprocess.run([str(CHECKPOINT), *words], capture_output=True, text=True, check=True).stdout.strip()


def put_together(folder: Path) -> Dict[str, Any]:
    """Whole tensors of slices, as the package reads them, by kind and name."""
    parts: Dict[str, Dict[int, Any]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        for name, values in load_file(file).items():
            match = SLICE.match(name)
            assert match, name
            kind, tensor, first, end = match.groups()
            assert values.size == int(end) - int(first)
            parts.setdefault(f"{kind}/{tensor}", {})[int(first)] = values.reshape(-1)
    return {name: np.concatenate([part for _, part in sorted(found.items())]) for name, found in parts.items()}


def test_the_package_reads_our_slices(tmp_path: Path) -> None:
    train("--ranks", "3", "--zero", "3", "--steps", "3", "--save", str(tmp_path / "run"))
    checkpoint = tmp_path / "run" / (tmp_path / "run" / "latest").read_text().strip()
    assert len(list(checkpoint.glob("*.safetensors"))) == 3
    ours = put_together(checkpoint)
    tool("consolidate", str(tmp_path / "run"), str(tmp_path / "whole"))
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert len(whole) == 16
    for name, values in whole.items():
        np.testing.assert_array_equal(ours[f"parameter/{name}"], values.reshape(-1), err_msg=name)
        assert ours[f"first_moment/{name}"].size == values.size
    assert (256, 16) in [values.shape for values in whole.values()]  # the embedding of bytes


def test_16_bit_shards_are_rounded_and_indexed(tmp_path: Path) -> None:
    train("--steps", "2", "--save", str(tmp_path / "run"))
    tool("consolidate", str(tmp_path / "run"), str(tmp_path / "whole"))
    tool("consolidate", str(tmp_path / "run"), str(tmp_path / "half"), "--dtype", "fp16", "--max-shard-size", "4kB")
    index = json.loads((tmp_path / "half" / "model.safetensors.index.json").read_text())
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert set(index["weight_map"]) == set(whole)
    assert index["metadata"]["total_size"] == sum(2 * values.size for values in whole.values())
    for name, file in index["weight_map"].items():
        half = load_file(tmp_path / "half" / file)[name]
        np.testing.assert_array_equal(half, whole[name].astype(np.float16), err_msg=name)
    with open(tmp_path / "half" / sorted(index["weight_map"].values())[0], "rb") as stream:
        header = stream.read(struct.unpack("<Q", stream.read(8))[0])
    assert json.loads(header)["__metadata__"] == {"format": "pt"}


def test_we_read_the_packages_files(tmp_path: Path) -> None:
    """Weights that the package has written are initial values: a run from them is a run from those values."""
    digest = train("--ranks", "2", "--zero", "2", "--steps", "2", "--save", str(tmp_path / "run"))["parameters_digest"]
    tool("consolidate", str(tmp_path / "run"), str(tmp_path / "whole"))
    (tmp_path / "model").mkdir()
    save_file(load_file(tmp_path / "whole" / "model.safetensors"), tmp_path / "model" / "model.safetensors")
    name = tool("import", str(tmp_path / "model"), str(tmp_path / "imported"))
    assert name.endswith("save-000001-step-000000000")
    tool("verify", str(tmp_path / "imported"))
    # A run of no step: the parameters are what was imported.
    imported = train("--ranks", "3", "--zero", "3", "--steps", "1", "--lr", "0", "--weight-decay", "0",
                     "--resume", str(tmp_path / "imported"))
    assert imported["first_step"] == 0
    assert imported["parameters_digest"] == digest
