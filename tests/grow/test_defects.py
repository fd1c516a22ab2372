"""Defects of the first implementation of growing (μpscaling) that this one does not have, each with what it would do.

Adam's step counter shared by both optimizers; GPT-2's init left as it was; noise on BatchNorm gains; a clipping norm that depends on the
width; whole multiples only; paths of one machine in the code. Further: nothing says a thing of uneven multiples that is not so.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.errors import InputError
from mutransfer.models import gpt_factory
from tests.grow.models import SUBJECTS, TIME, VOCABULARY, Batch, images, loss, rows, tokens
from tests.grow.race import difference, mup_pair, sp_pair, train
from tests.growth_models import CNN, MLP

PACKAGE = Path(mt.__file__).parent


# ------------------------------------------------------------------ the step counter


@pytest.mark.parametrize("optimizer", ["Adam", "AMSGrad", "Lion", "Muon", "momentum"])
def test_no_state_is_shared_between_the_two_optimizers(optimizer: str) -> None:
    """A common counter would count both optimizers' steps, and correct their bias for twice the age."""
    pair = sp_pair("mlp", optimizer)
    mine, theirs = (_storages(o) for o in (pair.optimizer, pair.big_optimizer))
    assert mine and theirs and not mine & theirs
    assert not _addresses(pair.small) & _addresses(pair.big)


def test_each_counts_its_own_steps() -> None:
    pair = sp_pair("mlp", "Adam")
    assert _counts(pair.optimizer) == _counts(pair.big_optimizer) == {5.0}
    train(pair.big, pair.big_optimizer, SUBJECTS["mlp"].batches(3))
    assert (_counts(pair.optimizer), _counts(pair.big_optimizer)) == ({5.0}, {8.0})
    train(pair.small, pair.optimizer, SUBJECTS["mlp"].batches(1))
    assert (_counts(pair.optimizer), _counts(pair.big_optimizer)) == ({6.0}, {8.0})


def _states(optimizer: Any) -> list[dict[str, Any]]:
    return [optimizer.state[p] for group in optimizer.param_groups for p in group["params"]]


def _storages(optimizer: Any) -> set[int]:
    return {v.untyped_storage().data_ptr() for s in _states(optimizer) for v in s.values() if isinstance(v, Tensor)}


def _addresses(model: nn.Module) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}


def _counts(optimizer: Any) -> set[float]:
    return {float(state["step"]) for state in _states(optimizer)}


# ------------------------------------------------------------------ the init of GPT-2

gpt2 = gpt_factory(vocab_size=VOCABULARY, context=TIME, head_size=4, init_std=0.2, residual_init="scaled")


@pytest.mark.parametrize("depth", ["identity", "interleave", "append"])
@pytest.mark.parametrize("blocks", [2, 4])
def test_nothing_of_the_big_models_own_init_is_left(blocks: int, depth: Any) -> None:
    """Whatever numbers the big model was built with, also in new blocks and their scaled ends: they are all replaced."""
    small = gpt2(width=8, depth=2).double()
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-3)
    train(small, optimizer, SUBJECTS["gpt, by heads"].batches(2))
    found = []
    for value in (float("nan"), 7.0):
        big = gpt2(width=16, depth=blocks).double()
        with torch.no_grad():
            for p in big.parameters():
                p.fill_(value)
        big, _, record = mt.grow(small, optimizer, to=big, depth=depth, verify="report", show=False)
        assert record.verification is not None and record.verification.ok
        found.append(dict(big.named_parameters()))
    for name, p in found[0].items():
        assert not p.isnan().any() and torch.equal(p, found[1][name]), name


def test_the_big_models_own_init_follows_the_plan_before_it_is_compared() -> None:
    """A from-scratch brother of a grown GPT-2: hidden matrices have std ∝ 1/√width, the scaled ends of branches too."""
    plan = mt.plan(gpt2, base=dict(width=64, depth=2), target=dict(width=256, depth=2), optimizer="adamw")
    torch.manual_seed(0)
    base, big = gpt2(width=64, depth=2), plan.initialize(gpt2(width=256, depth=2), redraw=True)
    stds = [{name: float(p.detach().std()) for name, p in model.named_parameters()} for model in (base, big)]
    for name in ("blocks.0.attn.q_proj.weight", "blocks.0.attn.out_proj.weight", "blocks.1.mlp.down.weight"):
        assert abs(stds[1][name] / stds[0][name] - 0.5) < 0.02, name
    scaled = stds[1]["blocks.0.attn.out_proj.weight"] / stds[1]["blocks.0.attn.q_proj.weight"]
    assert abs(scaled - 0.5) < 0.02  # 1/√(2·depth)


