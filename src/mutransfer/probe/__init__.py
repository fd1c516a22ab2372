"""Probing an optimizer that nobody has declared: its facts measured on synthetic gradients, or the reasons why it has none."""

from mutransfer.probe.finding import Finding as Finding
from mutransfer.probe.probe import Probe as Probe
from mutransfer.probe.probe import probe_optimizer as probe_optimizer
