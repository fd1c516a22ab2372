"""The polar factor UVᵀ of many matrices G = U·S·Vᵀ at once, by Newton–Schulz: `X ← a·X + (b·A + c·A²)·X`, `A = X·Xᵀ`.

One batched product instead of a product per matrix. Where a matrix is rectangular enough, the iteration runs on its Gram
matrix R = X·Xᵀ instead, which is small: with `P = a·I + b·R + c·R²`, `Q ← Q·P` and `R ← P·R·P`, and X = Q·X at the end. It is
the same polynomial of X. What differs is rounding: an error u·‖R‖ in R is u·‖X‖² beside a small σ², and each step multiplies it
by a². So X and R are formed anew before that product has grown (`_segments`), which in bfloat16 is every two steps.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from mutransfer.errors import InputError
from mutransfer.muon.coefficients import Coefficients, Triple, schedule

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
_TOLERATED = 0.1  # of u·Π a²: P then keeps a·I to 14 % in the worst case; beyond, a σ can be thrown past 1.3, where Jordan's diverges
_WORTH = 1.5  # long/short side from which the Gram matrix saves work: k steps cost 2r + 4k − 3 square products, not k·(2r + 1)


def orthogonalize(
    matrices: Tensor,  # (…, m, n)
    *,
    coefficients: Coefficients = "jordan",
    ns_steps: int = 5,
    eps: float = 1e-7,
    dtype: str | None = None,
) -> Tensor:  # (…, m, n)
    """The polar factor of each matrix of a batch, approximately; in the input's dtype.

    `G / max(‖G‖_F, eps)`, then `ns_steps` steps of the quintic. `coefficients`: "jordan" (torch.optim.Muon's), "polar-express"
    (2505.16932), a triple (a, b, c), or a list of triples. `dtype` of the products: "bfloat16", "float32" or "float64"; None is
    float64 for such input, else bfloat16 where the device multiplies it natively (CUDA, CPUs with AVX512-BF16 or AMX), else
    float32. A zero matrix gives zeros; NaN and infinity stay in their own matrix.
    Raises InputError for fewer than two axes, for integer or complex input, and for unknown settings.
    """
    if not isinstance(matrices, Tensor) or matrices.ndim < 2 or not matrices.is_floating_point():
        found = f"{matrices.dtype} {tuple(matrices.shape)}" if isinstance(matrices, Tensor) else type(matrices).__name__
        raise InputError(f"orthogonalize takes a real floating tensor of shape (…, m, n), got {found}")
    steps = schedule(coefficients, ns_steps)
    check_eps(eps)
    computed = compute_dtype(dtype, matrices)
    if matrices.numel() == 0:
        return matrices.clone()
    batch = (
        matrices.detach()
        .to(computed, copy=True, memory_format=torch.contiguous_format)
        .reshape(-1, *matrices.shape[-2:])
    )
    return polar(batch, steps, eps).to(matrices.dtype).view(matrices.shape)


def check_eps(eps: float) -> None:
    """Raises InputError unless eps is a finite number, 0 or more."""
    if isinstance(eps, bool) or not isinstance(eps, int | float) or not 0 <= eps < math.inf:
        raise InputError(f"eps={eps!r}: write a finite number, 0 or more; it is the least ‖G‖_F that is divided by")


def compute_dtype(dtype: str | None, like: Tensor) -> torch.dtype:
    """The dtype of the products by its name; None decides as `orthogonalize` says. Raises InputError for another name."""
    if dtype is None:
        if like.dtype == torch.float64:
            return torch.float64
        return torch.bfloat16 if multiplies_bfloat16(like.device.type) else torch.float32
    if dtype not in DTYPES:
        raise InputError(f"dtype={dtype!r}: write {', '.join(map(repr, DTYPES))}, or None for the device's own")
    return DTYPES[dtype]


@functools.cache
def multiplies_bfloat16(device: str) -> bool:
    """Whether this kind of device ("cuda", "cpu", …) multiplies bfloat16 in hardware, which is then faster than float32."""
    if device != "cpu":
        return device == "cuda"
    found = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe is not None and probe() for probe in found)


def polar(
    x: Tensor,  # (B, m, n) in the compute dtype, overwritten
    steps: tuple[Triple, ...],
    eps: float,
    scratch: Scratch | None = None,
) -> Tensor:  # (B, m, n)
    """The iteration itself, on a batch that the caller gives up; nothing is checked. Takes its memory from `scratch`, x's included."""
    scratch = Scratch() if scratch is None else scratch
    norm = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)
    x.div_(norm.clamp_(min=max(eps, torch.finfo(x.dtype).tiny)))
    tall = x.shape[-2] > x.shape[-1]
    gram = scratch.take((x.shape[0], min(x.shape[-2:]), min(x.shape[-2:])), x)
    for segment in _segments(steps, x):
        torch.bmm(*((x.mT, x) if tall else (x, x.mT)), out=gram)
        y = scratch.take(x.shape, x)
        if len(segment) > 1:
            q = _factor(gram, segment, scratch)
            torch.bmm(*((x, q) if tall else (q, x)), out=y)
        else:
            a, b, c = next(iter(segment))
            q = scratch.take(gram.shape, x)
            if c:
                torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=q)
                torch.baddbmm(x, *((x, q) if tall else (q, x)), beta=a, out=y)
            else:  # a cubic takes one product less
                torch.baddbmm(x, *((x, gram) if tall else (gram, x)), beta=a, alpha=b, out=y)
        scratch.give(x, q)
        x = y
    scratch.give(gram)
    return x


