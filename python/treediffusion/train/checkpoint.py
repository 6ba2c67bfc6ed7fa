"""One file per checkpoint: tensors, and a small state in JSON, in the safetensors format.

    file = header {"treediffusion": '{"format": 1, "sha256": ..., "state": ...}', tensor places}
           + tensor bytes

A checkpoint is whole or absent: it is written beside its place and renamed. Its hash, of all bytes
with zeros in the hash's own place, tells one that was damaged since. Loading runs no code from the
file, and allocates no more than the file has bytes for. A run that is saved and restored goes on
bit for bit as if it had not stopped, with everything on one CPU; the state of an accelerator's
random numbers is not kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.optim import Optimizer

from ..errors import CheckpointError
from ..files import write_atomic

FORMAT = 1
KEY = "treediffusion"
NO_HASH = "0" * 64
# How the format's library begins a file, after 8 bytes of length; the hash follows.
BEFORE_HASH = rf'{{"__metadata__":{{"{KEY}":"{{\"format\": {FORMAT}, \"sha256\": \"'
HASH_START = 8 + len(BEFORE_HASH)
INTERVAL_S = 10.0
"""Seconds after which a stage at work writes its next checkpoint."""

JSON: TypeAlias = Any
"""What JSON can hold: None, bool, int, float, str, and lists and string-keyed dicts of these."""


def save(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, JSON]) -> None:
    """Write a checkpoint, whole or not at all.

    Args:
        path: where; a checkpoint that is there is replaced.
        tensors: by name, on any device; stored with dtype and shape as they are.
        state: by name; tuples come back as lists, as JSON has it.

    Raises:
        CheckpointError: the file cannot be written.
    """
    # Copies, because the format refuses tensors that share memory, as tied weights do.
    copies = {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    document = {"format": FORMAT, "sha256": NO_HASH, "state": dict(state)}
    content = memoryview(safetensors.torch.save(copies, {KEY: json.dumps(document)}))
    assert bytes(content[HASH_START : HASH_START + 64]) == NO_HASH.encode()
    digest = _hash(content)

    def write(file: BinaryIO) -> None:
        # In pieces: with the hash put in, it would be a second copy of all tensors.
        for part in (content[:HASH_START], digest.encode(), content[HASH_START + 64 :]):
            file.write(part)

    write_atomic(path, write)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, JSON]]:
    """Read a checkpoint.

    Returns:
        The tensors, on the CPU, and the state.

    Raises:
        CheckpointError: missing, cut, damaged, of another format or of a newer version.
    """
    try:
        content = path.read_bytes()
    except OSError as fault:
        raise CheckpointError(
            str(path),
            got="no such file" if isinstance(fault, FileNotFoundError) else str(fault),
            expected="a checkpoint",
            hint="check the path, or start the run from its beginning",
        ) from fault
    try:
        tensors = safetensors.torch.load(content)
    # Others than the library's own: types and sizes that the format has and this PyTorch has not.
    except (SafetensorError, LookupError, TypeError, ValueError, RuntimeError) as fault:
        raise CheckpointError(
            str(path),
            got=f"{len(content)} bytes that are not a readable safetensors file ({fault})",
            expected="a checkpoint as it was written",
            hint="the file is cut, damaged or something else; use an earlier checkpoint",
        ) from fault
    return tensors, _state(path, content)


def training_state(module: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Everything that a training step reads and changes, as tensors on the CPU.

    What a step only reads (learning rate, betas, weight decay) belongs to the configuration.

    Returns:
        Copies: `model.<name>` of the module's state, `optimizer.<parameter>.<name>` of the
        optimizer's (Adam's exp_avg, exp_avg_sq and step, by the parameter's position in it), and
        `rng`, the state of PyTorch's CPU generator.
    """
    tensors = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    tensors["rng"] = torch.get_rng_state()
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def restore(module: nn.Module, optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put what `training_state` returned into a module and an optimizer built as those were.

    Tensors of other names are left alone. Nothing changes unless everything fits.

    Args:
        module: takes the parameters and buffers.
        optimizer: takes the moments; loses those it had.
        tensors: from `training_state`, as they were or through a checkpoint.

    Raises:
        CheckpointError: the tensors are of another model or optimizer.
    """
    model = _under("model.", tensors)
    _check("model", model, module.state_dict())
    rng = {"rng": tensors["rng"]} if "rng" in tensors else {}
    _check("state", rng, {"rng": torch.get_rng_state()})
    parameters = [weight for group in optimizer.param_groups for weight in group["params"]]
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _under("optimizer.", tensors).items():
        index, _, name = key.partition(".")
        fits = index.isdecimal() and int(index) < len(parameters)
        if not fits or tensor.shape not in (torch.Size([]), parameters[int(index)].shape):
            raise CheckpointError(
                f"optimizer.{key}",
                got=f"shape {list(tensor.shape)}",
                expected=f"the shape of one of the optimizer's {len(parameters)} parameters",
                hint="restore with the configuration of the run that wrote it",
            )
        # A copy, because the optimizer updates its moments in place.
        moments.setdefault(int(index), {})[name] = tensor.clone()
    module.load_state_dict(model)
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    torch.set_rng_state(tensors["rng"])


def _state(path: Path, content: bytes) -> dict[str, JSON]:
    """The state in the header of what is known to be a safetensors file."""
    length = int.from_bytes(content[:8], "little")
    try:
        header = json.loads(content[8 : 8 + length])
        document = json.loads(header["__metadata__"][KEY])
        version = int(document["format"])
        # A newer format may hold its state elsewhere, so its number is judged first.
        state = dict(document["state"]) if version == FORMAT else {}
        # Files of before hashes have none; what is not one of these keys was one.
        unknown = set(document) - {"format", "sha256", "state"} if version == FORMAT else set()
        if unknown:
            raise ValueError(f"the keys {sorted(unknown)}")
    except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as fault:
        raise CheckpointError(
            str(path),
            got="a safetensors file of something else",
            expected=f"a header with the key {KEY!r}, its format and state",
            hint="name a checkpoint that this program wrote",
        ) from fault
    if version != FORMAT:
        raise CheckpointError(
            str(path),
            got=f"format {version}",
            expected=f"format {FORMAT}",
            hint="it was written by another version; upgrade treediffusion to read it",
        )
    if "sha256" in document and document["sha256"] != (found := _hash(memoryview(content))):
        raise CheckpointError(
            str(path),
            got=f"sha256 {found}",
            expected=f"sha256 {document['sha256']!s:.64}",
            hint="the file is damaged; use an earlier checkpoint",
        )
    return state


def _hash(content: memoryview) -> str:
    """Of a file, with zeros in the place of its hash."""
    digest = hashlib.sha256(content[:HASH_START])
    digest.update(NO_HASH.encode())
    digest.update(content[HASH_START + 64 :])
    return digest.hexdigest()


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors whose names begin with a prefix, by the rest of their names."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _check(name: str, given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Names, shapes and types must be equal: a cast or a gap would not be the same run."""
    for key in sorted(given.keys() | wanted.keys()):
        got, expected = (
            f"{side[key].dtype} {list(side[key].shape)}" if key in side else "no such tensor"
            for side in (given, wanted)
        )
        if got != expected:
            raise CheckpointError(
                f"{name}.{key}",
                got=got,
                expected=expected,
                hint="restore with the configuration of the run that wrote it",
            )
