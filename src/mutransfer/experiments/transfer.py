"""Runs any experiment that asks whether the learning rate transfers: sweep, a verdict per variant and metric, pictures, page."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mutransfer.errors import InputError
from mutransfer.experiments.experiment import Experiment
from mutransfer.experiments.grid import Grid
from mutransfer.rows.columns import knob
from mutransfer.verdict.words import span

if TYPE_CHECKING:
    from mutransfer.report import Section, Table
    from mutransfer.sweep import Options
    from mutransfer.verdict import Verdict

EXIT = {"HOLDS": 0, "INCONCLUSIVE": 3, "DRIFTS": 1}
"""From good to bad: the experiment's exit code is that of the worst of its judged variants."""

Picture = tuple[str, bytes, str]
"""Name of the file (without .png), PNG, description."""


@dataclass(frozen=True)
class Outcome:
    """What came out: verdicts by metric and variant, and why there is none where the runs cannot be judged."""

    grid: Grid
    verdicts: Mapping[str, Mapping[str, Verdict]]
    refused: Mapping[tuple[str, str], str]

    @property
    def main(self) -> Mapping[str, Verdict]:
        """The verdicts on the first metric, by variant."""
        return self.verdicts[self.grid.metrics[0]]

    @property
    def exit_code(self) -> int:
        """0 when every judged variant holds, 1 when one drifts, else 3."""
        codes = [EXIT[self.main[name].status] if name in self.main else 3 for name in self.grid.judged]
        return max(codes, key=(0, 3, 1).index)

    def status(self, metric: str, variant: str) -> str:
        """The verdict's status, "–" where there is none."""
        found = self.verdicts[metric].get(variant)
        return "–" if found is None else found.status


def experiment(
    name: str,
    about: str,
    source: str,
    config: Callable[[str], Grid],
    published: str,
    draw: Callable[[Outcome], list[Picture]] | None = None,
) -> Experiment:
    """An experiment that is one grid in two sizes. `published`: what was reported; `draw`: its own pictures, beside the usual."""
    return Experiment(name, about, source, partial(run, name, about, config, published, draw))


def run(
    name: str,
    about: str,
    config: Callable[[str], Grid],
    published: str,
    draw: Callable[[Outcome], list[Picture]] | None,
    size: str,
    out: Path,
    options: Options,
) -> dict[str, Any]:
    """Make what is missing of the grid in `out`; `experiment.html`, `experiment.json` and pictures there. Runs once made are kept."""
    from mutransfer.commands.output import command_line, finite
    from mutransfer.files import write_whole
    from mutransfer.sweep import Store, Wanted, sweep

    grid = config(size)
    wanted = {v.name: [Wanted.of(c) for c in grid.configs(v)] for v in grid.variants}
    records = sweep([run for runs in wanted.values() for run in runs], out, options, label=name)
    by_key = {record["key"]: record for record in records}
    with Store(out) as store:
        store.note("command", command_line())
        store.note("experiment", {"name": name, "size": size, "variants": {v: [r.key for r in runs] for v, runs in wanted.items()}})  # fmt: skip
    found = judge(grid, {name: [by_key[run.key] for run in runs] for name, runs in wanted.items()})
    pictures = _pictures(found) + (draw(found) if draw is not None else [])
    for file, data, _ in pictures:
        write_whole(out / f"{file}.png", data)
    outcome = {
        "exit_code": found.exit_code, "words": words(found), "experiment": name, "size": size, "grid": grid.to_dict(),
        "verdicts": {m: {v: verdict.to_dict() for v, verdict in made.items()} for m, made in found.verdicts.items()},
        "refused": [{"metric": m, "variant": v, "reason": text} for (m, v), text in found.refused.items()],
    }  # fmt: skip
    write_whole(out / "experiment.json", json.dumps(finite(outcome), indent=1, ensure_ascii=False))
    _page(out, about, size, found, published, pictures)
    return outcome


def judge(grid: Grid, records: Mapping[str, list[Any]]) -> Outcome:
    """A verdict per metric and variant on the records of each variant's runs."""
    from mutransfer.sweep.store import flat_row
    from mutransfer.verdict import transfer_verdict

    verdicts: dict[str, dict[str, Verdict]] = {}
    refused = {}
    for metric in grid.metrics:
        verdicts[metric] = {}
        for variant, ended in records.items():
            # only what decides: what a variant changes along with the learning rate (its decay) is no other variant
            names = (grid.size, grid.knob, "seed", "status", metric)
            rows = [{name: row[name] for name in names} for row in map(flat_row, ended)]
            try:
                verdicts[metric][variant] = transfer_verdict(
                    rows, size=grid.size, lr=grid.knob, loss=metric, seed="seed"
                )
            except InputError as error:
                refused[metric, variant] = str(error)
    return Outcome(grid, verdicts, refused)


