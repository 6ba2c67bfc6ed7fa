"""TensorRT-RTX reads and builds every graph here, without a GPU, and fuses what it should."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from support.models import IRREGULAR
from support.toy_graphs import toy_graphs
from treediffusion.bundle import ROLES, GraphSpec
from treediffusion.config import load_preset
from treediffusion.diffusion.model import TreeDiffusion, make_denoiser
from treediffusion.errors import BackendUnavailableError
from treediffusion.export.graphs import make_graphs
from treediffusion.export.half import at_precision
from treediffusion.export.to_onnx import to_onnx
from treediffusion.nn.tree_vae import TreeVAE
from treediffusion.runtime.backends.trt_build import TABLE_ROWS, build_engine, fixed_shape
from treediffusion.runtime.backends.trt_layers import count_fusions, read_layers, read_operators
from treediffusion.runtime.backends.trt_library import Library, load_library
from treediffusion.topology import TreeTopology

OPSET = 22
PAIR = TreeTopology.of(["r", "r0", "r1"])


@pytest.fixture(scope="module")
def library() -> Iterator[Library]:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    load_library.cache_clear()
    yield load_library("tensorrt-rtx")
    load_library.cache_clear()


def exported(model: TreeDiffusion, folder: Path) -> Mapping[str, GraphSpec]:
    """Every graph of a model, as a set for TensorRT has it."""
    found = {}
    for role, graph in make_graphs(model).items():
        made = at_precision(graph, "fp16") if role == "step" else graph
        file = folder / f"{role}.onnx"
        file.write_bytes(to_onnx(made, opset=OPSET))
        found[role] = GraphSpec(file, graph.inputs, graph.outputs)
    return found


def of_preset(name: str, topology: TreeTopology, *, channels: int, size: int) -> TreeDiffusion:
    """The networks of a preset as they are initialised, on a tree."""
    config = load_preset(name)
    tree = TreeVAE(config.tree, topology, image_channels=channels, image_size=size)
    denoiser = make_denoiser(tree, config.diffusion)
    return TreeDiffusion(
        config=config,
        tree=tree.eval(),
        denoiser=denoiser.eval(),
        node_share=np.ones(topology.num_nodes),
        data_fingerprint="0" * 64,
    )


def test_the_logger_is_heard_and_forgets(library: Library, tmp_path: Path) -> None:
    broken = GraphSpec(tmp_path / "x.onnx", (), ())
    broken.file.write_bytes(b"no graph")
    with pytest.raises(ValueError, match=r"x\.onnx.*tensorrt-rtx"):
        build_engine(library, broken, bucket=1)
    assert library.complaint() != ""
    assert library.complaint() == "no reason"


def test_shapes_are_fixed(tmp_path: Path) -> None:
    step = toy_graphs(tmp_path)["step"]
    shapes = {tensor.name: fixed_shape(tensor, 3) for tensor in step.inputs}
    assert shapes["x"] == (3, 1, 8, 8)
    assert shapes["coef"] == (TABLE_ROWS, 5)


@pytest.mark.parametrize("bucket", [1, 7])
def test_small_graphs_build(library: Library, tmp_path: Path, bucket: int) -> None:
    for spec in toy_graphs(tmp_path).values():
        built = build_engine(library, spec, bucket=bucket, detailed=True)
        assert len(built.plan) > 1000
        assert built.timing == b""
        layers = read_layers(built.said)
        assert layers
        assert {name for layer in layers for name, _ in layer.operators} <= set(
            read_operators(built.said)
        )


def test_a_quiet_build_lists_no_layers(library: Library, tmp_path: Path) -> None:
    built = build_engine(library, toy_graphs(tmp_path)["assign"], bucket=1)
    assert read_layers(built.said) == ()


def test_an_engine_is_refused_without_a_gpu_and_says_why(library: Library, tmp_path: Path) -> None:
    from treediffusion.runtime.backends import TensorRtBackend

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    with pytest.raises(BackendUnavailableError, match=r"driver|CUDA_ERROR"):
        TensorRtBackend(toy_graphs(tmp_path), library="tensorrt-rtx")


@pytest.mark.slow
@pytest.mark.timeout(900)  # exporting is most of it, and shares the machine
@pytest.mark.parametrize(
    ("preset", "topology", "channels", "size", "apart"),
    [
        ("tiny", IRREGULAR, 1, 8, None),
        ("modern-mnist", PAIR, 1, 28, 2),
        ("modern-cifar10", PAIR, 3, 32, 0),
    ],
)
def test_every_graph_of_a_preset_builds_and_the_step_is_fused(
    library: Library,
    tmp_path: Path,
    preset: str,
    topology: TreeTopology,
    channels: int,
    size: int,
    apart: int | None,
) -> None:
    """Every attention is one kernel, and every norm with the SiLU behind it, but for `apart`.

    MNIST has two norms of 192 channels, 6 in a group, which the compiler has no kernel for. Tiny
    has heads and groups that are narrower than any kernel. A norm that is scaled and shifted is a
    kernel, and what is done with it another.
    """
    model = of_preset(preset, topology, channels=channels, size=size)
    graphs = exported(model, tmp_path)
    assert set(graphs) == set(ROLES)
    for role in set(ROLES) - {"step"}:
        assert build_engine(library, graphs[role], bucket=4).plan
    found = count_fusions(build_engine(library, graphs["step"], bucket=4, detailed=True).said)
    if apart is None:
        return
    blocks = sum(type(part).__name__ == "ResBlock" for part in model.denoiser.unet.modules())
    assert found.attentions_fused == found.attentions > 0
    assert found.norms - found.norms_whole == apart
    assert found.norms_with_silu == blocks + 1 - apart
