"""Folders of transformers' models: config.json with other sizes, weights in safetensors, everything else copied.

The architecture comes from the package transformers; no code from the folder is run, and nothing is fetched.
"""

from __future__ import annotations

import importlib
import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mutransfer.build import plan as make_plan
from mutransfer.errors import InputError
from mutransfer.growth.files.checkpoint import Checkpoint
from mutransfer.growth.files.groups import grown_optimizer, is_optimizer, tensor_names
from mutransfer.growth.files.growing import Growing, check_weights
from mutransfer.growth.files.later import Later
from mutransfer.growth.files.safetensors import save_safetensors, shards
from mutransfer.growth.files.safetensors_folder import INDEX, index_of, open_weights
from mutransfer.growth.files.torch_file import open_torch, save_torch
from mutransfer.plans import Plan

CONFIG = "config.json"
WHOLE = "model.safetensors"
_KEPT = re.compile(
    r"(?i)(generation_config|special_tokens_map|added_tokens|vocab|merges|tok|spiece|sentencepiece|preprocessor_config|processor_config"
    r"|chat_template|README|LICENSE)"
)


class HuggingFace(Checkpoint):
    """The folder that `save_pretrained` wrote; `to` names fields of its config, such as hidden_size.

    Raises InputError without transformers, for an architecture that it does not have, for a name that is no size of the config,
    and for weights that are not the model's.
    """

    def __init__(
        self,
        path: Path,
        to: Mapping[str, Any],
        *,
        optimizer_state: Path | None = None,
        plan: Plan | None = None,
        planning: Mapping[str, Any] | None = None,
        largest: int = 5 * 10**9,
    ) -> None:
        self.path, self.largest = path, largest
        self.raw = _config(path)
        self.transformers = _transformers(path)
        sizes = _sizes(self._made_config({}), self.raw, to)
        self.base, self.target = sizes, dict(to)
        with torch.device("meta"):
            self.small, self.big = self.make(**self.base), self.make(**self.target)
        saved, self.metadata = open_weights(path)
        self.weights, self.written, self.notes = _matched(saved, self.small, path)
        self.converted = any(name not in self.weights for name in self.small.state_dict())
        if self.converted:
            self.weights = self._loaded()
            self.written = set(self.weights)
        check_weights(self.weights, self.small, repr(str(path)), f"{type(self.small).__name__} of its config")
        self.plan = plan if plan is not None else make_plan(
            self.make, base=self.base, target=self.target, **(planning or {})
        )  # fmt: skip
        self.optimizer_path, self.state = optimizer_state, None
        if optimizer_state is not None:
            self.state = open_torch(optimizer_state)
            if not is_optimizer(self.state):
                raise InputError(f"{str(optimizer_state)!r} is no optimizer's state: save optimizer.state_dict()")
            self.names = tensor_names(self.state, self.small, None, repr(str(optimizer_state)))

    def _made_config(self, sizes: Mapping[str, Any]) -> Any:
        """A config of these sizes: what follows from them (a head size that is not written) follows anew."""
        fields = {**{k: v for k, v in self.raw.items() if k not in ("model_type", "transformers_version")}, **sizes}
        try:
            return self.transformers.AutoConfig.for_model(self.raw["model_type"], **fields)
        except Exception as error:  # transformers raises ValueError, KeyError, TypeError and errors of its own
            said = (str(error).strip().splitlines() or [""])[0][:200]
            raise InputError(
                f"{str(self.path)!r}: its config cannot be made with {dict(sizes)} ({type(error).__name__}: {said})"
            ) from None

    def _loaded(self) -> dict[str, Tensor]:
        """The weights as transformers itself loads them: it renames and fuses those of some architectures. In memory, once."""
        try:
            model, info = type(self.small).from_pretrained(  # pyright: ignore[reportAttributeAccessIssue]
                self.path, local_files_only=True, output_loading_info=True
            )
        except Exception as error:  # OSError, ValueError, KeyError, RuntimeError and what its parts raise
            said = (str(error).strip().splitlines() or [""])[0][:200]
            raise InputError(
                f"{str(self.path)!r}: its model cannot be loaded ({type(error).__name__}: {said})"
            ) from None
        if info["missing_keys"]:
            missing = sorted(info["missing_keys"])[0]
            raise InputError(f"{str(self.path)!r} has no weights for {missing!r} of its {type(model).__name__}")
        return {name: tensor.detach() for name, tensor in model.state_dict().items()}

    def _save_converted(self, folder: Path, weights: Mapping[str, Later]) -> None:
        """Let transformers write what only it can name; the big model's weights are in memory once."""
        big: Any = self.make(**self.target)
        for name, later in weights.items():
            big.load_state_dict({name: later.make()}, strict=False, assign=True)
        big.tie_weights()
        big.save_pretrained(folder, max_shard_size=self.largest)

    def make(self, **sizes: Any) -> nn.Module:
        """The model of a config with these sizes, freshly drawn, in eval mode."""
        name = (self.raw.get("architectures") or ["AutoModel"])[0]
        cls = getattr(self.transformers, name, None)
        if name == "AutoModel" or cls is None:
            raise InputError(
                f"{str(self.path)!r}: transformers {self.transformers.__version__} has no architecture {name!r}"
            )
        config = self._made_config(sizes)
        config.use_cache = False
        try:
            return cls(config).eval()
        except Exception as error:
            said = (str(error).strip().splitlines() or [""])[0][:200]
            raise InputError(f"{name} cannot be made with {sizes} ({type(error).__name__}: {said})") from None

    def words(self) -> str:
        """Architecture and sizes."""
        return f"{type(self.small).__name__} of " + ", ".join(f"{name} {size}" for name, size in self.base.items())

    def models(self) -> tuple[nn.Module, nn.Module]:
        """In float32."""
        return self.make(**self.base).float(), self.make(**self.target).float()

    def content(self, growing: Growing, record: dict[str, Any]) -> dict[str, Any]:
        """Shards of weights, config.json, and the optimizer's state where it was given."""
        weights = {
            name: growing.weight(name)
            for name in self.big.state_dict()
            if name in self.written or (name not in self.weights and growing.of(name).source in self.written)
        }
        files = {WHOLE: weights} if self.converted else shards(weights, "model", self.largest)
        found: dict[str, Any] = {**files, CONFIG: {**self.raw, **self.target}}
        if self.state is not None and self.optimizer_path is not None:
            found[self.optimizer_path.name] = grown_optimizer(self.state, self.names, self.plan.optimizer_name, growing)
        return found

    def write(self, folder: Path, content: dict[str, Any]) -> None:
        """Write each file, and copy those of the tokenizer."""
        for path in sorted(self.path.iterdir()):
            if path.is_file() and _KEPT.match(path.name) and path.name not in content:
                shutil.copyfile(path, folder / path.name)
        parts = {name: part for name, part in content.items() if name.endswith(".safetensors")}
        if self.converted:
            self._save_converted(folder, parts[WHOLE])
        for name, part in () if self.converted else parts.items():
            save_safetensors(folder / name, part, self.metadata or {"format": "pt"})
        if len(parts) > 1:
            (folder / INDEX).write_text(index_of(parts), encoding="utf-8")
        for name, value in content.items():
            if name == CONFIG:
                (folder / name).write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
            elif name not in parts:
                save_torch(folder / name, value)
        self.plan.save(folder / "plan.json")

    def next_steps(self, out: Path) -> str:
        """How it is used."""
        return f"{type(self.small).__name__}.from_pretrained({str(out)!r}); mutransfer.Plan.load({str(out / 'plan.json')!r}) gives its param groups"  # fmt: skip


