"""Where branches end by what sources and names say: for models whose forward pass cannot be run.

First what the block's own forward adds to its stream, as far as its source can be read (`reading`); else known names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from torch import nn

from mutransfer.axes import is_norm
from mutransfer.blocks import collapse
from mutransfer.errors import InputError
from mutransfer.reading import addends, result_of
from mutransfer.shapes import TensorShape

_ENDS = re.compile(
    r"(^|\.)(c_proj|out_proj|o_proj|wo|w_o|proj_out|down_proj|w_down|down|fc2|fc_out|linear2|lin2|out_lin|w2|dense_4h_to_h|pwconv2|"
    r"output\.dense|(self_)?att(entio)?n\.dense|to_out(\.\d+)?|proj|out|o|output_proj|attn_out|ff_out|mlp_out)$"
)
SHORTCUT = re.compile(r"(^|\.)(downsample|shortcut|skip|residual_proj|identity)(\.|$)")
_GATES = re.compile(r"(^|\.)(se|se_\w+|squeeze\w*|eca|cbam|gate|router)(\.|$)")


def tensors_of(module: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, _ in module.named_parameters())


def with_bias(module: nn.Module, attribute: str) -> tuple[str, ...]:
    return tuple(name for name in (attribute, f"{attribute}_bias") if name in module._parameters)


def _matrices(block: nn.Module) -> list[str]:
    """Paths of the modules that own a matrix, in registration order, without shortcuts, gates and embeddings."""
    return [
        name
        for name, module in block.named_modules()
        if (
            any(p is not None and p.ndim > 1 for p in module._parameters.values())
            or hasattr(module, "parametrizations")
        )
        and not isinstance(module, nn.Embedding)
        and not is_norm(module)
        and "parametrizations" not in name
        and not SHORTCUT.search(name)
        and not _GATES.search(name)
    ]


def ends_by_name(path: str, block: nn.Module) -> set[str]:
    """Relative paths of the modules (or bare stacks of experts) that end the block's branches."""
    matrices = _matrices(block)
    if matrices == [""] or not matrices:
        raise InputError(unknown(path, block))
    added, complete = addends(block)
    if added and complete:
        read = [_resolve(block, addend.name) for addend in added]
        if all(read):
            return set().union(*(ends for ends in read if ends))
    if all(isinstance(block.get_submodule(m), nn.modules.conv._ConvNd) for m in matrices):
        return {_last_convolution(block, matrices[-1])}
    ends = {end for name in matrices if (end := _named(block, name))}
    parents = {name.rpartition(".")[0] for name in matrices}
    if not ends and len(parents) == 1 and isinstance(block.get_submodule(parents.pop()), nn.Sequential):
        return {_closed(block, matrices[-1], matrices)}
    if not ends:
        raise InputError(unknown(path, block))
    for name, child in block.named_children():
        inside = [m for m in matrices if m.startswith(f"{name}.")]
        split = name == "intermediate" and any(
            end.startswith("output.") for end in ends
        )  # BERT: one MLP in two modules
        if inside and not split and not any(end.startswith(f"{name}.") for end in ends):
            if isinstance(child, nn.Sequential) and inside[-1].count(".") == 1:  # a chain ends with its last matrix
                ends.add(inside[-1])
                continue
            raise InputError(unknown(path, block, f"{name} ({type(child).__name__})"))
    direct = [m for m in matrices if "." not in m and not list(block.get_submodule(m).children())]
    if direct and not any(end == m or end.startswith(f"{m}.") for end in ends for m in direct):
        raise InputError(unknown(path, block))
    ends = {_closed(block, end, matrices) for end in ends}
    for addend in (a for a in added if a.norm):
        fed = {e for e in ends if addend.feeds and (e == addend.feeds or e.startswith(f"{addend.feeds}."))}
        if not fed:
            raise InputError(unknown(path, block))
        ends = ends - fed | {addend.name}
    return ends


def _resolve(block: nn.Module, path: str) -> set[str] | None:
    """The last module inside the child whose output is added: its own forward tells, else known names; None: unknown."""
    module = block.get_submodule(path)
    if is_norm(module):
        return {path}
    if isinstance(module, nn.MultiheadAttention):
        return {f"{path}.out_proj"}
    if isinstance(module, nn.Sequential):
        last = next((n for n, m in reversed(list(module.named_children())) if any(True for _ in m.parameters())), None)
        return _resolve(block, f"{path}.{last}") if last is not None else None
    inside = [m for m in _matrices(block) if m == path or m.startswith(f"{path}.")]
    if inside == [path]:
        end = path if sum(p.ndim > 1 for p in module.parameters(recurse=False)) <= 1 else _named(block, path)
        return {end} if end else None
    last = result_of(module)
    if last is not None and (found := _resolve(block, f"{path}.{last}")):
        return found
    ends = {_closed(block, end, inside) for name in inside if (end := _named(block, name))}
    return ends or None


