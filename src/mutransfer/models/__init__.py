"""Reference models: plain PyTorch that knows nothing of plans."""

from mutransfer.models.gpt import GPT, GPTConfig, flops_per_token, generate, gpt_factory, gpt_loss
from mutransfer.models.mlp import MLP, MLPConfig, mlp_factory
from mutransfer.models.resnet import ResNet, ResNetConfig, resnet_factory

__all__ = [
    "GPT",
    "MLP",
    "GPTConfig",
    "MLPConfig",
    "ResNet",
    "ResNetConfig",
    "flops_per_token",
    "generate",
    "gpt_factory",
    "gpt_loss",
    "mlp_factory",
    "resnet_factory",
]
