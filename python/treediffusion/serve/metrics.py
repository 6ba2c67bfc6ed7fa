"""What Prometheus reads, under names of its conventions."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

BUCKETS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """One server's; nothing is global.

    Args:
        waiting: image-steps in the queue at this moment.
        labels: backend, provider and precision of what runs.
    """

    def __init__(self, waiting: Callable[[], float], labels: dict[str, str]) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "treediffusion_requests", "Requests.", ["route", "code"], registry=registry
        )
        self.duration = Histogram(
            "treediffusion_request_duration_seconds", "From a request to the end of its answer.",
            ["route"], buckets=BUCKETS_S, registry=registry,
        )  # fmt: skip
        self.queue_wait = Histogram(
            "treediffusion_queue_wait_seconds", "From a request to its first step.",
            buckets=BUCKETS_S, registry=registry,
        )  # fmt: skip
        self.step_rows = Histogram(
            "treediffusion_step_batch_size", "Images in a call of the network.",
            buckets=ROWS, registry=registry,
        )  # fmt: skip
        self.step_duration = Histogram(
            "treediffusion_step_duration_seconds", "A call of the network.",
            buckets=BUCKETS_S, registry=registry,
        )  # fmt: skip
        self.images = Counter("treediffusion_images", "Images drawn.", ["leaf"], registry=registry)
        self.rejected = Counter(
            "treediffusion_rejected", "Requests that were not taken.", ["reason"], registry=registry
        )
        queue = Gauge(
            "treediffusion_queue_image_steps", "Image-steps still to do.", registry=registry
        )
        queue.set_function(waiting)
        built = Gauge("treediffusion_build_info", "What runs.", list(labels), registry=registry)
        built.labels(**labels).set(1)

    def step(self, rows: int, seconds: float) -> None:
        """A call of the network was made."""
        self.step_rows.observe(rows)
        self.step_duration.observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self._registry)
