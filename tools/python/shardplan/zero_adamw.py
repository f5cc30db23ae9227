"""ZeroAdamW: torch.optim.AdamW over several processes, each of which keeps a part."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch

from . import _shardplan
from ._clients import AsReady, AtStep, ByModule
from ._parameters import Entry, Parameters, dtype_name, entries_of, groups_of, policy_of, tensor_list
from .errors import ConfigError
from .planning import words_of
from .transports import communicator_for

_KINDS = ("master", "exp_avg", "exp_avg_sq")  # by StateKind


@dataclass(frozen=True)
class LossScaling:
    """torch.amp.GradScaler's rule: shrink after a step that was skipped, grow after `growth_interval` that were not."""

    init_scale: float = 2.0**16
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000


@dataclass(frozen=True)
class StepReport:
    """What a step did. `norm` is of the unscaled gradients before clipping, not finite if the step was skipped."""

    step: int
    skipped: bool
    norm: float
    clip_factor: float
    loss_scale: float
    sent_bytes: int
    communication_seconds: float
    update_seconds: float


@dataclass(frozen=True)
class Loaded:
    """A checkpoint that was loaded. `name` is empty where there was no whole one: the optimizer then has its initial
    values. `client`: as it was saved. `notes`: which checkpoints were passed over, and why."""

    name: str
    client: bytes
    notes: Tuple[str, ...]


