"""VAE and LadderVAE: their objective by hand, their budget, and training that can be stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.small_stage import Impatient
from treediffusion.baselines.chain import (
    Chain,
    chain_config,
    chain_epochs,
    chain_topology,
    embed,
    rounds,
    train_chain,
    tree_epochs,
)
from treediffusion.config import TreeConfig, load_preset, preset_names
from treediffusion.errors import DataError
from treediffusion.evaluate.likelihood import log_likelihood
from treediffusion.nn.tree_objective import tree_elbo
from treediffusion.train import checkpoint
from treediffusion.train.budget import OutOfTime
from treediffusion.train.images import TrainingImages
from treediffusion.train.measure import mean_elbo

CONFIG = TreeConfig(
    latent_channels=2, latent_size=2, channels=4, levels=3, max_leaves=3, batch_size=8,
    learning_rate=1e-2, phases={"initial": 2, "subtree": 1, "intermediate": 1, "final": 1},
)  # fmt: skip
EPS = 1e-7
KINDS = ("vae", "ladder_vae")


def images(count: int = 24) -> torch.Tensor:
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)).round()


def placed(count: int = 24) -> TrainingImages:
    return TrainingImages(images(count).numpy())


def chain(nodes: int, config: TreeConfig = CONFIG) -> Chain:
    torch.manual_seed(0)
    made = Chain(config, chain_topology(nodes), image_channels=1, image_size=8)
    # Weights and statistics as different as training makes them, so that a mix-up shows.
    for tensor in made.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(0.1 * torch.rand_like(tensor))
    return made.eval().double()


def normal_kl(
    mean: torch.Tensor, var: torch.Tensor, prior_mean: torch.Tensor, prior_var: torch.Tensor
) -> torch.Tensor:
    """PyTorch's own, summed over all but the batch."""
    one = torch.distributions.Normal(mean, var.sqrt())
    other = torch.distributions.Normal(prior_mean, prior_var.sqrt())
    return torch.distributions.kl_divergence(one, other).flatten(1).sum(1)


@torch.no_grad()
def test_one_node_is_the_vae_written_by_hand() -> None:
    """z = mu + sigma e; cross entropy of the decoded z, and KL from N(0, 1), both in nats."""
    model, x = chain(1), images(5).double()
    noise = torch.randn(5, 1, *model.latent_shape, dtype=torch.float64)
    mean, raw = model.root_head(model.bottom_up(x)[:, :1])[:, 0].chunk(2, dim=1)
    var = F.softplus(raw) + EPS
    z = mean + var.sqrt() * noise[:, 0]
    logit = model.nodes.decoders(z[:, None])[:, 0]
    error = F.binary_cross_entropy_with_logits(logit, x, reduction="none").flatten(1).sum(1)
    kl = normal_kl(mean, var, torch.zeros_like(mean), torch.full_like(var, 1 + EPS))
    found = tree_elbo(model.nodes, model.infer(x, noise=noise), x, likelihood="bernoulli")
    assert float(found.reconstruction) == pytest.approx(float(error.mean()), abs=1e-9)
    assert float(found.kl) == pytest.approx(float(kl.mean()), abs=1e-9)


@torch.no_grad()
def test_a_ladder_is_the_sum_of_its_rungs() -> None:
    """Sonderby et al.: each posterior is the product of the estimate and the prior from above."""
    model, x = chain(3), images(5).double()
    noise = torch.randn(5, 3, *model.latent_shape, dtype=torch.float64)
    maps = model.bottom_up(x)
    mean, raw = model.root_head(maps[:, :1])[:, 0].chunk(2, dim=1)
    var = F.softplus(raw) + EPS
    kl = normal_kl(mean, var, torch.zeros_like(mean), torch.full_like(var, 1 + EPS))
    z = mean + var.sqrt() * noise[:, 0]
    estimates = model.nodes.heads(maps[:, None])
    for rung in range(2):
        # All transformations of one sample; only the rung's own row counts.
        prior = model.nodes.transformations(z[:, None].expand(-1, 2, -1, -1, -1))
        prior_mean, prior_var = prior.mean[:, rung], prior.var[:, rung] + EPS
        own_mean, own_var = estimates.mean[:, rung], estimates.var[:, rung] + EPS
        var = 1 / (1 / own_var + 1 / prior_var)
        mean = var * (own_mean / own_var + prior_mean / prior_var)
        var = var + EPS
        kl += normal_kl(mean, var, prior_mean, prior_var)
        z = mean + var.sqrt() * noise[:, rung + 1]
    found = tree_elbo(model.nodes, model.infer(x, noise=noise), x, likelihood="bernoulli")
    assert float(found.kl) == pytest.approx(float(kl.mean()), rel=1e-6)
    logit = model.nodes.decoders(z[:, None])[:, 0]
    error = F.binary_cross_entropy_with_logits(logit, x, reduction="none").flatten(1).sum(1)
    assert float(found.reconstruction) == pytest.approx(float(error.mean()), rel=1e-6)
    assert float(found.kl_decisions) == 0


