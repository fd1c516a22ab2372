"""Muon for every matrix that a model stores: fused, stacked, convolutional, transposed, sharded; same shapes in one call."""

from mutransfer.muon.coefficients import polar_express
from mutransfer.muon.optimizer import Muon
from mutransfer.muon.polar import orthogonalize

__all__ = ["Muon", "orthogonalize", "polar_express"]
