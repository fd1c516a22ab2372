"""Plain files: a state dict of torch's, alone or inside a larger checkpoint, or safetensors; with an optimizer's state beside it.

The model comes from the user's factory. Everything in the file that is no weight and no optimizer state is copied as it is.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mutransfer.build import plan as make_plan
from mutransfer.errors import InputError
from mutransfer.growth.files.checkpoint import Checkpoint
from mutransfer.growth.files.groups import grown_optimizer, is_optimizer, is_scheduler, tensor_names
from mutransfer.growth.files.growing import Growing, check_weights
from mutransfer.growth.files.safetensors import save_safetensors, shards
from mutransfer.growth.files.safetensors_folder import INDEX, index_of, open_weights
from mutransfer.growth.files.torch_file import open_torch, save_torch
from mutransfer.plans import Plan

OPTIMIZER = "optimizer.pt"
_PREFIXES = ("", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.")


class Plain(Checkpoint):
    """A file of weights with the factory `make(**sizes)` of its model; `base` are its sizes, `to` those of the big one.

    `make` may return (model, optimizer): the optimizer's groups then say which tensor each number in a saved state means.
    Raises InputError for a file that does not hold this model's tensors, and for a state whose tensors cannot be told.
    """

    def __init__(
        self,
        path: Path,
        make: Callable[..., Any],
        base: Mapping[str, Any],
        to: Mapping[str, Any],
        *,
        optimizer_state: Path | None = None,
        plan: Plan | None = None,
        planning: Mapping[str, Any] | None = None,
        largest: int = 5 * 10**9,
    ) -> None:
        self.path, self.make, self.largest = path, make, largest
        self.base, self.target = dict(base), {**base, **to}
        self.safe = path.name.endswith((".safetensors", ".index.json")) or path.is_dir()
        self.saved: Any
        self.metadata: dict[str, str] = {}
        if self.safe:
            self.saved, self.metadata = open_weights(path)
        else:
            self.saved = open_torch(path)
        with torch.device("meta"):
            self.small, small_optimizer = _built(make, self.base)
            self.big, _ = _built(make, self.target)
        where, made = repr(str(path)), f"the model of {_call(self.base)}"
        self.key, self.prefix, self.weights = named_weights(self.saved, self.small, where)
        self.written = {name for name in self.weights if f"{self.prefix}{name}" in self._held()}
        check_weights(self.weights, self.small, where, made)
        self.plan = plan if plan is not None else make_plan(
            lambda **sizes: _built(make, sizes)[0], base=self.base, target=self.target, **(planning or {})
        )  # fmt: skip
        state = None
        self.optimizer_path = optimizer_state
        self.inside = None
        if optimizer_state is not None:
            state = open_torch(optimizer_state)
            if not is_optimizer(state):
                raise InputError(f"{str(optimizer_state)!r} is no optimizer's state: save optimizer.state_dict()")
        elif isinstance(self.saved, dict):
            self.inside = next((key for key, value in self.saved.items() if is_optimizer(value)), None)
            state = None if self.inside is None else self.saved[self.inside]
        self.state = state
        if state is not None:
            self.names = tensor_names(state, self.small, small_optimizer, repr(str(optimizer_state or path)))
        else:
            self.notes = ("no optimizer state is given: the grown model starts with a fresh optimizer, and leaves the path of the small one",)  # fmt: skip

    def _held(self) -> Mapping[str, Tensor]:
        """The tensors in the file, under its names."""
        return self.saved if self.key is None else self.saved[self.key]

    def words(self) -> str:
        """Sizes and what is there."""
        there = "with" if self.state is not None else "without"
        return f"the model of {_call(self.base)}, {there} optimizer state"

    def models(self) -> tuple[nn.Module, nn.Module]:
        """As the factory makes them."""
        return _built(self.make, self.base)[0], _built(self.make, self.target)[0]

    def content(self, growing: Growing, record: dict[str, Any]) -> dict[str, Any]:
        """The file of weights under its own name, optimizer.pt where a state was given beside it, the plan, and nothing else."""
        weights = {
            f"{self.prefix}{name}": growing.weight(name)
            for name in self.big.state_dict()
            if name in self.written or (name not in self.weights and growing.of(name).source in self.written)
        }
        found: dict[str, Any] = {}
        optimizer = (
            None if self.state is None else grown_optimizer(self.state, self.names, self.plan.optimizer_name, growing)
        )
        if self.safe:
            found.update(shards(weights, "model", self.largest))
        elif self.key is None:
            found[self.path.name] = weights
        else:
            found[self.path.name] = {
                key: self._entry(key, value, weights, optimizer, growing) for key, value in self.saved.items()
            }
        if self.optimizer_path is not None:
            found[OPTIMIZER if self.optimizer_path.name == self.path.name else self.optimizer_path.name] = optimizer
        return found

    def _entry(self, key: str, value: Any, weights: dict[str, Any], optimizer: Any, growing: Growing) -> Any:
        if key == self.key:
            return weights
        if key == self.inside:
            return optimizer
        if is_scheduler(value) and optimizer is not None:
            rates = [group.get("initial_lr", group["lr"]) for group in optimizer["param_groups"]]
            now = [group["lr"] for group in optimizer["param_groups"]]
            return {**value, "base_lrs": rates, **({"_last_lr": now} if "_last_lr" in value else {})}
        prefix, averages = _as_weights(value, self.small)
        if averages is not None:  # of the weights (EMA)
            return {f"{prefix}{name}": later for name, later in growing.copied(averages).items()}
        if isinstance(value, Mapping) and any(isinstance(v, Tensor) and v.ndim for v in value.values()):
            raise InputError(f"{str(self.path)!r}: {key!r} holds tensors that are neither the model's weights nor its optimizer's state: leave it out")  # fmt: skip
        return value

    def write(self, folder: Path, content: dict[str, Any]) -> None:
        """Write each file."""
        if self.safe:
            parts = {name: part for name, part in content.items() if name.endswith(".safetensors")}
            for name, part in parts.items():
                save_safetensors(folder / name, part, self.metadata)
            if len(parts) > 1:
                (folder / INDEX).write_text(index_of(parts), encoding="utf-8")
        for name, value in content.items():
            if not name.endswith(".safetensors"):
                save_torch(folder / name, value)
        self.plan.save(folder / "plan.json")

    def next_steps(self, out: Path) -> str:
        """How the optimizer is built again."""
        if self.state is None:
            return f"plan = mutransfer.Plan.load({str(out / 'plan.json')!r}) gives the big model's param groups from the small one's settings"
        return "build its optimizer from the groups in the saved state, which name their tensors, then load the state"


def _call(sizes: Mapping[str, Any]) -> str:
    return f"make({', '.join(f'{name}={value!r}' for name, value in sizes.items())})"


def _built(make: Callable[..., Any], sizes: Mapping[str, Any]) -> tuple[nn.Module, torch.optim.Optimizer | None]:
    made = make(**sizes)
    optimizer = None
    if isinstance(made, Sequence) and len(made) == 2:
        made, optimizer = made
    if not isinstance(made, nn.Module):
        raise InputError(
            f"{_call(sizes)} returned a {type(made).__name__}: return the nn.Module, or (model, optimizer)"
        )
    return made, optimizer


def named_weights(saved: Any, model: nn.Module, where: str) -> tuple[str | None, str, Mapping[str, Tensor]]:
    """The entry that holds the weights (None: the file itself), the prefix of their names, and the weights."""
    if isinstance(saved, Mapping):
        for key in ("model", "state_dict", "model_state_dict", "module"):
            if isinstance(saved.get(key), Mapping):
                return key, *_stripped(saved[key], model)
        if saved and all(isinstance(value, Tensor) for value in saved.values()):
            return None, *_stripped(saved, model)
        raise InputError(f"{where} holds {', '.join(map(repr, list(saved)[:5]))} and no state dict: save model.state_dict(), or {{'model': model.state_dict()}}")  # fmt: skip
    raise InputError(f"{where} holds a {type(saved).__name__} and no state dict: save model.state_dict()")


def _stripped(weights: Mapping[str, Tensor], model: nn.Module) -> tuple[str, dict[str, Tensor]]:
    """Wrappers (DDP, torch.compile) put a prefix in front of every name."""
    due = model.state_dict()
    prefix = next((p for p in _PREFIXES if any(f"{p}{name}" in weights for name in due)), "")
    found = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    aliases: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        aliases.setdefault(id(parameter), []).append(name)
    for names in aliases.values():  # safetensors keeps a tied tensor once
        there = next((name for name in names if name in found), None)
        if there is not None:
            found.update({name: found[there] for name in names if name not in found})
    return prefix, found


def _as_weights(value: Any, model: nn.Module) -> tuple[str, dict[str, Tensor] | None]:
    if not isinstance(value, Mapping) or not value or not all(isinstance(v, Tensor) for v in value.values()):
        return "", None
    prefix, found = _stripped(value, model)
    due = model.state_dict()
    fits = all(name in due and found[name].shape == due[name].shape for name in found)
    return prefix, found if fits else None


def accepts(make: Callable[..., Any], names: Sequence[str]) -> str | None:
    """The first of these arguments that a factory does not take; None where it takes all, or cannot be asked."""
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):
        return None
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return next((name for name in names if name not in parameters), None)
