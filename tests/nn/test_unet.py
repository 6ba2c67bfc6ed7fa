"""The U-Net and the time embedding: published sizes, and laws that hold for any weights."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from treediffusion.config import UNetConfig
from treediffusion.errors import ConfigError, ShapeError
from treediffusion.nn.path_encoder import PathEncoder
from treediffusion.nn.unet import Attention, ResBlock, TimeEmbedding, UNet

TINY = UNetConfig(channels=32, multipliers=(1, 2), attention=(2,), heads=4)


def perturbed(
    config: UNetConfig = TINY, *, size: int = 8, scale_shift: bool = True, channels: int = 1
) -> UNet:
    """A network in evaluation mode without any weight that is zero."""
    torch.manual_seed(0)
    net = UNet(channels, size, config, scale_shift=scale_shift).eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net


def inputs(net: UNet, batch: int = 3) -> tuple[Tensor, Tensor]:
    """Images and embeddings."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, *net.image_shape, generator=generator)
    return x, torch.randn(batch, net.embed_dim, generator=generator)


def test_output_is_zero_at_initialisation() -> None:
    net = UNet(1, 8, TINY)
    assert torch.equal(net(*inputs(net)), torch.zeros(3, 1, 8, 8))


def test_residual_blocks_and_attention_begin_as_their_skips() -> None:
    x = torch.randn(2, 32, 4, 4)
    assert torch.equal(Attention(32, 4)(x), x)
    block = ResBlock(32, 32, dropout=0.5, scale_shift=True)
    assert torch.equal(block(x, torch.randn(2, block.projected)), x)


