"""What a grid says, and the runs it makes."""

from __future__ import annotations

import math
from typing import Any

import pytest

from mutransfer.errors import InputError
from mutransfer.sweep.grid import axes_of, grid_configs
from mutransfer.sweep.wanted import Wanted

VALUES = {
    "model": {"kind": "gpt", "vocab_size": 103, "context": 16, "depth": 1, "head_size": 8}, "data": "topics", "batch": 4,
    "steps": 4, "warmup": 1,
}  # fmt: skip


@pytest.mark.parametrize(("word", "values"), [
    ("width=32,64", [32, 64]),
    ("width=2^5..2^8", [32, 64, 128, 256]),
    ("lr=2^-8..2^-6", [2**-8, 2**-7, 2**-6]),
    ("lr=2^-8..2^-7/2", [2**-8, 2**-7.5, 2**-7]),
    ("lr=2^-8.5,1e-3", [2**-8.5, 1e-3]),
    ("lr=10^-3..10^-1", [1e-3, 1e-2, 1e-1]),
    ("seed=0..3", [0, 1, 2, 3]),
    ("recipe=sp,mup", ["sp", "mup"]),
    ("bias=true,false", [True, False]),
    ("clip=none,1.0", [None, 1.0]),
])  # fmt: skip
def test_values_are_written_as_people_write_them(word: str, values: list[Any]) -> None:
    name, _, _ = word.partition("=")
    found = axes_of([word])[name]
    assert [type(a) is type(b) for a, b in zip(found, values, strict=True)] == [True] * len(values)
    assert all(a == b or math.isclose(a, b) for a, b in zip(found, values, strict=True))


@pytest.mark.parametrize(("words", "said"), [
    (["width"], "write name=values"),
    (["=3"], "write name=values"),
    (["width=32", "width=64"], "twice"),
    (["width=32,32"], "occurs twice"),
    (["width=32,,64"], "a value is missing beside a comma"),
    (["width=0..100000000"], "more than 200 values"),
    (["width=32..256"], "powers of two are written 2^5..2^8"),
    (["lr=2^-6..2^-8"], "no range"),
    (["lr=2^-8..2^-6/0"], "no range"),
    (["lr=2^-8..3^-6"], "no range"),
    (["lr=2^-8.5..2^-6"], "no range"),
    (["seed=3..1"], "no range"),
    (["lr=1e-3..1e-1"], "no range"),
])  # fmt: skip
def test_what_is_no_grid_is_one_line(words: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said.replace("^", r"\^").replace(".", r"\.")):
        axes_of(words)


def test_every_point_is_a_run_and_the_smallest_sizes_are_the_base() -> None:
    axes = {"recipe": ["sp", "mup"], "width": [64, 32], "lr": [2**-8, 2**-6], "seed": [0, 1]}
    configs = grid_configs(VALUES, axes)
    assert len(configs) == len({config.hash() for config in configs}) == 16
    assert all(config.base == {"width": 32} for config in configs)
    other = grid_configs({**VALUES, "base": {"width": 16}}, axes)
    assert all(config.base == {"width": 16} for config in other)
    named = grid_configs(VALUES, {**axes, "base.width": [8]})
    assert all(config.base == {"width": 8} for config in named)


def test_at_the_base_all_recipes_are_one_run_and_elsewhere_none_is() -> None:
    axes = {"recipe": ["sp", "mup", "completep"], "width": [32, 64], "depth": [1, 2]}
    runs = [Wanted.of(config) for config in grid_configs(VALUES, axes)]
    assert len({run.key for run in runs}) == 12
    results = {(run.fields["recipe"], run.fields["width"], run.fields["depth"]): run.result for run in runs}
    assert len({results[recipe, 32, 1] for recipe in axes["recipe"]}) == 1
    assert len(set(results.values())) == 10
    # μP says nothing of depth, but its plan is another object than none at all: only the base itself is shared
    assert results["mup", 32, 2] != results["completep", 32, 2]


def test_a_field_that_no_run_has_is_named() -> None:
    with pytest.raises(InputError, match="did you mean 'width'"):
        grid_configs(VALUES, {"widht": [32, 64]})
    with pytest.raises(InputError, match=r"base\.width=64"):
        grid_configs(VALUES, {"base": [32]})
