"""Results as sections of a page."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mutransfer.blocks import collapse
from mutransfer.report.html import Section, Table

_MARK = {"fail": "breaks the rule", "unclear": "cannot be told", "warn": "warning", "note": "note"}


def check_section(report: Mapping[str, Any], picture: bytes | None, title: str) -> Section:
    """A coordinate check (`CheckReport.to_dict()`): the verdict in words, its findings with advice, picture, slopes."""
    head = str(report["words"]).splitlines()[0]
    grid = "lines" in report
    found = (_findings(report), _lines(report), _grid(report)) if grid else (_findings(report), _slopes(report))
    tables = [table for table in found if table.rows]
    alt = f"Size of every module's output against {report['axis']}, by training step"
    if grid:
        alt = f"Sizes over the grid of {report['axis']} as ratios to the smallest model, and the exponents of the joint fit"
    return Section(
        title,
        verdict=str(report["verdict"]),
        paragraphs=(re.sub(r"^[A-Z]+:? ", "", head).capitalize() + ".", _MEANING[str(report["verdict"])]),
        pictures=() if picture is None else ((picture, alt),),
        tables=tuple(tables),
    )


_MEANING = {
    "PASS": "Hyperparameters tuned at the smallest size can be used at the largest, as far as sizes of activations and updates decide it.",
    "FAIL": "Hyperparameters will not transfer over these sizes: the tensors below are at fault, the first one first.",
    "INCONCLUSIVE": "This run cannot tell. Nothing was found that breaks a rule, but the evidence is not enough for a PASS.",
}


def plan_section(table: str) -> Section:
    """The plan's own printed table, folded away."""
    return Section("Plan", fixed=table, folded="every tensor's ratios, and the formula behind each number")


def _findings(report: Mapping[str, Any]) -> Table:
    """One row per kind of finding: the same finding in several blocks is folded into one row."""
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for found in report["findings"]:
        what = f"{found['what'].rstrip(',')}, {found['where']}" if found.get("where") else found["what"]
        key = (collapse(found["name"]), found["severity"], found["rule"], what, found.get("axis") or report["axis"])
        groups.setdefault(key, []).append(found)
    rows = []
    for (folded, severity, rule, what, axis), same in groups.items():
        name = f"{folded}  ×{len(same)}" if len(same) > 1 else same[0]["name"]
        slopes = [found["slope"] for found in same if found["slope"] is not None]
        shown = f"{axis}^{min(slopes):+.2f}" if slopes else ""
        if slopes and f"{min(slopes):.2f}" != f"{max(slopes):.2f}":
            shown += f" … {max(slopes):+.2f}"
        expected = f"{axis}^{same[0]['expected']:+.2g}"
        if not slopes or all(slope == same[0]["expected"] for slope in slopes):
            shown = expected = ""  # a remark, not a measurement
        rows.append((name, _MARK.get(severity, severity), rule, what, shown, expected, same[0]["advice"]))
    columns = ("tensor", "finding", "rule", "what", "measured", "expected", "advice")
    return Table(columns, tuple(rows), "Findings, most upstream first")


def _lines(report: Mapping[str, Any]) -> Table:
    """One row per line of a grid."""
    rows = []
    for line in report["lines"]:
        at = ", ".join(f"{axis} {value:g}" for axis, value in line["at"].items())
        sizes = ", ".join(f"{value:g}" for value in line["values"])
        said = ", ".join(line["culprits"][:3]) or line["why"]
        rows.append((f"{line['axis']} {sizes}", at, line["verdict"], line["alone"], said))
    columns = ("line", "at", "verdict", "by itself", "first tensors, or what is missing")
    return Table(columns, tuple(rows), "Every line of the grid, by itself and weighed against all runs")


def _grid(report: Mapping[str, Any]) -> Table:
    """The joint fit of every module: exponents of both sizes, and by how much one changes with the other."""
    first, second = report["axes"]
    last = max((row["step"] for row in report["table"]), default=0)
    names = (first, second, "interaction")
    rows = []
    for row in report["table"]:
        at_start, at_end = row["kind"] == "size" and row["step"] == 0, row["kind"] == "change" and row["step"] == last
        if not row["name"] or not (at_start or at_end) or row["interaction"] is None:
            continue
        what = "size at the start" if at_start else f"change after {last} steps"
        numbers = (f"{row[n]:+.2f} [{_signed(row[f'{n}_low'])}, {_signed(row[f'{n}_high'])}]" for n in names)
        rows.append((row["name"], what, *numbers))
    columns = ("module", "root mean square", f"exponent of {first}", f"exponent of {second}", "interaction")
    caption = f"Joint fit: log size = a + α log {first} + β log {second} + γ log {first} · log {second} (interaction)"
    return Table(columns, tuple(rows), caption, frozenset(columns[2:]), folded=True)


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.2f}"


def _slopes(report: Mapping[str, Any]) -> Table:
    """Size at the start and change at the last step of every module, with their slopes."""
    axis, values = report["axis"], report["values"]
    last = max((row["step"] for row in report["table"]), default=0)
    rows = []
    for row in report["table"]:
        at_start, at_end = row["kind"] == "size" and row["step"] == 0, row["kind"] == "change" and row["step"] == last
        if not row["name"] or not (at_start or at_end):
            continue
        what = "size at the start" if at_start else f"change after {last} steps"
        numbers = tuple("–" if value is None else f"{value:.3g}" for value in row["values"])
        interval = "–" if row["slope"] is None else f"[{_signed(row['low'])}, {_signed(row['high'])}]"
        rows.append((row["name"], what, *numbers, _signed(row["slope"]), interval))
    sizes = tuple(f"{axis} {value:g}" for value in values)
    columns = ("module", "root mean square", *sizes, "slope", "interval")
    caption = f"Size of every module at every {axis}, and the slope of log size against log {axis}"
    return Table(columns, tuple(rows), caption, frozenset((*sizes, "slope")), folded=True)
