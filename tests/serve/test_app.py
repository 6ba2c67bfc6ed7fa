"""The routes: what they answer, and what they refuse."""

from __future__ import annotations

import base64
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient
from support.models import IRREGULAR, tiny_bundle
from treediffusion.runtime import Engine
from treediffusion.serve.limits import Limits
from treediffusion.serve.pictures import decode, encode_png
from treediffusion.serve.schemas import MAX_SEED

STEPS = {"num_inference_steps": 2}
LEAVES = IRREGULAR.leaf_names
KEY = "a-key-of-the-tests"
OPENAPI = Path(__file__).parents[1] / "golden" / "openapi.json"
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine.load(tiny_bundle(), threads=1)


def pixels(item: dict[str, Any]) -> np.ndarray:
    file = io.BytesIO(base64.b64decode(item["image"]))
    return np.asarray(Image.open(file, formats=["PNG"]))


def picture(size: tuple[int, int] = (8, 8), kind: str = "PNG", mode: str = "L") -> str:
    file = io.BytesIO()
    shade = np.random.default_rng(0).integers(0, 256, (size[1], size[0]), np.uint8)
    Image.fromarray(shade).convert(mode).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def events(text: str) -> list[tuple[str, dict[str, Any]]]:
    found = []
    for block in text.strip().split("\n\n"):
        kind, data = (line.split(": ", 1)[1] for line in block.split("\n"))
        found.append((kind, json.loads(data)))
    return found


def test_generate_draws_what_the_engine_draws(client: TestClient, engine: Engine) -> None:
    body = {"node": "r0", "n": 3, "seed": 5, **STEPS}
    answer = client.post("/v1/generate", json=body)
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    expected = engine.generate(3, node="r0", seed=5, **STEPS)
    for i, item in enumerate(data):
        assert np.array_equal(pixels(item), expected.images[i, 0])
        assert (item["index"], item["seed"], item["offset"]) == (i, 5, i)
        assert item["leaf"] == expected.leaf_names[expected.leaf[i]]
        assert item["path"][0] == "r"
        assert item["path"][-1] == item["leaf"]
        assert 0 <= item["leaf_prob"] <= 1
    timings = answer.json()["timings"]
    assert timings["queue_s"] >= 0
    assert timings["run_s"] > 0


def test_every_image_can_be_drawn_again(client: TestClient) -> None:
    """A seed that the server chose is told, and gives the image alone."""
    first = client.post("/v1/generate", json={"n": 3, **STEPS}).json()["data"]
    for item in first:
        body = {"n": 1, "seed": item["seed"], "offset": item["offset"], **STEPS}
        (again,) = client.post("/v1/generate", json=body).json()["data"]
        assert again["image"] == item["image"]


def test_seeds_one_by_one(client: TestClient) -> None:
    both = client.post("/v1/generate", json={"seeds": [4, MAX_SEED], **STEPS}).json()["data"]
    assert [item["seed"] for item in both] == [4, MAX_SEED]
    (alone,) = client.post("/v1/generate", json={"seed": 4, **STEPS}).json()["data"]
    assert alone["image"] == both[0]["image"]


@pytest.mark.parametrize("n", [1, 3])
def test_one_raw_png(client: TestClient, engine: Engine, n: int) -> None:
    body = {"n": n, "seed": 5, **STEPS}
    answer = client.post("/v1/generate", json=body, headers={"accept": "image/png"})
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-treediffusion-seed"] == "5"
    found = np.asarray(Image.open(io.BytesIO(answer.content)))
    expected = engine.generate(n, seed=5, **STEPS).images[:, 0]
    assert np.array_equal(found[:8, :8], expected[0])
    assert found.shape == ((8, 8) if n == 1 else (16, 16))
    assert n == 1 or (found[8:, 8:] == 255).all()


