"""Finds the program, the model and the shared data; a test whose input is missing skips and says why."""
import os
import pathlib

import pytest

from inputs import ROOT, existing


@pytest.fixture(scope="session")
def program() -> pathlib.Path:
    path = os.environ.get("OVERFILL_BINARY", ROOT / "build" / "cli" / "overfill")
    return existing(pathlib.Path(path), "the built program")


@pytest.fixture(scope="session")
def model() -> pathlib.Path:
    folder = pathlib.Path(os.environ.get("OVERFILL_MODELS", ROOT / "models"))
    return existing(folder / "SmolLM2-135M-Instruct.Q4_1.gguf", "the model")
