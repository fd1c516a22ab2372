"""Loss prediction: what a larger run will reach, from a table of smaller ones, with intervals that can be believed."""

from mutransfer.predict.forecast import LossLaw, Prediction, fit_loss
from mutransfer.predict.reading import read_points

__all__ = ["LossLaw", "Prediction", "fit_loss", "read_points"]
