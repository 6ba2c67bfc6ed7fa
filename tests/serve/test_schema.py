"""schemathesis: what OpenAPI says of the routes, and what they do, are the same.

Cases come from the schema, right and wrong ones, and every answer has to be one that it names: the
status, the kind of content, the fields. Nothing is drawn at random, so every run has the same ones.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import schemathesis
from hypothesis import settings
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance
from starlette.testclient import TestClient
from support.models import IRREGULAR, tiny_bundle
from treediffusion.runtime import Engine
from treediffusion.serve.app import make_app
from treediffusion.serve.limits import Limits
from treediffusion.serve.pictures import encode_png

CHECKS = {
    # A request may ask for less time than its images take.
    "not_a_server_error": {"expected-statuses": ["2xx", "4xx", "504"]},
}
LEAVES = IRREGULAR.leaf_names
PICTURE = base64.b64encode(encode_png(np.zeros((1, 8, 8), np.uint8))).decode()
DRAWING = {"num_inference_steps": 1, "eta": None, "guidance_scale": None, "timeout": None}
USABLE: dict[str, dict[str, Any]] = {
    "/v1/generate": DRAWING | {"n": 1, "seeds": None, "node": "r"},
    "/v1/sheet": DRAWING | {"n": 1},
    "/v1/interpolate": DRAWING | {"n": 1, "start": LEAVES[0], "end": LEAVES[1], "frames": 2},
    "/v1/reconstruct": DRAWING | {"image": PICTURE, "leaf": LEAVES[0]},
    "/v1/assign": {"images": [PICTURE]},
}
"""Fields whose right values are the bundle's and the server's to say, not the schema's."""


def described() -> Any:
    """An application that only tells its schema: making a bundle is too much for a collection."""
    engine: Any = SimpleNamespace(info=dict, close=lambda: None)
    app = make_app(engine)
    app.state.service.scheduler.drain(5)
    return app


served = {"app": described()}


async def routes(scope: Any, receive: Any, send: Any) -> None:
    """What is served; schemathesis would begin and end it with each test, and it ends but once."""
    if scope["type"] == "http":
        await served["app"](scope, receive, send)


@pytest.fixture(scope="module", autouse=True)
def serving_all() -> Iterator[None]:
    limits = Limits(max_images=4, max_steps=4)
    served["app"] = make_app(Engine.load(tiny_bundle(), threads=1), limits=limits, drain=5)
    with TestClient(served["app"]) as client:
        while client.get("/health/ready").status_code != 200:
            pass
        yield


schema = schemathesis.openapi.from_asgi(
    "/openapi.json",
    routes,
    config=SchemathesisConfig.from_dict({"seed": 0, "checks": CHECKS}),
)


@schema.parametrize()
@settings(max_examples=60, deadline=None, derandomize=True, database=None)
def test_answers_are_those_of_the_schema(case: schemathesis.Case) -> None:
    """Whatever is asked; and what the schema allows is drawn, where it names what there is."""
    case.call_and_validate(excluded_checks=[positive_data_acceptance])
    if isinstance(case.body, dict) and case.meta.generation.mode.value == "positive":
        case.body = case.body | USABLE[case.path]
        answer = case.call()
        assert answer.status_code == 200, answer.text
