"""mutransfer: tune a small model, train a big one. The public names; each lives in the file it is imported from.

A name is loaded when it is first used: what needs no torch (a verdict on a table of runs, `--help`) does not wait for it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from mutransfer.errors import InputError as InputError

if TYPE_CHECKING:
    from mutransfer import testing as testing
    from mutransfer.build import plan as plan
    from mutransfer.check import CheckReport as CheckReport
    from mutransfer.check import GridReport as GridReport
    from mutransfer.check import coord_check as coord_check
    from mutransfer.evaluate import evaluate_text as evaluate_text
    from mutransfer.growth.grow import grow as grow
    from mutransfer.growth.noise import Noise as Noise
    from mutransfer.growth.tensors import GrowPlan as GrowPlan
    from mutransfer.growth.verify import GrowthError as GrowthError
    from mutransfer.growth.verify import verify_growth as verify_growth
    from mutransfer.optimizers import OptimizerFacts as OptimizerFacts
    from mutransfer.optimizers import facts_for as facts_for
    from mutransfer.optimizers import register_optimizer as register_optimizer
    from mutransfer.plans import Plan as Plan
    from mutransfer.plans import PlanError as PlanError
    from mutransfer.predict import LossLaw as LossLaw
    from mutransfer.predict import Prediction as Prediction
    from mutransfer.predict import fit_curve as fit_curve
    from mutransfer.predict import fit_loss as fit_loss
    from mutransfer.predict import fit_optimum as fit_optimum
    from mutransfer.probe import Probe as Probe
    from mutransfer.probe import probe_optimizer as probe_optimizer
    from mutransfer.recipes import RECIPES as RECIPES
    from mutransfer.recipes import Change as Change
    from mutransfer.recipes import Recipe as Recipe
    from mutransfer.verdict import Verdict as Verdict
    from mutransfer.verdict import transfer_verdict as transfer_verdict
    from mutransfer.verdict import transfer_verdicts as transfer_verdicts

__version__ = "0.1.0"

_HOME = {
    "plan": "build",
    "Plan": "plans",
    "PlanError": "plans",
    "OptimizerFacts": "optimizers",
    "facts_for": "optimizers",
    "register_optimizer": "optimizers",
    "probe_optimizer": "probe",
    "Probe": "probe",
    "RECIPES": "recipes",
    "Recipe": "recipes",
    "Change": "recipes",
    "coord_check": "check",
    "CheckReport": "check",
    "GridReport": "check",
    "evaluate_text": "evaluate",
    "grow": "growth.grow",
    "GrowPlan": "growth.tensors",
    "GrowthError": "growth.verify",
    "verify_growth": "growth.verify",
    "Noise": "growth.noise",
    "fit_curve": "predict",
    "fit_loss": "predict",
    "fit_optimum": "predict",
    "LossLaw": "predict",
    "Prediction": "predict",
    "transfer_verdict": "verdict",
    "transfer_verdicts": "verdict",
    "Verdict": "verdict",
}
_MODULES = ("testing",)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f"mutransfer.{_HOME[name]}"), name)
    elif name in _MODULES:
        value = import_module(f"mutransfer.{name}")
    else:
        raise AttributeError(f"module 'mutransfer' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME, *_MODULES})
