"""A sweep's store as comparisons: which field is the size, what is held fixed, and whose runs stand side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mutransfer.commands.builtin import close_name
from mutransfer.errors import InputError
from mutransfer.rows.columns import LOSSES, RATES, SEEDS, SIZES, choose, listed, plain
from mutransfer.sweep.shown import shown
from mutransfer.sweep.store import Store, flat

TITLES = {"sp": "SP", "mup": "μP", "depth-mup": "depth-μP", "completep": "CompleteP"}
METRICS = {
    "train_loss": "train_loss, the mean training loss of the last 50 updates",
    "mean_loss": "mean_loss, the mean training loss of all updates",
    "best_train_loss": "best_train_loss, the lowest mean training loss over a stretch of the run",
    "half_loss": "half_loss, the mean training loss of the 50 updates up to half of the run",
    "val_loss": "val_loss, the validation loss at the end",
    "best_val_loss": "best_val_loss, the lowest validation loss of the run",
}
MOST_GROUPS = 12  # more do not fit side by side


@dataclass(frozen=True)
class Run:
    """One ended run: its config on one level, the metrics, and the record that the store holds."""

    fields: Mapping[str, Any]
    record: Mapping[str, Any]

    @property
    def key(self) -> str:
        return self.record["key"]

    @property
    def status(self) -> str:
        return self.record["status"]

    def metric(self, name: str) -> float | None:
        """A finite number, or None."""
        value = self.record["metrics"].get(name)
        return value if isinstance(value, int | float) and math.isfinite(value) else None


@dataclass(frozen=True)
class SweepRuns:
    """Everything that a store holds."""

    runs: tuple[Run, ...]
    points: Mapping[str, Sequence[Mapping[str, Any]]]
    notes: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> SweepRuns:
        """Raises InputError when the folder holds no sweep, or none of its runs has ended."""
        with Store(folder, create=False) as store:
            records, points, notes = store.records(), store.points(), store.notes()
        if not records:
            raise InputError(f"{str(folder)!r} holds no ended runs yet: nothing to report")
        runs = [Run(flat(record["config"]), record) for record in records.values()]
        return cls(tuple(sorted(runs, key=lambda run: run.key)), points, notes)


@dataclass(frozen=True)
class Comparison:
    """Groups of runs side by side (label → runs) over one size, `axis`, with the other sizes `fixed`."""

    axis: str
    fixed: Mapping[str, Any]
    groups: Mapping[str, tuple[Run, ...]]
    mixed: tuple[str, ...] = ()
    """Fields that vary inside a group, so that its runs cannot be compared."""

    @property
    def held(self) -> str:
        """ "depth 2"; nothing where no other size varies."""
        return ", ".join(f"{name} {shown(value)}" for name, value in self.fixed.items())

    @property
    def where(self) -> str:
        """ "over width at depth 2"."""
        return f"over {self.axis}" + (f" at {self.held}" if self.held else "")


@dataclass(frozen=True)
class Layout:
    """Which field of the runs is what. `by`: the fields whose values make a group; `axes`: the sizes that vary."""

    sweep: SweepRuns
    metric: str
    axes: tuple[str, ...]
    lr: str | None
    seed: str | None
    by: tuple[str, ...]
    mixed: tuple[str, ...]

    @classmethod
    def of(cls, sweep: SweepRuns, metric: str | None = None, by: Sequence[str] = ()) -> Layout:
        """Read off the runs. Raises InputError for an unknown metric or field, and for more groups than can be shown."""
        rows = [run.fields for run in sweep.runs]
        names = list(dict.fromkeys(name for row in rows for name in row))
        varying = [name for name in names if len({repr(row.get(name)) for row in rows}) > 1]
        lr = next(iter(choose("lr", None, RATES, names)), None)
        seed = next(iter(choose("seed", None, SEEDS, names)), None)
        sizes = [name for known in SIZES for name in names if plain(name) == known and name != lr]
        sizes = [name for name in sizes if all(_is_size(row.get(name)) for row in rows)]
        axes = _independent([name for name in sizes if name in varying], [], rows)
        own = {*axes, *sizes, lr, seed}
        rest = sorted((name for name in varying if name not in own), key=lambda name: name != "recipe")
        rest = [name for name in rest if not _steered(name, lr, seed, rows)]
        groups = _independent(rest, axes, rows)
        if by:
            for name in by:
                if name not in names:
                    raise InputError(f"--by {name}: the runs have no such field; {close_name(name, tuple(names))}")
            mixed = [name for name in _independent(groups, [*axes, *by], rows) if name not in by]
            groups = list(by)
        else:
            mixed = []
        layout = cls(
            sweep, _metric(sweep.runs, metric), tuple(axes or sizes[:1]), lr, seed, tuple(groups), tuple(mixed)
        )
        if len(layout.labels) > MOST_GROUPS:
            raise InputError(
                f"{listed(groups, 4)} take {len(layout.labels)} combinations, more than can stand side by side: "
                f"choose with --by {groups[0]}"
            )
        return layout

    def label(self, run: Run) -> str:
        """The group's name: "μP, adamw, weight_decay 0.1"."""
        fields = run.fields
        if not self.by:
            return TITLES.get(str(fields.get("recipe")), str(fields.get("recipe") or fields.get("function") or "runs"))
        return ", ".join(_named(name, fields.get(name)) for name in self.by)

    def family(self, label: str) -> str:
        """The label without its recipe: those of one family differ by the recipe alone and stand side by side."""
        _, _, rest = label.partition(", ")
        return rest if self.by[:1] == ("recipe",) else label if self.by else ""

    @cached_property
    def labels(self) -> dict[str, tuple[Run, ...]]:
        """Every group, those of one family together, the standard parametrization first."""
        found: dict[str, list[Run]] = {}
        for run in self.sweep.runs:
            found.setdefault(self.label(run), []).append(run)
        ordered = sorted(found, key=lambda label: (_natural(self.family(label)), _rank(label), label))
        return {label: tuple(found[label]) for label in ordered}

    def size(self, run: Run) -> tuple[Any, ...]:
        """The run's values of the sizes that vary."""
        return tuple(run.fields.get(name) for name in self.axes)

    @cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """One for each size that varies and each value of the other sizes at which it does; at least one."""
        made = []
        for axis in self.axes:
            others = [name for name in self.axes if name != axis]
            held = sorted({tuple(run.fields[name] for name in others) for run in self.sweep.runs})
            for values in held:
                groups = {
                    label: tuple(run for run in runs if tuple(run.fields[name] for name in others) == values)
                    for label, runs in self.labels.items()
                }
                groups = {label: runs for label, runs in groups.items() if runs}
                several = any(len({run.fields[axis] for run in runs}) > 1 for runs in groups.values())
                if several or not others:
                    made.append(Comparison(axis, dict(zip(others, values, strict=True)), groups, self.mixed))
        return tuple(made) or (Comparison("", {}, self.labels, self.mixed),)


