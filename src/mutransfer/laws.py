"""The law that a tensor's initial values follow, read off the user's own code.

Two ways. `recording()` watches the initialisation itself, on the meta device too: `normal_(0, 0.02)` *is* the law, exact and
free of memory. Where the code does something that cannot be followed, `measure` reads the law off a materialised tensor.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

LawKind = Literal["constant", "normal", "uniform", "truncated", "orthogonal", "unknown"]


@dataclass(frozen=True)
class Law:
    """A distribution of initial values: `mean`, `std` of what is drawn; `cut` = truncation in untruncated σ.

    "constant" has std 0 (zeros: mean 0); an "unknown" law could not be read.
    """

    kind: LawKind
    mean: float = 0.0
    std: float = 0.0
    cut: float = 0.0

    @property
    def zeros(self) -> bool:
        """Whether every value is exactly zero."""
        return self.kind == "constant" and self.mean == 0.0

    def scaled(self, factor: float) -> Law:
        """The law of `factor · W`."""
        return replace(self, mean=self.mean * factor, std=self.std * abs(factor))

    def __str__(self) -> str:
        if self.kind == "constant":
            return "zeros" if self.mean == 0 else f"constant {self.mean:.4g}"
        return self.kind + (f" {self.mean:.3g} ±" if self.mean else " ±") + f"{self.std:.4g}"


UNKNOWN = Law("unknown")


def _truncated_std(cut: float) -> float:
    """Std of a standard normal truncated to ±cut."""
    density = math.exp(-cut * cut / 2) / math.sqrt(2 * math.pi)
    return math.sqrt(1 - 2 * cut * density / math.erf(cut / math.sqrt(2)))


def measure(values: Tensor) -> Law:
    """The law of a materialised tensor by its moments; normal against uniform by the largest value.

    Uniform values end at √3·std, normal ones go on. Orthogonal and truncated laws read as normal, which has the same size.
    """
    data = values.detach()
    data = (torch.view_as_real(data.resolve_conj()) if data.is_complex() else data).double()
    if data.is_meta or data.numel() == 0:
        return UNKNOWN
    low, high = float(data.min()), float(data.max())
    if low == high:
        return Law("constant", low)
    mean, std = float(data.mean()), float(data.std(unbiased=False))
    if not math.isfinite(mean + std):
        return UNKNOWN
    if abs(mean) < 5 * std / math.sqrt(data.numel()):
        mean, std = 0.0, float(data.square().mean().sqrt())
    reach = max(high - mean, mean - low) / std
    uniform = data.numel() >= 16 and reach < math.sqrt(3) * (1 + 4 / math.sqrt(data.numel()))
    return Law("uniform" if uniform else "normal", mean, std)


_VALUES_ONLY = frozenset(
    ["normal_", "uniform_", "fill_", "zero_", "mul_", "div_", "add_", "sub_", "erfinv_", "clamp_", "copy_", "neg_"]
)


class _Recorder(TorchDispatchMode):
    """Follows laws through initialisation: in-place draws, fills, scalings; views share the law of their storage."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled while a model is built; saying so spares torch the import of its compiler (a second)."""
        return False

    def __init__(self, real: bool) -> None:
        super().__init__()
        self.real = real
        self.laws: dict[int, Law] = {}
        self.uniform: dict[int, tuple[float, float]] = {}
        self.kept: list[Any] = []  # storages stay alive while recording, so that their keys are not used twice

    def key(self, tensor: Tensor) -> int:
        return tensor.untyped_storage()._cdata

    def law(self, tensor: Tensor) -> Law:
        return self.laws.get(self.key(tensor), UNKNOWN)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        # a meta tensor holds no numbers: running the draw would only make torch import its symbolic shapes (a second)
        empty = name in _VALUES_ONLY and isinstance(args[0], Tensor) and (args[0].is_meta or not self.real)
        result = args[0] if empty else func(*args, **kwargs)
        if isinstance(result, Tensor):
            self._follow(name, args, kwargs, result)
        elif name == "linalg_qr":
            rows, columns = args[0].shape[-2:]
            self._set(result[0], Law("orthogonal", 0.0, 1 / math.sqrt(max(rows, columns))), fresh=True)
        return result

    def note(self, tensor: Tensor, law: Law) -> None:
        """The tensor follows this law from now on, whatever operations drew it."""
        self._set(tensor, law, fresh=False)

    def _set(self, tensor: Tensor, law: Law, *, fresh: bool) -> None:
        key = self.key(tensor)
        if fresh:
            self.kept.append(tensor.untyped_storage())
        elif tensor.numel() * tensor.element_size() < tensor.untyped_storage().nbytes():
            # a write to a part: a zeroed padding row leaves the law as it is, anything larger makes it unreadable
            small = tensor.numel() * 20 <= tensor.untyped_storage().nbytes() // tensor.element_size()
            law = self.laws.get(key, UNKNOWN) if small or self.laws.get(key) == law else UNKNOWN
        self.laws[key] = law

    def _follow(self, name: str, args: Any, kwargs: Any, out: Tensor) -> None:
        def argument(position: int, keyword: str, default: float) -> Any:
            return args[position] if len(args) > position else kwargs.get(keyword, default)

        inplace = name.endswith("_") and not name.endswith("__")
        source = args[0] if args and isinstance(args[0], Tensor) else None
        if name == "normal_":
            self._set(out, Law("normal", float(argument(1, "mean", 0.0)), float(argument(2, "std", 1.0))), fresh=False)
        elif name == "uniform_":
            low, high = float(argument(1, "from", 0.0)), float(argument(2, "to", 1.0))
            self._set(out, Law("uniform", (low + high) / 2, (high - low) / math.sqrt(12)), fresh=False)
            self.uniform[self.key(out)] = (low, high)
        elif name in ("fill_", "fill"):
            value = args[1]
            known = value if isinstance(value, int | float) else None
            self._set(out, UNKNOWN if known is None else Law("constant", float(known)), fresh=name == "fill")
        elif name in ("zero_", "zeros", "new_zeros", "zeros_like", "zero"):
            self._set(out, Law("constant", 0.0), fresh=name != "zero_")
        elif name in ("ones", "new_ones", "ones_like"):
            self._set(out, Law("constant", 1.0), fresh=True)
        elif name in ("full", "new_full", "full_like"):
            self._set(out, Law("constant", float(args[-1])) if _is_number(args[-1]) else UNKNOWN, fresh=True)
        elif name in ("randn", "randn_like"):
            self._set(out, Law("normal", 0.0, 1.0), fresh=True)
        elif name in ("rand", "rand_like"):
            self._set(out, Law("uniform", 0.5, 1 / math.sqrt(12)), fresh=True)
        elif name == "erfinv_" and self.key(out) in self.uniform:
            low, high = self.uniform[self.key(out)]
            if (
                low == -high and 0 < high < 1
            ):  # inverse-transform sampling of a truncated normal, before its scaling by σ√2
                cut = math.sqrt(2) * float(torch.erfinv(torch.tensor(high, dtype=torch.float64, device="cpu")))
                self._set(out, Law("truncated", 0.0, _truncated_std(cut) / math.sqrt(2), cut), fresh=False)
            else:
                self._set(out, Law("normal", 0.0, math.sqrt(0.5)), fresh=False)
        elif name in ("clamp_", "clamp") and source is not None and self.law(source).kind == "truncated":
            self._set(out, self.law(source), fresh=not inplace)  # only guards against rounding at the cut
        elif name in ("mul_", "mul", "div_", "div", "neg", "neg_", "add_", "add", "sub_", "sub") and source is not None:
            self._arithmetic(name.rstrip("_"), args, out, inplace)
        elif name in ("copy_", "clone", "detach", "alias", "_to_copy", "contiguous", "lift_fresh"):
            origin = args[1] if name == "copy_" else source
            law = self.law(origin) if isinstance(origin, Tensor) else UNKNOWN
            self._set(out, law, fresh=name in ("clone", "_to_copy"))
        elif inplace or (source is not None and self.key(out) != self.key(source)):
            self._set(out, UNKNOWN, fresh=not inplace)

    def _arithmetic(self, name: str, args: Any, out: Tensor, inplace: bool) -> None:
        law, other = self.law(args[0]), args[1] if len(args) > 1 else None
        if isinstance(other, Tensor) and law.kind != "orthogonal":
            value = None
        elif isinstance(other, Tensor):  # the sign fix after a QR factorisation
            self._set(out, law if name == "mul" else UNKNOWN, fresh=not inplace)
            return
        else:
            value = -1.0 if name == "neg" else float(other) if isinstance(other, int | float) else None
        if law.kind == "unknown" or value is None or (name == "div" and value == 0):
            result = UNKNOWN
        elif name in ("mul", "neg"):
            result = law.scaled(value)
        elif name == "div":
            result = law.scaled(1 / value)
        else:
            result = replace(law, mean=law.mean + (value if name == "add" else -value))
        self._set(out, result, fresh=not inplace)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


