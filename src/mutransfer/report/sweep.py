"""A sweep's page: a pure function of its store. The answer first, then what it rests on, what it cost, where it comes from."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mutransfer.report.figures import MOST_PICTURES, Drawing, all_curves, best_curves, drift, law, valleys
from mutransfer.report.html import Section, Table
from mutransfer.report.judged import Along, Judged, along, answers, joined, judge, optima_table, regret_table
from mutransfer.report.ledger import Ledger, clock
from mutransfer.report.planned import plan_key, planned
from mutransfer.report.prediction import Foretold, foretold, sweep_section
from mutransfer.report.provenance import Provenance
from mutransfer.report.runs import METRICS, TITLES, Layout, Run
from mutransfer.report.sections import check_section
from mutransfer.sweep.shown import shown, shown_lr

_LISTED = ("train_loss", "val_loss", "loss")  # beside the metric, in the table of runs


@dataclass(frozen=True)
class SweepReport:
    """The runs as they are compared; everything on the page follows from them. `plans`: printed plans by `plan_key`."""

    layout: Layout
    plans: Mapping[str, str]

    @cached_property
    def judged(self) -> tuple[Judged, ...]:
        """Every comparison with its verdicts."""
        return tuple(judge(self.layout, comparison) for comparison in self.layout.comparisons)

    @cached_property
    def axes(self) -> tuple[Along, ...]:
        """The comparisons along each axis together."""
        return tuple(along(self.layout, self.judged))

    @cached_property
    def ledger(self) -> Ledger:
        """What it cost."""
        return Ledger.of(self.layout)

    @cached_property
    def foretold(self) -> tuple[Foretold, ...]:
        """What the runs say of a larger size, where there are sizes enough."""
        return tuple(foretold(self.layout, self.judged))

    def drawings(self) -> list[Drawing]:
        """Every picture of the page."""
        return [drawing for part in self._pictures for drawing in part]

    def sections(self, draw: Callable[[Drawing], bytes] = lambda drawing: drawing.draw("png")) -> list[Section]:
        """The whole page in order."""
        parts = [
            self._answer(),
            *self._transfer(draw),
            *self._predictions(draw),
            *self._curves(draw),
            self._runs(),
            *self._checks(),
            *self._plans(),
        ]
        return [
            *parts,
            Section("What it cost", paragraphs=tuple(self.ledger.sentences()), tables=(self.ledger.table(),)),
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: verdicts of every comparison, statuses, cost."""
        return {
            "metric": self.layout.metric,
            "by": list(self.layout.by),
            "comparisons": [
                {
                    "axis": one.comparison.axis, "fixed": dict(one.comparison.fixed),
                    "verdicts": {label: verdict.to_dict() for label, verdict in one.verdicts.items()},
                    "no_verdict": dict(one.refused),
                }
                for one in self.judged
            ],
            "predictions": [
                {
                    "axis": one.judged.comparison.axis, "fixed": dict(one.judged.comparison.fixed), "target": one.target,
                    "laws": {label: outcome.to_dict() for label, outcome in one.outcomes.items()}, "no_law": dict(one.refused),
                }
                for one in self.foretold
            ],
            "runs": dict(Counter(run.status for run in self.layout.sweep.runs)),
            "cost": self.ledger.to_dict(),
        }  # fmt: skip

    @cached_property
    def _pictures(self) -> tuple[list[Drawing], ...]:
        """(valleys and drift of every comparison, laws, loss curves)."""
        transfer = [drawing for one in self.axes for drawing in (*valleys(one), *drift(one))]
        laws = [drawing for drawing in map(law, self.foretold) if drawing is not None]
        curves = [drawing for one in self.axes for drawing in best_curves(self.layout, one)]
        return transfer, laws, curves + all_curves(self.layout, self.axes[0])  # the first axis shows every run

    def _answer(self) -> Section:
        counts = Counter(run.status for run in self.layout.sweep.runs)
        said = joined([f"{count} {status}" for status, count in counts.most_common()])
        metric = METRICS.get(self.layout.metric, self.layout.metric)
        several = len(self.judged) > 1
        return Section(
            "Do the best hyperparameters transfer?",
            paragraphs=(
                f"{len(self.layout.sweep.runs)} runs: {said}. Judged by {metric}.",
            ),
            answers=tuple(answer for one in self.judged for answer in answers(one, several)),
        )  # fmt: skip

    def _transfer(self, draw: Callable[[Drawing], bytes]) -> list[Section]:
        parts = []
        for one in self.axes:
            if not one.verdicts:
                continue
            over = f" over {one.axis}" if len(self.axes) > 1 else ""
            pictures = tuple((draw(drawing), drawing.alt) for drawing in valleys(one))
            parts.append(Section(
                f"Loss against learning rate{over}",
                paragraphs=("Large dots with bars are the optima and their intervals (hollow: at the edge of the grid), crosses diverged runs, the dotted line "
                            "the smallest size's optimum. Panels of one row share the axis of losses; what is far above the valleys is cut.",),
                pictures=pictures,
            ))  # fmt: skip
            drawn = tuple((draw(drawing), drawing.alt) for drawing in drift(one))
            parts.append(
                Section(f"Drift and regret{over}", pictures=drawn, tables=(optima_table(one), regret_table(one)))
            )
        return parts

    def _predictions(self, draw: Callable[[Drawing], bytes]) -> list[Section]:
        parts = []
        for one in self.foretold:
            drawing = law(one)
            picture = None if drawing is None else draw(drawing)
            parts.append(sweep_section(one, picture, len(self.judged) > 1))
        return parts

    def _curves(self, draw: Callable[[Drawing], bytes]) -> list[Section]:
        if not self._pictures[2]:
            return []
        said = "First at the best learning rate of the grid, then at all of them: means over the seeds of the logged losses; crosses on the upper edge mark the step at which a run diverged."
        if len(self.axes[0].groups) > MOST_PICTURES:
            said += f" All learning rates are shown for {MOST_PICTURES} of {len(self.axes[0].groups)} groups."
        return [
            Section(
                "Loss curves", paragraphs=(said,), pictures=tuple((draw(one), one.alt) for one in self._pictures[2])
            )
        ]

    def _runs(self) -> Section:
        tables = (self._unfinished(), self._all_runs())
        return Section("Runs", tables=tuple(table for table in tables if table.rows))

    def _unfinished(self) -> Table:
        """Diverged, stopped and failed runs, those of one group and size together."""
        layout = self.layout
        groups: dict[tuple[Any, ...], list[Run]] = {}
        for label, runs in layout.labels.items():
            for run in sorted(runs, key=layout.size):
                if run.status != "finished":
                    reason = run.record["reason"] or "" if run.status != "diverged" else ""
                    groups.setdefault((run.status, label, layout.size(run), reason), []).append(run)
        rows = []
        for (status, label, size, reason), runs in sorted(groups.items(), key=lambda item: item[0][0]):
            if status == "diverged":
                reason = _divergence(runs)
            rates = sorted({run.fields.get(layout.lr or "") for run in runs if layout.lr}, key=_sortable)
            rows.append((status, label, *map(shown, size), ", ".join(map(shown_lr, rates)), str(len(runs)), reason))
        columns = ("", "", *layout.axes, "learning rates", "runs", "reason")
        return Table(columns, tuple(rows), "Runs that did not finish", frozenset((*layout.axes, "runs")))

    def _all_runs(self) -> Table:
        layout = self.layout
        metrics = [
            layout.metric,
            *(m for m in _LISTED if m != layout.metric and any(m in r.record["metrics"] for r in layout.sweep.runs)),
        ]
        given = [name for name in (layout.lr, layout.seed) if name]
        rows = []
        for label, runs in layout.labels.items():
            order = sorted(
                runs, key=lambda run: (layout.size(run), *(_sortable(run.fields.get(name)) for name in given))
            )
            for run in order:
                fields = [shown_lr(run.fields.get(n)) if n == layout.lr else shown(run.fields.get(n)) for n in given]
                numbers = [_loss(run.metric(name)) for name in metrics]
                took = "shared" if run.record["copied_from"] else clock(run.record["seconds"] or 0.0)
                rows.append((label, *map(shown, layout.size(run)), *fields, run.status, *numbers, took, run.record["reason"] or "", run.key[:8]))  # fmt: skip
        columns = ("", *layout.axes, *given, "status", *metrics, "run time", "reason", "key")
        right = frozenset((*layout.axes, *given, *metrics, "run time"))
        return Table(columns, tuple(rows), f"All {len(rows)} runs", right, folded=True)

    def _checks(self) -> list[Section]:
        parts = []
        notes = sorted(self.layout.sweep.notes.items(), key=lambda item: (item[0] != "check:sp", item[0]))
        for name, note in notes:
            if name.startswith("check:") and isinstance(note, Mapping) and "report" in note:
                recipe = name.removeprefix("check:")
                picture = base64.b64decode(note["picture"]) if note.get("picture") else None
                parts.append(check_section(note["report"], picture, f"Coordinate check: {TITLES.get(recipe, recipe)}"))
        return parts

    def _plans(self) -> list[Section]:
        found = {
            label: self.plans[plan_key(run)]
            for label, run in planned(self.layout).items()
            if plan_key(run) in self.plans
        }
        return [Section(f"Plan: {label}", fixed=text, folded=f"{label}: every tensor's ratios at the largest size, and the formula behind each number")
                for label, text in found.items()]  # fmt: skip

    def provenance(self) -> Provenance:
        """What the rows say of themselves; nothing of the machine that writes the page."""
        runs, layout = self.layout.sweep.runs, self.layout
        ends = sorted(_moment(str(run.record["ended"])) for run in runs)
        facts = [
            ("command", str(layout.sweep.notes.get("command", "unknown"))),
            ("mutransfer", _several([run.record["version"] for run in runs])),
            ("environment", _several([_environment(run) for run in runs])),
            ("repository", _several([run.record["git"] for run in runs])),
            ("data", _several([run.fields["data"] for run in runs if run.fields.get("data")])),
            ("metric", layout.metric),
            ("grouped by", ", ".join(layout.by)),
            ("runs ended", ends[0] if ends[0] == ends[-1] else f"from {ends[0]} to {ends[-1]}"),
        ]
        return Provenance(tuple((name, value) for name, value in facts if value))


