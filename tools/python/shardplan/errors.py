"""What shardplan raises. Everything but CheckFailure derives from Error, and from the built-in class that fits."""

from __future__ import annotations


class Error(Exception):
    """What a caller can react to."""


class ConfigError(Error, ValueError):
    """What was given is wrong: `source` is the file or memcalc's flag, `key` the path inside it; both can be empty."""

    def __init__(self, message: str, source: str = "", key: str = "", problem: str = "") -> None:
        super().__init__(message)
        self.source = source
        self.key = key
        self.problem = problem or message


class OutOfMemory(Error, MemoryError):
    """A tier has not the bytes that a plan needs. Raised before training starts, never during it."""

    def __init__(self, message: str, tier: str = "", requested: int = 0, available: int = 0) -> None:
        super().__init__(message)
        self.tier = tier
        self.requested = requested
        self.available = available


class CommunicationError(Error, RuntimeError):
    """A rank did not answer, or answered something else. `rank` is the one to look at, -1 if not known."""

    def __init__(self, message: str, rank: int = -1, operation: str = "", deadline_seconds: float = 0.0) -> None:
        super().__init__(message)
        self.rank = rank
        self.operation = operation
        self.deadline_seconds = deadline_seconds


class IoError(Error, OSError):
    """Reading or writing failed. `errno` is 0 where a file simply ended."""

    def __init__(self, message: str, errno: int = 0, path: str = "", offset: int = 0) -> None:
        super().__init__(message)
        self.errno = errno
        self.filename = path
        self.path = path
        self.offset = offset


class CheckpointError(Error, RuntimeError):
    """A checkpoint is not whole, not ours, or from a future version."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class ArithmeticOverflow(Error, OverflowError):
    """A size does not fit into 64 bits."""


class CheckFailure(RuntimeError):
    """A bug, here or in the program that calls: a call that does not match the plan names both."""
