"""What is known of one forward pass: its values, each with the tensors in which it is homogeneous of degree one."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(eq=False)
class Value:
    """One value of the pass.

    `above` and `cut` are bit sets of what it was computed from, in `cut` without what lies above an addition to the stream;
    `floats` the activations among `above`. `ends` is E, `sites` the modules on whose outputs it depends in the same way.
    `fixed` are tensors whose common multiple leaves this value as it is (an order, a sign). `series` counts matrices one after
    another, `sum` is (stream, branch) where it is such an addition. `scale` is the number that multiplied the value since its latest norm or product with another, and which one that was.
    """

    bit: int
    above: int
    cut: int
    floats: int
    ends: frozenset[str] = frozenset()
    sites: frozenset[str] = frozenset()
    fixed: frozenset[str] = frozenset()
    parents: tuple[Value, ...] = ()
    zero: bool = False
    series: int = 0
    scale: tuple[int, float] = (0, 1.0)
    sum: tuple[Value, Value] | None = None
    number: int = 0  # of the addition, the same in every pass


@dataclass
class Graph:
    """What one pass computed: values by storage, parameters, outputs."""

    bits: dict[str, int] = field(default_factory=dict)  # parameter → its bit
    site_bits: dict[str, int] = field(default_factory=dict)  # module → the bits of its outputs
    calls: dict[str, int] = field(default_factory=dict)  # module → how often it ran
    outputs: list[Value] = field(default_factory=list)
