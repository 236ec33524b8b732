"""A healed twin against models of its size that were trained from random weights; called by scripts/heal/scratch."""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import numpy
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import data
import document
import files
import heal
from quality_report import cell, difference

HIDDEN, MLP = 32, 96  # about half of 64 and 172
STORY_TOKENS = 400
SHARES = (1, 4, 16)  # of the stories that heal, for the models from random weights
RATES = (2e-3, 6e-3)
N_EVAL = 64
EVAL = ("--prompt-tokens", "64", "--score-tokens", "192")
MARKS = ("<!-- scripts/heal/scratch -->", "<!-- end of scripts/heal/scratch -->")


def overfill(*args) -> str:
    done = subprocess.run([os.environ["OVERFILL_BINARY"], *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr.strip().splitlines()[-1])
    return done.stdout


class Work:
    """The folder of what was made; a file that is there is not made again."""

    def __init__(self, args):
        self.folder = ROOT / ".cache/scratch" / str(args.stories)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.n = args.stories
        self.full = self.folder / "full.gguf"
        source = args.shared / "models"
        if not self.full.exists():
            subprocess.run([sys.executable, str(ROOT / "tests/llama_server/stories.py"), str(source / "stories260K.bin"),
                            str(source / "tok512.bin"), str(self.full)], check=True)
        recipe = yaml.safe_load((ROOT / "scripts/heal/recipes/overfill.yaml").read_text())
        recipe |= {"type": "f16", "head_type": "f16", "precision": "f32"}
        recipe["data"] |= {"batch_tokens": 2 * (STORY_TOKENS + 1), "max_prompt": 128}
        self.recipe = self.folder / "recipe.yaml"
        self.recipe.write_text(yaml.safe_dump(recipe))
        self.options = recipe["data"]

    def stories(self, n: int) -> list:
        """What the full model writes: story i has the seed i, whatever n. Token ids with text."""
        path = self.folder.parent / "stories.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        with open(path, "a", encoding="utf-8") as out:
            for seed in range(len(rows), n):
                told = json.loads(overfill("generate", "--model", self.full, "--raw", "", "--seed", seed, "--temperature",
                                           1, "--max-tokens", STORY_TOKENS, "--ignore-eos", "--json"))
                rows.append({"tokens": told["prompt_tokens"] + told["tokens"], "text": told["text"]})
                out.write(json.dumps(rows[-1]) + "\n")
        return rows[:n]

    def write(self, name: str, rows: list) -> pathlib.Path:
        path = self.folder / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def pruned(self, texts: pathlib.Path) -> pathlib.Path:
        twin = self.folder / "pruned.gguf"
        if not twin.exists():
            overfill("prune", "--model", self.full, "--hidden", HIDDEN, "--mlp", MLP, "--type", "f16", "--calibration",
                     texts, "--out", twin)
        return twin

    def random(self, twin: pathlib.Path) -> pathlib.Path:
        """The twin's shape with weights as GPT-2 begins: of 0.02, less for what is added to the residual stream."""
        path, like, chance = self.folder / "random.gguf", files.Model(str(twin)), numpy.random.default_rng(1)
        tensors = {}
        for name, weight in like.weights.items():
            deviation = 0.02 / (2 * like.shape.layers) ** 0.5 if "output.weight" in name and "blk" in name or (
                "ffn_down" in name) else 0.02
            tensors[name] = ("f32", numpy.ones(weight.shape, numpy.float32)) if weight.dim() == 1 else (
                "f16", (deviation * chance.standard_normal(weight.shape)).astype(numpy.float16))
        like.write(str(path), tensors, {})
        return path

    def train(self, name: str, start: pathlib.Path, documents: pathlib.Path, objective: str, condition: str) -> dict:
        """One epoch at each rate; the one that is better on the stories that heal.py holds back, as it says itself."""
        rows, _ = data.hold_back(data.read_documents([documents]), heal.HELD)
        steps = data.Batches(rows, self.options, 1).count(0)
        tried = []
        for rate in RATES:
            out = self.folder / f"{name}-{rate:g}.gguf"
            if not out.exists():
                print(f"==> {name}, rate {rate:g}, {steps} steps", file=sys.stderr)
                heal.main(["--full", str(self.full), "--twin", str(start), "--out", str(out), "--data", str(documents),
                           "--recipe", str(self.recipe), "--steps", str(steps), "--rate", str(rate), "--objective",
                           objective, "--condition", condition, "--threads", "1", "--measure-every", str(steps)])
            log = [json.loads(line) for line in (self.folder / (out.name + ".curve.jsonl")).read_text().splitlines()]
            tried.append({"twin": out, "rate": rate, "steps": steps, "held": log[-1]["held"]["nll"],
                          "tokens": sum(row.get("tokens", 0) for row in log)})
        return min(tried, key=lambda t: t["held"])

    def evaluate(self, texts: pathlib.Path, system: str, twin=None) -> dict:
        return json.loads(overfill("eval", "--model", self.full, *(("--pruned", twin) if twin else ()), "--system", system,
                                   "--task", "nll", "--data", texts, *EVAL, "--json", "--rows"))


def measure(work: Work) -> list:
    """[{name, system, stories, tokens, rate, answer}]"""
    rows = work.stories(N_EVAL + SHARES[-1] * work.n + heal.HELD)
    held = work.write("held.jsonl", [{"text": row["text"]} for row in rows[:N_EVAL]])

    def documents(name, n, prompt):  # heal.py takes HELD of them away
        return work.write(name, [{"prompt": prompt, "tokens": row["tokens"]} for row in rows[N_EVAL:][:n + heal.HELD]])

    own = documents("heal.jsonl", work.n, 0)
    texts = work.write("calibration.jsonl", [{"text": row["text"]} for row in rows[N_EVAL:][:work.n + heal.HELD]])
    twin = work.pruned(texts)
    found = [{"name": "full model", "answer": work.evaluate(held, "full")},
             {"name": "pruned, OverFill", "answer": work.evaluate(held, "overfill", twin)},
             {"name": "pruned, alone", "answer": work.evaluate(held, "pruned", twin)}]
    for objective in ("ce", "kl"):
        best = work.train(f"healed-{objective}", twin, own, objective, "overfill")
        found.append({"name": f"healed ({objective}), OverFill", "stories": work.n, **best,
                      "answer": work.evaluate(held, "overfill", best["twin"])})
    start = work.random(twin)
    for share in SHARES:
        # the first token is the prompt: such a model learns from all the others
        best = work.train(f"scratch-{share}", start, documents(f"scratch-{share}.jsonl", share * work.n, 1), "ce", "alone")
        found.append({"name": "from random weights, alone", "stories": share * work.n, **best,
                      "answer": work.evaluate(held, "pruned", best["twin"])})
    return [{k: str(v) if k == "twin" else v for k, v in row.items()} for row in found]


def judgement(found: list) -> str:
    """What the paired differences say of each twin behind the full model against each model from random weights."""
    lines = []
    n = next(row["stories"] for row in found if row["name"].startswith("healed"))
    for twin in (row for row in found if row["name"].endswith("OverFill")):
        for other in (row for row in found if row["name"].startswith("from random")):
            mean, low, high = difference(twin["answer"], other["answer"], "nll")
            word = "better than" if high < 0 else "worse than" if low > 0 else "not to be told from"
            lines.append(f"- {twin['name']}, is {word} random weights trained on {other['stories'] / n:g} times the {n} stories: "
                         f"NLL {mean:+.3f} ({low:+.3f}..{high:+.3f}).")
    return "\n".join(lines)


def section(found: list) -> str:
    answer = found[0]["answer"]
    lines = [[row["name"], str(row.get("stories", "")), f"{row['tokens']:,}" if "tokens" in row else "",
              f"{row['rate']:g}" if "rate" in row else ""] +
             [cell(row["answer"], metric, metric == "agree") for metric in ("nll", "kl", "agree")] for row in found]
    first = next(row for row in found if "stories" in row)
    return f"""## A healed twin beside a model trained from random weights

The paper says that a pruned and trained twin, behind the full model's KV, is as good as a model of the twin's size that was
trained from random weights on far more text. `scripts/heal/scratch` tries it where that costs minutes: with stories260K (hidden 64, MLP
172, 5 layers), whose own stories of {STORY_TOKENS} tokens, sampled at temperature 1, are the text. The twin has {HIDDEN}/{MLP}, solved for by
`overfill prune` on {first['stories'] + heal.HELD} stories and healed on {first['stories']} of them, once through; the others have its shape and learn the next token of
every story alone, once through as well. Optimiser, batch (two stories) and the two rates tried are the same for all, and the better
rate on {heal.HELD} stories held back counts. Figures: `overfill eval --task nll` on {answer['n']} other stories, {answer['prompt_tokens']} tokens read and
{answer['score_tokens']} scored, with 95 % intervals over stories; nats a token. Tokens: those that were learned from.

{document.table(["model", "stories", "tokens", "rate", "NLL", "KL to full", "agree, %"], lines)}

Paired, story by story:

{judgement(found)}

What it does not say: stories260K is no model of language at large, its text is its own, so a model from random weights learns from the
same full model as the twin does, only from its samples; and {first['stories'] * SHARES[-1]:,} stories, read once, are far from all that such a model can take: more of them
would carry it further, and perhaps rates other than the two. `--stories N` tries more.
"""


def write(found: list, path: pathlib.Path) -> None:
    document.splice(path, *MARKS, section(found), "Healing")


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/heal/scratch")
    parser.add_argument("--shared", type=pathlib.Path, required=True)
    parser.add_argument("--stories", type=int, default=32)
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    work = Work(args)
    results = work.folder / "results.json"
    if not args.report:
        results.write_text(json.dumps(measure(work)))
    write(json.loads(results.read_text()), ROOT / "docs/HEAL.md")


if __name__ == "__main__":
    main()
