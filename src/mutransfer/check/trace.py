"""One forward pass, seen from inside: outputs of every module, and every place where a weight meets its input.

Module hooks see modules. A torch-function mode sees the operations themselves (linear, matmul, einsum, convolution, lookup,
attention, softmax), so that a functional call, a transposed or tied weight, or a layer that scales its own input are seen as they
are computed. Nothing in the model is changed.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from mutransfer.check.feed import tensors_in
from mutransfer.check.operations import HANDLERS, align
from mutransfer.check.seen import Seen, Site, kept, mean_square


class Trace(TorchFunctionMode):
    """Watch one forward pass of `model`.

    `changes` holds W_t − W_0 by parameter (their effect on the present input is measured), `before` the outputs kept at step 0.
    With `gradients=True` nothing is measured but the gradients at the outputs, through tensor hooks.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        changes: dict[str, Tensor] | None = None,
        before: dict[str, Tensor] | None = None,
        gradients: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.changes, self.before, self.gradients = model, changes, before, gradients
        self.seen = Seen()
        self.named = dict(model.named_parameters())
        self.owner = {p.untyped_storage().data_ptr(): name for name, p in self.named.items() if p.numel()}
        self.stack: list[str] = []
        self.recent: deque[tuple[Tensor, str]] = deque(maxlen=8)
        self.products: deque[tuple[Tensor, int, Tensor, Tensor, str | None, str | None]] = deque(maxlen=2)
        self.handles: list[Any] = []
        self.left = ""  # the module with weights whose output is the latest
        self.streams: dict[str, tuple[str, Tensor]] = {}  # a numbered stack -> its latest block and that block's input

    def __enter__(self) -> Trace:
        for name, module in self.model.named_modules():
            if ".parametrizations." in f".{name}.":  # these make weights, not activations
                continue
            self.handles.append(module.register_forward_pre_hook(self._entering(name), with_kwargs=True))
            self.handles.append(module.register_forward_hook(self._leaving(name), with_kwargs=True))
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.recent.clear()
        self.streams.clear()
        self.products.clear()

    # modules ---------------------------------------------------------------------------------------------------------

    def _entering(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            self.stack.append(name)
            self.seen.first_use.setdefault(name, self.seen.tick())
            if not self.gradients:
                with torch._C.DisableTorchFunction():
                    for x in tensors_in((args, kwargs), 1):
                        self.seen.add("input", name or "(model)", mean_square(x))
                        if self.before is None and name.rpartition(".")[2].isdigit():
                            self._stream(name, x.detach())

        return hook

    def _stream(self, name: str, x: Tensor) -> None:
        """What the previous block of this stack added to the stream, inside or outside of its own forward."""
        stack = name.rpartition(".")[0]
        previous, old = self.streams.get(stack, ("", None))
        follows = previous and int(name.rpartition(".")[2]) == int(previous.rpartition(".")[2]) + 1
        if old is not None and follows and old.shape == x.shape:
            self.seen.add("stream before", previous, mean_square(old))
            self.seen.add("stream after", previous, mean_square(x))
            self.seen.add("contribution", previous, mean_square(x - old))
        self.streams[stack] = name, x

    def _leaving(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            while self.stack and self.stack.pop() != name:
                pass
            with torch._C.DisableTorchFunction():
                found = tensors_in(output)
                for k, x in enumerate(found):
                    label = (name or "(model)") + (f"[{k}]" if k else "")
                    self._output(label, x, module, args, kwargs)
                if found and any(True for _ in module.parameters()):
                    self.left = name

        return hook

    def _output(self, label: str, x: Tensor, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.gradients:
            if x.requires_grad:
                x.register_hook(lambda g, label=label: self.seen.add("gradient of output", label, mean_square(g)))
            return
        self.seen.add("size", label, mean_square(x))
        is_conv = isinstance(module, (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm))
        self.seen.leaves[label] = x.shape[1] if is_conv and x.dim() > 2 else x.shape[-1]
        if self.before is None:
            if label not in self.seen.outputs:
                self.seen.outputs[label] = kept(x)
        elif label in self.before and label not in self.seen.outputs:
            old = self.before[label]
            self.seen.outputs[label] = old  # a module called twice is compared on its first call
            now = x.detach()[: old.shape[0]]
            if now.shape == old.shape:
                self.seen.add("change", label, mean_square(now - old))

    # operations ------------------------------------------------------------------------------------------------------

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        handler = HANDLERS.get(func)
        if handler is not None:
            handler(self, func, args, kwargs, out)
        return out

    def weight(self, x: Any) -> str | None:
        """The name of the parameter that this operand is, or is a view of."""
        if not isinstance(x, Tensor) or x.numel() == 0 or x.dim() < 2:
            return None
        try:
            return self.owner.get(x.untyped_storage().data_ptr())
        except RuntimeError:  # tensors without storage (functorch, sparse)
            return None

    def source(self, x: Tensor, pattern: re.Pattern[str]) -> str | None:
        """The parameter that made this activation: the same storage, else the latest one in this module that is named so."""
        pointer = x.untyped_storage().data_ptr()
        for out, param in reversed(self.recent):
            if out.untyped_storage().data_ptr() == pointer:
                return param
        inside = [param for _, param in self.recent if param.startswith(self.stack[-1] if self.stack else "")]
        for param in reversed(inside):
            if pattern.search(param):
                return param
        return None

    def site(self, param: str, out: Tensor, fan_in: int, fan_out: int) -> Site:
        module = self.stack[-1] if self.stack else ""
        key = param if param.rpartition(".")[0] == module or param not in self.seen.sites else f"{param} @ {module}"
        known = self.seen.sites.get(key)
        if known is not None and known.module != module:
            key = f"{param} @ {module}"
            known = self.seen.sites.get(key)
        if known is None:
            known = self.seen.sites[key] = Site(
                key, param, module, fan_in, fan_out, self.seen.tick(), self.left, self._owned(module, param)
            )
        if out.is_floating_point():
            self.recent.append((out.detach(), param))
        return known

    def _owned(self, module: str, param: str) -> bool:
        """Whether this parameter (perhaps tied to another name) hangs directly on this module."""
        w = self.named[param]
        return any(p is w for p in self.model.get_submodule(module).parameters(recurse=False))

    def measure(
        self,
        param: str,
        weight: Tensor,
        x: Tensor | None,
        out: Tensor,
        bias: Tensor | None,
        fans: tuple[int, int],
        apply: Callable[[Tensor], Tensor],
    ) -> None:
        """Record one product: `W x` without bias, `x`, and the present weight's change times this `x`."""
        site = self.site(param, out, *fans)
        if self.gradients:
            if out.requires_grad:
                out.register_hook(lambda g, key=site.key: self.seen.add("gradient at", key, mean_square(g)))
            return
        if self.changes is None:
            product = out if bias is None else out.detach() - align(bias.detach(), out)
            self.seen.add("product", site.key, mean_square(product))
            if x is not None:
                self.seen.add("operand", site.key, mean_square(x))
        elif param in self.changes:
            change, whole = self.changes[param], self.named[param]
            offset = weight.storage_offset() - whole.storage_offset()
            view = torch.as_strided(change, weight.size(), weight.stride(), offset)
            self.seen.add("own", site.key, mean_square(apply(view)))
