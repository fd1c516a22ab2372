"""A run that starts grown is the small run, then the big one: exactly, once for all that share it, and counted."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mutransfer.errors import InputError
from mutransfer.sweep import Wanted
from mutransfer.sweep.cost import _shared, flops_of
from mutransfer.sweep.grid import grid_configs
from mutransfer.sweep.jobs import train_config
from mutransfer.train import LogPoint, RunConfig, load_checkpoint, load_run, train
from mutransfer.verdict import transfer_verdict
from tests.train.runs import digits_run, gpt_run, text
from tests.train.test_checkpoint import Killed, assert_same_run, kill_at


def grown_run(**changes: Any) -> RunConfig:
    """8 updates at width 16, then 12 at width 32."""
    return gpt_run(
        **{"grow_from": {"width": 16}, "grow_steps": 8, "steps": 12, "lr": 2**-6, "val_batches": 1, **changes}
    )


def run(config: RunConfig, **options: Any) -> Any:
    return train(config, data=text() if config.data == "topics" else None, **options)


def test_what_does_not_grow_is_the_run_that_it_was() -> None:
    assert not [name for name in gpt_run().to_dict() if name.startswith("grow")]
    assert Wanted.of(gpt_run()).key == "e4bd9d392c9fdab667afa087020b147c"  # in stores of before


def test_the_config_round_trips_and_half_is_a_number_in_it() -> None:
    config = grown_run(grow_from={"width": "/2"}, grow_noise=1, grow_lr=1)
    assert config == grown_run(grow_noise=1.0, grow_lr=1.0) and RunConfig.from_dict(config.to_dict()) == config
    small = config.small
    assert small is not None and small.small is None
    assert small == gpt_run(sizes={"width": 16}, steps=8, lr=1.0, val_batches=1)
    assert grown_run().to_dict()["grow_noise"] == 0.0  # a value like others, in a table of runs
    values = {**config.to_dict(), "grow_from": None}
    axes = {"width": [32, 64], "grow_from.width": ["/2", "/4"], "grow_noise": [0.1]}
    assert [c.grow_from for c in grid_configs(values, axes)] == [{"width": w} for w in (16, 8, 32, 16)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grow_from": {"width": 64}}, "a whole number from 1 to the model's width=32"),
        ({"grow_from": {"width": 32}}, "nothing grows"),
        ({"grow_from": {"width": "/3"}}, "write a size, or /2 for half of it"),
        ({"grow_from": {"wdth": 16}}, "wdth is no size of the model"),
        ({"grow_from": {"context": 8}}, "the base must name context"),
        ({"grow_steps": None}, "grow_steps=None: give the updates of the small model"),
        ({"grow_steps": 3}, "the run of the small model: warmup=4 is longer than the run"),
        ({"grow_noise": -0.1}, "grow_noise=-0.1"),
        ({"grow_noise_kind": "loud"}, "noise kind 'loud'"),
        ({"grow_state": "some"}, "choose from copy, fresh"),
        ({"grow_from": None, "grow_steps": None, "grow_noise": 0.1}, "give grow_from={'width': 32} too"),
        ({"duration": "sde"}, "of a run that starts grown"),
    ],
)
def test_what_means_nothing_is_one_clear_line(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said.replace("{", r"\{")) as error:
        grown_run(**changes)
    assert "\n" not in str(error.value)


def test_what_cannot_grow_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="whole"):
        run(grown_run(grow_from={"width": 24}, sizes={"head_size": 8}), folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon-kimi"])
def test_without_noise_the_big_model_goes_on_as_the_small_one_would(optimizer: str) -> None:
    """Weights, optimizer's state, and the place in the data: the losses are those of the small run continued."""
    settings: dict[str, Any] = {"optimizer": optimizer, "schedule": "constant", "warmup": 0, "lr": 2**-7}
    grown = run(grown_run(**settings))
    small = run(gpt_run(sizes={"width": 16}, steps=20, val_batches=1, **settings))
    assert grown.losses == pytest.approx(small.losses[8:], rel=2e-4)
    assert grown.val_loss == pytest.approx(small.val_loss, rel=2e-4)
    noisy = run(grown_run(**settings, grow_noise=0.1))
    assert abs(noisy.losses[-1] / small.losses[-1] - 1) > 1e-3
    fresh = run(grown_run(**settings, grow_state="fresh"))
    assert fresh.losses[0] == pytest.approx(grown.losses[0], rel=1e-5) and fresh.losses[-1] != grown.losses[-1]


@pytest.mark.parametrize("kind", ["mlp", "resnet"])
def test_the_standard_parametrization_starts_at_the_same_function(kind: str) -> None:
    changes = {"schedule": "constant", "warmup": 0, "batch": 8, "steps": 3, "recipe": "sp", "val_batches": 0}
    width = {"mlp": 16, "resnet": 4}[kind]
    grown = run(digits_run(kind, grow_from={"width": width}, grow_steps=3, **changes))
    small = digits_run(kind, **{**changes, "steps": 6})
    small = run(replace(small, model=replace(small.model, width=width)))
    assert grown.losses[0] == pytest.approx(small.losses[3], rel=1e-4) and grown.losses[2] != pytest.approx(
        small.losses[5], rel=1e-3
    )


