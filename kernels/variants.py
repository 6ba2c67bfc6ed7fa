"""What a kernel is compiled as: one `Variant` for each set of types and constants that is used.

Every kernel's module lists its own as ``VARIANTS``. They are what is built ahead of time, and whose
registers are recorded. Not here: the compiler. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, eq=False)
class Variant:
    """A kernel with its types and constants.

    Attributes:
        name: unique among all kernels, an identifier, such as ``gn_silu_forward_bf16_c128``.
        kernel: the function that ``triton.jit`` decorated.
        types: of its arguments in order, as Triton writes them: ``*fp32``, ``i32``, ``fp32``, and
            ``constexpr`` for those that are in `constants`.
        constants: values of the constexpr arguments.
        num_warps: of a program.
        num_stages: of its pipelined loops.
        aligned: pointers, and integers that are always multiples of 16, by name.
        precise: whether multiplications and additions must not be fused.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3
    aligned: tuple[str, ...] = ()
    precise: bool = False
