"""Reference or Triton: which form of an operation runs.

``TREEDIFFUSION_KERNELS=auto|reference|triton``, or `use_kernels` around a block, which is stronger.
``auto`` takes the kernel where it can run and the reference elsewhere; ``triton`` raises where it
cannot, with the reason; ``reference`` never takes it. An operation asks `takes_kernel` and is told.
Triton's interpreter (``TRITON_INTERPRET=1``, for tests) runs kernels on a CPU, slowly: only forced.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from ..errors import BackendUnavailableError, ConfigError

Choice = Literal["auto", "reference", "triton"]
VARIABLE = "TREEDIFFUSION_KERNELS"

log = logging.getLogger("treediffusion.kernels")
# Looked up here, as not every compiler can trace the search.
_HAS_TRITON = importlib.util.find_spec("triton") is not None
# A list and no context variable: a compiler that traces an operation can read and guard it.
_forced: list[Choice] = []


@contextmanager
def use_kernels(choice: Choice) -> Iterator[None]:
    """Sets the choice within a block, of all threads.

    Raises:
        ConfigError: no such choice.
    """
    _forced.append(_checked("use_kernels", choice))
    try:
        yield
    finally:
        _forced.pop()


def kernel_choice() -> Choice:
    """The choice that holds now.

    Raises:
        ConfigError: the environment names none.
    """
    return _forced[-1] if _forced else _of_environment()


def takes_kernel(op: str, tensor: Tensor, *, unable: str | None = None) -> bool:
    """Whether an operation runs its Triton kernel.

    Args:
        op: its name.
        tensor: one of its arguments, for their device.
        unable: why its kernel cannot do these arguments, if it cannot.

    Raises:
        BackendUnavailableError: the kernel is forced, and cannot run.
    """
    choice = kernel_choice()
    if choice == "reference":
        return False
    reason = unable or _unable(tensor.device.type, interpreted=choice == "triton")
    if reason is not None and choice == "triton":
        raise BackendUnavailableError(
            f"kernel {op}", got=reason, expected="what it can run on", hint=f"{VARIABLE}=auto"
        )
    if not torch.compiler.is_compiling():
        _tell(op, reason)
    return reason is None


def is_exporting() -> bool:
    """Whether `torch.export` traces what runs.

    It is the flag behind `torch.compiler.is_exporting`, which PyTorch 2.11 answers with yes in
    every compilation.
    """
    return torch.compiler._is_exporting_flag


def _checked(name: str, choice: str) -> Choice:
    if choice not in get_args(Choice):
        expected = ", ".join(get_args(Choice))
        raise ConfigError(name, got=repr(choice), expected=f"one of {expected}")
    return cast("Choice", choice)


@cache
def _of_environment() -> Choice:
    return _checked(VARIABLE, os.environ.get("TREEDIFFUSION_KERNELS", "auto"))


@cache
def _unable(device: str, *, interpreted: bool) -> str | None:
    """Why no Triton kernel runs on a kind of device, where the interpreter may do."""
    if not _HAS_TRITON:
        return "Triton is not installed"
    if device != "cuda" and not (interpreted and os.environ.get("TRITON_INTERPRET") == "1"):
        return f"tensors on a device of type {device}, which Triton does not compile for"
    return None


@cache
def _tell(op: str, reason: str | None) -> None:
    """Once for each operation and outcome."""
    log.info("%s: %s", op, "Triton" if reason is None else f"reference ({reason})")
