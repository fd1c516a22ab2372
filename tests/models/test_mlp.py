"""MLP: its names, sizes, initialization and refusals."""

import itertools
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mutransfer.errors import InputError
from mutransfer.models import MLP, MLPConfig, mlp_factory


def build(**fields) -> MLP:
    torch.manual_seed(0)
    return MLP(MLPConfig(**{"inputs": 6, "outputs": 3, "width": 16, **fields}))


@pytest.mark.parametrize(
    ("residual", "norm", "activation", "init"),
    list(
        itertools.product(
            (False, True), ("none", "layernorm", "batchnorm"), ("relu", "gelu", "relu2"), ("default", "normal")
        )
    ),
)
def test_every_combination_trains_every_tensor(residual, norm, activation, init):
    model = build(residual=residual, norm=norm, activation=activation, init=init, init_std=0.5)
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(0))
    y = model(x)
    assert y.shape == (32, 3)
    F.cross_entropy(y, torch.arange(32) % 3).backward()
    for name, p in model.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 0, name


def test_names_are_the_contract():
    assert [name for name, _ in build().named_parameters()] == [
        f"{layer}.{kind}" for layer in ("input", "layers.0", "layers.1", "head") for kind in ("weight", "bias")
    ]
    assert [name for name, _ in build(residual=True, bias=False).named_parameters()] == [
        f"{layer}.weight" for layer in ("input", "blocks.0.up", "blocks.0.down", "blocks.1.up", "blocks.1.down", "head")
    ]


@pytest.mark.parametrize("width", [8, 32])
@pytest.mark.parametrize("depth", [1, 3])
def test_parameter_count_is_the_hand_formula(width, depth):
    ends = 6 * width + width + 3 * width + 3
    for residual in (False, True):
        model = build(width=width, depth=depth, residual=residual)
        assert sum(p.numel() for p in model.parameters()) == ends + depth * (1 + residual) * (width + 1) * width


def test_plain_forward_is_the_formula():
    model, x = build(), torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    h = x @ model.input.weight.T + model.input.bias
    for layer in model.layers:
        h = h.relu() @ layer.weight.T + layer.bias
    torch.testing.assert_close(model(x), h.relu() @ model.head.weight.T + model.head.bias)


def test_residual_forward_with_zero_branches_is_two_matrices():
    model, x = build(residual=True, bias=False), torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for block in model.blocks:
            block.down.weight.zero_()
    torch.testing.assert_close(model(x), x @ model.input.weight.T @ model.head.weight.T)


def test_default_init_is_pytorchs_and_normal_init_is_normal():
    model = build(inputs=100, width=200)
    assert type(model.layers[0]) is nn.Linear
    assert model.layers[0].weight.abs().max() <= 1 / math.sqrt(200)
    model = build(inputs=100, width=200, init="normal", init_std=0.3)
    for layer in (model.input, *model.layers, model.head):
        assert abs(layer.weight.std() / 0.3 - 1) < 0.1 and (layer.bias == 0).all()
    assert model.layers[0].weight.abs().max() > 0.9


def test_images_are_flattened():
    model = build(inputs=64)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


def test_factory_can_be_pickled():
    model = pickle.loads(pickle.dumps(mlp_factory(inputs=5)))(width=24)
    assert model.config == MLPConfig(inputs=5, width=24)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"width": 0}, "width=0"),
        ({"depth": 0}, "depth=0"),
        ({"inputs": -1}, "inputs=-1"),
        ({"outputs": 2.5}, r"outputs=2\.5"),
        ({"activation": "swish"}, "activation='swish'"),
        ({"norm": "rmsnorm"}, "norm='rmsnorm'"),
        ({"init": "orthogonal"}, "init='orthogonal'"),
        ({"init_std": -1.0}, r"init_std=-1\.0"),
        ({"residual": 1}, "residual=1"),
    ],
    ids=str,
)
def test_wrong_config_is_one_clear_line(fields, words):
    with pytest.raises(InputError, match=words):
        MLPConfig(**fields)


@pytest.mark.parametrize("shape", [(6,), (2, 5), (2, 2, 6)])
def test_wrong_input_shape_is_one_clear_line(shape):
    with pytest.raises(InputError, match="6 numbers a row"):
        build()(torch.zeros(shape))