def words(found: Outcome) -> str:
    """One line per variant: status, drift, what the base's learning rate costs at the largest size, what size gains."""
    grid, wide = found.grid, max(len(v.name) for v in found.grid.variants) + 2
    lines = [
        f"{grid.size} {grid.sizes[0]} … {grid.sizes[-1]}, {grid.metrics[0]}; drift in octaves per doubling, cost of "
        f"the {knob(grid.knob)} of {grid.size} {grid.sizes[0]} at {grid.sizes[-1]}, gain from {grid.sizes[0]} to {grid.sizes[-1]}"
    ]
    lines += [name.ljust(wide) + "  ".join(cells) for name, *cells in summary(found, grid.metrics[0])]
    return "\n".join(lines)


def summary(found: Outcome, metric: str) -> list[tuple[str, ...]]:
    """Per variant: name, status, drift, what the base's value costs at the largest size, what size gains."""
    rows = []
    for variant in found.grid.variants:
        verdict = found.verdicts[metric].get(variant.name)
        if verdict is None:
            rows.append((variant.name, "–", found.refused[metric, variant.name], "", ""))
            continue
        drift, cost, gain = verdict.drift, verdict.regret, verdict.gain.relative
        rows.append((
            variant.name, verdict.status, f"{drift.value:+.2f} {span(drift.low, drift.high, sign=False)}", _cost(cost.value, cost.low, cost.high),
            f"{100 * gain.value:+.2f} % {span(100 * gain.low, 100 * gain.high, sign=False)}",
        ))  # fmt: skip
    return rows


def _cost(value: float, low: float, high: float) -> str:
    if math.isinf(value):
        return "diverges"
    return f"{100 * value:.2f} % {span(100 * low, 100 * high, sign=False)}"


def optima_table(found: Outcome, metric: str) -> Table:
    """The fitted optimum and its loss at every size; ⟂ where it lies at the edge of the grid."""
    from mutransfer.report import Table

    grid = found.grid
    names = tuple(f"{grid.size} {size}" for size in grid.sizes)
    rows = []
    for variant, verdict in found.verdicts[metric].items():
        best = {round(o.size): o for o in verdict.optima}
        cells = []
        for size in grid.sizes:
            o = best.get(size)
            edge = f" ({o.edge} edge)" if o is not None and o.edge else ""
            cells.append("–" if o is None else f"{o.log2_lr.value:.2f}{edge}, {o.loss.value:.4f}")
        rows.append((variant, *cells))
    return Table(("variant", *names), tuple(rows), f"Best log2 {knob(grid.knob)} and {metric} there", frozenset(names))


def _pictures(found: Outcome) -> list[Picture]:
    """Loss against learning rate, four variants to a picture; where the optimum goes; what size gains."""
    from mutransfer.experiments.figures import draw_best
    from mutransfer.verdict.figure import draw_curves, draw_drift

    verdicts, pictures = list(found.main.items()), []
    if not verdicts:
        return []
    size = found.grid.size
    for i in range(0, len(verdicts), 4):
        file = "curves" if len(verdicts) <= 4 else f"curves-{i // 4 + 1}"
        text = f"Loss against log2 learning rate, a curve per {size}, one panel per variant"
        pictures.append((file, draw_curves(dict(verdicts[i : i + 4])), text))
    pictures.append(("drift", draw_drift(dict(verdicts)), f"log2 of the best learning rate against {size}"))
    pictures.append(("best", draw_best(dict(verdicts)), f"Loss at the best learning rate against {size}"))
    return pictures


def _page(out: Path, about: str, size: str, found: Outcome, published: str, pictures: list[Picture]) -> None:
    from mutransfer.commands.output import command_line
    from mutransfer.report import Provenance, Section, Table, write_page

    grid = found.grid
    columns = ("variant", "verdict", "octaves per doubling", f"cost at {grid.size} {grid.sizes[-1]}", "gain with size")
    tables = [Table(columns, tuple(summary(found, metric)), f"By {metric}") for metric in grid.metrics]
    status = {0: "HOLDS", 1: "DRIFTS", 3: "INCONCLUSIVE"}[found.exit_code]
    judged = ", ".join(grid.judged)
    sections = [
        Section(
            f"Does the best learning rate transfer over {grid.size}?",
            verdict=status,
            paragraphs=(f"The verdict is that of: {judged}.", f"Published: {published}"),
            pictures=tuple((data, text) for _, data, text in pictures),
            tables=(*tables, *(optima_table(found, metric) for metric in grid.metrics)),
        ),
        *_verdicts(found),
        Section("The grid", fixed=json.dumps(grid.to_dict(), indent=1, ensure_ascii=False), folded="every field of it"),
    ]
    facts = Provenance.now(command_line(), data=str(grid.run["data"]), seeds=", ".join(map(str, grid.seeds)))
    write_page(out / "experiment.html", f"{about[0].upper()}{about[1:]} ({size})", sections, facts)


def _verdicts(found: Outcome) -> list[Section]:
    from mutransfer.report import Section

    return [
        Section(name, verdict=verdict.status, fixed=verdict.words(), folded=f"the verdict by {found.grid.metrics[0]} in words")
        for name, verdict in found.main.items()
    ]  # fmt: skip
