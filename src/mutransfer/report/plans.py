"""The plans of runs' configs as they are printed. Apart from the rest, so that a process that makes only these starts fast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mutransfer.plans import Plan
    from mutransfer.train import RunConfig


def plan_tables(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Key → the plan of a run's config (`RunConfig.to_dict()`) as it is printed, or why it has none (its runs failed)."""
    from mutransfer.errors import InputError
    from mutransfer.train import RunConfig

    found = {}
    for key, values in configs.items():
        try:
            found[key] = str(plan_of(RunConfig.from_dict(values)))
        except InputError as error:
            found[key] = f"no plan: {error}"
    return found


def plan_of(config: RunConfig) -> Plan:
    """The plan under which the run of this config trains."""
    from mutransfer.build import plan

    return plan(
        config.make_model, base=config.base, target=config.target, optimizer=config.optimizer, recipe=config.recipe,
        mode=config.mode, placement=config.placement, **config.longer,
    )  # fmt: skip
