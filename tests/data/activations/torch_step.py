"""One training step of a model, as PyTorch itself would allocate it on a GPU, measured without one.

The model lives on fake CUDA tensors (torch._subclasses.FakeTensorMode): shapes, dtypes, views, storages and the autograd
graph are PyTorch's own; no byte is allocated and no kernel runs. What a kernel allocates inside itself (the workspace of
a reduction, dq_accum of the flash backward) is no tensor and is not seen.

    saved_tensors(...)   what the graph of the loss keeps for backward, each storage once
    step_memory(...)     the live bytes through forward, loss and backward, by our own tracker and by torch's MemTracker
"""
import contextlib
import ctypes
import gc
import math
import os
import subprocess
import tempfile
import weakref

import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

BLOCK = 512  # kMinBlockSize of c10/cuda/CUDACachingAllocator.cpp; MemTracker rounds to it as well

# A CUDA build without a GPU lets fake CUDA tensors go forward (FakeTensorMode installs a device guard that does nothing),
# but autograd asks whether device 0 has a context, and that throws. This answers yes: it gives the hooks object a copy
# of its table of virtual functions with that one entry replaced.
PRETEND_CONTEXT = r"""
#include <ATen/detail/CUDAHooksInterface.h>
#include <cstring>
static bool yes(const void*, c10::DeviceIndex) { return true; }
extern "C" void pretend_context() {
  auto& hooks = const_cast<at::CUDAHooksInterface&>(at::detail::getCUDAHooks());
  bool (at::CUDAHooksInterface::*member)(c10::DeviceIndex) const = &at::CUDAHooksInterface::hasPrimaryContext;
  std::ptrdiff_t offset;  // Itanium ABI: 1 + the offset of the entry
  std::memcpy(&offset, &member, sizeof offset);
  constexpr std::size_t before = 2, entries = 128;
  void*** object = reinterpret_cast<void***>(&hooks);
  void** table = new void*[before + entries];
  std::memcpy(table, *object - before, (before + entries) * sizeof(void*));
  table[before + (offset - 1) / sizeof(void*)] = reinterpret_cast<void*>(&yes);
  *object = table + before;
}
"""


def work_without_gpu():
    """Lets autograd and autocast take fake CUDA tensors for real ones."""
    if torch.cuda.is_available():
        return
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.jit._state.disable()  # scripted functions would ask for the driver
    torch.cuda.is_bf16_supported = lambda including_emulation=True: True
    if not torch.backends.cuda.is_built():
        return
    root = os.path.dirname(torch.__file__)
    with tempfile.TemporaryDirectory() as folder:
        source, library = os.path.join(folder, "context.cpp"), os.path.join(folder, "context.so")
        with open(source, "w", encoding="utf-8") as file:
            file.write(PRETEND_CONTEXT)
        subprocess.run(["g++", "-std=c++20", "-O1", "-shared", "-fPIC", f"-I{root}/include", source, "-o", library,
                        f"-L{root}/lib", "-ltorch_cpu", "-lc10"], check=True)
        ctypes.CDLL(library).pretend_context()


# --- attention: which operator F.scaled_dot_product_attention reaches on a GPU -------------------------------------------
# On fake tensors PyTorch falls to the math path, since the choice looks at the card. This is the choice of
# aten/src/ATen/native/transformers/cuda/sdp_utils.cpp for compute capability 8.0 (flash, then efficient, then math), and
# the wrapping of attention.cpp around the operators.

sdpa_choices = set()


def _pad_last(tensor, multiple):
    rest = tensor.shape[-1] % multiple
    return F.pad(tensor, (0, multiple - rest)) if rest else tensor


def _efficient_mask(mask, query, key):
    if mask is None:
        return None
    if any(stride % 16 for stride in mask.stride()[:-1]) or mask.stride(-1) != 1:
        mask = _pad_last(mask, 16)[..., : mask.shape[-1]]
    return mask.expand(query.shape[0], query.shape[1], query.shape[2], key.shape[2])


