"""The noise standard: its words, its transform, and what may and may not change a draw.

Truths are independent of NumPy: Philox on Python integers, the published vectors of Random123, and
the transform one number at a time with float32 rounding by `struct`.

Record the golden file again, from the root of the repository, with:
    PYTHONPATH=python python tests/unit/test_noise.py
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from treediffusion import noise
from treediffusion.errors import ConfigError
from treediffusion.noise import Stream

GOLDEN = Path(__file__).parents[1] / "golden" / "noise.json"
TOP = 2**64 - 1
GOLDEN_DRAWS = [
    (0, 0, Stream.ROOT, 0),
    (0, 0, Stream.START, 0),
    (0, 1, Stream.START, 0),
    (7, 3, Stream.NODE, 12),
    (7, 3, Stream.ROUTE, 2),
    (7, 3, Stream.STEP, 49),
    (2**53 + 1, 511, Stream.DROPOUT, 1),
    (TOP, TOP, Stream.STEP, TOP),
]
# Both ends of the radius and of the angle in each quadrant, and both sides of the cut at sqrt(1/2).
EDGE_HALVES = [0, 0xFF, 0x100, 0x3FFFFFFF, 0x40000000, 0x7FFFFFFF, 0x80000000, 0xB504F2FF]
EDGE_HALVES += [0xB504F300, 0xBFFFFFFF, 0xC0000000, 0xFFFFFEFF, 0xFFFFFFFF]
EDGE_WORDS = [high << 32 | low for high in EDGE_HALVES for low in EDGE_HALVES]


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x64-10 (Salmon et al. 2011) on Python integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [right >> 64 ^ c[1] ^ k[0], right & TOP, left >> 64 ^ c[3] ^ k[1], left & TOP]
        k = [(k[0] + 0x9E3779B97F4A7C15) & TOP, (k[1] + 0xBB67AE8584CAA73B) & TOP]
    return c


def f32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def f32_bits(value: float) -> int:
    return int(struct.unpack("<I", struct.pack("<f", value))[0])


def f32_of_bits(bits: int) -> float:
    return float(struct.unpack("<f", struct.pack("<I", bits))[0])


def polynomial(coefs: list[float], x: float) -> float:
    total = f32(coefs[0])
    for coef in coefs[1:]:
        total = f32(f32(total * x) + f32(coef))
    return total


def scalar_pair(word: int) -> tuple[float, float]:
    """The standard's text, one rounding per operation; doubles hold each exact enough for that."""
    low, high = word & 0xFFFFFFFF, word >> 32
    bits = f32_bits(((low >> 8) + 1) * 2.0**-24) + 4913933
    e, f = (bits >> 23) - 127, f32_of_bits((bits & 0x7FFFFF) + 1060439283) - 1.0
    f2 = f32(f * f)
    q = [-0.08305379003286362, 0.12798897922039032, -0.12943419814109802, 0.1419023722410202]
    q += [-0.1664348840713501, 0.20001879334449768, -0.25000280141830444, 0.33333325386047363]
    log = f32(f32(f * f2) * polynomial(q, f))
    log = f32(log - f32(0.5 * f2))
    log = f32(log + f32(e * f32(-2.12194440e-4)))
    log = f32(log + f)
    log = f32(log + f32(e * 0.693359375))
    r = f32(math.sqrt(max(f32(log * -2.0), 0.0)))
    th = f32((2 * (high >> 6 & 0xFFFFFF) - 16777215) * f32(4.681337996e-08))
    t = f32(th * th)
    s = polynomial([-0.0001958801003638655, 0.008332748897373676, -0.166666641831398], t)
    sin = f32(f32(f32(th * t) * s) + th)
    c = polynomial([2.454779314575717e-05, -0.0013888301327824593, 0.0416666641831398], t)
    cos = f32(f32(f32(t * t) * c) + f32(1.0 - f32(0.5 * t)))
    cos, sin = [(cos, sin), (-sin, cos), (-cos, -sin), (sin, -cos)][high >> 30]
    return f32(r * cos), f32(r * sin)


def hexes(values: NDArray[Any], digits: int) -> list[str]:
    return [f"{value:0{digits}x}" for value in values.tolist()]


