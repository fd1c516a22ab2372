"""What every optimizer declares, against what its class does: raw steps, and coordinate checks over width and over depth.

    python -m benchmarks.optimizer_checks [NAMES …]

For each optimizer that runs here it prints (1) ‖A‖₂ of real steps over its declared formula on low-rank-plus-noise gradients of
five shapes, and (2) the verdict of the coordinate check of a GPT and of a residual MLP, over width (recipe mup) and over depth
(completep), under the plan, under standard parametrization, and under a plan made from deliberately wrong facts.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.check.report import CheckReport
from mutransfer.models import gpt_factory, mlp_factory
from mutransfer.optimizers import GRADIENT, REGISTRY, SQUARED_NORMS, OptimizerFacts, optimizer_class
from mutransfer.optimizers.classes import ready, worded

SHAPES = ((96, 96), (192, 48), (48, 192), (256, 128), (128, 256))
RATES = {"sgd": 0.1, "lamb": 0.01, "adafactor": 0.01, "shampoo": 0.02, "scion": 0.02, "soap": 0.01} | dict.fromkeys(
    ("muon", "muon-uvt", "muon-spectral"), 0.02
)
MODELS: dict[str, Callable[..., nn.Module]] = {
    "gpt": gpt_factory(vocab_size=64, context=16, head_size=8),
    "mlp": mlp_factory(inputs=12, outputs=10, residual=True, norm="layernorm"),
}
SIZES = {"width": (32, 64, 128, 256), "depth": (2, 4, 8, 16)}
RECIPES = {"width": "mup", "depth": "completep"}
RULES = ("plan", "sp", "wrong facts")


def runnable() -> list[str]:
    """The optimizers that a plain loop can run with the installed packages: all but Sophia, which needs a Hessian."""
    return [name for name in REGISTRY if name != "sophia" and optimizer_class(name, required=False) is not None]


# ---------------------------------------------------------------- raw steps


def gradients(shape: tuple[int, int], count: int, noise: float = 0.3, rank: int = 2, seed: int = 0) -> list[Tensor]:
    """A fixed matrix of low rank plus fresh noise, elements of order 1: what a batch's gradient looks like."""
    g = torch.Generator().manual_seed(seed)
    left = torch.randn(shape[0], rank, generator=g, dtype=torch.float64)
    right = torch.randn(rank, shape[1], generator=g, dtype=torch.float64)
    noises = (torch.randn(shape, generator=g, dtype=torch.float64) for _ in range(count))
    return [left @ right / math.sqrt(rank) + noise * one for one in noises]


