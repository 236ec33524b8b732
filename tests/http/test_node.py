"""Runs the Node clients' tests: the official client, and the AI SDK."""
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


@pytest.mark.parametrize("package,script", [("openai", "client.test.mjs"),
                                            ("@ai-sdk/openai-compatible", "ai-sdk.test.mjs")])
def test_node_client(server, package, script):
    if node_version() < 22:
        pytest.skip("the Node client needs node 22 or newer")
    if not (HERE / "node_modules" / package).exists():
        pytest.skip("tests/http/node_modules is missing: npm ci in tests/http")
    run = subprocess.run(["node", "--test", script], cwd=HERE, text=True,
                         capture_output=True, timeout=300,
                         env={**os.environ, "OVERFILL_URL": server.base, "OVERFILL_MODEL": server.model})
    assert run.returncode == 0, run.stdout + run.stderr
