"""The runs of a grid seen by a search: groups of one parametrization, sizes in order, learning rates, seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from mutransfer.errors import InputError
from mutransfer.sweep.grid import SIZES
from mutransfer.sweep.wanted import Call, Wanted


@dataclass(frozen=True)
class Group:
    """Runs that differ in one size, learning rate and seed only. `templates`: (size, seed) → one of them."""

    label: str
    size_name: str
    sizes: tuple[float, ...]
    log2_lrs: tuple[float, ...]
    seeds: tuple[Any, ...]
    templates: dict[tuple[float, Any], Wanted]

    def at(self, size: float, log2_lr: float, seed: Any) -> Wanted:
        """The run of this size and seed at any learning rate."""
        return with_fields_of(self.templates[size, seed], {"lr": 2.0**log2_lr})


def with_fields_of(run: Wanted, given: dict[str, Any]) -> Wanted:
    """The same run with other values of some fields."""
    from mutransfer.sweep.grid import with_fields
    from mutransfer.train import RunConfig

    config = run.config
    if isinstance(config, Call):
        return Wanted.of(Call(config.spec, config.folder, {**config.point, **given}))
    if set(given) == {"lr"}:
        return Wanted.of(replace(config, lr=given["lr"]))
    return Wanted.of(RunConfig.from_dict(with_fields(config.to_dict(), given)))


def groups(runs: Sequence[Wanted]) -> list[Group]:
    """The groups of a grid: one for each value of every other field that varies.

    Raises InputError where no learning rate varies: then there is nothing to search.
    """
    fields = [run.fields for run in runs]
    varying = [name for name in fields[0] if len({repr(f.get(name)) for f in fields}) > 1]
    if "lr" not in varying:
        raise InputError("an adaptive search needs learning rates: add lr=2^-10..2^-4 to --grid")
    size_name = next((name for name in SIZES if name in varying), "width")
    others = [name for name in varying if name not in ("lr", "seed", size_name)]
    found: dict[str, list[tuple[Wanted, dict[str, Any]]]] = {}
    for run, values in zip(runs, fields, strict=True):
        found.setdefault(" ".join(f"{name}={values[name]}" for name in others), []).append((run, values))
    return [_group(label, size_name, members) for label, members in found.items()]


def every(runs: Sequence[Wanted]) -> Group:
    """All runs as one group."""
    fields = [run.fields for run in runs]
    name = next((n for n in SIZES if len({f.get(n) for f in fields}) > 1), "width")
    return _group("", name, list(zip(runs, fields, strict=True)))


def _group(label: str, size_name: str, members: list[tuple[Wanted, dict[str, Any]]]) -> Group:
    templates: dict[tuple[float, Any], Wanted] = {}
    for run, values in members:
        templates.setdefault((float(values.get(size_name, 0)), values.get("seed")), run)
    return Group(
        label, size_name,
        tuple(sorted({size for size, _ in templates})),
        tuple(sorted({round(math.log2(values.get("lr", 1)), 6) for _, values in members})),
        tuple(dict.fromkeys(seed for _, seed in templates)),
        templates,
    )  # fmt: skip
