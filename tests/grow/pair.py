"""A small model in the middle of its training, grown by the parts of `grow` one by one: what `verify_growth` is tested on."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mutransfer.growth.build import grow_plan
from mutransfer.growth.optimizer import grow_optimizer
from mutransfer.growth.tensors import GrowPlan
from mutransfer.growth.verify import Verification, verify_growth
from mutransfer.growth.weights import grown
from tests.growth import plan_of
from tests.growth_models import CASES

SETTINGS: dict[str, Any] = dict(lr=0.02, weight_decay=0.1)


@dataclass
class Pair:
    """A small model in the middle of its training, and the big one that goes on from there."""

    small: nn.Module
    big: nn.Module
    growth: GrowPlan
    batches: list[Any]
    optimizer: torch.optim.Optimizer
    big_optimizer: Any

    def verify(self, steps: int = 3, loss: Any = None, **options: Any) -> Verification:
        both = dict(optimizer=self.optimizer, big_optimizer=self.big_optimizer) if steps else {}
        return verify_growth(
            self.small, self.big, self.growth, self.batches, loss or cross_entropy, steps=steps, **both, **options
        )


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    outputs = model(*batch[0]).flatten(0, -2)
    return F.cross_entropy(outputs, batch[1][: len(outputs)])


def load(pair: Pair) -> None:
    small, big = ({**dict(m.named_parameters()), **dict(m.named_buffers())} for m in (pair.small, pair.big))
    with torch.no_grad():
        for tensor in pair.growth.tensors:
            big[tensor.name].copy_(grown(tensor, small[tensor.source].detach()))


def pair(
    name: str, optimizer: str = "adamw", dtype: torch.dtype = torch.float64, seed: int = 0, placement: str = "absorbed",
    alter: Callable[[GrowPlan], GrowPlan] = lambda growth: growth, **settings: Any,
) -> Pair:  # fmt: skip
    case, made_by = CASES[name], {**SETTINGS, **settings}
    same, plan = plan_of(case, False, optimizer), plan_of(case, True, optimizer, placement)
    torch.manual_seed(seed)
    small = case.make(**case.base).to(dtype)
    big = plan.attach(case.make(**case.target).to(dtype))
    with torch.no_grad():
        for p in small.parameters():
            p.add_(0.3 * torch.randn_like(p))
    generator = torch.Generator().manual_seed(seed + 1)
    batches = [
        (tuple(x.to(dtype) if x.is_floating_point() else x for x in case.inputs(generator)),
         torch.randint(5, (50,), generator=generator))
        for _ in range(3)
    ]  # fmt: skip
    growth = alter(grow_plan(small, big, plan, batch=(batches[0][0], {})))
    made = same.optimizer(small, **made_by)
    for batch in batches:
        made.zero_grad()
        cross_entropy(small, batch).backward()
        made.step()
    result = Pair(small, big, growth, batches, made, None)
    load(result)
    result.big_optimizer = grow_optimizer(made, small, big, growth)
    return result
