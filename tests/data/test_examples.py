"""Tables and images: standardised by the training split, every example once per epoch."""

import io
import pickle
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from mutransfer.data import ImageData, TableData, load, make_images, make_table, prepare
from mutransfer.data.images import read_cifar100
from mutransfer.data.tabular import moments
from mutransfer.errors import InputError


@pytest.fixture(scope="module")
def digits() -> TableData:
    data = load("digits")
    assert isinstance(data, TableData)
    return data


def test_digits_as_table_and_as_images_are_the_same_examples(digits: TableData) -> None:
    images = load("digits-images")
    assert isinstance(images, ImageData)
    assert (digits.features, images.channels, images.size) == (64, 1, (8, 8))
    assert (len(digits.train_y), len(digits.val_y), digits.classes, images.classes) == (1438, 359, 10, 10)
    assert np.array_equal(digits.train_x, images.train_x.reshape(1438, 64))
    x, y = images.batch(step=3, seed=1, batch=5)
    assert x.shape == (5, 1, 8, 8) and x.dtype == torch.float32 and y.dtype == torch.int64
    assert torch.equal(y, digits.batch(step=3, seed=1, batch=5)[1])
    assert digits.fingerprint != images.fingerprint


def test_features_are_standardised_by_the_training_split(digits: TableData) -> None:
    x, _ = digits.batch(0, 0, batch=len(digits.train_y))  # one whole epoch
    varying = digits.train_x.std(axis=0) > 0
    assert torch.allclose(x.mean(0), torch.zeros(64), atol=1e-5)
    assert torch.allclose(
        x.std(0, unbiased=False)[torch.from_numpy(varying)], torch.ones(int(varying.sum())), atol=1e-4
    )
    assert torch.isfinite(x).all()  # a constant pixel is centred, not divided by zero
    held_out = next(iter(digits.val_batches(batch=359)))[0]
    assert held_out.mean(0).abs().max() > 1e-3  # its own statistics were not used


def test_image_channels_are_standardised_from_uint8() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (600, 3, 4, 4), dtype=np.uint8)
    pixels[:, 1] //= 2
    data = make_images("noise", pixels, np.zeros(600, int), pixels[:10], np.zeros(10, int), classes=2)
    assert data.train_x.dtype == np.uint8
    assert np.allclose(data.mean.ravel(), pixels.mean(axis=(0, 2, 3)), rtol=1e-5)
    assert np.allclose(data.std.ravel(), pixels.std(axis=(0, 2, 3)), rtol=1e-5)
    x, _ = data.batch(0, 0, batch=600)
    assert torch.allclose(x.mean((0, 2, 3)), torch.zeros(3), atol=1e-4)


def test_moments_sum_over_slices_exactly() -> None:
    x = np.random.default_rng(1).normal(3, 2, (20_000, 3)).astype(np.float32)
    mean, std = moments(x, (0,))
    assert np.allclose(mean, x.astype(float).mean(0)) and np.allclose(std, x.astype(float).std(0))


def test_one_epoch_shows_every_row_once() -> None:
    x = np.arange(10, dtype=np.float32)[:, None]
    data = make_table("rows", x, np.arange(10), x, np.arange(10), classes=10)
    labels = torch.cat([data.batch(step, seed=0, batch=5)[1] for step in range(4)])
    assert sorted(labels[:10].tolist()) == sorted(labels[10:].tolist()) == list(range(10))
    halves = torch.cat([data.batch(0, 0, 4, rank=rank, world=2)[1] for rank in (0, 1)])
    assert torch.equal(halves, data.batch(0, 0, 4)[1])


def test_validation_batches_have_one_shape_and_a_fixed_order(digits: TableData) -> None:
    batches = list(digits.val_batches(batch=100))
    assert [len(y) for _, y in batches] == [100, 100, 100]
    assert torch.equal(batches[0][1], torch.from_numpy(digits.val_y[:100]))
    assert [len(y) for _, y in digits.val_batches(batch=1000, n=4)] == [359]


@pytest.mark.parametrize("change", [dict(batch=0), dict(step=-1), dict(seed=-1), dict(world=3)])
def test_wrong_arguments_are_refused(digits: TableData, change: dict) -> None:
    with pytest.raises(InputError, match=next(iter(change))):
        digits.batch(**(dict(step=0, seed=0, batch=4) | change))


