"""The coordinate check as one line in the user's own test suite."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from mutransfer.check import CheckReport, coord_check


def assert_scale_invariant(
    build: Callable[[Any], Any],
    sizes: Iterable[Any],
    batches: Any,
    loss: Callable[[Any, Any], Any] | None = None,
    **options: Any,
) -> CheckReport:
    """Raise AssertionError, with the report's words, unless `coord_check` of the same arguments (sizes of one axis or a grid) says PASS."""
    report = coord_check(build, sizes, batches, loss, **options)
    if not report.ok:
        raise AssertionError(report.words())
    return report
