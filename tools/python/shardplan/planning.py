"""Planning and simulation: memcalc's numbers as values. Needs nothing but the standard library.

A keyword is a flag of memcalc with underscores for dashes and means the same; `memcalc plan --help` and
`memcalc simulate --help` say what each does, docs/memcalc-json.md what each field of a result is. Sizes are in bytes.
None is "not counted" or "not known", never 0.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, fields, is_dataclass
from functools import lru_cache
from typing import (
    Any,
    Dict,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Type,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from . import _shardplan

T = TypeVar("T")


@dataclass(frozen=True)
class ModelSize:
    name: str
    family: str
    parameters: int
    trainable_parameters: int
    active_parameters: int
    tensors: Optional[int]
    units: Optional[int]


@dataclass(frozen=True)
class AtPeak:
    parameters: Optional[int]
    gathered_parameters: Optional[int]
    gradients: Optional[int]
    optimizer_states: Optional[int]
    communication_buffers: Optional[int]
    activations: Optional[int]
    loss: Optional[int]
    workspace: Optional[int]


@dataclass(frozen=True)
class DeviceMemory:
    parameters: int
    gradients: int
    optimizer_states: int
    model_states: int
    allocated_after_step: Optional[int]
    peak_allocated: Optional[int]
    peak_reserved: Optional[int]
    context: Optional[int]
    total: Optional[int]
    live_peak: Optional[int]
    peak_at: Optional[str]
    at_peak: AtPeak


@dataclass(frozen=True)
class HostMemory:
    pinned: Optional[int]
    pageable: Optional[int]
    total: Optional[int]
    initialization_peak: Optional[int]


@dataclass(frozen=True)
class FileMemory:
    total: Optional[int]


@dataclass(frozen=True)
class Arenas:
    device: int
    pinned: int
    host: int
    file: int


@dataclass(frozen=True)
class Rank:
    role: str
    count: int
    device: DeviceMemory
    host: HostMemory
    file: FileMemory
    arenas: Optional[Arenas]


@dataclass(frozen=True)
class SentByOperation:
    gather_parameters: int
    gather_gradients: int
    reduce_gradients: int
    reduce_among_replicas: int


@dataclass(frozen=True)
class Communication:
    bytes_sent_per_step: int
    by_operation: SentByOperation
    control_bytes_sent_per_step: int
    textbook_bytes_sent_per_step: int


@dataclass(frozen=True)
class Capacity:
    name: str
    capacity_bytes: int


@dataclass(frozen=True)
class Plan:
    """What each GPU holds, and what it sends. `setup` has every keyword as resolved."""

    model: ModelSize
    setup: Mapping[str, Any]
    ranks: Tuple[Rank, ...]
    worst: Rank
    communication: Communication
    gpu: Optional[Capacity]
    fits: Optional[bool]
    headroom_bytes: Optional[int]
    error_bar: Mapping[str, Any]
    notes: Tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    name: str
    bytes: int
    formula: str
    inputs: str
    source: str


@dataclass(frozen=True)
class Explained:
    """The numbers of a plan, each with its formula. The last entry of a list is the sum of the others. `client`: what the
    model's code keeps for its backward, tensor by tensor, and what is live at the peak (docs/memcalc-json.md)."""

    model: ModelSize
    setup: Mapping[str, Any]
    device: Tuple[Explanation, ...]
    communication: Tuple[Explanation, ...]
    client: Optional[Mapping[str, Any]]


@dataclass(frozen=True)
class ClusterSize:
    name: str
    gpu: str
    gpus_per_node: int
    node_bytes_per_second: float
    network_bytes_per_second: float
    host_bytes_per_second: float
    disk_read_bytes_per_second: float
    disk_write_bytes_per_second: float


@dataclass(frozen=True)
class Extent:
    min: int
    max: int


@dataclass(frozen=True)
class SentByLink:
    node: int
    network: int


@dataclass(frozen=True)
class RankFailure:
    rank: int
    seconds: float
    error: str


@dataclass(frozen=True)
class SimulatedStage:
    zero_stage: int
    ranks: int
    operations: int
    virtual_step_seconds: float
    wall_seconds: float
    peak_bytes: Extent
    planned_peak_bytes: int
    peak_at: str
    live_peak_bytes: Extent
    planned_live_peak_bytes: int
    host_peak_bytes: Extent
    planned_host_peak_bytes: int
    host_live_peak_bytes: Extent
    planned_host_live_peak_bytes: int
    file_peak_bytes: Extent
    planned_file_peak_bytes: int
    file_live_peak_bytes: Extent
    planned_file_live_peak_bytes: int
    peak_allocated: Optional[Extent]  # arenas and activations, as the virtual devices counted them
    planned_peak_allocated: Optional[int]
    bytes_sent_per_rank: int
    planned_bytes_sent_per_rank: int
    textbook_bytes_sent_per_rank: int
    bytes_sent_by_operation: SentByOperation
    bytes_sent_by_link: SentByLink
    compute_seconds: float
    communication_seconds: float
    exposed_communication_seconds: float
    hidden_communication_seconds: float
    waiting_seconds: float
    other_seconds: float
    stragglers: Tuple[int, ...]
    fits: Optional[bool]
    faults: Tuple[str, ...]
    faults_happened: Tuple[bool, ...]
    errors: Tuple[RankFailure, ...]


