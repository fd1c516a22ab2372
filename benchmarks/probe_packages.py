"""The probe on every optimizer class of torch, schedulefree, pytorch_optimizer and heavyball: what it finds, what it refuses.

Nothing may crash: every class gets facts, or one line that says why not. The last column compares with the source of the class
(or its paper) where that was read: right; cautious (refused, though a rule would hold); blind (a habit that 100 steps cannot show).

    python -m benchmarks.probe_packages [PACKAGE ...] > docs/results/probe.md
"""

from __future__ import annotations

import importlib
import inspect
import sys
import time
from typing import Any

import torch

import mutransfer as mt
from mutransfer.errors import InputError

SETTINGS: dict[str, dict[str, Any]] = {
    "pytorch_optimizer.Ranger21": {"num_iterations": 1000},
    "pytorch_optimizer.BSAM": {"num_data": 100},
    "pytorch_optimizer.SCION": {"norm_type": 2},
}
RIGHT = """
    ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax LBFGS Muon NAdam RAdam RMSprop Rprop SGD SparseAdam AdamWScheduleFree
    SGDScheduleFree RAdamScheduleFree AdamWScheduleFreeClosure AccSGD AdaBelief AdaBound AdaGC AdaHessian AdaMod AdamC AdamG AdamMini
    AdamP AdamS AdaNorm AdaPNM AdEMAMix ADOPT AggMo AliG Amos AvaGrad BSAM DAdaptAdam DAdaptSGD DAdaptLion DAdaptAdaGrad DAdaptAdan
    Fromage FTRL GaLore Kate Kron Lamb LaProp LARS Lion LOMO AdaLOMO MADGRAD MSVAG Nero NovoGrad PAdam PNM Prodigy QHAdam QHM
    ScheduleFreeAdamW ScheduleFreeSGD ScheduleFreeRAdam SCION SGDP SGDSaI SGDW Shampoo SignSGD SM3 SOAP SophiaH StableAdamW Tiger
    Yogi Scion PSGDKron SFAdamW MARS AdamMini A2Grad Ranger AdaFactor FAdam PID SimplifiedAdEMAMix Gravity
"""
CAUTIOUS = {
    "AdaShift": "nothing moves in its first ten steps: not settled after sixteen",
    "AdaMuon": "a second moment of orthogonalised signs: its direction drifts slowly in bfloat16",
    "MuonLaProp": "orthogonalises after normalising: a rule may exist",
}
BLIND = {
    "ScalableShampoo": "its matrices work from step 25 on, computed every 1000: measured as the SGD that it grafts; refused by name",
    "SPAM": "resets its momentum every 500 steps",
    "EmoFact": "scales its step by the loss when it is given a closure",
    "EmoNavi": "scales its step by the loss when it is given a closure",
    "EmoLynx": "scales its step by the loss when it is given a closure",
}


def classes(package: str) -> dict[str, Any]:
    """Every optimizer class of a package by name."""
    module = importlib.import_module(package)
    if package == "pytorch_optimizer":
        found = [module.load_optimizer(name) for name in module.get_supported_optimizers()]
        found = [cls for cls in found if not cls.__module__.startswith("torch.")]
    else:
        found = [
            c for _, c in sorted(vars(module).items()) if inspect.isclass(c) and issubclass(c, torch.optim.Optimizer)
        ]
        found = [cls for cls in found if cls is not torch.optim.Optimizer]
    return {cls.__name__: cls for cls in found}


def measured(cls: Any, settings: dict[str, Any]) -> tuple[str, str]:
    """(facts, why there are none) of one class."""
    try:
        try:
            probe = mt.probe_optimizer(cls, **settings)
        except InputError as error:
            if "use_muon" not in str(error):
                raise
            probe = mt.probe_optimizer(cls, group={"use_muon": True}, **settings)
    except InputError as error:
        return "refused", str(error)
    if not probe.reliable:
        return "none", probe.reasons[0] + (f" (and {len(probe.reasons) - 1} more)" if len(probe.reasons) > 1 else "")
    f = probe.facts
    weight = "·RMS(W)" if f.weight else ""
    return f"degree {f.degree}, {f.norm}{weight}, {f.kind}, eps {f.eps_kind or '–'}, {f.decay}", ""


def main(packages: list[str]) -> None:
    """Print the table of these packages, or of all."""
    torch.set_num_threads(1)
    print(
        "# The probe on every class of four packages\n\n`python -m benchmarks.probe_packages`; seconds of processor time on one core\n"
    )
    for package in packages or ["torch.optim", "schedulefree", "pytorch_optimizer", "heavyball"]:
        print(f"## {package}\n\n| class | facts | why none | by reading | s |\n|---|---|---|---|---|", flush=True)
        counted = {"facts": 0, "none": 0, "refused": 0}
        for name, cls in classes(package).items():
            start = time.process_time()
            facts, why = measured(cls, SETTINGS.get(f"{package}.{name}", {}))
            seconds = time.process_time() - start
            counted[facts if facts in counted else "facts"] += 1
            reading = "right" if name in RIGHT.split() else "–"
            reading = (
                f"cautious: {CAUTIOUS[name]}"
                if name in CAUTIOUS
                else f"blind: {BLIND[name]}"
                if name in BLIND
                else reading
            )
            print(f"| {name} | {facts} | {why.replace('|', chr(92) + '|')} | {reading} | {seconds:.1f} |", flush=True)
        print("\n" + ", ".join(f"{n} {what}" for what, n in counted.items()) + "\n", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
