"""The prediction for this checkpoint is found among others, in its own unit, and compared in nats per token."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mutransfer.errors import InputError
from mutransfer.evaluate import DomainScore
from mutransfer.evaluate.predicted import Predicted, matching, read_predictions, unchecked

SIZES = {"params": 1e6, "non_embedding": 8e5, "width": 64, "depth": 4, "tokens": 2e7}
SCORE = DomainScore("a", 1000, 4000, 2.0, 0.01)


def made(loss: float = 2.0, **at: float) -> Predicted:
    return Predicted(at, loss, loss - 0.1, loss + 0.1, 0.9)


@pytest.mark.parametrize(
    ("at", "fits"),
    [
        ({"params": 1e6}, True), ({"params": 1.04e6}, True), ({"params": 0.96e6}, True), ({"params": 1.06e6}, False),
        ({"width": 64}, True), ({"width": 65}, False), ({"width": 64, "depth": 5}, False), ({"width": 64, "lr": 0.1}, True),
        ({"params": 1e6, "tokens": 2e7}, True), ({"params": 1e6, "tokens": 4e7}, False), ({"non_embedding": 8e5}, True),
        ({"compute": 1e18}, False), ({}, False),
    ],
)  # fmt: skip
def test_a_prediction_fits_where_all_sizes_that_are_known_agree(at: dict[str, float], fits: bool) -> None:
    if fits:
        assert matching([made(5.0, params=3e9), made(**at)], SIZES).at == at
        assert unchecked(made(**at), SIZES) == tuple(name for name in at if name == "lr")
        return
    for predictions in ([made(**at)], [made(5.0, params=3e9), made(**at)]):
        with pytest.raises(InputError) as caught:
            matching(predictions, SIZES)
        assert "no prediction is for this checkpoint, of " in str(caught.value)
        assert all(f"{name}={value:g}" in str(caught.value) for name, value in at.items())


def test_the_nearest_of_several_is_taken_and_a_contradiction_is_not() -> None:
    near, far = made(2.0, params=1.01e6), made(3.0, params=1.03e6)
    assert matching([far, near], SIZES) == near
    assert matching([near, near], SIZES) == near
    with pytest.raises(InputError, match="2 predictions are for this checkpoint and differ"):
        matching([near, made(2.5, params=1.01e6)], SIZES)


def test_every_unit_is_compared_in_nats() -> None:
    inside = made(2.05, params=1e6)
    for unit, of in (
        ("nats", lambda nats: nats), ("bits", lambda nats: nats / math.log(2)), ("perplexity", math.exp),
        ("bits_per_byte", lambda nats: nats * 1000 / math.log(2) / 4000),
    ):  # fmt: skip
        said = Predicted(inside.at, of(inside.loss), of(inside.low), of(inside.high), 0.9, unit).beside(SCORE)
        assert said is not None and said.inside
        assert (said.loss, said.low, said.high) == pytest.approx((2.05, 1.95, 2.15))
        assert said.perplexity == pytest.approx(math.exp(2.05))
    outside = made(2.2, params=1e6).beside(SCORE)
    assert outside is not None and not outside.inside
    assert Predicted({}, 0.7, 0.6, 0.8, 0.9, "bits_per_byte").beside(DomainScore("ids", 9, None, 2.0, None)) is None


def content(**changes: Any) -> dict[str, Any]:
    row = {"at": {"params": 1e6}, "loss": 2.1, "low": 2.0, "high": None, "level": 0.9, **changes}
    return {"predictions": [{name: value for name, value in row.items() if value != "absent"}]}


def test_the_file_of_the_command_is_read(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(json.dumps({**content(), "columns": {"loss": "val_loss"}, "loss_unit": "bits", "law": {}}))
    assert read_predictions(path) == (
        Predicted({"params": 1e6}, 2.1, 2.0, math.inf, 0.9, unit="bits", column="val_loss"),
    )
    path.write_text(json.dumps(content(level=None)))
    (plain,) = read_predictions(path)
    assert (plain.unit, plain.column, plain.level) == ("nats", None, None)
    assert plain.words == "predicted for the fitted loss at params=1e+06"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read: No such file"),
        ("law: power", "is not JSON"),
        ("\xff", "is not JSON"),
        ("[]", "holds no predictions"),
        ("{}", "holds no predictions"),
        ('{"predictions": []}', "holds no predictions"),
        ('{"predictions": [3]}', "predictions[0] is not an object"),
        (content(at="absent"), "at=None"),
        (content(at={"params": "1B"}), "{'params': '1B'}"),
        (content(at={"params": 0}), "above 0"),
        (content(loss=None), "loss=None"),
        (content(loss=math.nan), "loss=nan"),
        (content(low="absent"), "low='missing'"),
        (content(high="2"), "high='2'"),
        (content(high=1.9), "low=2 above high=1.9"),
        ({**content(), "loss_unit": "dits"}, "loss_unit='dits'"),
    ],
)
def test_any_other_file_is_refused_in_one_line(text: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    if text is not None:
        path.write_text(text if isinstance(text, str) else json.dumps(text), encoding="latin-1")
    with pytest.raises(InputError) as caught:
        read_predictions(path)
    assert said in str(caught.value) and "\n" not in str(caught.value)