def test_a_tensor_without_a_source_is_refused_and_named() -> None:
    """It would start from an init that nobody has scaled."""
    small, big = nn.Sequential(), nn.Sequential()
    small.add_module("first", nn.Linear(7, 4))
    big.add_module("first", nn.Linear(7, 8))
    big.add_module("extra", nn.Linear(8, 8))
    with pytest.raises(InputError, match=r"extra\.weight"):
        mt.grow(small, torch.optim.AdamW(small.parameters()), to=big, show=False)


# ------------------------------------------------------------------ noise


@pytest.mark.parametrize(
    ("subject", "kind"),
    [("resnet-18", "gaussian"), ("cnn", "relative"), ("mlp", "spectral"), ("gpt with biases", "gaussian")],
)
def test_gains_and_running_statistics_are_never_noise(subject: str, kind: str) -> None:
    """A gain of 1 is no random number; noise on it, or on a variance, changes what every feature is divided by."""
    noisy, clean = (sp_pair(subject, "SGD", noise=noise) for noise in (f"{kind}:0.5", 0.0))
    kept = changed = 0
    for module, (path, other) in zip(noisy.big.modules(), clean.big.named_modules(), strict=True):
        for name, tensor in (*other.named_parameters(recurse=False), *other.named_buffers(recurse=False)):
            same = torch.equal(getattr(module, name), tensor)
            if "Norm" in type(other).__name__ or name == "temperature":
                assert same, f"{path}.{name}"
                kept += 1
            changed += not same
    assert kept > 3 and changed > 3


# ------------------------------------------------------------------ clipping


@pytest.mark.parametrize("subject", ["mlp", "cnn", "tied gpt, by head size", "key heads, by head size"])
def test_the_clipping_norm_does_not_depend_on_the_width(subject: str) -> None:
    """The plain norm of the same gradients does: one threshold would clip the two models differently."""
    pair = sp_pair(subject, "SGD")
    ours, theirs, plain = _norms(pair, lambda m: pair.growth.plan.clip_grad_norm_(m, 1e9))
    assert abs(theirs / ours - 1) < 1e-12
    assert abs(plain / ours - 1) > 0.01


def test_both_norms_of_the_users_plan_agree() -> None:
    pair = mup_pair("cnn", "AdamW", "multiplier")
    assert pair.small_plan is not None and pair.big_plan is not None
    big = pair.big_plan
    _, theirs, plain = _norms(pair, lambda m: big.clip_grad_norm_(m, 1e9))
    ours = float(pair.small_plan.clip_grad_norm_(pair.small, 1e9))
    assert abs(theirs / ours - 1) < 1e-12
    assert abs(plain / ours - 1) > 0.02


def _norms(pair: Any, invariant: Callable[[nn.Module], Tensor]) -> tuple[float, float, float]:
    """The small model's plain norm, the big one's invariant and plain one, on one batch."""
    batch = images(torch.Generator().manual_seed(0)) if isinstance(pair.small, CNN) else None
    batch = batch or next(
        b for kind, b in ((MLP, rows), (nn.Module, tokens)) if isinstance(pair.small, kind)
    )(torch.Generator().manual_seed(0))  # fmt: skip
    for model in (pair.small, pair.big):
        model.zero_grad()
        loss(model, batch).backward()
    ours = float(nn.utils.clip_grad_norm_(pair.small.parameters(), 1e9))
    plain = float(nn.utils.clip_grad_norm_(pair.big.parameters(), 1e9))
    return ours, float(invariant(pair.big)), plain


# ------------------------------------------------------------------ multiples that are not whole


def uneven(small: nn.Module, big: nn.Module, batch: Batch, **options: Any) -> tuple[float, Any]:
    """(change of the function in training mode, record) of growing by no whole multiple."""
    small, big = small.double(), big.double()
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-3)
    train(small, optimizer, [batch] * 3)
    with pytest.raises(InputError, match=r"is no whole multiple: take .* or say uneven=True"):
        mt.grow(small, optimizer, to=big, batches=[batch], loss=loss, show=False)
    big, _, record = mt.grow(
        small, optimizer, to=big, batches=[batch], loss=loss, show=False, uneven=True, verify="report", **options
    )
    with torch.no_grad():
        return difference(big(batch[0]), small(batch[0])), record


