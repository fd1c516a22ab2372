"""What optimizers declare about their raw step, and the classes that run them.

`facts.py` says what must be declared, `registry.py` who declares what, `classes.py` which class runs it and how packages differ.
"""

from mutransfer.optimizers.classes import optimizer_class as optimizer_class
from mutransfer.optimizers.facts import GRADIENT as GRADIENT
from mutransfer.optimizers.facts import SQUARED_NORMS as SQUARED_NORMS
from mutransfer.optimizers.facts import OptimizerFacts as OptimizerFacts
from mutransfer.optimizers.registry import REGISTRY as REGISTRY
from mutransfer.optimizers.registry import facts_for as facts_for
from mutransfer.optimizers.registry import register_optimizer as register_optimizer