@pytest.mark.parametrize("scale_shift", [True, False])
def test_a_batch_equals_its_rows(scale_shift: bool) -> None:
    net = perturbed(scale_shift=scale_shift)
    x, emb = inputs(net)
    rows = [net(x[i : i + 1], emb[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(net(x, emb), torch.cat(rows), rtol=1e-5, atol=1e-5)


def test_forward_is_body_of_the_projected_silu() -> None:
    net = perturbed()
    x, emb = inputs(net)
    assert torch.equal(net(x, emb), net.body(x, net.project(F.silu(emb))))


def test_a_condition_is_added_to_one_time_or_to_each() -> None:
    net = perturbed()
    x, cond = inputs(net)
    for time in (torch.randn(3, net.embed_dim), torch.randn(net.embed_dim)):
        assert torch.equal(net(x, time, cond), net(x, time + cond))


@pytest.mark.parametrize("scale_shift", [True, False])
def test_slices_of_the_projection_equal_one_linear_per_block(scale_shift: bool) -> None:
    """Each block, in execution order, receives its own rows of the one weight matrix."""
    net = perturbed(scale_shift=scale_shift).double()
    x, emb = (value.double() for value in inputs(net))
    seen: list[Tensor] = []
    blocks = [module for module in net.modules() if isinstance(module, ResBlock)]
    for block in blocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(args[1]))
    net(x, emb)
    start = 0
    for block, piece in zip(blocks, seen, strict=True):
        linear = nn.Linear(net.embed_dim, block.projected, dtype=torch.float64)
        rows = slice(start, start + block.projected)
        linear.weight.data, linear.bias.data = net.project.weight[rows], net.project.bias[rows]
        torch.testing.assert_close(piece, linear(F.silu(emb)))
        start += block.projected
    assert start == net.project.out_features


def test_scale_shift_block_is_its_formula() -> None:
    """It is x + conv2(silu(norm2(conv1(silu(norm1 x))) (1 + scale) + shift)), scale first."""
    block = ResBlock(32, 64, dropout=0.0, scale_shift=True)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, scale, shift = torch.randn(2, 32, 4, 4), torch.randn(2, 64), torch.randn(2, 64)

    def norm(layer: nn.GroupNorm, h: Tensor) -> Tensor:
        return F.group_norm(h, layer.num_groups, layer.weight, layer.bias, layer.eps)

    h = norm(block.norm2, block.conv1(F.silu(norm(block.norm1, x))))
    h = F.silu(h * (1.0 + scale.reshape(2, 64, 1, 1)) + shift.reshape(2, 64, 1, 1))
    expected = block.skip(x) + block.conv2(h)
    torch.testing.assert_close(block(x, torch.cat([scale, shift], dim=1)), expected)


@pytest.mark.parametrize("heads", [1, 4])
def test_attention_is_its_formula(heads: int) -> None:
    """Softmax of q k over sqrt(d), pixel by pixel, against written-out sums in float64."""
    layer = Attention(32, heads).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(2, 32, 2, 3, dtype=torch.float64)
    size = 32 // heads
    q, k, v = layer.qkv(layer.norm(x)).reshape(2, 3, heads, size, 6).unbind(1)
    weights = torch.einsum("bhdi,bhdj->bhij", q, k).div(math.sqrt(size)).softmax(dim=-1)
    mixed = torch.einsum("bhij,bhdj->bhdi", weights, v).reshape(2, 32, 2, 3)
    torch.testing.assert_close(layer(x), x + layer.out(mixed))


def test_attention_ignores_where_pixels_are() -> None:
    layer = Attention(32, 4)
    nn.init.normal_(layer.out.weight)
    x, order = torch.randn(2, 32, 1, 9), torch.randperm(9)
    torch.testing.assert_close(layer(x)[..., order], layer(x[..., order]))


@pytest.mark.parametrize(("levels", "attention"), [(4, 0), (5, 5)])
def test_attention_list_names_down_sampling_factors(levels: int, attention: int) -> None:
    """16 is met by the fifth level only: two blocks down, three up. The middle always attends."""
    config = UNetConfig(channels=32, multipliers=(1,) * levels, attention=(16,))
    with torch.device("meta"):
        net = UNet(1, 32, config)
    assert sum(isinstance(module, Attention) for module in net.modules()) == attention + 1


@pytest.mark.parametrize(
    ("size", "sides", "attention"),
    [(32, (16,), 5), (28, (16,), 5), (28, (14,), 0), (32, (32, 4), 10), (28, (4, 8), 10)],
)
def test_attention_sides_name_maps_by_their_padded_side(
    size: int, sides: tuple[int, ...], attention: int
) -> None:
    """Two blocks down and three up for a level; 28 is 32 inside. The middle always attends."""
    config = UNetConfig(channels=32, multipliers=(1, 1, 1, 1), attention_sides=sides)
    with torch.device("meta"):
        net = UNet(1, size, config)
    assert sum(isinstance(module, Attention) for module in net.modules()) == attention + 1


def test_a_level_named_twice_attends_once() -> None:
    config = UNetConfig(channels=32, multipliers=(1, 1), attention=(2,), attention_sides=(4,))
    with torch.device("meta"):
        net = UNet(1, 8, config)
    assert sum(isinstance(module, Attention) for module in net.modules()) == 5 + 1


MNIST = UNetConfig(channels=64)
CIFAR = UNetConfig(channels=128, attention=(16, 8))
LARGE = CIFAR.model_copy(update={"multipliers": (1, 2, 2, 2, 4)})


@pytest.mark.parametrize(
    ("config", "channels", "size", "latents", "published"),
    [
        (MNIST, 1, 28, 64, (9_408_449, 9_409_025, 8_618_241, 8_618_817)),
        (CIFAR, 3, 32, 1024, (39_358_339, 39_361_795, 35_746_307, 35_749_763)),
        (LARGE, 3, 64, 1024, (89_147_011, 89_150_467, 83_959_043, 83_962_499)),
    ],
)
def test_parameters_are_as_many_as_published(
    config: UNetConfig, channels: int, size: int, latents: int, published: tuple[int, ...]
) -> None:
    """Path only; with a reconstruction as input; without any condition; reconstruction only."""
    with torch.device("meta"):
        time = _count(TimeEmbedding(config.channels))
        path = _count(PathEncoder(latents, 4 * config.channels))
        counts = [
            _count(UNet(seen, size, config, out_channels=channels, scale_shift=told))
            + time
            + path * told
            for told in (True, False)
            for seen in (channels, 2 * channels)
        ]
    assert tuple(counts) == published


def _count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def test_more_channels_in_than_out() -> None:
    net = UNet(2, 8, TINY, out_channels=1)
    assert net(*inputs(net)).shape == (3, 1, 8, 8)


@pytest.mark.parametrize("scale_shift", [True, False])
def test_every_parameter_gets_a_gradient(scale_shift: bool) -> None:
    net = perturbed(scale_shift=scale_shift)
    x, emb = inputs(net)
    net(x, emb).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0.0, name


def test_the_embedding_matters() -> None:
    net = perturbed()
    x, emb = inputs(net)
    assert not torch.allclose(net(x, emb), net(x, emb.flip(0)), atol=1e-3)


def test_dropout_acts_in_training_only() -> None:
    net = perturbed(TINY.model_copy(update={"dropout": 0.5}))
    x, emb = inputs(net)
    assert torch.equal(net(x, emb), net(x, emb))
    net.train()
    assert not torch.allclose(net(x, emb), net(x, emb), atol=1e-3)


@pytest.mark.parametrize(
    ("size", "levels", "inside"), [(28, 4, 32), (28, 3, 28), (12, 4, 16), (7, 2, 8), (3, 4, 8)]
)
def test_sides_are_padded_with_zeros_inside_and_cropped(
    size: int, levels: int, inside: int
) -> None:
    """Equal to a network of the padded side that is fed the padded image."""
    config = UNetConfig(channels=32, multipliers=(2,) * levels, blocks=1, heads=2)
    net, large = perturbed(config, size=size), perturbed(config, size=inside)
    large.load_state_dict(net.state_dict())
    x, emb = inputs(net, batch=1)
    before = (inside - size) // 2
    inner = slice(before, before + size)
    padded = torch.zeros(1, 1, inside, inside)
    padded[:, :, inner, inner] = x
    out = net(x, emb)
    assert out.shape == x.shape
    torch.testing.assert_close(out, large(padded, emb)[:, :, inner, inner])


def test_channels_last_changes_the_layout_only() -> None:
    net = perturbed(channels=3)
    x, emb = inputs(net)
    expected = net(x, emb)
    net.to(memory_format=torch.channels_last)
    out = net(x.contiguous(memory_format=torch.channels_last), emb)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


def test_attention_keeps_channels_last_without_a_copy() -> None:
    layer = Attention(32, 4).to(memory_format=torch.channels_last).eval()
    x = torch.randn(2, 32, 4, 4).contiguous(memory_format=torch.channels_last)
    operators: list[str] = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(
            self,
            func: OpOverload,
            types: object,
            args: tuple[object, ...] = (),
            kwargs: dict[str, object] | None = None,
        ) -> object:
            operators.append(func.name())
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Recorder():
        assert layer(x).is_contiguous(memory_format=torch.channels_last)
    assert "aten::convolution" in operators
    assert not {"aten::clone", "aten::copy_", "aten::_to_copy"} & set(operators)


def test_body_exports_with_a_free_batch() -> None:
    class Body(nn.Module):
        def __init__(self, net: UNet) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor, projection: Tensor) -> Tensor:
            return self.net.body(x, projection)

    config = UNetConfig(channels=32, multipliers=(1, 2), blocks=1, heads=4)
    net = perturbed(config, size=7)
    x, emb = inputs(net, batch=2)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(
        Body(net).eval(), (x, net.project(F.silu(emb))), dynamic_shapes=({0: batch}, {0: batch})
    )
    x, emb = inputs(net, batch=5)
    out = program.module()(x, net.project(F.silu(emb)))
    torch.testing.assert_close(out, net(x, emb), rtol=1e-5, atol=1e-5)


def test_time_embedding_reads_the_published_waves() -> None:
    embedding = TimeEmbedding(8)
    received: list[Tensor] = []
    embedding.first.register_forward_pre_hook(lambda _, args: received.append(args[0]))
    assert embedding(torch.tensor([0, 1, 999])).shape == (3, 32)
    for t, row in zip([0, 1, 999], received[0], strict=True):
        angles = [t * 10000.0 ** (-k / 4) for k in range(4)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        torch.testing.assert_close(row, torch.tensor(expected), rtol=0.0, atol=1e-4)


def test_time_table_is_the_embedding_of_each_timestep() -> None:
    embedding = TimeEmbedding(8)
    assert torch.equal(embedding.table([999, 3, 0]), embedding(torch.tensor([999, 3, 0])))


def test_half_precision_still_tells_timesteps_apart() -> None:
    """The angles are taken in float32, whatever the weights are."""
    embedding = TimeEmbedding(32)
    rows = embedding.table(range(900, 1000))
    half = embedding.to(torch.bfloat16).table(range(900, 1000))
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), rows, rtol=0.0, atol=0.02)


def test_heads_that_do_not_divide_a_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="heads: got 3, expected a divisor of 64"):
        UNet(1, 8, TINY.model_copy(update={"heads": 3}))


def test_images_of_another_size_are_refused() -> None:
    net = UNet(1, 8, TINY)
    with pytest.raises(ShapeError, match=r"x: got \(2, 1, 16, 16\), expected \[B, 1, 8, 8\]"):
        net(torch.zeros(2, 1, 16, 16), torch.zeros(2, net.embed_dim))
