"""The grow plan of two modules: the axes of both read off a forward pass, the plan's numbers, and the blocks put together."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from torch import nn

from mutransfer.blocks import collapse
from mutransfer.errors import InputError
from mutransfer.growth.axis import AxisMap
from mutransfer.growth.depth import Blocks, DepthMode, blocks
from mutransfer.growth.layout import Axis
from mutransfer.growth.maps import Matching, Uneven, Unreadable, declared
from mutransfer.growth.tensors import GrowPlan, TensorGrowth
from mutransfer.growth.trace import Feed, NotTraced, Traced, feed, trace
from mutransfer.optimizers import OptimizerFacts
from mutransfer.plans import Plan, Row
from mutransfer.rules import squared_step_ratio
from mutransfer.sample import Call
from mutransfer.shapes import check_patterns, clean

_LENGTHS = (("parametrizations.weight.original0", "parametrizations.weight.original1"), ("weight_g", "weight_v"))
_SPECTRAL = re.compile(r"parametrizations\.\w+\.\d+\._[uv]$|weight_[uv]$")
"""A spectral norm's estimates of the singular vectors, each of length 1."""

Maps = Mapping[str, Mapping[int, str | AxisMap]] | str
UNITS = "units"
"""Every unit of every axis is copied by itself: the user's word, where no forward pass can be seen."""


def grow_plan(
    small: nn.Module,
    big: nn.Module,
    plan: Plan,
    *,
    batch: Call | None = None,
    feeds: Sequence[Feed] = (),
    maps: Maps | None = None,
    uneven: bool = False,
    depth: DepthMode = "identity",
    branch_out: Sequence[str] = (),
) -> GrowPlan:
    """What becomes of every tensor of `small` in `big`, under the `plan` that goes from one to the other.

    Both models are traced on `batch` (the arguments of forward), on the first of `feeds` that runs, or on guessed arguments; they may be on the meta device. `maps` declares
    axes by name pattern instead, "units" all of them. Raises InputError for an axis whose copies cannot be told, naming the tensor and the line to write.
    """
    feeds = feeds if batch is None else [feed(batch), *feeds]
    if isinstance(maps, Mapping):
        check_patterns("maps", maps, [name for row in plan.rows for name in (row.name, *row.aliases)] + [name for name, _ in big.named_buffers()])  # fmt: skip
    return _Builder(small, big, plan, feeds, maps, uneven, blocks(small, big, plan, depth, branch_out), depth).build()


def numbers(row: Row, plan: Plan) -> tuple[float, float]:
    """(s, g) of `W' = s·dup(W)`, `G' = g·dup(G)`: with the plan's expected ‖G'‖_F/‖G‖_F = g·√(ab) and s·g·a·b = α.

    α is the factor of the residual branch that the tensor sits in (1 without a depth rule); a·b the growth of the number of entries:
    the change of the loss to first order, ⟨W', G'⟩ summed over the copies of a block, stays what it was.
    """
    entries = math.prod(row.target_shape) / math.prod(row.base_shape)
    gradient = row.ratios.gradient / math.sqrt(entries)
    return _alpha(row, plan) / (gradient * entries), gradient


def _alpha(row: Row, plan: Plan) -> float:
    return 1.0 if plan.depth_exponent is None else row.repeats**-plan.depth_exponent


