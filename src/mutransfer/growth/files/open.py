"""Which kind of checkpoint a path is, and what it needs to be grown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mutransfer.errors import InputError
from mutransfer.growth.files.checkpoint import Checkpoint
from mutransfer.plans import Plan
from mutransfer.train.checkpoint import CHECKPOINT

_FORMATS = "the folder of a run (mutransfer train), of a Hugging Face model, a file of torch.save, or safetensors"


def open_checkpoint(
    path: Path,
    to: Mapping[str, Any],
    *,
    base: Mapping[str, Any] | None = None,
    make: Callable[..., Any] | None = None,
    optimizer_state: Path | None = None,
    plan: Plan | None = None,
    planning: Mapping[str, Any] | None = None,
    steps: int | None = None,
    largest: int = 5 * 10**9,
) -> Checkpoint:
    """The checkpoint in `path`, opened to be read only, on its way to the sizes `to`.

    Plain files need `base` and `make` (the factory), because nobody else knows their sizes; `steps` is for runs. `planning` are
    further options of `mutransfer.plan`, such as axes and optimizer. Raises InputError for anything that is no checkpoint, and as
    the formats do.
    """
    if not path.exists():
        raise InputError(f"{str(path)!r} does not exist: give {_FORMATS}")
    kind, place = _kind(path)
    plain = {"--model": make, "--from": base or None}
    other = {"--optimizer-state": optimizer_state, "--plan": plan}
    other |= {f"--{name.replace('_', '-')}": value for name, value in (planning or {}).items()}
    if kind == "run":
        from mutransfer.growth.files.run import Run

        _refuse({**plain, **other}, place, "a run of ours, which holds it itself")
        return Run(place, to, steps)
    _refuse({"--steps": steps}, place, "no run of ours")
    if plan is not None and planning:
        raise InputError(f"--plan and --{next(iter(planning)).replace('_', '-')}: the plan has said it; leave one out")
    more: dict[str, Any] = {
        "optimizer_state": optimizer_state,
        "plan": plan,
        "planning": planning,
        "largest": largest,
    }
    if kind == "huggingface":
        from mutransfer.growth.files.huggingface import HuggingFace

        _refuse(plain, place, "a Hugging Face folder, whose config.json holds it")
        return HuggingFace(place, to, **more)
    if make is None or not base:
        missing = "--model package.module:make_model" if make is None else "--from width=256"
        raise InputError(
            f"{str(path)!r} does not say which model it is of: give the factory and its sizes, such as {missing}"
        )
    for name, size in to.items():
        before = base.get(name)
        if name not in base:
            raise InputError(f"--to {name}={size}: --from does not say what {name!r} is in the checkpoint")
        if type(before) is int and type(size) is int and size < before:
            raise InputError(f"--to {name}={size}: the checkpoint has {name}={before}, and nothing can shrink")
    if all(base[name] == size for name, size in to.items()):
        raise InputError(
            f"--to {' '.join(f'{n}={s}' for n, s in to.items())}: those are the checkpoint's sizes; nothing grows"
        )
    from mutransfer.growth.files.plain import Plain

    return Plain(place, make, base, to, **more)


def weights_of(path: Path, model: nn.Module) -> Mapping[str, Tensor]:
    """The weights of a checkpoint of any of these kinds by the names of `model`. Raises InputError where they are another model's."""
    from mutransfer.growth.files.growing import check_weights
    from mutransfer.growth.files.plain import named_weights
    from mutransfer.growth.files.safetensors_folder import open_weights
    from mutransfer.growth.files.torch_file import open_torch

    if not path.exists():
        raise InputError(f"{str(path)!r} does not exist: give {_FORMATS}")
    kind, place = _kind(path)
    if kind == "huggingface" and (place / "pytorch_model.bin").is_file():
        place = place / "pytorch_model.bin"
    if place.is_dir() or place.name.endswith((".safetensors", ".index.json")):
        weights: Mapping[str, Tensor] = open_weights(place)[0]
    else:
        weights = named_weights(open_torch(place), model, repr(str(place)))[2]
    check_weights(weights, model, repr(str(path)), "the grown model", tied=kind == "huggingface")
    return weights


def _refuse(given: Mapping[str, Any], path: Path, what: str) -> None:
    for option, value in given.items():
        if value is not None:
            raise InputError(f"{option} is not for {str(path)!r}, {what}: leave it out")


def _kind(path: Path) -> tuple[str, Path]:
    """ "run", "huggingface" or "plain", and the path to open."""
    if path.is_dir():
        if (path / CHECKPOINT).exists():
            return "run", path / CHECKPOINT
        if (path / "config.json").is_file():
            return "huggingface", path
        if (path / ".metadata").exists() or any(path.glob("*.distcp")):
            raise InputError(f"{str(path)!r} is a checkpoint of torch.distributed: turn it into one file with torch.distributed.checkpoint.format_utils.dcp_to_torch_save")  # fmt: skip
        if any(path.glob("*.safetensors")) or any(path.glob("*.index.json")):
            return "plain", path
        raise InputError(f"{str(path)!r} is no checkpoint: give {_FORMATS}")
    if path.name.endswith((".safetensors", ".index.json")):
        return "plain", path
    if path.suffix == ".distcp":
        return _kind(path.parent)
    if path.suffix in (".npz", ".h5", ".ckpt.index", ".msgpack", ".gguf"):
        raise InputError(f"{str(path)!r} is of a format that is not read: give {_FORMATS}")
    from mutransfer.growth.files.run import is_run
    from mutransfer.growth.files.torch_file import open_torch

    return ("run" if is_run(open_torch(path, check=False)) else "plain"), path
