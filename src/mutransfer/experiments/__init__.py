"""The published experiments that can be run by name, each in its own file, in two sizes."""

from mutransfer.experiments.experiment import SIZES, Experiment
from mutransfer.experiments.ladder import LADDER

EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in (LADDER,)}

__all__ = ["EXPERIMENTS", "SIZES", "Experiment"]