def _named(block: nn.Module, name: str) -> str | None:
    """This module where its name is one that ends branches, or its bare stack of matrices with such a name."""
    module = block.get_submodule(name)
    own = [key for key, p in module._parameters.items() if p is not None and p.ndim > 1]
    if len(own) > 1:  # a stack of experts
        return next((f"{name}.{key}" if name else key for key in own if _ENDS.search(key)), None)
    if not _ENDS.search(name):
        return None
    leaf, parent = name.rpartition(".")[2], block.get_submodule(name.rpartition(".")[0])
    if leaf == "w2" and hasattr(parent, "w3"):  # gated MLPs number their matrices in two ways: shapes tell
        shapes = {
            key: tuple(p.shape) for key in ("w1", "w2", "w3") for p in getattr(parent, key).parameters() if p.ndim > 1
        }
        down = [key for key in shapes if list(shapes.values()).count(shapes[key]) == 1]
        return f"{name[:-2]}{down[0]}" if len(down) == 1 else None
    return name


def _closed(block: nn.Module, end: str, matrices: list[str]) -> str:
    """The end itself, or what follows it in its own chain: a later matrix (GEGLU's first half is called proj), a norm."""
    parts = end.split(".")
    for i in range(len(parts)):
        chain = block.get_submodule(".".join(parts[:i]))
        kinds = {type(child) for child in chain.children()}
        if not (isinstance(chain, nn.Sequential) or (isinstance(chain, nn.ModuleList) and len(kinds) > 1)):
            continue
        for index, child in reversed(list(chain.named_children())):
            path = ".".join([*parts[:i], index])
            if int(index) > int(parts[i]) and (path in matrices or is_norm(child)):
                return path
    return end


def _last_convolution(block: nn.Module, last: str) -> str:
    """The last convolution, or the norm right after it."""
    names = [name for name, module in block.named_modules() if module._parameters and not SHORTCUT.search(name)]
    after = [name for name in names[names.index(last) + 1 :] if not _GATES.search(name)]
    return next((name for name in after if is_norm(block.get_submodule(name))), last)


def check_sizes(
    block: str, ends: dict[str, tuple[str, ...]], shapes: Sequence[TensorShape], modules: dict[str, nn.Module]
) -> None:
    """Every end of a block writes to the same stream: the same number of features."""
    inside = {shape.name: shape for shape in shapes if shape.name.startswith(block)}
    for path in ends:
        refuse_normalised(path, modules[path])
    sizes: dict[float, str] = {}
    for path, attributes in ends.items():
        for attribute in attributes:
            shape = inside.get(f"{path}.{attribute}")
            if shape is not None and (len(shape.target_shape) > 1 or is_norm(modules[path])):
                sizes.setdefault(shape.fan_out.target, path)
    if len(sizes) > 1:
        raise InputError(unknown(block, modules[block], f"{' and '.join(sizes.values())} differ in output size"))


def refuse_normalised(path: str, module: nn.Module) -> None:
    if any(name.endswith(("weight_orig", "weight.original")) for name in tensors_of(module)):
        raise InputError(f"{path!r} ends a residual branch and is normalised (spectral norm), which divides any multiplier "
                         f"away; remove its norm, or use recipe='mup' for no depth rule")  # fmt: skip


def unseen(path: str, detail: str) -> str:
    """The refusal after a trace: what it saw, and no guess at an end, which would be taken at the user's word."""
    return (
        f"cannot tell which module ends the residual branch in {path!r} ({detail}); let each branch end in a module of its own whose output is "
        f"added to the stream (nn.Identity() will do) and name them all, branch_out=['{collapse(path)}.<module>', …], or use recipe='mup' for "
        f"no depth rule"
    )


def unknown(path: str, block: nn.Module | None, detail: str = "") -> str:
    """The refusal, with a line to write: the last matrix of each part of this very block."""
    lines = [collapse(path)]
    if block is not None:
        parts: dict[str, str] = {}
        for name in _matrices(block):
            parts[name.split(".")[0] if "." in name else ""] = name
        lines = list(dict.fromkeys(f"{collapse(path)}.{name}".rstrip(".") for name in _tidy(parts.values(), block)))
    return (
        f"cannot tell which module ends the residual branch in {path!r}{f' ({detail})' if detail else ''}; name the last "
        f"of each, e.g. branch_out={lines} (patterns over paths, taken at your word: α must pass what comes behind), or use recipe='mup' for no depth rule"
    )


def _tidy(names: Iterable[str], block: nn.Module) -> list[str]:
    """A module that owns several matrices is not one end: the last of them is."""
    result = []
    for name in names:
        tensors = block.get_submodule(name)._parameters
        own = [key for key, p in tensors.items() if p is not None and p.ndim > 1 and not key.endswith("bias")]
        result.append(f"{name}.{own[-1]}".lstrip(".") if len(own) > 1 else name)
    return result
