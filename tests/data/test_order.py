"""The order of batches is a function of the seed and the step, and of nothing else."""

import numpy as np
import pytest
import torch

from mutransfer.data import load, text_batch, val_batches
from mutransfer.data.order import epoch_rows, offsets, permutation, split
from mutransfer.errors import InputError

TOKENS = np.arange(5000, dtype=np.uint16)


def test_offsets_have_known_values() -> None:
    """Stored runs stay reproducible: these numbers may never change."""
    assert offsets(seed=0, step=0, count=4, span=1000).tolist() == [11, 241, 111, 564]
    assert permutation(8, seed=1, epoch=2).tolist() == [4, 5, 6, 7, 1, 0, 2, 3]


def test_targets_are_the_next_tokens() -> None:
    x, y = text_batch(TOKENS, step=3, seed=1, batch=8, context=32)
    assert x.shape == y.shape == (8, 32)
    assert x.dtype == y.dtype == torch.int64
    assert x.is_contiguous() and y.is_contiguous()
    assert torch.equal(y, x + 1)  # the tokens count up


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_batches_are_reproducible_and_differ_between_steps_and_seeds(dtype: type) -> None:
    def first(step: int, seed: int) -> torch.Tensor:
        return text_batch(TOKENS.astype(dtype), step, seed, batch=16, context=8)[0]

    assert torch.equal(first(5, 1), first(5, 1))
    assert not torch.equal(first(5, 1), first(6, 1))
    assert not torch.equal(first(5, 1), first(5, 2))
    assert not torch.equal(first(1, 2), first(2, 1))


def test_a_larger_batch_keeps_the_first_rows() -> None:
    small = text_batch(TOKENS, step=7, seed=0, batch=5, context=16)[0]
    large = text_batch(TOKENS, step=7, seed=0, batch=64, context=16)[0]
    assert torch.equal(small, large[:5])


@pytest.mark.parametrize("world", [1, 2, 4])
def test_ranks_split_the_same_batch(world: int) -> None:
    whole = text_batch(TOKENS, step=2, seed=3, batch=8, context=16)
    parts = [text_batch(TOKENS, 2, 3, 8, 16, rank=rank, world=world) for rank in range(world)]
    for index in (0, 1):
        assert torch.equal(torch.cat([part[index] for part in parts]), whole[index])


def test_global_random_state_is_neither_used_nor_changed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1]
    text_batch(TOKENS, 0, 0, 4, 8)
    load("digits").batch(0, 0, 4)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_offsets_are_uniform_over_the_whole_text() -> None:
    drawn = np.concatenate([offsets(0, step, 64, 10) for step in range(200)])
    counts = np.bincount(drawn, minlength=10)
    expected = drawn.size / 10
    assert ((counts - expected) ** 2 / expected).sum() < 27.9  # χ², 9 degrees of freedom, p = 0.001
    assert drawn.min() == 0 and drawn.max() == 9


def test_offsets_reach_beyond_32_bits() -> None:
    assert offsets(0, 0, 256, 10**11).max() > 2**36


def test_the_shortest_text_has_one_window() -> None:
    x, y = text_batch(TOKENS[:9], 0, 0, batch=3, context=8)
    assert torch.equal(x, torch.arange(8).expand(3, 8))
    assert torch.equal(y, torch.arange(1, 9).expand(3, 8))


def test_validation_windows_do_not_overlap_and_never_change() -> None:
    batches = list(val_batches(TOKENS, batch=4, context=50, n=6))
    assert len(batches) == 6
    seen = torch.cat([x.reshape(-1) for x, _ in batches])
    assert seen.unique().numel() == seen.numel() == 6 * 4 * 50
    assert seen.max() > 4500  # spread over the whole text
    again = list(val_batches(TOKENS, batch=4, context=50, n=6))
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(batches, again, strict=True))


@pytest.mark.parametrize(("length", "shapes"), [(81, [(4, 10)] * 2), (80, [(4, 10)]), (25, [(2, 10)]), (11, [(1, 10)])])
def test_validation_batches_have_one_shape(length: int, shapes: list[tuple[int, int]]) -> None:
    assert [tuple(x.shape) for x, _ in val_batches(TOKENS[:length], batch=4, context=10)] == shapes


def test_every_epoch_shows_every_example_once() -> None:
    rows = epoch_rows(10, seed=0, start=0, stop=30)
    epochs = rows.reshape(3, 10)
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs.tolist())
    assert not np.array_equal(epochs[0], epochs[1])


def test_the_order_of_examples_does_not_depend_on_the_batch_size() -> None:
    by_three = np.concatenate([epoch_rows(10, 4, i, i + 3) for i in range(0, 24, 3)])
    assert np.array_equal(by_three, epoch_rows(10, 4, 0, 24))


def test_the_split_is_a_fixed_partition() -> None:
    train, val = split(100, 0.2)
    assert len(val) == 20
    assert sorted([*train.tolist(), *val.tolist()]) == list(range(100))
    assert np.array_equal(val, split(100, 0.2)[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(seed=-1), "seed=-1"),
        (dict(step=-1), "step=-1"),
        (dict(seed=1.5), "seed=1.5"),
        (dict(batch=0), "batch=0"),
        (dict(context=0), "context=0"),
        (dict(context=5000), "5000 tokens, too few for context=5000"),
        (dict(rank=2, world=2), "rank=2"),
        (dict(world=3), "batch=4 does not divide among world=3"),
        (dict(tokens=TOKENS[:0]), "empty"),
    ],
)
def test_wrong_arguments_are_quoted(change: dict, message: str) -> None:
    arguments = dict(tokens=TOKENS, step=0, seed=0, batch=4, context=8) | change
    with pytest.raises(InputError, match=message) as caught:
        text_batch(**arguments)
    assert "\n" not in str(caught.value)
