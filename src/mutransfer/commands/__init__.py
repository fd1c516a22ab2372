"""The commands: one frozen dataclass each, whose fields are its arguments and whose `run` returns the exit code.

Nothing heavy is imported before a command runs: help must be instant.
"""

from typing import Annotated

from tyro.conf import subcommand

from mutransfer.commands.budget import Budget
from mutransfer.commands.check import Check
from mutransfer.commands.curve import Curve
from mutransfer.commands.data import Data, List, Prepare
from mutransfer.commands.evaluate import Evaluate
from mutransfer.commands.experiments import Experiments
from mutransfer.commands.export import Export
from mutransfer.commands.generate import Generate
from mutransfer.commands.grow import Grow
from mutransfer.commands.optimum import Optimum
from mutransfer.commands.plan import Plan
from mutransfer.commands.predict import Predict
from mutransfer.commands.probe import Probe
from mutransfer.commands.quickstart import Quickstart
from mutransfer.commands.recipes import Recipes
from mutransfer.commands.report import Report
from mutransfer.commands.sweep import Sweep
from mutransfer.commands.train import Train
from mutransfer.commands.verdict import Verdict

COMMANDS = {
    "quickstart": Quickstart,
    "plan": Plan,
    "recipes": Recipes,
    "probe": Probe,
    "check": Check,
    "train": Train,
    "sweep": Sweep,
    "export": Export,
    "verdict": Verdict,
    "grow": Grow,
    "predict": Predict,
    "curve": Curve,
    "optimum": Optimum,
    "report": Report,
    "budget": Budget,
    "evaluate": Evaluate,
    "generate": Generate,
    "data": Data,
    "data list": List,
    "data prepare": Prepare,
    "experiments": Experiments,
}
Command = (
    Annotated[Quickstart, subcommand("quickstart", description=Quickstart.summary)]
    | Annotated[Plan, subcommand("plan", description=Plan.summary)]
    | Annotated[Recipes, subcommand("recipes", description=Recipes.summary)]
    | Annotated[Probe, subcommand("probe", description=Probe.summary)]
    | Annotated[Check, subcommand("check", description=Check.summary)]
    | Annotated[Train, subcommand("train", description=Train.summary)]
    | Annotated[Sweep, subcommand("sweep", description=Sweep.summary)]
    | Annotated[Export, subcommand("export", description=Export.summary)]
    | Annotated[Verdict, subcommand("verdict", description=Verdict.summary)]
    | Annotated[Grow, subcommand("grow", description=Grow.summary)]
    | Annotated[Predict, subcommand("predict", description=Predict.summary)]
    | Annotated[Curve, subcommand("curve", description=Curve.summary)]
    | Annotated[Optimum, subcommand("optimum", description=Optimum.summary)]
    | Annotated[Report, subcommand("report", description=Report.summary)]
    | Annotated[Budget, subcommand("budget", description=Budget.summary)]
    | Annotated[Evaluate, subcommand("evaluate", description=Evaluate.summary)]
    | Annotated[Generate, subcommand("generate", description=Generate.summary)]
    | Annotated[Data, subcommand("data", description=Data.summary)]
    | Annotated[Experiments, subcommand("experiments", description=Experiments.summary)]
)