def record() -> dict[str, Any]:
    draws = []
    for seed, image, stream, step in GOLDEN_DRAWS:
        normal = noise.normal(seed, [image], (10,), stream=stream, step=step)[0]
        uniform = noise.uniform(seed, [image], stream=stream, step=step)
        draws.append(
            {
                "seed": f"{seed:016x}",
                "image": f"{image:016x}",
                "stream": stream.name,
                "step": f"{step:016x}",
                "words": hexes(noise.words(seed, image, stream, step, 5), 16),
                "normal": hexes(normal.view(np.uint32), 8),
                "uniform": hexes(uniform.view(np.uint32), 8)[0],
            }
        )
    edges = np.array(EDGE_WORDS, np.uint64)
    bits = noise.normals_from_words(edges).view(np.uint32)
    pairs = [" ".join(hexes(pair, 8)) for pair in bits.reshape(len(edges), 2)]
    return {
        "about": "All numbers in hex; normal and uniform are the bits of float32.",
        "draws": draws,
        "pairs": dict(zip(hexes(edges, 16), pairs, strict=True)),
    }


@pytest.fixture(scope="module")
def million() -> NDArray[np.float32]:
    return noise.normal(11, range(4), (2**18,), stream=Stream.START)


@pytest.mark.parametrize(
    ("counter", "key", "block"),
    [
        (
            [0, 0, 0, 0],
            [0, 0],
            "16554d9eca36314c db20fe9d672d0fdc d7e772cee186176b 7e68b68aec7ba23b",
        ),
        (
            [TOP, TOP, TOP, TOP],
            [TOP, TOP],
            "87b092c3013fe90b 438c3c67be8d0224 9cc7d7c69cd777b6 a09caebf594f0ba0",
        ),
        (
            [0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89],
            [0x452821E638D01377, 0xBE5466CF34E90C6C],
            "a528f45403e61d95 38c72dbd566e9788 a5a1610e72fd18b5 57bd43b5e52b7fe6",
        ),
    ],
)
def test_the_philox_of_this_file_gives_the_published_vectors(
    counter: list[int], key: list[int], block: str
) -> None:
    assert [f"{word:016x}" for word in philox(counter, key)] == block.split()


@given(
    seed=st.integers(0, TOP),
    image=st.integers(0, TOP),
    stream=st.sampled_from(Stream),
    step=st.integers(0, TOP),
    count=st.integers(0, 13),
)
@settings(max_examples=60, deadline=None)
def test_words_are_philox_blocks_counted_from_one(
    seed: int, image: int, stream: Stream, step: int, count: int
) -> None:
    key, rest = [seed, image], [step, int(stream), 0]
    expected = [word for j in range(4) for word in philox([j + 1, *rest], key)]
    drawn = noise.words(seed, image, stream, step, count)
    assert drawn.dtype == np.uint64
    assert drawn.tolist() == expected[:count]


def test_streams_keep_their_numbers() -> None:
    names = ["ROOT", "NODE", "ROUTE", "START", "STEP", "DROPOUT", "CHOICE"]
    assert {stream.name: int(stream) for stream in Stream} == {n: i for i, n in enumerate(names)}


def test_draws_equal_the_golden_file() -> None:
    """A change here changes every image anybody ever made from a seed."""
    assert record() == json.loads(GOLDEN.read_text("utf-8"))


def test_draws_of_the_same_thing_differ() -> None:
    """The first is the one without a number, so that numbering changed no image."""
    shape, stream = (4, 3), Stream.ROOT
    first, second = (noise.normal(1, [5], shape, stream=stream, draw=k) for k in range(2))
    assert np.array_equal(first, noise.normal(1, [5], shape, stream=stream))
    assert not np.isin(second, first).any()


def test_transform_equals_the_standard_bit_for_bit() -> None:
    words = np.concatenate(
        [noise.words(3, 1, Stream.START, 0, 6000), np.array(EDGE_WORDS, np.uint64)]
    )
    expected = np.array([scalar_pair(word) for word in words.tolist()], np.float32).ravel()
    drawn = noise.normals_from_words(words)
    assert drawn.dtype == np.float32
    is_zero = expected == 0
    assert np.array_equal(drawn.view(np.uint32)[~is_zero], expected.view(np.uint32)[~is_zero])
    assert np.array_equal(drawn[is_zero], expected[is_zero])


def test_transform_is_box_muller_within_1e_6() -> None:
    words = np.concatenate(
        [noise.words(5, 0, Stream.STEP, 9, 300_000), np.array(EDGE_WORDS, np.uint64)]
    )
    low, high = words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)
    r = np.sqrt(-2 * np.log(((low >> np.uint64(8)).astype(np.float64) + 1) * 2.0**-24))
    fine = (high >> np.uint64(6) & np.uint64(0xFFFFFF)).astype(np.float64)
    turn = (high >> np.uint64(30)).astype(np.float64) + (2 * fine - 0xFFFFFF) * 2.0**-25
    exact = np.stack([r * np.cos(turn * np.pi / 2), r * np.sin(turn * np.pi / 2)], 1).ravel()
    assert np.abs(noise.normals_from_words(words) - exact).max() < 1e-6