def _sdpa_on_gpu(of_torch):
    def attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if torch.is_autocast_enabled("cuda"):
            dtype = torch.get_autocast_dtype("cuda")
            query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
            if attn_mask is not None and attn_mask.is_floating_point():
                attn_mask = attn_mask.to(dtype)
            with torch.autocast("cuda", enabled=False):
                return attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        half = query.dtype in (torch.bfloat16, torch.float16)
        size = query.shape[-1]
        grouped = query.shape[1] != key.shape[1]
        fused = query.dim() == 4  # no kernel takes three dims
        if fused and half and attn_mask is None and size == value.shape[-1] and size <= 256:
            sdpa_choices.add("flash")
            padded = [_pad_last(tensor, 8) for tensor in (query, key, value)]
            factor = size**-0.5 if scale is None else scale
            out = torch.ops.aten._scaled_dot_product_flash_attention(*padded, dropout_p, is_causal, False, scale=factor)[0]
            return out[..., :size] if out.shape[-1] != size else out
        aligned = 8 if half else 4
        if fused and not grouped and size % aligned == 0 and value.shape[-1] % aligned == 0:
            sdpa_choices.add("efficient")
            if attn_mask is not None and attn_mask.dtype == torch.bool:
                nothing = torch.scalar_tensor(float("-inf"), dtype=query.dtype, device=query.device)
                attn_mask = torch.where(attn_mask, 0.0, nothing)
            keep = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
            return torch.ops.aten._scaled_dot_product_efficient_attention(
                query, key, value, _efficient_mask(attn_mask, query, key), keep, dropout_p, is_causal, scale=scale)[0]
        sdpa_choices.add("math")
        return of_torch(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    return attention


def added(a, b):
    """The sum of two numbers, or of lists of as many or a list and a number, element by element. None where it is neither."""
    if isinstance(a, list) and isinstance(b, list):
        return [x + y for x, y in zip(a, b)] if len(a) == len(b) else None
    if isinstance(a, list) or isinstance(b, list):
        return [x + y for x in (a if isinstance(a, list) else [a]) for y in (b if isinstance(b, list) else [b])]
    return a + b


class Answers(TorchDispatchMode):
    """What the data would decide. A condition on a tensor holds or not (is no token padding?), but that a tensor of ones is one (a mask
    that the model makes itself) always holds; a random number is never less than a probability of 0 (layer drop). Of N choices of experts the first i of E
    get floor(imbalance i N / E), but one of each token at most. A tensor of integers that follow from this has them as its
    attribute `known`, as a list or a number, and so has what is made of it. Times and rates, which torch.arange and
    torch.linspace make of floats, have their values as the attribute `clock`, a tensor on the CPU, and so has what is made
    of such tensors and numbers alone."""

    def __init__(self, condition, experts, imbalance):
        super().__init__()
        self.condition, self.experts, self.imbalance = condition, experts, imbalance
        self.choices = self.chosen = 0  # of the latest topk: tokens x chosen, and of each token
        self.asked = iter(())           # experts whose tokens are asked for next

    def of_first(self, some):
        most = self.choices // self.chosen * min(some, self.chosen)
        return math.floor(min(self.imbalance * (some * self.choices) / self.experts, most)) if some > 0 else 0

    def share(self, expert):
        return self.of_first(expert + 1) - self.of_first(expert)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            if hasattr(args[0], "known"):
                return args[0].known
            if hasattr(args[0], "clock"):
                with _disable_current_modes():
                    return args[0].clock.item()
            if args[0].dtype == torch.bool:
                if hasattr(args[0], "all_one"):
                    return True
                return self.condition and not hasattr(args[0], "from_less_than")
        if func is torch.ops.aten.nonzero.default and self.experts:
            return self.nonzero(args[0])
        if func is torch.ops.aten.index.Tensor and any(i is not None and i.dtype == torch.bool for i in args[1]):
            return args[0].new_empty(args[1][0].selected, *args[0].shape[args[1][0].dim():])
        if func is torch.ops.aten.masked_select.default:
            return args[0].new_empty(args[1].selected)
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.lt.Scalar:
            result.from_less_than = True
        self.carry(func, args, result)
        self.carry_times(func, args, kwargs or {}, result)
        return result

    def carry_times(self, func, args, kwargs, result):
        tensors = [value for value in pytree.tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
        if tensors and not all(hasattr(tensor, "clock") for tensor in tensors):
            return
        makers = (torch.ops.aten.arange, torch.ops.aten.linspace)
        if not tensors and (func.overloadpacket not in makers or not any(isinstance(a, float) for a in args)):
            return
        with _disable_current_modes():
            args, kwargs = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.clock, (args, kwargs))
            real = func(*args, **{**kwargs, "device": "cpu"} if "device" in kwargs else kwargs)
        for value, of_value in zip(pytree.tree_leaves(result), pytree.tree_leaves(real)):
            if isinstance(value, torch.Tensor):
                value.clock = of_value

    def nonzero(self, mask):
        if mask.dim() == 1:  # which experts have tokens
            hit = [expert for expert in range(self.experts) if self.share(expert) > 0]
            self.asked = iter(hit)
            found = torch.empty(len(hit), 1, dtype=torch.int64, device=mask.device)
            found.known = hit
            return found
        if self.chosen == 0:  # drawn, not the most probable ones (phimoe)
            self.choices, self.chosen = mask.numel(), min(mask.shape)
        expert = next(self.asked, None)
        if expert is None:
            self.asked = iter(range(self.experts))
            expert = next(self.asked)
        return torch.empty(self.share(expert), 2, dtype=torch.int64, device=mask.device)

    def carry(self, func, args, result):
        aten, source = torch.ops.aten, args[0] if args else None
        if func is aten.ones.default or hasattr(source, "all_one") and (
                func is aten.all.default or func is aten.eq.Scalar and args[1] == 1):
            result.all_one = True
        if func is aten.topk.default:
            self.choices, self.chosen = result[1].numel(), args[1]
        # Choices of each expert: one-hot rows of each token.
        if func is aten.sum.dim_IntList and hasattr(source, "chosen") and args[1] == [0]:
            result.known = [self.share(i) for i in range(self.experts)]
        if func is aten.scatter_.value and source.dtype == torch.int64:
            result.chosen = source.chosen = args[2].shape[-1]
        if func is aten.eq.Scalar and hasattr(source, "of_images"):  # which tokens stand for images
            result.selected = source.of_images
        if func is aten.ne.Scalar and source.dtype == torch.int64:  # which tokens are none of padding: all
            result.selected = source.numel()
        if func in (aten.unsqueeze.default, aten.expand.default) and hasattr(source, "selected"):
            result.selected = source.selected * (result.numel() // source.numel())
        if func in (aten.arange.default, aten.arange.start) and result.dtype == torch.int64:
            result.known = list(range(*(int(bound) for bound in args)))
        if not hasattr(source, "known"):
            return
        known = source.known
        if func is aten.unbind.int:
            for part, value in zip(result, known):
                part.known = value
        elif func is aten.slice.Tensor or func is aten.select.int and not isinstance(known, list):
            result.known = known
        elif func is aten.select.int:
            result.known = known[args[2]]
        elif func is aten.eq.Scalar:
            result.known = known == args[1]
        elif func is aten.add.Tensor:
            more = args[1].known if hasattr(args[1], "known") else args[1]
            if not isinstance(more, torch.Tensor):
                result.known = added(known, more)


@contextlib.contextmanager
def fake_gpu(condition=True, experts=0, imbalance=1):
    """Fake CUDA tensors, with the attention operators of a GPU."""
    of_torch = F.scaled_dot_product_attention
    sdpa_choices.clear()
    F.scaled_dot_product_attention = _sdpa_on_gpu(of_torch)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), Answers(condition, experts, imbalance):
            yield
    finally:
        F.scaled_dot_product_attention = of_torch


# --- which module runs ----------------------------------------------------------------------------------------------------


class ModulePath:
    """The name of the module whose forward runs, and the autograd sequence number at which each began or went on."""

    def __init__(self, model):
        self.names = {module: name for name, module in model.named_modules()}
        self.stack, self.events, self.on_enter, self.on_leave = [""], [(0, "")], [], []
        self.handles = []
        for module in self.names:
            self.handles.append(module.register_forward_pre_hook(self._enter))
            self.handles.append(module.register_forward_hook(self._leave, always_call=True))

    def _mark(self):
        self.events.append((torch.autograd._get_sequence_nr(), self.stack[-1]))

    def _enter(self, module, args):
        self.stack.append(self.names[module])
        self._mark()
        for call in self.on_enter:
            call(self.names[module], module)

    def _leave(self, module, args, output):
        for call in self.on_leave:
            call(self.names[module], module, output)
        self.stack.pop()
        self._mark()

    def of_node(self, sequence_number):
        found = ""
        for number, name in self.events:
            if number > sequence_number:
                break
            found = name
        return found

    def remove(self):
        for handle in self.handles:
            handle.remove()


def block_names(model):
    """The items of the outermost module lists: what repeats."""
    found = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.ModuleList) and not any(name.startswith(block + ".") for block in found):
            found += [f"{name}.{i}" for i in range(len(module))]
    return found


