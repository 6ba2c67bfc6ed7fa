"""A step is what it says; on a GPU the recorded one does the same."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from treediffusion.config import TreeConfig
from treediffusion.errors import TrainingError
from treediffusion.train import step as step_module
from treediffusion.train.images import TrainingImages
from treediffusion.train.optimizer import make_adam
from treediffusion.train.step import WARMUP, GraphedStep, Step, make_step
from treediffusion.train.tree_stage import TreeStage


class Line:
    """Fits a line to points; the "KL" term is the squared slope."""

    def __init__(self, device: str = "cpu") -> None:
        torch.manual_seed(0)
        self.trained = nn.Linear(3, 1).to(device)
        self.x, self.y = torch.randn(64, 3, device=device), torch.randn(64, 1, device=device)
        self.counts = [64]

    def loss(self, rows: Tensor, kl_weight: float | Tensor) -> Tensor:
        error = (self.trained(self.x[rows]) - self.y[rows]).square().mean()
        return error + kl_weight * self.trained.weight.square().sum()


def train(step: Step, device: str, *, steps: int = 12) -> list[float]:
    """Losses of steps whose weight and rate change on the way."""
    losses = []
    for number in range(steps):
        step.set(kl_weight=0.1 * (number // 4), learning_rate=1e-2 / (1 + number // 4))
        rows = torch.arange(8, device=device) + 4 * number
        losses.append(float(step(rows)))
    return losses


def test_a_step_is_the_gradient_and_the_optimiser() -> None:
    """Against the loop written out, with the framework's own Adam."""
    ours, truth = Line(), Line()
    losses = train(Step(ours, make_adam(ours.trained.parameters(), 1.0, weight_decay=0.1)), "cpu")
    plain = torch.optim.Adam(truth.trained.parameters(), weight_decay=0.1, foreach=False)
    for number, found in enumerate(losses):
        plain.param_groups[0]["lr"] = 1e-2 / (1 + number // 4)
        plain.zero_grad()
        loss = truth.loss(torch.arange(8) + 4 * number, 0.1 * (number // 4))
        loss.backward()
        plain.step()
        assert found == pytest.approx(loss.item(), rel=1e-5)
    torch.testing.assert_close(ours.trained.weight, truth.trained.weight, rtol=1e-5, atol=1e-7)


def test_a_cpu_gets_the_plain_step() -> None:
    line = Line()
    assert type(make_step(line, make_adam(line.trained.parameters(), 1.0), resident=True)) is Step


@pytest.mark.parametrize("resident", [True, False])
def test_only_images_on_a_gpu_are_recorded_or_compiled(
    resident: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []

    class Seen(Step):
        def __init__(self, *parts: Any, **keywords: Any) -> None:
            made.append((type(self), keywords))

    class Graphed(Seen):
        pass

    monkeypatch.setattr(step_module, "Step", Seen)
    monkeypatch.setattr(step_module, "GraphedStep", Graphed)
    line, weight = Line(), SimpleNamespace(device=torch.device("cuda"))
    optimizer = make_adam(line.trained.parameters(), 1.0)
    monkeypatch.setattr(line.trained, "parameters", lambda: iter([weight]))
    make_step(line, optimizer, resident=resident, compiled=True)
    assert made == ([(Graphed, {"compiled": True})] if resident else [(Seen, {})])


def test_a_compiled_step_equals_the_plain_one() -> None:
    """In three compilations less: weights and rates change, the code does not."""
    plain, compiled = Line(), Line()
    losses = [
        train(Step(line, make_adam(line.trained.parameters(), 1.0), compiled=flag), "cpu")
        for line, flag in ((plain, False), (compiled, True))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    torch.testing.assert_close(compiled.trained.weight, plain.trained.weight)


def test_a_compiler_that_fails_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step is not compiled; before the second somebody can be told to wait."""

    def compile_nothing(loss: Any, **_: Any) -> Any:
        def broken(*_: Any) -> Tensor:
            raise BackendCompilerFailed(loss, OSError("no C++ compiler"), None)

        return broken

    monkeypatch.setattr(torch, "compile", compile_nothing)
    line = Line()
    step = Step(line, make_adam(line.trained.parameters(), 1.0), compiled=True)
    step.set(kl_weight=0.0, learning_rate=0.1)
    assert not step.compiles_next
    step(torch.arange(8))
    assert step.compiles_next
    with pytest.raises(TrainingError, match=r"no C\+\+ compiler.*tree\.compile to false"):
        step(torch.arange(8))


def test_every_phase_is_one_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tree grows as without, its losses traced as a whole; the code generator is left out."""
    whole, graphs = torch.compile, []

    def traced(loss: Any, **kinds: Any) -> Any:
        assert kinds["fullgraph"]
        graphs.append(loss)
        return whole(loss, backend="aot_eager", **kinds)

    monkeypatch.setattr(torch, "compile", traced)
    config = TreeConfig.model_validate(
        {
            "latent_channels": 2, "channels": 4, "levels": 3, "max_leaves": 3, "batch_size": 16,
            "phases": {"initial": 2, "subtree": 2, "intermediate": 1, "final": 2},
        }
    )  # fmt: skip
    found = []
    for name in ("plain", "compiled"):
        torch.manual_seed(0)
        images = TrainingImages(torch.rand(40, 1, 8, 8).numpy())
        settings = config.model_copy(update={"compile": name == "compiled"})
        found += TreeStage(images, settings, tmp_path / f"{name}.safetensors").run()
    plain, compiled = ([row["elbo"] for row in tree.state.history] for tree in found)
    assert len(graphs) == len(compiled)
    # Adam divides rounding errors of small gradients by their size.
    assert compiled == pytest.approx(plain, rel=1e-2)


@pytest.mark.gpu
def test_the_recorded_step_equals_the_plain_one() -> None:
    """Rates and weights change between replays, so they are read anew."""
    plain, recorded = Line("cuda"), Line("cuda")
    steps = [
        kind(line, make_adam(line.trained.parameters(), 1.0))
        for kind, line in ((Step, plain), (GraphedStep, recorded))
    ]
    truth, losses = (train(step, "cuda", steps=WARMUP + 9) for step in steps)
    assert losses == pytest.approx(truth, rel=1e-5)
    torch.testing.assert_close(recorded.trained.weight, plain.trained.weight)


@pytest.mark.gpu
def test_a_tree_trains_in_recorded_steps(tmp_path: Path) -> None:
    """Views, contrast, growth, pruning; the loss falls."""
    config = TreeConfig(
        latent_channels=4, channels=8, levels=3, max_leaves=4, batch_size=32, augmentation="shifts"
    ).model_copy(update={"phases": TreeConfig().phases.model_copy(
        update={"initial": 8, "subtree": 8, "intermediate": 2, "final": 2})})  # fmt: skip
    images = TrainingImages(torch.rand(256, 1, 8, 8).round().numpy(), "cuda")
    (grown,) = TreeStage(images, config, tmp_path / "tree.safetensors").run()
    history = grown.state.history
    assert history[-1]["reconstruction"] < history[0]["reconstruction"]
