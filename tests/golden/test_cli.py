"""What holds for subcommands as such: where their results go, and what of a file they show."""
import errno
import json
import os
import pathlib
import subprocess

import pytest

from inputs import existing

FULL = pathlib.Path("/dev/full")  # takes no byte


def out_of(program, *args):
    done = subprocess.run([program, *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_long_strings_are_whole_in_json_only(program, model):
    shown = json.loads(out_of(program, "inspect", model, "--json"))
    template = shown["metadata"]["tokenizer.chat_template"]
    assert len(template) > 200 and template.endswith("%}"), template
    assert shown["tokenizer"]["chat_template"] == template
    text = out_of(program, "inspect", model)
    line = next(line for line in text.splitlines() if line.lstrip().startswith('"tokenizer.chat_template"'))
    assert line.endswith('..."') and len(line) < 300


@pytest.mark.parametrize("call", [
    "generate --model MODEL --max-tokens 4 Hello", "generate --model MODEL --max-tokens 4 --json Hello",
    "generate --model MODEL --max-tokens 4 --questions TEXT", "tokenize --model MODEL --data TEXT",
    "eval --model MODEL --task nll --data TEXT --prompt-tokens 8 --score-tokens 8", "inspect MODEL", "prune --version",
    "serve --print-config"])
def test_results_that_stdout_does_not_take_are_an_error(program, model, tmp_path, call):
    text = tmp_path / "text.txt"
    text.write_text("The river rises in the hills and flows through three towns before it meets the sea.\n")
    args = [{"MODEL": str(model), "TEXT": str(text)}.get(word, word) for word in call.split()]
    with open(existing(FULL, "a device that is always full"), "w", encoding="utf-8") as full:
        done = subprocess.run([program, *args], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert done.stderr.splitlines()[-1] == f"overfill {args[0]}: standard output: {os.strerror(errno.ENOSPC)}"
