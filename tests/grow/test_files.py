"""Checkpoints of every kind grow on disk: the source stays as it was, nothing is half written, and training goes on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mutransfer as mt
from mutransfer.errors import InputError
from mutransfer.growth.build import grow_plan
from mutransfer.growth.files import Growing, open_checkpoint, prepare, write
from mutransfer.growth.files.later import Later
from mutransfer.growth.files.safetensors import save_safetensors
from mutransfer.growth.files.safetensors_folder import INDEX, open_weights
from mutransfer.growth.noise import noise_of
from mutransfer.models import GPTConfig, MLPConfig, mlp_factory
from mutransfer.train import RunConfig, load_checkpoint, load_run, train
from mutransfer.train.checkpoint import CHECKPOINT

MLP_RUN = RunConfig(
    model=MLPConfig(width=16, depth=1), base={"width": 8}, steps=10, warmup=2, data="digits", batch=8, val_batches=1,
    lr=2**-6, device="cpu",
)  # fmt: skip
GPT_RUN = replace(MLP_RUN, model=GPTConfig(vocab_size=103, context=8, width=16, depth=1, head_size=8), data="topics")


def fingerprint(folder: Path) -> dict[str, tuple[str, int, int]]:
    return {
        str(p.relative_to(folder)): (hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns, p.stat().st_size)
        for p in folder.rglob("*")
        if p.is_file()
    }


def grow(source: Path, out: Path, to: dict[str, Any], noise: Any = 0, **options: Any) -> dict[str, Any]:
    checkpoint = open_checkpoint(source, to, **options)
    plan = grow_plan(checkpoint.small, checkpoint.big, checkpoint.plan)
    growing = Growing(plan, checkpoint.weights, noise_of(noise))
    return write(checkpoint, prepare(checkpoint, growing), out)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Paused runs: mlp and gpt after 4 of 10 updates; never changed."""
    folder = tmp_path_factory.mktemp("runs")
    for name, config in (("mlp", MLP_RUN), ("gpt", GPT_RUN)):
        train(config, folder=folder / name, until=4)
    return folder


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from mutransfer.growth.build import grow_plan
from mutransfer.growth.files import Growing, folder, open_checkpoint, prepare, torch_file, write

source, out = map(Path, sys.argv[1:])
checkpoint = open_checkpoint(source, {"width": 32})
plan = grow_plan(checkpoint.small, checkpoint.big, checkpoint.plan)
prepared = prepare(checkpoint, Growing(plan, checkpoint.weights))
fill, rename, count = torch_file._fill, Path.rename, 0


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def die_later(*given):
    global count
    count += 1
    return die() if count == 5 else fill(*given)


for moment in ("fill", "flush", "rename"):
    child = os.fork()
    if child == 0:
        if moment == "fill":
            torch_file._fill = die_later
        elif moment == "flush":
            folder._flush = die
        else:
            Path.rename = die
        write(checkpoint, prepared, out)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and not out.exists(), moment
assert len(list(out.parent.glob(".big.*.part"))) <= 1
write(checkpoint, prepared, out)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_process_killed_at_any_moment_leaves_nothing_or_the_whole(runs: Path, tmp_path: Path) -> None:
    before = fingerprint(runs)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(runs / "mlp"), str(tmp_path / "big")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["big"]  # what the killed ones left is gone
    assert load_run(tmp_path / "big")[0].model == replace(MLP_RUN.model, width=32) and fingerprint(runs) == before


# ------------------------------------------------------------------ runs of ours


@pytest.mark.parametrize("name", ["mlp", "gpt"])
def test_a_grown_run_goes_on_as_the_small_one_would_have(runs: Path, tmp_path: Path, name: str) -> None:
    before = fingerprint(runs)
    source = load_checkpoint(runs / name / CHECKPOINT)
    grow(runs / name, tmp_path / "big", {"width": 32})
    assert fingerprint(runs) == before
    saved = load_checkpoint(tmp_path / "big" / CHECKPOINT)
    config = saved["config"]
    assert config == replace(source["config"], model=replace(source["config"].model, width=32))
    assert saved["step"] == 4 and torch.equal(saved["rng"]["cpu"], source["rng"]["cpu"])
    shutil.copytree(runs / name, tmp_path / "small")
    shutil.copytree(tmp_path / "big", tmp_path / "again")
    small = train(source["config"], folder=tmp_path / "small")
    big, again = (train(config, folder=tmp_path / place) for place in ("big", "again"))
    assert big.status == "finished" and big.losses == again.losses  # bit for bit
    assert big.losses == pytest.approx(small.losses, rel=1e-5) and big.val_loss == pytest.approx(
        small.val_loss, rel=1e-5
    )
    assert [p.lr for p in big.points] == [p.lr for p in small.points]


