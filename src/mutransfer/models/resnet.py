"""ResNet (1512.03385, batch norm, stride in the 3×3 as in ResNet v1.5) with the parameter names of torchvision's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch.nn.functional as F
from torch import Tensor, nn

from mutransfer.errors import InputError
from mutransfer.models.config import check_choice, check_flag, check_whole, factory

Stem = Literal["cifar", "imagenet"]


@dataclass(frozen=True)
class ResNetConfig:
    """Everything that defines a ResNet; the defaults are ResNet-18 for small images.

    ResNet-18 is `blocks=(2, 2, 2, 2)`, ResNet-34 `(3, 4, 6, 3)`, ResNet-50 `(3, 4, 6, 3)` with `bottleneck`. Raises
    `InputError` for a size below 1 or an unknown name.
    """

    channels: int = 3
    classes: int = 10
    width: int = 64  # channels of the stem and the first stage; stage i has width·2^i
    blocks: tuple[int, ...] = (2, 2, 2, 2)  # residual blocks of each stage
    bottleneck: bool = False  # blocks of 1×1, 3×3, 1×1 with four times the channels at their output
    stem: Stem = "cifar"  # 3×3 convolution; "imagenet": 7×7 with stride 2, then max-pooling with stride 2

    def __post_init__(self) -> None:
        check_whole(self, "channels", "classes", "width")
        check_flag(self, "bottleneck")
        check_choice("stem", self.stem, get_args(Stem))
        whole = isinstance(self.blocks, tuple | list) and all(type(n) is int and n > 0 for n in self.blocks)
        if not whole or not self.blocks:
            raise InputError(f"blocks={self.blocks!r}: write a tuple of whole numbers above 0, such as (2, 2, 2, 2)")
        object.__setattr__(self, "blocks", tuple(self.blocks))  # JSON gives a list


class BasicBlock(nn.Module):
    """`relu(x + branch(x))` with a branch of two 3×3 convolutions; `downsample` carries x where its shape changes."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, planes, 3, stride)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _downsample(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """The same with a branch of a 1×1, a 3×3 and a 1×1 convolution; the last has four times the channels."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, planes, 1)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = _conv(planes, planes, 3, stride)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = _conv(planes, planes * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(planes * self.expansion)
        self.downsample = _downsample(inputs, planes * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Maps images (B, channels, height, width) to logits (B, classes)."""

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        self.config = config
        kernel, stride = (7, 2) if config.stem == "imagenet" else (3, 1)
        self.conv1 = _conv(config.channels, config.width, kernel, stride)
        self.bn1 = nn.BatchNorm2d(config.width)
        block = Bottleneck if config.bottleneck else BasicBlock
        features = config.width
        for stage, count in enumerate(config.blocks):
            planes = config.width * 2**stage
            layers = []
            for i in range(count):
                layers.append(block(features, planes, stride=2 if stage and i == 0 else 1))
                features = planes * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.fc = nn.Linear(features, config.classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, classes). Raises `InputError` if x is not (B, channels, height, width)."""
        if x.dim() != 4 or x.shape[1] != self.config.channels:
            raise InputError(f"images of shape {tuple(x.shape)}: write (batch, {self.config.channels}, height, width)")
        x = F.relu(self.bn1(self.conv1(x)))
        if self.config.stem == "imagenet":
            x = F.max_pool2d(x, kernel_size=3, stride=2, padding=1)
        for stage in range(len(self.config.blocks)):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return self.fc(x.mean(dim=(2, 3)))


def _downsample(inputs: int, outputs: int, stride: int) -> nn.Module | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A convolution with the padding that keeps the image size at stride 1, and He's normal law over the fan-out."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def resnet_factory(**defaults: Any) -> Callable[..., ResNet]:
    """A factory: `make = resnet_factory(classes=100); model = make(width=16)`. Any field of `ResNetConfig`.

    The result can be pickled. Raises `InputError` for an unknown field.
    """
    return factory(ResNet, ResNetConfig, defaults)
