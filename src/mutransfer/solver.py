"""The rules applied tensor by tensor, and every forward multiplier moved to where it can live."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from torch import nn

from mutransfer import attention, branches, rebase, sparsity
from mutransfer.assignment import Assigned
from mutransfer.axes import is_norm
from mutransfer.blocks import Stack, collapse
from mutransfer.departures import depart, find_ends, logits_text, notes, power
from mutransfer.errors import InputError
from mutransfer.explain import derivation
from mutransfer.hooks import Hook, Side
from mutransfer.laws import UNKNOWN, Law
from mutransfer.optimizers import OptimizerFacts
from mutransfer.plans import Row
from mutransfer.recipes import Recipe
from mutransfer.rules import IDENTITY, Fan, Mode, Ratios, gauge, solve
from mutransfer.shapes import TensorShape
from mutransfer.unit import unit_scaled
from mutransfer.zeroing import zeros


class Solver:
    """Applies the rules tensor by tensor, then moves multipliers to where they can live."""

    def __init__(
        self,
        recipe: Recipe,
        optimizers: Mapping[str, Assigned],
        mode: Mode,
        placement: str,
        depth: float,
        stacks: list[Stack],
        shapes: list[TensorShape],
        big: nn.Module,
        small: nn.Module,
        laws: dict[str, Law],
        measured: bool,
        roles: Mapping[str, str] | None = None,
        density: tuple[float, float] = (1.0, 1.0),
    ) -> None:
        self.recipe, self.optimizers = recipe, optimizers
        self.mode: Mode = mode
        self.placement, self.depth, self.stacks, self.shapes = placement, depth, stacks, shapes
        self.big, self.small, self.laws, self.measured = big, small, laws, measured
        self.hooks: list[Hook] = []
        self.notes: list[str] = []
        self.density = density
        self.ends = find_ends(shapes, recipe, big, roles, depth)
        self.notes += notes(recipe, self.ends)
        self.zeros = zeros(recipe, shapes, self.ends)
        self.absorbing: dict[str, list[tuple[float, str]]] = {}  # tensor → factors that move into it, with the reason

    @property
    def depth_rule(self) -> bool:
        return self.recipe.depth_exponent is not None and self.depth != 1.0

    def rows(
        self, base_laws: dict[str, Law], branch_out: Sequence[str], head_size: tuple[int, int] | None
    ) -> list[Row]:
        """Every row, in the model's own order."""
        if self.recipe.width:
            self._find_last(branch_out)
            self._attention(head_size)
            self._tied_heads()
        self._branches(branch_out)
        self._note_what_stays()
        rows = [self._row(shape, base_laws) for shape in self.shapes]
        self.notes += rebase.notes(rows, self.stacks, self.depth, self.recipe, self.measured)
        return rows

    def _inside(self, shape: TensorShape) -> bool:
        return self.depth_rule and branches.in_branch(shape.name, self.stacks)

    def _carry(self, module: str, attributes: Sequence[str], factor: float, reason: str, where: Side | None) -> None:
        """Put a forward multiplier on a module: into its tensors, or by a hook where the user asked for multipliers."""
        if factor == 1.0:
            return
        if self.placement != "absorbed" and where is not None:
            self.hooks.append(Hook(module, where, factor, reason))
            return
        known = {shape.name for shape in self.shapes}
        for attribute in attributes:
            name = f"{module}.{attribute}" if module else attribute
            if name in known:
                self.absorbing.setdefault(name, []).append((factor, reason))

    def _find_last(self, declared: Sequence[str]) -> None:
        """The last matrices of residual branches, where the recipe treats them in a way of its own."""
        if self.depth != 1.0 and any(c.kinds == ("residual",) for c in self.recipe.changes):
            last = branches.last_modules(self.big, self.shapes, self.stacks, declared, self.small)
            named = {f"{path}.{attribute}" for path, attributes in last.items() for attribute in attributes}
            self.ends = replace(self.ends, residual=self.ends.inner & named)

    def _attention(self, head_size: tuple[int, int] | None) -> None:
        modules = {}
        for shape in self.shapes:
            ours, theirs = shape.name.split("."), shape.base_name.split(".")
            for i in range(len(ours)):
                modules[".".join(ours[:i])] = ".".join(theirs[:i])
        absorbed, hooks, notes = attention.factors(
            self.small, self.big, modules, head_size, self.laws, self.recipe.attention == "1/d"
        )
        self.hooks += hooks
        self.notes += notes
        for item in absorbed:
            whole = item.factor < 1 and "weight" in item.attributes
            self._carry(item.module, item.attributes, item.factor, item.reason, "output" if whole else None)

    def _tied_heads(self) -> None:
        """logits × 1/N of a head that shares the embedding: into the final norm's gain, else a hook on the head's input."""
        for shape in self.shapes:
            if shape.name not in self.ends.tied:
                continue
            factor = power(shape.fan_out.exact, self.recipe.logits)
            reason = f"logits × {logits_text(shape.fan_out.ratio, self.recipe.logits)} of the tied head"
            # the table's own multiplier is in the tensor where it is absorbed, and so in the logits already
            own = self.recipe.factor("head") / (
                self.recipe.factor("embedding") if self.placement == "absorbed" else 1.0
            )
            if own != 1.0:
                factor, reason = factor * own, f"{reason}, × {own:g} at every size"
            if factor == 1.0:
                continue
            norm = self._final_norm(shape)
            if norm is not None and self.placement == "absorbed":
                self._carry(norm, ("weight", "bias"), factor, reason, None)
            else:
                head = next(
                    (p for p, m in self.big.named_modules()
                     if getattr(m, "weight", None) is not None and not isinstance(m, nn.Embedding)
                     and f"{p}.weight" in (shape.name, *shape.aliases)), None)  # fmt: skip
                if head is None:
                    raise InputError(f"{shape.name!r} is tied to {shape.aliases}, but no module applies it as a head: the "
                                     f"multiplier {factor:g} has nowhere to live; give the model a final norm with a gain")  # fmt: skip
                self.hooks.append(Hook(head, "input", factor, reason))

    def _final_norm(self, tied: TensorShape) -> str | None:
        """The norm right before the head: outside every stack, with a plain gain, and no matrix after it but the head."""
        order = list(self.shapes)
        for shape in reversed(order):
            if shape.name == tied.name or shape.role == "scalar":
                continue
            path = shape.name.rpartition(".")[0]
            module = self.big.get_submodule(path)
            inside = re.search(r"(^|\.)\d+(\.|$)", path)
            if not is_norm(module) or inside or shape.role != "vector":
                if shape.role == "vector" and not inside:
                    continue  # a bias of the head
                return None
            law = self.laws.get(f"{path}.weight")
            return path if law is not None and law.kind == "constant" and law.mean != 0 else None
        return None

    def _branches(self, declared: Sequence[str]) -> None:
        if self.depth != 1.0 and self.recipe.depth_exponent is None:
            self.notes.append(
                f"depth grows ×{self.depth:g} but recipe {self.recipe.name!r} has no depth rule: "
                f"use 'completep' (two or more matrices per residual branch) or 'depth-mup' (one)"
            )
        if not self.depth_rule:
            branches.check_declared(self.big, self.shapes, declared)
            return
        assert self.recipe.depth_exponent is not None
        alpha = self.depth**-self.recipe.depth_exponent
        ends = branches.find_ends(self.big, self.shapes, self.stacks, declared, self.small)
        self.notes += branches.notes(ends, self.recipe.name, self.recipe.depth_exponent)
        for end in sorted(ends, key=lambda e: (e.path, e.site or "")):
            self._end(
                end,
                alpha / end.own,
                f"residual branch × {alpha:g}" + f", ×{end.own:g} by its own code" * (end.own != 1),
            )

    def _end(self, end: branches.End, alpha: float, reason: str) -> None:
        """Put α on what ends a branch; by a hook where no tensor can take it: a norm without a gain, or with gain − 1."""
        if end.traced:
            hook = None if end.site is None else Hook(end.site, "output", alpha, reason)
            if math.isclose(alpha, 1.0):
                return
            if hook is not None and (self.placement != "absorbed" or not end.attributes):
                self.hooks += [hook] if hook not in self.hooks else []
            else:
                self._carry(end.path, end.attributes, alpha, reason, None)
            return
        path, attributes = end.path, end.attributes
        owner = path.rpartition(".")[0]
        law = self.laws.get(f"{path}.weight", UNKNOWN)
        if not attributes or (is_norm(self.big.get_submodule(path)) and law.zeros):
            self.hooks.append(Hook(path, "output", alpha, reason))
        elif self.placement != "absorbed" and isinstance(self.big.get_submodule(owner), nn.MultiheadAttention):
            self.hooks.append(Hook(owner, "output", alpha, reason))  # out_proj's own forward is never called
        else:
            self._carry(path, attributes, alpha, reason, "output")

    def _note_what_stays(self) -> None:
        for shape in self.shapes:
            if re.search(r"(^|\.)\d+\.", shape.name) and shape.role == "output":
                change = "grows" if shape.fan_in.ratio > 1 else "shrinks"
                self.notes.append(f"{self._label(shape)}: its fan-out stays {shape.fan_out.target:g} while its fan-in {change}: "
                                  f"treated as an output")  # fmt: skip

    def _label(self, shape: TensorShape) -> str:
        """The pattern of this tensor's name where all that it matches are alike, else the name itself."""
        pattern = collapse(shape.name)
        matched = [other for other in self.shapes if collapse(other.name) == pattern]
        alike = all((s.role, s.fan_in, s.fan_out) == (shape.role, shape.fan_in, shape.fan_out) for s in matched)
        return pattern if alike and len(matched) > 1 else shape.name

    def _row(self, shape: TensorShape, base_laws: dict[str, Law]) -> Row:
        assigned = self.optimizers[shape.name]
        name, facts, parts = assigned.name, assigned.facts, assigned.parts
        inside = self._inside(shape)
        sparse = self.density != (1.0, 1.0) and shape.name in self.ends.inner
        base_law = base_laws.get(shape.base_name, UNKNOWN)
        facts = facts.at_zero if base_law.zeros else facts
        target_law = self.laws.get(shape.name, UNKNOWN)
        if self.measured:
            target_law = snap(target_law, base_law, shape, self.depth)
        if not self.recipe.width:
            ratios = replace(IDENTITY, eps=1.0 if facts.eps_kind else None)
            text = "standard parametrization: the user's own code"
        else:
            role: Any = shape.role
            upside_down = shape.axes == ("in", "out") and not assigned.logical
            fan_out = _of_one(shape.fan_out, parts)
            ratios = solve(
                role, shape.fan_in, fan_out, facts,
                depth=self.depth, in_branch=inside, exponent=self.recipe.depth_exponent or 1.0, mode=self.mode,
                upside_down=upside_down,
            )  # fmt: skip
            text = derivation(
                role, shape.fan_in, fan_out, facts, ratios, self.depth if inside else 1.0, self.mode, upside_down
            )
            ratios, departed = depart(ratios, self.recipe, self.ends, shape.name, (shape.fan_in, shape.fan_out), facts)
            if sparse:
                ratios, thinner = sparsity.thin(ratios, self.density, facts, self.recipe.decay == "fixed")
                departed += thinner
            ratios, text = self._absorb(shape, facts, replace(ratios, branch=1.0), text + departed)
            if self.placement == "unit":
                ratios, hooks, scaled = unit_scaled(shape, base_law, ratios, facts, self.big)
                self.hooks, text = self.hooks + hooks, text + scaled
        return Row(
            shape.name, shape.base_name, shape.aliases, shape.role, shape.kind, shape.base_shape, shape.target_shape,
            shape.fan_in, shape.fan_out, shape.block, name, base_law, target_law, ratios,
            self.depth if inside else 1.0, text, shape.axes, parts, self.density[1] if sparse else 1.0,
        )  # fmt: skip

    def _absorb(self, shape: TensorShape, facts: OptimizerFacts, ratios: Ratios, text: str) -> tuple[Ratios, str]:
        if ratios.multiplier != 1.0:
            lookup = "lookup" in shape.axes  # a lookup's input is no tensor of numbers
            names = [n for n in (shape.name, *shape.aliases) if n.endswith(".weight")]
            paths = [n.rpartition(".")[0] for n in names]
            paths = [
                p for p in paths if isinstance(self.big.get_submodule(p), nn.Embedding | nn.EmbeddingBag) == lookup
            ]
            if self.placement != "absorbed" and paths:
                where: Side = "output" if lookup else "input"
                self.hooks.append(Hook(paths[0], where, ratios.multiplier, f"output × {ratios.multiplier:g}"))
            else:
                text += f"; absorbs its multiplier {ratios.multiplier:g}"
                ratios = gauge(ratios, ratios.multiplier, facts, of="multiplier")
        for factor, reason in self.absorbing.get(shape.name, ()):
            text += f"; absorbs {factor:g} ({reason})"
            ratios = gauge(replace(ratios, branch=ratios.branch * factor), factor, facts, of="branch")
        return ratios, text


