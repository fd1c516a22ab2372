"""mutransfer: tune a small model, train a big one. The public names; each lives in the file it is imported from."""

from mutransfer import testing as testing
from mutransfer.build import plan as plan
from mutransfer.check import CheckReport as CheckReport
from mutransfer.check import coord_check as coord_check
from mutransfer.errors import InputError as InputError
from mutransfer.optimizers import OptimizerFacts as OptimizerFacts
from mutransfer.optimizers import facts_for as facts_for
from mutransfer.optimizers import register_optimizer as register_optimizer
from mutransfer.plan import Plan as Plan
from mutransfer.plan import PlanError as PlanError
from mutransfer.recipes import RECIPES as RECIPES

__version__ = "0.1.0"
