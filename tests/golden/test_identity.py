"""A twin from which nothing was pruned writes what the full model writes."""
import json
import subprocess

import pytest


@pytest.fixture(scope="module")
def identity(program, model, tmp_path_factory):
    out = tmp_path_factory.mktemp("identity") / "twin.gguf"
    subprocess.run([program, "prune", "--model", model, "--out", out], check=True,
                   capture_output=True, timeout=120)
    return out


def generate(program, *args):
    return json.loads(subprocess.run(
        [program, "generate", "--json", "--max-tokens", "40", *args], check=True,
        capture_output=True, timeout=120).stdout)


@pytest.mark.parametrize("sampling", [["--temperature", "0"], ["--temperature", "1", "--seed", "7"]])
def test_identity_twin_gives_the_full_models_tokens(program, model, identity, sampling):
    full = generate(program, "--model", model, *sampling, "Tell me about the sea.")
    pair = generate(program, "--model", model, "--pruned", identity, *sampling,
                    "Tell me about the sea.")
    assert pair["tokens"] == full["tokens"]
    assert len(full["tokens"]) > 8


def test_eight_bits_are_for_twins_that_are_another_model_and_for_whoever_asks(program, model, identity):
    def logprobs(*args):
        answer = generate(program, "--model", model, *args, "--logprobs", "1", "Tell me about the sea.")
        return answer["top_logprobs"]

    full = logprobs()
    assert logprobs("--pruned", identity) == full
    assert logprobs("--pruned", identity, "--pruned-activations", "12") == full
    assert logprobs("--pruned", identity, "--pruned-activations", "8") != full
    coarse = logprobs("--activations", "8")
    assert coarse != full
    assert logprobs("--activations", "8", "--pruned", identity) == coarse
