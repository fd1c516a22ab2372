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
from typing import cast

from torch import nn

from mutransfer.axes import Axis, is_norm


@functools.lru_cache(maxsize=1024)
def forward_source(kind: type[nn.Module]) -> str:
    """The source of the class's forward, dedented; empty where it cannot be read (built-in, typed at a prompt)."""
    try:
        return textwrap.dedent(inspect.getsource(inspect.unwrap(kind.forward)))
    except (OSError, TypeError, AttributeError):
        return ""


@functools.lru_cache(maxsize=1024)
def _forward(kind: type) -> ast.FunctionDef | None:
    try:
        tree = ast.parse(forward_source(kind)).body
    except SyntaxError:
        return None
    return tree[0] if tree and isinstance(tree[0], ast.FunctionDef) else None


@functools.lru_cache(maxsize=1024)
def _products(kind: type) -> tuple[tuple[str, tuple[Axis, ...]], ...]:
    """(expression, its axes) for every operand of a linear map, matrix product or embedding in the forward."""
    found: list[tuple[str, tuple[Axis, ...]]] = []

    def note(operand: ast.expr, stored: tuple[Axis, ...]) -> None:
        while True:
            attribute = operand.func if isinstance(operand, ast.Call) else operand
            if not isinstance(attribute, ast.Attribute) or attribute.attr not in (*_TURNS, *_CASTS):
                break
            stored = stored[::-1] if attribute.attr in _TURNS else stored
            operand = attribute.value
        found.append((ast.unparse(operand), stored))

    for node in ast.walk(_forward(kind) or ast.Module([], [])):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.MatMult):
            note(node.left, ("out", "in"))
            note(node.right, ("in", "out"))
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func).rpartition(".")[2]
            operands = [*node.args, *(k.value for k in node.keywords if k.arg == "weight")]
            stored = {
                "linear": ("out", "in"),
                "matmul": ("in", "out"),
                "mm": ("in", "out"),
                "embedding": ("lookup", "out"),
            }
            if called in stored and len(operands) > 1:
                note(operands[1], cast("tuple[Axis, ...]", stored[called]))
    return tuple(found)


_TURNS = ("T", "mT", "t", "transpose")
_CASTS = ("to", "type", "type_as", "float", "contiguous")


def application(module: nn.Module, attribute: str) -> tuple[Axis, ...] | None:
    """The axes of a bare matrix as its module's forward applies it: F.linear, F.embedding, `x @ w` or `x @ w.T`; else None."""
    found = {stored for operand, stored in _products(type(module)) if operand == f"self.{attribute}"}
    return found.pop() if len(found) == 1 else None


def applied_as_matrix(model: nn.Module, table: nn.Module) -> bool:
    """Whether some forward uses an embedding's own weight as a matrix: `x @ self.wte.weight.T`, a tied head without a module."""
    for owner in model.modules():
        if type(owner).__module__.startswith("torch.nn"):
            continue
        for operand, stored in _products(type(owner)):
            match = re.fullmatch(r"\w+\.([\w.]+)\.weight", operand)
            try:
                if match and "lookup" not in stored and owner.get_submodule(match[1]) is table:
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
    tree = _forward(type(module))
    if tree is None:
        return None
    if not tree.args.args:
        return None
    reader = _Reader(module, *(a.arg for a in tree.args.args))
    reader.run(tree.body)
    return reader


_STREAM, _UNKNOWN = "stream", "unknown"
_SHAPING = ("view", "reshape", "transpose", "permute", "contiguous", "to", "flatten", "float", "type_as")
_SHORTCUT = re.compile(r"downsample|shortcut|skip|residual_proj|identity")


class _Reader:
    """Follows values through straight-line code: which child made each one."""

    def __init__(self, block: nn.Module, own: str, *arguments: str) -> None:
        self.block, self.own = block, own  # what this code calls `self`
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
        if match := re.fullmatch(rf"{self.own}\.(\w+)(?:\[.*\])?", text):
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
