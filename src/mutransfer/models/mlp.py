"""MLP: a multilayer perceptron, plain or residual."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import Tensor, nn

from mutransfer.errors import InputError
from mutransfer.models.config import check_choice, check_flag, check_number, check_whole, factory
from mutransfer.models.layers import ACTIVATIONS, EPS, Activation, Linear, norm_layer

Norm = Literal["none", "layernorm", "batchnorm"]
Init = Literal["default", "normal"]


@dataclass(frozen=True)
class MLPConfig:
    """Everything that defines an MLP. Raises `InputError` for a size below 1 or an unknown name."""

    inputs: int = 64
    outputs: int = 10
    width: int = 128
    depth: int = 2  # hidden layers (width, width), or residual blocks of two such matrices
    activation: Activation = "relu"
    bias: bool = True
    norm: Norm = "none"
    residual: bool = False
    init: Init = "default"  # PyTorch's uniform law, or "normal": every weight N(0, init_std²), every bias zero
    init_std: float = 0.02

    def __post_init__(self) -> None:
        check_whole(self, "inputs", "outputs", "width", "depth")
        check_number(self, "init_std", 0.0)
        check_flag(self, "bias", "residual")
        check_choice("activation", self.activation, get_args(Activation))
        check_choice("norm", self.norm, get_args(Norm))
        check_choice("init", self.init, get_args(Init))


class MLP(nn.Module):
    """Maps x (B, ...) with `inputs` numbers a row to outputs (B, outputs).

    Plain: `input`, then `layers.{i}`, each followed by its norm and activation, then `head`. Residual: `input`, then
    `blocks.{i}`, then `norm_f` and `head`.
    """

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.config = config
        self.activation = ACTIVATIONS[config.activation]
        self.input = _linear(config, config.inputs, config.width)
        if config.residual:
            self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
            self.norm_f = _norm(config)
        else:
            self.layers = nn.ModuleList(_linear(config, config.width, config.width) for _ in range(config.depth))
            self.norms = nn.ModuleList(_norm(config) for _ in range(config.depth + 1))
        self.head = _linear(config, config.width, config.outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (B, outputs). Raises `InputError` if a row of x does not hold `inputs` numbers."""
        rows = x.flatten(1) if x.dim() > 1 else x
        if x.dim() < 2 or rows.shape[1] != self.config.inputs:
            raise InputError(
                f"input of shape {tuple(x.shape)}: write (batch, ...) with {self.config.inputs} numbers a row"
            )
        h = self.input(rows)
        if self.config.residual:
            for block in self.blocks:
                h = block(h)
            return self.head(self.norm_f(h))
        h = self.activation(self.norms[0](h))
        for layer, norm in zip(self.layers, self.norms[1:], strict=True):
            h = self.activation(norm(layer(h)))
        return self.head(h)


class Block(nn.Module):
    """`x ← x + down(φ(up(norm(x))))`."""

    def __init__(self, config: MLPConfig) -> None:
        super().__init__()
        self.norm = _norm(config)
        self.up = _linear(config, config.width, config.width)
        self.down = _linear(config, config.width, config.width)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.activation(self.up(self.norm(x))))


def _linear(config: MLPConfig, fan_in: int, fan_out: int) -> nn.Linear:
    if config.init == "default":
        return nn.Linear(fan_in, fan_out, bias=config.bias)
    return Linear(fan_in, fan_out, config.bias, config.init_std)


def _norm(config: MLPConfig) -> nn.Module:
    if config.norm == "batchnorm":
        return nn.BatchNorm1d(config.width, eps=EPS)
    return norm_layer(config.norm, config.width, gain=True, bias=True)


def mlp_factory(**defaults: Any) -> Callable[..., MLP]:
    """A factory: `make = mlp_factory(inputs=64); model = make(width=256)`. Any field of `MLPConfig`.

    The result can be pickled. Raises `InputError` for an unknown field.
    """
    return factory(MLP, MLPConfig, defaults)
