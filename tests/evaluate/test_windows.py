"""Every token but the first is scored exactly once, with the context that was asked for, whatever the batch."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mutransfer.errors import InputError
from mutransfer.evaluate import token_nats
from mutransfer.evaluate.windows import windows
from mutransfer.models import GPT, GPTConfig

CASES = [
    (2, 8, 8),
    (5, 8, 2),
    (9, 8, 8),
    (10, 8, 8),
    (17, 8, 8),
    (40, 8, 8),
    (40, 8, 3),
    (41, 8, 5),
    (40, 8, 1),
    (20, 1, 1),
]


def ids_of(count: int, vocab: int = 11, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(vocab, size=count).astype(np.uint16)


@pytest.fixture(scope="module")
def gpt() -> GPT:
    """In float64, with weights large enough that context matters."""
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=11, context=8, width=16, depth=2, head_size=8, init_std=0.3, dropout=0.2)).double()


@pytest.mark.parametrize(("count", "context", "stride"), CASES)
def test_each_target_is_in_one_window_with_enough_before_it(count: int, context: int, stride: int) -> None:
    seen: list[int] = []
    for number, window in enumerate(windows(count, context, stride)):
        assert window.start == number * stride and 1 <= window.length <= context
        for position in range(window.skip, window.length):
            target = window.start + position + 1
            before = target - window.start
            assert before == target if number == 0 else before >= context - stride + 1
            seen.append(target)
    assert seen == list(range(1, count))


@pytest.mark.parametrize(("count", "context", "stride"), CASES)
def test_the_nats_are_those_of_one_forward_pass_per_token(gpt: GPT, count: int, context: int, stride: int) -> None:
    ids = ids_of(count)
    gpt.eval()
    expected = []
    with torch.no_grad():
        for target in range(1, count):
            start = 0 if target <= context else math.ceil((target - context) / stride) * stride
            logits = gpt(torch.from_numpy(ids[start:target].astype(np.int64))[None])[0, -1]
            expected.append(float(-torch.log_softmax(logits, -1)[int(ids[target])]))
    found = token_nats(gpt, ids, context=context, stride=stride)
    assert found.dtype == np.float64 and found.shape == (count - 1,)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_the_batch_size_changes_rounding_only(gpt: GPT) -> None:
    ids = ids_of(301)
    alone = token_nats(gpt, ids, context=8, stride=3, batch=1)
    for batch in (2, 7, 1000, None):
        np.testing.assert_allclose(token_nats(gpt, ids, context=8, stride=3, batch=batch), alone, rtol=1e-12)


def test_a_wider_view_helps_a_model_that_uses_it() -> None:
    """Logits that know the ids up to three back, when these are in the window, on a text with that period."""

    def periodic(x: Tensor) -> Tensor:
        logits = torch.zeros(*x.shape, 5)
        logits[:, 2:].scatter_(2, x[:, :-2, None], 50.0)
        return logits

    ids = np.tile([0, 3, 4], 40)
    disjoint, sliding = (token_nats(periodic, ids, context=6, stride=stride) for stride in (6, 1))
    assert disjoint.sum() == pytest.approx(2 * 20 * math.log(5)) and sliding.sum() == pytest.approx(2 * math.log(5))


def test_a_uniform_model_costs_log_v_per_token() -> None:
    nats = token_nats(lambda x: torch.zeros(*x.shape, 50_257), ids_of(500), context=64, stride=17)
    np.testing.assert_allclose(nats, math.log(50_257), rtol=1e-15)


def test_half_precision_logits_are_normalised_in_float64() -> None:
    row = torch.randn(11, generator=torch.Generator().manual_seed(0)).bfloat16()
    nats = token_nats(lambda x: row.expand(*x.shape, 11), ids_of(50), context=8)
    np.testing.assert_allclose(nats, -torch.log_softmax(row.double(), 0)[ids_of(50)[1:].astype(int)], rtol=1e-14)


def test_an_impossible_token_costs_infinitely_much() -> None:
    row = torch.zeros(11)
    row[3] = -math.inf
    nats = token_nats(lambda x: row.expand(*x.shape, 11), np.array([1, 3, 2]), context=8)
    assert nats[0] == math.inf and nats[1] == pytest.approx(math.log(10))


def test_logits_may_come_in_an_object(gpt: GPT) -> None:
    ids = ids_of(40)
    wrapped = token_nats(lambda x: SimpleNamespace(logits=gpt(x), loss=None), ids, context=8)
    assert np.array_equal(wrapped, token_nats(gpt.eval(), ids, context=8))


@pytest.mark.parametrize("training", [True, False])
def test_modes_gradients_and_random_states_are_left_as_they_were(gpt: GPT, training: bool) -> None:
    gpt.train(training)
    gpt.blocks[0].eval()  # its owner froze it
    before = {name: module.training for name, module in gpt.named_modules()}
    state, seen = torch.get_rng_state(), []
    hook = gpt.register_forward_hook(lambda module, _, out: seen.append((module.training, out.requires_grad)))
    first, second = (token_nats(gpt, ids_of(40), context=8) for _ in range(2))
    hook.remove()
    assert set(seen) == {(False, False)} and np.array_equal(first, second)
    assert {name: module.training for name, module in gpt.named_modules()} == before
    assert torch.equal(state, torch.get_rng_state()) and torch.is_grad_enabled()
    with pytest.raises(InputError):
        token_nats(gpt, ids_of(40), context=9)  # beyond its positions: the mode comes back all the same
    assert {name: module.training for name, module in gpt.named_modules()} == before


def test_autocast_is_the_callers(gpt: GPT) -> None:
    model, seen = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 11)), []
    model.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    token_nats(model, ids_of(20), context=8)
    with torch.autocast("cpu", torch.bfloat16):
        token_nats(model, ids_of(20), context=8)
    assert seen[0] == torch.float32 and seen[-1] == torch.bfloat16


@pytest.mark.parametrize(
    ("model", "arguments", "said"),
    [
        (lambda x: x, {}, "it must give the logits of every position"),
        (lambda x: torch.zeros(*x.shape[:1], 1, 11), {}, "(batch, time, vocabulary)"),
        (lambda x: (torch.zeros(*x.shape, 11), None), {}, "returned a tuple"),
        (lambda x: torch.zeros(*x.shape, 5), {}, "logits for 5 tokens"),
        (lambda x: torch.full((*x.shape, 11), math.nan), {}, "diverged"),
        (nn.Embedding(5, 11), {}, "token ids up to 7 in windows of 8"),
        (None, {"context": 0}, "context=0"),
        (None, {"context": 2.5}, "context=2.5"),
        (None, {"context": None}, "context=None"),
        (None, {"stride": 9}, "stride=9"),
        (None, {"stride": 0}, "stride=0"),
        (None, {"batch": True}, "batch=True"),
    ],
)
def test_what_cannot_be_is_one_clear_line(model, arguments: dict, said: str) -> None:
    with pytest.raises(InputError) as caught:
        token_nats(model or nn.Embedding(11, 11), np.arange(11), **{"context": 8, **arguments})
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [0, 1])
def test_a_text_without_a_second_token_has_no_score(count: int) -> None:
    with pytest.raises(InputError, match="at least two"):
        token_nats(nn.Embedding(11, 11), np.zeros(count, dtype=int), context=8)
