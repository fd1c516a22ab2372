"""The user's two models and the laws of their initial values, without memory where the code allows it."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy
import torch
from torch import nn

from mutransfer.blocks import collapse
from mutransfer.errors import InputError
from mutransfer.laws import UNKNOWN, Law, measure, recording
from mutransfer.shapes import compare, parameters_of

Factory = Callable[..., nn.Module]
_DEPTH_KEY = re.compile(r"depth|layer|block|stage", re.IGNORECASE)
_SMALL = 4_000_000  # a base of at most this many numbers is drawn once for real, to confirm the laws that were recorded


@contextmanager
def same_randomness() -> Iterator[None]:
    """Put the user's random states back (torch on the CPU, numpy, Python), whatever the code in this block draws."""
    own, theirs = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(own)
        numpy.random.set_state(theirs)


def construct(
    factory: Factory, sizes: Mapping[str, Any], device: str = "meta", *, real: bool = True
) -> tuple[nn.Module, dict[str, Law]]:
    """The model at these sizes and the law of every tensor. A factory that cannot run on meta is run on the CPU.

    With `real=False` its tensors are never written to (`laws.recording`).

    Raises InputError when the factory fails or returns something else.
    """
    try:
        with same_randomness(), torch.device(device), recording(real=real) as seen:
            built = factory(**sizes)
    except InputError:
        raise
    except Exception as error:
        if device == "meta" and not isinstance(error, TypeError):
            return construct(factory, sizes, "cpu")
        raise InputError(f"the factory failed at {dict(sizes)}: {type(error).__name__}: {error}") from error
    if not isinstance(built, nn.Module):
        raise InputError(f"the factory returned {type(built).__name__} at {dict(sizes)}, not an nn.Module")
    laws = {name: seen.law(tensor) for name, tensor in tensors(built)}
    unread = [
        (name, tensor) for name, tensor in tensors(built) if laws[name] == UNKNOWN and real and not tensor.is_meta
    ]
    return built, laws | {name: measure(tensor) for name, tensor in unread}


def tensors(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Every distinct parameter under its first name."""
    found = [(name, p.module._parameters[p.attribute]) for name, p in parameters_of(model).items()]
    return [(name, tensor) for name, tensor in found if tensor is not None]


def measured(model: nn.Module) -> dict[str, Law]:
    """The law of every tensor of a materialised model, from its values."""
    return {name: measure(tensor) for name, tensor in tensors(model)}


def _agree(recorded: Law, found: Law, count: int) -> bool:
    if recorded.kind == "unknown":
        return False
    if count == 1 and recorded.std > 0:  # one number has no spread of its own
        return abs(found.mean - recorded.mean) < 6 * recorded.std
    if recorded.std == 0 or found.std == 0:
        return recorded.std == found.std and math.isclose(recorded.mean, found.mean, rel_tol=1e-5, abs_tol=1e-12)
    shift = abs(found.mean - recorded.mean) / recorded.std
    return abs(found.std / recorded.std - 1) < 6 / math.sqrt(2 * count) + 1e-3 and shift < 6 / math.sqrt(count) + 1e-3


def confirmed(
    factory: Factory,
    sizes: Mapping[str, Any],
    small_laws: dict[str, Law],
    big_laws: dict[str, Law],
    small: nn.Module,
    target: Mapping[str, Any],
) -> tuple[dict[str, Law], dict[str, Law]]:
    """Check what meta gave. A small base is drawn for real: where meta missed something, the laws recorded in that draw stand
    if its values bear them out, else the values have the word.

    A large one is built on the CPU with every write recorded and none done: what code skips on meta, it does there.
    """
    followed: set[str] = set()  # missed on meta, recorded on the CPU
    if sum(p.numel() for p in small.parameters()) <= _SMALL:
        with same_randomness():
            torch.manual_seed(0)  # the same plan every time
            random.seed(0)
            numpy.random.seed(0)
            drawn, recorded = construct(factory, sizes, "cpu")
        found, counts = measured(drawn), {n: math.prod(p.shape) for n, p in tensors(drawn)}
        missed = {n for n in small_laws if not _agree(small_laws[n], found[n], counts[n])}
        followed = {n for n in missed if _agree(recorded[n], found[n], counts[n])}
        found |= {n: recorded[n] for n in followed}
    else:
        try:
            found = construct(factory, sizes, "cpu", real=False)[1]
        except InputError:  # code that reads back what it wrote
            return small_laws, big_laws
        missed = {n for n, law in small_laws.items() if law != found[n]}
    looks = {collapse(name) for name in missed}
    small_laws = {n: found[n] if n in missed else law for n, law in small_laws.items()}
    known = {collapse(name) for name in followed} - {collapse(name) for name in missed - followed}
    again = {}
    if known:
        with suppress(InputError):  # too large for the CPU, or code that reads back what it wrote
            again = construct(factory, target, "cpu", real=False)[1]
    unread = {n: again.get(n, UNKNOWN) if collapse(n) in known else UNKNOWN for n in big_laws if collapse(n) in looks}
    return small_laws, big_laws | unread


def check_third_size(
    factory: Factory,
    base: Mapping[str, Any],
    target: Mapping[str, Any],
    small: nn.Module,
    big: nn.Module,
    axes: Mapping[str, str] | None,
    roles: Mapping[str, str] | None,
) -> None:
    """One more size, beyond the target, at the base's depth: an axis that grows on one step only is ambiguous.

    A size that the factory refuses is not held against it. Raises InputError naming the tensor and the three sizes.
    """
    third = dict(base)
    for key, value in target.items():
        known = base.get(key)
        numbers = all(isinstance(v, int) and not isinstance(v, bool) and v > 0 for v in (known, value))
        if numbers and value != known and not _DEPTH_KEY.search(key):
            third[key] = value * value // known if value * value % known == 0 else 2 * value
    if third == dict(base):
        return
    try:
        with same_randomness(), torch.device("meta"), recording():
            more = compare(small, factory(**third), axes=axes, roles=roles, strict=False)
        now = {s.base_name: s for s in compare(small, big, axes=axes, roles=roles, strict=False)}
    except Exception:  # the factory need not support a size that nobody asked for
        return
    for shape in more:
        known = now.get(shape.base_name)
        if known is None:
            continue
        for axis, (b, t, x) in enumerate(zip(shape.base_shape, known.target_shape, shape.target_shape, strict=True)):
            if "stack" in (*shape.axes[axis : axis + 1], *known.axes[axis : axis + 1]):
                continue  # one entry per layer: it follows the depth, which the third size does not change
            if (b == t) != (b == x):
                raise InputError(
                    f"{shape.base_name!r}: axis {axis} is {b} at {dict(base)}, {t} at {dict(target)} and {x} at {third}: "
                    f"it grows on one step only (rounded or clamped in your code?); choose sizes where it grows or stays, or label "
                    f"that axis 'stack' if it holds one entry per layer: axes={{{collapse(shape.base_name)!r}: 'stack …'}}"
                )