plain = gpt_factory(vocab_size=VOCABULARY, context=TIME, depth=2, head_size=4, init_std=0.2, norm="none")
normed = gpt_factory(vocab_size=VOCABULARY, context=TIME, depth=2, head_size=4, init_std=0.2)
by_size = gpt_factory(vocab_size=VOCABULARY, context=TIME, depth=2, n_heads=2, init_std=0.2, norm="none")
KEPT: dict[str, tuple[Callable[[], tuple[nn.Module, nn.Module]], Callable[..., Batch]]] = {
    "mlp": (lambda: (MLP(4, 3), MLP(6, 7)), rows),
    "mlp, one axis whole": (lambda: (MLP(4, 3), MLP(8, 7)), rows),
    "cnn with batch statistics": (lambda: (CNN(4, 3), CNN(6, 5)), images),
    "gpt, hidden units of the mlp": (lambda: (normed(width=8, mlp_ratio=2.0), normed(width=8, mlp_ratio=3.0)), tokens),
    "gpt without norms, by heads": (lambda: (plain(width=8), plain(width=12)), tokens),
}
CHANGED: dict[str, tuple[Callable[[], tuple[nn.Module, nn.Module]], Callable[..., Batch]]] = {
    "a mean over features": (lambda: (MLP(4, 3, norm=True), MLP(6, 3, norm=True)), rows),
    "gpt with LayerNorm": (lambda: (normed(width=8), normed(width=12)), tokens),
}


@pytest.mark.parametrize("case", KEPT)
def test_any_size_keeps_the_function_at_the_start_where_that_can_be(case: str) -> None:
    """Only on request; the plan says that the path is another, and nothing claims that it was compared."""
    make, batch = KEPT[case]
    change, record = uneven(*make(), batch(torch.Generator().manual_seed(0)))
    assert change < 1e-14
    assert not record.plan.exact
    assert "no whole multiple" in str(record.plan)
    assert record.verification.ok and record.verification.steps == 0
    assert any("training was not compared" in note for note in record.verification.notes)


@pytest.mark.parametrize("case", CHANGED)
def test_where_the_function_cannot_be_kept_grow_says_so(case: str) -> None:
    """Units with unequal numbers of copies have another mean and variance: the verification fails, and by default `grow` raises."""
    make, batch = CHANGED[case]
    small, big = make()
    change, record = uneven(small, big, batch(torch.Generator().manual_seed(0)))
    assert change > 1e-3
    assert not record.verification.ok and "norm" in record.verification.first.name
    assert any("the verification failed" in note for note in record.notes)
    assert any("not even at the start" in tensor.inexact for tensor in record.plan.tensors)
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-3)
    with pytest.raises(mt.GrowthError, match=r"norm.* is the first to depart"):
        mt.grow(small, optimizer, to=make()[1].double(), uneven=True, show=False)


def test_the_path_of_uneven_copies_is_indeed_another() -> None:
    """What the plan says of them is no mere caution."""
    batch = rows(torch.Generator().manual_seed(0))
    small, big = MLP(4, 3).double(), MLP(6, 7).double()
    optimizer = torch.optim.AdamW(small.parameters(), lr=1e-2)
    train(small, optimizer, [batch] * 3)
    big, big_optimizer, _ = mt.grow(small, optimizer, to=big, uneven=True, show=False)
    for model, its in ((small, optimizer), (big, big_optimizer)):
        train(model, its, [batch] * 5)
    with torch.no_grad():
        assert difference(big(batch[0]), small(batch[0])) > 1e-4


# ------------------------------------------------------------------ paths


def test_no_path_of_any_machine_is_in_the_package() -> None:
    """Absolute paths in string literals, or `~`, or a drive: what a script of one machine has."""
    pattern = re.compile(r"""["'](/(home|root|work|mnt|data|scratch|Users|tmp|opt|srv|workspace)/\w|~/|[A-Z]:\\\\)""")
    sources = list(PACKAGE.rglob("*.py"))
    assert len(sources) > 100
    found = [f"{path.relative_to(PACKAGE)}: {line.strip()}" for path in sources
             for line in path.read_text(encoding="utf-8").splitlines() if pattern.search(line)]  # fmt: skip
    assert not found, found


def test_the_command_runs_in_any_folder(tmp_path: Path) -> None:
    """With names relative to where it is called; nothing but what was asked for is written."""
    factory = "import torch\ndef make(width):\n    return torch.nn.Sequential(torch.nn.Linear(3, width), torch.nn.Tanh(), torch.nn.Linear(width, 2))\n"
    (tmp_path / "factory.py").write_text(factory, encoding="utf-8")
    small = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    torch.save(small.state_dict(), tmp_path / "small.pt")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONPATH": str(PACKAGE.parent)}
    code = "import sys; from mutransfer.cli import main; sys.exit(main())"
    words = "grow small.pt --model factory.py:make --from width=4 --to width=8 --out big"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code, *words.split()], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"factory.py", "small.pt", "big"}
