"""`mutransfer plan`: the table of what must change from base to target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

from tyro.conf import Positional, arg

from mutransfer.errors import InputError


@dataclass(frozen=True)
class Plan:
    """What must change from base to target, tensor by tensor, with the formula behind each number.

    Examples:
      mutransfer plan gpt --base width=64 depth=2 --target width=512 depth=8 --recipe completep
      mutransfer plan package.module:make_model --base width=64 --target width=1024 --save plan.json
      mutransfer plan gpt --base width=64 --target width=512 --batch 256 2048 --tokens 1e9 2e10 --duration completed-p
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
    optimizer: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """sgd, adam, adamw, lion, muon, ..., or your own optimizer class as package.module:name; else the recipe's, or adamw."""
    recipe: Annotated[str, arg(metavar="NAME")] = "mup"
    """sp, mup, depth-mup, completep, or another: see mutransfer recipes."""
    mode: Annotated[str, arg(metavar="NAME")] = "exact"
    """exact (the real fans) or asymptotic (exponents only, as papers print)."""
    placement: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """absorbed (your forward is untouched), multiplier (hooks carry the multipliers) or unit (every weight has std 1)."""
    density: Annotated[float | None, arg(metavar="FRACTION", help_behavior_hint="")] = None
    """Keep this fraction of every hidden matrix: static random sparsity."""
    fallback: Annotated[str, arg(metavar="NAME")] = "adamw"
    """The optimizer of everything but hidden matrices, where the main one takes only those."""
    split: Annotated[tuple[str, ...], arg(metavar="PLACE=NAME ...", help_behavior_hint="")] = ()
    """Instead of --optimizer: one per place (input, hidden, output, vector) or name pattern, such as hidden=muon-kimi '*=adamw'."""
    fused: Annotated[tuple[str, ...], arg(metavar="PATTERN=SIZES ...", help_behavior_hint="")] = ()
    """How many matrices a tensor holds along its fan-out, such as '*.qkv.weight=3', or their relative sizes, '*.qkv.weight=4,1,1'."""
    axes: Annotated[tuple[str, ...], arg(metavar="PATTERN=AXES ...", help_behavior_hint="")] = ()
    """Axes of tensors whose meaning shapes cannot tell, such as 'experts.*=stack in out'."""
    roles: Annotated[tuple[str, ...], arg(metavar="PATTERN=ROLE ...", help_behavior_hint="")] = ()
    """Roles by name pattern, such as 'lm_head.weight=output'."""
    branch_out: Annotated[tuple[str, ...], arg(metavar="PATTERN ...", help_behavior_hint="")] = ()
    """Last modules of residual branches, where their names do not tell."""
    head_size: Annotated[tuple[int, int] | None, arg(metavar="BASE TARGET", help_behavior_hint="")] = None
    """The attention head sizes, where the model does not tell."""
    batch: Annotated[tuple[float, float] | None, arg(metavar="BASE TARGET", help_behavior_hint="")] = None
    """Batch sizes, where --duration follows them."""
    tokens: Annotated[tuple[float, float] | None, arg(metavar="BASE TARGET", help_behavior_hint="")] = None
    """Tokens of the whole run, where --duration follows them."""
    steps: Annotated[tuple[float, float] | None, arg(metavar="BASE TARGET", help_behavior_hint="")] = None
    """Steps of the whole run, instead of --tokens."""
    duration: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Change lr, betas, eps and decay for batch and length too: completed-p, sde or ema. Uncertain: published rules conflict."""
    save: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the plan as JSON: mutransfer.Plan.load reads it."""
    json: bool = False
    """Print the plan as JSON."""

    def run(self) -> int:
        """Print (and save) the plan. Returns 0."""
        from mutransfer import plan
        from mutransfer.commands.builtin import MODELS, factory
        from mutransfer.commands.output import require_file, show_json
        from mutransfer.commands.user_code import find_function, pairs

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
        optimizer: Any = self.optimizer
        if self.split:
            if optimizer is not None:
                raise InputError(f"--split and --optimizer {optimizer}: write one of them")
            optimizer = {key: _optimizer(name) for key, name in (patterns(self.split, "--split") or {}).items()}
        elif optimizer is not None:
            optimizer = _optimizer(optimizer)
        made = plan(
            make, base=base, target=target, optimizer=optimizer, recipe=self.recipe, mode=self.mode,  # pyright: ignore[reportArgumentType] (checked by plan)
            placement=self.placement, fallback=self.fallback, axes=patterns(self.axes, "--axes"),
            roles=patterns(self.roles, "--roles"), branch_out=self.branch_out, head_size=self.head_size,
            fused=_sizes(self.fused),
            density=self.density, batch=self.batch, tokens=self.tokens, steps=self.steps, duration=self.duration,
        )  # fmt: skip
        if self.save is not None:
            made.save(self.save)
        if self.json:
            show_json(made.to_dict())
        else:
            print(made)
        return 0


def patterns(words: tuple[str, ...], option: str) -> dict[str, str] | None:
    values = {}
    for word in words:
        pattern, equals, text = word.rpartition("=")
        if not equals or not pattern or not text:
            raise InputError(f"{option} {word!r}: write pattern=value, such as {option} 'experts.*=stack in out'")
        values[pattern] = text
    return values or None


def _optimizer(name: str) -> Any:
    from mutransfer.commands.user_code import find

    return find(name, "optimizer class") if ":" in name else name


def _sizes(words: tuple[str, ...]) -> dict[str, int | tuple[int, ...]] | None:
    found: dict[str, int | tuple[int, ...]] = {}
    for pattern, text in (patterns(words, "--fused") or {}).items():
        numbers = text.split(",")
        if not all(number.strip().isdecimal() for number in numbers):
            raise InputError(
                f"--fused {pattern}={text}: write a number of matrices such as 3, or relative sizes such as 4,1,1"
            )
        found[pattern] = int(numbers[0]) if len(numbers) == 1 else tuple(map(int, numbers))
    return found or None
