"""Sharing a model: what comes back is what was saved, with no network and nothing executed."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.models import tiny_model
from treediffusion.diffusion.model import TreeDiffusion
from treediffusion.errors import CheckpointError

huggingface_hub = pytest.importorskip("huggingface_hub")

from treediffusion.hub import CARD, CONFIG, TREE, WEIGHTS, PretrainedTreeDiffusion  # noqa: E402


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def model() -> TreeDiffusion:
    return tiny_model()


@pytest.fixture
def saved(model: TreeDiffusion, tmp_path: Path) -> Path:
    PretrainedTreeDiffusion(model).save_pretrained(tmp_path / "shared")
    return tmp_path / "shared"


def test_a_folder_gives_back_every_weight_and_setting(model: TreeDiffusion, saved: Path) -> None:
    found = PretrainedTreeDiffusion.from_pretrained(saved).model
    for mine, theirs in ((model.tree, found.tree), (model.denoiser, found.denoiser)):
        assert not theirs.training
        other = theirs.state_dict()
        assert set(other) == set(mine.state_dict())
        for name, tensor in mine.state_dict().items():
            assert torch.equal(tensor, other[name]), name
    assert found.tree.topology == model.tree.topology
    assert np.array_equal(found.node_share, model.node_share)
    assert found.data_fingerprint == model.data_fingerprint
    assert found.config.diffusion == model.config.diffusion
    images = torch.rand(3, *model.tree.image_shape)
    assert torch.equal(found.tree.assign(images), model.tree.assign(images))


def test_saving_again_gives_the_same_bytes(model: TreeDiffusion, saved: Path) -> None:
    names = {CONFIG, WEIGHTS, TREE, CARD}
    assert {file.name for file in saved.iterdir()} == names
    again = saved.with_name("again")
    PretrainedTreeDiffusion.from_pretrained(saved).save_pretrained(again)
    for name in names:
        assert (again / name).read_bytes() == (saved / name).read_bytes(), name


def test_no_path_of_the_machine_is_shared(model: TreeDiffusion, tmp_path: Path) -> None:
    """And a folder that happens to be called like a published set does not become that set."""
    private = "/home/somebody/secret/mnist"
    config = model.config.model_copy(update={"data": private})
    own = TreeDiffusion(
        config, model.tree, model.denoiser, model.node_share, model.data_fingerprint
    )
    PretrainedTreeDiffusion(own).save_pretrained(tmp_path / "one")
    found = PretrainedTreeDiffusion.from_pretrained(tmp_path / "one")
    found.save_pretrained(tmp_path / "two")
    for folder in ("one", "two"):
        for file in (tmp_path / folder).iterdir():
            content = file.read_bytes()
            assert b"secret" not in content
            assert b"somebody" not in content
        text = (tmp_path / folder / CARD).read_text("utf-8")
        assert "images of the owner's, `mnist`" in text
        assert "ylecun" not in text


def test_a_runs_pictures_measurements_and_words_go_along(
    model: TreeDiffusion, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    (run / "figures").mkdir(parents=True)
    (run / "figures" / "tree.png").write_bytes(b"a picture")
    (run / "metrics.json").write_text('{"images": 9, "clustering": {"acc": 0.5}}', "utf-8")
    (run / "tree.safetensors").write_bytes(b"training state")
    shared = tmp_path / "shared"
    PretrainedTreeDiffusion(model, run=run).save_pretrained(shared)
    assert (shared / "figures" / "tree.png").read_bytes() == b"a picture"
    assert not (shared / "tree.safetensors").exists()
    text = (shared / CARD).read_text("utf-8")
    assert "![The tree](figures/tree.png)" in text
    assert "accuracy of the clusters | 0.5" in text
    (shared / CARD).write_text(text + "My own words.\n", "utf-8")
    PretrainedTreeDiffusion.from_pretrained(shared).save_pretrained(shared)
    assert (shared / CARD).read_text("utf-8") == text + "My own words.\n"


def test_pushing_uploads_the_folder(
    model: TreeDiffusion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, Any] = {}

    def create_repo(self: Any, repo_id: str, **options: Any) -> Any:
        sent["private"] = options["private"]
        return type("Repository", (), {"repo_id": repo_id})()

    def upload_folder(self: Any, *, repo_id: str, folder_path: Path, **_: Any) -> str:
        sent["repo"] = repo_id
        sent["files"] = {file.name for file in Path(folder_path).iterdir()}
        return "uploaded"

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload_folder)
    done = PretrainedTreeDiffusion(model).push_to_hub("owner/name", private=True)
    assert done == "uploaded"
    assert sent == {
        "private": True, "repo": "owner/name", "files": {CONFIG, WEIGHTS, TREE, CARD}
    }  # fmt: skip


def test_a_repository_is_read_from_the_files_that_were_downloaded(
    model: TreeDiffusion, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def download(*, repo_id: str, filename: str, **_: Any) -> str:
        asked.append(f"{repo_id}/{filename}")
        return str(saved / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)
    found = PretrainedTreeDiffusion.from_pretrained("owner/name").model
    assert found.tree.topology == model.tree.topology
    assert set(asked) == {f"owner/name/{CONFIG}", f"owner/name/{WEIGHTS}"}


def test_offline_a_repository_that_is_not_there_is_one_error_and_a_folder_loads(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """HF_HUB_OFFLINE=1, which the library reads into this constant when it is imported."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert PretrainedTreeDiffusion.from_pretrained(saved).model.tree.topology.num_leaves == 3
    for options in ({}, {"local_files_only": True}):
        with pytest.raises(CheckpointError, match="the network is off") as caught:
            PretrainedTreeDiffusion.from_pretrained(
                "owner/not-there", cache_dir=tmp_path / "cache", **options
            )
        assert caught.value.name == "owner/not-there"


def _change(saved: Path, **facts: Any) -> None:
    held = json.loads((saved / CONFIG).read_text("utf-8"))
    (saved / CONFIG).write_text(json.dumps(held | facts), "utf-8")


def test_what_is_damaged_or_newer_is_refused(saved: Path) -> None:
    whole = (saved / CONFIG).read_text("utf-8")
    for facts, message in (
        ({"format": 2}, "format 2"),
        ({"weights_sha256": "0" * 64}, "sha256"),
        ({"nodes": ["r", "r0", "r1"]}, "settings and a tree"),
        ({"nodes": ["r0"]}, "settings and a tree"),
        ({"node_share": [1.0]}, "one a node"),
        ({"config": {"preset": "tiny", "surprise": 1}}, "surprise"),
    ):
        _change(saved, **facts)
        with pytest.raises(CheckpointError, match=message):
            PretrainedTreeDiffusion.from_pretrained(saved)
        (saved / CONFIG).write_text(whole, "utf-8")
    content = bytearray((saved / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (saved / WEIGHTS).write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match="sha256"):
        PretrainedTreeDiffusion.from_pretrained(saved)
    (saved / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=WEIGHTS):
        PretrainedTreeDiffusion.from_pretrained(saved)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"a folder without {CONFIG}"):
        PretrainedTreeDiffusion.from_pretrained(tmp_path)
    (tmp_path / CONFIG).write_text("[1]", "utf-8")
    with pytest.raises(CheckpointError):
        PretrainedTreeDiffusion.from_pretrained(tmp_path)
    (tmp_path / CONFIG).write_text("{", "utf-8")
    with pytest.raises(CheckpointError):
        PretrainedTreeDiffusion.from_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="not/a/repository"):
        PretrainedTreeDiffusion.from_pretrained("not/a/repository")
