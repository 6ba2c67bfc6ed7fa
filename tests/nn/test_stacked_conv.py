"""All forms of the stacked convolutions against one convolution per node."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from treediffusion.kernels.stacked_conv import apart, op, reference
from treediffusion.nn.stacked import (
    ROW_ENTRIES,
    StackedConv,
    StackedConvTranspose,
    StackedNorm,
    apply_rows,
    by_rows,
)

FORMS = ("dense", "placed", "grouped", "apart")

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
    """Forces one form, and proves afterwards that no call took another."""
    chosen: str = request.param
    calls = dict.fromkeys(FORMS, 0)

    def counted(name: str, function: object) -> object:
        def call(*args: object, **settings: object) -> object:
            calls[name] += int(name != "grouped" or settings.get("groups", 1) != 1)  # type: ignore[call-overload]
            return function(*args, **settings)  # type: ignore[operator]

        return call

    with monkeypatch.context() as patch:
        # Placed kernels are for transposed convolutions alone.
        straight = "dense" if chosen == "placed" else chosen
        patch.setattr(op, "choose_form", lambda *sizes, stride=0: chosen if stride else straight)
        patch.setattr(op, "_dense", counted(straight, op._dense))
        patch.setattr(op, "place_kernels", counted("placed", op.place_kernels))
        patch.setattr(op, "correlate", counted("apart", op.correlate))
        for name in ("conv2d", "conv_transpose2d"):  # the reference's own have one group
            patch.setattr(op.F, name, counted("grouped", getattr(op.F, name)))
        yield chosen
    assert calls.pop(chosen) + calls.pop(straight, 0) > 0
    assert not any(calls.values())


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
def test_transpose_equals_one_per_node(
    side: int, kernel: int, stride: int, padding: int, form: str
) -> None:
    stride = 1 if form == "apart" else stride  # which is for stride 1 alone
    x, weight = draw(3, 4, 5, side, side), draw(4, 5, 2, kernel, kernel, seed=1)
    ours = op.stacked_conv_transpose(x, weight, stride=stride, padding=padding)
    truth = reference.stacked_conv_transpose(x, weight, stride=stride, padding=padding)
    assert_same(ours, truth, x, weight)


def test_gradients_are_those_of_finite_differences(form: str) -> None:
    x, weight = draw(1, 2, 2, 2, 2), draw(2, 2, 2, 3, 3, seed=1)
    stride = 1 if form == "apart" else 2
    assert torch.autograd.gradcheck(lambda a, w: op.stacked_conv(a, w, padding=1), (x, weight))
    assert torch.autograd.gradcheck(
        lambda a, w: op.stacked_conv_transpose(a, w, stride=stride, padding=1), (x, weight)
    )


@pytest.mark.parametrize("out_channels", [1, 2, 3, 5, 6, 16, 17])
@pytest.mark.parametrize(("side", "padding"), [(4, 0), (4, 1), (5, 2), (3, 3)])
def test_rows_as_channels_are_the_same_rows(out_channels: int, side: int, padding: int) -> None:
    """Groups of one row to all of them, that fill the map and that begin above it."""
    x, weight = draw(2, 3, 3, side, side), draw(3, out_channels, 3, 4, 4, seed=1)
    ours = apart.correlate(x, weight, padding=padding)
    assert ours.is_contiguous()
    assert_same(ours, reference.stacked_conv(x, weight, padding=padding), x, weight)


def test_apart_gives_only_the_gradients_asked_for() -> None:
    """The first layer's maps are data."""
    x, weight = draw(2, 3, 3, 4, 4), draw(3, 2, 3, 3, 3, seed=1)
    both = torch.autograd.grad(apart.correlate(x, weight, padding=1).sum(), [x, weight])
    for k, inputs in enumerate([(x, weight.detach()), (x.detach(), weight)]):
        (alone,) = torch.autograd.grad(apart.correlate(*inputs, padding=1).sum(), inputs[k])
        assert torch.equal(alone, both[k])


