"""`coord_check` over a grid of two sizes: every point is trained once per seed, every line is judged, and all of them together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mutransfer.check import build as building
from mutransfer.check import expect, record, step
from mutransfer.check.points import Grid
from mutransfer.check.record import Protocol, Records
from mutransfer.errors import InputError

Place = tuple[int, int]
Degrees = dict[str, tuple[int, ...]]


def measure(
    grid: Grid,
    protocol: Protocol,
    seeds: list[int],
    progress: Callable[[int, int, str], Any] | None,
) -> tuple[dict[Place, Records], Degrees]:
    """Every point trained once per seed, as records of one size each; and the probed degree of every tensor's optimizer.

    The first seed runs at all points before the second, so that what is wrong with some size shows early.
    """
    cells = {
        place: Records("size", [size], [1.0], seeds, clip_is_callable=callable(protocol.clip))
        for place, size in grid.points.items()
    }
    places = sorted(cells, key=lambda place: (sum(place), place))
    degrees: Degrees = {}
    with building.own_randomness():
        for j, seed in enumerate(seeds):
            for k, place in enumerate(places):
                record.run(cells[place], protocol, 0, j)
                if k == 0 and not math.isfinite(cells[place].data["loss", "", 0][0, j]):
                    raise InputError(
                        f"the loss is NaN or infinite at step 0 at {grid.words(place)} (seed {seed}): fix the model first"
                    )
                if j == 0:
                    _grows(grid, cells, place)
                if progress is not None:
                    progress(j * len(places) + k + 1, len(places) * len(seeds), f"{grid.words(place)}, seed {seed}")
        for along in (0, 1):  # the tensors of the deepest model are not those of the smallest
            for place in grid.line(along, 0):
                degrees.update(step.probe_degree(protocol, grid.points[place], seeds[0]))
    return cells, degrees


def _grows(grid: Grid, cells: dict[Place, Records], place: Place) -> None:
    """Raise InputError where a tensor shrinks along one axis, or nothing depends on it."""
    for along in (0, 1):
        if place[along] == 0:
            continue
        line = grid.line(along, place[1 - along])
        before = max((p for p in line if p[along] < place[along]), default=None)
        if before is None:
            continue
        pair = merged(grid, cells, [before, place], along)
        expect.refuse_shrinking(pair)
        shapes = [{name: p.shape for name, p in model.named_parameters()} for model in pair.models]
        if shapes[0] == shapes[1]:
            raise InputError(
                f"no tensor's shape depends on {grid.axes[along]}: build(size) returned the same model at {pair.sizes!r}"
            )


def merged(grid: Grid, cells: dict[Place, Records], line: Sequence[Place], along: int) -> Records:
    """The records of one line as `coord_check` of that line alone would have made them."""
    parts = [cells[place] for place in line]
    first = parts[0]
    found = Records(
        grid.axes[along], [grid.points[p] for p in line], [float(grid.values[along][p[along]]) for p in line],
        first.seeds, clip_is_callable=first.clip_is_callable,
    )  # fmt: skip
    found.sites, found.attention, found.first_use = first.sites, first.attention, first.first_use
    for i, part in enumerate(parts):
        for key, array in part.data.items():
            found.data.setdefault(key, np.full((len(parts), len(first.seeds)), np.nan))[i] = array[0]
        for kind in ("fans", "heads", "channels"):
            for key, listed in getattr(part, kind).items():
                getattr(found, kind).setdefault(key, []).extend(listed)
        for kind in ("facts", "optimizer_of", "default_decay", "default_eps"):  # the smallest size that has it decides
            setattr(found, kind, {**getattr(part, kind), **getattr(found, kind)})
        found.models += part.models
        found.diverged.update({(i, j): what for (_, j), what in part.diverged.items()})
        found.erased += [(found.values[i], name, words) for _, name, words in part.erased]
    return found