@torch.no_grad()
def test_a_rung_that_tells_nothing_costs_nothing() -> None:
    """An estimate as wide as can be leaves the prior: a ladder of one layer, which is the VAE."""
    config = TreeConfig(
        codec="mlp", latent_channels=2, latent_size=1, channels=4, levels=3, max_leaves=3
    )
    torch.manual_seed(0)
    models = [Chain(config, chain_topology(n), image_channels=6, image_size=1) for n in (1, 2)]
    vae, ladder = (model.eval().double() for model in models)
    ladder.load_state_dict(vae.state_dict(), strict=False)
    assert ladder.nodes.heads.narrow.bias is not None
    ladder.nodes.heads.narrow.bias[..., config.latent_channels :] = 1e9
    x = torch.rand(4, 6, 1, 1, dtype=torch.float64)
    noise = torch.randn(4, 2, *ladder.latent_shape, dtype=torch.float64)
    one, two = (
        tree_elbo(model.nodes, model.infer(x, noise=noise[:, :n]), x, likelihood="bernoulli")
        for n, model in ((1, vae), (2, ladder))
    )
    assert float(two.kl) == pytest.approx(float(one.kl), abs=1e-6)
    assert float(two.kl_nodes) == pytest.approx(0, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("nodes", [1, 3])
def test_elbo_is_below_the_likelihood(nodes: int) -> None:
    model, x = chain(nodes).float(), images(6)
    torch.manual_seed(0)
    elbo = np.mean([mean_elbo(model, placed(6))["elbo"] for _ in range(50)])
    numbers = torch.Generator().manual_seed(0)
    assert elbo < float(log_likelihood(model, x, samples=100, generator=numbers).mean())


@torch.no_grad()
@pytest.mark.parametrize("nodes", [1, 3])
def test_generation_starts_from_the_root(nodes: int) -> None:
    model = chain(nodes)
    noise = torch.randn(4, nodes, *model.latent_shape, dtype=torch.float64)
    found = model.generate(noise)
    torch.testing.assert_close(found.z[:, 0], noise[:, 0])
    assert model.decode(found.z).shape == (4, 1, 1, 8, 8)
    assert float(found.log_node_prob.abs().max()) == 0


def test_embeddings_are_means_and_repeat() -> None:
    model, x = chain(3).float(), images()
    first = embed(model, placed())
    assert first.shape == (24, 8)
    np.testing.assert_array_equal(first, embed(model, placed()))
    np.testing.assert_allclose(first[:5], embed(model, TrainingImages(x[:5].numpy())), atol=1e-5)


@pytest.mark.parametrize("name", [name for name in preset_names() if "treevae" in name])
def test_a_chain_sees_about_as_many_images_as_a_tree(name: str) -> None:
    config = load_preset(name).tree
    assert chain_epochs(config) == pytest.approx(tree_epochs(config), abs=config.phases.initial)


def test_the_budget_by_hand() -> None:
    """MNIST: 150 + 150 (1.4/2 + .. + 1.4/9) + 2 x 80 + 200 epochs of a tree of ten leaves."""
    config = load_preset("treevae-mnist").tree
    subtrees = 150 * 1.4 * sum(1 / leaves for leaves in range(2, 10))
    assert tree_epochs(config) == pytest.approx(150 + subtrees + 160 + 200)
    assert rounds(config) == 5
    assert chain_epochs(config) == 5 * 150 + 200


def test_a_chain_has_no_contrast() -> None:
    plain = chain_config(load_preset("treevae-cifar10").tree)
    assert plain.contrastive.weight == 0
    assert plain.augmentation == "none"
    assert chain_config(load_preset("treevae-omniglot5").tree).augmentation == "strokes"


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_through_its_phases_and_learns(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "chain.safetensors"
    phases = CONFIG.phases.model_copy(update={"initial": 8})
    config = CONFIG.model_copy(update={"kl_limit": 0.1, "phases": phases})
    model = train_chain(placed(), config, path, kind=kind, seed=0)  # type: ignore[arg-type]
    _, state = checkpoint.load(path)
    kinds = [row["phase"] for row in state["history"]]
    assert kinds == ["initial"] * rounds(config) + ["final"]
    assert state["phase"]["kind"] == "done"
    errors = [row["reconstruction"] for row in state["history"]]
    assert errors[-1] < errors[0]
    assert model.topology.num_nodes == (1 if kind == "vae" else 3)
    assert not model.training


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_training_ends_as_if_it_had_not_been(kind: str, tmp_path: Path) -> None:
    straight = train_chain(placed(), CONFIG, tmp_path / "a", kind=kind, seed=3)  # type: ignore[arg-type]
    stops, finished = 0, None
    while finished is None:
        try:
            finished = train_chain(
                placed(),
                CONFIG,
                tmp_path / "b",
                kind=kind,
                seed=3,
                progress=Impatient(4),  # type: ignore[arg-type]
            )
        except OutOfTime:
            stops += 1
    assert stops >= 2
    for name, tensor in straight.state_dict().items():
        assert torch.equal(tensor, finished.state_dict()[name]), name


def test_images_that_nobody_trains_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 2"):
        train_chain(placed(1), CONFIG, tmp_path / "x", kind="vae", seed=0)