def test_a_stream_has_previews_images_and_an_end(client: TestClient) -> None:
    body = {"n": 2, "seed": 1, "num_inference_steps": 4, "stream": True, "preview_every": 1}
    answer = client.post("/v1/generate", json=body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = events(answer.text)
    kinds = [kind for kind, _ in told]
    assert kinds[-1] == "done"
    assert kinds.count("image") == 2
    previews = [data for kind, data in told if kind == "preview"]
    assert {(data["index"], data["step"], data["steps"]) for data in previews} == {
        (i, step, 4) for i in range(2) for step in range(3)
    }
    whole = client.post("/v1/generate", json=body | {"stream": False}).json()["data"]
    images = sorted((d for kind, d in told if kind == "image"), key=lambda data: data["index"])
    assert images == whole


def test_a_sheet_has_every_leaf(client: TestClient, engine: Engine) -> None:
    answer = client.post("/v1/sheet", json={"n": 2, "seed": 3, **STEPS}).json()["data"]
    expected = engine.generate_leaves(2, seed=3, **STEPS)
    assert [item["leaf"] for item in answer] == [*LEAVES, *LEAVES]
    assert [item["offset"] for item in answer] == [0] * len(LEAVES) + [1] * len(LEAVES)
    found = np.stack([pixels(item) for item in answer]).reshape(2, len(LEAVES), 1, 8, 8)
    assert np.array_equal(found, expected.images)


def test_an_interpolation_begins_and_ends_at_its_leaves(client: TestClient, engine: Engine) -> None:
    body = {"start": LEAVES[0], "end": LEAVES[-1], "frames": 3, "seed": 2, **STEPS}
    answer = client.post("/v1/interpolate", json=body).json()["data"]
    expected = engine.interpolate(LEAVES[0], LEAVES[-1], frames=3, seed=2, **STEPS)
    assert np.array_equal(np.stack([pixels(item) for item in answer]), expected[0, :, 0])


def test_assignments_are_the_engines(client: TestClient, engine: Engine) -> None:
    files = [picture(), "data:image/png;base64," + picture()]
    answer = client.post("/v1/assign", json={"images": files}).json()
    shown = decode(files[0], (1, 8, 8), name="images", max_pixels=100)
    assert answer["leaf_names"] == list(LEAVES)
    np.testing.assert_allclose(answer["leaf_prob"], engine.assign(np.stack([shown] * 2)))


@pytest.mark.parametrize("leaf", ["most_probable", "sampled", "sibling", "all", LEAVES[1]])
def test_an_image_is_redrawn(client: TestClient, engine: Engine, leaf: str) -> None:
    body = {"image": picture(), "leaf": leaf, "seed": 1, **STEPS}
    answer = client.post("/v1/reconstruct", json=body)
    data = answer.json()["data"]
    assert len(data) == (len(LEAVES) if leaf == "all" else 1)
    sheet = engine.reconstruct_leaves(
        decode(picture(), (1, 8, 8), name="", max_pixels=100)[None], seed=1, **STEPS
    )
    for item in data:
        assert np.array_equal(pixels(item), sheet.images[0, LEAVES.index(item["leaf"]), 0])
    if leaf == "sibling":
        own = LEAVES[int(sheet.leaf_prob[0].argmax())]
        assert data[0]["leaf"] != own


FILES = {"PNG": "L RGB RGBA 1 P", "JPEG": "L RGB 1", "WEBP": "L RGB RGBA 1 P"}


@pytest.mark.parametrize(
    ("kind", "mode"), [(kind, mode) for kind, modes in FILES.items() for mode in modes.split()]
)
def test_pictures_of_any_size_and_mode(kind: str, mode: str) -> None:
    for shape in ((1, 8, 8), (3, 8, 8)):
        found = decode(picture((31, 17), kind, mode), shape, name="image", max_pixels=1000)
        assert (found.shape, found.dtype) == (shape, np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_come_back_as_they_went(channels: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (channels, 9, 7), np.uint8)
    text = base64.b64encode(encode_png(image)).decode()
    square = decode(text, (channels, 7, 7), name="image", max_pixels=100)
    assert np.array_equal(square, image[:, 1:8])


def test_the_tree(client: TestClient, engine: Engine) -> None:
    tree = client.get("/v1/tree").json()
    assert tree["leaf_names"] == list(LEAVES)
    assert tree["image_shape"] == [1, 8, 8]
    names, todo = [], [tree["root"]]
    while todo:
        node = todo.pop()
        names.append(node["name"])
        todo += node["children"]
    assert sorted(names) == sorted(IRREGULAR.names)
    assert tree["root"]["share"] == 1


def test_health_metrics_and_headers(client: TestClient) -> None:
    for path in ("/health/live", "/health/ready", "/v2/health/live", "/v2/health/ready"):
        assert client.get(path).status_code == 200
    client.post("/v1/generate", json={"n": 2, **STEPS}, headers={"x-request-id": "mine-1"})
    answer = client.get("/v1/tree", headers={"x-request-id": "mine-2"})
    assert answer.headers["x-request-id"] == "mine-2"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    odd = client.get("/v1/tree", headers={"x-request-id": "<script>"})
    assert odd.headers["x-request-id"] != "<script>"
    text = client.get("/metrics").text
    for name in (
        'requests_total{code="200",route="/v1/generate"}', "request_duration_seconds_bucket",
        "queue_wait_seconds", "queue_image_steps", "step_batch_size", "step_duration_seconds",
        "images_total", "build_info",
    ):  # fmt: skip
        assert f"treediffusion_{name}" in text


@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("generate", {"n": 0}, "n"),
        ("generate", {"n": 65}, "at most 64"),
        ("generate", {"n": "3 images"}, "n"),
        ("generate", {"node": "r0000000"}, "r0000000"),
        ("generate", {"node": "../../etc/passwd"}, "node"),
        ("generate", {"seed": MAX_SEED + 1}, "seed"),
        ("generate", {"seed": -1}, "seed"),
        ("generate", {"n": 3, "seeds": [1, 2]}, "one for each seed"),
        ("generate", {"num_inference_steps": 0}, "num_inference_steps"),
        ("generate", {"num_inference_steps": 1001}, "num_inference_steps"),
        ("generate", {"solver": "abacus"}, "solver"),
        ("generate", {"eta": float("nan")}, "eta"),
        ("generate", {"guidance_scale": 2.0}, "guidance_scale"),
        ("generate", {"bundle": "/etc"}, "bundle"),
        ("sheet", {"n": 64}, "at most 64"),
        ("interpolate", {"start": "r0", "end": "nowhere"}, "leaf"),
        ("interpolate", {"start": LEAVES[0]}, "end"),
        ("assign", {"images": []}, "images"),
        ("assign", {"images": ["AAAA"]}, "images: 0"),
        ("assign", {"images": ["no base64!"]}, "images: 0"),
        ("reconstruct", {"image": picture(), "leaf": "nowhere"}, "leaf"),
        ("reconstruct", {"image": picture((2, 2), "GIF")}, "image"),
    ],
)
def test_mistakes_are_named(client: TestClient, path: str, body: Any, named: str) -> None:
    answer = client.post(f"/v1/{path}", content=json.dumps(body), headers=JSON)
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request"
    assert named in error["message"]


