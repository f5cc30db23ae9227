"""How a training's computation meets the plan: three ways to hand in gradients, one of which gathers parameters too.

  AtStep     gradients stay in `.grad` until step(), which hands them in; whatever was done to them counts
  AsReady    a unit's gradients are handed in once they are all there, in the plan's order, and `.grad` is None again
  ByModule   the same, and a unit's parameters are there from its first module's forward to the next unit's, and in its
             backward: for sharded parameters

The plan's order is units 0 to n-1 forward and n-1 to 0 backward, the same on every rank, so that collectives meet.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch

from ._parameters import Entry, dtype_name


class Views:
    """Torch tensors over the arena's bytes, made once for each address."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._known: Dict[Tuple[int, int], torch.Tensor] = {}

    def at(self, address: int, like: torch.Tensor) -> torch.Tensor:
        key = (address, id(like))
        view = self._known.get(key)
        if view is None:
            flat = torch.from_dlpack(self._engine.memory(address, like.numel() * like.element_size()))
            view = flat.view(like.dtype).view(like.shape)
            self._known[key] = view
        return view


def _gradient_hook(client: "weakref.ref[_Client]", unit: int, index: int) -> Callable[[torch.Tensor], None]:
    """Torch keeps it where Python's collector of cycles cannot look, so it must not keep the parameter."""

    def arrive(_: torch.Tensor) -> None:
        alive = client()
        if alive is not None:
            alive.arrive(unit, index)

    return arrive


class _Client:
    def __init__(self, engine: Any, units: List[List[Entry]]) -> None:
        self.engine = engine
        self.units = units
        self.views = Views(engine)
        self._hooks: List[Any] = []

    def take_resident_parameters(self) -> None:
        """The parameters become views of the arena."""
        for unit, entries in enumerate(self.units):
            for entry, address in zip(entries, self.engine.resident_parameters(unit)):
                if entry.tied_to is None and entry.parameter.numel() > 0:
                    entry.parameter.data = self.views.at(address, entry.parameter)

    def contribute(self, index: int, entry: Entry) -> None:
        gradient = entry.parameter.grad
        if gradient is None:
            return
        if gradient.layout != torch.strided:
            raise TypeError(f"{entry.name}: sparse gradients are not supported")
        gradient = gradient.contiguous()
        self.engine.contribute(index, gradient.data_ptr(), dtype_name(gradient.dtype))

    def contribute_unit(self, unit: int) -> None:
        self.engine.enter_backward(unit)
        for index, entry in enumerate(self.units[unit]):
            if entry.owns_gradient:
                self.contribute(index, entry)
        self.engine.leave(unit)

    def hook_gradients(self) -> None:
        for unit, entries in enumerate(self.units):
            for index, entry in enumerate(entries):
                if entry.owns_gradient:
                    hook = _gradient_hook(weakref.ref(self), unit, index)
                    self._hooks.append(entry.parameter.register_post_accumulate_grad_hook(hook))

    def arrive(self, unit: int, index: int) -> None:
        """A parameter's gradient is there."""
        raise NotImplementedError

    def finish(self) -> None:
        """Before step(): all that the plan has up to it."""
        raise NotImplementedError

    def close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


class AtStep(_Client):
    def __init__(self, engine: Any, units: List[List[Entry]]) -> None:
        super().__init__(engine, units)
        self.take_resident_parameters()

    def finish(self) -> None:
        self.engine.begin(False)
        self.engine.pass_forward()
        for unit in reversed(range(len(self.units))):
            self.contribute_unit(unit)


class AsReady(_Client):
    def __init__(self, engine: Any, units: List[List[Entry]]) -> None:
        super().__init__(engine, units)
        self.take_resident_parameters()
        self._next = -1  # the unit whose turn it is; -1: no micro-batch has begun
        self._missing: List[int] = []  # gradients that each unit still waits for
        self._arrived: set[int] = set()
        self.hook_gradients()

    def arrive(self, unit: int, index: int) -> None:
        entry = self.units[unit][index]
        if id(entry.parameter) in self._arrived:
            if unit <= self._next:
                raise RuntimeError(
                    f"{entry.name} has got a second gradient while its unit waits for others of the first backward"
                )
            self.finish()
        if self._next < 0:
            self._begin_micro_batch()
        self._arrived.add(id(entry.parameter))
        self._missing[unit] -= 1
        while self._next >= 0 and self._missing[self._next] == 0:
            self._hand_in()

    def _begin_micro_batch(self) -> None:
        self.engine.begin(False)
        self.engine.pass_forward()
        self._next = len(self.units) - 1
        self._arrived.clear()
        self._missing = [sum(entry.owns_gradient for entry in entries) for entries in self.units]

    def _hand_in(self) -> None:
        self.contribute_unit(self._next)
        for entry in self.units[self._next]:
            if entry.owns_gradient:
                entry.parameter.grad = None
        self._next -= 1

    def finish(self) -> None:
        """What has not come by now has no gradient."""
        while self._next >= 0:
            self._hand_in()
        self._arrived.clear()


@dataclass
class _Saved:
    """What autograd keeps instead of a view of a gathered parameter, which will lie elsewhere in the backward."""

    unit: int
    index: int
    size: torch.Size
    stride: Tuple[int, ...]
    offset: int