def _of_one(fan: Fan, parts: tuple[int, ...]) -> Fan:
    """The fan-out of the first of the matrices fused in a tensor: a matrix optimizer scales each by its own sizes."""
    share = Fraction(parts[0], sum(parts)) if parts else Fraction(1)
    return Fan(float(Fraction(fan.base) * share), float(Fraction(fan.target) * share)) if parts else fan


def snap(law: Law, base: Law, shape: TensorShape, depth: float) -> Law:
    """A measured target law with its std moved, within sampling error, to an exact power of the size ratios times the base's.

    Only so that a model whose own initialisation already follows the rule keeps every bit of its draw.
    """
    if min(law.std, base.std) == 0 or law.kind not in ("normal", "uniform"):
        return law
    a, b = shape.fan_in.ratio, shape.fan_out.ratio
    both = (shape.fan_in.target + shape.fan_out.target) / (shape.fan_in.base + shape.fan_out.base)
    ratio = law.std / base.std
    error = math.sqrt(0.5 / math.prod(shape.target_shape) + 0.5 / math.prod(shape.base_shape))
    candidates = [w * depth**-d for w in (1.0, a**-0.5, b**-0.5, both**-0.5, 1 / a) for d in (0.0, 0.5, 1.0)]
    best = min(candidates, key=lambda c: abs(math.log(c / ratio)))
    return replace(law, std=base.std * best) if abs(best / ratio - 1) < 4 * error + 1e-6 else law