def departure(row: Row, facts: OptimizerFacts, scale: float, gradient: float) -> str:
    """Which of the plan's ratios is not the one that keeps copies on the small model's path (theory §6), and by what factor; else "".

    A raw step of `g·dup(G)` is dup of the small one's times f: `f = g` (degree 1), 1 (element-wise), `(norm'/norm)/√(ab)` (a matrix
    function: dup of an orthogonal factor is √(ab) too long), and times `s^q` where it follows RMS(W). So `lr' = lr·s/f`, the decay of a step
    `1/lr'`, an L2 `g/s`, and eps as what it is added to. A recipe with rates of its own differs here, as does the asymptotic mode.
    """
    facts = facts.at_zero if row.base_law.zeros else facts
    entries = math.prod(row.target_shape) / math.prod(row.base_shape)
    factors = [gradient if facts.degree == 1 else 1.0]
    if facts.kind == "matrix":
        pairs = [(row.fan_in, row.fan_out), (row.fan_out, row.fan_in)]  # a scaling may read a matrix as it is stored
        pairs = pairs if row.axes == ("in", "out") or row.parts else pairs[:1]
        steps = [squared_step_ratio(facts, *pair, Fraction(1), "exact") for pair in pairs]
        factors = [math.sqrt(step / Fraction(entries)) for step in steps]
    rates = [scale / (factor * scale**facts.weight) for factor in factors]
    eps = {None: None, "element": gradient, "frobenius": gradient * math.sqrt(entries), "outer": gradient**2 * entries}
    ratios = row.ratios
    due = {"eps": eps[facts.eps_kind]} if facts.eps_kind else {}
    due |= {"l2": gradient / scale} if facts.decay == "coupled" else {}
    rate = min(rates, key=lambda rate: abs(math.log(ratios.lr / rate)))
    due |= {"lr": rate} | ({"decay": 1 / rate} if facts.decay == "decoupled" else {})
    for key in ("lr", "eps", "l2", "decay"):
        found, wanted = getattr(ratios, key), due.get(key)
        if wanted is not None and found is not None and not math.isclose(found, wanted, rel_tol=1e-9):
            return f"its {key} is {found / wanted:.4g} times what copies need: at the start only"
    return ""


def _refuse_rows(row: Row, depth: str) -> None:
    """Raise InputError for an axis that holds no features: rows of a table, taps of a kernel, one entry per expert or layer."""
    what = {
        "lookup": "rows of a table (tokens, positions)",
        "kernel": "taps of a kernel",
        "stack": "one entry per copy (experts, layers)",
    }
    for axis, label in enumerate(row.axes):
        base, target = row.base_shape[axis], row.target_shape[axis]
        if base != target and label in what and not (label == "stack" and depth == "interleave"):
            raise InputError(f"axis {axis} of {row.name!r} {row.base_shape} → {row.target_shape} holds {what[label]}: growing copies "
                             f"features only; keep {base} there (or name the axis 'out' in axes= where its entries are heads or features)")  # fmt: skip


RANDOM = "the model draws random numbers (dropout): copies draw their own, so that in training they part without noise"


def _traced(which: str, model: nn.Module, feeds: Sequence[Feed]) -> Traced:
    try:
        return trace(model, feeds)
    except NotTraced as error:
        how = "batch that was given" if feeds else "guessed input"
        raise InputError(f"the {which} model's forward takes no {how} ({error}), so it cannot be seen which units belong together: give batches= "
                         f"whose first element (or tensors) forward takes, or say maps='units' where every unit is copied by itself") from None  # fmt: skip