def group_of(name, blocks):
    """The block that a module belongs to, and its name inside it; a module outside all blocks is its own group."""
    for block in blocks:
        if name == block or name.startswith(block + "."):
            return block, name[len(block) + 1:]
    return name or "(loss)", ""


# --- saved tensors ------------------------------------------------------------------------------------------------------


def _key(tensor):
    return tensor.untyped_storage()._cdata


def _nodes(loss):
    found, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in found:
            continue
        found.add(node)
        todo += [following for following, _ in node.next_functions]
    nodes = [node for node in found if type(node).__name__ != "AccumulateGrad"]
    return sorted(nodes, key=lambda node: node._sequence_nr())


def _saved_of(node):
    """(name, tensor) of all that a node keeps."""
    if hasattr(node, "saved_tensors"):
        return [(str(i), tensor) for i, tensor in enumerate(node.saved_tensors) if tensor is not None]
    found = []
    for name in dir(node):
        if not name.startswith("_saved_"):
            continue
        value = getattr(node, name)
        values = value if isinstance(value, (list, tuple)) else [value]
        for i, tensor in enumerate(values):
            if isinstance(tensor, torch.Tensor):
                found.append((name[7:] + (f"[{i}]" if len(values) > 1 else ""), tensor))
    return found


def own_storages(model):
    return {_key(tensor) for tensor in [*model.parameters(), *model.buffers()]}


