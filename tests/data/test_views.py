"""Random views: torchvision's maps and distributions, but drawn for every image on its own."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Callable
from itertools import permutations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torchvision.transforms import InterpolationMode, RandomResizedCrop
from torchvision.transforms.v2 import functional as tv
from treediffusion.config import TreeConfig
from treediffusion.data.views import colour, geometry, pipelines, random_view
from treediffusion.data.views.geometry import TRIES, Boxes
from treediffusion.errors import ConfigError, ShapeError

KINDS = ["none", "shifts", "strokes", "colour", "faces"]
LIVELY = KINDS[1:]
BROWN = (0.5, 0.4, 0.3)  # far enough from black and white that no adjustment is cut off


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def flat(count: int, *pixel: float, size: int = 4) -> Tensor:
    """Images of one colour."""
    return torch.tensor(pixel)[None, :, None, None].expand(count, -1, size, size).clone()


def whole(batch: int, size: int) -> Boxes:
    zero, full = torch.zeros(batch), torch.full((batch,), float(size))
    return Boxes(zero, zero, full, full)


def close(ours: Tensor, truth: Tensor) -> None:
    torch.testing.assert_close(ours, truth, rtol=0, atol=1e-5)


def assert_same_distribution(ours: Tensor, theirs: Tensor) -> None:
    """Kolmogorov and Smirnov's distance of two samples, at a level of one in a thousand."""
    at = torch.cat([ours, theirs]).unique()
    shares = [torch.searchsorted(x.sort()[0], at, right=True) / len(x) for x in (ours, theirs)]
    assert (shares[0] - shares[1]).abs().max() < 1.95 * (1 / len(ours) + 1 / len(theirs)) ** 0.5


def assert_uniform(values: Tensor, low: float, high: float) -> None:
    assert values.min() >= low - 1e-5
    assert values.max() <= high + 1e-5
    even = torch.linspace(low, high, 100_001)
    assert_same_distribution(values, even)


# All kinds


def test_kinds_are_those_of_the_settings() -> None:
    assert list(pipelines._PIPELINES) == KINDS
    for kind in KINDS:
        assert TreeConfig.model_validate({"augmentation": kind}).augmentation == kind


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [(32, 32), (7, 7), (8, 12)])
def test_shape_type_and_range_stay(kind: str, dtype: torch.dtype, size: tuple[int, int]) -> None:
    """Also for pixels that are all 0 or 1, where cubic kernels overshoot most."""
    torch.manual_seed(0)
    images = draw(16, 3, *size).to(dtype).round()
    view = random_view(images, kind)
    assert view.shape == images.shape
    assert view.dtype == dtype
    assert view.min() >= 0
    assert view.max() <= 1 + 1e-6


@pytest.mark.parametrize("kind", ["none", "shifts", "strokes"])
def test_grey_images_have_views_that_leave_colours_alone(kind: str) -> None:
    assert random_view(draw(4, 1, 28, 28), kind).shape == (4, 1, 28, 28)


def test_none_is_the_images_themselves() -> None:
    images = draw(4, 1, 8, 8)
    assert torch.equal(random_view(images, "none"), images)


@pytest.mark.parametrize("kind", LIVELY)
def test_views_repeat_under_a_seed_and_differ_without(kind: str) -> None:
    images = draw(4, 3, 28, 28)
    torch.manual_seed(7)
    first, second = random_view(images, kind), random_view(images, kind)
    torch.manual_seed(7)
    assert torch.equal(first, random_view(images, kind))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("kind", LIVELY)
def test_copies_of_one_image_get_different_views(kind: str) -> None:
    torch.manual_seed(0)
    view = random_view(draw(1, 3, 28, 28).expand(8, -1, -1, -1), kind)
    for one in range(8):
        for other in range(one):
            assert not torch.allclose(view[one], view[other], atol=1e-3)


@pytest.mark.parametrize("kind", LIVELY)
def test_a_view_depends_on_no_other_image(kind: str) -> None:
    images, others = draw(6, 3, 16, 16), draw(6, 3, 16, 16, seed=1)
    others[2] = images[2]
    torch.manual_seed(0)
    view = random_view(images, kind)[2]
    torch.manual_seed(0)
    close(random_view(others, kind)[2], view)