def test_apart_has_no_second_gradients() -> None:
    """An error, and not a silent zero."""
    x, weight = draw(1, 2, 2, 3, 3), draw(2, 2, 2, 3, 3, seed=1)
    out = apart.correlate(x, weight, padding=1)
    (of_x,) = torch.autograd.grad((out**2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        of_x.sum().backward()


@pytest.mark.usefixtures("form")
def test_a_bias_is_added_in_every_form() -> None:
    x, bias = draw(3, 4, 5, 3, 3), draw(4, 2, seed=2)
    for name, weight, more in (
        ("stacked_conv", draw(4, 2, 5, 3, 3, seed=1), {}),
        ("stacked_conv_transpose", draw(4, 5, 2, 3, 3, seed=1), {"stride": 1}),
    ):
        ours = getattr(op, name)(x, weight, bias, padding=1, **more)
        truth = getattr(reference, name)(x, weight, padding=1, **more) + bias[..., None, None]
        assert_same(ours, truth, x, bias)


@pytest.mark.parametrize(("side", "channels"), [(12, 3), (8, 16), (16, 8)])
def test_a_single_node_is_a_plain_convolution(
    side: int, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact, and with channels last, which the next layer then finds."""
    monkeypatch.setattr(op, "correlate", None)
    x, weight = draw(3, 1, channels, side, side), draw(1, 2, channels, 3, 3, seed=1)
    ours = op.stacked_conv(x, weight, padding=1)
    assert ours.flatten(1, 2).is_contiguous(memory_format=torch.channels_last)
    assert_same(ours, reference.stacked_conv(x, weight, padding=1), x, weight)
    turned = weight.transpose(1, 2).contiguous().detach().requires_grad_()
    for stride in (1, 2):
        ours = op.stacked_conv_transpose(x, turned, stride=stride, padding=1)
        truth = reference.stacked_conv_transpose(x, turned, stride=stride, padding=1)
        assert_same(ours, truth, x, turned)


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
    ("channels", "out_channels", "size", "out_size", "stride", "form"),
    [
        (128, 64, 2, 2, 1, "dense"),  # nodes, 2x2 latents
        (32, 32, 4, 4, 1, "grouped"),  # nodes, 4x4 latents
        (32, 1, 4, 4, 1, "dense"),  # their routers
        (64, 64, 8, 8, 1, "grouped"),
        (32, 32, 16, 16, 1, "apart"),
        (8, 3, 32, 32, 1, "apart"),
        (5, 3, 4, 6, 1, "dense"),  # decoders of 8x8 images
        (3, 1, 6, 8, 1, "dense"),
        (16, 11, 2, 10, 5, "placed"),  # decoders of 28x28 images
        (11, 6, 10, 19, 1, "apart"),
        (6, 1, 19, 28, 1, "apart"),
        (32, 32, 8, 16, 2, "grouped"),
    ],
)
def test_the_form_on_a_cpu(
    channels: int, out_channels: int, size: int, out_size: int, stride: int, form: str
) -> None:
    sizes = (channels, out_channels, size, out_size)
    assert op.choose_form("cpu", *sizes, stride=stride) == form


@pytest.mark.parametrize(
    ("channels", "side", "form"),
    [
        (3, 1, "dense"),
        (3, 8, "dense"),
        (3, 9, "grouped"),
        (128, 2, "dense"),
        (32, 4, "dense"),
        (64, 4, "grouped"),
        (64, 8, "grouped"),
    ],
)
def test_elsewhere_the_dense_form_is_for_small_matrices(
    channels: int, side: int, form: str
) -> None:
    """Up to 8x8 -> 8x8, which are 4,096 pairs of pixels, and to 262,144 entries."""
    assert op.choose_form("cuda", channels, channels, side, side) == form


@pytest.mark.parametrize(("side", "channels"), [(2, 4), (4, 8), (16, 8), (12, 3)])
def test_the_chosen_form_is_exact(side: int, channels: int) -> None:
    """Dense, grouped, and apart with and without whole groups of rows."""
    x, weight = draw(2, 3, channels, side, side), draw(3, channels, channels, 3, 3, seed=1)
    ours = op.stacked_conv(x, weight, padding=1)
    assert_same(ours, reference.stacked_conv(x, weight, padding=1), x, weight)


@pytest.mark.usefixtures("form")
def test_an_empty_batch() -> None:
    x, weight = draw(0, 3, 5, 4, 4), draw(3, 2, 5, 3, 3, seed=1)
    assert op.stacked_conv(x, weight, padding=1).shape == (0, 3, 2, 4, 4)


def test_padding_beyond_the_kernel() -> None:
    """Where the kernel sees nothing but zeros the result is zero, in every form."""
    x, weight = draw(2, 2, 3, 12, 12), draw(2, 3, 3, 2, 2, seed=1)
    ours = op.stacked_conv(x, weight, padding=3)
    assert_same(ours, reference.stacked_conv(x, weight, padding=3), x, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_stay_what_they_are(dtype: torch.dtype) -> None:
    """The matrix of taps follows the input's type, whichever type was seen before."""
    for kind in (torch.float64, dtype):
        x, weight = draw(2, 2, 3, 2, 2).to(kind), draw(2, 3, 3, 3, 3, seed=1).to(kind)
        out = op.stacked_conv(x, weight, padding=1)
        assert out.dtype == kind
        truth = reference.stacked_conv(x.double(), weight.double(), padding=1)
        torch.testing.assert_close(out.double(), truth, rtol=0.05, atol=0.05)


def make_layers(rows: int, channels: int) -> nn.Module:
    """In float64, with a parameter or a statistic of every kind."""
    torch.manual_seed(0)
    return nn.Sequential(
        StackedConv(rows, channels, 4, bias=True),
        StackedNorm(rows, 4),
        nn.SiLU(),
        StackedConvTranspose(rows, 4, 2, kernel=4, stride=2),
    ).double()


@pytest.mark.parametrize("entries", [9, ROW_ENTRIES])
def test_rows_one_by_one_are_the_same_rows(entries: int) -> None:
    """Values, all gradients and the running statistics, below and above the limit."""
    x = draw(3, 3, -(-entries // 9), 3, 3)
    together, ours = make_layers(3, x.shape[2]), make_layers(3, x.shape[2])
    truth, found = together(x), apply_rows(ours, x)
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)
    upstream = draw(*truth.shape, seed=9).detach()
    (found * upstream).sum().backward()
    (truth * upstream).sum().backward()
    for one, other in zip(ours.parameters(), together.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-11, atol=1e-11)
    for one, other in zip(ours.buffers(), together.buffers(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        assert one.abs().min() > 0


@pytest.mark.parametrize("side", [1, 2, 3, 4])
@pytest.mark.parametrize("training", [True, False])
def test_every_nodes_norm_is_a_batch_norm_of_its_own(side: int, training: bool) -> None:
    """At the sides of both forms: values, gradients, running statistics."""
    torch.manual_seed(0)
    ours = StackedNorm(3, 4).double().train(training)
    for tensor in ours.parameters():
        nn.init.normal_(tensor)
    plain = [nn.BatchNorm2d(4).double().train(training) for _ in range(3)]
    for node, norm in enumerate(plain):
        norm.weight.data, norm.bias.data = ours.weight.data[node], ours.bias.data[node]
    x, upstream = draw(5, 3, 4, side, side), draw(5, 3, 4, side, side, seed=9).detach()
    truth = torch.stack([norm(x[:, node]) for node, norm in enumerate(plain)], dim=1)
    (expected,) = torch.autograd.grad((truth * upstream).sum(), x, retain_graph=True)
    found = ours(x)
    (gradient,) = torch.autograd.grad((found * upstream).sum(), x, retain_graph=True)
    torch.testing.assert_close(found, truth, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-11)
    (found * upstream).sum().backward()
    (truth * upstream).sum().backward()
    for node, norm in enumerate(plain):
        assert ours.weight.grad is not None
        torch.testing.assert_close(ours.weight.grad[node], norm.weight.grad)
        torch.testing.assert_close(ours.running_mean[node], norm.running_mean)
        torch.testing.assert_close(ours.running_var[node], norm.running_var)


def test_groups_of_rows_are_parts_of_the_whole() -> None:
    """Also a group of none; the module keeps its tensors."""
    layers, x = make_layers(5, 3).eval(), draw(2, 5, 3, 4, 4)
    names = [name for name, _ in layers.named_parameters()]
    groups = by_rows(layers, [2, 0, 3])
    found = [groups[0](x[:, :2]), groups[2](x[:, 2:])]
    assert len(groups) == 3
    torch.testing.assert_close(torch.cat(found, dim=1), layers(x), rtol=1e-12, atol=1e-12)
    assert [name for name, _ in layers.named_parameters()] == names
    assert all(isinstance(tensor, nn.Parameter) for tensor in layers.parameters())