def saved_tensors(model, forward, inputs):
    """[(group, [entry ...])] in the order of forward. An entry is
    [module, node, name, shape, dtype, bytes of the storage, owner]: owner is null where the storage is counted, the index
    of the entry in this group that counts it, "before" for an earlier group, or "input" for a storage of the batch.
    Storages of parameters and buffers are left out; so is what is not on the GPU."""
    path = ModulePath(model)
    try:
        loss = forward()
    finally:
        path.remove()
    blocks, own, batch = block_names(model), own_storages(model), {_key(tensor) for tensor in inputs}
    groups, counted = {}, {}
    for node in _nodes(loss):
        group, inside = group_of(path.of_node(node._sequence_nr()), blocks)
        for name, tensor in _saved_of(node):
            key = _key(tensor)
            if key in own or tensor.device.type != "cuda":
                continue
            entries = groups.setdefault(group, [])
            size, owner = tensor.untyped_storage().nbytes(), None
            if key in batch:
                size, owner = 0, "input"
            elif key in counted:
                size, owner = 0, counted[key][1] if counted[key][0] == group else "before"
            else:
                counted[key] = (group, len(entries), tensor)  # holds it: an address is not used twice
            entries.append([inside, type(node).__name__.removesuffix("Backward0"), name, list(tensor.shape),
                            str(tensor.dtype).removeprefix("torch."), size, owner])
    return list(groups.items())


# --- live bytes ---------------------------------------------------------------------------------------------------------


def rounded(size):
    return (size + BLOCK - 1) // BLOCK * BLOCK


