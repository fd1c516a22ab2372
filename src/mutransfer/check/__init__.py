"""The coordinate check: is this model, with this optimizer and this code, really scale-invariant?"""

from mutransfer.check.coordinate import coord_check
from mutransfer.check.findings import Finding
from mutransfer.check.grid_report import GridReport
from mutransfer.check.report import CheckReport

__all__ = ["CheckReport", "Finding", "GridReport", "coord_check"]
