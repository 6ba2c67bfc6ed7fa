"""The network in whose features FID is measured: torch-fidelity's Inception of 2015.

    features = 2,048 numbers, the average of the last maps; images are resized to 299x299 inside it

Grey images become three equal channels. Arithmetic is float32 without TF32. The package is the
extra `fid`; its weights are one file that is never fetched here: it is looked for where PyTorch
keeps downloads, or where a path says, and its hash must be that of the published file. They are
read as tensors only, and nothing in the file can run.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..errors import CheckpointError
from ..optional import require
from .classifier import best_device

MODULE = "torch_fidelity.feature_extractor_inceptionv3"
LAYER = "2048"
SHA256_BEGINS = "6726825d"
"""Of the published file, which has these digits in its name."""


class Inception:
    """Features of FID, as an extractor of `statistics`.

    Args:
        weights: the file; None looks where PyTorch keeps downloads.
        device: where it computes; None for a GPU where there is one.

    Raises:
        DependencyError: torch-fidelity is not installed.
        CheckpointError: no such file, or another one.
    """

    name = "inception"
    width = 2048

    def __init__(self, weights: Path | None = None, *, device: str | None = None) -> None:
        library = require(MODULE, extra="fid")
        path = weights or default_weights()
        state, digest = _read(path, str(library.URL_INCEPTION_V3))
        self.device = torch.device(device or best_device())
        self.key = f"inception-v3-2015-12-05-{digest[:16]}-grey-replicated"
        self._network = _network(library, state, path).to(self.device)

    def extract(self, pixels: Tensor) -> Tensor:
        """[n, C, H, W] uint8, C of 1 or 3 -> [n, 2048] float32."""
        colours = pixels.expand(-1, 3, -1, -1)
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            return cast("Tensor", self._network(colours)[0])


def default_weights() -> Path:
    """Where torch-fidelity, too, would keep them."""
    url = str(require(MODULE, extra="fid").URL_INCEPTION_V3)
    return Path(torch.hub.get_dir()) / "checkpoints" / url.rpartition("/")[2]


def _read(path: Path, url: str) -> tuple[Mapping[str, Tensor], str]:
    """The tensors of the published file, and its hash."""
    if not path.is_file():
        raise CheckpointError(
            str(path),
            got="no such file",
            expected="the weights of the Inception network, which FID is defined by",
            hint=f"download {url} and put it there, or name the file; nothing is fetched by itself",
        )
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if not digest.startswith(SHA256_BEGINS):
        raise CheckpointError(
            str(path),
            got=f"a file whose sha256 begins with {digest[:8]}",
            expected=f"the published one, which begins with {SHA256_BEGINS}",
            hint=f"download {url} again; distances in other weights are no FID",
        )
    try:
        # Tensors alone: a file that wants to run something is refused by PyTorch.
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as fault:  # of many kinds, by what is wrong
        reason = " ".join(str(fault).split())[:80]
        raise CheckpointError(
            str(path),
            got=f"what is no file of tensors ({reason})",
            expected="the published weights",
        ) from fault
    return cast("Mapping[str, Tensor]", state), digest


def _network(library: Any, state: Mapping[str, Tensor], path: Path) -> nn.Module:
    """Torch-fidelity's module; it insists on loading a file, and gets one that was just written."""
    own = io.BytesIO()
    torch.save(dict(state), own)
    own.seek(0)
    try:
        network = library.FeatureExtractorInceptionV3(
            "inception", [LAYER], feature_extractor_weights_path=own
        )
    except RuntimeError as fault:
        raise CheckpointError(
            str(path),
            got=f"other tensors ({' '.join(str(fault).split())[:200]})",
            expected="those of torch-fidelity's Inception network",
        ) from fault
    return cast("nn.Module", network.eval().requires_grad_(False))