def test_a_paused_continuation_of_a_grown_run_is_the_same_run(runs: Path, tmp_path: Path) -> None:
    grow(runs / "mlp", tmp_path / "a", {"width": 32}, noise=0.05)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    config = load_checkpoint(tmp_path / "a" / CHECKPOINT)["config"]
    whole = train(config, folder=tmp_path / "a")
    train(config, folder=tmp_path / "b", until=7)
    assert train(config, folder=tmp_path / "b").losses == whole.losses


def test_the_record_says_where_a_run_was_grown_from(runs: Path, tmp_path: Path) -> None:
    grow(runs / "mlp", tmp_path / "a", {"width": 32}, noise="relative:0.1")
    grow(tmp_path / "a", tmp_path / "b", {"width": 64})
    first, second = load_checkpoint(tmp_path / "b" / CHECKPOINT)["grown"]
    assert first["config_hash"] == MLP_RUN.hash() and first["step"] == 4 and first["noise"] == "relative:0.1"
    assert second["config"]["model"]["width"] == 32
    said = json.loads((tmp_path / "b" / "grow.json").read_text())
    assert said["grow_plan"]["tensors"] and said["config"]["model"]["width"] == 32


def test_growing_twice_is_growing_once(runs: Path, tmp_path: Path) -> None:
    grow(runs / "mlp", tmp_path / "a", {"width": 32})
    grow(tmp_path / "a", tmp_path / "b", {"width": 64})
    grow(runs / "mlp", tmp_path / "c", {"width": 64})
    twice, once = (load_checkpoint(tmp_path / name / CHECKPOINT) for name in "bc")
    assert twice["config"] == once["config"] and twice["scheduler"] == once["scheduler"]
    assert all(torch.equal(twice["model"][name], t) for name, t in once["model"].items())
    for index, state in once["optimizer"]["state"].items():
        assert all(torch.equal(twice["optimizer"]["state"][index][key], value) for key, value in state.items())