@pytest.mark.parametrize("kind", LIVELY)
def test_given_images_are_not_changed(kind: str) -> None:
    images = draw(4, 3, 16, 16)
    before = images.clone()
    random_view(images, kind)
    assert torch.equal(images, before)


@pytest.mark.parametrize("kind", LIVELY)
def test_nothing_is_read_back_or_sent_over(kind: str) -> None:
    """Traced on fake tensors, which have no values to read: a CUDA graph can hold what is left.

    Such a graph takes neither shapes that depend on values nor tensors made on the host.
    """
    with FakeTensorMode():
        images = torch.empty(8, 3, 32, 32)
    trace = make_fx(lambda x: random_view(x, kind), tracing_mode="fake")
    graph = trace(images).graph
    called = {str(node.target) for node in graph.nodes if node.op == "call_function"}
    assert "aten.rand.default" in called
    forbidden = r"aten\.(item|_local_scalar_dense|nonzero|masked_select|index|lift\w*)\b"
    assert not [name for name in called if re.match(forbidden, name)]
    assert not [node for node in graph.nodes if node.op == "get_attr"]


@pytest.mark.parametrize("kind", LIVELY)
def test_new_tensors_are_made_where_the_images_are(kind: str) -> None:
    """`meta` stands for any device that is not the host."""
    assert random_view(torch.empty(4, 3, 16, 16, device="meta"), kind).device.type == "meta"


@pytest.mark.gpu
@pytest.mark.parametrize("kind", LIVELY)
def test_a_cuda_graph_draws_anew_each_time_it_is_replayed(kind: str) -> None:
    images = draw(8, 3, 32, 32).cuda()
    random_view(images, kind)  # the libraries set themselves up before the capture
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        view = random_view(images, kind)
    graph.replay()
    first = view.clone()
    graph.replay()
    assert not torch.equal(first, view)
    assert view.min() >= 0


# Bad input


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="'sepia', expected one of none, shifts"):
        random_view(draw(2, 3, 8, 8), "sepia")


@pytest.mark.parametrize("kind", ["colour", "faces"])
@pytest.mark.parametrize("channels", [1, 4])
def test_colours_need_three_channels(kind: str, channels: int) -> None:
    with pytest.raises(ShapeError, match=f"got {channels} channels, expected three"):
        random_view(draw(2, channels, 8, 8), kind)


# Shifts


def test_a_whole_shift_moves_pixels_and_shows_black_behind_them() -> None:
    images = draw(1, 2, 5, 6)
    moved = geometry.shift(images, torch.tensor([1.0]), torch.tensor([-2.0]))
    expected = torch.zeros_like(images)
    expected[:, :, 1:, :-2] = images[:, :, :-1, 2:]
    close(moved, expected)


def test_half_a_pixel_is_the_mean_of_two() -> None:
    images = draw(1, 1, 5, 5)
    moved = geometry.shift(images, torch.tensor([0.0]), torch.tensor([0.5]))
    close(moved[..., 1:], (images[..., 1:] + images[..., :-1]) / 2)
    close(moved[..., 0], images[..., 0] / 2)


def test_shifts_are_uniform_up_to_a_pixel_in_each_direction() -> None:
    images = torch.zeros(1000, 1, 9, 9)
    images[:, :, 4, 4] = 1
    torch.manual_seed(0)
    view = random_view(images, "shifts")[:, 0]
    at = torch.arange(9.0) - 4
    down, right = view.sum(2) @ at, view.sum(1) @ at
    assert_uniform(down, -1, 1)
    assert_uniform(right, -1, 1)
    assert torch.corrcoef(torch.stack([down, right]))[0, 1].abs() < 0.1


# Strokes