def _first(ours: Sequence[tuple[int, ...]], theirs: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return next((a for a, b in zip(ours, theirs, strict=False) if a != b), ())


class _Builder:
    def __init__(
        self,
        small: nn.Module,
        big: nn.Module,
        plan: Plan,
        feeds: Sequence[Feed],
        maps: Maps | None,
        uneven: bool,
        grown: Blocks | None,
        depth: DepthMode,
    ) -> None:
        self.small, self.big, self.plan, self.maps = small, big, plan, maps
        self.blocks, self.depth = grown, depth
        if isinstance(maps, str) and maps != UNITS:
            raise InputError(f"maps={maps!r}: write maps by name pattern and axis, or 'units'")
        self.traced: tuple[Traced, Traced] | None = (
            None if maps == UNITS else (_traced("small", small, feeds), _traced("big", big, feeds))
        )
        self.notes: list[str] = []
        self.matching = Matching(uneven)

    def build(self) -> GrowPlan:
        for row in (*self.plan.rows, *self.plan.rows):  # twice: what one tensor leaves open another may tell
            ours, theirs = self._axes(1, row.name), self._axes(0, self._source(row))
            for big, small in zip(ours or (), theirs or (), strict=False):
                self.matching.learn(small, big)
        tensors = [self._parameter(row) for row in self.plan.rows]
        tensors += self._buffers()
        if self.blocks is not None and self.depth != "identity":
            alphas = {_alpha(row, self.plan) for row in self.plan.rows}
            if alphas == {1.0}:
                self.notes.append(
                    "blocks are repeated and the plan has no 1/L on residual branches: the function changes"
                )
        depth = self.depth if self.blocks is not None else ""
        if self.traced is not None:
            small, big = self.traced
            if small.random or big.random:
                self.notes.append(RANDOM)
            if small.outputs != big.outputs:
                self.notes.append(f"what the model puts out grows, {_first(small.outputs, big.outputs)} → {_first(big.outputs, small.outputs)}: "
                                  f"a loss that depends on how many numbers there are is another one")  # fmt: skip
        return GrowPlan(tuple(tensors), self.plan, depth, tuple(dict.fromkeys(self.notes)))

    # ------------------------------------------------------------------ parameters

    def _parameter(self, row: Row) -> TensorGrowth:
        _refuse_rows(row, self.depth if self.blocks is not None else "")
        source = self._source(row)
        maps, inexact = self._maps(row.name, source, row.base_shape, row.target_shape)
        sums = tuple(label in ("in", "kernel") for label in row.axes) or (False,) * len(maps)
        scale, gradient = numbers(row, self.plan)
        made = TensorGrowth(row.name, source, maps, sums, scale, gradient, row.name, inexact=inexact)
        made = self._normed(made)
        if not made.inexact and self.plan.depth == 1.0:
            made = replace(made, inexact=departure(row, self.plan.facts[row.optimizer], scale, gradient))
        return self._deeper(made, row, self._block(row.name))

    def _normed(self, made: TensorGrowth) -> TensorGrowth:
        """The length g of a weight norm, W = g·v/‖v‖, where ‖v‖ runs over the axes that g does not have, m of whose entries are copies.

        `W' = s·dup(W)` needs `g' = s·√m·dup(g)`; g's own rate is that of a vector, so that the path is not the small model's.
        """
        name = next((f"{made.name.removesuffix(g)}{v}" for g, v in _LENGTHS if made.name.endswith(g)), None)
        direction = next((row for row in self.plan.rows if row.name == name), None)
        if direction is None:
            return made
        pairs = zip(direction.base_shape, direction.target_shape, made.target_shape, strict=True)
        copies = math.prod(big / small for small, big, own in pairs if own == 1)
        scale = numbers(direction, self.plan)[0] * math.sqrt(copies)
        if scale == made.scale:
            return made
        gradient = made.gradient * made.scale / scale
        return replace(made, scale=scale, gradient=gradient, inexact="weight norm: at the start only")

    def _source(self, row: Row) -> str:
        if self.blocks is None:
            return row.base_name
        return self.blocks.source_of(row.name, row.base_name, self._block(row.name))

    def _deeper(self, made: TensorGrowth, row: Row, block: str | None) -> TensorGrowth:
        """A tensor of a growing stack: new blocks end in zero; old ones keep what the plan's 1/L would take from them."""
        if self.blocks is None or block is None or block not in self.blocks.source:
            return made
        if self.depth != "identity":
            alike = _alpha(row, self.plan) != 1.0
            return replace(made, inexact=made.inexact or ("repeated; as 1/L" if alike else "repeated"))
        is_end = row.name in self.blocks.ends
        if block in self.blocks.new:  # what no gradient reaches yet has no moments
            return replace(made, fresh="zero" if is_end else "new", inexact="")
        scale = made.scale / (_alpha(row, self.plan) if is_end else 1.0)
        entries = math.prod(m.factor for m in made.maps)
        gradient = 1 / (scale * entries)
        return replace(made, scale=scale, gradient=gradient, inexact=made.inexact or "at the start")

    def _block(self, name: str) -> str | None:
        if self.blocks is None:
            return None
        return next((b for b in self.blocks.source if name.startswith(f"{b}.")), None)

    def _maps(
        self, name: str, source: str, small: Sequence[int], big: Sequence[int]
    ) -> tuple[tuple[AxisMap, ...], str]:
        """One map per axis, and why the copies will not train alike."""
        if self.traced is not None and tuple(small) != tuple(big) and name not in self.traced[1].used:
            self.notes.append(
                f"{name!r} takes no part in the forward pass that was traced: its units are copied one by one"
            )
        given = declared(None if isinstance(self.maps, str) else self.maps, name, small, big)
        ours, theirs = self._axes(1, name), self._axes(0, source)
        maps, reasons = [], []
        for axis, (b, t) in enumerate(zip(small, big, strict=True)):
            if axis in given:
                maps.append(given[axis])
                continue
            pair = (Axis(b), Axis(t)) if ours is None or theirs is None else (theirs[axis], ours[axis])
            if b == t:
                maps.append(AxisMap(b, t))
                continue
            try:
                maps.append(self.matching.map(*pair))
            except Unreadable as error:
                pattern = collapse(name)
                if isinstance(error, Uneven):
                    raise InputError(f"axis {axis} of {name!r} {tuple(small)} → {tuple(big)}: {error}") from None
                raise InputError(f"axis {axis} of {name!r} {tuple(small)} → {tuple(big)}: {error}; declare it with "
                                 f"maps={{{pattern!r}: {{{axis}: '{b}→{t}'}}}}") from None  # fmt: skip
            if not maps[-1].whole:
                reasons.append(
                    "parts grow by different factors under one rate"
                    if maps[-1].divides
                    else "no whole multiple: at the start only"
                )
            if self.matching.normed:
                reasons[-1:] = ["no whole multiple under a norm: not even at the start"]
                self.matching.normed.clear()
            if self.matching.tables:
                reasons.append("meets a table that forward makes, which is not copied")
                self.matching.tables.clear()
        return tuple(maps), "; ".join(dict.fromkeys(reasons))

    def _axes(self, which: int, name: str) -> list[Axis] | None:
        return None if self.traced is None else self.traced[which].layout.get(name)

    # ------------------------------------------------------------------ buffers

    def _buffers(self) -> list[TensorGrowth]:
        small = {clean(name): buffer for name, buffer in self.small.named_buffers()}
        paths = {row.name.rpartition(".")[0]: row.base_name.rpartition(".")[0] for row in self.plan.rows}
        made = []
        for raw, buffer in self.big.named_buffers():
            name = clean(raw)
            path, _, attribute = name.rpartition(".")
            block = self._block(name)
            near = paths.get(path, path)
            source = f"{near}.{attribute}" if near else attribute
            if self.blocks is not None:
                source = self.blocks.source_of(name, source, block)
            if source not in small:
                self.notes.append(
                    f"buffer {name!r} has no brother in the small model: it stays as the big model made it"
                )
                continue
            if small[source].ndim != buffer.ndim:
                raise InputError(f"buffer {name!r} has shape {tuple(buffer.shape)}, and {tuple(small[source].shape)} in the small model")  # fmt: skip
            maps, inexact = self._maps(name, source, tuple(small[source].shape), tuple(buffer.shape))
            scale = math.prod(m.factor for m in maps) ** -0.5 if _SPECTRAL.search(name) else 1.0
            made.append(TensorGrowth(name, source, maps, (False,) * len(maps), scale, inexact=inexact))
        return made
