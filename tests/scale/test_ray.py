"""Workers and replicas in processes of their own, some of which are killed.

One Ray for all of these tests, on the loopback interface and two cores; so they are one file.
"""

from __future__ import annotations

import csv
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.models import IRREGULAR, tiny_bundle
from treediffusion.bundle import Bundle
from treediffusion.cli import main
from treediffusion.client import Client, Image, ServerError
from treediffusion.errors import BackendUnavailableError, ConfigError
from treediffusion.progress import Progress
from treediffusion.runtime import Engine
from treediffusion.scale import ray_bulk
from treediffusion.scale.bulk import Order, begin, draw_here, plan_units
from treediffusion.scale.ray_bulk import draw_with_ray
from treediffusion.scale.ray_serve import (
    AHEAD_S,
    NAME,
    Application,
    by_image_steps,
    deploy,
)
from treediffusion.scale.ray_session import session, share
from treediffusion.serve.limits import Limits
from treediffusion.serve.pictures import encode_png

pytestmark = pytest.mark.slow

STEPS: Any = {"num_inference_steps": 2}


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    if find_spec("ray") is None:  # not imported yet: where it listens is decided then
        pytest.skip("the extra ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with session() as ray:
            from ray import serve

            yield ray
            serve.shutdown()


def silent(total: float = 1) -> Progress:
    return Progress(total, "", quiet=True)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its place."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def eventually(holds: Any, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_set_is_whole_although_a_worker_died(
    ray: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half-way through a unit, after some of its images. The bytes are those of one process."""
    died = tmp_path / "died"

    class Dying(ray_bulk.Drawer):
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            from treediffusion.scale import bulk

            put, written = bulk._put, []

            def write(file: Path, content: bytes) -> None:
                put(file, content)
                written.append(file)
                if len(written) == 2 and not died.exists():
                    died.write_text(file.name)
                    os._exit(1)

            bulk._put = write
            try:
                return super().__call__(batch)
            finally:
                bulk._put = put

    units = plan_units(IRREGULAR.leaf_names, 6, seed=2, size=3)
    alone, shared = (
        Order(tiny_bundle(), tmp_path / name, "onnxruntime", STEPS) for name in ("one", "two")
    )
    begin(alone)
    draw_here(alone, units, silent())

    bundle, progress = begin(shared), silent(total=18)
    monkeypatch.setattr(ray_bulk, "Drawer", Dying)
    manifest = draw_with_ray(shared, units, progress, bundle=bundle, workers=2)
    assert died.exists()
    assert progress.done == 18
    assert contents(shared.out) == contents(alone.out)
    rows = list(csv.DictReader(manifest.read_text().splitlines()))
    assert len({(row["file"], row["seed"], row["offset"]) for row in rows}) == len(rows) == 18


def test_the_command_with_ray_and_without(ray: Any, tmp_path: Path) -> None:
    command = ["generate", "--bundle", str(tiny_bundle()), "--num-inference-steps", "1"]
    command += ["--backend", "onnxruntime", "--per-leaf", "2"]
    for name, more in (("one", []), ("two", ["--ray", "--workers", "2"])):
        assert main([*command, *more, "--out", str(tmp_path / name)]) == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert len(list((tmp_path / "two").glob("*/*.png"))) == 2 * len(IRREGULAR.leaf_names)


def test_what_a_worker_cannot_do_is_one_line(
    ray: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorRT has no graphs in this bundle."""
    command = ["generate", "--bundle", str(tiny_bundle()), "--ray", "--out", str(tmp_path / "a")]
    assert main([*command, "--backend", "tensorrt", "--num-images", "1"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("treediffusion: tensorrt: got a bundle with onnx-cpu-fp32")


def test_a_worker_has_a_gpu_only_where_everything_has_one() -> None:
    def of(gpus: int, target: str, backend: str, threads: int | None = None) -> tuple[Any, ...]:
        cluster = SimpleNamespace(cluster_resources=lambda: {"CPU": 8.0, "GPU": float(gpus)})
        bundle: Any = SimpleNamespace(sets={"only": SimpleNamespace(target=target)})
        return tuple(share(cluster, bundle, backend, threads))

    on_gpu = ({"num_cpus": 1, "num_gpus": 1}, {}, 4)
    assert of(4, "onnx-gpu", "auto") == on_gpu
    assert of(4, "tensorrt", "tensorrt") == on_gpu
    assert of(4, "onnx-cpu", "auto") == ({"num_cpus": 1}, {"threads": 1}, 8)
    assert of(4, "onnx-gpu", "onnxruntime") == ({"num_cpus": 1}, {"threads": 1}, 8)
    assert of(0, "onnx-gpu", "auto", 4) == ({"num_cpus": 4}, {"threads": 4}, 2)


class Served:
    """Replicas, and who they are."""

    def __init__(self, ray: Any) -> None:
        self.ray = ray
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.client = Client(f"http://127.0.0.1:{self.port}", retries=5)

    def deploy(self, **given: Any) -> None:
        application = Application(tiny_bundle(), Limits(), backend="onnxruntime", drain=10)
        deploy(self.ray, application, port=self.port, **given)

    def pids(self) -> set[int]:
        """Of the replicas that run."""
        names = self.ray.util.list_named_actors(all_namespaces=True)
        found = set()
        for each in names:
            if NAME not in each["name"]:
                continue
            try:
                actor = self.ray.get_actor(each["name"], namespace=each["namespace"])
                found.add(self.ray.get(actor.is_allocated.remote(), timeout=5)[0])
            except (ValueError, self.ray.exceptions.RayError):  # it ended just now
                continue
        return found

    def running(self) -> int:
        """Replicas that requests are sent to."""
        deployments = self.ray.serve.status().applications[NAME].deployments
        return sum(each.replica_states.get("RUNNING", 0) for each in deployments.values())


@pytest.fixture(scope="module")
def served(ray: Any) -> Served:
    served = Served(ray)
    served.deploy(replicas=2)
    return served


class Load:
    """Requests from several threads until it is told to stop, each with a seed of its own."""

    def __init__(self, client: Client, *, threads: int = 6, most: int = 600) -> None:
        self._client, self._stop = client, threading.Event()
        self._seeds = iter(range(most))
        self._lock = threading.Lock()
        self.answers: dict[int, list[Image]] = {}
        self._pool = ThreadPoolExecutor(threads)
        self._all = [self._pool.submit(self._ask) for _ in range(threads)]

    def _ask(self) -> None:
        while not self._stop.is_set():
            with self._lock:
                seed = next(self._seeds, None)
            if seed is None:
                return
            self.answers[seed] = self._client.generate(n=2, seed=seed, **STEPS)

    def reach(self, count: int) -> None:
        """Waits for so many more answers."""
        goal = len(self.answers) + count
        eventually(lambda: len(self.answers) >= goal or all(each.done() for each in self._all))

    def stop(self) -> dict[int, list[Image]]:
        """All answers; raises what any request was refused with."""
        self._stop.set()
        for each in self._all:
            each.result(60)
        self._pool.shutdown()
        return self.answers


def check(answers: dict[int, list[Image]]) -> None:
    """Every request has its own images, once each, and the bytes that an engine alone draws."""
    assert sorted(answers) == list(range(len(answers)))
    with Engine.load(tiny_bundle(), backend="onnxruntime", threads=1) as engine:
        for seed, images in answers.items():
            made = engine.generate(2, seed=seed, **STEPS)
            assert [(image.seed, image.offset) for image in images] == [(seed, 0), (seed, 1)]
            assert [image.png for image in images] == [encode_png(each) for each in made.images]


def test_a_replica_dies_under_load_and_no_request_is_lost(served: Served) -> None:
    before = served.pids()
    assert len(before) == 2
    load = Load(served.client)
    load.reach(30)
    os.kill(min(before), signal.SIGKILL)
    load.reach(60)
    check(load.stop())
    eventually(lambda: len(served.pids() - before) == 1 and served.running() == 2)


def test_a_rolling_update_loses_no_request(served: Served) -> None:
    """Even for a client that asks only once."""
    before = served.pids()
    load = Load(Client(f"http://127.0.0.1:{served.port}", retries=0))
    load.reach(10)
    served.deploy(replicas=2)
    load.reach(10)
    check(load.stop())
    eventually(lambda: len(served.pids() - before) == 2 and not served.pids() & before)


def test_routes_and_mistakes_are_those_of_one_server(served: Served) -> None:
    client = served.client
    assert client.tree()["leaf_names"] == list(IRREGULAR.leaf_names)
    told = list(client.stream(n=1, seed=1, preview_every=1, **STEPS))
    assert [kind for kind, _ in told] == ["preview", "image", "done"]
    with pytest.raises(ServerError) as refused:
        client.interpolate("nowhere", "r", **STEPS)
    assert (refused.value.status, refused.value.kind) == (422, "invalid_request")


def test_replicas_come_with_the_queue(served: Served) -> None:
    """A queue of more seconds than a replica should be behind, of requests that are given up."""
    served.ray.serve.delete(NAME)  # an update would keep its two replicas until they are idle
    served.deploy(replicas=1, max_replicas=2)
    assert served.running() == 1
    client = Client(f"http://127.0.0.1:{served.port}", retries=0)
    with ThreadPoolExecutor(7) as pool:
        long = {"n": 64, "num_inference_steps": 200, "timeout": 40}
        asked = [pool.submit(client.generate, seed=seed, **long) for seed in range(7)]
        eventually(lambda: served.running() == 2)
        for pid in served.pids():
            os.kill(pid, signal.SIGKILL)  # so that nobody waits for the rest
        assert {type(each.exception(60)) for each in asked} <= {ServerError, type(None)}


def test_the_policy_asks_for_what_the_queue_takes() -> None:
    def wanted(*waits: float) -> int:
        metrics = {"wait_s": dict(enumerate(waits)), "image_steps": {}}
        return by_image_steps(SimpleNamespace(aggregated_metrics=metrics))[0]

    assert wanted() == wanted(0.0) == wanted(AHEAD_S) == 1
    assert wanted(AHEAD_S, AHEAD_S) == 2
    assert wanted(3 * AHEAD_S, AHEAD_S / 2) == 4
    assert by_image_steps(SimpleNamespace(aggregated_metrics=None)) == (1, {})


@pytest.mark.parametrize(
    ("given", "named"), [({"replicas": 0}, "replicas"), ({"max_replicas": 0}, "max_replicas")]
)
def test_impossible_numbers_of_replicas(given: dict[str, int], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        deploy(None, Application(tiny_bundle(), Limits()), **given)


def test_replicas_without_ray_are_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", str(tiny_bundle()), "--replicas", "2"]) == 2
    assert "--ray" in capsys.readouterr().err


def test_replicas_that_cannot_run_are_one_fault(served: Served) -> None:
    application = Application(tiny_bundle(), Limits(), backend="tensorrt")
    with pytest.raises(BackendUnavailableError, match="got a bundle with onnx-cpu-fp32"):
        deploy(served.ray, application, port=served.port)


def test_workers_as_many_as_cores(ray: Any) -> None:
    cores = int(ray.cluster_resources()["CPU"])
    assert share(ray, Bundle.open(tiny_bundle()), "auto").fit == cores
