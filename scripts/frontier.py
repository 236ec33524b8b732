"""Runs `overfill frontier` on SmolLM2-135M-Instruct and writes docs/FRONTIER.md of what it says; called by
scripts/frontier."""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys

BUDGETS = (34, 54, 68, 84)  # MB a token
RUNS = 9  # of each speed; the median counts


def run(args) -> dict:
    command = [args.program, "frontier", "--model", args.model, "--calibration", args.data / "t0.train.jsonl.gz",
               "--eval", args.data / "t0.valid.jsonl", "--limit", args.limit, "--tokens", args.tokens, "--budget",
               *BUDGETS, "--stage", args.stage, "--runs", RUNS, "--out", args.work, "--json"]
    return json.loads(subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE).stdout)


def speeds_of(entry: dict) -> str:
    return f"{entry['tok_s']['1']:.0f} | {entry['tok_s']['16']:.0f}" if "tok_s" in entry else " | "


def row_of(p: dict) -> str:
    name = f"**{p['point']}**" if p["on_frontier"] else p["point"]
    return (f"| {name} | {p['bytes'] / 1e6:.1f} | {p['multiply_adds'] / 1e6:.1f} | {p['kl']:.3f} "
            f"[{p['kl_low']:.3f}, {p['kl_high']:.3f}] | {p['agree']:.1%} | {p['nll']:.3f} | {speeds_of(p)} |")


def report(r: dict) -> str:
    points = {p["point"]: p for p in r["points"]}
    first, full = r["points"][0], r["full"]
    n_documents = first["tokens"] // r["score_tokens"]
    lines = [
        "# The frontier", "",
        "What a twin costs against how far it is from its full model, before any training: widths, bits, or both. "
        "Written by `scripts/frontier` from `overfill frontier`, which makes each twin by `overfill prune` "
        f"(reconstruction, {r['calibration_tokens']:,} tokens of T0 as calibration) and measures it behind the full model "
        f"(SmolLM2-135M-Instruct, Q4_1) on {n_documents} held-out documents of T0, {r['prompt_tokens']} tokens read and "
        f"{r['score_tokens']} scored.", "",
        "A twin's name is its hidden and MLP widths (the full model's are "
        f"{r['hidden']} and {r['mlp']}) and the types of its layers and head. MB: weights that a decoded token reads. "
        "Multiply-adds: of all matrices for a token, millions. KL: nats a token to the full model, with the 95 % interval "
        "over documents. Bold: on the frontier, no other twin reads as little and is as near.", "",
    ]
    if full:
        lines += [f"Tokens a second: decode, kernels {full['kernels']}, {full['threads']} threads, one sequence and 16 at "
                  f"once, all together, the median of {RUNS} runs.", ""]
    lines += ["| twin | MB | multiply-adds | KL | agreement | NLL | tok/s, 1 | tok/s, 16 |",
              "| --- | --- | --- | --- | --- | --- | --- | --- |"]
    lines += [row_of(p) for p in r["points"]]
    if full:
        lines.append(f"| full model | {full['bytes'] / 1e6:.1f} | {full['multiply_adds'] / 1e6:.1f} | 0 | 100.0% | "
                     f"{first['full_nll']:.3f} | {speeds_of(full)} |")
    if r["missing"]:
        lines += ["", "Not measured yet, of those that the budgets give: " + ", ".join(r["missing"]) + "."]
    lines += ["", "Best within a budget:", ""]
    for b in r["budgets"]:
        p = points.get(b["best"])
        lines.append(f"- {b['mb']:g} MB: " + (f"{p['point']}, KL {p['kl']:.3f}, {p['agree']:.1%} agreement"
                                              if p else "none was measured"))
    return "\n".join([*lines, "", "![KL against megabytes a token](frontier.svg)"]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("program", "model", "data", "work"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    parser.add_argument("--stage", choices=("all", "twins", "speed", "report"), default="all")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--limit", type=int, default=16)
    args = parser.parse_args()
    result = run(args)
    pathlib.Path("docs/FRONTIER.md").write_text(report(result))
    shutil.copy(args.work / "frontier.svg", "docs/frontier.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
