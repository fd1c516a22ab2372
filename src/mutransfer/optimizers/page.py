"""The tables of docs/optimizers.md, made from what is declared: `python -m mutransfer.optimizers.page` prints them."""

from __future__ import annotations

from mutransfer.optimizers.classes import EPS, KNOWN, RUNNERS
from mutransfer.optimizers.facts import OptimizerFacts
from mutransfer.optimizers.registry import REGISTRY
from mutransfer.rules import Fan, Role, solve

N = 4
TENSORS: tuple[tuple[str, Role, Fan, Fan, bool], ...] = (
    ("embedding", "input", Fan(1, 1), Fan(1, N), False),
    ("hidden", "hidden", Fan(1, N), Fan(1, N), True),
    ("vector in a block", "vector", Fan(1, 1), Fan(1, N), True),
    ("head", "output", Fan(1, N), Fan(1, 1), False),
)
"""Name, role, fan-in, fan-out, inside a residual branch: width ratio N = 4; a matrix optimizer runs the hidden ones only."""


def facts_table() -> str:
    """What each optimizer declares, who says so, and what runs it."""
    lines = [
        "| optimizer | p | q | ‖A‖₂ | eps is added to | decay | certain | run by | source |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    eps = {None: "–", "element": "an element", "frobenius": "‖G‖_F", "outer": "G·Gᵀ"}
    for name, facts in REGISTRY.items():
        norm = facts.norm + ("·RMS(W)" if facts.weight else "")
        certain = "yes" if facts.certain else "**no**"
        lines.append(
            f"| `{name}` | {facts.degree} | {facts.weight} | {norm} | {eps[facts.eps_kind]} | {facts.decay} | {certain} "
            f"| {_runner(name)} | {facts.source} |"
        )
    return "\n".join(lines)


def _runner(name: str) -> str:
    if name in RUNNERS:
        package, _, cls = RUNNERS[name]
        return f"{package}: {cls}"
    return "torch's Muon or ours" if name.startswith("muon") else "torch"


def ratios_table() -> str:
    """LR, decay and eps ratios at N = L = 4, multiplier form (nothing absorbed), two or more matrices per branch."""
    names = [name for name, *_ in TENSORS]
    lines = [
        f"| optimizer | {' | '.join(f'LR {name}' for name in names)} | decay hidden | eps hidden |",
        "|---|" + "---|" * (len(names) + 2),
    ]
    for name, facts in REGISTRY.items():
        solved = {
            tensor: solve(role, fan_in, fan_out, facts, depth=N, in_branch=inside, mode="asymptotic")
            for tensor, role, fan_in, fan_out, inside in TENSORS
        }
        rates = [_rate(facts, tensor, solved[tensor].lr) for tensor in names]
        hidden = solved["hidden"]
        decay = hidden.l2 if facts.decay == "coupled" else hidden.decay
        eps = "–" if hidden.eps is None else f"{hidden.eps:g}"
        lines.append(f"| `{name}` | {' | '.join(rates)} | {decay:g} | {eps} |")
    return "\n".join(lines)


def _rate(facts: OptimizerFacts, tensor: str, lr: float) -> str:
    return "(fallback)" if facts.matrix_only and tensor != "hidden" else f"{lr:g}"


def settings_table() -> str:
    """What is known of each class: the settings that go into every group, and the classes that are refused."""
    lines = ["| class | facts | settings in every group | or why not |", "|---|---|---|---|"]
    for known in KNOWN:
        fixed = [f"{key}={value!r}" for key, value in known.fixed.items()]
        fixed += [f"{known.decouple} as the facts' decay"] if known.decouple else []
        fixed += [f"{key}={value!r} where a tensor starts at zero" for key, value in known.at_zero.items()]
        fixed += [f"base eps {EPS[known.facts]:g}"] if known.facts in EPS and not known.refused else []
        fixed += [f"eps is called {known.eps}"] if known.eps != "eps" else []
        changes = [f"{key}: {value}" for key, value in known.changes.items()]
        lines.append(
            f"| {known.package}: {known.name} | `{known.facts}`{''.join(f', {one}' for one in changes)} | {'; '.join(fixed) or '–'} "
            f"| {known.refused or '–'} |"
        )
    return "\n".join(lines)


TABLES = {"facts": facts_table, "ratios": ratios_table, "classes": settings_table}
"""By the marker that stands around each in the page."""

if __name__ == "__main__":
    for made in TABLES.values():
        print(made(), end="\n\n")
