"""What may stand for "the size": the variables a table has, and those that follow from its width, depth, vocabulary and context."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mutransfer.predict.draft import Draft, is_text_model
from mutransfer.predict.points import Points

Array = np.ndarray
SIZES = ("params", "non_embedding", "flops_per_token", "width", "depth")
"""In the order in which they are preferred."""
LENGTHS = 2.0  # lengths of training are told from compute and size where they differ by this factor
SAME = 1e-6  # two variables whose logarithms lie on a line this closely are powers of one another


def complete(draft: Draft) -> None:
    """Add to `draft.values` what follows from what is there, row by row, and say so. FLOPs are floats throughout: 6ND of integers overflows.

    tokens = batch·context·steps, or distinct tokens × epochs; C = 6·N·D (Kaplan et al. 2001.08361, eq. 2.2) and its inverses; non-embedding
    parameters 12·depth·width² (ib., eq. 2.1), or the total less the embedding; FLOPs per token with attention, without embedding:
    72·depth·width² + 12·depth·width·context (DeepSeek LLM 2401.02954, eq. 2).
    """
    v = draft.values
    text_model = is_text_model(draft)

    def add(variable: str, needs: Sequence[str], formula: Callable[..., Array], said: str) -> None:
        if all(name in v for name in needs):
            made = formula(*(v[name].astype(float) for name in needs))
            old = v.get(variable, np.full(len(draft), math.nan))
            empty = np.isnan(old) & np.isfinite(made) & (made > 0)
            if empty.any():
                v[variable] = np.where(empty, made, old)
                some = "" if empty.all() else f" where it is missing ({draft.labels(np.flatnonzero(empty))})"
                draft.notes.append(f"{variable} = {said}{some}")

    add("batch", ["batch_tokens"], lambda b: b, "tokens per batch")
    add("tokens", ["batch_tokens", "steps"], lambda b, s: b * s, "tokens per batch × steps")
    if "batch_tokens" not in v:
        add("tokens", ["batch", "context", "steps"], lambda b, c, s: b * c * s, "batch × context × steps")
    add("tokens", ["unique_tokens", "epochs"], lambda u, e: u * e, "unique_tokens × epochs")
    add("unique_tokens", ["tokens", "epochs"], lambda d, e: d / np.maximum(e, 1), "tokens / epochs")
    if draft.column("flops_per_token") is not None:
        add("compute", ["flops_per_token", "tokens"], lambda m, d: m * d, "flops_per_token × tokens")
    if text_model:
        if not _one_length(v):
            add("tokens", ["params", "compute"], lambda n, c: c / 6 / n, "compute / (6 × params)")
        add("compute", ["params", "tokens"], lambda n, d: 6 * n * d, "6 × params × tokens")
        add("params", ["compute", "tokens"], lambda c, d: c / 6 / d, "compute / (6 × tokens)")
        _embedding(draft)
        add("non_embedding", ["depth", "width"], lambda n, w: 12 * n * w**2, "12 × depth × width²")
        add("flops_per_token", ["depth", "width", "context"], lambda n, w, t: 72 * n * w**2 + 12 * n * w * t, "72 × depth × width² + 12 × depth × width × context")  # fmt: skip


def _one_length(v: Mapping[str, Array]) -> bool:
    """Whether compute/(6·params) hardly varies: then it tells of embeddings and attention, which 6·N·D leaves out, not of tokens."""
    if not {"params", "compute"} <= set(v):
        return False
    made = v["compute"] / 6 / v["params"]
    made = made[np.isfinite(made)]
    return bool(len(made)) and 1.001 < made.max() / made.min() < LENGTHS


def _embedding(draft: Draft) -> None:
    """Non-embedding parameters as the total less vocabulary × width (twice where the table says the head is not tied)."""
    v = draft.values
    if "non_embedding" in v or not {"params", "vocab", "width"} <= set(v):
        return
    tied = v.get("tied", np.full(len(draft), math.nan))
    made = v["params"] - v["vocab"] * v["width"] * np.where(tied == 0, 2.0, 1.0)
    if np.isfinite(made).all() and (made > 0).all():
        v["non_embedding"] = made
        draft.notes.append(
            "non_embedding = params − vocab × width"
            + (", twice where the head is not tied" if (tied == 0).any() else "")
        )


def varies(values: Array) -> bool:
    """Whether the values differ beyond rounding."""
    return bool(len(values) and values.max() > values.min() * (1 + 1e-9))


def candidates(points: Points) -> tuple[str, ...]:
    """The size variables among which one may choose, the preferred first: those that vary; of exact powers of one another, one.

    Width and 12·depth·width² at one depth give the same law with another exponent; which names were dropped is said by `families`.
    """
    return tuple(family[0] for family in families(points))


def families(points: Points) -> tuple[tuple[str, ...], ...]:
    """The size variables that vary, grouped: each is an exact power of the first of its group, so that no fit can tell them apart."""
    found: list[list[str]] = []
    for name in SIZES:
        values = points.variables.get(name)
        if values is None or not varies(values):
            continue
        for family in found:
            if _power(points.variables[family[0]], values):
                family.append(name)
                break
        else:
            found.append([name])
    return tuple(tuple(family) for family in found)


def _power(x: Array, y: Array) -> bool:
    a, b = np.log(x) - np.log(x).mean(), np.log(y) - np.log(y).mean()
    slope = float(a @ b) / float(a @ a)
    return bool(np.abs(b - slope * a).max() < SAME * max(1.0, float(np.abs(b).max())))


def confounders(points: Points, used: Sequence[str]) -> tuple[str, ...]:
    """The variables that vary among rows in which the `used` ones are all the same: what a law in `used` alone would take for noise.

    Compute is left out where it is 6ND, and steps where they only say how many tokens; rows of one run (a history) differ in steps by design.
    """
    rows: dict[tuple[int, ...], list[int]] = {}
    keys = (
        np.stack([np.round(np.log(points.variables[name]) * 1e6) for name in used])
        if used
        else np.zeros((1, len(points)))
    )
    for i, key in enumerate(keys.T):
        rows.setdefault(tuple(int(k) for k in key), []).append(i)
    return tuple(
        name
        for name, values in points.variables.items()
        if name not in used and any(varies(values[group]) for group in rows.values() if len(group) > 1)
    )
