"""One run: what it computes, what it leaves untouched, and how it ends."""

import itertools
import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mutransfer.errors import InputError
from mutransfer.models import GPT, GPTConfig
from mutransfer.train import LogPoint, RunConfig, RunResult, flops_per_row, multiplier, resolve_device, train
from tests.train.runs import digits_run, gpt_run, text

CPU = torch.device("cpu")


@pytest.mark.parametrize("change", [{"clip_norm": "torch"}, {"clip_norm": "plan"}, {"base": {}}], ids=str)
def test_an_sp_run_is_a_plain_pytorch_loop_bit_for_bit(change: dict[str, Any]) -> None:
    config = gpt_run(recipe="sp", **change)
    assert isinstance(config.model, GPTConfig)
    torch.manual_seed(config.seed)
    model = GPT(config.model)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, eps=config.eps
    )
    expected = []
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * multiplier(step, steps=24, warmup=4, schedule="cosine")
        x, y = text().batch(step, config.seed, config.batch, config.model.context)
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert list(train(config, data=text()).losses) == expected


@pytest.mark.parametrize("recipe", ["mup", "depth-mup", "completep"])
def test_at_the_base_size_every_recipe_is_the_sp_run_bit_for_bit(recipe: str) -> None:
    sp = gpt_run(recipe="sp", base={"width": 32, "depth": 1})
    assert train(replace(sp, recipe=recipe), data=text()).losses == train(sp, data=text()).losses


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("norm_gain", [True, False])
@pytest.mark.parametrize("tied", [True, False])
def test_multipliers_in_the_forward_and_absorbed_are_one_run(optimizer: str, norm_gain: bool, tied: bool) -> None:
    lr = 2**-7 if optimizer == "adamw" else 0.5
    sizes = {"depth": 2, "tied": tied, "norm_gain": norm_gain}
    config = gpt_run(recipe="completep", base={"width": 16, "depth": 1}, optimizer=optimizer, lr=lr, sizes=sizes)
    absorbed, multiplied = (train(replace(config, placement=p), data=text()) for p in ("absorbed", "multiplier"))
    assert absorbed.losses == pytest.approx(multiplied.losses, rel=1e-4)


@pytest.mark.parametrize("optimizer", ["adam", "nadam", "radam", "adamax", "rmsprop", "adagrad", "muon", "muon-kimi"])
def test_every_optimizer_that_torch_has_takes_its_own_settings(optimizer: str) -> None:
    if optimizer.startswith("muon") and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    result = train(gpt_run(optimizer=optimizer, weight_decay=0.01, steps=8), data=text())
    assert result.status == "finished"
    assert result.losses[-1] < result.losses[0]


def test_an_optimizer_whose_package_is_missing_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(InputError, match=r"pytorch_optimizer: pip install 'mutransfer\[optimizers\]'"):
        train(gpt_run(optimizer="lion"), data=text(), folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("recipe", ["sp", "mup", "completep"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_a_gpt_learns_the_embedded_text(recipe: str, optimizer: str) -> None:
    lr = 2**-6 if optimizer == "adamw" else 0.5
    result = train(gpt_run(recipe=recipe, optimizer=optimizer, lr=lr, weight_decay=1e-3), data=text())
    assert result.status == "finished"
    assert len(result.losses) == 24
    assert result.losses[-1] < 0.95 * result.losses[0]
    assert result.val_loss is not None and abs(result.val_loss - result.losses[-1]) < 0.5


@pytest.mark.parametrize("kind", ["mlp", "resnet"])
@pytest.mark.parametrize("recipe", ["sp", "mup"])
def test_tables_and_images_are_learned_too(kind: str, recipe: str) -> None:
    result = train(digits_run(kind, recipe=recipe, lr=2**-6))
    assert result.losses[0] == pytest.approx(math.log(10), abs=0.7)
    assert result.losses[-1] < 0.9 * result.losses[0]
    assert result.val_loss is not None and math.isfinite(result.val_loss)
    assert result.points[-1].tokens == 24 * 32


@pytest.mark.parametrize("kind", ["gpt", "resnet"])
def test_validation_does_not_touch_training(kind: str) -> None:
    config = gpt_run(sizes={"dropout": 0.2}) if kind == "gpt" else digits_run("resnet")
    data = text() if kind == "gpt" else None
    often, never = (replace(config, val_every=2), replace(config, val_batches=0))
    first, second = (train(c, data=data) for c in (often, never))
    assert first.losses == second.losses
    assert second.val_loss is None
    assert [p.step for p in first.points if p.val_loss is not None] == list(range(2, 25, 2))


def test_dropout_is_on_in_training_and_off_in_validation() -> None:
    plain, dropped = (train(gpt_run(sizes={"dropout": p}, steps=2, warmup=0), data=text()) for p in (0.0, 0.9))
    assert plain.losses[0] != dropped.losses[0]
    again = train(gpt_run(sizes={"dropout": 0.9}, steps=2, warmup=0), data=text())
    assert again.losses == dropped.losses


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.5), ("adamw", 2**-8)])
@pytest.mark.parametrize("accumulation", [2, 8])
def test_accumulation_equals_the_big_batch_to_rounding(optimizer: str, lr: float, accumulation: int) -> None:
    big = gpt_run(optimizer=optimizer, lr=lr, eps=1e-5)
    small = replace(big, accumulation=accumulation)
    first, second = (train(c, data=text()) for c in (big, small))
    assert second.losses == pytest.approx(first.losses, rel=2e-5)
    assert second.val_loss == pytest.approx(first.val_loss, rel=2e-5)


