"""The units of a big set, drawn by Ray's workers.

A worker holds an engine and draws unit after unit. Ray Data replaces one that dies, however often,
and has its unit drawn again; `bulk` makes that harmless.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from .. import errors
from ..bundle import Bundle
from ..errors import BackendUnavailableError, ConfigError, TreeDiffusionError
from ..optional import require
from ..progress import Progress
from ..runtime import Engine
from ..runtime.backends import BackendOptions
from .bulk import Order, Unit, draw_unit, join
from .ray_session import check_backend, first_line, session, share

BLOCKS = 1000
"""Pieces of the work at most: so many steps has the progress."""


class Drawer:
    """A worker: an engine, and the units that are given to it by their number."""

    def __init__(self, order: Order, units: Sequence[Unit], options: BackendOptions) -> None:
        self._order, self._units = order, units
        self._engine: Engine | TreeDiffusionError
        try:
            self._engine = Engine.load(order.bundle, backend=order.backend, **options)
        except TreeDiffusionError as fault:
            self._engine = fault

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Draws the units of a batch.

        Returns:
            Of each unit its number, whether it was still to do, and what went wrong. Of an error
            that is raised Ray keeps the text alone; and one while the engine is loaded is to Ray a
            death, after which it tries again.
        """
        numbers, drawn, faults = batch["item"], [], []
        for number in numbers:
            done, fault = False, ""
            try:
                if isinstance(self._engine, TreeDiffusionError):
                    raise self._engine
                done = draw_unit(self._engine, self._order, self._units[int(number)])
            except TreeDiffusionError as mistake:
                fault = _as_text(mistake)
            drawn.append(done)
            faults.append(fault)
        return {"item": numbers, "drawn": drawn, "fault": faults}


def draw_with_ray(
    order: Order,
    units: Sequence[Unit],
    progress: Progress,
    *,
    bundle: Bundle,
    workers: int | None = None,
) -> Path:
    """Draws a set with the workers of a cluster, or of this machine.

    Args:
        order: what and where to; `begin` has opened its folder, which all workers share.
        units: the plan.
        progress: of all images.
        bundle: the order's.
        workers: how many; as many as the cluster has room for if None.

    Returns:
        The manifest.

    Raises:
        ConfigError: no workers.
        DependencyError: Ray is not installed.
        BackendUnavailableError: no cluster, or the back end cannot run on it.
        CheckpointError: the system refused to write.
    """
    if workers is not None and workers < 1:
        raise ConfigError("workers", got=workers, expected="at least 1")
    check_backend(order.backend)
    with session() as ray:
        data = require("ray.data", extra="ray")
        _silence(data)
        each = share(ray, bundle, order.backend)
        todo = data.from_items(
            list(range(len(units))), override_num_blocks=min(len(units), BLOCKS)
        ).map_batches(
            Drawer,
            fn_constructor_args=(order, list(units), each.engine),
            batch_size=1,
            concurrency=min(workers or each.fit, len(units)),
            **each.asked,
        )
        try:
            for row in todo.iter_rows():
                unit = units[row["item"]]
                if row["fault"]:
                    raise _from_text(row["fault"])
                if row["drawn"]:
                    progress.advance(unit.count, "images")
                else:
                    progress.skip(unit.count)
        except TreeDiffusionError:
            raise
        except Exception as fault:  # of Ray, or of our own making
            raise BackendUnavailableError(
                "ray", got=first_line(fault), expected="workers that run"
            ) from fault
    return join(order, units)


def _as_text(fault: TreeDiffusionError) -> str:
    kind = type(fault).__name__
    return json.dumps([kind, fault.name, str(fault.got), fault.expected, fault.hint])


def _from_text(text: str) -> TreeDiffusionError:
    kind, name, got, expected, hint = json.loads(text)
    made = getattr(errors, kind, BackendUnavailableError)(
        name, got=got, expected=expected, hint=hint
    )
    return cast(TreeDiffusionError, made)


def _silence(data: Any) -> None:
    """One progress bar is enough, and one line for what fails."""
    context = data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