def raw_steps(
    name: str,
    grads: Sequence[Tensor],
    *,
    start: Tensor | None = None,
    lr: float = 1e-4,
    dtype: torch.dtype = torch.float64,
    **settings: float,
) -> list[Tensor]:
    """A = (W − W')/lr of each step of the class that runs this optimizer, on these gradients, without decay unless asked for."""
    facts = REGISTRY[name]
    weight = torch.randn(grads[0].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.02
    w = nn.Parameter((weight if start is None else start).to(dtype))
    group = {"lr": lr, "weight_decay": 0.0} | settings
    cls: Any = optimizer_class(name)
    if name.startswith("muon"):
        from mutransfer.muon import Muon as cls

        group |= {"scale": facts.norm}
    optimizer = ready(cls([{"params": [w], **worded(cls, facts, group, 1.0, False)}], lr=lr))
    found = []
    for g in grads:
        w.grad, before = g.to(dtype, copy=True), w.detach().clone()  # some divide the gradient in place
        optimizer.step()
        found.append(((before - w.detach()) / lr).double())
    return found


def formula(facts: OptimizerFacts, shape: tuple[int, int], gradient: Tensor, weight: Tensor) -> float:
    """The declared ‖A‖₂."""
    if facts.norm == GRADIENT:
        return float(torch.linalg.matrix_norm(gradient, 2))
    norm = math.sqrt(SQUARED_NORMS[facts.norm](Fraction(shape[1]), Fraction(shape[0])))
    return norm * float(weight.square().mean().sqrt()) ** facts.weight


def norm_ratios(name: str, step: int = 0, scale: float = 1.0, dtype: torch.dtype = torch.float64) -> list[float]:
    """‖A‖₂ over the declared formula for every shape, at this step (from 0) and gradient scale."""
    found = []
    for shape in SHAPES:
        grads = [scale * g for g in gradients(shape, step + 1)]
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.02
        moved = raw_steps(name, grads, start=weight, dtype=dtype)[step]
        found.append(float(torch.linalg.matrix_norm(moved, 2)) / formula(REGISTRY[name], shape, grads[step], weight))
    return found


# ---------------------------------------------------------------- coordinate checks


def wrong(facts: OptimizerFacts) -> OptimizerFacts:
    """Facts of another optimizer: SGD declared as Adam; any other as if its step followed RMS(W), or LAMB as if it did not."""
    if facts.degree == 1:
        return replace(REGISTRY["adamw"], decay="coupled", eps_kind=None, name=facts.name)
    return replace(facts, weight=1 - facts.weight, floor=False)


@contextmanager
def declared(name: str, facts: OptimizerFacts) -> Iterator[None]:
    """These facts for this name, for a while."""
    kept = REGISTRY[name]
    REGISTRY[name] = facts
    try:
        yield
    finally:
        REGISTRY[name] = kept


def batches(kind: str, count: int) -> list[tuple[Tensor, Tensor]]:
    """Random inputs and labels."""
    g, found = torch.Generator().manual_seed(0), []
    for _ in range(count):
        if kind == "gpt":
            ids = torch.randint(64, (8, 17), generator=g)
            found.append((ids[:, :-1], ids[:, 1:]))
        else:
            found.append((torch.randn(32, 12, generator=g), torch.randint(10, (32,), generator=g)))
    return found


def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def check(
    name: str, kind: str, axis: str, rule: str, *, sizes: Sequence[int] | None = None, steps: int = 3, seeds: int = 2
) -> CheckReport:
    """The coordinate check of one optimizer on one model over one axis, under one of RULES."""
    make, base = MODELS[kind], {"width": 32, "depth": 2}
    sizes = SIZES[axis] if sizes is None else sizes
    base = base | {axis: sizes[0]}
    facts = wrong(REGISTRY[name]) if rule == "wrong facts" else REGISTRY[name]
    recipe = "sp" if rule == "sp" else RECIPES[axis]

    def build(size: dict[str, int]) -> tuple[nn.Module, Any]:
        target = base | size
        with declared(name, facts):
            plan = mt.plan(make, base=base, target=target, optimizer=name, recipe=recipe)
            model = plan.initialize(make(**target))
            return model, plan.optimizer(model, lr=RATES.get(name, 0.003))

    return mt.coord_check(build, [{axis: size} for size in sizes], batches(kind, steps), loss, steps=steps, seeds=seeds)


def main(names: list[str]) -> None:
    """Both tables, as Markdown."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    chosen = names or runnable()
    print(
        "| optimizer | ‖A‖₂ | step 1: constant | spread over shapes | step 8: constant | spread | at G/1000 and G·1000 |"
    )
    print("|---|---|---|---|---|---|---|")
    for name in chosen:
        print(f"| {name} | {_formula(REGISTRY[name])} | {' | '.join(_columns(name))} |", flush=True)
    print(
        "\n| optimizer | model | axis | "
        + " | ".join(RULES)
        + " | seconds |\n|---|---|---|"
        + "---|" * (len(RULES) + 1)
    )
    for name in chosen:
        for kind in MODELS:
            for axis in SIZES:
                start = time.perf_counter()
                verdicts = [_verdict(name, kind, axis, rule) for rule in RULES]
                taken = time.perf_counter() - start
                print(f"| {name} | {kind} | {axis} | {' | '.join(verdicts)} | {taken:.0f} |", flush=True)


def _verdict(name: str, kind: str, axis: str, rule: str) -> str:
    try:
        return check(name, kind, axis, rule).verdict
    except RuntimeError as error:  # LAPACK's, in a package's class
        return f"{type(error).__name__.strip('_')}: {str(error).partition(':')[0]}"


def _formula(facts: OptimizerFacts) -> str:
    return facts.norm + ("·RMS(W)" if facts.weight else "") + ("" if facts.certain else " (uncertain)")


def _columns(name: str) -> list[str]:
    columns = []
    begin = 1 if name == "soap" else 0  # SOAP's first step only starts its averages
    for step in (begin, 7):
        found = norm_ratios(name, step)
        middle = math.exp(sum(map(math.log, found)) / len(found))
        spread = max(max(found) / middle, middle / min(found)) - 1
        columns += [f"{middle:.2f}", f"±{spread:.0%}"]
    reference, moved = norm_ratios(name, begin), (norm_ratios(name, begin, scale) for scale in (1e-3, 1e3))
    return [*columns, ", ".join(f"×{max(a / b for a, b in zip(one, reference, strict=True)):.3f}" for one in moved)]


if __name__ == "__main__":
    main(sys.argv[1:])
