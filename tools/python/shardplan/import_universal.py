"""A DeepSpeed universal checkpoint as one of shardplan's: parameters, both moments and the step.

    python -m shardplan.import_universal FOLDER OUT

FOLDER is what DeepSpeed's ds_to_universal wrote (zero/NAME/{fp32,exp_avg,exp_avg_sq,step}.pt, *_model_states.pt); OUT is a
folder of checkpoints, to which a new one is added: ZeroAdamW.load(OUT) and shardplan-train --resume OUT go on from it. Names
are the module's own. Buffers are left out, as are tensors that are tied to others. A tensor without moments was frozen, or has
never had a gradient. Needs torch, not DeepSpeed; unpickles nothing but tensors and plain values. Holds one tensor at a time.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import torch

from . import _shardplan
from ._parameters import dtype_name
from .errors import ConfigError, Error

_STATES = ("fp32", "exp_avg", "exp_avg_sq")  # by StateKind


class _Inert:
    """Stands for an object of DeepSpeed's: what it held, and nothing of what it did."""


# What DeepSpeed pickles besides tensors and plain values, and what is read in its place.
_STAND_INS = [
    (_Inert, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (_Inert, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
]


def import_universal(folder: "str | Path", out: "str | Path", *, loss_scale: Optional[float] = None) -> str:
    """The name of the new checkpoint in `out`. `loss_scale`: for the next losses; by default what FOLDER says, else 1.
    Raises ConfigError, with the file's name, for a folder that is none."""
    source = _Universal(Path(folder))
    slices: List[Tuple[str, int, str]] = []
    for name in source.names:
        kinds = range(len(_STATES)) if name not in source.frozen else range(1)
        slices += [(name, kind, dtype_name(source.dtype(name))) for kind in kinds]
    held: List[torch.Tensor] = []

    def values(name: str, kind: int) -> int:
        held[:] = [source.values(name, kind)]
        return held[0].data_ptr()

    scale = source.loss_scale() if loss_scale is None else loss_scale
    return _shardplan.write_checkpoint(str(out), source.tensor_list(), source.step(), scale, slices, values)


class _Universal:
    """The folder: which tensors it has, of which shapes, and their values."""

    def __init__(self, folder: Path) -> None:
        self._zero = folder / "zero"
        models = sorted(folder.glob("*model_states.pt"))
        if not self._zero.is_dir() or not models:
            raise ConfigError(
                f"{folder}: is no universal checkpoint: expected zero/ and *_model_states.pt, as DeepSpeed's "
                "ds_to_universal writes them",
                str(folder),
            )
        shapes: Dict[str, Any] = {}  # of what is trained
        frozen: Dict[str, Any] = {}
        left_out = set()
        self._module: Dict[str, Any] = {}
        for path in models:  # of each stage of a pipeline
            self._model: Mapping[str, Any] = _read(path)
            for group in self._model.get("param_shapes") or []:
                shapes.update(group)
            frozen.update(self._model.get("frozen_param_shapes") or {})
            left_out |= set(self._model.get("buffer_names") or []) | set(self._model.get("shared_params") or {})
            self._module.update(self._model.get("module") or {})
        found = {str(path.parent.relative_to(self._zero)) for path in self._zero.rglob("fp32.pt")}
        missing = sorted((set(shapes) | set(frozen)) - found)
        if missing:
            raise ConfigError(f"{self._zero / missing[0]}: has no fp32.pt", str(folder), missing[0])
        self.names = sorted(found - left_out, key=_natural)
        self.frozen = {name for name in self.names if name not in shapes}
        self.shapes: Dict[str, List[int]] = {}
        for name in self.names:
            values = self._tensor(name, 0)
            shape = list(shapes.get(name) or frozen.get(name) or values.shape)
            if values.numel() != torch.Size(shape).numel():  # a slice's shape: tensor parallelism, merged
                shape = list(values.shape)
            self.shapes[name] = shape

    def tensor_list(self) -> str:
        tensors = [
            {"name": name, "shape": self.shapes[name], "trainable": name not in self.frozen} for name in self.names
        ]
        return json.dumps({"schema": "shardplan.tensors/1", "tensors": tensors})

    def dtype(self, name: str) -> torch.dtype:
        """A frozen tensor's own; DeepSpeed widens it."""
        own = self._module.get(name)
        return own.dtype if name in self.frozen and isinstance(own, torch.Tensor) else torch.float32

    def values(self, name: str, kind: int) -> torch.Tensor:
        shape = self.shapes[name]
        if kind > 0 and not self._path(name, kind).exists():
            return torch.zeros(shape)
        values = self._tensor(name, kind)
        if values.numel() != torch.Size(shape).numel():
            raise ConfigError(
                f"{self._path(name, kind)}: has {values.numel()} elements, expected {shape}", str(self._zero), name
            )
        return values.detach().to(self.dtype(name)).reshape(-1).contiguous()

    def step(self) -> int:
        """Steps that were applied: of the tensors, which are all at the same; stage 3 has none, and counts steps."""
        steps = {int(_read(path)) for path in self._zero.rglob("step.pt")}
        if len(steps) > 1:
            raise ConfigError(f"{self._zero}: tensors are at different steps: {sorted(steps)}", str(self._zero))
        if steps:
            return steps.pop()
        return int(self._model["global_steps"]) - int(self._model.get("skipped_steps") or 0)

    def loss_scale(self) -> float:
        path = self._zero / "optimizer_state.pt"
        if not path.exists():
            return 1.0
        try:
            scaler = _read(path).get("loss_scaler")
        except ConfigError as error:
            raise ConfigError(f"{error}: say the loss scale (--loss-scale)", str(path)) from error
        return float(getattr(scaler, "cur_scale", 1.0))

    def _path(self, name: str, kind: int) -> Path:
        return self._zero / name / f"{_STATES[kind]}.pt"

    def _tensor(self, name: str, kind: int) -> torch.Tensor:
        """{"param": tensor, ...}; of stage 3 a flat tensor."""
        path = self._path(name, kind)
        value = _read(path)
        value = value.get("param") if isinstance(value, dict) else value
        if not isinstance(value, torch.Tensor):
            raise ConfigError(f"{path}: expected a tensor", str(path))
        return value


def _read(path: Path) -> Any:
    """Tensors stay in the file until they are used."""
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever torch and pickle raise
        other = re.search(r"Unsupported \w+: \w+ ([\w.]+)", str(error))
        why = f"it holds {other[1]}, expected tensors and plain values" if other else str(error).split("\n")[0]
        raise ConfigError(f"{path}: cannot be read: {why}", str(path)) from error


def _natural(name: str) -> List[Any]:
    """layers.2 before layers.10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def main(words: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m shardplan.import_universal", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="FOLDER")
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("--loss-scale", type=float, help="for the next losses (what FOLDER says, else 1)")
    given = parser.parse_args(words)
    try:
        print(Path(given.out) / import_universal(given.folder, given.out, loss_scale=given.loss_scale))
    except Error as error:
        print(f"shardplan.import_universal: {error}", file=sys.stderr)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())
