"""Shared fixtures. `MUTRANSFER_SHARED` names the folder with golden numbers; without it those tests skip."""

import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of golden numbers and reference data, set by the gate."""
    folder = os.environ.get("MUTRANSFER_SHARED")
    if not folder:
        pytest.skip("MUTRANSFER_SHARED is not set: the golden numbers live outside this repository")
    return Path(folder)
