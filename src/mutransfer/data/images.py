"""Images with labels: (rows, channels, height, width), standardised per channel by the training split."""

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from mutransfer.data.tabular import Examples, moments
from mutransfer.errors import InputError

_PIXELS = 3 * 32 * 32


class ImageData(Examples):
    """Images: inputs of shape (rows, channels, height, width)."""

    kind = "images"

    @property
    def channels(self) -> int:
        return self.train_x.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.train_x.shape[2], self.train_x.shape[3]


def make_images(
    name: str, train_x: np.ndarray, train_y: np.ndarray, val_x: np.ndarray, val_y: np.ndarray, classes: int
) -> ImageData:
    """Images from their two splits; mean and deviation of each channel come from the training split."""
    mean, std = moments(train_x, (0, 2, 3))
    return ImageData(train_x, train_y, val_x, val_y, classes, mean, std, name)


def read_cifar100(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """CIFAR-100 as (train_x, train_y, val_x, val_y): uint8 (rows, 3, 32, 32) and the 100 fine labels, int64.

    `path` is the "binary version" or the "python version", as the published .tar.gz or as its unpacked folder; the
    validation split is CIFAR's own test set. Source: https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    train, test = (_member(path, part) for part in ("train", "test"))
    return (*_decode(train, path), *_decode(test, path))


def _member(path: Path, part: str) -> bytes:
    """The bytes of `train.bin` / `train` (or test) in an archive or a folder."""
    names = (f"{part}.bin", part)
    try:
        if path.is_dir():
            found = [path / name for name in names if (path / name).is_file()]
            if found:
                return found[0].read_bytes()
        else:
            with tarfile.open(path) as archive:
                for entry in archive:
                    if entry.isfile() and Path(entry.name).name in names:
                        stream = archive.extractfile(entry)
                        if stream is not None:
                            return stream.read()
    except (OSError, EOFError, tarfile.TarError) as error:
        raise InputError(f"{str(path)!r} cannot be read as CIFAR-100: {error}") from None
    raise InputError(f"{str(path)!r} holds neither '{part}.bin' nor '{part}': it is not CIFAR-100")


def _decode(raw: bytes, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Pixels and fine labels from the records of the binary version, or from the python version's pickle."""
    # every record of the binary version: coarse label, fine label, pixels
    if len(raw) % (_PIXELS + 2) == 0 and len(raw) > 0 and raw[:1] != b"\x80":
        records = np.frombuffer(raw, dtype=np.uint8).reshape(-1, _PIXELS + 2)
        pixels, labels = records[:, 2:], records[:, 1].astype(np.int64)
    else:
        try:
            table = _ArraysOnly(io.BytesIO(raw), encoding="bytes").load()
            pixels, labels = np.asarray(table[b"data"], dtype=np.uint8), np.asarray(table[b"fine_labels"], np.int64)
        except (pickle.UnpicklingError, KeyError, TypeError, ValueError, EOFError, IndexError) as error:
            raise InputError(f"{str(path)!r} cannot be read as CIFAR-100: {error}") from None
    if pixels.ndim != 2 or pixels.shape != (len(labels), _PIXELS) or not len(labels) or labels.max() > 99:
        raise InputError(f"{str(path)!r} is not CIFAR-100: pixels of shape {pixels.shape}, {len(labels)} labels")
    return pixels.reshape(-1, 3, 32, 32).copy(), labels


class _ArraysOnly(pickle.Unpickler):
    """An unpickler that can build plain values and numpy arrays, and cannot run anything else."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {("multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
        if (module.rpartition(".")[2], name) not in allowed:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not data")
        if name == "_reconstruct":
            # numpy has moved this function between modules; its own `__reduce__` always names the present one
            return np.empty(0).__reduce__()[0]
        if name == "encode":
            import codecs

            return codecs.encode
        return getattr(np, name)
