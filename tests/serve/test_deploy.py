"""The container, without a container: a linter, its settings, and the commands that it runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.models import tiny_bundle

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
DOCKERFILE = DEPLOY / "Dockerfile"
LINTER = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}")
KEY = "a-key-of-the-tests"


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text("utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line]


def final_stage() -> list[tuple[str, str]]:
    found = instructions()
    return found[max(i for i, (name, _) in enumerate(found) if name == "FROM") :]


def services() -> dict[str, Any]:
    text = (DEPLOY / "compose.yaml").read_text("utf-8")
    return dict(yaml.safe_load(text)["services"])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.skipif(LINTER is None, reason="hadolint is not installed")
def test_the_linter_finds_nothing() -> None:
    assert LINTER is not None
    found = subprocess.run([LINTER, str(DOCKERFILE)], capture_output=True, text=True, timeout=60)
    assert (found.returncode, found.stdout) == (0, "")


def test_the_image_is_small_and_not_roots() -> None:
    last = final_stage()
    names = [name for name, _ in last]
    assert last[0][1].endswith("-slim")
    assert "RUN pip" not in DOCKERFILE.read_text("utf-8").split("FROM")[-1]
    assert names.index("USER") < names.index("ENTRYPOINT")
    user = dict(last)["USER"]
    assert int(user) > 0
    assert not [text for name, text in last if name == "ADD"]
    assert "HEALTHCHECK" in names


def test_keys_and_histories_are_not_sent_to_the_builder() -> None:
    """And what the package is made of is."""
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text("utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert {".*", "build", "**/*.key", "**/keys*"} <= set(patterns)
    needed = {"python", "kernels", "export", "pyproject.toml", "CMakeLists.txt", "README.md"}
    assert not needed & set(patterns)


def test_the_image_has_no_torch() -> None:
    """Neither in the extras that are installed, nor in what these ask for by name."""
    (extras,) = re.findall(r"/source\[([a-z,]+)\]", DOCKERFILE.read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"]]
    for extra in extras.split(","):
        wanted += project["optional-dependencies"][extra]
    assert "onnxruntime" in " ".join(wanted)
    assert not [each for each in wanted if re.match(r"torch|treediffusion\[|triton", each)]


@pytest.mark.parametrize("name", ["treediffusion", "prometheus"])
def test_services_may_do_no_more_than_they_must(name: str) -> None:
    service = services()[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "network_mode", "pid", "cap_add"} & set(service)
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    folders = [each for each in service["volumes"] if not each.startswith("measured:")]
    assert all(each.endswith(":ro") for each in folders)
    assert ":latest" not in service.get("image", "")
    assert service["pids_limit"] <= 256


def test_the_server_gets_the_time_that_it_drains_for() -> None:
    from treediffusion.cli_serve import Serve

    seconds = int(services()["treediffusion"]["stop_grace_period"].removesuffix("s"))
    assert seconds > Serve.drain + 1


def test_prometheus_asks_the_server() -> None:
    """Under its name, at its port, with its key; as often as no answer is late."""
    text = (DEPLOY / "prometheus.yaml").read_text("utf-8")
    (job,) = yaml.safe_load(text)["scrape_configs"]
    exposed = dict(final_stage())["EXPOSE"]
    assert job["static_configs"] == [{"targets": [f"treediffusion:{exposed}"]}]
    keys = services()["treediffusion"]["environment"]["TREEDIFFUSION_API_KEY_FILE"]
    assert job["authorization"]["credentials_file"] == keys
    assert services()["prometheus"]["secrets"] == services()["treediffusion"]["secrets"]


@pytest.fixture
def commands() -> tuple[list[str], list[str], int]:
    """The entry point and the health check, here, at another port."""
    last, port = dict(final_stage()), free_port()
    entry = json.loads(last["ENTRYPOINT"])
    check = json.loads(last["HEALTHCHECK"].partition("CMD ")[2])
    assert entry[:3] == ["/venv/bin/treediffusion", "serve", "/bundle"]
    assert check[0] == "/venv/bin/python"
    start = [sys.executable, "-m", "treediffusion", "serve", str(tiny_bundle()), *entry[3:]]
    probe = [word.replace(":8000/", f":{port}/") for word in check[1:]]
    return [*start, "--port", str(port)], [sys.executable, *probe], port


def test_the_commands_run(commands: tuple[list[str], list[str], int], tmp_path: Path) -> None:
    """The health check fails, passes, and fails again; without keys nothing is served."""
    start, check, _ = commands

    def healthy() -> bool:
        return subprocess.run(check, capture_output=True, timeout=20).returncode == 0

    assert not healthy()
    refused = subprocess.run(start, capture_output=True, text=True, timeout=60)
    assert refused.returncode == 2
    assert "--no-auth" in refused.stderr
    (tmp_path / "keys").write_text(f"{KEY}\n")
    environment = os.environ | {"TREEDIFFUSION_API_KEY_FILE": str(tmp_path / "keys")}
    process = subprocess.Popen(
        start, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    try:
        for _ in range(100):
            if healthy():
                break
            assert process.poll() is None, process.communicate()[1]
        else:
            raise AssertionError("never healthy")
    finally:
        process.terminate()
    assert b"Traceback" not in process.communicate(timeout=60)[1]
    assert not healthy()