def test_an_image_bomb_is_refused_before_it_is_decoded(serving: Callable[..., TestClient]) -> None:
    """4,000 x 4,000 pixels of one colour are a file of 20 kB."""
    bomb = io.BytesIO()
    Image.new("L", (4000, 4000)).save(bomb, "PNG")
    body = {"images": [base64.b64encode(bomb.getvalue()).decode()]}
    answer = serving(limits=Limits(max_pixels=10**6)).post("/v1/assign", json=body)
    assert answer.status_code == 422
    assert "4000 x 4000" in answer.json()["error"]["message"]


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"n": 1e999}', "null", "\xff"])
def test_what_is_no_json(client: TestClient, text: str) -> None:
    answer = client.post("/v1/generate", content=text.encode("latin-1"), headers=JSON)
    assert answer.status_code in (400, 422)
    assert answer.json()["error"]["type"] == "invalid_request"


def test_bodies_are_bounded(serving: Callable[..., TestClient]) -> None:
    """With and without a length; what is said of the length is not believed either way."""
    small = serving(limits=Limits(max_body=1000))

    def parts() -> Any:
        for _ in range(100):
            yield b" " * 100

    for content in (b" " * 2000, parts()):
        answer = small.post("/v1/generate", content=content)
        assert answer.status_code == 413, answer.text
        assert answer.json()["error"]["type"] == "too_large"
    assert small.post("/v1/generate", json={"n": 1, **STEPS}).status_code == 200


