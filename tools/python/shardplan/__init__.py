"""shardplan: how much memory a training needs, and the ZeRO optimizer that needs exactly that.

import shardplan
shardplan.plan("llama-2-7b", gpus=8, zero=3).worst.device.allocated_after_step

optimizer = shardplan.ZeroAdamW(model, lr=3e-4, stage=2)        # needs torch; a torch.optim.Optimizer
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._shardplan import __version__
from .errors import (
    ArithmeticOverflow,
    CheckFailure,
    CheckpointError,
    CommunicationError,
    ConfigError,
    Error,
    IoError,
    OutOfMemory,
)
from .planning import (
    Explained,
    Explanation,
    Fit,
    Gpu,
    Plan,
    Preset,
    Simulation,
    explain,
    fit,
    gpus,
    models,
    plan,
    simulate,
)

if TYPE_CHECKING:
    from .zero_adamw import GradScaler, Loaded, LossScaling, StepReport, ZeroAdamW

_WITH_TORCH = ("GradScaler", "Loaded", "LossScaling", "StepReport", "ZeroAdamW")

__all__ = [
    "ArithmeticOverflow",
    "CheckFailure",
    "CheckpointError",
    "CommunicationError",
    "ConfigError",
    "Error",
    "Explained",
    "Explanation",
    "Fit",
    "Gpu",
    "GradScaler",
    "IoError",
    "Loaded",
    "LossScaling",
    "OutOfMemory",
    "Plan",
    "Preset",
    "Simulation",
    "StepReport",
    "ZeroAdamW",
    "__version__",
    "explain",
    "fit",
    "gpus",
    "models",
    "plan",
    "simulate",
]


def __getattr__(name: str) -> Any:
    """What needs torch is imported when it is asked for."""
    if name not in _WITH_TORCH:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import zero_adamw

    return getattr(zero_adamw, name)
