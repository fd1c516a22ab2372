"""The probe as a printed table: question, answer, worst misfit, agreement, evidence; then the line to write, or the reasons."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from mutransfer.probe.probe import Probe


def render(probe: Probe, width: int = 150) -> str:
    """The whole probe as text."""
    table = Table(title=f"{probe.name}, measured in {probe.dtype}", title_justify="left")
    for column in ("question", "answer", "worst misfit", "agree", "evidence"):
        table.add_column(column, overflow="fold")
    for f in probe.findings:
        counted = f"{f.agreeing}/{f.conditions}" if f.conditions else "–"
        worst = f"{f.misfit:.2g} (≤ {f.allowed:g})" if f.conditions else "–"
        table.add_row(f.name, ("✗ " if f.reason else "") + f.value, worst, counted, f.evidence)
    console = Console(width=width, no_color=True, highlight=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(table, markup=False)
    text = capture.get().rstrip()
    if not probe.reliable:
        lines = [f"{text}\nNo facts: no rule can be given for {probe.name}, because"]
        return "\n".join([*lines, *(f"  · {reason}" for reason in probe.reasons)])
    share = probe.confidence
    agreed = (
        "All conditions agree." if share == 1 else f"At every question {share:.0%} of the conditions agree or more."
    )
    if probe.declared is None:
        return f"{text}\n{agreed} To declare it:\n{probe.line}"
    known = f"declared as {probe.declared.name!r}"
    if not probe.differences:
        return f"{text}\n{agreed} It is {known}: the same facts."
    return (
        f"{text}\n{agreed} It is {known}, and differs:\n"
        + "\n".join(f"  · {d}" for d in probe.differences)
        + ("\nTo use what was measured: mt.plan(…, optimizer=probe.facts)")
    )
