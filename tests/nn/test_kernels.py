"""Whole models with their kernels: the numbers of the references, under compilers, and exported."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from treediffusion.config import DiffusionConfig, TreeConfig, UNetConfig
from treediffusion.diffusion.denoiser import Denoiser
from treediffusion.errors import BackendUnavailableError
from treediffusion.kernels import choice
from treediffusion.kernels.choice import use_kernels
from treediffusion.kernels.gn_silu import reference
from treediffusion.nn import unet
from treediffusion.nn.grove import Grove
from treediffusion.nn.packed import PackedTransformations, packed
from treediffusion.nn.tree_objective import tree_elbo
from treediffusion.nn.tree_vae import TreeVAE
from treediffusion.topology import TreeTopology
from treediffusion.train.conditions import Conditions, Told
from treediffusion.train.images import TrainingImages
from treediffusion.train.losses import Trunk

pytest.importorskip("triton")

TREE = TreeTopology.initial().grow("r1").grow("r10").prune("r0")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NODES = torch.tensor([[0, 1, 4, -1], [0, 2, -1, -1], [-1, -1, -1, -1]], device=DEVICE)
TREE_OPS = {"node_posterior", "log_node_prob"}
DENOISER_OPS = {"cond_silu", "gn_silu", "path_silu_sum"}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    choice._unable.cache_clear()  # a test may have asked while the environment was another
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def make_tree(topology: TreeTopology = TREE, **settings: object) -> TreeVAE:
    """With norms that have statistics of their own."""
    config = TreeConfig(latent_channels=3, channels=5, levels=5).model_copy(update=settings)
    tree = TreeVAE(config, topology, image_channels=1, image_size=8).to(DEVICE)
    with torch.no_grad():
        tree.train().infer(torch.rand(8, 1, 8, 8, device=DEVICE))
    return tree


def tree_inputs(tree: TreeVAE, batch: int = 3) -> tuple[Tensor, Tensor]:
    noise = torch.randn(batch, tree.topology.num_nodes, *tree.latent_shape, device=DEVICE)
    return torch.rand(batch, 1, 8, 8, device=DEVICE), noise


def tree_loss(tree: TreeVAE, images: Tensor, noise: Tensor) -> Tensor:
    found = tree.infer(images, noise=noise)
    return tree_elbo(tree.nodes, found, images, likelihood="bernoulli").loss(0.5)


def make_denoiser() -> Denoiser:
    config = UNetConfig(channels=32, multipliers=(1,), blocks=1, heads=4, attention=(), dropout=0.0)
    net = Denoiser(1, 2, 6, DiffusionConfig(unet=config)).to(DEVICE)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.1)
    return net


def denoiser_inputs() -> tuple[Tensor, Tensor, Tensor]:
    x = torch.randn(3, 1, 2, 2, device=DEVICE)
    return x, torch.tensor([0, 500, 999], device=DEVICE), torch.randn(3, 4, 6, device=DEVICE)


def denoiser_loss(net: Denoiser, x: Tensor, t: Tensor, z_path: Tensor) -> Tensor:
    return net(x, t, net.condition(z_path, NODES)).square().mean()


class Loss(nn.Module):
    def __init__(self, of: Callable[..., Tensor], net: nn.Module) -> None:
        super().__init__()
        self.of, self.net = of, net

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.of(self.net, *inputs)


def tree_case() -> tuple[Loss, tuple[Tensor, ...]]:
    tree = make_tree()
    return Loss(tree_loss, tree), tree_inputs(tree)


def denoiser_case() -> tuple[Loss, tuple[Tensor, ...]]:
    return Loss(denoiser_loss, make_denoiser()), denoiser_inputs()


CASES = pytest.mark.parametrize(
    ("case", "ops"),
    [(tree_case, TREE_OPS), (denoiser_case, DENOISER_OPS)],
    ids=["tree", "denoiser"],
)


def run(loss: Loss, inputs: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss, and the gradients of all weights."""
    loss.zero_grad()
    found = loss(*inputs)
    found.backward()
    return found.detach(), gradients(loss)


def gradients(loss: Loss) -> dict[str, Tensor]:
    return {name: p.grad for name, p in loss.named_parameters() if p.grad is not None}


