"""Residual branches: which tensors sit in one, and which tensors end one, so that its multiplier can move into them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence

from torch import nn

from mutransfer.axes import is_norm
from mutransfer.blocks import Stack, block_of, collapse
from mutransfer.errors import InputError
from mutransfer.shapes import TensorShape, clean

_ENDS = re.compile(
    r"(^|\.)(c_proj|out_proj|o_proj|wo|w_o|proj_out|down_proj|w_down|down|fc2|fc_out|linear2|lin2|out_lin|w2|dense_4h_to_h|"
    r"output\.dense|(self_)?attention\.dense|to_out(\.\d+)?|proj|out|o|output_proj|attn_out|ff_out|mlp_out)$"
)
_SHORTCUT = re.compile(r"(^|\.)(downsample|shortcut|skip|residual_proj|identity)(\.|$)")
_PARALLEL = re.compile(r"(^|\.)(experts?|heads?)$")


def depth_stacks(stacks: Sequence[Stack]) -> list[Stack]:
    """The stacks whose children follow one another (experts and heads stand side by side), outermost only."""
    serial = [stack for stack in stacks if not _PARALLEL.search(stack.path)]
    return [s for s in serial if not any(s.path.startswith(f"{o.path}.") for o in serial if o is not s)]


def depth_ratio(stacks: Sequence[Stack]) -> float:
    """L: residual blocks of the target over those of the base, all growing stacks together; 1 where none grows."""
    base, target = sum(stack.base for stack in stacks), sum(stack.target for stack in stacks)
    return target / base if base else 1.0


def in_branch(name: str, stacks: Sequence[Stack]) -> bool:
    """Whether this tensor is multiplied by its residual branch's factor: inside a block, and not on its shortcut."""
    return block_of(name, stacks) is not None and not _SHORTCUT.search(name)


def last_modules(
    model: nn.Module, shapes: Sequence[TensorShape], stacks: Sequence[Stack], declared: Sequence[str]
) -> set[str]:
    """Paths of the modules that end each residual branch; their tensors take the branch multiplier.

    `declared` are the user's patterns over module paths. Without them: known names (out_proj, c_proj, down_proj, fc2, …),
    the batch norm after the last convolution of a block, or the last matrix of a block that is a single chain.
    Raises InputError naming a block where none of these finds the end, with the line to write.
    """
    modules = {clean(path): module for path, module in model.named_modules()}
    if declared:
        found = {path for path in modules if any(fnmatch.fnmatchcase(path, pattern) for pattern in declared)}
        for pattern in declared:
            if not fnmatch.filter(list(modules), pattern):
                raise InputError(
                    f"branch_out={pattern!r} matches no module; modules look like {', '.join(list(modules)[1:4])}"
                )
        blocks = {s.block for s in shapes if s.block and s.role != "scalar"}
        missing = [b for b in sorted(blocks) if not any(path == b or path.startswith(f"{b}.") for path in found)]
        if missing:
            raise InputError(f"branch_out={list(declared)} names no module in block {missing[0]!r}")
        return found
    result: set[str] = set()
    for block in sorted({s.block for s in shapes if s.block}):
        result |= {f"{block}.{path}" if path else block for path in _ends_of(block, modules[block])}
    return result


def _ends_of(path: str, block: nn.Module) -> set[str]:
    matrices = [
        name
        for name, module in block.named_modules()
        if any(p is not None and p.ndim > 1 for p in module._parameters.values())
        and not isinstance(module, nn.Embedding)
        and not _SHORTCUT.search(name)
    ]
    if matrices == [""] or not matrices:
        raise InputError(_unknown(path))
    convolutions = [m for m in matrices if isinstance(block.get_submodule(m), nn.modules.conv._ConvNd)]
    if len(convolutions) == len(matrices):
        last = convolutions[-1]
        names = [name for name, module in block.named_modules() if module._parameters and not _SHORTCUT.search(name)]
        after = names[names.index(last) + 1 :]
        follows = next((name for name in after if is_norm(block.get_submodule(name))), None)
        return {follows or last}
    ends = {name for name in matrices if _ENDS.search(name)}
    if not ends:
        parents = {name.rpartition(".")[0] for name in matrices}
        if len(parents) == 1 and isinstance(block.get_submodule(parents.pop()), nn.Sequential):
            return {matrices[-1]}
        raise InputError(_unknown(path))
    for name, child in block.named_children():
        inside = [m for m in matrices if m.startswith(f"{name}.")]
        if inside and not any(end.startswith(f"{name}.") for end in ends) and not _SHORTCUT.search(name):
            raise InputError(_unknown(f"{path}.{name}", type(child).__name__))
    return ends


def _unknown(path: str, kind: str = "") -> str:
    generic = collapse(path)
    return (
        f"cannot tell which module ends the residual branch in {path!r}{f' ({kind})' if kind else ''}; name it, "
        f"e.g. branch_out=['{generic}.down'] (patterns over module paths), or use recipe='mup' for no depth rule"
    )
