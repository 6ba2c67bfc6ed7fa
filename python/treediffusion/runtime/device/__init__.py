"""A GPU as the runtime sees it: the protocol `Device`, and who implements it.

`bindings` is NVIDIA's own cuda-bindings; `pycuda` is for hosts that live in a pycuda context. Both
do the same calls in the same order; the arrays and kernels that pass through are NumPy's and the
driver's.
"""

from __future__ import annotations

from ...errors import ConfigError
from .bindings import BindingsDevice
from .protocol import Buffer, Device
from .step_loop import StepLoop
from .with_pycuda import PycudaDevice

__all__ = ["DEVICES", "Buffer", "Device", "StepLoop", "open_device"]

DEVICES = ("bindings", "pycuda")


def open_device(kind: str = "bindings", number: int = 0) -> Device:
    """A device.

    Args:
        kind: one of `DEVICES`.
        number: which of those that CUDA_VISIBLE_DEVICES leaves.

    Raises:
        ConfigError: no such kind.
        DependencyError: its package is not installed.
        BackendUnavailableError: there is no driver, or no such device.
    """
    if kind not in DEVICES:
        raise ConfigError("device", got=repr(kind), expected=f"one of {', '.join(DEVICES)}")
    return BindingsDevice(number) if kind == "bindings" else PycudaDevice(number)
