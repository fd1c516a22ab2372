"""What must be refused: no tensor or module can take the multiplier, or there is no stream."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.residual_zoo.arranged import PlainPre
from tests.residual_zoo.parts import IMAGE


class Highway(nn.Module):
    """The stream itself is gated: no branch multiplier makes it 1/L."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.h, self.t = nn.Linear(n, n), nn.Linear(n, n)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.sigmoid(self.t(x))
        return x * (1 - t) + torch.tanh(self.h(x)) * t


class Halved(PlainPre):
    """The sum is divided by √2: the stream is forgotten with depth."""

    def forward(self, x: Tensor) -> Tensor:
        x = (x + self.att(self.n1(x))) / math.sqrt(2)
        return (x + self.ffn(self.n2(x))) / math.sqrt(2)


class Interpolated(PlainPre):
    def forward(self, x: Tensor) -> Tensor:
        return torch.lerp(x, self.ffn(self.n1(x)), 0.1)


class Unscalable(nn.Module):
    """Behind the last matrix comes a function that is no module: nothing can take α."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.lin = nn.Linear(n, n)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.tanh(self.lin(x))


class UsedTwice(nn.Module):
    """What the branch adds is also read by the next one: its last matrix alone is not the branch."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Linear(n, n), nn.Linear(n, n), nn.Linear(n, n)

    def forward(self, x: Tensor) -> Tensor:
        y = self.two(F.relu(self.one(x)))
        return x + y + self.three(torch.tanh(y))


class FusedGate(nn.Module):
    """Value and gate in one last matrix: half of it is not homogeneous."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.lin = nn.Linear(n, 2 * n)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.glu(self.lin(x), dim=-1)


class Dead(PlainPre):
    """A matrix that nothing uses may be a branch that this pass did not take."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.sometimes = nn.Linear(n, n)


class NoStream(nn.Module):
    """Not residual at all."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.lin = nn.Linear(n, n)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.lin(x))


class Squeezed(nn.Module):
    """A gate made of the branch itself, in the block's own forward."""

    kind = IMAGE

    def __init__(self, n: int) -> None:
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(n, n, 3, padding=1), nn.BatchNorm2d(n)
        self.down_g, self.up_g = nn.Conv2d(n, 2, 1), nn.Conv2d(2, n, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.b1(self.c1(x))
        return x + h * torch.sigmoid(self.up_g(F.relu(self.down_g(h.mean((2, 3), keepdim=True)))))


class HoldsTheStream(nn.Module):
    """A sum inside of the branch looks like a residual one, and is not: scaling W does not scale relu(x + W x)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.lin = nn.Linear(n, n)

    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu(x + self.lin(x))


class PullsBack(PlainPre):
    def forward(self, x: Tensor) -> Tensor:
        return x + (self.ffn(self.n2(x + self.att(self.n1(x)))) - 0.1 * x)


class GatedByItself(PlainPre):
    """The gate holds the stream plus the branch."""

    def forward(self, x: Tensor) -> Tensor:
        v = self.ffn(self.n1(x)) + self.att(self.n2(x))
        return x + v * torch.sigmoid(x + v)


class OneMatrixTwice(nn.Module):
    """The last matrix is the first one too: the branch is quadratic in it."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.lin = nn.Linear(n, n)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.lin(F.relu(self.lin(x)))


class Clipped(HoldsTheStream):
    def forward(self, x: Tensor) -> Tensor:
        return x + F.relu6(self.lin(x))


class ConstantAdded(HoldsTheStream):
    """Part of the branch is no tensor of the model."""

    def forward(self, x: Tensor) -> Tensor:
        out = torch.ones_like(x)
        out[:, 0::2] = self.lin(x)[:, 0::2]
        return x + out