@pytest.mark.parametrize("size", [(28, 28), (9, 14)])
def test_affine_equals_torchvision(size: tuple[int, int]) -> None:
    """Up to pixels whose source lies half way between two, which rounding decides."""
    images = draw(6, 2, *size)
    numbers = draw(5, 6, seed=1)
    angle, shear, scale = 40 * numbers[0] - 20, 20 * numbers[1] - 10, 0.8 + 0.4 * numbers[2]
    down, right = (numbers[3:] * 6 - 3).round()
    ours = geometry.affine(
        images, angle=angle.deg2rad(), down=down, right=right, scale=scale, shear=shear.deg2rad()
    )
    for index, image in enumerate(images):
        move = [int(right[index]), int(down[index])]
        theirs = tv.affine(
            image, float(angle[index]), move, float(scale[index]), [float(shear[index]), 0.0],
            interpolation=InterpolationMode.NEAREST, fill=[1.0],
        )  # fmt: skip
        assert ((ours[index] - theirs).abs() > 1e-5).float().mean() < 0.01


def test_paper_stays_white() -> None:
    close(random_view(torch.ones(64, 1, 28, 28), "strokes"), torch.ones(64, 1, 28, 28))


def test_strokes_draw_every_parameter_from_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Tensor] = {}
    monkeypatch.setattr(geometry, "affine", lambda images, **drawn: found.update(drawn))
    torch.manual_seed(0)
    random_view(torch.ones(4000, 1, 56, 28), "strokes")
    assert_uniform(found["angle"].rad2deg(), -10, 10)
    assert_uniform(found["scale"], 0.9, 1.1)
    assert_uniform(found["shear"].rad2deg(), -0.01, 0.01)
    # Rounded after drawing, so the outermost whole pixels get half a share.
    close_share(found["right"], {-1: 0.25, 0: 0.5, 1: 0.25})
    close_share(found["down"], {-2: 0.125, -1: 0.25, 0: 0.25, 1: 0.25, 2: 0.125})
    assert torch.corrcoef(torch.stack(list(found.values()))).triu(1).abs().max() < 0.05


def close_share(values: Tensor, expected: dict[int, float]) -> None:
    assert set(values.tolist()) == set(expected)
    for value, share in expected.items():
        assert (values == value).float().mean() == pytest.approx(share, abs=0.03)


# Crops


@pytest.mark.parametrize("size", [(32, 32), (8, 11)])
def test_crop_equals_torchvision(size: tuple[int, int]) -> None:
    """Crop, cubic enlargement as in Pillow, mirror; one pixel, edges and the whole among them."""
    images = draw(5, 3, *size)
    boxes = [(0, 0, *size), (0, 0, 1, 1), (size[0] - 3, size[1] - 5, 3, 5), (2, 1, 5, 4),
             (1, 0, size[0] - 1, size[1])]  # fmt: skip
    mirror = torch.tensor([False, True, False, True, True])
    ours = geometry.resized_crop(images, Boxes(*torch.tensor(boxes).float().T), mirror=mirror)
    for index, (image, box) in enumerate(zip(images, boxes, strict=True)):
        theirs = tv.resized_crop(
            image, *box, list(size), interpolation=InterpolationMode.BICUBIC, antialias=True
        ).clamp(0, 1)
        close(ours[index], theirs.flip(-1) if mirror[index] else theirs)


def test_the_whole_is_the_image_and_mirrors_twice_to_itself() -> None:
    images = draw(3, 3, 16, 16)
    for mirror in (torch.zeros(3).bool(), torch.ones(3).bool()):
        once = geometry.resized_crop(images, whole(3, 16), mirror=mirror)
        close(geometry.resized_crop(once, whole(3, 16), mirror=mirror), images)


def test_one_colour_stays_that_colour_in_every_crop() -> None:
    images = flat(500, *BROWN, size=32)
    torch.manual_seed(0)
    view = pipelines._random_crop(images, scale=(0.2, 1), ratio=(3 / 4, 4 / 3))
    close(view, images)


