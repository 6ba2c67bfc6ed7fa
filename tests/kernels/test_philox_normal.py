"""Noise on a device: the bits of `treediffusion.noise`, whatever seed, image, stream and step."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from treediffusion import noise
from treediffusion.errors import ConfigError, ShapeError
from treediffusion.kernels.choice import use_kernels
from treediffusion.kernels.philox_normal import normal_of, philox_normal, philox_state
from treediffusion.kernels.philox_normal.op import DRAW, IMAGE, SEED, STEP, STREAM
from treediffusion.noise import Stream

triton = pytest.importorskip("triton")
tl = triton.language
kernel = importlib.import_module("treediffusion.kernels.philox_normal.kernel")

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "noise.json").read_text("utf-8"))
TOP = 2**64 - 1

# Compiles the kernel twice; says how often products and sums are fused, and the roots it takes.
_PTX = """
import json
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from treediffusion.kernels.philox_normal.kernel import VARIANTS

(variant,) = VARIANTS
assert variant.precise
found = []
for fused in (False, True):
    source = ASTSource(variant.kernel, dict(variant.types), dict(variant.constants))
    options = {"enable_fp_fusion": fused}
    ptx = compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    roots = [line.split()[0] for line in ptx.splitlines() if line.strip().startswith("sqrt")]
    found.append([ptx.count("fma.rn.f32"), sorted(set(roots))])
