"""Files are written tensor by tensor, read without being loaded, whole or not at all; damaged ones are one clear line."""

from __future__ import annotations

import json
import struct
import weakref
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mutransfer.errors import InputError
from mutransfer.growth.files.folder import new_folder
from mutransfer.growth.files.later import Later
from mutransfer.growth.files.safetensors import open_safetensors, save_safetensors, shards
from mutransfer.growth.files.safetensors_folder import INDEX, index_of, open_weights
from mutransfer.growth.files.torch_file import open_torch, save_torch

# ------------------------------------------------------------------ torch's files


def test_a_streamed_file_is_what_torch_would_have_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tied, moment = torch.randn(300, 7), torch.randn(40, 3).to(torch.bfloat16)
    once = Later.of(tied)
    content = {
        "model": {"a": once, "b": once, "n": torch.tensor(3), "empty": torch.empty(0, 4), "mask": torch.tensor([True])},
        "optimizer": {"state": {0: {"step": torch.tensor(5.0), "m": Later.of(moment)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]},
        "words": ["x", None, 2, {"y": -1.5}],
    }  # fmt: skip
    path = tmp_path / "streamed.pt"
    save_torch(path, content)
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
    for mapped in (False, True):
        found = torch.load(path, weights_only=True, mmap=mapped)
        assert torch.equal(found["model"]["a"], tied) and torch.equal(found["optimizer"]["state"][0]["m"], moment)
        assert found["model"]["a"].data_ptr() == found["model"]["b"].data_ptr()
        assert found["model"]["n"] == 3 and found["model"]["empty"].shape == (0, 4) and found["model"]["mask"].all()
        assert found["optimizer"]["state"][0]["step"] == 5.0
        assert found["optimizer"]["param_groups"] == content["optimizer"]["param_groups"]
        assert found["words"] == content["words"]


def test_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    alive: list[Any] = []

    def make(i: int) -> Tensor:
        assert all(ref() is None for ref in alive), "the tensor before is still there"
        made = torch.full((64, 64), float(i))
        alive.append(weakref.ref(made))
        return made

    tensors = {str(i): Later((64, 64), torch.float32, lambda i=i: make(i)) for i in range(5)}
    save_torch(tmp_path / "a.pt", tensors)
    assert len(alive) == 5 and torch.load(tmp_path / "a.pt")["3"].eq(3).all()
    alive.clear()
    save_safetensors(tmp_path / "a.safetensors", tensors)
    assert len(alive) == 5 and open_safetensors(tmp_path / "a.safetensors")[0]["3"].eq(3).all()


def test_a_tensor_of_another_shape_than_planned_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\(2,\).*\(3,\)"):
        save_torch(tmp_path / "a.pt", {"a": Later((3,), torch.float32, lambda: torch.zeros(2))})


@pytest.mark.parametrize("damage", ["flipped", "cut", "text", "missing", "objects", "folder"])
def test_a_damaged_torch_file_is_one_line(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(1000)} if damage != "objects" else nn.Linear(2, 2), path)
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    path.write_bytes({"cut": bytes(data[: len(data) // 2]), "text": b"hello"}.get(damage, bytes(data)))
    if damage in ("missing", "folder"):
        path.unlink()
    if damage == "folder":
        path.mkdir()
    with pytest.raises(InputError, match=r"a\.pt") as caught:
        open_torch(path)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ safetensors


TENSORS = {
    "w": torch.arange(12.0).view(3, 4), "half": torch.ones(5, dtype=torch.bfloat16), "i": torch.tensor([1, -2]),
    "scalar": torch.tensor(2.5, dtype=torch.float64), "empty": torch.empty(0, 3), "flag": torch.tensor([True, False]),
}  # fmt: skip


def test_safetensors_come_back_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_safetensors(path, {name: Later.of(t) for name, t in TENSORS.items()}, {"format": "pt"})
    found, metadata = open_safetensors(path)
    assert metadata == {"format": "pt"} and set(found) == set(TENSORS)
    assert all(torch.equal(found[name], t) and found[name].dtype == t.dtype for name, t in TENSORS.items())


def test_the_library_of_the_format_reads_and_writes_the_same(tmp_path: Path) -> None:
    library = pytest.importorskip("safetensors.torch")
    save_safetensors(tmp_path / "ours.safetensors", {name: Later.of(t) for name, t in TENSORS.items()}, {"a": "b"})
    library.save_file(TENSORS, tmp_path / "theirs.safetensors", {"a": "b"})
    theirs, ours = (
        library.load_file(tmp_path / "ours.safetensors"),
        open_safetensors(tmp_path / "theirs.safetensors")[0],
    )
    assert all(torch.equal(theirs[name], t) and torch.equal(ours[name], t) for name, t in TENSORS.items())


def _safetensors(header: Any, data: bytes = b"\0" * 8) -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text)) + text + data


GOOD = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize("data", [
    b"", b"abc", struct.pack("<Q", 1 << 60) + b"{}", _safetensors(b"{not json"), _safetensors([1]), _safetensors({"a": 3}),
    _safetensors({"a": {**GOOD, "dtype": "F7"}}), _safetensors({"a": {**GOOD, "shape": [3]}}), _safetensors({"a": GOOD}, b"\0" * 4),
    _safetensors({"a": {**GOOD, "data_offsets": [-8, 0]}}), _safetensors({"a": GOOD}, b"\0" * 12),
], ids=range(11))  # fmt: skip
def test_a_damaged_safetensors_file_is_one_line(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"a\.safetensors.*damaged"):
        open_safetensors(path)


def test_shards_hold_every_tensor_once_in_files_of_the_size_asked_for(tmp_path: Path) -> None:
    tensors = {f"t{i}": Later.of(torch.full((10,), float(i))) for i in range(7)}
    parts = shards(tensors, "model", 90)
    assert list(parts) == [f"model-0000{i}-of-00004.safetensors" for i in range(1, 5)]
    for name, part in parts.items():
        save_safetensors(tmp_path / name, part)
    (tmp_path / INDEX).write_text(index_of(parts))
    for place in (tmp_path, tmp_path / INDEX):
        found, _ = open_weights(place)
        assert list(found) == list(tensors) and all(found[f"t{i}"].eq(i).all() for i in range(7))
    (tmp_path / "model-00002-of-00004.safetensors").unlink()
    with pytest.raises(InputError, match="00002"):
        open_weights(tmp_path)


# ------------------------------------------------------------------ whole or not at all


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "deeper" / "out"
    for error, expected in (
        (OSError(28, "No space left on device"), InputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ):
        with pytest.raises(expected), new_folder(out, 0) as folder:
            (folder / "a").write_text("half")
            raise error
        assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="are free there"), new_folder(out, 10**18):
        pass
    assert list(tmp_path.iterdir()) == []


def test_the_folder_of_a_process_at_work_is_not_taken_for_abandoned(tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with new_folder(tmp_path / "out", 0) as first:
        with pytest.raises(InputError), new_folder(tmp_path / "out", 10**18):
            pass
        assert first.exists()