def test_a_key_is_asked_for(serving: Callable[..., TestClient]) -> None:
    locked = serving(keys=(KEY, KEY + "-2"))
    for path in ("/v1/tree", "/metrics", "/nowhere"):
        refused = locked.get(path)
        assert refused.status_code == 401
        assert refused.headers["www-authenticate"].startswith("Bearer")
        assert refused.json()["error"]["type"] == "unauthorized"
    for wrong in ("Bearer", "Bearer no", f"Basic {KEY}", KEY, "Bearer \xff"):
        given = {"authorization": wrong.encode("latin-1")}
        assert locked.get("/v1/tree", headers=given).status_code == 401
    for key in (KEY, KEY + "-2"):
        assert locked.get("/v1/tree", headers={"authorization": f"Bearer {key}"}).status_code == 200
        assert locked.get("/v1/tree", auth=("anybody", key)).status_code == 200
    assert locked.get("/v1/tree", auth=(KEY, "")).status_code == 401
    assert locked.get("/v1/tree", headers={"authorization": "Basic ?"}).status_code == 401
    assert locked.get("/health/live").status_code == 200


def test_a_full_queue_and_a_late_answer(serving: Callable[..., TestClient]) -> None:
    late = serving(limits=Limits(timeout=0.001))
    answer = late.post("/v1/generate", json={"n": 50, "num_inference_steps": 200})
    assert answer.status_code == 504
    assert answer.json()["error"]["type"] == "timeout"


def test_unknown_routes_and_methods(client: TestClient) -> None:
    assert client.get("/v1/nothing").status_code == 404
    assert client.get("/v1/generate").status_code == 405
    assert client.get("/v1/nothing").json()["error"]["type"] == "invalid_request"
    assert client.get("/explore").status_code == 404


def test_the_explorers_page(serving: Callable[..., TestClient], tmp_path: Path) -> None:
    page = tmp_path / "explorer.html"
    page.write_text("<title>tree</title>")
    answer = serving(explorer=page).get("/explore")
    assert answer.text == "<title>tree</title>"
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.headers["content-security-policy"] == "frame-ancestors 'none'"


def test_the_interface_does_not_change_by_accident(client: TestClient) -> None:
    """Record it again with RECORD=1, read the difference in git, and say in the change why."""
    found = client.get("/openapi.json").json()
    # FastAPI's own wording may change with its version; what clients see may not.
    frozen = {
        "paths": {
            path: {
                method: {
                    "body": op.get("requestBody", {}).get("content", {}).get("application/json"),
                    "answers": sorted(op["responses"]),
                }
                for method, op in methods.items()
            }
            for path, methods in found["paths"].items()
        },
        "fields": {
            name: {
                "required": schema.get("required", []),
                "properties": sorted(schema["properties"]),
            }
            for name, schema in found["components"]["schemas"].items()
            if "properties" in schema and "ValidationError" not in name
        },
    }
    if os.environ.get("RECORD"):
        OPENAPI.write_text(json.dumps(frozen, indent=1, sort_keys=True) + "\n", "utf-8")
    assert frozen == json.loads(OPENAPI.read_text("utf-8"))
