"""EleutherAI's harness, asking `overfill serve` (local-completions: echo and logprobs), finds what `overfill eval` finds
on the same rows. A prompt's logprobs are the full model's, so the systems that compare are `full` and, with the twin
served as the model, `pruned`. Needs a Python with `lm_eval[api]`, a large package, and so its own:

    python3 -m venv ~/lm-eval && ~/lm-eval/bin/pip install "lm_eval[api]"
    OVERFILL_LM_EVAL=~/lm-eval/bin/lm_eval scripts/test
"""
import json
import os
import pathlib
import re
import subprocess

import pytest

from inputs import ROOT, existing

LAMBADA = """\
output_type: loglikelihood
doc_to_text: "{{context}}"
doc_to_target: "{{' ' + continuation}}"
metric_list:
  - {metric: perplexity, aggregation: perplexity, higher_is_better: false}
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
CHOICES = """\
output_type: multiple_choice
doc_to_text: "{{query.rstrip()}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
HEAD = """\
task: overfill_rows
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
"""


@pytest.fixture(scope="module")
def harness():
    path = os.environ.get("OVERFILL_LM_EVAL")
    if not path:
        pytest.skip("OVERFILL_LM_EVAL does not name an lm_eval program")
    return existing(pathlib.Path(path), "lm_eval")


@pytest.fixture(scope="module")
def server(program, model):
    server = subprocess.Popen([program, "serve", "--model", model, "--port", "0", "--decode", "full"],
                              stderr=subprocess.PIPE, text=True)
    url = None
    for line in server.stderr:
        if found := re.search(r"http://[\d.]+:\d+", line):
            url = found.group()
            break
    assert url, "the server did not say where it listens"
    drain = subprocess.Popen(["cat"], stdin=server.stderr, stdout=subprocess.DEVNULL)
    yield url
    server.terminate()
    server.wait(60)
    drain.wait(60)


def ask_harness(harness, url, model, task, rows, folder):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "task.yaml").write_text(HEAD % (folder / "rows.jsonl") + task)
    subprocess.run(
        [harness, "--model", "local-completions", "--model_args",
         f"model={model.stem},base_url={url}/v1/completions,tokenizer_backend=remote,num_concurrent=4,max_retries=1",
         "--tasks", "overfill_rows", "--include_path", folder, "--output_path", folder / "out"],
        check=True, timeout=900, env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"),
                                      "NO_PROXY": "127.0.0.1,localhost"})
    result, = (folder / "out").rglob("results_*.json")
    return {key.split(",")[0]: value for key, value in
            json.loads(result.read_text())["results"]["overfill_rows"].items()}


@pytest.mark.parametrize("name,task,metrics", [
    ("lambada_openai", "lambada", ("acc", "perplexity")), ("arc_easy", "choices", ("acc", "acc_norm")),
    ("piqa", "choices", ("acc", "acc_norm")), ("boolq", "choices", ("acc", "acc_norm"))])
def test_harness_agrees(harness, server, program, model, tmp_path, name, task, metrics):
    shared = pathlib.Path(os.environ.get("OVERFILL_SHARED", ROOT.parent / "shared"))
    data = existing(shared / "data" / "eval" / f"{name}.jsonl", "the shared data")
    limit = os.environ.get("OVERFILL_LM_EVAL_ROWS", "50")
    done = subprocess.run([program, "eval", "--model", model, "--task", task, "--data", data, "--limit", limit,
                           "--json", "--rows"], check=True, capture_output=True, timeout=900)
    ours = json.loads(done.stdout)
    lines = data.read_text().splitlines()
    rows = [json.loads(lines[row["line"] - 1]) for row in ours["rows"]]
    theirs = ask_harness(harness, server, model, LAMBADA if task == "lambada" else CHOICES, rows, tmp_path)
    for metric in metrics:
        print(f"{name}: {metric}: overfill eval {ours['metric'][metric]:.6g}, lm-eval {theirs[metric]:.6g}, n {ours['n']}")
        assert theirs[metric] == pytest.approx(ours["metric"][metric], rel=1e-4)
