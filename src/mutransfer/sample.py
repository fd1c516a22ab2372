"""An input that a module's forward accepts, guessed from its signature and its first layers; small, and on the CPU.

Nothing is known about the user's data. Shapes are tried in the order of likelihood, and what runs is right: a wrong number of
features does not run.
"""

from __future__ import annotations

import inspect
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mutransfer.axes import is_norm

Call = tuple[tuple[Any, ...], dict[str, Any]]

BATCH, LENGTH = 2, 6
_IMAGES = (16, 32, 64, 224, 28, 8, 4, 128)
_IDS = re.compile(r"(^|_)(ids?|idx|tokens?|src|tgt|source|target|labels?|y)(_|$)|input_ids")
_NOTHING = re.compile(r"mask|bias|cache|past|state|condition|context|rotation|freqs")
_FLOAT, _WHOLE = torch.float32, torch.int64


def calls(model: nn.Module, limit: int = 48) -> Iterator[Call]:
    """Arguments to try, at most `limit`: what the model itself names first (transformers), then guesses by its first layers."""
    required = _required(model)
    if required is None:
        return
    yield from itertools.islice(itertools.chain(_named(model), _guessed(model, required)), limit)


def _required(model: nn.Module) -> list[str] | None:
    """Names of the positional arguments that forward must get; None where nobody can tell."""
    try:
        parameters = list(inspect.signature(model.forward).parameters.values())
    except (TypeError, ValueError):
        return None
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = [p.name for p in positional if p.default is p.empty]
    return names or [p.name for p in positional[:1]] or (["input"] if parameters else [])


def _named(model: nn.Module) -> Iterator[Call]:
    """transformers' models: the name of their main input, their configuration, and no cache."""
    name, config = getattr(model, "main_input_name", None), getattr(model, "config", None)
    if not isinstance(name, str) or config is None:
        return
    accepted = inspect.signature(model.forward).parameters
    more: dict[str, Any] = {"use_cache": False} if "use_cache" in accepted else {}
    if getattr(config, "is_encoder_decoder", False):
        more["decoder_input_ids"] = _ids(model)
    if name == "input_ids":
        yield (), {name: _ids(model), **more}
    elif name == "pixel_values":
        size, channels = getattr(config, "image_size", 64), getattr(config, "num_channels", 3)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        yield (), {name: torch.randn(BATCH, channels, height, width), **more}
    elif name == "input_features":
        length = 2 * getattr(config, "max_source_positions", 200)
        yield (), {name: torch.randn(BATCH, getattr(config, "num_mel_bins", 80), length), **more}
    elif name == "input_values":
        yield (), {name: torch.randn(BATCH, 4000), **more}


def _ids(model: nn.Module, length: int = LENGTH) -> Tensor:
    tables = [m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)]
    return torch.arange(BATCH * length).view(BATCH, length) % max(1, min([11, *tables]))


def _guessed(model: nn.Module, required: list[str]) -> Iterator[Call]:
    if not required:
        yield (), {}
        return
    for main in _mains(model):
        # every argument alike (source and target, stream and memory), masks and the like left out; then only the first
        alike = [None if _NOTHING.search(name) else main for name in required]
        yield tuple([main, *alike[1:]]), {}
        if len(required) > 1:
            alone: list[Any] = [main, *[None] * (len(required) - 1)]
            yield tuple(alone), {}
            times = torch.zeros(BATCH, dtype=main.dtype if main.is_floating_point() else _FLOAT)
            yield (main, *[times] * (len(required) - 1)), {}
            if main.is_floating_point() and _IDS.search(required[1]):
                yield (main, *[torch.zeros(BATCH, dtype=_WHOLE)] * (len(required) - 1)), {}