def _transformers(path: Path) -> Any:
    try:
        transformers = importlib.import_module("transformers")
    except ImportError:
        raise InputError(
            f"{str(path)!r} is a Hugging Face model, which needs the package transformers: pip install 'mutransfer[hf]'"
        ) from None
    transformers.utils.logging.set_verbosity_error()
    return transformers


def _config(path: Path) -> dict[str, Any]:
    place = path / CONFIG
    try:
        raw = json.loads(place.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{str(place)!r} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{str(place)!r} is no JSON ({error})") from None
    if not isinstance(raw, dict) or not isinstance(raw.get("model_type"), str):
        raise InputError(f"{str(place)!r} names no model_type: is it a folder of transformers?")
    if "quantization_config" in raw:
        raise InputError(
            f"{str(path)!r} is quantized: its weights are no numbers to grow; give the folder before quantization"
        )
    return raw


def _sizes(config: Any, raw: Mapping[str, Any], to: Mapping[str, Any]) -> dict[str, int]:
    """The source's sizes of the names in `to`."""
    found = {}
    for name, size in to.items():
        before = getattr(config, name, None)
        if type(before) is not int:
            known = ", ".join(sorted(key for key, value in raw.items() if type(value) is int and value > 1))
            raise InputError(f"--to {name}={size}: its config has no size {name!r}: it has {known}")
        if type(size) is not int or size < 1:
            raise InputError(f"--to {name}={size}: write a whole number, such as {name}={2 * before}")
        if size < before:
            raise InputError(f"--to {name}={size}: the checkpoint has {name}={before}, and nothing can shrink")
        found[name] = before
    if found == dict(to):
        raise InputError(
            f"--to {' '.join(f'{n}={s}' for n, s in to.items())}: those are the checkpoint's sizes; nothing grows"
        )
    return found


def _matched(
    saved: Mapping[str, Tensor], model: Any, path: Path
) -> tuple[dict[str, Tensor], set[str], tuple[str, ...]]:
    """Weights by the model's names, tied ones under each; the names that the files hold; and what was left out."""
    due = model.state_dict()
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    ignored = getattr(model, "_keys_to_ignore_on_load_unexpected", None) or []
    found: dict[str, Tensor] = {}
    left: list[str] = []
    for name, tensor in saved.items():
        ours = next((n for n in (name, prefix + name, name.removeprefix(prefix)) if n in due), None)
        if ours is None and any(re.search(pattern, n) for pattern in ignored for n in (name, prefix + name)):
            left.append(name)
            continue
        found[ours or name] = tensor
    written = set(found)
    tied: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        tied.setdefault(id(parameter), []).append(name)
    for names in tied.values():
        there = next((name for name in names if name in found), None)
        if there is not None:
            found.update({name: found[there] for name in names if name not in found})
    notes = (f"{len(left)} tensors that the model makes itself are left out, such as {left[0]!r}",) if left else ()
    return found, written, notes
