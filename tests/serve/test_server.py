"""A server in a process of its own: its client, signals, clients that leave, slow or half-open."""

from __future__ import annotations

import io
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image
from support.models import IRREGULAR, tiny_bundle
from treediffusion.client import Client, ServerError

sys.path.insert(0, str(Path(__file__).parents[2] / "bench"))

STEPS = {"num_inference_steps": 2}
LONG = {"n": 4096, "num_inference_steps": 200, "solver": "heun"}
KEY = "a-key-of-the-tests"


class Server(NamedTuple):
    process: subprocess.Popen[str]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(self, text: str) -> socket.socket:
        """An open connection on which something was sent."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.sendall(text.encode())
        return connection

    def memory(self) -> int:
        """Bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text("utf-8")
        return 1024 * int(status.partition("VmRSS:")[2].split()[0])

    def metric(self, name: str) -> float:
        import urllib.request

        with urllib.request.urlopen(f"{self.url}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    *arguments: str,
    bundle: Path | None = None,
    python: Sequence[str] = ("-m", "treediffusion"),
    **environment: str,
) -> Server:
    port = free_port()
    command = [sys.executable, *python, "serve", str(bundle or tiny_bundle())]
    process = subprocess.Popen(
        [*command, "--port", str(port), "--threads", "1", *arguments],
        env=os.environ | environment, text=True, stderr=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    server = Server(process, port)
    for _ in range(600):
        try:
            answer = server.send("GET /health/ready HTTP/1.0\r\n\r\n").recv(12)
        except OSError:
            answer = b""
        if answer.endswith(b"200"):
            return server
        if process.poll() is not None:
            break
        time.sleep(0.1)
    process.kill()
    raise AssertionError(process.communicate()[1])


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = start("--max-images", "4096", "--max-queue", "10000000")
    yield server
    server.process.terminate()
    server.process.wait(20)


@pytest.fixture(scope="module")
def client(server: Server) -> Client:
    return Client(server.url)


def post(path: str, body: dict[str, Any]) -> str:
    text = json.dumps(body)
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(text)}\r\n\r\n{text}"
    )


def test_the_client_speaks_every_route(client: Client) -> None:
    leaves = client.tree()["leaf_names"]
    assert leaves == list(IRREGULAR.leaf_names)
    images = client.generate(n=2, seed=1, **STEPS)
    assert [image.offset for image in images] == [0, 1]
    shown = np.asarray(Image.open(io.BytesIO(images[0].png)))
    assert shown.shape == (8, 8)
    assert [image.leaf for image in client.sheet(seed=1, **STEPS)] == leaves
    assert len(client.interpolate(leaves[0], leaves[1], frames=3, **STEPS)) == 3
    (redrawn,) = client.reconstruct(images[0].png, leaf=leaves[1], **STEPS)
    assert redrawn.leaf == leaves[1]
    (prob,) = client.assign([images[0].png])
    assert sum(prob.values()) == pytest.approx(1, abs=1e-5)
    told = list(client.stream(n=1, seed=1, preview_every=1, **STEPS))
    assert [kind for kind, _ in told] == ["preview", "image", "done"]
    assert told[1][1]["image"]


def test_the_client_tells_mistakes(client: Client) -> None:
    with pytest.raises(ServerError, match="nowhere") as refused:
        client.interpolate("nowhere", "r", **STEPS)
    assert (refused.value.status, refused.value.kind) == (422, "invalid_request")


def test_many_clients_get_their_own_images(client: Client) -> None:
    """16 at once: the bytes of each are those it gets alone."""
    alone = {seed: client.generate(seed=seed, n=2, **STEPS) for seed in range(16)}
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda seed: client.generate(seed=seed, n=2, **STEPS), alone))
    assert together == list(alone.values())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_dropped(server: Server, client: Client, stream: bool) -> None:
    """Its image-steps leave the queue although they would take a minute; polling would miss it."""
    body = LONG | {"stream": stream}
    connection = server.send(post("/v1/generate", body))
    deadline = time.monotonic() + 20
    while server.metric("treediffusion_queue_image_steps") == 0:
        assert time.monotonic() < deadline
    connection.close()
    while server.metric("treediffusion_queue_image_steps") > 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_client_that_does_not_read_holds_nobody_up(server: Server, client: Client) -> None:
    body = {"n": 8, "num_inference_steps": 100, "stream": True, "preview_every": 1}
    connection = server.send(post("/v1/generate", body))
    assert len(client.generate(n=1, **STEPS)) == 1
    connection.close()


