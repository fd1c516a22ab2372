"""Laws read off the initialisation code are the laws of the values it draws."""

import math

import pytest
import torch
from torch import nn

from mutransfer.laws import Law, measure, recording

INITS = {
    "normal": lambda w: nn.init.normal_(w, 0.0, 0.02),
    "shifted normal": lambda w: nn.init.normal_(w, 1.0, 0.1),
    "uniform": lambda w: nn.init.uniform_(w, -0.3, 0.3),
    "kaiming": lambda w: nn.init.kaiming_normal_(w, mode="fan_out", nonlinearity="relu"),
    "kaiming uniform": lambda w: nn.init.kaiming_uniform_(w, a=math.sqrt(5)),
    "xavier": nn.init.xavier_uniform_,
    "truncated": lambda w: nn.init.trunc_normal_(w, 0.0, 0.05, -0.1, 0.1),
    "orthogonal": lambda w: nn.init.orthogonal_(w, gain=2.0),
    "zeros": nn.init.zeros_,
    "ones": nn.init.ones_,
    "constant": lambda w: nn.init.constant_(w, 0.3),
    "scaled afterwards": lambda w: nn.init.normal_(w).mul_(0.5).div_(4),
    "functional": lambda w: w.copy_(torch.randn(w.shape, device=w.device) * 0.1),
}


@pytest.mark.parametrize("name", INITS)
def test_recorded_law_is_the_measured_one(name: str) -> None:
    with torch.no_grad(), recording() as seen:
        recorded = [seen.law(INITS[name](torch.empty(300, 400, device=device))) for device in ("cpu", "meta")]
    torch.manual_seed(0)
    with torch.no_grad():
        found = measure(INITS[name](torch.empty(300, 400)))
    assert recorded[0] == recorded[1]
    assert recorded[0].kind != "unknown"
    assert recorded[0].mean == pytest.approx(found.mean, abs=0.005 * max(found.std, 1e-6) + 1e-7)
    assert recorded[0].std == pytest.approx(found.std, rel=0.01, abs=1e-9)
    if name not in ("truncated", "orthogonal"):
        assert recorded[0].kind == found.kind


def test_default_layers_have_the_laws_that_torch_documents() -> None:
    with torch.device("meta"), recording() as seen:
        linear, table, norm = nn.Linear(64, 32), nn.Embedding(10, 16, padding_idx=0), nn.LayerNorm(8)
    bound = 1 / math.sqrt(64)
    assert seen.law(linear.weight) == Law("uniform", 0.0, pytest.approx(bound / math.sqrt(3)))
    assert seen.law(linear.bias).std == pytest.approx(bound / math.sqrt(3))
    assert seen.law(table.weight).kind in ("normal", "unknown")  # a zeroed padding row: 1 of 10 rows is more than 5 %
    assert seen.law(norm.weight) == Law("constant", 1.0) and seen.law(norm.bias).zeros


def test_what_cannot_be_followed_is_unknown_not_guessed() -> None:
    with torch.no_grad(), recording() as seen:
        weight = torch.empty(64, 64).normal_()
        weight.mul_(torch.rand(64, 64))
    assert seen.law(weight).kind == "unknown"