def _mains(model: nn.Module) -> Iterator[Tensor]:
    """The first argument: token ids, images, signals, sequences or vectors of features, by the layer that comes first."""
    first = next((m for m in model.modules() if _kind(m)), None)
    kinds = list(dict.fromkeys([_kind(first) if first is not None else "features", "features", "ids"]))
    makers: dict[str, Callable[[nn.Module], Iterator[Tensor]]] = {
        "ids": _token_ids, "image": _images, "signal": _signals, "volume": _volumes, "features": _features,
    }  # fmt: skip
    for kind in kinds:
        yield from makers[kind](model)


def _kind(module: nn.Module) -> str:
    if isinstance(module, nn.Embedding):
        return "ids"
    for kind, types in (
        ("signal", (nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d)),
        ("image", (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, nn.GroupNorm)),
        ("volume", (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d)),
    ):
        if isinstance(module, types):
            return kind
    return "features" if any(p is not None for p in module._parameters.values()) else ""


def _token_ids(model: nn.Module) -> Iterator[Tensor]:
    for length in _lengths(model):
        yield _ids(model, length)
    yield _ids(model)[:, 0]


def _lengths(model: nn.Module) -> list[int]:
    """Numbers of positions: any, then those that a table of positions or a mixing matrix may insist on."""
    fixed = [p.shape[-2] for m in model.modules() for p in m._parameters.values() if p is not None and p.ndim in (2, 3)]
    mixing = [m.in_features for m in model.modules() if isinstance(m, nn.Linear)]
    return [*list(dict.fromkeys([LENGTH, *(n for n in [*fixed, *mixing] if 1 < n <= 1024)]))[:5], 3]


def _features(model: nn.Module) -> Iterator[Tensor]:
    sizes = _sizes(model)
    for n in sizes[:4]:
        yield torch.randn(BATCH, LENGTH, n)
        yield torch.randn(BATCH, n)
    for n in sizes[:2]:
        for length in _lengths(model)[1:]:
            yield torch.randn(BATCH, length, n)


def _sizes(model: nn.Module) -> list[int]:
    """Numbers of features that layers read, in their order: norms and Linear declare them, a bare matrix has two candidates."""
    found: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.Linear):
            found.append(module.in_features)
        elif isinstance(module, nn.RNNBase):
            found.append(module.input_size)
        elif isinstance(module, nn.MultiheadAttention):
            found.append(module.embed_dim)
        elif isinstance(module, nn.Bilinear):
            found.append(module.in1_features)
        else:
            for p in module._parameters.values():
                if p is not None and p.ndim > 0 and not isinstance(module, nn.Embedding | nn.modules.conv._ConvNd):
                    found += [p.shape[-1]] if is_norm(module) or p.ndim == 1 else [p.shape[-1], p.shape[-2]]
    return [n for n in dict.fromkeys(found) if n > 1]


def _channels(model: nn.Module, ndim: int) -> list[int]:
    found = [
        m.in_channels for m in model.modules() if isinstance(m, nn.modules.conv._ConvNd) and m.weight.ndim == ndim + 2
    ]
    found += [m.num_features for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    found += [m.num_channels for m in model.modules() if isinstance(m, nn.GroupNorm)]
    return list(dict.fromkeys(found))[:3]


def _images(model: nn.Module) -> Iterator[Tensor]:
    asked = getattr(model, "image_size", None) or getattr(getattr(model, "config", None), "image_size", None)
    sizes = [asked, *_IMAGES] if isinstance(asked, int) else _IMAGES
    for channels in _channels(model, 2):
        for size in sizes:
            yield torch.randn(BATCH, channels, size, size)


def _signals(model: nn.Module) -> Iterator[Tensor]:
    for channels in _channels(model, 1):
        for length in (LENGTH, 64, 400):
            yield torch.randn(BATCH, channels, length)
        yield torch.randn(BATCH, channels)
    yield from _features(model)


def _volumes(model: nn.Module) -> Iterator[Tensor]:
    for channels in _channels(model, 3):
        for size in (4, 16, 32):
            yield torch.randn(BATCH, channels, size, size, size)
