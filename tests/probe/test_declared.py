"""The probe finds what is declared: every certain optimizer of the registry that has a class, in its own settings."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import mutransfer as mt
from mutransfer.errors import InputError
from mutransfer.muon import Muon
from mutransfer.optimizers import REGISTRY, facts_for, optimizer_class

PACKAGES = {"lion", "sign", "ademamix", "shampoo", "soap", "scion", "lamb", "schedule-free-adamw", "sophia"}
SETTINGS: dict[str, dict[str, Any]] = {
    "muon-kimi": {"adjust_lr_fn": "match_rms_adamw"},
    "ademamix": {"weight_decouple": True},
    "shampoo": {"weight_decouple": True},
    "scion": {"norm_type": 1},
}
# torch's Muon with a factor that a plan divides out; a Hessian
NOT_RUN = {"muon-uvt", "muon-spectral", "sophia"}
CASES = [(name, SETTINGS.get(name, {})) for name in REGISTRY if name not in NOT_RUN] + [
    ("sgd", {"momentum": 0.9}),
    ("sgd", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    ("adam", {"decoupled_weight_decay": True, "amsgrad": True}),
]


@pytest.mark.parametrize(("name", "settings"), CASES, ids=[f"{n} {' '.join(s)}" for n, s in CASES])
def test_measured_facts_are_the_declared_ones(name: str, settings: dict[str, Any]) -> None:
    if name in PACKAGES:
        pytest.importorskip("schedulefree" if name.startswith("schedule") else "pytorch_optimizer")
    cls = optimizer_class(name, required=False)
    if cls is None:
        pytest.skip(f"no class runs {name} here")
    declared = facts_for(cls([nn.Parameter(torch.ones(4, 4))], lr=1e-3, **settings))
    probe = mt.probe_optimizer(cls, **settings)
    if not declared.certain:
        assert not probe.reliable, str(probe)
        return
    found = probe.facts
    for fact in ("degree", "norm", "kind", "decay", "weight"):
        assert getattr(found, fact) == getattr(declared, fact), str(probe)
    # a class without an eps to set has no eps to scale
    assert found.eps_kind == (declared.eps_kind if probe["eps"].conditions else None), str(probe)
    assert probe.confidence == 1.0 and found.certain and not probe.reasons


@pytest.mark.parametrize("scale", ["1", "√max(1,out/in)", "√(out/in)", "0.2√max(in,out)"])
def test_every_scaling_of_muon_is_told_from_the_others(scale: str) -> None:
    facts = mt.probe_optimizer(Muon, scale=scale).facts
    assert (facts.norm, facts.kind, facts.eps_kind) == (scale, "matrix", "frobenius")


def test_what_is_declared_is_compared() -> None:
    same = mt.probe_optimizer(torch.optim.AdamW)
    assert same.differences == () and "the same facts" in str(same)

    class Lion(torch.optim.SGD):
        """Another one of a known name."""

    other = mt.probe_optimizer(Lion)
    assert other.differences[0] == "degree: 1 measured, 0 declared" and all(d in str(other) for d in other.differences)


def test_names_of_the_registry_are_taken_and_others_refused() -> None:
    assert mt.probe_optimizer("adamw").facts.norm == REGISTRY["adamw"].norm
    with pytest.raises(InputError, match="no class here runs that name"):
        mt.probe_optimizer("tigerr")


# what reading the source of each class says
READ = {
    "AccSGD": ("‖G‖₂", "sgd", None, "coupled"),
    "AdaBelief": ("√(in·out)", "element", None, "decoupled"),  # eps inside the root as well
    "AdamP": ("√(in·out)", "element", "element", "decoupled"),
    "ADOPT": ("√(in·out)", "element", "element", "coupled"),
    "LaProp": ("√(in·out)", "element", "element", "decoupled"),
    "NovoGrad": ("1", "element", "frobenius", "decoupled"),  # one second moment per layer
    "Tiger": ("√(in·out)", "element", None, "decoupled"),
}
# … and why these have none
READ_REFUSED = {
    "PAdam": "whole p: measured p = 0.5",
    "KATE": "degree in G is -1",
    "Amos": "‖A‖₂ ∝ in\\^0·out\\^0.5",
    "Prodigy": "not linear in lr",
    "AvaGrad": "depends on the gradients of others",
    "Kron": "random",
    "AdamS": "weight decay is neither",
    "Lamb": "clamps",
    "Yogi": "only above",
}


@pytest.mark.parametrize("name", [*READ, *READ_REFUSED])
def test_classes_of_a_package_are_read_as_their_source_reads(name: str) -> None:
    package = pytest.importorskip("pytorch_optimizer")
    probe = mt.probe_optimizer(package.load_optimizer(name.lower()))
    if name in READ:
        facts = probe.facts
        assert (facts.norm, facts.kind, facts.eps_kind, facts.decay) == READ[name], str(probe)
    else:
        with pytest.raises(InputError, match=READ_REFUSED[name]):
            _ = probe.facts


def test_a_compiled_package_runs_eagerly_and_in_train_mode() -> None:
    heavyball = pytest.importorskip("heavyball")
    probe = mt.probe_optimizer(heavyball.AdamW)
    assert (probe.facts.norm, probe.facts.eps_kind, probe.facts.decay) == ("√(in·out)", "element", "decoupled")


def test_settings_of_the_param_group_reach_it() -> None:
    package = pytest.importorskip("pytorch_optimizer")
    with pytest.raises(InputError, match=r"use_muon.*write group=\{'use_muon': True\}"):
        mt.probe_optimizer(package.Muon)
    found = mt.probe_optimizer(package.Muon, group={"use_muon": True})["norm of a step"]
    assert found.value.startswith("√max(1,out/in)")
