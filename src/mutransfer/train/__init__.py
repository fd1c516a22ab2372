"""One training run from a frozen config, resumed exactly, with a diverged run as a result like any other."""

from mutransfer.train.checkpoint import load_checkpoint
from mutransfer.train.config import ModelConfig, RunConfig
from mutransfer.train.flops import flops_per_row
from mutransfer.train.loop import Run, load_run, train
from mutransfer.train.ranks import RankDied, Ranks, launch, resolve_device
from mutransfer.train.result import LogPoint, RunResult
from mutransfer.train.schedule import SCHEDULES, make_scheduler, multiplier
from mutransfer.train.task import Task

__all__ = [
    "SCHEDULES",
    "LogPoint",
    "ModelConfig",
    "RankDied",
    "Ranks",
    "Run",
    "RunConfig",
    "RunResult",
    "Task",
    "flops_per_row",
    "launch",
    "load_checkpoint",
    "load_run",
    "make_scheduler",
    "multiplier",
    "resolve_device",
    "train",
]
