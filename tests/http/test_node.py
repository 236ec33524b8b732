"""Runs client.test.mjs: the official Node client against each server."""
import os
import pathlib
import re
import shutil
import subprocess

import pytest

HERE = pathlib.Path(__file__).parent


def node_version():
    node = shutil.which("node")
    if not node:
        return 0
    out = subprocess.run([node, "--version"], capture_output=True, text=True).stdout
    return int(re.match(r"v(\d+)", out)[1])


def test_node_client(server):
    if node_version() < 22:
        pytest.skip("the Node client needs node 22 or newer")
    if not (HERE / "node_modules" / "openai").exists():
        pytest.skip("tests/http/node_modules is missing: npm ci in tests/http")
    run = subprocess.run(["node", "--test", "client.test.mjs"], cwd=HERE, text=True,
                         capture_output=True, timeout=300,
                         env={**os.environ, "OVERFILL_URL": server.base, "OVERFILL_MODEL": server.model})
    assert run.returncode == 0, run.stdout + run.stderr
