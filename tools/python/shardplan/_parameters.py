"""What the planner is told of a client's parameters: names, groups, ties, units."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Optional, Tuple, Union

import torch

from .errors import ConfigError

Parameters = Union[torch.nn.Module, Iterable[Any]]

_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
_POLICIES = {torch.float32: "fp32", torch.bfloat16: "bf16-mixed", torch.float16: "fp16-mixed"}
# Without names, consecutive parameters of at least so many bytes are a unit.
_BUCKET_BYTES = 25_000_000


@dataclass
class Entry:
    """A tensor of the catalog. A tied one shares its owner's parameter."""

    name: str
    parameter: torch.nn.Parameter
    group: Optional[int]  # of the optimizer; None: frozen
    tied_to: Optional[str] = None

    @property
    def trainable(self) -> bool:
        return self.group is not None

    @property
    def owns_gradient(self) -> bool:
        return self.trainable and self.tied_to is None


def dtype_name(dtype: torch.dtype) -> str:
    return _DTYPES[dtype]


def groups_of(params: Parameters) -> List[Dict[str, Any]]:
    """As torch.optim.Optimizer takes them; a module's are those that are trained."""
    if isinstance(params, torch.nn.Module):
        return [{"params": [parameter for parameter in params.parameters() if parameter.requires_grad]}]
    groups = list(params)
    return groups if groups and isinstance(groups[0], dict) else [{"params": groups}]


def entries_of(groups: List[Dict[str, Any]], module: Optional[torch.nn.Module]) -> List[Entry]:
    """The tensors in order: the module's, or those of the groups. Raises ConfigError."""
    group_of = {id(parameter): index for index, group in enumerate(groups) for parameter in group["params"]}
    entries: List[Entry] = []
    owners: Dict[int, str] = {}
    for name, parameter in _named(groups, module):
        group = group_of.pop(id(parameter), None) if id(parameter) not in owners else None
        if id(parameter) in owners:
            owner = next(entry for entry in entries if entry.name == owners[id(parameter)])
            entries.append(Entry(name, parameter, owner.group, tied_to=owner.name))
            continue
        owners[id(parameter)] = name
        entries.append(Entry(name, parameter, group if parameter.requires_grad else None))
    if group_of:
        raise ConfigError("parameters: a parameter group has a parameter that is not of the module", "parameters")
    for entry in entries:
        _check(entry)
    return entries


def policy_of(entries: List[Entry]) -> str:
    trained = [entry.parameter.dtype for entry in entries if entry.trainable]
    if not trained:
        raise ConfigError("parameters: none is trained", "parameters")
    return _POLICIES[trained[0]]


def tensor_list(entries: List[Entry], parameter_dtype: torch.dtype) -> str:
    """planner/formats/tensor_list.h. A tensor of another dtype than the policy's parameters keeps its own."""
    tensors = []
    for entry in entries:
        tensor: Dict[str, Any] = {
            "name": entry.name,
            "shape": list(entry.parameter.shape),
            "trainable": entry.trainable,
        }
        if entry.parameter.dtype != parameter_dtype:
            tensor["dtype"] = _DTYPES[entry.parameter.dtype]
        if entry.tied_to is not None:
            tensor["tied_to"] = entry.tied_to
        if entry.name.startswith("buckets."):
            tensor["unit"] = ".".join(entry.name.split(".")[:2])
        tensors.append(tensor)
    return json.dumps({"schema": "shardplan.tensors/1", "tensors": tensors})


def _named(groups: List[Dict[str, Any]], module: Optional[torch.nn.Module]) -> Iterable[Tuple[str, torch.nn.Parameter]]:
    if module is not None:
        yield from module.named_parameters(remove_duplicate=False)
        return
    bucket, filled, place = 0, 0, 0
    for group in groups:
        names = group.get("param_names")
        for index, parameter in enumerate(group["params"]):
            if names is not None:
                yield names[index], parameter
                continue
            yield f"buckets.{bucket}.{place}", parameter
            place += 1
            filled += parameter.numel() * parameter.element_size()
            if filled >= _BUCKET_BYTES:
                bucket, filled, place = bucket + 1, 0, 0


def _check(entry: Entry) -> None:
    parameter = entry.parameter
    problem = None
    if parameter.device.type != "cpu":
        problem = f"is on {parameter.device}: expected parameters on the CPU, which is all that ZeroAdamW trains so far"
    elif parameter.dtype not in _DTYPES:
        problem = f"is of {parameter.dtype}: expected float32, bfloat16 or float16"
    if problem:
        raise ConfigError(f"parameters: {entry.name}: {problem}", "parameters", entry.name, problem)
