"""Which sets of graphs an export makes, and which of them share files.

    target         opset   because
    onnx-cpu       18      GroupNorm is InstanceNormalization, for which ONNX Runtime has kernels;
                           in float32 enlarging convolutions are in phases, which CPUs do faster
    onnx-gpu       18      the same
    tensorrt(-rtx) 22      GroupNorm is one node, which the compiler fuses with what follows

bfloat16 needs 22, the first version whose convolutions have it, and ONNX Runtime has none of them
on a CPU. Only the denoiser is ever in half precision: the tree is a small part of the work, and an
image goes to the same leaf at every precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from ..bundle import PRECISIONS, ROLES, TARGETS, Precision, Target
from ..errors import ConfigError

BATCHES = (1, 4, 16, 64)
ONNX_RUNTIME_OPSET, COMPILERS_OPSET = 18, 22
HALVED = "step"
"""The role that is in the set's precision; the others are float32."""
LARGEST_BATCH = 1 << 14


@dataclass(frozen=True)
class PlannedSet:
    """A set of graphs to make.

    Attributes:
        target: what for.
        precision: of the denoiser.
        opset: of all its graphs.
        batches: numbers of images in a call, ascending.
        files: by role, each graph's name in the bundle; sets may share them.
    """

    target: Target
    precision: Precision
    opset: int
    batches: tuple[int, ...]
    files: dict[str, str]

    @property
    def name(self) -> str:
        """Target and precision."""
        return f"{self.target}-{self.precision}"


@dataclass(frozen=True)
class PlannedFile:
    """A graph to make.

    Attributes:
        name: in the bundle.
        role: which graph.
        precision: of the denoiser in it; fp32 if it has none.
        opset: version of the operators.
    """

    name: str
    role: str
    precision: Precision
    opset: int


def plan_sets(
    targets: Sequence[str], precisions: Sequence[str], batches: Sequence[int]
) -> tuple[tuple[PlannedSet, ...], tuple[PlannedFile, ...]]:
    """Every target at every precision that it has.

    Args:
        targets: of `TARGETS`.
        precisions: of `PRECISIONS`.
        batches: numbers of images in a call.

    Returns:
        The sets, and the files they are made of.

    Raises:
        ConfigError: none or an unknown one, or precisions that no target has.
    """
    _check("targets", targets, TARGETS)
    _check("precision", precisions, PRECISIONS)
    known = {each for each in batches if not isinstance(each, bool) and isinstance(each, int)}
    if not known or len(known) < len(batches) or not 1 <= min(known) <= max(known) <= LARGEST_BATCH:
        expected = f"distinct numbers of images from 1 to {LARGEST_BATCH}"
        raise ConfigError("batch", got=_shown(batches), expected=expected)
    sets: list[PlannedSet] = []
    files: dict[tuple[str, Precision, int], PlannedFile] = {}
    # The float32 sets first: the others share their files.
    for precision in sorted(cast("Sequence[Precision]", precisions), key=PRECISIONS.index):
        for target in cast("Sequence[Target]", targets):
            opset = opset_of(target, precision)
            if opset is None:
                continue
            names = {}
            for role in ROLES:
                key = (role, precision if role == HALVED else PRECISIONS[0], opset)
                name = f"graphs/{target}-{precision}/{role}.onnx"
                names[role] = files.setdefault(key, PlannedFile(name, *key)).name
            sets.append(PlannedSet(target, precision, opset, tuple(sorted(known)), names))
    for given in precisions:
        if given not in {each.precision for each in sets}:
            raise ConfigError(
                "precision", got=f"{given} for {_shown(targets)}", expected="fp32 or fp16",
                hint="ONNX Runtime has no bfloat16 convolution on a CPU; add another target",
            )  # fmt: skip
    return tuple(sets), tuple(files.values())


def opset_of(target: Target, precision: Precision) -> int | None:
    """The version of the operators; None if the target cannot compute in the precision."""
    if precision == "bf16":
        return None if target == "onnx-cpu" else COMPILERS_OPSET
    return ONNX_RUNTIME_OPSET if target.startswith("onnx") else COMPILERS_OPSET


def _check(name: str, given: Sequence[str], known: Sequence[str]) -> None:
    if not given or set(given) - set(known) or len(set(given)) < len(given):
        expected = f"one or several of {', '.join(known)}"
        raise ConfigError(name, got=_shown(given), expected=expected)


def _shown(given: Sequence[object]) -> str:
    return ", ".join(map(str, given)) or "nothing"