class ByModule(_Client):
    def __init__(self, engine: Any, units: List[List[Entry]], module: torch.nn.Module) -> None:
        super().__init__(engine, units)
        self._phase = "idle"  # idle, evaluate, forward, backward
        self._unit = -1  # that is entered; before the first one -1 (forward) or n (backward)
        self._addresses: List[int] = []
        self._index_at: Dict[int, int] = {}
        self._saving: Optional[torch.autograd.graph.saved_tensors_hooks] = None
        self._placeholders: Dict[int, torch.Tensor] = {}
        for unit in range(len(units)):
            self._put_away(unit)
        self._hook_modules(module)

    def _hook_modules(self, module: torch.nn.Module) -> None:
        self.hook_gradients()
        unit_of_name = {entry.name: unit for unit, entries in enumerate(self.units) for entry in entries}
        for path, child in module.named_modules(remove_duplicate=False):
            names = [f"{path}.{name}" if path else name for name, _ in child.named_parameters(recurse=False)]
            for unit in sorted({unit_of_name[name] for name in names if name in unit_of_name}):
                self._hooks.append(child.register_forward_pre_hook(lambda _, __, unit=unit: self._use(unit)))
        self._hooks.append(module.register_forward_pre_hook(lambda _, __: self._begin(), prepend=True))
        self._hooks.append(module.register_forward_hook(lambda _, __, ___: self._forward_ended(), always_call=True))

    # Parameters

    def _show(self, unit: int, addresses: List[int]) -> None:
        self._unit = unit
        self._addresses = addresses
        self._index_at = {address: index for index, address in enumerate(addresses)}
        for entry, address in zip(self.units[unit], addresses):
            if entry.parameter.numel() > 0:
                entry.parameter.data = self.views.at(address, entry.parameter)

    def _put_away(self, unit: int) -> None:
        """Keeps dtype and shape; what is read is not a number, and writing is an error."""
        for entry in self.units[unit]:
            key = id(entry.parameter)
            if key not in self._placeholders:
                nothing = torch.full((), float("nan"), dtype=entry.parameter.dtype)
                self._placeholders[key] = nothing.expand(entry.parameter.shape)
            entry.parameter.data = self._placeholders[key]

    def _leave(self) -> None:
        self._put_away(self._unit)
        self._index_at = {}
        self.engine.leave(self._unit)

    # Forward

    def _begin(self) -> None:
        if self._phase == "backward":
            self.finish()
        if self._phase != "idle":
            raise RuntimeError("a forward follows a forward without backward: evaluate inside of torch.no_grad()")
        training = torch.is_grad_enabled()
        self.engine.begin(not training)
        self._phase = "forward" if training else "evaluate"
        self._unit = -1
        if training:
            self._saving = torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)
            self._saving.__enter__()

    def _forward_ended(self) -> None:
        if self._saving is not None:
            self._saving.__exit__(None, None, None)
            self._saving = None
        if self._phase == "evaluate":
            self._forward_to_end()
            self._phase = "idle"

    def _use(self, unit: int) -> None:
        if self._phase == "backward":  # a forward that is computed again
            self._backward(unit)
            return
        if self._phase == "idle":
            raise RuntimeError("a part of the module is called by itself: expected the module that ZeroAdamW was given")
        if unit == self._unit:
            return
        if unit < self._unit:
            raise RuntimeError(
                f"unit {unit} is used after unit {self._unit}: stage 3 expects units in the order of their names, "
                "each once per forward"
            )
        while self._unit < unit:
            self._forward_step()

    def _forward_step(self) -> None:
        """On to the next unit; one that the module skips is gathered all the same, as its peers do."""
        if self._unit >= 0:
            self._leave()
        self._show(self._unit + 1, self.engine.enter_forward(self._unit + 1))

    def _forward_to_end(self) -> None:
        while self._unit < len(self.units) - 1:
            self._forward_step()
        self._leave()

    def _pack(self, tensor: torch.Tensor) -> Any:
        index = self._index_at.get(tensor.untyped_storage().data_ptr())
        if index is None:
            return tensor
        if tensor.dtype != self.units[self._unit][index].parameter.dtype:
            return tensor.clone()
        return _Saved(self._unit, index, tensor.size(), tensor.stride(), tensor.storage_offset())

    # Backward

    def _unpack(self, saved: Any) -> torch.Tensor:
        if not isinstance(saved, _Saved):
            return saved
        self._backward(saved.unit)
        view = self.views.at(self._addresses[saved.index], self.units[saved.unit][saved.index].parameter)
        return view.as_strided(saved.size, saved.stride, saved.offset)

    def _backward(self, unit: int) -> None:
        if self._phase == "forward":
            self._forward_to_end()
            self._phase = "backward"
            self._unit = len(self.units)
        if self._phase != "backward" or unit > self._unit:
            raise RuntimeError(
                f"unit {unit} is needed after the backward has come to unit {self._unit}: stage 3 expects one backward "
                "per forward, through units in reverse order"
            )
        while self._unit > unit:
            if self._unit < len(self.units):
                self._leave()
            self._show(self._unit - 1, self.engine.enter_backward(self._unit - 1))

    def arrive(self, unit: int, index: int) -> None:
        self._backward(unit)
        entry = self.units[unit][index]
        self.contribute(index, entry)
        entry.parameter.grad = None

    def finish(self) -> None:
        if self._phase == "idle":
            return
        self._backward(0)
        self._leave()
        self._phase = "idle"