def _divergence(runs: Sequence[Run]) -> str:
    steps = [int(step) for run in runs if (step := run.record["metrics"].get("diverged_at")) is not None]
    if not steps:
        return next((run.record["reason"] for run in runs if run.record["reason"]), "")
    low, high = min(steps), max(steps)
    return f"loss not finite at update {low}" + (f" to {high}" if high > low else "")


def _several(values: Sequence[Any]) -> str:
    """The value of all; or every value with how many runs it has."""
    counts = Counter(str(value) for value in values)
    if len(counts) <= 1:
        return next(iter(counts), "")
    return f"{len(counts)} different: " + "; ".join(
        f"{value} ({count} {'run' if count == 1 else 'runs'})" for value, count in counts.most_common()
    )


def _moment(text: str) -> str:
    """2026-01-31 12:05:10 UTC, from the ISO form of the store."""
    day, _, hour = text.replace("T", " ").partition(" ")
    return f"{day} {hour[:8]} UTC" if hour.endswith("+00:00") else text


def _environment(run: Run) -> str:
    return ", ".join(f"{name} {value}" for name, value in sorted(run.record["environment"].items()))


def _sortable(value: Any) -> tuple[int, float, str]:
    return (0, float(value), "") if isinstance(value, int | float) else (1, 0.0, str(value))


def _loss(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
