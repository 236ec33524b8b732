"""`overfill eval` on the real model: a twin that is the model changes no figure, a twin that is noise gives the figures
of chance. Few rows each, so that a slow machine is done in seconds."""
import json
import os
import pathlib
import subprocess

import pytest

from inputs import ROOT, existing
from twin_noise import write_noise_twin


@pytest.fixture(scope="module")
def data():
    shared = pathlib.Path(os.environ.get("OVERFILL_SHARED", ROOT.parent / "shared"))
    return existing(shared / "data", "the shared data")


@pytest.fixture(scope="module")
def noise(model, tmp_path_factory):
    """The model with the weights of every layer in another order."""
    out = tmp_path_factory.mktemp("noise") / "noise.gguf"
    write_noise_twin(model, out, seed=1)
    return out


def evaluate(program, model, twin, system, task, data, *options):
    done = subprocess.run(
        [program, "eval", "--model", model, "--pruned", twin, "--system", system, "--task", task,
         "--data", data, "--json", "--rows", *map(str, options)],
        capture_output=True, timeout=300, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def rows_of(result):
    return [{k: v for k, v in row.items() if k != "tokens"} for row in result["rows"]]


def test_identity_twin_changes_no_figure(program, model, data):
    # The model itself is the twin from which nothing was pruned.
    nll = [evaluate(program, model, model, system, "nll", data / "train/t0.valid.jsonl",
                    "--limit", 2, "--prompt-tokens", 24, "--score-tokens", 24)
           for system in ("full", "pruned", "overfill")]
    for result in nll:
        assert result["metric"] == nll[0]["metric"]
        assert (result["metric"]["kl"], result["metric"]["agree"]) == (0, 1)
        assert rows_of(result) == rows_of(nll[0])
    assert 1 < nll[0]["metric"]["nll"] < 6
    for task, file, limit, *options in (
            ("choices", "eval/arc_easy.jsonl", 6), ("lambada", "eval/lambada_openai.jsonl", 6),
            ("generate", "train/t0.valid.jsonl", 3, "--score-tokens", 12)):
        results = [evaluate(program, model, model, system, task, data / file, "--limit", limit, *options)
                   for system in ("full", "pruned", "overfill")]
        assert results[0]["n"] == limit
        assert rows_of(results[0]) == rows_of(results[1]) == rows_of(results[2])


def test_noise_twin_scores_as_chance(program, model, noise, data):
    # Gold is spread evenly over four choices: 12.5 % to 40 % holds a share of 0.25 of 40 rows with 98 %.
    arc = evaluate(program, model, noise, "pruned", "choices", data / "eval/arc_easy.jsonl", "--limit", 40)
    assert 0.125 <= arc["metric"]["acc"] <= 0.4
    words = evaluate(program, model, noise, "pruned", "lambada", data / "eval/lambada_openai.jsonl", "--limit", 12)
    assert words["metric"]["acc"] == 0
    nll = evaluate(program, model, noise, "pruned", "nll", data / "train/t0.valid.jsonl", "--limit", 2,
                   "--prompt-tokens", 24, "--score-tokens", 24)
    assert nll["metric"]["agree"] <= 0.05 and nll["metric"]["nll"] > 9 and nll["metric"]["kl"] > 5
    answers = evaluate(program, model, noise, "pruned", "generate", data / "train/t0.valid.jsonl", "--limit", 4,
                       "--score-tokens", 12)
    assert answers["metric"]["exact_match"] == 0 and answers["metric"]["f1"] <= 0.05
    assert words["metric"]["perplexity"] > 1e4
    # With OverFill the word's first token is the full model's, so one-token words survive, and only these.
    both = evaluate(program, model, noise, "overfill", "lambada", data / "eval/lambada_openai.jsonl", "--limit", 12)
    full = evaluate(program, model, noise, "full", "lambada", data / "eval/lambada_openai.jsonl", "--limit", 12)
    for a, b in zip(both["rows"], full["rows"]):
        assert a["acc"] == (b["acc"] if b["tokens"] == 1 else 0)
    decoder = evaluate(program, model, noise, "overfill", "lambada", data / "eval/lambada_openai.jsonl", "--limit", 12,
                       "--decoder-first")
    assert decoder["metric"]["acc"] == 0


def test_wrong_call_names_the_option(program, model, data):
    def call(*options):
        done = subprocess.run([program, "eval", "--model", model, *options], capture_output=True, text=True, timeout=60)
        return done.returncode, done.stderr
    rows = data / "eval/arc_easy.jsonl"
    assert call("--task", "choices") == (2, "overfill eval: --data: a file is required\n")
    code, message = call("--task", "chess", "--data", rows)
    assert code == 2 and '--task: "chess"' in message
    code, message = call("--task", "choices", "--system", "overfill", "--data", rows)
    assert code == 2 and "pruned" in message