print(json.dumps(found))
"""


def bits(values: Any) -> list[int]:
    """Of float32 numbers, all in a row."""
    found: list[int] = np.asarray(values).ravel().view(np.uint32).tolist()
    return found


@pytest.mark.parametrize("golden", GOLDEN["draws"], ids=lambda g: f"{g['stream']}-{g['seed']}")
def test_draws_equal_the_golden_file(golden: dict[str, Any], interpreted: torch.device) -> None:
    seed, image, step = (int(golden[name], 16) for name in ("seed", "image", "step"))
    stream = Stream[golden["stream"]]
    drawn = philox_normal(seed, [image], (10,), stream=stream, step=step, device=interpreted)
    assert [f"{number:08x}" for number in bits(drawn.cpu())] == golden["normal"]


@given(
    keys=st.lists(st.tuples(st.integers(0, TOP), st.integers(0, TOP)), min_size=1, max_size=3),
    stream=st.sampled_from(Stream),
    step=st.integers(0, TOP),
    draw=st.integers(0, TOP),
    count=st.integers(1, 40),
)
@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_draws_equal_numpys_bit_for_bit(
    keys: list[tuple[int, int]],
    stream: Stream,
    step: int,
    draw: int,
    count: int,
    interpreted: torch.device,
) -> None:
    seeds, images = [seed for seed, _ in keys], [image for _, image in keys]
    drawn = philox_normal(
        seeds, images, (count,), stream=stream, step=step, draw=draw, device=interpreted
    )
    expected = noise.normal(seeds, images, (count,), stream=stream, step=step, draw=draw)
    assert bits(drawn.cpu()) == bits(expected)


def test_many_draws_equal_numpys_bit_for_bit(interpreted: torch.device) -> None:
    """100,000 of them, over several programs of each image."""
    shape, stream = (3, 129, 129), Stream.START
    drawn = philox_normal(11, [0, TOP], shape, stream=stream, device=interpreted)
    assert drawn.shape == (2, *shape)
    assert bits(drawn.cpu()) == bits(noise.normal(11, [0, TOP], shape, stream=stream))


@triton.jit
def transform(words: tl.tensor, y: tl.tensor, COUNT: tl.constexpr) -> None:
    word = tl.load(words + tl.arange(0, COUNT)).to(tl.uint64, bitcast=True)
    radius = kernel._radius(word.to(tl.uint32))
    cos, sin = kernel._direction((word >> 32).to(tl.uint32))
    place = 2 * tl.arange(0, COUNT)
    tl.store(y + place, radius * cos)
    tl.store(y + place + 1, radius * sin)


def test_both_ends_of_radius_and_angle_are_numpys(interpreted: torch.device) -> None:
    """The transform alone, on words that no seed is known for."""
    words = np.zeros(256, np.uint64)
    words[: len(GOLDEN["pairs"])] = [int(word, 16) for word in GOLDEN["pairs"]]
    y = torch.full((512,), float("nan"), device=interpreted)
    given_words = torch.from_numpy(words.view(np.int64)).to(interpreted)
    transform[(1,)](given_words, y, COUNT=256, enable_fp_fusion=False)
    expected = [int(number, 16) for pair in GOLDEN["pairs"].values() for number in pair.split()]
    assert bits(y.cpu())[: len(expected)] == expected


@pytest.mark.parametrize("shape", [(), (0, 3), (1,), (7,), (8,), (2, 3, 5), (1025,)])
def test_any_shape_and_number_of_images(shape: tuple[int, ...], interpreted: torch.device) -> None:
    for images in ([], [4], [9, 0, 2]):
        drawn = philox_normal(3, images, shape, stream=Stream.NODE, step=1, device=interpreted)
        expected = noise.normal(3, images, shape, stream=Stream.NODE, step=1)
        assert drawn.shape == expected.shape
        assert drawn.dtype == torch.float32
        assert bits(drawn.cpu()) == bits(expected)


def test_the_reference_is_numpy(interpreted: torch.device) -> None:
    seeds, images = [TOP, 2**63], [2**53 + 1, 0]
    with use_kernels("reference"):
        drawn = philox_normal(
            seeds, images, (3, 3), stream=Stream.CHOICE, step=TOP, draw=2, device=interpreted
        )
    expected = noise.normal(seeds, images, (3, 3), stream=Stream.CHOICE, step=TOP, draw=2)
    assert bits(drawn.cpu()) == bits(expected)


def test_columns_of_a_state_may_be_overwritten(interpreted: torch.device) -> None:
    """So that a loop counts its steps where the state lies."""
    state = philox_state(5, [1, 2], stream=Stream.STEP, step=7, draw=3, device=interpreted)
    assert state[1, [SEED, IMAGE, STEP, STREAM, DRAW]].tolist() == [5, 2, 7, int(Stream.STEP), 3]
    state[:, STEP] += 1
    expected = noise.normal(5, [1, 2], (9,), stream=Stream.STEP, step=8, draw=3)
    assert bits(normal_of(state, (9,)).cpu()) == bits(expected)


def test_the_kernel_writes_every_element_and_none_beyond(interpreted: torch.device) -> None:
    state = philox_state(5, [1, 2, 3], stream=Stream.START, device=interpreted)
    buffer = torch.full((3 * 1031 + 600,), 99.0, device=interpreted)
    out = buffer[300 : 300 + 3 * 1031].fill_(float("nan")).reshape(3, 1031)
    kernel.fill(state, out)
    assert (out.abs() < 6).all()
    out.fill_(99.0)
    assert (buffer == 99).all()


@pytest.mark.parametrize("bad", [-1, 2**64, 1.0, "1", None])
@pytest.mark.parametrize("name", ["seed", "images", "step", "draw"])
def test_what_is_not_a_64_bit_natural_is_refused_by_name(name: str, bad: Any) -> None:
    numbers: dict[str, Any] = {"seed": 0, "images": [0], "step": 0, "draw": 0}
    numbers[name] = [bad] if name == "images" else bad
    with pytest.raises(ConfigError) as caught:
        philox_normal(
            numbers.pop("seed"),
            numbers.pop("images"),
            (1,),
            stream=Stream.START,
            device="cpu",
            **numbers,
        )
    assert caught.value.name == name


def test_what_names_no_draws_is_refused() -> None:
    stream: Any = 7
    images: Any = 3
    with pytest.raises(ConfigError, match="stream"):
        philox_state(0, [0], stream=stream, device="cpu")
    with pytest.raises(ConfigError, match="images"):
        philox_state(0, images, stream=Stream.START, device="cpu")
    with pytest.raises(ConfigError, match="seed"):
        philox_state([1, 2], [0], stream=Stream.START, device="cpu")
    with pytest.raises(ShapeError, match="state"):
        normal_of(torch.zeros(2, 4, dtype=torch.int64), (1,))


@pytest.mark.parametrize("kind", [np.uint64, np.int64, np.uint8])
def test_numpy_integers_are_integers(kind: Any) -> None:
    seeds: Any = np.array([7, 7], kind)
    images: Any = np.array([1, 2], kind)
    expected = philox_state(7, [1, 2], stream=Stream.START, step=3, device="cpu")
    for seed in (kind(7), seeds):
        found = philox_state(seed, images, stream=Stream.START, step=kind(3), device="cpu")
        assert torch.equal(found, expected)


def test_the_op_is_registered_soundly(interpreted: torch.device) -> None:
    state = philox_state(2, [3, 4], stream=Stream.STEP, device=interpreted)
    torch.library.opcheck(torch.ops.treediffusion.philox_normal.default, (state, 7))


@pytest.mark.parametrize("choice", ["triton", "reference"])
def test_it_compiles_whole(choice: Any, interpreted: torch.device) -> None:
    """With large numbers as constants, and a counting loop over a state on the device."""

    def draw(seed: int) -> Tensor:
        return philox_normal(seed, [0, TOP], (3,), stream=Stream.STEP, device=interpreted)

    def two_steps(state: Tensor) -> Tensor:
        first = normal_of(state, (2, 3))
        return first + normal_of(state + torch.eye(5, dtype=torch.int64)[STEP].to(state), (2, 3))

    state = philox_state(TOP, [3, 4], stream=Stream.STEP, device=interpreted)
    with use_kernels(choice):
        for function, argument in ((draw, TOP), (draw, 3), (two_steps, state)):
            compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
            assert torch.equal(compiled(argument), function(argument))  # type: ignore[operator]


def test_it_exports_as_one_operation(interpreted: torch.device) -> None:
    class Net(torch.nn.Module):
        def forward(self, state: Tensor) -> Tensor:
            return normal_of(state, (2, 3))

    state = philox_state(2, [3, 4], stream=Stream.STEP, device=interpreted)
    program = torch.export.export(Net(), (state,))
    assert "treediffusion.philox_normal" in str(program.graph)
    assert torch.equal(program.module()(state), normal_of(state, (2, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("ones", [False, True])
def test_all_variants_compile(ones: bool, compiled: Callable[..., Any]) -> None:
    assert list(compiled("treediffusion.kernels.philox_normal.kernel", arch=90, ones=ones)) == [
        "philox_normal"
    ]


@pytest.mark.slow
def test_nothing_is_fused_and_roots_are_rounded_correctly() -> None:
    """Left to itself, the compiler fuses: the option is what keeps the bits."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    command = [sys.executable, "-W", "ignore", "-c", _PTX]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    (fused, roots), (otherwise, _) = json.loads(run.stdout.splitlines()[-1])
    assert fused == 0
    assert roots == ["sqrt.rn.f32"]
    assert otherwise > 0