def test_missing_sklearn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(InputError, match=r"pip install 'mutransfer\[sklearn\]'"):
        load("digits")


def covertype(path: Path, rows: int = 100) -> np.ndarray:
    table = np.random.default_rng(0).integers(0, 4000, (rows, 55))
    table[:, 54] = np.arange(rows) % 7 + 1
    np.savetxt(path, table, fmt="%d", delimiter=",")  # compressed when the name ends in .gz
    return table


def test_covertype_from_a_local_file(tmp_path: Path) -> None:
    table = covertype(tmp_path / "covtype.data.gz")
    done = prepare("covertype", source=tmp_path / "covtype.data.gz")
    data = load("covertype")
    assert isinstance(data, TableData) and not done.cached
    assert (data.features, data.classes, len(data.train_y), len(data.val_y)) == (54, 7, 80, 20)
    rows = np.concatenate(
        [np.column_stack([x, y]) for x, y in ((data.train_x, data.train_y), (data.val_x, data.val_y))]
    )
    table[:, 54] -= 1
    assert np.array_equal(np.sort(rows, axis=0), np.sort(table, axis=0))
    assert np.allclose(data.mean, data.train_x.mean(0), rtol=1e-5)
    assert torch.isfinite(data.batch(0, 0, 8)[0]).all()


@pytest.mark.parametrize("text", ["", "a,b\n", "1,2,3\n" * 20, ",".join(["9"] * 55) + "\n"])
def test_a_file_that_is_not_covertype_is_refused(tmp_path: Path, root: Path, text: str) -> None:
    path = tmp_path / "covtype.data"
    path.write_text(text)
    with pytest.raises(InputError, match=r"covtype\.data") as caught:
        prepare("covertype", source=path)
    assert "\n" not in str(caught.value)
    assert not root.exists()


def cifar(folder: Path, form: str) -> tuple[Path, np.ndarray, np.ndarray]:
    """A miniature CIFAR-100 archive in one of its two published forms; training pixels and labels."""
    rng = np.random.default_rng(0)
    path = folder / f"cifar-100-{form}.tar.gz"
    kept = {}
    with tarfile.open(path, "w:gz") as archive:
        for part, rows in (("train", 30), ("test", 10)):
            pixels = rng.integers(0, 256, (rows, 3072), dtype=np.uint8)
            labels = rng.integers(0, 100, rows)
            if form == "binary":
                raw, name = np.column_stack([labels // 5, labels, pixels]).astype(np.uint8).tobytes(), f"{part}.bin"
            else:
                raw, name = pickle.dumps({b"data": pixels, b"fine_labels": labels.tolist()}, protocol=2), part
            entry = tarfile.TarInfo(f"cifar-100-{form}/{name}")
            entry.size = len(raw)
            archive.addfile(entry, io.BytesIO(raw))
            kept[part] = pixels.reshape(-1, 3, 32, 32), labels
    return path, *kept["train"]


@pytest.mark.parametrize("form", ["binary", "python"])
@pytest.mark.parametrize("unpacked", [False, True])
def test_cifar_in_each_published_form(tmp_path: Path, form: str, unpacked: bool) -> None:
    path, pixels, labels = cifar(tmp_path, form)
    if unpacked:
        with tarfile.open(path) as archive:
            archive.extractall(tmp_path, filter="data")
        path = tmp_path / f"cifar-100-{form}"
    prepare("cifar100", source=path)
    data = load("cifar100")
    assert isinstance(data, ImageData)
    assert (data.channels, data.size, data.classes, len(data.val_y)) == (3, (32, 32), 100, 10)
    assert np.array_equal(data.train_x, pixels) and np.array_equal(data.train_y, labels)


class Attack:
    def __reduce__(self) -> tuple:
        return (Path.touch, (Path("attacked"),))


@pytest.mark.parametrize(
    "content", [pickle.dumps(Attack()), pickle.dumps({b"data": 1}), b"\x80\x02garbage", b"", pickle.dumps([1])]
)
def test_a_pickle_that_is_not_cifar_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    monkeypatch.chdir(tmp_path)
    for part in ("train", "test"):
        (tmp_path / part).write_bytes(content)
    with pytest.raises(InputError, match="CIFAR-100"):
        read_cifar100(tmp_path)
    assert not (tmp_path / "attacked").exists()
