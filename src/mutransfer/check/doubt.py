"""What proves nothing: the size of a handful of numbers, a small effect on the vectors of small models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mutransfer.check.findings import Finding
from mutransfer.check.verdict import FEW, Judge

FINITE = 0.4  # a vector's exponent below this may be a small model's: a wrong rate shows at least ½
WIDE = 7.99  # largest over smallest size from which on it may not
VECTOR_RULES = ("learning rate", "noise")


def soften(judge: Judge, found: Sequence[Finding]) -> list[Finding]:
    """The findings with those as notes that small numbers explain: an odd draw of a few numbers, a small effect on a vector.

    A vector's update is only spared while no matrix is accused, and over a span of sizes below 8.
    """
    infos = {info.name: info for info in judge.infos}
    open_ = [f for f in found if f.severity in ("fail", "unclear")]
    matrices = any(f.name not in infos or len(infos[f.name].shape) > 1 for f in open_)
    softened = []
    for f in found:
        info = infos.get(f.name)
        if info is not None and f in open_:
            few = f.severity == "unclear" and f.what in ("its init", "its initial size") and np.prod(info.shape) < FEW
            small = len(info.shape) <= 1 and f.rule in VECTOR_RULES and abs(f.slope - f.expected) < FINITE
            if few:
                f = replace(f, severity="note", advice="so few numbers vary by chance: not judged")
            elif small and not matrices and judge.ratio < WIDE:
                f = replace(f, severity="note", advice="small models may do so: sizes that span a factor 8 can tell")
        softened.append(f)
    return softened