def test_runs_that_share_the_small_model_train_it_once_and_count_it(tmp_path: Path) -> None:
    shared = tmp_path / "small"
    config = grown_run(grow_lr=2**-6, grow_noise=0.1)
    first = run(config, small=shared)
    (folder,) = shared.iterdir()
    before = (folder / "checkpoint.pt").stat().st_mtime_ns
    second = run(replace(config, lr=2**-5, grow_noise=0.2), small=shared)
    assert [f.name for f in shared.iterdir()] == [folder.name] and second.losses != first.losses
    assert load_checkpoint(folder / "checkpoint.pt")["step"] == 8
    assert run(config).losses == first.losses  # without the folder, too
    assert before <= (folder / "checkpoint.pt").stat().st_mtime_ns
    assert config.small is not None
    small = run(config.small)
    assert first.grow_flops == small.flops and first.grow_loss == small.val_loss
    assert first.flops == small.flops + flops_of(
        replace(config, grow_from=None, grow_steps=None, grow_lr=None, grow_noise=0.0)
    )
    assert first.flops == flops_of(config)
    both = _shared({"a": config, "b": replace(config, lr=2**-5)})
    assert sum(both.values()) == 2 * flops_of(config) - small.flops


def test_an_interrupted_run_continues_exactly(tmp_path: Path) -> None:
    config = grown_run(checkpoint_every=4, grow_noise=0.1, log_every=3)
    whole = run(config, folder=tmp_path / "whole")
    with pytest.raises(Killed):
        run(config, folder=tmp_path / "killed", on_log=kill_at(6))
    assert load_checkpoint(tmp_path / "killed" / "checkpoint.pt")["step"] == 4
    resumed = run(config, folder=tmp_path / "killed")
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    assert (resumed.flops, resumed.grow_flops, resumed.grow_loss) == (whole.flops, whole.grow_flops, whole.grow_loss)
    assert run(config, folder=tmp_path / "killed").losses == whole.losses  # it has ended
    other, model, _ = load_run(tmp_path / "whole")
    assert other == config and sum(p.numel() for p in model.parameters()) == whole.params


def test_killed_while_the_small_model_is_trained_it_continues_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = grown_run(checkpoint_every=3)
    whole = run(config, folder=tmp_path / "whole")
    from mutransfer.train import Run

    update = Run.update

    def dies(self: Run, step: int, want_norm: bool) -> Any:
        if step == 5:
            raise Killed
        return update(self, step, want_norm)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "update", dies)
        run(config, folder=tmp_path / "killed")
    (small,) = (tmp_path / "killed" / "grown-from").iterdir()
    assert load_checkpoint(small / "checkpoint.pt")["step"] == 3
    assert run(config, folder=tmp_path / "killed").losses == whole.losses


def test_a_small_model_that_diverged_is_a_result() -> None:
    config = digits_run(
        "mlp", grow_from={"width": 16}, grow_steps=6, optimizer="sgd", momentum=0.0, clip=None, grow_lr=1e30
    )
    result = run(config)
    assert (result.status, result.diverged_at, result.losses) == ("diverged", 0, ())
    assert result.reason is not None and "small model" in result.reason
    outcome = train_config(config, None, None, 1, lambda message: None)
    assert (
        outcome["status"] == "diverged" and outcome["metrics"]["train_loss"] is outcome["metrics"]["grow_loss"] is None
    )


def test_a_row_says_what_the_small_model_cost(tmp_path: Path) -> None:
    points: list[LogPoint] = []
    outcome = train_config(grown_run(), None, None, 1, points.append, small=str(tmp_path))
    assert 0 < outcome["metrics"]["grow_flops"] < outcome["flops"] and points
    assert math.isfinite(outcome["metrics"]["grow_loss"]) and [p.name for p in tmp_path.iterdir()]


def test_noise_is_judged_like_a_learning_rate_and_none_at_all_is_no_point_of_it() -> None:
    rows = [
        {"width": w, "noise": 2.0**x, "seed": s, "loss": 2 + 0.02 * (x + 4) ** 2 - 0.1 * math.log2(w) + 1e-3 * ((3 * x + s) % 5)}
        for w in (32, 64, 128) for x in range(-8, 1) for s in (0, 1)
    ]  # fmt: skip
    rows += [{"width": w, "noise": 0, "seed": 0, "loss": 3.0} for w in (32, 64, 128)]
    found = transfer_verdict(rows, lr="noise")
    assert found.ok and found.optima[0].log2_lr.value == pytest.approx(-4, abs=0.2)
    text = found.words()
    steep = [{**row, "loss": 9.0 if row["noise"] == 1 else row["loss"]} for row in rows]
    assert not any(math.isinf(loss) for one in transfer_verdict(steep, lr="noise").optima for _, loss in one.points)
    assert "LR" not in text and "3 runs with noise 0" in text and "best log2 noise" in text
