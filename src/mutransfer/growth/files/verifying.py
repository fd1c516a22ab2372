"""Is the grown checkpoint the small one? Asked before anything is written, on the run's own data or on guessed inputs.

Small models go through `verify_growth` (every layer and gradient, float64). It holds several copies of the model, so that models above
`LARGEST` parameters are compared by their outputs alone, in float32: with that, the weights of the big model are in memory once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mutransfer.errors import InputError
from mutransfer.growth.files.checkpoint import Checkpoint
from mutransfer.growth.files.growing import Growing
from mutransfer.growth.noise import Noise
from mutransfer.growth.verify import difference, verify_growth
from mutransfer.sample import Call

LARGEST = 20_000_000
ALLOWED = 1e-3
"""Relative, of outputs in float32: sums of thousands of rounded numbers reach 1e-5; a wrong map or factor is off by a tenth or more."""


@dataclass(frozen=True)
class Verdict:
    """`ok` is None where nothing could be compared; `words` say what was."""

    ok: bool | None
    words: str
    details: Mapping[str, Any]


def verify(checkpoint: Checkpoint, growing: Growing, written: Mapping[str, Tensor] | None = None) -> Verdict:
    """Compare the grown model, before noise, with the small one; or one that was `written` earlier, as it is."""
    if growing.plan.depth not in ("", "identity"):
        return Verdict(
            None, f"not verified: depth {growing.plan.depth!r} repeats blocks, which changes the function", {}
        )
    with torch.random.fork_rng(devices=[]):
        small, big = checkpoint.models()
        exact = replace(growing, noise=Noise())
        with torch.no_grad():
            _fill(small, lambda name: growing.weights.get(name))
            if written is not None:
                _fill(big, lambda name: written.get(name))
            else:
                _fill(big, lambda name: exact.weight(name).make() if name in growing.plan.by_name else None)
        found = checkpoint.batch() or _guessed(checkpoint, small.eval())
        if found is None:
            return Verdict(None, "not verified: no input was found that the model's forward takes", {})
        batch, loss, what = found
        if sum(p.numel() for p in big.parameters()) <= LARGEST:
            verification = verify_growth(small, big, growing.plan, [batch], loss)
            return Verdict(verification.ok, f"{verification} ({what})", verification.to_dict())
        return _outputs(small, big, batch, loss, what)


def _fill(model: nn.Module, source: Callable[[str], Tensor | None]) -> None:
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and (made := source(name)) is not None:
            tensor.copy_(made)
        seen.add(id(tensor))


def _guessed(checkpoint: Checkpoint, model: nn.Module) -> tuple[Any, Callable[..., Any], str] | None:
    for call in checkpoint.inputs():
        try:
            with torch.no_grad():
                if _first(model(*call[0], **call[1])) is not None:
                    return call, _square, "on a guessed input"
        except Exception:  # whatever the user's forward raises at an input that it does not take
            continue
    return None


def _square(model: nn.Module, call: Call) -> Tensor:
    """A loss that depends on every output."""
    out = _first(model(*call[0], **call[1]))
    assert out is not None
    return (out - 1).square().mean()


def _first(value: Any) -> Tensor | None:
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else None
    values = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return next((found for v in values if (found := _first(v)) is not None), None)


def _outputs(small: nn.Module, big: nn.Module, batch: Any, loss: Callable[..., Any], what: str) -> Verdict:
    """What the models put out, and the loss, in eval mode."""
    outs: list[list[Tensor]] = []
    for model in (small, big):
        seen: list[Tensor] = []

        def keep(_: nn.Module, __: Any, out: Any, seen: list[Tensor] = seen) -> None:
            if (first := _first(out)) is not None:
                seen.append(first)

        handle = model.eval().register_forward_hook(keep)
        try:
            with torch.no_grad():
                seen.append(torch.as_tensor(loss(model, batch)))
        except (RuntimeError, ValueError, TypeError) as error:
            raise InputError(
                f"the model does not run {what}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            ) from error
        finally:
            handle.remove()
        outs.append(seen)
    if any(a.shape != b.shape for a, b in zip(*outs, strict=True)):  # a model that puts out features
        outs = [
            [a for a, b in zip(*outs, strict=True) if a.shape == b.shape],
            [b for a, b in zip(*outs, strict=True) if a.shape == b.shape],
        ]
    error = max(difference(b, a) for a, b in zip(*outs, strict=True))
    ok = error <= ALLOWED
    return Verdict(
        ok, f"{'PASS' if ok else 'FAIL'}: outputs differ by {error:.1e} ({what}, float32; up to {ALLOWED:.0e} is rounding)",
        {"ok": ok, "error": error, "allowed": ALLOWED},
    )  # fmt: skip
