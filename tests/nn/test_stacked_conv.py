"""Both forms of the stacked convolutions against one convolution per node."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from treediffusion.kernels.stacked_conv import op, reference

FORMS = {"dense": 10**9, "grouped": 0}

CONVS = [  # side, kernel, padding
    (1, 3, 1),
    (2, 3, 1),
    (3, 3, 1),
    (5, 3, 0),
    (4, 1, 0),
    (4, 5, 2),
    (7, 2, 1),
]
TRANSPOSES = [  # side, kernel, stride, padding
    (1, 3, 1, 1),
    (2, 7, 5, 1),
    (2, 4, 2, 1),
    (3, 5, 3, 1),
    (3, 3, 1, 0),
    (4, 2, 3, 0),
    (5, 3, 2, 1),
]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Forces one form, and proves afterwards that no call took the other."""
    calls = {"dense": 0, "grouped": 0}

    def counted(name: str, function: object) -> object:
        def call(*args: object, **settings: object) -> object:
            calls[name] += 1
            return function(*args, **settings)  # type: ignore[operator]

        return call

    chosen = request.param
    monkeypatch.setattr(op, "DENSE_PAIRS", FORMS[chosen])
    monkeypatch.setattr(op, "_dense", counted("dense", op._dense))
    with monkeypatch.context() as patch:
        for name in ("conv2d", "conv_transpose2d"):
            patch.setattr(op.F, name, _grouped_only(calls, getattr(op.F, name)))
        yield chosen
    other = {"dense": "grouped", "grouped": "dense"}[chosen]
    assert calls[chosen] > 0
    assert calls[other] == 0


def _grouped_only(calls: dict[str, int], function: object) -> object:
    """Counts calls with more than one group; the reference's own have one."""

    def call(*args: object, **settings: object) -> object:
        calls["grouped"] += int(settings.get("groups", 1) != 1)  # type: ignore[call-overload]
        return function(*args, **settings)  # type: ignore[operator]

    return call


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


def assert_same(ours: Tensor, truth: Tensor, x: Tensor, weight: Tensor) -> None:
    """Values, and gradients of an uneven sum, to float64 rounding."""
    torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)
    upstream = draw(*truth.shape, seed=9).detach()
    got = torch.autograd.grad((ours * upstream).sum(), [x, weight])
    wanted = torch.autograd.grad((truth * upstream).sum(), [x, weight])
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("side", "kernel", "padding"), CONVS)
@pytest.mark.usefixtures("form")
def test_convolution_equals_one_per_node(side: int, kernel: int, padding: int) -> None:
    x, weight = draw(3, 4, 5, side, side), draw(4, 2, 5, kernel, kernel, seed=1)
    ours = op.stacked_conv(x, weight, padding=padding)
    assert_same(ours, reference.stacked_conv(x, weight, padding=padding), x, weight)


@pytest.mark.parametrize(("side", "kernel", "stride", "padding"), TRANSPOSES)
@pytest.mark.usefixtures("form")
def test_transpose_equals_one_per_node(side: int, kernel: int, stride: int, padding: int) -> None:
    x, weight = draw(3, 4, 5, side, side), draw(4, 5, 2, kernel, kernel, seed=1)
    ours = op.stacked_conv_transpose(x, weight, stride=stride, padding=padding)
    truth = reference.stacked_conv_transpose(x, weight, stride=stride, padding=padding)
    assert_same(ours, truth, x, weight)


@pytest.mark.usefixtures("form")
def test_gradients_are_those_of_finite_differences() -> None:
    x, weight = draw(1, 2, 2, 2, 2), draw(2, 2, 2, 3, 3, seed=1)
    assert torch.autograd.gradcheck(lambda a, w: op.stacked_conv(a, w, padding=1), (x, weight))
    assert torch.autograd.gradcheck(
        lambda a, w: op.stacked_conv_transpose(a, w, stride=2, padding=1), (x, weight)
    )


@pytest.mark.usefixtures("form")
def test_inputs_that_are_not_contiguous() -> None:
    """Levels of a tree are slices, and gathered parents may be expanded."""
    whole, weights = draw(3, 6, 4, 3, 3), draw(6, 2, 4, 3, 3, seed=1)
    for x in (whole[:, 1:4], whole[:, :1].expand(-1, 3, -1, -1, -1)):
        ours = op.stacked_conv(x, weights[1:4], padding=1)
        truth = reference.stacked_conv(x, weights[1:4], padding=1)
        torch.testing.assert_close(ours, truth, rtol=1e-12, atol=1e-12)


def test_a_node_reads_its_own_map_and_weights_alone() -> None:
    x, weight = draw(2, 3, 4, 2, 2), draw(3, 4, 4, 3, 3, seed=1)
    out = op.stacked_conv(x, weight, padding=1)
    of_x, of_weight = torch.autograd.grad(out[:, 1].sum(), [x, weight])
    assert of_x[:, [0, 2]].abs().max() == 0
    assert of_weight[[0, 2]].abs().max() == 0
    assert of_x[:, 1].abs().min() > 0


@pytest.mark.parametrize(
    ("side", "dense"), [(1, True), (2, True), (4, True), (8, True), (9, False), (14, False)]
)
def test_the_dense_form_is_for_small_maps(
    side: int, dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Up to 8x8 -> 8x8, which are 4,096 pairs of pixels."""
    used: list[bool] = []
    inner = op._dense
    monkeypatch.setattr(op, "_dense", lambda *args: used.append(True) or inner(*args))
    x, weight = torch.zeros(1, 2, 1, side, side), torch.zeros(2, 1, 1, 3, 3)
    assert op.stacked_conv(x, weight, padding=1).shape == (1, 2, 1, side, side)
    assert bool(used) == dense


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_stay_what_they_are(dtype: torch.dtype) -> None:
    """The matrix of taps follows the input's type, whichever type was seen before."""
    for kind in (torch.float64, dtype):
        x, weight = draw(2, 2, 3, 2, 2).to(kind), draw(2, 3, 3, 3, 3, seed=1).to(kind)
        out = op.stacked_conv(x, weight, padding=1)
        assert out.dtype == kind
        truth = reference.stacked_conv(x.double(), weight.double(), padding=1)
        torch.testing.assert_close(out.double(), truth, rtol=0.05, atol=0.05)
