"""Spans of a request for OpenTelemetry. Without an SDK, the operator's own, they do nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.propagate import extract

from .scheduler import Done


def record(headers: Mapping[str, str], route: str, done: Done) -> None:
    """The request's time in the queue and in its steps, below the caller's own span.

    Args:
        headers: of the request; `traceparent` names that span.
        route: of the request.
        done: how long it took.
    """
    tracer = trace.get_tracer("treediffusion.serve")
    end = time.time_ns()
    began = end - int(done.run_s * 1e9)
    arrived = began - int(done.queue_s * 1e9)
    above = tracer.start_span(route, context=extract(headers), start_time=arrived)
    within = trace.set_span_in_context(above)
    for name, start, stop in (("queue", arrived, began), ("steps", began, end)):
        tracer.start_span(name, context=within, start_time=start).end(stop)
    above.end(end)