def test_half_a_request_holds_nobody_up(server: Server, client: Client) -> None:
    halves = [server.send("POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Le") for _ in range(20)]
    halves += [server.send(post("/v1/generate", {"n": 1})[:-3]) for _ in range(20)]
    assert len(client.generate(n=1, **STEPS)) == 1
    for half in halves:
        half.close()


def test_a_busy_server_says_when_to_come_back() -> None:
    server = start("--max-queue", "500", "--max-images", "4096")
    try:
        impatient, patient = Client(server.url, retries=0), Client(server.url, retries=20)
        busy = server.send(post("/v1/generate", {"n": 256, "num_inference_steps": 200}))
        while server.metric("treediffusion_queue_image_steps") < 500:
            time.sleep(0.01)
        began = time.monotonic()
        with pytest.raises(ServerError) as refused:
            impatient.generate(n=1, num_inference_steps=200)
        assert (refused.value.status, refused.value.kind) == (429, "busy")
        assert time.monotonic() - began < 2
        busy.close()
        assert len(patient.generate(n=1, num_inference_steps=200)) == 1
        assert server.metric('treediffusion_rejected_total{reason="queue"}') >= 1
    finally:
        server.process.kill()


def test_sigterm_finishes_what_was_begun() -> None:
    server = start()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(Client(server.url).generate, n=4, num_inference_steps=100)
        while server.metric("treediffusion_queue_image_steps") == 0:
            time.sleep(0.01)
        server.process.send_signal(signal.SIGTERM)
        assert len(running.result(60)) == 4
    _, errors = server.process.communicate(timeout=30)
    assert "Traceback" not in errors


def test_sighup_reads_the_bundle_again(tmp_path: Path) -> None:
    """Without losing a request; a bundle that cannot be read leaves the old one at work."""
    bundle = shutil.copytree(tiny_bundle(), tmp_path / "bundle")
    server = start(bundle=bundle)
    client = Client(server.url)
    before = client.generate(seed=1, **STEPS)
    assert server.process.stderr is not None
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(client.generate, n=8, num_inference_steps=100)
        server.process.send_signal(signal.SIGHUP)
        assert "was read again" in server.process.stderr.readline()
        assert client.generate(seed=1, **STEPS) == before
        assert len(running.result(60)) == 8
    (bundle / "manifest.json").write_text("{}")
    server.process.send_signal(signal.SIGHUP)
    assert "kept the old bundle" in server.process.stderr.readline()
    assert client.generate(seed=1, **STEPS) == before
    server.process.terminate()
    server.process.wait(20)


def test_others_need_a_key(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# of the tests\n{KEY}\n")
    server = start("--host", "0.0.0.0", TREEDIFFUSION_API_KEY_FILE=str(file))
    try:
        with pytest.raises(ServerError, match="key of this server"):
            Client(server.url).tree()
        assert Client(server.url, key=KEY).tree()["leaf_names"]
    finally:
        server.process.kill()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--host", "0.0.0.0"], "--no-auth"),
        (["--host", "192.0.2.1"], "a key"),
        (["--key-file", "nowhere"], "key_file"),
        (["--key-file", "short"], "16 characters"),
        (["--explorer", "nowhere.html"], "explorer"),
        (["--backend", "abacus"], "abacus"),
    ],
)
def test_mistakes_of_the_command_are_one_line(
    arguments: list[str], named: str, tmp_path: Path
) -> None:
    (tmp_path / "short").write_text("password\n")
    command = [sys.executable, "-m", "treediffusion", "serve", str(tiny_bundle()), *arguments]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert found.returncode == 2 or "backend" in named or found.returncode == 5
    assert named in found.stderr
    assert "Traceback" not in found.stderr


