"""A run is a value: JSON and back, one hash, and one clear line for every config that cannot be run."""

import json
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from mutransfer.errors import InputError
from mutransfer.models import GPTConfig, MLPConfig, ResNetConfig
from mutransfer.train import RunConfig

GPT = GPTConfig(vocab_size=65, context=8, width=64, depth=2, head_size=16)
RUNS = [
    RunConfig(model=GPT, base={"width": 32}),
    RunConfig(
        model=GPTConfig(width=64, zero_init=("head", "query")),
        base={"width": 64, "depth": 2},
        recipe="completep",
        clip=None,
    ),
    RunConfig(model=MLPConfig(), recipe="sp", optimizer="sgd", momentum=0.0, data="digits", schedule="wsd"),
    RunConfig(model=ResNetConfig(), base={"width": 16}, data="digits-images", autocast="bf16", device="cuda:1"),
]


@pytest.mark.parametrize("config", RUNS, ids=lambda c: c.model_kind)
def test_json_round_trip(config: RunConfig) -> None:
    again = RunConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False)))
    assert again == config
    assert again.hash() == config.hash()
    assert hash(again) == hash(config)


def test_equal_runs_have_one_hash_and_each_field_changes_it() -> None:
    run = RUNS[0]
    assert replace(run, lr=1).hash() == replace(run, lr=1.0).hash()
    assert replace(run, model=replace(GPT, dropout=0)).hash() == run.hash()
    assert RunConfig(model=GPT, base={"depth": 1, "width": 32}) == RunConfig(model=GPT, base={"width": 32, "depth": 1})
    changes: list[dict[str, Any]] = [
        {"lr": 0.5},
        {"seed": 1},
        {"base": {"width": 16}},
        {"model": replace(GPT, width=128)},
    ]
    assert len({run.hash(), *(replace(run, **change).hash() for change in changes)}) == 5


def test_a_field_added_later_does_not_orphan_runs_stored_before() -> None:
    run = RUNS[0]
    assert "logit_multiplier" not in run.to_dict()["model"]
    scaled = replace(run, model=replace(GPT, logit_multiplier=5))
    assert scaled.to_dict()["model"]["logit_multiplier"] == 5.0 and scaled.hash() != run.hash()
    assert RunConfig.from_dict(scaled.to_dict()) == scaled


def test_the_hash_does_not_depend_on_the_session() -> None:
    code = "from mutransfer.train import RunConfig; print(RunConfig(base={'depth': 2, 'width': 64}).hash())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == RunConfig(base={"width": 64, "depth": 2}).hash()


def test_the_base_config_differs_only_in_the_base_sizes() -> None:
    run = RunConfig(model=GPT, base={"width": 32, "depth": 1})
    assert run.build_base_config() == replace(GPT, width=32, depth=1)
    assert run.target == {"width": 64, "depth": 2}


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"lr": -0.1}, "lr=-0.1"),
    ({"lr": 0}, "lr=0.0"),
    ({"lr": float("nan")}, "lr=nan"),
    ({"lr": "fast"}, "lr='fast'"),
    ({"weight_decay": -1}, "weight_decay=-1.0"),
    ({"steps": 0}, "steps=0"),
    ({"steps": 10.5}, "steps=10.5"),
    ({"batch": 0}, "batch=0"),
    ({"batch": True}, "batch=True"),
    ({"batch": 10, "accumulation": 4}, "multiple of 4"),
    ({"steps": 10, "warmup": 11}, "warmup <= steps"),
    ({"warmup": -1}, "warmup=-1"),
    ({"schedule": "cosin"}, "did you mean 'cosine'?"),
    ({"final_lr_ratio": 1.5}, "final_lr_ratio=1.5"),
    ({"wsd_decay_fraction": -0.5}, "wsd_decay_fraction=-0.5"),
    ({"optimizer": "adamww"}, "did you mean 'adamw'?"),
    ({"recipe": "mupp"}, "did you mean 'mup'?"),
    ({"mode": "exakt"}, "did you mean 'exact'?"),
    ({"placement": "forward"}, "choose from absorbed, multiplier"),
    ({"betas": (0.9, 1.0)}, "betas=1.0"),
    ({"betas": (0.9,)}, "two numbers"),
    ({"momentum": 1.0}, "momentum=1.0"),
    ({"eps": -1e-8}, "eps=-1e-08"),
    ({"clip": 0.0}, "None for no clipping"),
    ({"clip_norm": "plam"}, "did you mean 'plan'?"),
    ({"autocast": "fp16"}, "choose from none, bf16"),
    ({"log_every": 0}, "log_every=0"),
    ({"val_every": -1}, "val_every=-1"),
    ({"device": "gpu"}, "choose from auto, cpu, cuda, cuda:0, mps"),
    ({"device": "cuda:x"}, "device='cuda:x'"),
    ({"device": "cpu:0"}, "device='cpu:0'"),
    ({"data": ""}, "data=''"),
    ({"base": {}}, "base={'width': 64}"),
    ({"base": 64}, "base=64"),
    ({"base": "width"}, "base='width'"),
    ({"seed": 2**63}, "below 2**63"),
    ({"base": {"widht": 32}}, "did you mean 'width'?"),
    ({"base": {"width": 0}}, "base['width']=0"),
    ({"base": {"width": 40}}, "not a multiple of head_size=16"),
    ({"base": {"norm": 3}}, "is not a size"),
    ({"model": {"width": 32}}, "give a GPTConfig"),
]


@pytest.mark.parametrize(("change", "words"), WRONG, ids=[words for _, words in WRONG])
def test_what_cannot_be_run_is_one_clear_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        replace(RUNS[0], **change)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"learning_rate": 0.1}, "learning_rate is not a field of RunConfig"),
        ({"stesp": 10}, "did you mean 'steps'?"),
        ([1, 2], "a run's config is of type list"),
        ({"model": "gpt"}, "model is of type str"),
        ({"model": {"kind": "gtp"}}, "did you mean 'gpt'?"),
        ({"model": {"kind": "gpt", "widht": 3}}, "model.widht is not a field of GPTConfig: did you mean 'width'?"),
    ],
)
def test_json_that_is_no_run_is_one_clear_line(data: Any, words: str) -> None:
    with pytest.raises(InputError) as caught:
        RunConfig.from_dict(data)
    assert words in str(caught.value)