class ZeroAdamW(torch.optim.Optimizer):
    """AdamW whose states (stage 1), gradients (2) and parameters (3) are shared out over the ranks.

    Takes a module (stage 3 needs it; units follow from its names), or parameters or groups as torch.optim.AdamW does,
    with `module` for their names. Construct it on every rank, with the same arguments and the same initial values.
    Parameters become views of the optimizer's arena. Gradients are averaged over ranks, and over `accumulation`
    backwards per step (do not divide the loss by it).

    stage 1      `.grad` stays until step(), and whatever was done to it counts (with accumulation: as stage 2)
    stage 2, 3   a unit's gradients are handed in during backward, and `.grad` is None afterwards
    stage 3      a parameter outside of its unit's forward and backward is not a number: see full_parameters()

    `param_groups` stay the source of the learning rate, betas, eps and weight_decay, which schedulers may set.
    `max_norm` clips as torch.nn.utils.clip_grad_norm_ does; `last_step` reports the norm. fp32 parameters are trained
    in fp32, 16-bit ones as "bf16-mixed" or "fp16-mixed", with masters and moments in fp32; `precision` names another
    policy. `prefetch`: how many units ahead stage 3 gathers; each costs one gathered unit.

    `transport`: "shared" (one host), "process_group", or "auto": shared where all ranks are on one host. Ranks are
    those of `process_group` (default: torch.distributed's world, or one rank without it), or of `communicator`. No wait
    for a rank is longer than `deadline_seconds`.

    state_dict() is collective, has whole tensors in torch.optim.AdamW's format, and the parameters in full precision
    under "master": it loads at any stage and on any number of ranks. save() and load() do the same with files, streamed.

    Raises ConfigError, OutOfMemory (when constructed, never later) and CommunicationError.
    """

    _step_supports_amp_scaling = True  # so that torch's own scaler reaches step(), which refuses it

    def __init__(
        self,
        params: Parameters,
        lr: float = 1e-3,
        betas: Tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        stage: int = 1,
        module: Optional[torch.nn.Module] = None,
        max_norm: Optional[float] = None,
        accumulation: int = 1,
        precision: Optional[str] = None,
        prefetch: int = 1,
        loss_scaling: Optional[LossScaling] = None,
        process_group: Any = None,
        communicator: Optional[_shardplan.Communicator] = None,
        transport: str = "auto",
        deadline_seconds: float = 300.0,
    ) -> None:
        if stage not in (1, 2, 3):
            raise ConfigError(f"stage: {stage}: expected 1, 2 or 3", "stage")
        if isinstance(params, torch.nn.Module):
            module = params
        if stage == 3 and module is None:
            raise ConfigError("stage: 3 needs the module, whose forward gathers parameters", "stage")
        defaults = dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
        super().__init__(groups_of(params), defaults)
        self.last_step: Optional[StepReport] = None
        self._saving = False  # in the background
        self.loss_scaling = loss_scaling
        self._entries = entries_of(self.param_groups, module)
        if communicator is None:
            communicator = communicator_for(process_group, transport, deadline_seconds)
        trained = next((entry.parameter for entry in self._entries if entry.trainable), None)
        setup = dict(
            gpus=communicator.size,
            zero=stage,
            precision=precision or policy_of(self._entries),
            prefetch=prefetch,
            grad_accum=accumulation,
            transport="direct" if communicator.reads_peers else "staged",
        )
        self._engine = _shardplan.Engine(
            tensor_list(self._entries, trained.dtype),
            words_of(None, setup),
            self._hyperparameters(),
            [(entry.name, entry.group or 0) for entry in self._entries],
            max_norm or 0.0,
            (
                None
                if loss_scaling is None
                else (
                    loss_scaling.init_scale,
                    loss_scaling.growth_factor,
                    loss_scaling.backoff_factor,
                    loss_scaling.growth_interval,
                )
            ),
            communicator,
            self._addressed({entry.name: entry.parameter.detach().contiguous() for entry in self._owned()}),
        )
        by_name = {entry.name: entry for entry in self._entries}
        units = [[by_name[name] for name in names] for _, names in self._engine.units]
        if self._engine.shards_parameters:
            self._client = ByModule(self._engine, units, module)
        elif stage == 1 and accumulation == 1:
            self._client = AtStep(self._engine, units)
        else:
            self._client = AsReady(self._engine, units)

    def add_param_group(self, param_group: Dict[str, Any]) -> None:
        if hasattr(self, "_engine"):
            raise RuntimeError("ZeroAdamW has planned its memory: parameter groups cannot be added")
        super().add_param_group(param_group)

    def step(self, closure: Optional[Callable[[], Any]] = None) -> Any:
        """Ends a step on all ranks: norm, clip, update. A gradient that is not finite on one rank skips it on all."""
        if getattr(self, "grad_scale", None) is not None:
            raise RuntimeError(
                "torch.amp.GradScaler looks at this rank's gradients only, and ranks would go on with different "
                "scales: use shardplan.GradScaler"
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._set_hyperparameters()
        self._client.finish()
        self.last_step = StepReport(**self._engine.step())
        if self._saving:
            self._saving = False
            self._saving = self._engine.finish_save(False) is None
        return loss

    @property
    def loss_scale(self) -> float:
        """What the next loss is multiplied by: 1 without loss_scaling."""
        return self._engine.loss_scale

    @property
    def clean_steps(self) -> int:
        """Steps since the loss scale has changed, or a step was skipped."""
        return self._engine.clean_steps

    @property
    def plan_hash(self) -> str:
        return self._engine.plan_hash

    @property
    def arena_bytes(self) -> int:
        """What this rank has allocated: all that the optimizer will ever hold."""
        return self._engine.arena_bytes

    def full_parameters(self) -> Dict[str, torch.Tensor]:
        """Collective: the parameters in full precision, by name, whatever the stage."""
        return self._read("master", self._owned())

    def state_dict(self) -> Dict[str, Any]:
        trained = self._trained()
        values = {kind: self._read(kind, trained) for kind in _KINDS}
        step = float(self._engine.steps_applied)
        for entry in trained:
            self.state[entry.parameter] = {
                "step": torch.tensor(step),
                **{kind: values[kind][entry.name] for kind in _KINDS},
            }
        try:
            state = super().state_dict()
        finally:
            self.state.clear()
        state["loss_scaling"] = {"scale": self._engine.loss_scale, "clean_steps": self._engine.clean_steps}
        return state

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Also of torch.optim.AdamW, which has no "master": the parameters then stay what they are."""
        super().load_state_dict({"state": {}, "param_groups": state_dict["param_groups"]})
        saved = state_dict["state"]
        order = [parameter for group in self.param_groups for parameter in group["params"]]
        state_of = {id(parameter): saved[index] for index, parameter in enumerate(order) if index in saved}
        missing = [entry for entry in self._trained() if id(entry.parameter) not in state_of]
        if missing and saved:
            raise ConfigError(f"state_dict: nothing for {missing[0].name}", "state_dict", missing[0].name)
        steps = {int(state["step"]) for state in state_of.values()} or {0}
        if len(steps) != 1:
            raise ConfigError(f"state_dict: tensors are at different steps: {sorted(steps)}", "state_dict", "step")
        values: Dict[str, Dict[str, torch.Tensor]] = {kind: {} for kind in _KINDS}
        if any("master" not in state for state in state_of.values()) or len(self._trained()) < len(self._owned()):
            values["master"] = self._read("master", self._owned())
        for entry in self._trained():
            state = state_of.get(id(entry.parameter), {})
            for kind in _KINDS:
                if kind in state:
                    values[kind][entry.name] = _like(entry, kind, state[kind])
                elif kind != "master":
                    values[kind][entry.name] = torch.zeros(entry.parameter.shape)
        scaling = state_dict.get("loss_scaling", {"scale": self._engine.loss_scale, "clean_steps": 0})
        self._engine.write_state(
            steps.pop(), scaling["scale"], scaling["clean_steps"], [self._addressed(values[kind]) for kind in _KINDS]
        )
        self._set_hyperparameters()

    def save(
        self, folder: "str | os.PathLike[str]", *, client: bytes = b"", keep: int = 0, memory_bytes: int = 64 << 20
    ) -> str:
        """Collective: a new checkpoint in `folder` (docs/checkpoints.md), and its name. Every rank writes what it holds,
        with at most `memory_bytes` beyond its arena; the folder has the old checkpoints or the new one too, whole,
        after a crash at any instant. `client` are bytes of the caller's, rank 0's are kept. `keep`: how many whole
        checkpoints stay; 0: all. Raises CheckpointError, on every rank, where one could not write."""
        name = self._engine.save(os.fspath(folder), client, keep, memory_bytes, False)
        assert name is not None
        return name

    def save_in_background(
        self, folder: "str | os.PathLike[str]", *, client: bytes = b"", keep: int = 0, memory_bytes: int = 64 << 20
    ) -> None:
        """Collective: as save(), while training goes on. Copies what this rank saves into host memory, which the first
        call allocates (`shardplan.plan(..., save_background=True)` says how much), and writes from there by another
        thread. One save is under way at most: the one before is finished first. step() publishes it once every rank
        has written, and raises what went wrong, after the step; finish_save() waits for it."""
        self._engine.save(os.fspath(folder), client, keep, memory_bytes, True)
        self._saving = True

    def finish_save(self) -> str:
        """Collective: waits for the save in the background, and gives its name; "" if there never was one."""
        self._saving = False
        name = self._engine.finish_save(True)
        assert name is not None
        return name

    def load(self, folder: "str | os.PathLike[str]") -> Loaded:
        """Collective: what `folder` says is the latest checkpoint, or the newest that is whole; of any stage and any
        number of ranks. Learning rates and other hyperparameters stay. Raises ConfigError, with the tensor's name, for
        a checkpoint of another model or of state in other dtypes."""
        name, client, notes = self._engine.load(os.fspath(folder))
        return Loaded(name, client, tuple(notes))

    def close(self) -> None:
        """Removes the hooks on parameters and modules."""
        self._client.close()

    def _owned(self) -> List[Entry]:
        return [entry for entry in self._entries if entry.tied_to is None]

    def _trained(self) -> List[Entry]:
        return [entry for entry in self._entries if entry.owns_gradient]

    def _hyperparameters(self) -> List[Tuple[float, float, float, float, float]]:
        return [(float(g["lr"]), *g["betas"], g["eps"], g["weight_decay"]) for g in self.param_groups]

    def _set_hyperparameters(self) -> None:
        for index, values in enumerate(self._hyperparameters()):
            self._engine.set_hyperparameters(index, *values)

    @staticmethod
    def _addressed(tensors: Dict[str, torch.Tensor]) -> List[Tuple[str, int, str]]:
        return [(name, tensor.data_ptr(), dtype_name(tensor.dtype)) for name, tensor in tensors.items()]

    def _read(self, kind: str, entries: List[Entry]) -> Dict[str, torch.Tensor]:
        tensors = {entry.name: torch.empty(entry.parameter.shape) for entry in entries}
        self._engine.read_state(_KINDS.index(kind), self._addressed(tensors))
        return tensors


class GradScaler:
    """torch.amp.GradScaler's calls, for the loss scale that a ZeroAdamW(loss_scaling=...) keeps: the same on every
    rank, and changed by step() itself. The norm and max_norm are of unscaled gradients. What it has to remember is in
    the optimizer's state_dict."""

    def __init__(self, optimizer: ZeroAdamW) -> None:
        self._optimizer = optimizer

    def scale(self, outputs: torch.Tensor) -> torch.Tensor:
        return outputs * self._optimizer.loss_scale

    def unscale_(self, optimizer: ZeroAdamW) -> None:
        raise RuntimeError("gradients are unscaled inside of step(): clip with ZeroAdamW(max_norm=...)")

    def step(self, optimizer: ZeroAdamW, closure: Optional[Callable[[], Any]] = None) -> Any:
        if optimizer is not self._optimizer:
            raise RuntimeError("expected the optimizer that this scaler was made for")
        return optimizer.step(closure)

    def update(self) -> None:
        """Nothing is left to do: the scale has changed in step()."""

    def get_scale(self) -> float:
        return self._optimizer.loss_scale

    def is_enabled(self) -> bool:
        return self._optimizer.loss_scaling is not None

    def state_dict(self) -> Dict[str, Any]:
        """As torch's, for whoever looks at it."""
        rule = self._optimizer.loss_scaling
        if rule is None:
            return {}
        return {
            "scale": self._optimizer.loss_scale,
            "growth_factor": rule.growth_factor,
            "backoff_factor": rule.backoff_factor,
            "growth_interval": rule.growth_interval,
            "_growth_tracker": self._optimizer.clean_steps,
        }

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        """Nothing is left to do: ZeroAdamW.load_state_dict() restores the scale."""


def _like(entry: Entry, kind: str, value: torch.Tensor) -> torch.Tensor:
    if value.shape != entry.parameter.shape:
        raise ConfigError(
            f"state_dict: {entry.name}: {kind} has the shape {tuple(value.shape)}, "
            f"expected {tuple(entry.parameter.shape)}",
            "state_dict",
            entry.name,
        )
    return value.detach().to("cpu", torch.float32).contiguous()