FULL = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
runpy.run_module("treediffusion", run_name="__main__")
"""


@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX's")
def test_a_full_disk_changes_nothing(tmp_path: Path) -> None:
    """No file can take a byte more: the server needs none, and starts, and answers."""
    server = start(python=("-B", "-c", FULL), TMPDIR=str(tmp_path))
    client = Client(server.url)
    try:
        image = client.generate(n=2, seed=1, **STEPS)[0]
        assert client.reconstruct(image.png, **STEPS)
        assert client.assign([image.png] * 8)
        assert [kind for kind, _ in client.stream(n=1, seed=1, preview_every=0, **STEPS)]
    finally:
        server.process.terminate()
    _, errors = server.process.communicate(timeout=30)
    assert "Traceback" not in errors


CHUNK = b"10000\r\n" + b" " * 2**16 + b"\r\n"
POST = b"POST /v1/assign HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
FLOODS = {
    "a length of 1 GB": (POST + b"Content-Length: 1073741824\r\n\r\n", b" " * 2**16, b"413"),
    "1 GB in chunks": (POST + b"Transfer-Encoding: chunked\r\n\r\n", CHUNK, b"413"),
    "a body for a GET": (POST.replace(b"POST /v1/assign", b"GET /health/live")
                         + b"Transfer-Encoding: chunked\r\n\r\n", CHUNK, b"200"),
    "headers": (POST, b"X-Flood: " + b"x" * 8000 + b"\r\n", b"400"),
    "one header": (POST + b"X-Flood: ", b"x" * 8000, b"400"),
    "an address": (b"GET /", b"x" * 8000, b"400"),
}  # fmt: skip


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read in /proc")
@pytest.mark.parametrize("kind", FLOODS)
def test_floods_are_stopped_early(server: Server, kind: str) -> None:
    """What arrives is what the system's buffers hold and the limits allow, and is not kept."""
    head, more, status = FLOODS[kind]
    before, sent, answer = server.memory(), 0, b""
    with server.send(head.decode()) as connection:
        while sent < 64 * 2**20 and not answer:
            readable, writable, _ = select.select([connection], [connection], [], 20)
            try:
                if readable:
                    answer = connection.recv(100)
                elif writable:
                    sent += connection.send(more)
            except OSError:  # closed before the answer was read
                break
    assert answer.split(b" ")[1:2] in ([status], [])
    assert sent < 32 * 2**20
    assert server.memory() - before < 64 * 2**20
    assert len(Client(server.url).generate(n=1, **STEPS)) == 1


def test_what_is_left_open_is_closed(server: Server) -> None:
    """Clients of every bad kind leave no file and no thread behind."""
    Client(server.url).generate(n=1, **STEPS)
    folders = [Path(f"/proc/{server.process.pid}/{name}") for name in ("fd", "task")]
    if not folders[0].exists():
        pytest.skip("open files are counted in /proc")
    # Threads that encode answers are made up to a number, and stay.
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: Client(server.url).generate(n=8, **STEPS), range(32)))
    deadline = time.monotonic() + 20
    while server.metric("treediffusion_queue_image_steps") > 0:
        assert time.monotonic() < deadline
    before = [len(list(folder.iterdir())) for folder in folders]
    for _ in range(10):
        for text in (
            "GET", post("/v1/generate", {"n": 1})[:-3], post("/v1/generate", {"n": 0}),
            post("/v1/generate", LONG | {"stream": True}), post("/v1/generate", LONG),
            "\0\0\r\n\r\n",
        ):  # fmt: skip
            server.send(text).close()
    while (
        server.metric("treediffusion_queue_image_steps") > 0
        or len(list(folders[0].iterdir())) > before[0]
        or len(list(folders[1].iterdir())) > before[1]
    ):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read in /proc")
def test_some_hundred_requests_leave_nothing() -> None:
    """`bench/soak.py` in short; its line through memory needs more than this."""
    from soak import soak

    found = soak(tiny_bundle(), 360)
    assert sum(found.kinds.values()) == 360
    assert (found.files <= 4, found.threads <= 4) == (True, True), found
    half = found.samples[len(found.samples) // 2].rss_mib
    assert found.samples[-1].rss_mib - half < 16


def test_it_imports_no_torch() -> None:
    code = (
        "import sys, treediffusion.serve.app, treediffusion.client;"
        "print([m for m in ('torch', 'onnx', 'triton', 'matplotlib') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert found.stdout.strip() == "[]", found.stderr
