"""The built-in models by name, fitted to a data set: what `check gpt` and `train mlp` need beyond the user's words."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from mutransfer.errors import InputError

if TYPE_CHECKING:
    from torch import nn

    from mutransfer.data import Data

MODELS = ("gpt", "mlp", "resnet")
DATA = {"gpt": "topics", "mlp": "digits", "resnet": "digits-images"}


def factory(name: str, fixed: dict[str, Any]) -> Callable[..., nn.Module]:
    """`make_model(**sizes)` of a built-in model; `fixed` holds the fields that are the same at every size."""
    from mutransfer import models

    return {"gpt": models.gpt_factory, "mlp": models.mlp_factory, "resnet": models.resnet_factory}[name](**fixed)


def config_fields(name: str) -> tuple[str, ...]:
    """The field names of a built-in model's config."""
    from mutransfer import models

    config = {"gpt": models.GPTConfig, "mlp": models.MLPConfig, "resnet": models.ResNetConfig}[name]
    return tuple(field.name for field in fields(config))


def fitted(name: str, data: Data) -> dict[str, Any]:
    """The fields that this data set decides: vocabulary, inputs, channels and classes.

    Raises InputError for data that the model cannot read.
    """
    from mutransfer.data import ImageData, TextData

    if isinstance(data, TextData) and name == "gpt":
        return {"vocab_size": data.vocab_size}
    if not isinstance(data, TextData) and name == "mlp":
        return {"inputs": int(data.train_x[0].size), "outputs": data.classes}
    if isinstance(data, ImageData) and name == "resnet":
        return {"channels": int(data.train_x.shape[1]), "classes": data.classes}
    raise InputError(f"data {data.name!r} is of kind {data.kind!r}, which a {name} cannot read: give {DATA[name]!r}")


def described(name: str, given: Mapping[str, Any], axes: Collection[str] = ()) -> dict[str, Any]:
    """A built-in model's run as `RunConfig.to_dict` gives it, from what the user says of it.

    What he need not say: the data set, the fields that the data decides, and, with no base and no size among the `axes` that
    a grid varies, that nothing is transferred: the model as it is written. Raises InputError for unknown fields and data.
    """
    from mutransfer.data import load
    from mutransfer.sweep.grid import with_fields

    values = with_fields({"model": {"kind": name}, "data": DATA[name]}, given)
    if not values["base"] and not {"width", "depth"} & set(axes):
        values.setdefault("recipe", "sp")
    tokenizer = values.get("tokenizer")
    if isinstance(values["data"], str) and (tokenizer is None or isinstance(tokenizer, str)) and "data" not in axes:
        found = fitted(name, load(values["data"], tokenizer=tokenizer))
        values["model"] |= {field: value for field, value in found.items() if field not in {*given, *axes}}
    return values


def close_name(name: str, known: tuple[str, ...]) -> str:
    """A hint for a misspelt name."""
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(known)}"
