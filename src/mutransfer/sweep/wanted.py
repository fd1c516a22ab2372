"""A run that a sweep wants: a config of ours, or a call of the user's own function; and what identifies it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mutransfer.data import Data
    from mutransfer.train import RunConfig


@dataclass(frozen=True)
class Call:
    """One call of the user's own training function: `spec` names it (`package.module:name`), `point` its arguments."""

    spec: str
    folder: str
    """Where it is imported from; it does not decide the result."""
    point: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"function": self.spec, **self.point}


@dataclass(frozen=True)
class Wanted:
    """A run by what is known before it is made.

    `key` is the hash of the whole config and of the data's fingerprint. `result` is the hash of what decides the outcome:
    at its base size every recipe is the standard parametrization bit for bit, so there they share one run.
    """

    config: RunConfig | Call
    key: str
    result: str

    @classmethod
    def of(cls, config: RunConfig | Call) -> Wanted:
        """Raises InputError when the config's data is not there or does not fit the model."""
        if isinstance(config, Call):
            key = _hash(config.to_dict())
            return cls(config, key, key)
        fingerprint = data_of(config).fingerprint
        return cls(config, _hash(config.to_dict(), fingerprint), _hash(without_base(config).to_dict(), fingerprint))

    @property
    def fields(self) -> dict[str, Any]:
        """The config's fields by their flat names."""
        from mutransfer.sweep.store import flat

        return flat(self.config.to_dict())


def without_base(config: RunConfig) -> RunConfig:
    """The same run without what cannot matter: nothing is scaled at the base's own sizes, and under "sp" nowhere.

    A run that starts grown is scaled at its small model's sizes.
    """
    at_base = config.target == config.base and config.placement == "absorbed" and config.small is None
    if config.recipe == "sp" or at_base:
        return replace(config, recipe="sp", base={}, mode="exact", placement="absorbed")
    return config


def _hash(config: dict[str, Any], fingerprint: str = "") -> str:
    from mutransfer.train.config import canonical_json

    return hashlib.sha256(f"{canonical_json(config)} {fingerprint}".encode()).hexdigest()[:32]


_data: dict[tuple[object, ...], Data] = {}


def data_of(config: RunConfig) -> Data:
    """The data of a run, loaded once per process and checked against the model."""
    import torch

    from mutransfer.train import Task

    model = config.model
    key = (config.data, config.tokenizer, getattr(model, "context", None), getattr(model, "vocab_size", None))
    _data[key] = Task.of(config, torch.device("cpu"), _data.get(key)).data
    return _data[key]
