"""One self-contained HTML page: verdicts in words, pictures, tables, and where they come from."""

from mutransfer.report.html import Section, Table, render, write_page
from mutransfer.report.prediction import prediction_section
from mutransfer.report.provenance import Provenance
from mutransfer.report.sections import check_section, plan_section

__all__ = [
    "Provenance",
    "Section",
    "Table",
    "check_section",
    "plan_section",
    "prediction_section",
    "render",
    "write_page",
]
