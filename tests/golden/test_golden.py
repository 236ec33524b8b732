"""The whole engine against a float32 forward of the same file, prompt by prompt.

Each row of smollm2-greedy.jsonl holds a prompt, its ids, the greedy continuation and the five likeliest
tokens of every step. With f32 weights and KV our log-probabilities must be the same up to rounding;
with the default types they may differ by what 8-bit activations and f16 KV cost, and the greedy path
must agree until the first step whose two likeliest tokens are close.
"""
import json
import os
import pathlib
import statistics
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = pathlib.Path(os.environ.get("OVERFILL_SHARED", ROOT / ".." / "shared"))
GOLDEN = DATA / "data" / "golden" / "smollm2-greedy.jsonl"

F32_MAX = 0.002  # largest difference of a log-probability with f32 weights and KV
DEFAULT_MEAN = 0.03  # and with the default types, over all steps of a prompt
DEFAULT_MAX = 0.25
KV_Q8_BOUNDS = (0.07, 0.7)  # the same two with KV in blocks of 8 bits: the price of half the memory
CLOSE_MARGIN = 0.3  # below it the default types may choose the other token


def load_rows() -> list:
    if not GOLDEN.exists():
        return [pytest.param(None, marks=pytest.mark.skip(reason=f"golden data is missing: {GOLDEN}"))]
    rows = [json.loads(line) for line in GOLDEN.read_text().splitlines()]
    return [pytest.param(row, id=f"{i}-{row['kind']}") for i, row in enumerate(rows)]


def generate(program, model, row, as_chat: bool, *options) -> dict:
    """Runs the prompt greedily, as many tokens as the row has."""
    command = [program, "generate", "--model", model, "--json", "--logprobs", "5"]
    command += ["--max-tokens", str(len(row["greedy"])), *options]
    if as_chat:
        command += ["--", row["messages"][-1]["content"]]
    else:
        command += ["--raw", row["text"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def is_one_user_message(row) -> bool:
    messages = row.get("messages")
    return bool(messages) and len(messages) == 1 and messages[0]["role"] == "user"


def check_shape(answer: dict) -> None:
    assert len(answer["top_logprobs"]) == len(answer["tokens"])
    for step in answer["top_logprobs"]:
        assert len(step) == 5
        assert [lp for _, lp in step] == sorted((lp for _, lp in step), reverse=True)


def common_steps(answer: dict, row: dict) -> int:
    """Steps whose logits saw the same tokens before them: up to and with the first that differs."""
    for step, (ours, theirs) in enumerate(zip(answer["tokens"], row["greedy"])):
        if ours != theirs:
            return step + 1
    return min(len(answer["tokens"]), len(row["greedy"]))


def differences(answer: dict, row: dict) -> list:
    """|ours - theirs| of every golden top-5 token along the common path. A golden token that is not
    among our five has at most our fifth's log-probability, so that is what it is compared with."""
    found = []
    for step in range(common_steps(answer, row)):
        ours = dict((token, lp) for token, lp in answer["top_logprobs"][step])
        fifth = answer["top_logprobs"][step][-1][1]
        for token, logprob in row["top5"][step]:
            found.append(abs(ours[token] - logprob) if token in ours else max(0.0, logprob - fifth))
    return found


@pytest.mark.parametrize("row", load_rows())
def test_f32_gives_the_reference_log_probabilities(program, model, row):
    answer = generate(program, model, row, is_one_user_message(row), "--weights", "f32", "--kv-type", "f32")

    assert answer["prompt_tokens"] == row["prompt_tokens"]
    check_shape(answer)
    assert max(differences(answer, row)) <= F32_MAX
    first = common_steps(answer, row) - 1
    if answer["tokens"] != row["greedy"]:
        top = row["top5"][first]
        assert top[0][1] - top[1][1] <= 2 * F32_MAX, f"step {first}: another token without a tie"


def check_close(answer, row, mean: float, most: float) -> None:
    assert answer["prompt_tokens"] == row["prompt_tokens"]
    check_shape(answer)
    found = differences(answer, row)
    assert statistics.fmean(found) <= mean
    assert max(found) <= most
    for step, (ours, theirs) in enumerate(zip(answer["tokens"], row["greedy"])):
        top = row["top5"][step]
        if top[0][1] - top[1][1] < CLOSE_MARGIN:
            break
        assert ours == theirs, f"step {step}"
    else:
        assert len(answer["tokens"]) == len(row["greedy"])


@pytest.mark.parametrize("row", load_rows())
def test_default_types_stay_close_to_the_reference(program, model, row):
    check_close(generate(program, model, row, False), row, DEFAULT_MEAN, DEFAULT_MAX)


@pytest.mark.parametrize("kv_type, mean, most", [("bf16", DEFAULT_MEAN, DEFAULT_MAX), ("q8_0", *KV_Q8_BOUNDS)])
@pytest.mark.parametrize("row", load_rows()[::4])
def test_kv_types_cost_what_they_are_known_to(program, model, row, kv_type, mean, most):
    check_close(generate(program, model, row, False, "--kv-type", kv_type), row, mean, most)