def assert_close(
    ours: tuple[Tensor, dict[str, Tensor]], theirs: tuple[Tensor, dict[str, Tensor]]
) -> None:
    torch.testing.assert_close(ours[0], theirs[0], rtol=1e-5, atol=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    for name, gradient in theirs[1].items():
        scale = float(gradient.abs().max())
        torch.testing.assert_close(ours[1][name], gradient, rtol=1e-4, atol=1e-4 * scale + 1e-7)


class Seeing(TorchDispatchMode):
    """Names of our operations that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "treediffusion":
            self.ops.add(func.overloadpacket.__name__.removesuffix("_forward"))
        return func(*args, **(kwargs or {}))


def our_ops(graph: torch.fx.Graph) -> set[str]:
    """Names of our operations in a graph."""
    found = (str(node.target) for node in graph.nodes if node.op == "call_function")
    return {name.split(".")[1].removesuffix("_forward") for name in found if "treediff" in name}


@CASES
def test_a_step_of_training_has_the_numbers_of_the_references(
    case: Callable[[], tuple[Loss, tuple[Tensor, ...]]],
    ops: set[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With the reference's norms, which the interpreter needs seconds for."""
    monkeypatch.setattr(unet, "gn_silu", reference.gn_silu)
    ops = ops - {"gn_silu"}
    loss, inputs = case()
    with use_kernels("reference"):
        expected = run(copy.deepcopy(loss), inputs)
    with use_kernels("triton"), Seeing() as seeing:
        found = run(loss, inputs)
    assert_close(found, expected)
    assert seeing.ops == ops | {f"{op}_backward" for op in ops}


@pytest.mark.slow
@CASES
def test_a_compiled_step_has_the_same_numbers(
    case: Callable[[], tuple[Loss, tuple[Tensor, ...]]], ops: set[str]
) -> None:
    loss, inputs = case()
    graphs: list[torch.fx.Graph] = []

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(module.graph)
        return module.forward

    expected = run(copy.deepcopy(loss), inputs)
    compiled = torch.compile(loss, fullgraph=True, backend=backend)
    assert_close((run(compiled, inputs)[0], gradients(loss)), expected)
    assert our_ops(graphs[0]) == (ops if DEVICE.type == "cuda" else set())


@pytest.mark.slow
@CASES
def test_a_compiler_takes_kernels_as_one_graph(
    case: Callable[[], tuple[Loss, tuple[Tensor, ...]]], ops: set[str]
) -> None:
    """Which is not run: the interpreter needs seconds for each norm."""
    loss, inputs = case()
    graphs: list[torch.fx.Graph] = []

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(module.graph)
        return lambda *_: (torch.zeros(()),)

    with use_kernels("triton"), torch.no_grad():
        torch.compile(loss, fullgraph=True, backend=backend)(*inputs)
    assert len(graphs) == 1
    assert our_ops(graphs[0]) == ops


@CASES
def test_exported_graphs_have_none_of_them(
    case: Callable[[], tuple[Loss, tuple[Tensor, ...]]], ops: set[str]
) -> None:
    loss, inputs = case()
    loss.eval()
    with torch.no_grad():
        program = torch.export.export(loss, inputs, strict=False)
        torch.testing.assert_close(program.module()(*inputs), loss(*inputs), rtol=1e-5, atol=1e-5)
    assert not our_ops(program.graph) & ops


@torch.no_grad()
@pytest.mark.parametrize("activation", ["silu", "relu", "leaky_relu"])
def test_a_packed_tree_has_the_plain_ones_samples(activation: str) -> None:
    """Posterior and prior samples, divergences and probabilities; and shares what it can."""
    tree = make_tree(activation=activation).eval()
    images, noise = tree_inputs(tree)
    with use_kernels("reference"):
        expected = tree.infer(images, noise=noise), tree.generate(noise)
    with use_kernels("triton"):
        twin = packed(tree)
        assert isinstance(twin.nodes.transformations, PackedTransformations)
        assert {id(p) for p in twin.parameters()} < {id(p) for p in tree.parameters()}
        found = twin.infer(images, noise=noise), twin.generate(noise)
    assert not isinstance(tree.nodes.transformations, PackedTransformations)
    pairs = [(found[0].nodes, expected[0].nodes), (found[1], expected[1])]
    for ours, theirs in pairs:
        for name in ("z", "node_kl", "post_logit", "prior_logit", "log_node_prob"):
            wanted = getattr(theirs, name)
            if wanted is not None:
                torch.testing.assert_close(getattr(ours, name), wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["infer", "generate"])
def test_a_compiler_takes_a_packed_tree_as_one_graph(name: str) -> None:
    """Tables are made by the first pass, and looked up in the next."""
    graphs: list[torch.fx.Graph] = []

    def backend(module: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., object]:
        graphs.append(module.graph)
        return module.forward

    images, noise = tree_inputs(make_tree(TreeTopology.initial()))
    with use_kernels("triton"):
        tree = packed(make_tree(TreeTopology.initial()).eval())

        def samples(images: Tensor, noise: Tensor) -> Tensor:
            if name == "generate":
                return tree.generate(noise).z
            return tree.infer(images, noise=noise).nodes.z

        expected = samples(images, noise)
        found = torch.compile(samples, fullgraph=True, backend=backend)(images, noise)
    torch.testing.assert_close(found, expected)
    ops = {"tree_node_gen"} if name == "generate" else {"tree_conv3x3", "node_posterior"}
    assert our_ops(graphs[0]) == ops | {"log_node_prob"}
    assert "torch.arange" not in str(graphs[0])


@torch.no_grad()
def test_packed_bfloat16_is_as_near_as_plain_bfloat16() -> None:
    tree = make_tree().eval()
    _, noise = tree_inputs(tree, batch=16)
    with use_kernels("reference"):
        truth = tree.generate(noise).z
        narrow = copy.deepcopy(tree).bfloat16()
        plain = narrow.generate(noise.bfloat16()).z
    with use_kernels("triton"):
        found = packed(narrow).generate(noise.bfloat16()).z
    assert found.dtype == torch.bfloat16
    assert (found - truth).std() < 1.5 * (plain - truth).std() + 1e-3


@torch.no_grad()
def test_a_packed_grove_has_the_samples_of_its_trees() -> None:
    trees = [make_tree(), make_tree(TreeTopology.initial())]
    grove = Grove(trees).eval()
    features = grove.bottom_up(torch.rand(3, 2, 1, 8, 8, device=DEVICE))
    noise = torch.randn(3, grove.nodes.topology.num_nodes, *grove.latent_shape, device=DEVICE)
    with use_kernels("reference"):
        expected = grove.infer_from(features, noise=noise).nodes.z
    with use_kernels("triton"):
        found = packed(grove).infer_from(features, noise=noise).nodes.z
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_frozen_trees_are_packed_where_training_draws_from_them() -> None:
    """Conditions of the denoiser, and parents of leaves that grow; the same numbers either way."""
    tree = make_tree().eval()
    images = torch.rand(5, 1, 8, 8, device=DEVICE)

    def drawn() -> tuple[Told, Tensor]:
        placed = TrainingImages(images.cpu().numpy(), DEVICE)
        conditions = Conditions(placed, tree, DiffusionConfig())
        trunk = Trunk(tree, "r10")
        features, _ = trunk.describe(images)
        torch.manual_seed(1)
        with Seeing() as seeing:
            found = conditions.draw(torch.tensor([3, 0, 4], device=DEVICE)), trunk.draw(features)
        seen.append(seeing.ops)
        return found

    seen: list[set[str]] = []
    with use_kernels("reference"):
        told, parents = drawn()
    with use_kernels("triton"):
        ours, our_parents = drawn()
    assert torch.equal(ours.nodes, told.nodes)
    torch.testing.assert_close(ours.z_path, told.z_path, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(our_parents, parents, rtol=1e-4, atol=1e-4)
    assert seen == [set(), {"tree_conv3x3", "node_posterior", "log_node_prob", "tree_route"}]


def test_without_kernels_nothing_is_packed() -> None:
    tree = make_tree().eval()
    with use_kernels("reference"):
        assert packed(tree) is tree
    vectors = TreeConfig(
        codec="mlp_cnn1",
        latent_size=1,
        latent_channels=3,
        channels=4,
        encoder_channels=16,
        levels=5,
    )
    with use_kernels("triton"):
        mlp = TreeVAE(vectors, TREE, image_channels=1, image_size=28).eval()
        assert packed(mlp) is mlp


def test_forced_kernels_refuse_what_they_cannot_pack() -> None:
    tree = make_tree().eval()
    with use_kernels("triton"), pytest.raises(BackendUnavailableError, match="float64"):
        packed(copy.deepcopy(tree).double())
    wide = make_tree(channels=256).eval()
    with use_kernels("triton"), pytest.raises(BackendUnavailableError, match="256 channels"):
        packed(wide)


def test_the_choice_is_said_once_for_each_operation(caplog: pytest.LogCaptureFixture) -> None:
    choice._tell.cache_clear()
    with caplog.at_level(logging.INFO, "treediffusion.kernels"), use_kernels("reference"):
        loss, inputs = tree_case()
        loss(*inputs)
    assert not caplog.records
    with caplog.at_level(logging.INFO, "treediffusion.kernels"), use_kernels("auto"):
        for case in (tree_case, denoiser_case):
            loss, inputs = case()
            for _ in range(2):
                loss(*inputs)
    said = [record.message.split(":")[0] for record in caplog.records]
    assert sorted(said) == sorted(TREE_OPS | DENOISER_OPS)