def test_a_run_without_a_recipe_is_the_base_of_the_grown_one(tmp_path: Path) -> None:
    config = replace(MLP_RUN, recipe="sp", base={})
    train(config, folder=tmp_path / "small", until=4)
    grow(tmp_path / "small", tmp_path / "big", {"width": 32})
    grown = load_checkpoint(tmp_path / "big" / CHECKPOINT)["config"]
    assert (grown.recipe, grown.base) == ("mup", {"width": 16})
    big, small = train(grown, folder=tmp_path / "big"), train(config, folder=tmp_path / "small")
    assert big.losses == pytest.approx(small.losses, rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sgd", "muon"])
def test_every_optimizer_goes_on(tmp_path: Path, optimizer: str) -> None:
    config = replace(MLP_RUN, optimizer=optimizer, lr=2**-9)
    train(config, folder=tmp_path / "small", until=4)
    grow(tmp_path / "small", tmp_path / "big", {"width": 32})
    grown = load_checkpoint(tmp_path / "big" / CHECKPOINT)["config"]
    big, small = train(grown, folder=tmp_path / "big"), train(config, folder=tmp_path / "small")
    assert big.losses == pytest.approx(small.losses, rel=1e-4)


def test_a_run_under_a_plan_of_its_own_is_refused(tmp_path: Path) -> None:
    own = mt.plan(MLP_RUN.make_model, base={"width": 8}, target={"width": 16}, recipe="sp")
    train(MLP_RUN, folder=tmp_path / "small", until=2, plan=own)
    with pytest.raises(InputError, match="a plan of its own"):
        grow(tmp_path / "small", tmp_path / "big", {"width": 32})


def test_a_finished_run_goes_on_to_a_new_total(tmp_path: Path) -> None:
    config = replace(MLP_RUN, steps=4)
    finished = train(config, folder=tmp_path / "small")
    with pytest.raises(InputError, match="--steps"):
        grow(tmp_path / "small", tmp_path / "big", {"width": 32})
    with pytest.raises(InputError, match="made 4 already"):
        grow(tmp_path / "small", tmp_path / "big", {"width": 32}, steps=4)
    grow(tmp_path / "small", tmp_path / "big", {"width": 32}, steps=8)
    grown = load_checkpoint(tmp_path / "big" / CHECKPOINT)["config"]
    result = train(grown, folder=tmp_path / "big")
    assert len(result.losses) == 8 and result.losses[:4] == finished.losses


def test_a_run_grows_in_width_and_depth(runs: Path, tmp_path: Path) -> None:
    grow(runs / "gpt", tmp_path / "big", {"width": 32, "depth": 3})
    config, big, _ = load_run(tmp_path / "big")
    _, small, _ = load_run(runs / "gpt")
    ids = torch.arange(16).view(2, 8)
    with torch.no_grad():
        torch.testing.assert_close(big(ids), small(ids), rtol=1e-4, atol=1e-5)
    assert config.base == {"width": 8, "depth": 1}
    assert train(config, folder=tmp_path / "big").status == "finished"


def test_noise_depends_on_the_seed_alone(runs: Path) -> None:
    checkpoint = open_checkpoint(runs / "mlp", {"width": 32})
    plan = grow_plan(checkpoint.small, checkpoint.big, checkpoint.plan)

    def weight(noise: float, seed: int) -> Tensor:
        return Growing(plan, checkpoint.weights, noise_of(noise), seed).weight("layers.0.weight").make()

    assert torch.equal(weight(0.1, 0), weight(0.1, 0))
    assert not torch.equal(weight(0.1, 0), weight(0.1, 1)) and not torch.equal(weight(0.1, 0), weight(0.0, 0))


# ------------------------------------------------------------------ plain files


make = mlp_factory(inputs=5, outputs=3, depth=1)


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer, first: int, count: int) -> list[float]:
    losses = []
    for step in range(first, first + count):
        x = torch.randn(6, 5, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = (model(x) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.fixture
def plain(tmp_path: Path) -> tuple[nn.Module, torch.optim.Optimizer, Path]:
    torch.manual_seed(0)
    model = make(width=8)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    stepped(model, optimizer, 0, 3)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    torch.save(optimizer.state_dict(), tmp_path / "opt.pt")
    averages = {name: 2 * t for name, t in model.state_dict().items()}
    whole = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": averages, "epoch": 3, "note": "x"}
    torch.save(whole, tmp_path / "all.pt")
    torch.save({f"module.{name}": t for name, t in model.state_dict().items()}, tmp_path / "ddp.pt")
    save_safetensors(tmp_path / "a.safetensors", {name: Later.of(t) for name, t in model.state_dict().items()})
    return model, optimizer, tmp_path


def continued(weights: dict[str, Tensor], state: dict[str, Any]) -> list[float]:
    """What a user does: the groups in the state name their tensors."""
    model = make(width=16)
    model.load_state_dict(weights)
    named = dict(model.named_parameters())
    groups = [{**group, "params": [named[name] for name in group["names"]]} for group in state["param_groups"]]
    optimizer = torch.optim.AdamW(groups)
    optimizer.load_state_dict(state)
    return stepped(model, optimizer, 3, 5)


@pytest.mark.parametrize("where", ["two files", "one file"])
def test_plain_files_go_on_where_they_were(plain: tuple[nn.Module, torch.optim.Optimizer, Path], where: str) -> None:
    model, optimizer, folder = plain
    before = fingerprint(folder)
    more = {"optimizer_state": folder / "opt.pt"} if where == "two files" else {}
    name = "model.pt" if where == "two files" else "all.pt"
    grow(folder / name, folder / "big", {"width": 16}, base={"width": 8}, make=make, **more)
    assert {p: f for p, f in fingerprint(folder).items() if not p.startswith("big")} == before
    found = torch.load(folder / "big" / name, weights_only=True)
    weights, state = (found, torch.load(folder / "big" / "opt.pt")) if more else (found["model"], found["optimizer"])
    if not more:
        assert (found["epoch"], found["note"]) == (3, "x") and list(found) == [
            "model",
            "optimizer",
            "ema",
            "epoch",
            "note",
        ]
        assert all(torch.equal(found["ema"][n], 2 * t) for n, t in weights.items())
    assert continued(weights, state) == pytest.approx(stepped(model, optimizer, 3, 5), rel=1e-5)


def test_prefixes_of_wrappers_stay(plain: tuple[nn.Module, torch.optim.Optimizer, Path]) -> None:
    _, _, folder = plain
    grow(folder / "ddp.pt", folder / "big", {"width": 16}, base={"width": 8}, make=make)
    nn.DataParallel(make(width=16)).load_state_dict(torch.load(folder / "big" / "ddp.pt"))


def test_safetensors_grow_into_shards(plain: tuple[nn.Module, torch.optim.Optimizer, Path]) -> None:
    model, _, folder = plain
    grow(folder / "a.safetensors", folder / "big", {"width": 16}, base={"width": 8}, make=make, largest=700)
    found, _ = open_weights(folder / "big")
    assert (folder / "big" / INDEX).exists()
    big, x = make(width=16), torch.randn(4, 5)
    big.load_state_dict(found)
    torch.testing.assert_close(big(x), model(x))


def test_groups_that_do_not_name_their_tensors_are_asked_for(
    plain: tuple[nn.Module, torch.optim.Optimizer, Path],
) -> None:
    model, _, folder = plain

    def build(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        made = make(width=width)
        decayed = [p for p in made.parameters() if p.ndim > 1]
        return made, torch.optim.AdamW(
            [{"params": decayed}, {"params": [p for p in made.parameters() if p.ndim < 2], "weight_decay": 0.0}],
            lr=0.01,
        )

    small, optimizer = build(8)
    small.load_state_dict(model.state_dict())
    stepped(small, optimizer, 0, 3)
    torch.save(small.state_dict(), folder / "model.pt")
    torch.save(optimizer.state_dict(), folder / "opt.pt")
    given: dict[str, Any] = {"base": {"width": 8}, "optimizer_state": folder / "opt.pt"}
    with pytest.raises(InputError, match="2 param groups that do not name their tensors"):
        grow(folder / "model.pt", folder / "big", {"width": 16}, make=make, **given)
    grow(folder / "model.pt", folder / "big", {"width": 16}, make=build, **given)
    found = continued(torch.load(folder / "big" / "model.pt"), torch.load(folder / "big" / "opt.pt"))
    assert found == pytest.approx(stepped(small, optimizer, 3, 5), rel=1e-5)


# ------------------------------------------------------------------ Hugging Face folders


@pytest.mark.parametrize("kind", ["gpt2", "llama", "old torch file", "renamed"])
def test_a_hugging_face_folder_grows_into_one(tmp_path: Path, kind: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    if kind == "llama":
        config = transformers.LlamaConfig(
            vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=16,
        )  # fmt: skip
        to = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 8, "num_key_value_heads": 4}
    elif kind == "renamed":  # transformers 5 writes its head under another name than the model has
        config = transformers.GPTNeoXConfig(
            vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=16,
        )  # fmt: skip
        to = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    else:
        config = transformers.GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2)
        to = {"n_embd": 32, "n_head": 4}
    small = transformers.AutoModelForCausalLM.from_config(config).eval()
    small.save_pretrained(tmp_path / "small")
    (tmp_path / "small" / "tokenizer.json").write_text("{}")
    if kind == "old torch file":
        (tmp_path / "small" / "model.safetensors").unlink()
        torch.save(small.state_dict(), tmp_path / "small" / "pytorch_model.bin")
    before = fingerprint(tmp_path)
    grow(tmp_path / "small", tmp_path / "big", to, largest=20_000)
    assert {p: f for p, f in fingerprint(tmp_path).items() if not p.startswith("big")} == before
    big = type(small).from_pretrained(tmp_path / "big").eval()
    ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(big(ids).logits, small(ids).logits, rtol=1e-4, atol=1e-5)
    assert (tmp_path / "big" / "tokenizer.json").exists()