class Recording:
    """What `recording()` saw: ask for the law of any tensor built under it."""

    def __init__(self, recorder: _Recorder) -> None:
        self._recorder = recorder

    def law(self, tensor: Tensor) -> Law:
        """The recorded law of this tensor; "unknown" where the code could not be followed."""
        return self._recorder.law(tensor)


def _truncated(tensor: Tensor, mean: float = 0.0, std: float = 1.0, a: float = -2.0, b: float = 2.0, **_: Any) -> Law:
    """torch's trunc_normal_, whose cuts a, b are values; only symmetric cuts have a law of this form."""
    if not math.isclose(mean - a, b - mean, rel_tol=1e-6):
        return UNKNOWN
    cut = (b - mean) / std
    return Law("truncated", mean, std * _truncated_std(cut), cut) if cut < 8 else Law("normal", mean, std)


def _orthogonal(tensor: Tensor, gain: float = 1.0, **_: Any) -> Law:
    rows = tensor.shape[0]
    return Law("orthogonal", 0.0, gain / math.sqrt(max(rows, tensor.numel() // max(rows, 1))))


_SKIPPED_ON_META: dict[str, Callable[..., Law]] = {
    "_no_grad_trunc_normal_": _truncated,
    "trunc_normal_": _truncated,
    "orthogonal_": _orthogonal,
    "sparse_": lambda *_, **__: UNKNOWN,
    "dirac_": lambda *_, **__: UNKNOWN,
}
"""Initialisers of torch.nn.init that draw by rejection or factorisation, and do nothing at all on the meta device."""


def _holders(functions: dict[str, Callable[..., Tensor]]) -> list[tuple[dict[str, Any], str, str]]:
    """(namespace, key, name) wherever a module holds one of these functions: `from torch.nn.init import …` included."""
    names = {id(function): name for name, function in functions.items()}
    modules = [(path, module) for path, module in list(sys.modules.items()) if isinstance(module, ModuleType)]
    spaces = [vars(module) for path, module in modules if path == "torch.nn.init" or not path.startswith("torch.")]
    return [
        (space, key, names[id(value)]) for space in spaces for key, value in list(space.items()) if id(value) in names
    ]


@contextmanager
def recording(*, real: bool = True) -> Iterator[Recording]:
    """Watch every initialisation in this block; works on the meta device, changes nothing, costs no memory.

    With `real=False` nothing is written to a tensor on any device, so that storage which is never touched costs no memory
    either: for code that initialises nothing on meta.
    """
    recorder = _Recorder(real)
    originals = {name: getattr(torch.nn.init, name) for name in _SKIPPED_ON_META if hasattr(torch.nn.init, name)}
    places = _holders(originals)

    def watched(original: Callable[..., Tensor], law: Callable[..., Law]) -> Callable[..., Tensor]:
        @functools.wraps(original)
        def draw(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            result = original(tensor, *args, **kwargs) if real else tensor
            recorder.note(tensor, law(tensor, *args, **kwargs))
            return result

        return draw

    try:
        for space, key, name in places:
            space[key] = watched(originals[name], _SKIPPED_ON_META[name])
        with recorder:
            yield Recording(recorder)
    finally:
        for space, key, name in places:
            space[key] = originals[name]
