"""What a module's own source says: how its bare matrices are applied, and what its forward adds to the residual stream.

Shapes and names leave both open in places (a norm named `post_attention_layernorm` stands before the MLP in Llama and after
the attention in Gemma2); the code does not. Where there is no source to read, or it is not plain, the answer is "unknown".
"""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from dataclasses import dataclass

from torch import nn

from mutransfer.axes import Axis, is_norm


@functools.lru_cache(maxsize=1024)
def forward_source(kind: type) -> str:
    """The source of the class's forward, dedented; empty where it cannot be read (built-in, typed at a prompt)."""
    try:
        return textwrap.dedent(inspect.getsource(inspect.unwrap(kind.forward)))  # type: ignore[attr-defined]
    except (OSError, TypeError, AttributeError):
        return ""


_FIRST = r"\(\s*(?:[^(),]|\([^()]*\))+,\s*"  # an opening bracket and one argument, calls in it included


def application(module: nn.Module, attribute: str) -> tuple[Axis, ...] | None:
    """The axes of a bare matrix as its module's forward applies it: F.linear, F.embedding, `x @ w` or `x @ w.T`; else None."""
    text, own = forward_source(type(module)), rf"self\.{re.escape(attribute)}\b"
    turned = r"\s*\.\s*(T\b|mT\b|t\(\)|transpose\()"
    found: set[tuple[Axis, ...]] = set()
    for call in re.finditer(rf"\blinear{_FIRST}(?:weight\s*=\s*)?{own}({turned})?", text):
        found.add(("in", "out") if call[1] else ("out", "in"))
    for call in re.finditer(rf"(?:@\s*|\b(?:matmul|mm){_FIRST}){own}({turned})?", text):
        found.add(("out", "in") if call[1] else ("in", "out"))
    if re.search(rf"\bembedding{_FIRST}{own}", text):
        found.add(("lookup", "out"))
    return found.pop() if len(found) == 1 else None


def applied_as_matrix(model: nn.Module, table: nn.Module) -> bool:
    """Whether some forward uses an embedding's own weight as a matrix: `x @ self.wte.weight.T`, a tied head without a module."""
    for owner in model.modules():
        text = forward_source(type(owner)) if not type(owner).__module__.startswith("torch.nn") else ""
        for path in re.findall(rf"(?:@\s*|\b(?:linear|matmul|mm){_FIRST})self\.([\w.]+)\.weight\b", text):
            try:
                if owner.get_submodule(path) is table:
                    return True
            except AttributeError:
                continue
    return False


@dataclass(frozen=True)
class Addend:
    """What a block's forward adds to its stream: the output of the child `name`, a norm that `feeds` fills, or a module."""

    name: str
    norm: bool
    feeds: str | None = None


_STREAM, _UNKNOWN = "stream", "unknown"
_SHAPING = ("view", "reshape", "transpose", "permute", "contiguous", "to", "flatten", "float", "type_as")
_SHORTCUT = re.compile(r"downsample|shortcut|skip|residual_proj|identity")


def addends(block: nn.Module) -> tuple[list[Addend], bool]:
    """The children whose outputs the block's forward adds to its residual stream, in order; whether every sum was read."""
    reader = _read(block)
    return (list(dict.fromkeys(reader.found)), reader.complete) if reader else ([], False)


def result_of(module: nn.Module) -> str | None:
    """The child whose output the module's forward returns (an MLP's last Linear); None where it cannot tell."""
    reader = _read(module)
    names = {value.name if isinstance(value, Addend) else None for value in reader.returned} if reader else set()
    return names.pop() if len(names) == 1 else None


def _read(module: nn.Module) -> _Reader | None:
    text = forward_source(type(module))
    try:
        tree = ast.parse(text).body[0] if text else None
    except SyntaxError:
        return None
    if not isinstance(tree, ast.FunctionDef):
        return None
    reader = _Reader(module, [a.arg for a in tree.args.args[1:]])
    reader.run(tree.body)
    return reader


