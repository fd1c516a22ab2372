"""The graph of one forward pass, and for each value the tensors in which it is homogeneous of degree one.

A dispatch mode sees every operation of the pass as it is computed, wherever it is written: in the block, in a helper, in the
parent, in place. For each value v it keeps the set E of parameters with `v(t·E) = t·v(E)`, t > 0: a product `W h` has E = {W},
adding a bias joins it, dropout, views, gates and relu keep E, a norm's gain starts a new one, gelu ends it. Where a sum
`stream + v` meets such a v, a branch multiplier can move into E and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mutransfer.homogeneous import COMPARES, JOINS, KEEPS, MATRIX_PRODUCTS, PRODUCTS, SUMS, WRITES, ZEROS
from mutransfer.passed import Graph, Value


class Recorder(TorchDispatchMode):
    """Builds the graph while it is active. `matrices`: parameters of the growing blocks that a stream must not have met."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here; saying so spares torch the import of its compiler."""
        return False

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, Tensor],
        matrices: Iterable[str],
        blocks: Iterable[str] = (),
        real: set[int] | None = None,
    ) -> None:
        super().__init__()
        self.graph, self.model, self.real = Graph(), model, real
        self.sums: list[Value] = []
        self.doubled: list[tuple[Value, Value, str | None]] = []  # sums of two streams, and the block that made each
        self.blocks, self.inside = frozenset(blocks), [""]
        self.touched = 0  # bits of everything that some value was computed from
        self.additions = 0
        self.values: dict[int, Value] = {}
        self.kept: list[Any] = []  # storages stay alive, so that their keys are not used twice
        self.count = 0
        for name, tensor in parameters.items():
            bit = self._bit()
            self.graph.bits[name] = bit
            self._store(tensor, Value(bit, bit, bit, 0, frozenset((name,))))
        self.matrices = 0
        for name in matrices:
            self.matrices |= self.graph.bits[name]
        self.parameters = sum(self.graph.bits.values())
        self.handles: list[Any] = []

    def __enter__(self) -> Recorder:
        for path, module in self.model.named_modules():
            if path and ".parametrizations." not in f".{path}.":
                self.handles.append(module.register_forward_pre_hook(lambda m, a, path=path: self.inside.append(path)))
                self.handles.append(module.register_forward_hook(self._leaving(path)))
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        super().__exit__(*exc)
        for handle in self.handles:
            handle.remove()

    def input(self, tensor: Tensor) -> None:
        """This tensor comes from outside: a float is where a stream may begin."""
        bit = self._bit()
        above = bit if tensor.is_floating_point() else 0
        self._store(tensor, Value(bit, above, above, above))

    def of(self, tensor: Tensor) -> Value:
        """The value of a tensor; one that nobody made here is a constant."""
        found = self.values.get(tensor.untyped_storage()._cdata)
        return found if found is not None else self._constant(tensor)

    def is_stream(self, value: Value) -> bool:
        """Whether no matrix of a growing block lies between this value and what is added to the stream."""
        return bool(value.floats) and not value.cut & self.matrices

    # ------------------------------------------------------------------------------------------ keeping

    def _bit(self) -> int:
        self.count += 1
        return 1 << self.count

    def _constant(self, tensor: Tensor, zero: bool = False) -> Value:
        value = Value(self._bit(), 0, 0, 0, zero=zero)
        self._store(tensor, value)
        return value

    def _store(self, tensor: Tensor, value: Value) -> None:
        storage = tensor.untyped_storage()
        self.kept.append(storage)
        self.values[storage._cdata] = value

    def _leaving(self, path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            self.graph.calls[path] = self.graph.calls.get(path, 0) + 1
            while len(self.inside) > 1 and self.inside.pop() != path:
                pass
            first = output[0] if isinstance(output, tuple | list) and output else output
            if isinstance(first, dict) and first:
                first = next(iter(first.values()))
            if isinstance(first, Tensor):
                value = self.of(first)
                if value.floats and not value.sites and not self.is_stream(value):
                    value.sites = frozenset((path,))
                    self.graph.site_bits[path] = self.graph.site_bits.get(path, 0) | value.bit

        return hook

    # ------------------------------------------------------------------------------------------ operations

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        made = [t for t in (result if isinstance(result, tuple | list) else (result,)) if isinstance(t, Tensor)]
        inputs = _tensors((args, kwargs))
        keys = {t.untyped_storage()._cdata for t in inputs}
        writes = name.endswith("_") and not name.endswith("__")
        if not made or (not writes and made[0].untyped_storage()._cdata in keys and name not in SUMS):
            return result  # nothing new: a view shares the value of its storage
        value = self._value(name, args, kwargs, inputs)
        for tensor in made[:1] if writes or "out" in kwargs else made:
            storage = tensor.untyped_storage()
            old, partly = self.values.get(storage._cdata), tensor.numel() * tensor.element_size() < storage.nbytes()
            if writes and partly and old is not None:
                value = self._join([old, value])
            self._store(
                tensor, value if tensor.is_floating_point() or tensor.is_complex() else self._choice(name, value)
            )
        return result

    def _value(self, name: str, args: Any, kwargs: Any, inputs: list[Tensor]) -> Value:
        if name in ZEROS or (name in ("full", "new_full", "full_like", "fill_") and args[-1] in (0, 0.0)):
            return Value(self._bit(), 0, 0, 0, zero=True)
        of_two = name in JOINS or (name in ("max", "min") and len(inputs) == 2)
        if (name in KEEPS and not of_two) or (name == "constant_pad_nd" and not any(args[2:])):
            return self._keep(inputs[0], inputs[1:])
        if name in ("clamp_min", "clamp_min_", "threshold", "threshold_") and all(a == 0 for a in args[1:]):
            return self._keep(inputs[0], inputs[1:])
        if name in ("masked_fill", "masked_fill_"):
            fill = args[2]
            nothing = fill == 0 if not isinstance(fill, Tensor) else self.of(fill).zero
            return self._keep(inputs[0], inputs[1:]) if nothing else self._mixed(inputs)
        if name in SUMS:
            return self._add(name, args, kwargs)
        if name in PRODUCTS:
            return self._times(name, args[0], args[1])
        if name in ("div", "div_", "true_divide"):
            return self._over(args[0], args[1])
        if name == "_grouped_mm":
            return self._product(name, self.of(args[0]), self.of(args[1]))
        if name == "linear" or "convolution" in name:
            product = self._product(name, self.of(args[0]), self.of(args[1]))
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            return product if bias is None else self._plus(product, self.of(bias))
        if name in ("addmm", "baddbmm", "addmv", "addmm_", "baddbmm_"):
            product = self._product("mm", self.of(args[1]), self.of(args[2]))
            return self._plus(self.of(args[0]), product)
        if name in ("addcmul", "addcmul_"):
            return self._plus(self.of(args[0]), self._times("mul", args[1], args[2]))
        if name in ("cat", "stack", "hstack", "vstack", "concat"):
            return self._join([self.of(t) for t in args[0]])
        if of_two:
            return self._join([self.of(t) for t in inputs])
        if name == "where":
            return self._join([self._chosen(self._operand(v), [self.of(args[0])]) for v in args[1:3]])
        if name in WRITES:
            return self._write(name, args, kwargs)
        if name in ("copy_", "copy"):
            return self._keep(args[1], ())
        return self._special(name, args, kwargs, inputs)

    def _special(self, name: str, args: Any, kwargs: Any, inputs: list[Tensor]) -> Value:
        if "scaled_dot_product" in name:
            gates = [self.of(args[0]), self.of(args[1])]
            return self._gated(self.of(args[2]), gates, [self.of(t) for t in inputs])
        if "norm" in name and "weight_norm" not in name and "linalg" not in name:
            return self._norm(name, args, inputs)
        if "weight_norm" in name:
            return self._gated(self.of(args[1]), [self.of(args[0])], [self.of(t) for t in inputs])
        if name in ("embedding", "_embedding_bag", "embedding_bag"):
            value = self._mixed(inputs, self.of(inputs[0]).ends)
            value.floats = value.bit
            return value
        if name in ("_prelu_kernel", "prelu"):
            return self._gated(self.of(args[0]), [self.of(args[1])], [self.of(t) for t in inputs])
        if name in COMPARES and self._operand(args[1]).zero:
            return self._node([self.of(args[0])], fixed=self.of(args[0]).ends)
        return self._mixed(inputs)

    def _choice(self, name: str, value: Value) -> Value:
        """Integers and masks are no multiple of anything; the places of the largest are the same for any t."""
        fixed = frozenset() if name == "_to_copy" else value.ends
        return self._node([value], fixed=fixed or value.fixed, zero=value.zero)

    def _chosen(self, value: Value, by: Iterable[Value]) -> Value:
        """A part of a value: homogeneous as it is, if what selects the part does not change with the same tensors."""
        gates = list(by)
        ends = value.ends if all(self._free(g, value.ends) for g in gates) else frozenset()
        sites = value.sites if all(self._free(g, value.sites, True) for g in gates) else frozenset()
        fixed = value.fixed if all(self._free(g, value.fixed) for g in gates) else frozenset()
        made = self._node([value, *gates], ends=ends, sites=sites, fixed=fixed, zero=value.zero)
        return _scaled(made, value.scale)

    def _operand(self, x: Any) -> Value:
        return self.of(x) if isinstance(x, Tensor) else Value(self._bit(), 0, 0, 0, zero=x == 0)

    def _node(self, parents: Iterable[Value], **known: Any) -> Value:
        """A value computed from these, homogeneous in nothing unless `known` says so."""
        parents = tuple(parents)
        bit, above, cut, floats, series = self._bit(), 0, 0, 0, 0
        for p in parents:
            above, cut, floats, series = above | p.above, cut | p.cut, floats | p.floats, max(series, p.series)
        floats |= bit if floats else 0
        self.touched |= above
        mask = bit if above else 0
        return Value(bit, above | mask, cut | mask, floats, parents=parents, **{"series": series, **known})

    def _mixed(self, inputs: Iterable[Tensor], ends: frozenset[str] = frozenset()) -> Value:
        value = self._node(parents := [self.of(t) for t in inputs], ends=ends)
        scales = [p.scale for p in parents if p.floats]
        return _scaled(value, scales[0] if len(set(scales)) == 1 else (value.bit, 1.0))

    def _keep(self, source: Tensor, others: Iterable[Tensor]) -> Value:
        return self._chosen(self.of(source), [self.of(t) for t in others])

    # ------------------------------------------------------------------------------------------ products and norms

    def _free(self, value: Value, names: frozenset[str], sites: bool = False) -> bool:
        """Whether a value does not depend on these parameters (or outputs of these modules)."""
        bits = self.graph.site_bits if sites else self.graph.bits
        fixed = value.fixed if value.fixed <= names else frozenset()
        return not any(value.cut & bits[name] for name in names - fixed)

    def _gated(self, main: Value, gates: list[Value], parents: list[Value]) -> Value:
        """main · gate: homogeneous as main is, if no gate depends on the same tensors."""
        ends = main.ends if all(self._free(g, main.ends) for g in gates) else frozenset()
        sites = main.sites if all(self._free(g, main.sites, True) for g in gates) else frozenset()
        value = self._node(parents, ends=ends, sites=sites, zero=main.zero or any(g.zero for g in gates))
        return _scaled(value, main.scale)

    def _times(self, name: str, one: Any, two: Any) -> Value:
        if not isinstance(one, Tensor) or not isinstance(two, Tensor) or (two.numel() == 1 and not self.of(two).above):
            tensor, number = (one, two) if isinstance(one, Tensor) else (two, one)
            value = self._keep(tensor, ())
            if isinstance(number, Tensor):
                number = float(number) if not number.is_meta else 1.0
            value.zero |= number == 0
            return _scaled(value, (value.scale[0], value.scale[1] * float(abs(number))))
        return self._product(name, self.of(one), self.of(two))

    def _product(self, name: str, one: Value, two: Value) -> Value:
        weights = [v for v in (one, two) if not v.floats and v.above]  # parameters, or what is made of them alone
        matrix = name in MATRIX_PRODUCTS or "convolution" in name
        order = [*weights, one, two] if matrix else [one, two]
        options = []
        for main in order:
            other = two if main is one else one
            ends = main.ends if self._free(other, main.ends) else frozenset()
            sites = main.sites if self._free(other, main.sites, True) else frozenset()
            options.append((bool(ends), bool(main.floats) or matrix, ends, sites, main))
        # a last matrix rather than the gain that follows it; a gain where a nonlinearity stands between
        best = max(options, key=lambda o: (o[0], o[1], -order.index(o[4])))
        sites = next((o[3] for o in options if o[3] and o[4].floats), frozenset())
        stepped = matrix and any(w.above for w in weights)
        series = max(one.series, two.series) + (1 if stepped else 0)
        if stepped and not any(v.cut & self.matrices for v in weights):
            series = max(one.series, two.series)
        value = self._node([one, two], ends=best[2], sites=frozenset() if matrix and weights else sites,
                           zero=one.zero or two.zero, series=series)  # fmt: skip
        main = one if one.floats else two
        return _scaled(value, (value.bit, 1.0) if one.above and two.above else main.scale)

    def _over(self, one: Any, two: Any) -> Value:
        if not isinstance(one, Tensor):
            return self._mixed([two])
        if not isinstance(two, Tensor) or (two.numel() == 1 and not self.of(two).above and not two.is_meta):
            value = self._keep(one, ())
            number = abs(float(two))
            return _scaled(value, (value.scale[0], value.scale[1] / number if number else 1.0))
        value = self._gated(self.of(one), [self.of(two)], [self.of(one), self.of(two)])
        return _scaled(value, (value.bit, 1.0))

    def _norm(self, name: str, args: Any, inputs: list[Tensor]) -> Value:
        """A norm's gain and bias are what its output is homogeneous in; without them, nothing."""
        own: frozenset[str] = frozenset()
        for t in inputs[1:]:
            value = self.of(t)
            if value.above and not value.floats:
                own |= value.ends
        value = self._mixed(inputs, own if self._free(self.of(inputs[0]), own) else frozenset())
        return _scaled(value, (value.bit, 1.0))

    # ------------------------------------------------------------------------------------------ sums

    def _add(self, name: str, args: Any, kwargs: Any) -> Value:
        one, two = args[0], args[1]
        if not isinstance(one, Tensor):
            one, two = two, one
        if not isinstance(two, Tensor):
            return self._keep(one, ()) if two == 0 else self._mixed([one])
        alpha = kwargs.get("alpha", 1)
        return self._plus(self.of(one), self.of(two) if alpha == 1 else self._times("mul", two, alpha))

    def _plus(self, one: Value, two: Value) -> Value:
        self.additions += 1
        if one.zero or two.zero:
            return self._join([one, two])
        for total, vector in ((one, two), (two, one)):
            if total.sum is not None and vector.above and not vector.floats:  # (x + W h) + b is x + (W h + b)
                return self._sum(total.sum[0], self._join([total.sum[1], vector]), total.number)
        for stream, branch in ((one, two), (two, one)):
            related = stream.floats & branch.floats and branch.cut & self.matrices
            if related and self.is_stream(stream) and (self.real is None or self.additions in self.real):
                return self._sum(stream, branch, self.additions)
        if self.is_stream(one) and self.is_stream(two):
            value = self._node([one, two])
            self.doubled.append((one, two, next((p for p in reversed(self.inside) if p in self.blocks), None)))
            scales = {one.scale, two.scale}
            return _scaled(value, scales.pop() if len(scales) == 1 else one.scale)
        return self._join([one, two])

    def _sum(self, stream: Value, branch: Value, number: int) -> Value:
        bit = self._bit()
        above, floats = stream.above | branch.above | bit, stream.floats | branch.floats | bit
        value = Value(bit, above, stream.cut | bit, floats, parents=(stream, branch), scale=stream.scale,
                      sum=(stream, branch), number=number)  # fmt: skip
        self.sums.append(value)
        return value

    def _join(self, values: list[Value]) -> Value:
        """A sum or a concatenation: homogeneous in all their tensors together, if in each of its own alone."""
        some = [v for v in values if not v.zero]
        if not some:
            return self._node(values, zero=True)
        ends, sites = self._together(some, "ends"), self._together(some, "sites")
        value = self._node(values, ends=ends, sites=sites)
        scales = {v.scale for v in some if v.floats}
        factors = {factor for _, factor in scales}
        together = (value.bit, factors.pop() if len(factors) == 1 else 1.0)
        return _scaled(value, scales.pop() if len(scales) == 1 else together)

    def _together(self, values: list[Value], kind: str) -> frozenset[str]:
        sets: list[frozenset[str]] = [getattr(v, kind) for v in values]
        if not all(sets):
            return frozenset()
        for i, v in enumerate(values):
            others = frozenset().union(*(s for j, s in enumerate(sets) if j != i)) - sets[i]
            if not self._free(v, others, kind == "sites"):
                return frozenset()
        return frozenset().union(*sets)

    def _write(self, name: str, args: Any, kwargs: Any) -> Value:
        at = WRITES[name]
        source = args[at] if len(args) > at else kwargs.get("src", kwargs.get("source", kwargs.get("value", 0)))
        places = [self.of(t) for t in _tensors(args[1:at])]
        into, put = self.of(args[0]), self._chosen(self._operand(source), places)
        adds = "add" in name or (name.startswith("index_put") and (args[3] if len(args) > 3 else False))
        return self._plus(into, put) if adds else self._join([into, put])


def _scaled(value: Value, scale: tuple[int, float]) -> Value:
    value.scale = scale
    return value


def _tensors(x: Any) -> list[Tensor]:
    if isinstance(x, Tensor):
        return [x]
    if isinstance(x, dict):
        return [t for v in x.values() for t in _tensors(v)]
    if isinstance(x, tuple | list):
        return [t for v in x for t in _tensors(v)]
    return []
