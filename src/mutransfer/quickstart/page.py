"""The quickstart's page: conclusion, transfer, the two checks, the plan, the settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mutransfer.quickstart.optimum import Optimum
from mutransfer.quickstart.setting import TITLES
from mutransfer.report import Section, Table, check_section, plan_section

if TYPE_CHECKING:
    from mutransfer.quickstart import Outcome


def sections(outcome: Outcome, checks: Mapping[str, Any], curves: Mapping[str, Any], picture: bytes) -> list[Section]:
    """Every part of the page, the answer first."""
    setting = outcome.setting
    verdict = {0: "HOLDS", 1: "DRIFTS", 3: "INCONCLUSIVE"}[outcome.exit_code]
    transfer = Section(
        "Does the learning rate transfer?",
        verdict=verdict,
        paragraphs=(
            outcome.conclusion(),
            *(f"{_capital(TITLES[name])}: {found.words()}." for name, found in outcome.transfers.items()),
            f"Each point is one run of {setting.steps} steps; μP's base is width {setting.base}, where both are the same model. "
            "One run a point is thin: differences of a per cent are noise.",
        ),
        pictures=((picture, "Training loss against log2 learning rate, one curve per width, SP beside μP"),),
        tables=(_optima(outcome), _losses(curves)),
    )
    parts = [transfer]
    for recipe, (report, drawn, _) in checks.items():
        parts.append(check_section(report, drawn, f"Coordinate check: {TITLES[recipe]}"))
    parts.append(plan_section(checks["mup"][2]))
    return parts


def _capital(text: str) -> str:
    return text[0].upper() + text[1:] if text[0] != "μ" else text


def _optima(outcome: Outcome) -> Table:
    rows = []
    for recipe, found in outcome.transfers.items():
        for best in found.optima:
            rows.append((TITLES[recipe], str(best.width), _where(best), f"{best.loss:.4f}", _regret(best)))
    columns = ("parametrization", "width", "best log2 LR", "loss there", "regret of the smallest width's best")
    return Table(
        columns,
        tuple(rows),
        "Optimum of every width, by a parabola through the three best points",
        frozenset(columns[1:]),
    )


def _where(best: Optimum) -> str:
    return f"{best.log2_lr:g}, edge of the grid" if best.edge else f"{best.log2_lr:.2f}"


def _regret(best: Optimum) -> str:
    return "diverged" if best.regret is None else f"{100 * best.regret:.2f} %"


def _losses(curves: Mapping[str, Any]) -> Table:
    grid = sorted({lr for widths in curves.values() for losses in widths.values() for lr in losses})
    rows = tuple(
        (TITLES[recipe], str(width), *(f"{losses[lr]:.3f}" if math.isfinite(losses[lr]) else "diverged" for lr in grid))
        for recipe, widths in curves.items()
        for width, losses in sorted(widths.items())
    )
    columns = ("parametrization", "width", *(f"2^{lr}" for lr in grid))
    return Table(columns, rows, "Training loss in nats, mean of the last 50 steps", frozenset(columns[1:]))