def test_largest_normal_is_5_77_and_smallest_radius_is_zero() -> None:
    words = np.array(EDGE_WORDS, np.uint64)
    pairs = noise.normals_from_words(words).reshape(len(words), 2)
    assert np.hypot(*pairs[words & np.uint64(0xFFFFFF00) == 0].T) == pytest.approx(5.768, abs=1e-3)
    assert np.all(pairs[words & np.uint64(0xFFFFFF00) == 0xFFFFFF00] == 0)


def test_normals_have_normal_moments(million: NDArray[np.float32]) -> None:
    """Each bound is 4 standard errors."""
    x = million.astype(np.float64).ravel()
    bound = 4 / math.sqrt(x.size)
    assert abs(x.mean()) < bound
    assert abs(x.var() - 1) < bound * math.sqrt(2)
    assert abs((x**3).mean()) < bound * math.sqrt(15)
    assert abs((x**4).mean() - 3) < bound * math.sqrt(96)


def test_normals_pass_kolmogorov_smirnov(million: NDArray[np.float32]) -> None:
    """Distance on a fine grid, against the 1 % limit."""
    x = np.sort(million.ravel())
    grid = np.linspace(-5, 5, 4001)
    share = np.searchsorted(x, grid, side="right") / x.size
    exact = np.array([0.5 * math.erfc(-point / math.sqrt(2)) for point in grid.tolist()])
    assert np.abs(share - exact).max() < 1.63 / math.sqrt(x.size)


def test_pairs_and_images_are_uncorrelated(million: NDArray[np.float32]) -> None:
    x = million.astype(np.float64)
    bound = 4.5 / math.sqrt(x[0].size / 2)
    for left, right in [(x[0, ::2], x[0, 1::2]), (x[0, :-1], x[0, 1:]), (x[0], x[1])]:
        assert abs((left * right).mean()) < bound
        assert abs(((left**2 - 1) * (right**2 - 1)).mean()) < 2 * bound


@given(
    seed=st.integers(0, TOP),
    images=st.lists(st.integers(0, TOP), max_size=5),
    shape=st.lists(st.integers(0, 5), max_size=3).map(tuple),
)
@settings(max_examples=40, deadline=None)
def test_an_image_alone_equals_itself_in_a_batch(
    seed: int, images: list[int], shape: tuple[int, ...]
) -> None:
    batch = noise.normal(seed, images, shape, stream=Stream.NODE, step=4)
    assert batch.dtype == np.float32
    assert batch.shape == (len(images), *shape)
    assert batch.flags.c_contiguous
    for row, image in zip(batch, images, strict=True):
        alone = noise.normal(seed, [image], shape, stream=Stream.NODE, step=4)
        assert np.array_equal(row, alone[0])


def test_a_uniform_alone_equals_itself_in_a_batch() -> None:
    batch = noise.uniform(2, [9, 0, 4], stream=Stream.ROUTE, step=1)
    alone = [noise.uniform(2, [image], stream=Stream.ROUTE, step=1)[0] for image in (9, 0, 4)]
    assert batch.tolist() == alone


@pytest.mark.parametrize("short", range(9))
def test_a_shorter_shape_is_a_prefix(short: int) -> None:
    long = noise.normal(1, [2], (9,), stream=Stream.START)
    assert np.array_equal(noise.normal(1, [2], (short,), stream=Stream.START)[0], long[0, :short])


def test_elements_are_in_channel_row_column_order() -> None:
    flat = noise.normal(1, [2, 3], (24,), stream=Stream.START)
    image = noise.normal(1, [2, 3], (2, 3, 4), stream=Stream.START)
    assert np.array_equal(image, flat.reshape(2, 2, 3, 4))


def test_seed_image_stream_and_step_each_change_every_element() -> None:
    draws = [
        noise.normal(seed, [image], (32,), stream=stream, step=step)[0]
        for seed in (0, 1, 2**63, TOP)
        for image in (0, 1, TOP)
        for stream in Stream
        for step in (0, 1, TOP)
    ]
    assert all(np.unique(column).size == len(draws) for column in np.stack(draws, 1))


