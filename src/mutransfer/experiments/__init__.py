"""The published experiments that can be run by name, each in its own file, in two sizes."""

from mutransfer.experiments.claire import CLAIRE
from mutransfer.experiments.depth import DEPTH
from mutransfer.experiments.depth_check import DEPTH_CHECK
from mutransfer.experiments.experiment import SIZES, Experiment
from mutransfer.experiments.growing_compute import COMPUTE
from mutransfer.experiments.growing_exactness import EXACTNESS
from mutransfer.experiments.growing_transfer import TRANSFER
from mutransfer.experiments.images import IMAGES
from mutransfer.experiments.ladder import LADDER
from mutransfer.experiments.linearisation import LINEARISATION
from mutransfer.experiments.mu_scaling import MU_SCALING
from mutransfer.experiments.nanogpt import NANOGPT
from mutransfer.experiments.nanogpt_owt import NANOGPT_OWT
from mutransfer.experiments.prediction import PREDICTION
from mutransfer.experiments.sparsity import SPARSITY
from mutransfer.experiments.spectral import SPECTRAL_DEPTH, SPECTRAL_WIDTH
from mutransfer.experiments.spectral_checks import SPECTRAL_CHECKS
from mutransfer.experiments.tables import TABLES

EXPERIMENTS: dict[str, Experiment] = {
    experiment.name: experiment
    for experiment in (
        LADDER, DEPTH_CHECK, SPARSITY, LINEARISATION, NANOGPT, NANOGPT_OWT, DEPTH, CLAIRE, SPECTRAL_CHECKS, SPECTRAL_WIDTH, SPECTRAL_DEPTH,
        MU_SCALING, PREDICTION, TABLES, IMAGES, EXACTNESS, TRANSFER, COMPUTE,
    )
}  # fmt: skip

__all__ = ["EXPERIMENTS", "SIZES", "Experiment"]