@pytest.mark.parametrize(
    ("size", "scale", "ratio"),
    [(32, (0.2, 1.0), (3 / 4, 4 / 3)), (64, (0.75, 1.0), (4 / 5, 5 / 4))],
)
def test_boxes_have_the_distribution_of_torchvision(
    size: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    torch.manual_seed(0)
    image = torch.empty(1, size, size)
    drawn = [RandomResizedCrop.get_params(image, list(scale), list(ratio)) for _ in range(3000)]
    top, left, height, width = torch.tensor(drawn).float().T
    ours = geometry.draw_boxes(
        torch.rand(2, TRIES, 30_000), torch.rand(2, 30_000), size=(size, size), scale=scale,
        ratio=ratio,
    )  # fmt: skip
    assert_same_distribution(ours.height * ours.width, height * width)
    assert_same_distribution(ours.width / ours.height, width / height)
    assert_same_distribution(ours.top, top)
    assert_same_distribution(ours.left, left)
    assert_same_distribution(ours.top - ours.left, top - left)


def test_boxes_lie_inside_even_at_the_ends_of_the_random_numbers() -> None:
    ends = torch.tensor([0.0, 1 - 2**-24])
    tries = torch.cartesian_prod(ends, ends).T[:, None].expand(2, TRIES, 4)
    for size in (8, 28, 33, 64):
        for place in ends:
            boxes = geometry.draw_boxes(
                tries, place.expand(2, 4), size=(size, size), scale=(0.2, 1), ratio=(3 / 4, 4 / 3)
            )
            for start, length in ((boxes.top, boxes.height), (boxes.left, boxes.width)):
                assert (start >= 0).all()
                assert (length >= 1).all()
                assert (start + length <= size).all()


def test_the_first_try_that_fits_counts_and_else_the_whole_image() -> None:
    """Of one image, tries 0 to 2 are too wide; of the other all are."""
    tries = torch.ones(2, TRIES, 2)
    tries[0, 3, 0], tries[0, 4:, 0] = 0.0, 0.5
    boxes = geometry.draw_boxes(
        tries, torch.full((2, 2), 0.5), size=(20, 20), scale=(0.25, 1), ratio=(0.5, 2)
    )
    assert torch.stack(boxes).T.tolist() == [[7, 3, 7, 14], [0, 0, 20, 20]]


@pytest.mark.parametrize("kind", ["colour", "faces"])
def test_half_of_the_views_are_mirrored(kind: str) -> None:
    images = torch.linspace(0.3, 0.6, 16).expand(3000, 3, 16, 16)
    torch.manual_seed(0)
    view = random_view(images, kind)
    mirrored = view[..., :8].mean((1, 2, 3)) > view[..., 8:].mean((1, 2, 3))
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.03)


# Colours


def patterns() -> Tensor:
    """[B, 3, H, W] smooth noise, and every triple of 0, 1/2 and 1: greys, ties and pure hues."""
    levels = torch.tensor([0.0, 0.5, 1.0])
    triples = torch.cartesian_prod(levels, levels, levels).T.reshape(1, 3, 3, 9)
    return torch.cat([draw(6, 3, 3, 9), triples, triples])


@pytest.mark.parametrize(
    ("quality", "truth"),
    [
        (colour.BRIGHTNESS, tv.adjust_brightness),
        (colour.CONTRAST, tv.adjust_contrast),
        (colour.SATURATION, tv.adjust_saturation),
    ],
)
def test_adjustments_equal_torchvision(
    quality: int, truth: Callable[[Tensor, float], Tensor]
) -> None:
    images = patterns()
    factor = torch.tensor([0.0, 0.6, 0.8, 1.0, 1.2, 1.4, 0.7, 3.0])
    ours = colour.adjust(images, torch.full((8,), quality), factor)
    for index, image in enumerate(images):
        close(ours[index], truth(image, float(factor[index])))


def test_hue_equals_torchvision() -> None:
    images = patterns()
    turn = torch.tensor([-0.5, -0.1, -0.03, 0.0, 0.05, 0.1, 0.33, -0.2])
    ours = colour.turn_hue(images, turn)
    for index, image in enumerate(images):
        close(ours[index], tv.adjust_hue(image, float(turn[index])))


def test_grey_equals_torchvision() -> None:
    images = patterns()
    close(colour.greyscale(images), tv.rgb_to_grayscale(images))
    chosen = torch.arange(8) % 2 == 0
    view = colour.grey_where(images, chosen)
    close(view[chosen], tv.rgb_to_grayscale(images, num_output_channels=3)[chosen])
    assert torch.equal(view[~chosen], images[~chosen])


