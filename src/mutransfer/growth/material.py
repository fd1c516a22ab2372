"""Storage for a big model that was built on the meta device, and one tensor written into another, sharded or not."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from mutransfer.errors import InputError
from mutransfer.growth.tensors import GrowPlan
from mutransfer.initialize import give_storage
from mutransfer.shapes import clean


def materialise(model: nn.Module, made: GrowPlan) -> None:
    """Storage on torch's default device for what is on meta. Raises InputError for a buffer there that growing does not fill."""
    for name, buffer in model.named_buffers():
        if buffer.is_meta and clean(name) not in made.by_name:
            raise InputError(f"buffer {name!r} of the big model is on the meta device and the small model has none of it: "
                             f"build the big model on a real device")  # fmt: skip
    give_storage(model)


def write(target: Any, value: Tensor) -> None:
    """Copy the whole `value` into `target`, in target's dtype and on its device; of a sharded tensor each process takes its shard."""
    if not hasattr(target, "device_mesh"):
        target.copy_(value)
        return
    from torch.distributed.tensor import distribute_tensor

    whole = value.to(target.to_local().device, target.dtype)
    target.copy_(distribute_tensor(whole, target.device_mesh, target.placements))


def full(tensor: Any) -> Tensor:
    """The tensor itself, or the whole of a sharded one (every process must ask)."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def shard_state(optimizer: Any) -> None:
    """Give every state of a sharded parameter's own shape that parameter's placement."""
    from torch.distributed.tensor import distribute_tensor

    for one in optimizer if isinstance(optimizer, list) else [optimizer]:
        for parameter, state in one.state.items():
            if not hasattr(parameter, "device_mesh"):
                continue
            for key, value in state.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape and not hasattr(value, "device_mesh"):
                    place = parameter.to_local().device
                    state[key] = distribute_tensor(value.to(place), parameter.device_mesh, parameter.placements)