class _Reader:
    """Follows values through straight-line code: which child made each one."""

    def __init__(self, block: nn.Module, arguments: list[str]) -> None:
        self.block = block
        self.values: dict[str, Addend | str] = dict.fromkeys(arguments, _STREAM)
        self.found: list[Addend] = []
        self.returned: list[Addend | str] = []
        self.complete = True

    def run(self, statements: list[ast.stmt]) -> None:
        for statement in statements:
            if isinstance(statement, ast.Assign):
                self._assign(statement.targets[0], self.value(statement.value))
            elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
                self._assign(statement.target, self.value(statement.value))
            elif isinstance(statement, ast.AugAssign):
                one, two = self.value(statement.target), self.value(statement.value)
                if isinstance(statement.op, ast.Add):
                    self._assign(statement.target, self._sum(one, two))
            elif isinstance(statement, ast.Return) and statement.value is not None:
                self.returned.append(self.value(statement.value))
            elif isinstance(statement, ast.Expr):
                self.value(statement.value)
            elif isinstance(statement, ast.If | ast.With | ast.For):
                self.run(statement.body)
                self.run(getattr(statement, "orelse", []))

    def _assign(self, target: ast.expr, value: Addend | str) -> None:
        first = target.elts[0] if isinstance(target, ast.Tuple) and target.elts else target
        if isinstance(first, ast.Name):
            self.values[first.id] = value

    def value(self, node: ast.expr) -> Addend | str:
        """The child whose output this expression is, "stream" for the block's input and its sums, else "unknown"."""
        if isinstance(node, ast.Name):
            return self.values.get(node.id, _UNKNOWN)
        if isinstance(node, ast.Subscript):
            return self.value(node.value)
        if isinstance(node, ast.Tuple) and node.elts:
            return self.value(node.elts[0])
        if isinstance(node, ast.IfExp):
            return self.value(node.body)
        if isinstance(node, ast.BinOp):
            one, two = self.value(node.left), self.value(node.right)
            if isinstance(node.op, ast.Add):
                return self._sum(one, two)
            made = [
                v for v in (one, two) if isinstance(v, Addend)
            ]  # a gate or a layer scale: the module is what counts
            return made[0] if isinstance(node.op, ast.Mult) and len(made) == 1 else _UNKNOWN
        return self._call(node) if isinstance(node, ast.Call) else _UNKNOWN

    def _call(self, node: ast.Call) -> Addend | str:
        inputs = [*node.args, *(keyword.value for keyword in node.keywords)]
        inside = self.value(inputs[0]) if inputs else _UNKNOWN
        text = ast.unparse(node.func)
        if match := re.fullmatch(r"self\.(\w+)(?:\[.*\])?", text):
            child = getattr(self.block, match[1], None)
            if not isinstance(child, nn.Module):
                return inside if "drop" in match[1] else _UNKNOWN
            if _SHORTCUT.search(match[1]):
                return _STREAM
            kind = type(child).__name__.lower()
            if "drop" in kind or "identity" in kind or "layerscale" in kind:
                return inside
            if is_norm(child):
                return Addend(match[1], True, inside.name if isinstance(inside, Addend) else None)
            return Addend(match[1], False) if any(True for _ in child.parameters()) else _UNKNOWN
        if isinstance(node.func, ast.Attribute) and node.func.attr in _SHAPING:
            return self.value(node.func.value)
        return inside if "drop" in text else _UNKNOWN

    def _sum(self, one: Addend | str, two: Addend | str) -> Addend | str:
        if one == _UNKNOWN and two == _UNKNOWN:
            return _UNKNOWN
        pair = [v for v in (one, two) if isinstance(v, Addend)]
        if len(pair) == 2 and pair[0].norm != pair[1].norm:
            pair = [v for v in pair if not v.norm]  # post-norm: the norm's output is the stream itself
        elif _UNKNOWN in (one, two):
            self.complete, pair = False, [v for v in pair if not v.norm]
        self.found += pair
        return _STREAM
