"""`mutransfer check`: the coordinate check of the user's own code, with a verdict as exit code."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from tyro.conf import Positional, arg

from mutransfer.errors import InputError

if TYPE_CHECKING:
    from mutransfer.check import CheckReport
    from mutransfer.data import Data

Sizes = tuple[tuple[str, int], ...]  # such as (("width", 64), ("depth", 4))
MOST = 1000  # steps, seeds: beyond this is a typing error, and the batches are held in memory
EXIT = {"PASS": 0, "FAIL": 1, "INCONCLUSIVE": 3}


@dataclass(frozen=True)
class Check:
    """Is this model, with this optimizer and this code, really scale-invariant? Exit code 0 yes, 1 no, 3 cannot tell.

    Examples:
      mutransfer check package.module:build --sizes 64 128 256 512 --batches package.module:batches
      mutransfer check gpt --sizes 32 64 128 256 --recipe mup --out report
      mutransfer check gpt --sizes 32 64 128 --depths 2 4 8 --recipe completep
    """

    summary: ClassVar[str] = "is this model, with this optimizer and this code, really scale-invariant?"

    build: Annotated[Positional[str], arg(metavar="BUILD")]
    """Your build(size) -> (model, optimizer) as package.module:name or file.py:name; or gpt, mlp, resnet."""
    sizes: Annotated[tuple[int, ...], arg(metavar="INT ...")]
    """At least three sizes that span a factor of four or more."""
    depths: Annotated[tuple[int, ...], arg(metavar="INT ...", help_behavior_hint="")] = ()
    """Depths as well: the grid of width × depth; your build gets a dict such as {"width": 64, "depth": 4}."""
    axis: Annotated[str, arg(metavar="NAME")] = "width"
    """What the sizes are: width or depth."""
    data: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """A data set (see: mutransfer data list) or a path; by default the embedded text, or digits for mlp and resnet."""
    batches: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Your own batches: a function without arguments or an iterable, as package.module:name; the loss is then the model's own."""
    loss: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """Your own loss(model, batch) -> scalar, as package.module:name; by default cross-entropy on a named data set."""
    batch: Annotated[int, arg(metavar="INT")] = 16
    """Rows of a batch of a named data set."""
    context: Annotated[int, arg(metavar="INT")] = 64
    """Tokens of a row of text."""
    steps: Annotated[int, arg(metavar="INT")] = 4
    """Training steps at each size."""
    seeds: Annotated[int, arg(metavar="INT")] = 3
    """Initialisations at each size; intervals come from their spread."""
    clip: Annotated[float | None, arg(metavar="FLOAT", help_behavior_hint="")] = None
    """Global gradient norm at which the training loop clips."""
    recipe: Annotated[str, arg(metavar="NAME")] = "mup"
    """Built-in models: sp, mup, depth-mup or completep, from the smallest size as base."""
    optimizer: Annotated[str, arg(metavar="NAME")] = "adamw"
    """Built-in models: the optimizer."""
    lr: Annotated[float, arg(metavar="FLOAT")] = 2**-8
    """Built-in models: the base's learning rate."""
    fixed: Annotated[tuple[str, ...], arg(metavar="NAME=VALUE ...", help_behavior_hint="")] = ()
    """Built-in models: other fields of the model, such as head_size=16 tied=true."""
    out: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Write report.html, check.png and check.json there."""
    json: bool = False
    """Print the report as JSON."""

    def run(self) -> int:
        """Run the check, print the verdict in words, write the report. Returns the verdict's exit code."""
        from mutransfer.check import coord_check
        from mutransfer.commands.builtin import MODELS
        from mutransfer.commands.output import Progress, require_folder, show_json
        from mutransfer.commands.user_code import find_function

        if self.out is not None:
            require_folder(self.out)
        self._check_numbers()
        table = None
        if self.build in MODELS:
            build, batches, loss, table = self._builtin()
        else:
            if self.fixed:
                raise InputError(
                    f"--fixed is for {', '.join(MODELS)}: {self.build!r} is your own code, write {self.fixed[0]!r} there"
                )
            build = find_function(self.build, "function build(size)", MODELS)
            batches, loss = self._feed(None)
        with Progress("check", 1.0) as progress:
            report = coord_check(
                build, self._grid() or self.sizes, batches, loss, self.steps, self.seeds,
                axis=None if self.depths else self.axis, clip=self.clip, progress=progress.callback(),
            )  # fmt: skip
        if self.out is not None:
            self._write(report, table)
        if self.json:
            show_json(report.to_dict())
        else:
            print(report.words())
            if self.out is not None:
                print(f"report: {self.out / 'report.html'}")
        return EXIT[report.verdict]

    def _check_numbers(self) -> None:
        for name in ("batch", "context", "steps", "seeds"):
            if getattr(self, name) < 1:
                raise InputError(f"--{name} {getattr(self, name)}: write a whole number of at least 1")
        for name in ("steps", "seeds"):
            if getattr(self, name) > MOST:
                raise InputError(f"--{name} {getattr(self, name)}: a coordinate check takes a few, and at most {MOST}")
        if not 0 < self.lr <= 1e6:
            raise InputError(f"--lr {self.lr:g}: write a number above 0 (and below a million)")
        for name, listed, example in (("sizes", self.sizes, "64 128 256 512"), ("depths", self.depths, "2 4 8")):
            if (name == "sizes" or listed) and (len(listed) < 2 or min(listed) < 1 or len(set(listed)) < len(listed)):
                raise InputError(
                    f"--{name} {' '.join(map(str, listed)) or 'names none'}: write at least two different sizes above 0, "
                    f"such as --{name} {example}"
                )
        if self.depths and self.axis != "width":
            raise InputError(f"--depths and --axis {self.axis}: with --depths the sizes are widths, leave --axis out")
        if self.batches is not None and self.data is not None:
            raise InputError(f"--data {self.data} and --batches {self.batches}: write one of them")

    def _grid(self) -> dict[str, tuple[int, ...]]:
        """Both axes and their sizes; empty without --depths."""
        return {"width": self.sizes, "depth": self.depths} if self.depths else {}

    def _feed(self, data: Data | None) -> tuple[Any, Callable[..., Any] | None]:
        """(batches, loss) of the user's own code, or of the named data set."""
        from mutransfer.commands.user_code import find, find_function, guarded

        loss = None if self.loss is None else find_function(self.loss, "function loss(model, batch)")
        if self.batches is not None:
            found = find(self.batches, "batches")
            batches = guarded(found, self.batches)() if callable(found) and not hasattr(found, "__iter__") else found
            from mutransfer.check.feed import default_loss

            if isinstance(batches, Iterator) or hasattr(
                batches, "dataset"
            ):  # a generator or a DataLoader: it runs the user's code
                batches = _each(batches, self.batches)
            return batches, loss or guarded(default_loss, self.build)
        data = data or self._load("topics")
        batches = [self._batch(data, step) for step in range(self.steps)]
        return batches, loss or guarded(cross_entropy, self.build)

    def _load(self, default: str) -> Data:
        from mutransfer.data import load

        name = self.data or default
        data = load(name)
        return data if data.kind != "text" else load(name, context=self.context)

    def _batch(self, data: Data, step: int) -> Any:
        from mutransfer.data import TextData

        if isinstance(data, TextData):
            return data.batch(step, 0, self.batch, self.context)
        return data.batch(step, 0, self.batch)

    def _builtin(self) -> tuple[Callable[..., Any], Any, Callable[..., Any] | None, str]:
        """build, batches, loss of a built-in model under a plan from the smallest size; and the largest size's table."""
        from mutransfer import plan
        from mutransfer.commands.builtin import DATA, config_fields, factory, fitted
        from mutransfer.commands.user_code import pairs
        from mutransfer.plans import Plan

        if self.axis not in ("width", "depth"):
            raise InputError(f"--axis {self.axis!r}: the built-in models grow in width or depth")
        axes: dict[str, tuple[int, ...]] = self._grid() or {self.axis: self.sizes}
        for axis in axes:
            if axis not in config_fields(self.build):
                written = f"--{'depths' if self.depths else f'axis {axis!r}'}"
                raise InputError(f"{written}: a {self.build} has no {axis}; write --axis width")
        data = self._load(DATA[self.build])
        fixed = {
            **({"context": self.context, "head_size": 16, "depth": 2} if self.build == "gpt" else {}),
            **fitted(self.build, data),
        }
        given = pairs(self.fixed, "--fixed")
        for axis in axes:
            if axis in given:
                option = "--depths" if axis == "depth" and self.depths else "--sizes"
                raise InputError(f"--fixed {axis}={given[axis]!r}: {axis} is what {option} gives")
        fixed.update(given)
        make = factory(self.build, {name: value for name, value in fixed.items() if name not in axes})
        base = {axis: min(listed) for axis, listed in axes.items()}

        def planned(size: Sizes) -> Plan:
            return plan(make, base=base, target=dict(size), optimizer=self.optimizer, recipe=self.recipe)

        every = [tuple(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
        plans = {size: planned(size) for size in every}  # every size fails now or never

        def build(size: int | dict[str, int]) -> tuple[Any, Any]:
            sizes = size if isinstance(size, dict) else {self.axis: size}
            made = plans[tuple((axis, sizes[axis]) for axis in axes)]
            model = made.initialize(make(**sizes))
            return model, made.optimizer(model, lr=self.lr)

        batches, loss = self._feed(data)
        return build, batches, loss, str(plans[tuple((axis, max(listed)) for axis, listed in axes.items())])

    def _write(self, report: CheckReport, table: str | None) -> None:
        from mutransfer.commands.output import command_line
        from mutransfer.report import Provenance, check_section, plan_section, write_page

        assert self.out is not None
        figure = self.out / "check.png"
        report.figure(figure)
        report.save(self.out / "check.json")
        sections = [check_section(report.to_dict(), figure.read_bytes(), f"Coordinate check of {self.build}")]
        if table is not None:
            sections.append(plan_section(table))
        write_page(
            self.out / "report.html", f"Coordinate check: {self.build}", sections, Provenance.now(command_line())
        )


def _each(batches: Any, name: str) -> Iterator[Any]:
    """The same batches; what goes wrong on the way to the next one is a line that names them."""
    from mutransfer.commands.user_code import guarded

    end = object()
    iterator = guarded(iter, name)(batches)
    while (batch := guarded(lambda: next(iterator, end), name)()) is not end:
        yield batch


def cross_entropy(model: Any, batch: Any) -> Any:
    """Mean cross-entropy in nats of a batch (x, y): the model's output is logits, or carries `.logits`."""
    import torch
    import torch.nn.functional as F

    x, y = batch
    output = model(x)
    logits = output["logits"] if isinstance(output, dict) and "logits" in output else getattr(output, "logits", output)
    if not isinstance(logits, torch.Tensor) or logits.shape[:-1] != y.shape:
        shown = f"shape {tuple(logits.shape)}" if isinstance(logits, torch.Tensor) else f"a {type(logits).__name__}"
        raise InputError(
            f"the model returned {shown} for labels of shape {tuple(y.shape)}: return logits {(*y.shape, 'classes')}, "
            "or give --loss package.module:loss"
        )
    return F.cross_entropy(logits.flatten(0, -2).float(), y.flatten())
