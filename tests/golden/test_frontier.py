"""`overfill frontier` on a model of 260 thousand weights: what it says of its twins is what `overfill eval` finds, and a
run that is killed goes on where it was."""
import json
import os
import pathlib
import subprocess
import sys
import xml.etree.ElementTree

import pytest

from inputs import ROOT, existing

POINTS = ("32x64:q8_0", "64x96:q4_0", "64x160:q8_0/q4_0")
EVAL = ("--prompt-tokens", "32", "--score-tokens", "32", "--limit", "4")


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    shared = pathlib.Path(os.environ.get("OVERFILL_SHARED", ROOT.parent / "shared"))
    source = existing(shared / "models/stories260K.bin", "stories260K").parent
    out = tmp_path_factory.mktemp("stories") / "full.gguf"
    subprocess.run([sys.executable, str(ROOT / "tests/llama_server/stories.py"), str(source / "stories260K.bin"),
                    str(source / "tok512.bin"), str(out)], check=True)
    return out


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Prose of the repository, which the model need not understand."""
    out = tmp_path_factory.mktemp("text") / "text.txt"
    out.write_text((ROOT / "README.md").read_text() * 2)
    return out


def call(program, stories, text, out, *options):
    return [str(program), "frontier", "--model", str(stories), "--calibration", str(text), "--eval", str(text), *EVAL,
            "--tokens", "1500", "--out", str(out), *[o for p in POINTS for o in ("--point", p)],
            "--budget", "0.12", "0.15", "1", "--runs", "1", *options]


def lines_of(out):
    return [json.loads(line) for line in (out / "frontier.jsonl").read_text().splitlines()]


def test_a_killed_run_goes_on_and_says_what_eval_says(program, stories, text, tmp_path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    # Killed when the first twin is done, so that the second one is being made.
    first = subprocess.Popen(call(program, stories, text, killed), stderr=subprocess.PIPE, text=True)
    for line in first.stderr:
        if line.startswith(POINTS[0]):
            break
    else:
        pytest.fail("no twin was finished")
    first.kill()
    first.wait()
    before = lines_of(killed)
    known = subprocess.run(call(program, stories, text, killed, "--json", "--stage", "report"), capture_output=True,
                           text=True, timeout=60)
    assert known.returncode == 0, known.stderr
    measured = {line["point"] for line in before if "eval" in line}
    assert json.loads(known.stdout)["missing"] == [p for p in POINTS if p not in measured]
    assert {line["point"] for line in before} < set(POINTS)

    done = subprocess.run(call(program, stories, text, killed, "--json"), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    after = lines_of(killed)
    assert after[:len(before)] == before, "what was measured stays"
    for kind in ("held", "eval", "speed"):
        measured = sorted(line["point"] for line in after if kind in line)
        assert measured == sorted((*POINTS, "full") if kind == "speed" else POINTS), "once each"
    assert not list(killed.glob("*.layers")) and not list(killed.glob("*.rows"))

    again = subprocess.run(call(program, stories, text, whole, "--json", "--stage", "twins"), capture_output=True,
                           text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    for a, b in zip(result["points"], json.loads(again.stdout)["points"], strict=True):
        assert {k: v for k, v in a.items() if k not in ("tok_s", "kernels", "threads")} == b
        assert (killed / a["file"]).read_bytes() == (whole / b["file"]).read_bytes()
        assert min(a["tok_s"].values()) > 0

    assert result["missing"] == []
    points = {p["point"]: p for p in result["points"]}
    best = points["64x160:q8_0/q4_0"]
    evaluated = subprocess.run(
        [program, "eval", "--model", stories, "--pruned", killed / best["file"], "--system", "overfill", "--task",
         "nll", "--data", text, *EVAL, "--json"], capture_output=True, text=True, timeout=60)
    assert evaluated.returncode == 0, evaluated.stderr
    found = json.loads(evaluated.stdout)
    assert {k: best[k] for k in ("kl", "agree", "nll")} == found["metric"]
    assert [best["kl_low"], best["kl_high"]] == found["ci95"]["kl"]
    assert best["bytes"] == found["decoder_bytes"]

    assert [b["best"] for b in result["budgets"]] == [POINTS[0], POINTS[1], POINTS[2]]
    assert all(p["on_frontier"] for p in result["points"])
    assert result["full"]["bytes"] > best["bytes"]
    labels = {e.text for e in xml.etree.ElementTree.parse(killed / "frontier.svg").iter("{http://www.w3.org/2000/svg}text")}
    assert set(POINTS) <= labels


def test_wrong_call_names_the_option(program, stories, text, tmp_path):
    def message(*options):
        done = subprocess.run([program, "frontier", *options, "--out", tmp_path / "out"], capture_output=True, text=True,
                              timeout=60)
        assert done.returncode == 2, (done.returncode, done.stderr)
        assert not (tmp_path / "out").exists()
        return done.stderr.removeprefix("overfill frontier: ")

    usual = ("--model", stories, "--calibration", text)
    assert message() == "--model: a model file is required\n"
    assert message("--model", stories) == "--calibration: a file is required\n"
    assert message(*usual) == "--budget: the megabytes a token may read are required\n"
    assert message(*usual, "--budget", "1", "two").startswith("--budget: a number from 0.001 to 1000000 expected")
    assert message(*usual, "--budget", "0.001").startswith("budget of 0.001 MB: the narrowest twin reads ")
    assert message(*usual, "--budget", "1", "--point", "64x160").startswith('point: "64x160", expected HIDDENxMLP:TYPE')
    assert message(*usual, "--budget", "1", "--point", "64x172:q4_0") == (
        "point: 64x172:q4_0: rows of 172 do not fill the blocks of 32 of Q4_0\n")
    assert message(*usual, "--budget", "1", "--limit", "3").startswith("--limit")
    assert message(*usual, "--budget", "1", "--stage", "bake").startswith('--stage: "bake"')
    assert message(*usual, "--budget", "1", "--pruned", stories).startswith("--pruned")
    folder = ROOT / "tests/data/tiny/llama2"
    assert "a GGUF file expected" in message("--model", folder, "--calibration", text, "--budget", "1")