def test_jitter_equals_torchvision_in_each_of_the_24_orders() -> None:
    """The hue is the fourth step; it stands where `place` says among the other three."""
    hue = 3
    orders = list(permutations(range(4)))
    images = draw(24, 3, 6, 6)
    factors, turn = 0.6 + 0.8 * draw(3, 24, seed=1), 0.2 * draw(24, seed=2) - 0.1
    order = torch.tensor([[step for step in steps if step != hue] for steps in orders]).T
    place = torch.tensor([steps.index(hue) + 0.9 for steps in orders])
    ours = colour.jitter(images, factors, order, turn=turn, place=place)
    steps_of_theirs = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation]
    for index, steps in enumerate(orders):
        theirs = images[index]
        for step in steps:
            if step == hue:
                theirs = tv.adjust_hue(theirs, float(turn[index]))
            else:
                theirs = steps_of_theirs[step](theirs, float(factors[step, index]))
        close(ours[index], theirs)


def test_jitter_without_a_hue_equals_one_that_does_not_turn() -> None:
    images, factors = draw(6, 3, 6, 6), 0.6 + 0.8 * draw(3, 6)
    order = torch.tensor(list(permutations(range(3)))).T
    turned = colour.jitter(images, factors, order, turn=torch.zeros(6), place=draw(6) * 4)
    close(colour.jitter(images, factors, order), turned)


def test_every_order_is_as_likely_as_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Tensor] = {}

    def remember(images: Tensor, factors: Tensor, order: Tensor, **drawn: Tensor) -> Tensor:
        found.update(drawn, factors=factors, order=order)
        return images

    monkeypatch.setattr(colour, "jitter", remember)
    torch.manual_seed(0)
    random_view(torch.ones(9600, 3, 2, 2), "colour")
    code = found["order"][0] * 3 + found["order"][1] + 9 * found["place"].floor()
    counts = code.unique(return_counts=True)[1].double()
    assert len(counts) == 24
    assert ((counts - 400) ** 2 / 400).sum() < 49.7  # chi-square, 23 degrees, one in a thousand
    for factor in found["factors"]:
        assert_uniform(factor[factor != 1], 0.6, 1.4)
    assert_uniform(found["turn"][found["turn"] != 0], -0.1, 0.1)
    every = torch.cat([found["factors"], found["turn"][None]])[:, found["turn"] != 0]
    assert torch.corrcoef(every).triu(1).abs().max() < 0.05


def test_one_in_five_keeps_its_colours_and_one_in_five_loses_them() -> None:
    torch.manual_seed(0)
    images = flat(5000, *BROWN)
    colours, faces = random_view(images, "colour"), random_view(images, "faces")
    is_grey = (colours.amax(1) - colours.amin(1)).amax((1, 2)) < 1e-6
    as_was = (colours - images).abs().amax((1, 2, 3)) < 1e-5
    assert is_grey.float().mean() == pytest.approx(0.2, abs=0.02)
    assert as_was.float().mean() == pytest.approx(0.2 * 0.8, abs=0.02)
    as_was = (faces - images).abs().amax((1, 2, 3)) < 1e-5
    assert as_was.float().mean() == pytest.approx(0.2, abs=0.02)


def test_brightness_of_faces_is_uniform_within_a_fifth() -> None:
    """Of a grey image nothing else can change."""
    torch.manual_seed(0)
    factor = random_view(flat(5000, 0.5, 0.5, 0.5), "faces")[:, 0, 0, 0] / 0.5
    assert_uniform(factor[(factor - 1).abs() > 1e-6], 0.8, 1.2)


@pytest.mark.parametrize(("kind", "limit"), [("colour", 0.1), ("faces", 0.0)])
def test_hues_turn_by_at_most_a_tenth_and_those_of_faces_not_at_all(
    kind: str, limit: float
) -> None:
    torch.manual_seed(0)
    view = random_view(flat(1000, *BROWN), kind)[:, :, 0, 0]
    view = view[view.amax(1) - view.amin(1) > 1e-3]
    hues = torch.tensor([colorsys.rgb_to_hsv(*pixel)[0] for pixel in view.tolist()])
    turned = (hues - colorsys.rgb_to_hsv(*BROWN)[0] + 0.5) % 1 - 0.5
    assert turned.abs().max() <= limit + 1e-4
    assert turned.abs().max() >= 0.95 * limit