class LiveStorages(TorchDispatchMode):
    """Counts each storage on the GPU from the operator that made it to its end."""

    def __init__(self, known):
        super().__init__()
        self.live, self.now, self.exact = {}, 0, 0
        self.path, self.phase = None, "before"
        for kind, tensors in known.items():
            for tensor in tensors:
                self._add(tensor, (kind, kind, "", ""))
        self.peak = self.high = self.now
        self.exact_peak, self.at_peak, self.marks = self.exact, None, []

    def _add(self, tensor, made_by):
        if tensor.device.type != "cuda":
            return False
        storage = tensor.untyped_storage()
        reference = weakref.ref(storage, self._gone)
        if reference in self.live:
            return False
        size = storage.nbytes()
        self.live[reference] = (size, made_by, list(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        self.now += rounded(size)
        self.exact += size
        return True

    def _gone(self, reference):
        size = self.live.pop(reference)[0]
        self.now -= rounded(size)
        self.exact -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        operator = func.overloadpacket.__name__
        where = self.path.stack[-1] if self.path else ""
        made = (self.phase, operator, where, self._node())
        added = False
        for value in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(value, torch.Tensor):
                added |= self._add(value, made)
        if added:
            self.high = max(self.high, self.now)
            self.exact_peak = max(self.exact_peak, self.exact)
            if self.now > self.peak:
                self.peak = self.now
                self.at_peak = (made, list(self.live.values()))
        return result

    def _node(self):
        if self.phase != "backward":
            return ""
        node = torch._C._current_autograd_node()
        return type(node).__name__.removesuffix("Backward0") if node is not None else ""

    def made_in_forward(self):
        return [entry for entry in self.live.values() if entry[1][0] == "forward"]

    def mark(self, label):
        """[label, live now, highest since the mark before]"""
        self.marks.append([label, self.now, self.high])
        self.high = self.now


def _first_tensor(value):
    if isinstance(value, torch.Tensor):
        return value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []:
        found = _first_tensor(item)
        if found is not None:
            return found
    return None


def step_memory(model, forward, inputs):
    """The live bytes of one step: where it peaks and what lives there, and a curve with a mark at each block."""
    gc.collect()
    gc.disable()
    known = {"parameters": list(model.parameters()), "buffers": list(model.buffers()), "inputs": inputs}
    tracker, path = LiveStorages(known), ModulePath(model)
    tracker.path = path
    blocks = set(block_names(model))
    known = None

    def enter(name, module):
        if name in blocks:
            again = "recompute" if tracker.phase == "backward" else "forward"
            tracker.mark(f"{again} {name}: begin")

    def leave(name, module, output):
        if name not in blocks:
            return
        again = "recompute" if tracker.phase == "backward" else "forward"
        tracker.mark(f"{again} {name}: end")
        tensor = _first_tensor(output)
        if again == "forward" and tensor is not None and tensor.requires_grad:
            tensor.register_hook(lambda gradient, name=name: tracker.mark(f"backward {name}: begin"))

    path.on_enter.append(enter)
    path.on_leave.append(leave)
    try:
        with tracker:
            tracker.mark("start")
            tracker.phase = "forward"
            loss = forward()
            tracker.mark("loss")
            after_forward = (tracker.now, tracker.exact)
            kept = tracker.made_in_forward()
            tracker.phase = "backward"
            loss.backward()
            tracker.mark("end")
    finally:
        path.remove()
        gc.enable()
    gradients = {weakref.ref(p.grad.untyped_storage()) for p in model.parameters() if p.grad is not None}
    made, live = tracker.at_peak
    is_gradient = {id(entry) for reference, entry in tracker.live.items() if reference in gradients}
    sums, transient = {}, {}
    for entry in live:
        size, (kind, operator, where, node), shape, dtype = entry
        kind = "gradients" if id(entry) in is_gradient else kind
        sums[kind] = sums.get(kind, 0) + rounded(size)
        if kind == "backward":
            key = (operator, node, tuple(shape), dtype)
            count, total = transient.get(key, (0, 0))
            transient[key] = (count + 1, total + rounded(size))
    phase, operator, where, node = made
    return {
        "peak": tracker.peak, "peak_exact": tracker.exact_peak,
        "at": {"phase": phase, "operator": operator, "module": where, "node": node},
        "live_at_peak": sums,
        "made_in_backward": [[operator, node, list(shape), dtype, count, total]
                             for (operator, node, shape, dtype), (count, total) in transient.items()],
        "after_forward": after_forward[0], "after_forward_exact": after_forward[1],
        "kept": fold(by_group(model, kept)), "marks": tracker.marks,
    }


def by_group(model, kept):
    """[(group, [[module, operator, shape, dtype, bytes] ...])] of live storages, by the block that made them."""
    blocks, groups = block_names(model), {}
    for size, (phase, operator, where, node), shape, dtype in kept:
        group, inside = group_of(where, blocks)
        groups.setdefault(group, []).append([inside, operator, shape, dtype, size])
    return list(groups.items())


class NoModules:
    """In the place of MemTracker's ModTracker: no module is followed."""

    is_bw, parents = False, {"Global"}

    def __enter__(self):
        return self

    def __exit__(self, *args):
        pass

    def register_user_hooks(self, *hooks):
        pass

    def clear_user_hooks(self):
        pass


def peak_by_mem_tracker(model, forward, inputs, modules=True):
    """MemTracker follows modules by register_multi_grad_hook, which keeps the gradients of a module's several inputs or
    outputs until all of them are there: some live longer than without it. modules=False leaves that out."""
    tracker = MemTracker()
    if not modules:
        tracker._mod_tracker = NoModules()
    tracker.track_external(model, *inputs)
    gc.collect()
    gc.disable()
    try:
        with tracker:
            forward().backward()
    finally:
        gc.enable()
    return max(snapshot["Total"] for device, snapshot in tracker.get_tracker_snapshot("peak").items()
               if device.type == "cuda")


def fold(groups):
    """Neighbours that differ in their name alone become one: [names], entries, bytes."""
    folded = []
    for name, entries in groups:
        if folded and folded[-1]["tensors"] == entries:
            folded[-1]["modules"].append(name)
        else:
            size = sum(next(value for value in entry[4:] if isinstance(value, int)) for entry in entries)
            folded.append({"modules": [name], "bytes": size, "tensors": entries})
    return folded


