"""EDM's augmentation: what is done is what is told, and nothing where nothing is told."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from treediffusion.diffusion.augment import (
    LABELS,
    Moves,
    apply_moves,
    augment,
    draw_moves,
    labels,
)


def still(count: int = 2, **changes: float) -> Moves:
    """The same moves for each of `count` images; all that are not named are none."""
    values = dict.fromkeys(Moves._fields, 0.0) | changes
    parts = {name: torch.full((count,), value) for name, value in values.items()}
    return Moves(**(parts | {name: parts[name] > 0 for name in ("mirror", "upend")}))


def images(count: int = 2, *, channels: int = 1, size: int = 8, width: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, channels, size, width or size, generator=generator) * 2 - 1


def close(ours: Tensor, truth: Tensor) -> None:
    torch.testing.assert_close(ours, truth, rtol=0, atol=2e-5)


def ramp(size: int, *, down: bool = False) -> Tensor:
    """[1, 1, size, size] the distance of each pixel from the middle, to the right or down."""
    line = torch.arange(size) - (size - 1) / 2
    plane = line[:, None].expand(size, size) if down else line.expand(size, size)
    return plane[None, None]


def inner(plane: Tensor) -> Tensor:
    """The middle, which no pixel from beyond an edge has reached."""
    third = plane.shape[-1] // 3
    return plane[..., third:-third, third:-third]


@pytest.mark.parametrize("size", [1, 2, 7, 28])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes_types_and_range_stay(size: int, channels: int) -> None:
    torch.manual_seed(0)
    x = images(64, channels=channels, size=size)
    out, told = augment(x, prob=1.0)
    assert (out.shape, out.dtype) == (x.shape, x.dtype)
    assert (told.shape, told.dtype) == ((64, LABELS), x.dtype)
    assert told.isfinite().all()
    assert out.isfinite().all()
    low, high = x.amin((1, 2, 3)) - 1e-5, x.amax((1, 2, 3)) + 1e-5
    assert (out.amin((1, 2, 3)) >= low).all()
    assert (out.amax((1, 2, 3)) <= high).all()


def test_without_chance_nothing_is_done_or_told() -> None:
    x = images(100)
    out, told = augment(x, prob=0.0)
    assert torch.equal(out, x)
    assert not told.any()


def test_images_told_to_be_left_alone_are() -> None:
    torch.manual_seed(1)
    x = images(400)
    out, told = augment(x)
    alone = ~told.any(dim=1)
    assert 50 < alone.sum() < 200
    assert torch.equal(out[alone], x[alone])
    changed = (out != x).flatten(1).any(dim=1)
    assert torch.equal(changed, ~alone)


def test_flips_are_exact() -> None:
    x = images()
    assert torch.equal(apply_moves(x, still(mirror=1)), x.flip(3))
    assert torch.equal(apply_moves(x, still(upend=1)), x.flip(2))
    assert torch.equal(apply_moves(x, still(mirror=1, upend=1)), x.flip(2, 3))
    assert labels(still(1, mirror=1)).tolist() == [[1, 0, 0, 0, 0, 0, 0, 0, 0]]
    assert labels(still(1, upend=1)).tolist() == [[0, 1, 0, 0, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("size", [8, 24])
@pytest.mark.parametrize("pixels", [1, 3, -2])
def test_whole_pixels_are_a_roll_with_reflection(pixels: int, size: int) -> None:
    """A deviate is an eighth of the side; the reflection does not repeat the edge."""
    x, deviate = images(size=size), 8 * pixels / size
    room = abs(pixels)
    padded = torch.nn.functional.pad(x, (room,) * 4, mode="reflect")
    cut = slice(room, room + size)
    close(apply_moves(x, still(right=deviate)), padded.roll(pixels, 3)[..., cut, cut])
    close(apply_moves(x, still(down=deviate)), padded.roll(pixels, 2)[..., cut, cut])
    told = labels(still(1, right=deviate, down=-deviate))[0]
    close(told, torch.tensor([0, 0, 0, 0, 0, 0, 0, deviate, -deviate]))


def test_images_need_not_be_square() -> None:
    x = images(size=8, width=16)
    padded = torch.nn.functional.pad(x, (2, 2, 1, 1), mode="reflect")
    close(apply_moves(x, still(right=1, down=-1)), padded[..., 2:10, 0:16])
    close(apply_moves(x, still(turn=math.pi)), x.flip(2, 3))


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_quarter_turns_are_exact_and_counter_clockwise(quarters: int, size: int) -> None:
    x, turn = images(size=size), quarters * math.pi / 2
    close(apply_moves(x, still(turn=turn)), x.rot90(quarters, (2, 3)))
    told = labels(still(1, turn=turn))[0]
    close(told, torch.tensor([0, 0, 0, math.cos(turn) - 1, math.sin(turn), 0, 0, 0, 0]))


@pytest.mark.parametrize("angle", [0.4, -1.1])
def test_turns_carry_a_ramp_with_them(angle: float) -> None:
    """Bilinear samples of a plane are the plane: upwards of the picture is -y."""
    x = ramp(30)
    out = apply_moves(x, still(1, turn=angle))
    expected = math.cos(angle) * x - math.sin(angle) * ramp(30, down=True)
    close(inner(out), inner(expected))


@pytest.mark.parametrize("deviate", [1.0, -1.5])
def test_scale_enlarges_by_a_power_of_two(deviate: float) -> None:
    x = ramp(30)
    out = apply_moves(x, still(1, scale=deviate))
    close(inner(out), inner(x / 2 ** (0.2 * deviate)))
    assert labels(still(1, scale=deviate))[0].nonzero().tolist() == [[2]]


@pytest.mark.parametrize("axis", [0.0, math.pi / 2, 0.7, -1.2])
def test_stretch_lengthens_along_its_axis_and_shortens_across(axis: float) -> None:
    x, y, deviate = ramp(30), ramp(30, down=True), 1.0
    along = math.cos(axis) * x + math.sin(axis) * y
    across = math.cos(axis) * y - math.sin(axis) * x
    moves, factor = still(1, stretch=deviate, axis=axis), 2 ** (0.2 * deviate)
    close(inner(apply_moves(along, moves)), inner(along / factor))
    close(inner(apply_moves(across, moves)), inner(across * factor))
    told = [0, 0, 0, 0, 0, deviate * math.cos(axis), deviate * math.sin(axis), 0, 0]
    close(labels(moves)[0], torch.tensor(told))


def test_scale_comes_before_the_turn_the_stretch_and_the_move() -> None:
    """All at once are those done one after another, as far as the middle tells."""
    x, parts = ramp(48), {"scale": 0.5, "turn": 0.3, "stretch": -0.6, "right": 0.2}
    at_once = apply_moves(x, still(1, mirror=1, **parts))
    one_by_one = x.flip(3)
    for name, value in parts.items():
        one_by_one = apply_moves(one_by_one, still(1, **{name: value}))
    close(inner(at_once), inner(one_by_one))


def test_axes_without_a_stretch_do_nothing() -> None:
    x, moves = images(), still(axis=1.0)
    assert torch.equal(apply_moves(x, moves), x)
    assert not labels(moves).any()


def test_images_do_not_depend_on_their_batch() -> None:
    torch.manual_seed(2)
    x = images(9)
    moves = draw_moves(x, prob=1.0)
    together, told = apply_moves(x, moves), labels(moves)
    for row in range(9):
        own = Moves(*(part[row : row + 1] for part in moves))
        close(apply_moves(x[row : row + 1], own), together[row : row + 1])
        close(labels(own), told[row : row + 1])


def test_the_label_gives_the_moves_away() -> None:
    torch.manual_seed(3)
    x = images(50, size=12)
    moves = draw_moves(x, prob=1.0)
    told = labels(moves)
    # The axis is within a quarter turn, so its cosine leaves the stretch its sign.
    again = Moves(
        mirror=told[:, 0] > 0,
        upend=told[:, 1] > 0,
        scale=told[:, 2],
        turn=torch.atan2(told[:, 4], told[:, 3] + 1),
        stretch=told[:, 5].hypot(told[:, 6]) * told[:, 5].sign(),
        axis=torch.atan(told[:, 6] / told[:, 5]),
        right=told[:, 7],
        down=told[:, 8],
    )
    for name, ours, truth in zip(Moves._fields, again, moves, strict=True):
        torch.testing.assert_close(ours, truth, rtol=1e-3, atol=1e-4, msg=name)
    torch.testing.assert_close(apply_moves(x, again), apply_moves(x, moves), rtol=0, atol=1e-3)


def test_shares_and_deviations_are_the_published_ones() -> None:
    """40,000 images: five standard errors."""
    torch.manual_seed(4)
    moves = draw_moves(torch.zeros(40_000, 1, 1, 1))
    assert moves.mirror.float().mean() == pytest.approx(0.5, abs=0.0125)
    assert moves.upend.float().mean() == pytest.approx(0.06, abs=0.006)
    for part in (moves.scale, moves.turn, moves.stretch, moves.right, moves.down):
        assert (part != 0).float().mean() == pytest.approx(0.12, abs=0.008)
    assert torch.equal(moves.right != 0, moves.down != 0)
    assert (moves.axis != 0).float().mean() == pytest.approx(0.5, abs=0.0125)
    for part in (moves.scale, moves.stretch, moves.right, moves.down):
        drawn = part[part != 0]
        assert drawn.mean() == pytest.approx(0.0, abs=0.075)
        assert drawn.std() == pytest.approx(1.0, abs=0.055)
    for angle, limit in ((moves.turn, math.pi), (moves.axis, math.pi / 2)):
        drawn = angle[angle != 0]
        assert drawn.abs().max() <= limit
        assert drawn.std() == pytest.approx(limit / 3**0.5, rel=0.05)
    together = torch.corrcoef(torch.stack([part.float() for part in moves]))
    assert (together - together.diag().diag()).abs().max() < 0.03


def test_a_call_is_one_fixed_graph() -> None:
    """Tracing without values fails at any that is read; a CUDA graph holds what passes."""
    x = images(4)
    graph = make_fx(lambda x: augment(x), tracing_mode="fake")(x)
    torch.manual_seed(5)
    expected = augment(x)
    torch.manual_seed(5)
    torch.testing.assert_close(graph(x), expected)
