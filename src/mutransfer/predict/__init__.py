"""Loss prediction: what a larger run will reach, from a table of smaller ones, with intervals that can be believed."""

from mutransfer.predict.budget import Budgets, plan_budget
from mutransfer.predict.curve import CurveLaw, fit_curve
from mutransfer.predict.forecast import LossLaw, Prediction, fit_loss
from mutransfer.predict.frontier import Frontier, Optimum, frontier
from mutransfer.predict.isoflop import IsoFlop, isoflop
from mutransfer.predict.optimum import OptimumLaw, fit_optimum
from mutransfer.predict.planning import NextRuns, next_runs
from mutransfer.predict.reading import read_points
from mutransfer.predict.target import Reaching, size_for

__all__ = [
    "Budgets",
    "CurveLaw",
    "Frontier",
    "IsoFlop",
    "LossLaw",
    "NextRuns",
    "Optimum",
    "OptimumLaw",
    "Prediction",
    "Reaching",
    "fit_curve",
    "fit_loss",
    "fit_optimum",
    "frontier",
    "isoflop",
    "next_runs",
    "plan_budget",
    "read_points",
    "size_for",
]