@dataclass(frozen=True)
class Simulation(SimulatedStage):
    """One step on virtual ranks. With compare_stages the fields are those of stage 3, and `stages` has all four."""

    model: ModelSize
    setup: Mapping[str, Any]
    cluster: ClusterSize
    notes: Tuple[str, ...]
    stages: Optional[Tuple[SimulatedStage, ...]] = None


@dataclass(frozen=True)
class FittedPlan:
    words: str  # the axes that were searched
    change: Optional[str]
    setup: Any
    worst: Rank
    needed_bytes: int
    saved_bytes: Optional[int]
    step_seconds: float
    computing_seconds: float
    communicating_seconds: float
    bubble_seconds: float
    updating_seconds: float
    sequences_per_second: float


@dataclass(frozen=True)
class RejectedPlan:
    setup: Any
    why: str
    count: int


@dataclass(frozen=True)
class RejectionCounts:
    contradiction: int
    unknown: int
    states: int
    memory: int


@dataclass(frozen=True)
class Fit:
    question: str
    answer: Optional[str]
    model: ModelSize
    gpu: Capacity
    cluster: str
    global_batch: int
    plans: Tuple[FittedPlan, ...]
    fitting: int
    rejected: Tuple[RejectedPlan, ...]
    rejections: int
    rejections_by_reason: RejectionCounts
    slower: int
    decided: int
    evaluated: int
    seconds: float
    notes: Tuple[str, ...]


@dataclass(frozen=True)
class Preset:
    name: str
    family: str
    parameters: int
    hf_id: str
    source: str


@dataclass(frozen=True)
class Gpu:
    name: str
    aliases: Tuple[str, ...]
    vendor: str
    memory_bytes: int
    capacity_bytes: int
    capacity_is_visible_memory: bool
    bandwidth_bytes_per_second: Optional[int]
    bf16_flops: Optional[int]
    fp16_flops: Optional[int]
    fp32_flops: Optional[int]
    link_bytes_per_second: Optional[int]
    pcie_generation: Optional[int]
    source: str
    note: str


_Path = Union[str, "os.PathLike[str]"]
_Count = Optional[int]
_Word = Optional[str]
_Words = Union[str, Sequence[str], None]  # one, or several
_Paths = Union[_Path, Sequence[_Path], None]
_Flag = Optional[bool]


# The one list of plan()'s keywords: a flag of memcalc plan is a line here and nothing else (the test
# memcalc_python_keywords holds the two together). None is "not given", which leaves the default to memcalc.
def plan(
    model: Optional[_Path] = None,
    *,
    params: Union[str, int, float, None] = None,
    ds_config: Optional[_Path] = None,
    accelerate_config: Optional[_Path] = None,
    megatron_args: Optional[_Path] = None,
    freeze: _Words = None,
    gpus: _Count = None,
    gpus_per_node: _Count = None,
    gpu: _Word = None,
    gpu_file: _Paths = None,
    zero: _Count = None,
    engine: _Word = None,
    hpz: _Count = None,
    mics: _Count = None,
    offload: _Word = None,
    replicate: _Count = None,
    prefetch: _Count = None,
    grad_accum: _Count = None,
    cadence: _Word = None,
    reduction: _Word = None,
    reduction_group: _Count = None,
    transport: _Word = None,
    recompute: _Word = None,
    seq: _Count = None,
    micro_batch: _Count = None,
    images: _Count = None,
    image_size: _Word = None,
    profile: _Word = None,
    attention: _Word = None,
    loss: _Word = None,
    disable_loss_parallel: _Flag = None,
    context_rotate_method: _Word = None,
    tp: _Count = None,
    pp: _Count = None,
    cp: _Count = None,
    ep: _Count = None,
    etp: _Count = None,
    virtual_stages: _Count = None,
    sequence_parallel: _Flag = None,
    schedule: _Word = None,
    first_stage_layers: _Count = None,
    last_stage_layers: _Count = None,
    vocabulary_multiple: _Count = None,
    lora_rank: _Count = None,
    lora_targets: _Words = None,
    lora_dtype: _Word = None,
    lora_dropout: Union[str, float, None] = None,
    modules_to_save: _Words = None,
    quantize: _Word = None,
    precision: _Word = None,
    param_dtype: _Word = None,
    grad_dtype: _Word = None,
    grad_accum_dtype: _Word = None,
    master_dtype: _Word = None,
    moment_dtype: _Word = None,
    compute_dtype: _Word = None,
    wire_dtype: _Word = None,
    optimizer: _Word = None,
    adafactor_first_moment: _Flag = None,
    optimizer_in_backward: _Flag = None,
    ema: _Flag = None,
    save_background: _Flag = None,
) -> Plan:
    """How much memory a training needs, and where. `model` is a preset (see models()), a config.json, safetensors, a
    folder of either or a tensor list; `params` a count ("7e9", "7B", 7_000_000_000) instead, for model states only.
    Keywords are flags of `memcalc plan`, whose --help says what each means and what it is if not given. Raises
    ConfigError."""
    keywords = locals()
    return _build(Plan, _shardplan.plan(words_of(keywords.pop("model"), keywords)))