def test_large_seeds_keep_their_low_bits() -> None:
    """Passing through float64 would merge these."""
    seeds = [TOP, TOP - 1, 2**63, 2**63 + 1, 2**53, 2**53 + 1]
    assert np.unique(noise.normal(seeds, [0] * 6, (1,), stream=Stream.START)).size == 6


def test_each_image_may_have_its_own_seed() -> None:
    together = noise.normal([5, TOP, 5], [0, 1, 2], (3, 2), stream=Stream.START)
    for row, seed, image in zip(together, (5, TOP, 5), (0, 1, 2), strict=True):
        assert np.array_equal(row, noise.normal(seed, [image], (3, 2), stream=Stream.START)[0])


@pytest.mark.parametrize("kind", [np.uint64, np.int64, np.int32, np.uint8])
def test_numpy_integers_are_integers(kind: Any) -> None:
    expected = noise.normal(7, [1, 2], (4,), stream=Stream.START, step=3)
    indices: Any = np.array([1, 2], kind)
    seeds: Any = np.array([7, 7], kind)
    for seed in (kind(7), seeds):
        drawn = noise.normal(seed, indices, (4,), stream=Stream.START, step=kind(3))
        assert np.array_equal(drawn, expected)


def test_uniforms_are_exact_and_never_0_or_1() -> None:
    words = np.array([0, 0xFFFFFFFF, TOP, 0xFFFFFFFF00000000, 0x200], np.uint64)
    ends = [2.0**-24, 1 - 2.0**-24, 1 - 2.0**-24, 2.0**-24, 1.5 * 2.0**-23]
    drawn = noise.uniforms_from_words(words)
    assert drawn.dtype == np.float32
    assert drawn.tolist() == ends


def test_uniform_uses_the_low_half_of_the_first_word() -> None:
    word = int(noise.words(3, 8, Stream.ROUTE, 5, 1)[0])
    expected = ((word & 0xFFFFFFFF) >> 9) * 2.0**-23 + 2.0**-24
    assert noise.uniform(3, [8], stream=Stream.ROUTE, step=5).tolist() == [expected]


def test_uniforms_are_uniform_over_images() -> None:
    u = np.sort(noise.uniform(0, range(20_000), stream=Stream.ROUTE))
    ranks = (np.arange(u.size) + 0.5) / u.size
    assert np.abs(u - ranks).max() < 1.63 / math.sqrt(u.size)


@pytest.mark.parametrize("bad", [-1, 2**64, 1.0, "1", None, [1]])
@pytest.mark.parametrize("name", ["images", "shape", "step"])
def test_what_is_not_a_64_bit_natural_is_refused_by_name(name: str, bad: Any) -> None:
    given: dict[str, Any] = {"images": [0], "shape": (1,), "step": 0}
    given[name] = bad if name == "step" else [bad]
    with pytest.raises(ConfigError) as caught:
        noise.normal(0, given["images"], given["shape"], stream=Stream.START, step=given["step"])
    assert caught.value.name == name


@pytest.mark.parametrize("bad", [-1, 2**64, 0.5, "12", None, [1, 2], [-1], np.zeros((1, 1))])
def test_bad_seeds_are_refused(bad: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        noise.normal(bad, [0], (1,), stream=Stream.START)
    assert caught.value.name == "seed"


def test_a_number_of_images_is_not_a_list_of_them() -> None:
    images: Any = 3
    with pytest.raises(ConfigError) as caught:
        noise.uniform(0, images, stream=Stream.ROUTE)
    assert caught.value.name == "images"


def test_unknown_streams_are_refused() -> None:
    stream: Any = 7
    with pytest.raises(ConfigError) as caught:
        noise.words(0, 0, stream, 0, 1)
    assert caught.value.name == "stream"


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(record(), indent=1) + "\n", "utf-8")


@given(st.integers(0, 5), st.integers(0, 4), st.integers(1, 7))
@settings(max_examples=30, deadline=None)
def test_noise_of_several_nodes_is_that_of_each(images: int, nodes: int, size: int) -> None:
    """Odd sizes leave half a word over, which the next node must not begin with."""
    names, steps = range(images), [3 * k + 1 for k in range(nodes)]
    together = noise.normals(7, names, (size,), stream=Stream.NODE, steps=steps, draw=2)
    assert together.shape == (images, nodes, size)
    for place, step in enumerate(steps):
        alone = noise.normal(7, names, (size,), stream=Stream.NODE, step=step, draw=2)
        assert np.array_equal(together[:, place], alone)
