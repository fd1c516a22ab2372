"""The published experiments that can be run by name, each in its own file, in two sizes."""

from mutransfer.experiments.claire import CLAIRE
from mutransfer.experiments.depth import DEPTH
from mutransfer.experiments.experiment import SIZES, Experiment
from mutransfer.experiments.images import IMAGES
from mutransfer.experiments.ladder import LADDER
from mutransfer.experiments.mu_scaling import MU_SCALING
from mutransfer.experiments.nanogpt import NANOGPT
from mutransfer.experiments.nanogpt_owt import NANOGPT_OWT
from mutransfer.experiments.prediction import PREDICTION
from mutransfer.experiments.tables import TABLES

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (LADDER, NANOGPT, NANOGPT_OWT, DEPTH, CLAIRE, MU_SCALING, PREDICTION, TABLES, IMAGES)
}

__all__ = ["EXPERIMENTS", "SIZES", "Experiment"]
