"""What a run learns from: the batch of every update and the validation batches, checked against the model."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from mutransfer.data import Data, ImageData, TableData, TextData, load
from mutransfer.errors import InputError
from mutransfer.models import GPTConfig, MLPConfig, ResNetConfig
from mutransfer.train.config import RunConfig
from mutransfer.train.ranks import Ranks

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Task:
    """The batches of a run: pure functions of the update's number, so that resuming needs no other position."""

    config: RunConfig
    data: Data
    device: torch.device
    ranks: Ranks = field(default_factory=Ranks)

    @classmethod
    def of(
        cls, config: RunConfig, device: torch.device, data: Data | None = None, ranks: Ranks | None = None
    ) -> "Task":
        """The task that `config` names, or the same with `data` in place of the data set that it names.

        With `ranks`, the share of one of them. Raises `InputError` when the data does not fit the model (another vocabulary,
        number of features or of classes), or the batch does not divide among the ranks.
        """
        ranks = ranks or Ranks()
        ranks.micro_batches(config.batch, config.accumulation)
        if data is None:
            model = config.model
            context, vocab = (model.context, model.vocab_size) if isinstance(model, GPTConfig) else (None, None)
            stated = vocab if _needs_vocabulary(Path(config.data)) else None
            data = load(config.data, tokenizer=config.tokenizer, context=context, vocab_size=stated)
        _check_fit(config, data)
        return cls(config, data, device, ranks)

    def batch(self, step: int) -> Batch:
        """Inputs and labels of update number `step` (0-based), on the device: all its rows, or this rank's share.

        A run that starts grown goes on where the small model's stopped.
        """
        config, data, rank, size = self.config, self.data, self.ranks.rank, self.ranks.size
        step += config.grow_steps or 0
        if isinstance(data, TextData):
            return data.batch(step, config.seed, config.batch, _context(config), self.device, rank, size)
        return data.batch(step, config.seed, config.batch, self.device, rank, size)

    @property
    def micro_batches(self) -> int:
        """How many micro-batches `batch` is computed in."""
        return self.ranks.micro_batches(self.config.batch, self.config.accumulation)

    @property
    def micro_rows(self) -> int:
        """Rows of a micro-batch."""
        return self.config.batch // (self.ranks.size * self.micro_batches)

    def validation(self) -> Iterator[Batch]:
        """The same validation batches every time, every so many of them for each rank."""
        config, data = self.config, self.data
        rows, count = config.batch // config.accumulation, config.val_batches * config.accumulation
        if isinstance(data, TextData):
            batches = data.val_batches(rows, _context(config), count, self.device)
        else:
            batches = data.val_batches(rows, count, self.device)
        return islice(batches, self.ranks.rank, None, self.ranks.size)

    @property
    def tokens_per_row(self) -> int:
        """Tokens of a text's row; 1 for a row of a table or an image."""
        return _context(self.config) if isinstance(self.data, TextData) else 1

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row of inputs."""
        return (_context(self.config),) if isinstance(self.data, TextData) else self.data.train_x.shape[1:]


def _context(config: RunConfig) -> int:
    assert isinstance(config.model, GPTConfig)
    return config.model.context


def _needs_vocabulary(path: Path) -> bool:
    """Whether these are bare token files, which do not say how many tokens there are: then the model's word counts."""
    return path.suffix == ".bin" or ((path / "train.bin").is_file() and not (path / "meta.json").is_file())


def _check_fit(config: RunConfig, data: Data) -> None:
    model, name = config.model, data.name
    if isinstance(model, GPTConfig) != isinstance(data, TextData):
        wanted = "a text, such as 'topics'" if isinstance(model, GPTConfig) else "a table or images, such as 'digits'"
        raise InputError(
            f"data={name!r} is of kind {data.kind!r}, which a {config.model_kind} cannot read: give {wanted}"
        )
    if isinstance(data, TextData):
        assert isinstance(model, GPTConfig)
        if data.vocab_size > model.vocab_size:
            raise InputError(
                f"vocab_size={model.vocab_size} of the model is below the {data.vocab_size} tokens of {name!r}: "
                f"write vocab_size={data.vocab_size}"
            )
        return
    if isinstance(model, MLPConfig):
        features = data.train_x[0].size
        if model.inputs != features:
            raise InputError(
                f"inputs={model.inputs} but a row of {name!r} holds {features} numbers: write inputs={features}"
            )
        _check_classes("outputs", model.outputs, data)
        return
    assert isinstance(model, ResNetConfig)
    if not isinstance(data, ImageData):
        raise InputError(f"data={name!r} is of kind {data.kind!r}: a resnet needs images, such as 'digits-images'")
    if model.channels != data.channels:
        raise InputError(
            f"channels={model.channels} but the images of {name!r} have {data.channels}: write channels={data.channels}"
        )
    _check_classes("classes", model.classes, data)


def _check_classes(field: str, given: int, data: TableData | ImageData) -> None:
    if given < data.classes:
        raise InputError(
            f"{field}={given} is below the {data.classes} classes of {data.name!r}: write {field}={data.classes}"
        )
