"""Sweeps: grids and searches of runs, kept as rows of a store, made by workers here or on a cluster, each of them once."""

from mutransfer.sweep.grid import grid_configs
from mutransfer.sweep.store import Store, read_rows
from mutransfer.sweep.sweep import Options, sweep
from mutransfer.sweep.wanted import Call, Wanted

__all__ = ["Call", "Options", "Store", "Wanted", "grid_configs", "read_rows", "sweep"]