class Scratch:
    """Memory that one step uses again and again: on a CPU, touching fresh pages costs as much as the products themselves."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, torch.dtype, torch.device], list[Tensor]] = {}

    def take(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A tensor of this shape, uninitialised, of the dtype and device of `like`."""
        return self.make(shape, like.dtype, like.device)

    def make(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """The same from a dtype and a device."""
        free = self._free.get((math.prod(shape), dtype, device))
        return free.pop().view(shape) if free else torch.empty(shape, dtype=dtype, device=device)

    def give(self, *tensors: Tensor) -> None:
        """Take back what is needed no more."""
        for tensor in tensors:
            self._free.setdefault((tensor.numel(), tensor.dtype, tensor.device), []).append(tensor)


def _factor(
    r: Tensor,  # (B, m, m), the Gram matrix, overwritten
    segment: tuple[Triple, ...],
    scratch: Scratch,
) -> Tensor:  # (B, m, m)
    """The product Q of the steps' factors P, so that Q·X is X after all of them. Everything here commutes."""
    p, spare = scratch.take(r.shape, r), scratch.take(r.shape, r)
    q = None
    for number, (a, b, c) in enumerate(segment):
        # P − a·I: the identity is left out, as it would drown small entries
        torch.baddbmm(r, r, r, beta=b, alpha=c, out=p) if c else torch.mul(r, b, out=p)
        if number < len(segment) - 1:
            torch.baddbmm(r, p, r, beta=a, out=spare)
            torch.baddbmm(spare, spare, p, beta=a, out=r)
        if q is None:
            q, p = p, scratch.take(r.shape, r)
            q.diagonal(dim1=-2, dim2=-1).add_(a)
        else:
            torch.baddbmm(q, q, p, beta=a, out=spare)
            q, spare = spare, q
    assert q is not None
    scratch.give(p, spare)
    return q


def _segments(steps: tuple[Triple, ...], x: Tensor) -> list[tuple[Triple, ...]]:
    """The steps cut into runs on one Gram matrix each; runs of one step where X is too square for it to pay."""
    short, long = sorted(x.shape[-2:])
    if long < _WORTH * short:
        return [(step,) for step in steps]
    error = unit_roundoff(x)
    result: list[tuple[Triple, ...]] = []
    gain = math.inf
    for step in steps:
        if gain * error > _TOLERATED:
            result.append(())
            gain = 1.0
        result[-1] += (step,)
        gain *= max(1.0, step[0]) ** 2
    return result


def unit_roundoff(x: Tensor) -> float:
    """The relative error of one product in this tensor's dtype, with what the user allows float32 to be replaced by."""
    if x.dtype != torch.float32:
        return torch.finfo(x.dtype).eps / 2
    replaced = {"high": 2.0**-11, "medium": 2.0**-8}  # TF32, bfloat16
    return replaced.get(torch.get_float32_matmul_precision(), 2.0**-24)