def explain(model: Optional[_Path] = None, **keywords: Any) -> Explained:
    """The numbers of plan(), each with its formula, inputs and source. Takes plan()'s keywords."""
    return _build(Explained, _shardplan.explain(words_of(model, _checked(keywords))))


def fit(
    model: _Path,
    *,
    ask: _Word = None,
    cluster: Optional[_Path] = None,
    global_batch: _Count = None,
    plans: _Count = None,
    rejected: _Count = None,
    **keywords: Any,
) -> Fit:
    """Which set-up fits a GPU, and is fastest; or, as `ask` says, the largest micro-batch, seq or model, the fewest gpus, or
    the cheapest change that makes it fit. Takes plan()'s keywords too; what they say is not varied. An answer of None means
    that nothing fits. Raises ConfigError."""
    own = dict(ask=ask, cluster=cluster, global_batch=global_batch, plans=plans, rejected=rejected)
    return _build(Fit, _shardplan.fit(words_of(model, {**_checked(keywords), **own})))


def simulate(
    model: _Path,
    *,
    cluster: Optional[_Path] = None,
    seed: _Count = None,
    fault: _Words = None,
    compare_stages: _Flag = None,
    trace: Optional[_Path] = None,
    plot: Optional[_Path] = None,
    **keywords: Any,
) -> Simulation:
    """One step of the optimizer itself on virtual ranks, with the cluster's times. Takes plan()'s keywords too; `trace`
    and `plot` are files to write. A rank that fails is in `errors`. Raises ConfigError and IoError."""
    own = dict(cluster=cluster, seed=seed, fault=fault, compare_stages=compare_stages, trace=trace, plot=plot)
    return _build(Simulation, _shardplan.simulate(words_of(model, {**_checked(keywords), **own})))


def models() -> Tuple[Preset, ...]:
    """The models that are known by name."""
    return tuple(_value(Preset, row) for row in json.loads(_shardplan.models())["models"])


def gpus(files: Sequence[_Path] = ()) -> Tuple[Gpu, ...]:
    """The GPUs that are known by name, with the user's own tables (docs/gpus.md) on top."""
    return tuple(_value(Gpu, row) for row in json.loads(_shardplan.gpus([os.fspath(file) for file in files]))["gpus"])


def words_of(model: Optional[_Path], keywords: Mapping[str, Any]) -> List[str]:
    """A call's arguments as words of memcalc's command line, behind the command."""
    words = []
    for keyword, value in keywords.items():
        flag = "--" + keyword.replace("_", "-")
        values = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
        words += [f"{flag}={_text(each)}" for each in values]
    return words if model is None else [*words, "--", os.fspath(model)]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return os.fspath(value) if isinstance(value, os.PathLike) else str(value)


def _checked(keywords: Mapping[str, Any]) -> Mapping[str, Any]:
    for keyword in keywords:
        if keyword not in plan.__kwdefaults__:
            raise TypeError(f"got an unexpected keyword argument '{keyword}': expected those of plan()")
    return keywords


def _build(cls: Type[T], text: str) -> T:
    members = json.loads(text)
    members.pop("schema")
    return _value(cls, members)


@lru_cache(maxsize=None)
def _types_of(cls: type) -> Dict[str, Any]:
    hints = get_type_hints(cls)
    return {field.name: hints[field.name] for field in fields(cls)}


def _value(kind: Any, value: Any) -> Any:
    """A value of JSON as the type that a field is declared with."""
    if value is None or kind is Any:
        return value
    if is_dataclass(kind):
        types = _types_of(kind)
        return kind(**{key: _value(types[key], member) for key, member in value.items() if key in types})
    if get_origin(kind) is Union:
        return _value(get_args(kind)[0], value)
    if get_origin(kind) is tuple:
        return tuple(_value(get_args(kind)[0], each) for each in value)
    return value
