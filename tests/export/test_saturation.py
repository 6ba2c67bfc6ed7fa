"""A router that is certain stays a number outside PyTorch."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from support.models import tiny_model
from treediffusion.export.graphs import make_graphs, on_cpu
from treediffusion.export.to_onnx import to_onnx


def test_certain_routers_give_probabilities_not_nan() -> None:
    """Logits of thousands: probabilities of exactly 0 and 1, as in PyTorch."""
    model = tiny_model()
    with torch.no_grad():
        model.tree.nodes.post_routers.out.weight.mul_(1e4)
    graph = make_graphs(on_cpu(model))["assign"]
    images = np.random.default_rng(0).random((6, 1, 8, 8), np.float32)
    expected = graph.run({"images": torch.from_numpy(images)})["leaf_prob"].numpy()
    session = onnxruntime.InferenceSession(
        to_onnx(graph, opset=18), providers=["CPUExecutionProvider"]
    )
    found = session.run(None, {"images": images})[0]
    assert {0.0, 1.0} <= set(expected.ravel())
    np.testing.assert_allclose(found, expected, atol=1e-5)
