"""Where the inputs of these tests are. A module of its own: there is more than one conftest."""
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def existing(path: pathlib.Path, what: str) -> pathlib.Path:
    if not path.exists():
        pytest.skip(f"{what} is missing: {path}")
    return path
