"""`mutransfer plan`: the table of what must change from base to target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

from tyro.conf import Positional, arg

from mutransfer.errors import InputError


@dataclass(frozen=True)
class Plan:
    """What must change from base to target, tensor by tensor, with the formula behind each number.

    Examples:
      mutransfer plan gpt --base width=64 depth=2 --target width=512 depth=8 --recipe completep
      mutransfer plan package.module:make_model --base width=64 --target width=1024 --save plan.json
    """

    summary: ClassVar[str] = "what must change from base to target, tensor by tensor"

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """Your factory make_model(**sizes) -> nn.Module as package.module:name or file.py:name; or gpt, mlp, resnet."""
    base: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...")]
    """The sizes of the model that you tune, as the factory's arguments."""
    target: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...")]
    """The sizes of the model that you train."""
    fixed: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    """Arguments that are the same at both, such as head_size=16."""
    optimizer: Annotated[str, arg(metavar="NAME")] = "adamw"
    """sgd, adam, adamw, lion, muon, ..., or your own optimizer class as package.module:name."""
    recipe: Annotated[str, arg(metavar="NAME")] = "mup"
    """sp, mup, depth-mup or completep."""
    mode: Annotated[str, arg(metavar="NAME")] = "exact"
    """exact (the real fans) or asymptotic (exponents only, as papers print)."""
    placement: Annotated[str, arg(metavar="NAME")] = "absorbed"
    """absorbed (your forward is untouched) or multiplier (hooks carry the multipliers)."""
    fallback: Annotated[str, arg(metavar="NAME")] = "adamw"
    """The optimizer of everything but hidden matrices, where the main one takes only those."""
    axes: Annotated[tuple[str, ...], arg(metavar="PATTERN=AXES ...", help_behavior_hint="")] = ()
    """Axes of tensors whose meaning shapes cannot tell, such as 'experts.*=stack in out'."""
    roles: Annotated[tuple[str, ...], arg(metavar="PATTERN=ROLE ...", help_behavior_hint="")] = ()
    """Roles by name pattern, such as 'lm_head.weight=output'."""
    branch_out: Annotated[tuple[str, ...], arg(metavar="PATTERN ...", help_behavior_hint="")] = ()
    """Last modules of residual branches, where their names do not tell."""
    head_size: Annotated[tuple[int, int] | None, arg(metavar="BASE TARGET", help_behavior_hint="")] = None
    """The attention head sizes, where the model does not tell."""
    save: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the plan as JSON: mutransfer.Plan.load reads it."""
    json: bool = False
    """Print the plan as JSON."""

    def run(self) -> int:
        """Print (and save) the plan. Returns 0."""
        from mutransfer import plan
        from mutransfer.commands.builtin import MODELS, factory
        from mutransfer.commands.output import require_file, show_json
        from mutransfer.commands.user_code import find, find_function, pairs

        if self.save is not None:
            require_file(self.save, "--save")
        fixed = pairs(self.fixed, "--fixed")
        base, target = pairs(self.base, "--base"), pairs(self.target, "--target")
        for name in fixed:
            if name in base or name in target:
                raise InputError(f"--fixed {name}={fixed[name]!r} is also given by --base or --target: write it once")
        if self.model in MODELS:
            make = factory(self.model, fixed)
        else:
            make = find_function(self.model, "factory make_model(**sizes)", MODELS)
            base, target = {**fixed, **base}, {**fixed, **target}
        optimizer = find(self.optimizer, "optimizer class") if ":" in self.optimizer else self.optimizer
        made = plan(
            make, base=base, target=target, optimizer=optimizer, recipe=self.recipe, mode=self.mode,  # pyright: ignore[reportArgumentType] (checked by plan)
            placement=self.placement, fallback=self.fallback, axes=_patterns(self.axes, "--axes"),
            roles=_patterns(self.roles, "--roles"), branch_out=self.branch_out, head_size=self.head_size,
        )  # fmt: skip
        if self.save is not None:
            made.save(self.save)
        if self.json:
            show_json(made.to_dict())
        else:
            print(made)
        return 0


def _patterns(words: tuple[str, ...], option: str) -> dict[str, str] | None:
    values = {}
    for word in words:
        pattern, equals, text = word.rpartition("=")
        if not equals or not pattern or not text:
            raise InputError(f"{option} {word!r}: write pattern=value, such as {option} 'experts.*=stack in out'")
        values[pattern] = text
    return values or None