def test_bf16_follows_float32_within_its_rounding() -> None:
    exact, rounded = (train(gpt_run(autocast=kind), data=text()) for kind in ("none", "bf16"))
    assert rounded.losses != exact.losses
    assert rounded.losses == pytest.approx(exact.losses, rel=0.02)


@pytest.mark.parametrize("log_every", [1, 7, 100])
def test_divergence_is_an_outcome_at_its_own_step(log_every: int) -> None:
    config = gpt_run(optimizer="sgd", lr=1e30, clip=None, warmup=0, schedule="constant", log_every=log_every)
    result = train(config, data=text())
    assert result.status == "diverged"
    assert result.diverged_at == len(result.losses) < config.steps
    assert result.reason is not None and f"update {result.diverged_at}" in result.reason
    assert all(map(math.isfinite, result.losses[:-1])) and not math.isfinite(result.losses[-1])
    assert result.train_loss == result.val_loss == math.inf


def test_weights_lost_in_the_last_update_are_seen_by_the_validation() -> None:
    config = gpt_run(optimizer="sgd", lr=1e38, clip=None, warmup=0, steps=1, weight_decay=0.0)
    result = train(config, data=text())
    assert (result.status, result.diverged_at) == ("diverged", 1)
    assert math.isfinite(result.losses[0])
    assert result.reason is not None and "validation" in result.reason


@pytest.mark.parametrize("diverges", [False, True])
def test_results_survive_json(diverges: bool) -> None:
    config = gpt_run(optimizer="sgd", lr=1e30 if diverges else 0.1, clip=None, warmup=0, log_every=1)
    result = train(config, data=text())
    again = RunResult.from_dict(json.loads(json.dumps(result.to_dict(), allow_nan=False)))
    if diverges:
        assert again.status == "diverged" and again.train_loss == again.val_loss == math.inf
        assert again.losses[:-1] == result.losses[:-1]
    else:
        assert again == result


def test_log_points_say_what_happened() -> None:
    seen: list[LogPoint] = []
    config = gpt_run(log_every=10)
    result = train(config, on_log=seen.append, data=text())
    assert tuple(seen) == result.points
    assert [p.step for p in seen] == [1, 10, 20, 24]
    assert [p.tokens for p in seen] == [p.step * 8 * 16 for p in seen]
    assert [p.loss for p in seen] == [result.losses[p.step - 1] for p in seen]
    assert seen[0].lr == config.lr / 5 and seen[-1].lr == pytest.approx(config.lr * 0.1)
    assert all(a.seconds <= b.seconds for a, b in itertools.pairwise(seen))
    assert all(p.grad_norm > 0 for p in seen)


def test_asking_for_the_norm_does_not_change_the_run() -> None:
    runs = [train(gpt_run(clip=None, log_every=n), data=text()) for n in (1, 24)]
    assert runs[0].losses == runs[1].losses
    unclipped = train(gpt_run(clip=1e9, log_every=1), data=text())
    assert unclipped.losses == runs[0].losses
    assert [p.grad_norm for p in unclipped.points] == [p.grad_norm for p in runs[0].points]


def test_the_callers_generators_are_left_as_they_were() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    train(gpt_run(sizes={"dropout": 0.1}, steps=2, warmup=0), data=text())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_seed_decides_everything() -> None:
    first, second, other = (train(gpt_run(seed=seed), data=text()) for seed in (3, 3, 4))
    assert first.losses == second.losses
    assert first.losses != other.losses


def test_flops_are_six_per_weight_and_token_plus_attention() -> None:
    model = GPTConfig(vocab_size=50, context=16, width=32, depth=3, head_size=8)
    weights = 12 * 32 * 32 * 3 + 32 * 50
    attention = 12 * 3 * 32 * 16
    assert flops_per_row(model, (16,)) == 16 * (6 * weights + attention)
    result = train(gpt_run(steps=3, warmup=0), data=text())
    assert result.flops == 3 * 8 * flops_per_row(gpt_run().model, (16,))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("device", ["cuda", "cuda:3", "mps"])
def test_a_missing_device_is_one_clear_line(device: str) -> None:
    if device == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has MPS")
    with pytest.raises(InputError, match=f"device='{device}' is not available"):
        train(gpt_run(device=device), data=text())
    assert resolve_device("cpu") == CPU


WRONG: list[tuple[RunConfig, dict[str, Any], str]] = [
    (gpt_run(), {"model": replace(gpt_run().model, vocab_size=32)}, "write vocab_size="),
    (gpt_run(), {"data": "digits"}, "which a gpt cannot read"),
    (digits_run("mlp"), {"data": "topics"}, "which a mlp cannot read"),
    (digits_run("mlp"), {"model": replace(digits_run("mlp").model, inputs=63)}, "write inputs=64"),
    (digits_run("mlp"), {"model": replace(digits_run("mlp").model, outputs=9)}, "write outputs=10"),
    (digits_run("resnet"), {"data": "digits"}, "a resnet needs images"),
    (digits_run("resnet"), {"model": replace(digits_run("resnet").model, channels=3)}, "write channels=1"),
    (digits_run("resnet"), {"model": replace(digits_run("resnet").model, classes=5)}, "write classes=10"),
]


@pytest.mark.parametrize(("config", "change", "words"), WRONG, ids=[words for *_, words in WRONG])
def test_data_that_does_not_fit_the_model_is_one_clear_line(
    config: RunConfig, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(InputError) as caught:
        train(replace(config, **change))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
