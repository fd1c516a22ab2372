"""Initial values by a counter: each is a function of (seed, tensor name, position) alone, so any sharding gives the same.

The counter is hashed by splitmix64 (Steele, Lea & Flood 2014), in wrapping int64 arithmetic that every device has.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from mutransfer.errors import InputError
from mutransfer.laws import Law

_CHUNK = 1 << 22  # elements drawn at a time: bounds the working memory at some 100 MB


def _signed(value: int) -> int:
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


_STEP, _MIX1, _MIX2 = (_signed(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _key(seed: int, name: str, stream: int) -> int:
    digest = hashlib.sha256(f"{seed}/{stream}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little", signed=True)


def uniforms(positions: Tensor, key: int) -> Tensor:
    """float64 in (0, 1), one per int64 position."""
    z = positions * _STEP + key
    for shift, factor in ((30, _MIX1), (27, _MIX2)):
        z = (z ^ ((z >> shift) & ((1 << (64 - shift)) - 1))) * factor
    z = z ^ ((z >> 31) & ((1 << 33) - 1))
    return (((z >> 12) & ((1 << 52) - 1)).double() + 0.5) * 2.0**-52


def _values(positions: Tensor, law: Law, seed: int, name: str) -> Tensor:
    u = uniforms(positions, _key(seed, name, 0))
    if law.kind == "uniform":
        return law.mean + law.std * math.sqrt(12) * (u - 0.5)
    if law.kind == "truncated":
        span = math.erf(law.cut / math.sqrt(2))
        unit = torch.erfinv((2 * u - 1) * span) * math.sqrt(2)
        density = math.exp(-(law.cut**2) / 2) / math.sqrt(2 * math.pi)
        return law.mean + unit * (law.std / math.sqrt(1 - 2 * law.cut * density / span))
    second = uniforms(positions, _key(seed, name, 1))
    return law.mean + law.std * torch.sqrt(-2 * torch.log(u)) * torch.cos(2 * math.pi * second)


def fill(
    tensor: Tensor, law: Law, seed: int, name: str, *, shape: torch.Size | None = None, offset: tuple[int, ...] = ()
) -> None:
    """Overwrite `tensor` with draws of `law`; it may be the part at `offset` of a whole tensor of `shape`.

    Raises InputError for an unknown law.
    """
    whole = torch.Size(shape if shape is not None else tensor.shape)
    start = offset or (0,) * len(whole)
    if law.kind == "unknown":
        raise InputError(f"{name!r}: its initial law could not be read off the base model; materialise the base")
    with torch.no_grad():
        if law.kind == "constant":
            tensor.fill_(law.mean)
            return
        if tensor.numel() == 0:
            return
        device = torch.device("cpu") if tensor.device.type == "mps" else tensor.device  # mps has no float64
        if law.kind == "orthogonal":
            tensor.copy_(
                _orthogonal(whole, law, seed, name, device)[tuple(map(slice, start, _ends(start, tensor.shape)))]
            )
            return
        strides = [math.prod(whole[i + 1 :]) for i in range(len(whole))]
        inner = torch.zeros((), dtype=torch.int64, device=device)
        for size, begin, stride in zip(tensor.shape[1:], start[1:], strides[1:], strict=True):
            inner = inner[..., None] + torch.arange(begin, begin + size, device=device) * stride
        if tensor.ndim == 0:
            tensor.copy_(_values(inner, law, seed, name))
            return
        rows = max(1, _CHUNK // max(1, inner.numel()))
        for first in range(0, tensor.shape[0], rows):
            last = min(first + rows, tensor.shape[0])
            outer = torch.arange(start[0] + first, start[0] + last, device=device) * strides[0]
            tensor[first:last].copy_(_values(outer.view(-1, *[1] * inner.ndim) + inner, law, seed, name))


def _ends(start: tuple[int, ...], shape: torch.Size) -> tuple[int, ...]:
    return tuple(begin + size for begin, size in zip(start, shape, strict=True))


def _orthogonal(shape: torch.Size, law: Law, seed: int, name: str, device: torch.device) -> Tensor:
    rows, columns = shape[0], math.prod(shape[1:])
    positions = torch.arange(rows * columns, device=device).view(rows, columns)
    normal = _values(positions, Law("normal", 0.0, 1.0), seed, name)
    q, r = torch.linalg.qr(normal.T if rows < columns else normal)
    q = q * torch.sign(torch.diagonal(r))
    q = q.T if rows < columns else q
    return (q * (law.std * math.sqrt(max(rows, columns)))).view(shape)