def _named(name: str, value: Any) -> str:
    if name == "recipe":
        return TITLES.get(str(value), str(value))
    return value if isinstance(value, str) else f"{name} {shown(value)}"


def _natural(label: str) -> list[tuple[str, float]]:
    """For sorting: the numbers at the ends of a label's parts count as numbers."""
    keys = []
    for part in label.split(", "):
        head, _, tail = part.rpartition(" ")
        try:
            keys.append((head, float(tail)))
        except ValueError:
            keys.append((part, 0.0))
    return keys


def _rank(label: str) -> int:
    head = label.split(", ")[0]
    order = list(TITLES.values())
    return order.index(head) if head in order else len(order)


def _is_size(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _independent(names: Sequence[str], given: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Those of `names` that do not follow from `given` and from those before them."""
    kept: list[str] = []
    for name in names:
        if not _follows(name, [*given, *kept], rows):
            kept.append(name)
    return kept


def _follows(name: str, others: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> bool:
    seen: dict[tuple[str, ...], str] = {}
    return all(
        seen.setdefault(tuple(repr(row.get(o)) for o in others), repr(row.get(name))) == repr(row.get(name))
        for row in rows
    )


def _steered(name: str, lr: str | None, seed: str | None, rows: Sequence[Mapping[str, Any]]) -> bool:
    """A number that is a function of the LR (a final LR) or of the seed (another seed)."""
    if not all(isinstance(row.get(name), int | float) for row in rows):
        return False
    return any(other is not None and _follows(name, [other], rows) for other in (lr, seed))


def _metric(runs: Sequence[Run], given: str | None) -> str:
    names = list(dict.fromkeys(name for run in runs for name in run.record["metrics"]))
    if given is not None:
        if given not in names:
            raise InputError(f"--metric {given}: the runs have no such number; {close_name(given, tuple(names))}")
        return given
    measured = [name for name in names if any(run.metric(name) is not None for run in runs)]
    found = choose("loss", None, LOSSES, measured) or choose("loss", None, LOSSES, names)
    return found[0] if found else "loss"
