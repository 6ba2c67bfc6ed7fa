"""Which form of an operation runs, and what is said where a forced one cannot."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
import torch
from treediffusion.errors import BackendUnavailableError, ConfigError
from treediffusion.kernels import choice
from treediffusion.kernels.choice import VARIABLE, kernel_choice, takes_kernel, use_kernels

X = torch.zeros(1)


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No answers remembered, no variables set, before and after."""
    remembered = (choice._of_environment, choice._unable, choice._tell)
    for function in remembered:
        function.cache_clear()
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    yield
    for function in remembered:
        function.cache_clear()


def test_a_cpu_gets_the_reference() -> None:
    assert kernel_choice() == "auto"
    assert not takes_kernel("op", X)


def test_a_forced_kernel_that_cannot_run_says_why() -> None:
    with use_kernels("triton"), pytest.raises(BackendUnavailableError, match=r"op.*cpu"):
        takes_kernel("op", X)
    with use_kernels("triton"), pytest.raises(BackendUnavailableError, match="7 channels"):
        takes_kernel("op", X, unable="7 channels")


def test_the_interpreter_runs_kernels_that_are_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is far too slow to be taken by itself."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not takes_kernel("op", X)
    with use_kernels("triton"):
        assert takes_kernel("op", X)
        with pytest.raises(BackendUnavailableError, match="7 channels"):
            takes_kernel("op", X, unable="7 channels")
    with use_kernels("reference"):
        assert not takes_kernel("op", X)


def test_the_environment_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "triton")
    assert kernel_choice() == "triton"
    with use_kernels("reference"):
        assert kernel_choice() == "reference"
    assert kernel_choice() == "triton"


@pytest.mark.parametrize("value", ["", "cuda", "Triton"])
def test_a_choice_that_is_none_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ConfigError, match=VARIABLE):
        kernel_choice()
    with pytest.raises(ConfigError), use_kernels(value):  # type: ignore[arg-type]
        pass


def test_what_runs_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "treediffusion.kernels"):
        for _ in range(3):
            takes_kernel("one", X)
            takes_kernel("two", X)
    assert [record.message.split(":")[0] for record in caplog.records] == ["one", "two"]
    assert "reference (tensors on a device of type cpu" in caplog.text


def test_a_compiler_can_trace_the_question() -> None:
    @torch.compile(fullgraph=True, backend="eager")
    def double(x: torch.Tensor) -> torch.Tensor:
        return x + x if takes_kernel("op", x) else 2 * x

    assert double(torch.ones(2)).tolist() == [2.0, 2.0]
