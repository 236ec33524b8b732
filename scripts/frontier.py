"""Runs `overfill frontier` on SmolLM2-135M-Instruct and writes docs/FRONTIER.md of what it says; called by
scripts/frontier."""
import argparse
import hashlib
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


def trained(args, path: pathlib.Path, r: dict) -> dict:
    """A trained twin on the same documents; kept beside the others' figures."""
    name = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    kept = args.work / f"trained-{name}-{args.limit}.json"
    if not kept.exists():
        command = [args.program, "eval", "--model", args.model, "--pruned", path, "--system", "overfill", "--task", "nll",
                   "--data", args.data / "t0.valid.jsonl", "--limit", args.limit, "--prompt-tokens", r["prompt_tokens"],
                   "--score-tokens", r["score_tokens"], "--json"]
        kept.write_bytes(subprocess.run([str(c) for c in command], check=True, stdout=subprocess.PIPE).stdout)
    file = json.loads(subprocess.run([args.program, "inspect", path, "--json"], check=True, stdout=subprocess.PIPE).stdout)
    types = {t["name"]: t["type"].lower() for t in file["tensors"]}
    layers, head = types["blk.0.ffn_down.weight"], types.get("output.weight", types["token_embd.weight"])
    point = f"{file['model']['hidden']}x{file['model']['mlp']}:{layers}" + ("" if head == layers else f"/{head}")
    return {"point": point, **json.loads(kept.read_text())}


def trained_row(t: dict, points: dict) -> str:
    value, (low, high) = t["metric"], t["ci95"]["kl"]
    before = f"{points[t['point']]['kl']:.3f}" if t["point"] in points else ""
    return (f"| {t['point']} | {t['decoder_bytes'] / 1e6:.1f} | {value['kl']:.3f} [{low:.3f}, {high:.3f}] | "
            f"{value['agree']:.1%} | {value['nll']:.3f} | {before} |")


def trained_table(twins: list[dict], points: dict) -> list[str]:
    return ["", "## After training", "",
            "Twins that `scripts/heal/run` trained ([HEAL.md](HEAL.md), the shipped one's card), on the same documents. The last "
            "column is the table's above.", "",
            "| twin | MB | KL | agreement | NLL | KL before |", "| --- | --- | --- | --- | --- | --- |",
            *(trained_row(t, points) for t in sorted(twins, key=lambda t: t["decoder_bytes"]))]


def report(r: dict, twins: list[dict]) -> str:
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
    lines += ["", "![KL against megabytes a token](frontier.svg)"]
    return "\n".join(lines + (trained_table(twins, points) if twins else [])) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("program", "model", "data", "work"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    parser.add_argument("--stage", choices=("all", "twins", "speed", "report"), default="all")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--limit", type=int, default=16)
    parser.add_argument("--trained", type=pathlib.Path, nargs="+", default=[])
    args = parser.parse_args()
    result = run(args)
    twins = [trained(args, path, result) for path in args.trained]
    pathlib.Path("docs/FRONTIER.md").write_text(report(result, twins))
    shutil.copy(args.work / "frontier.svg", "docs/frontier.svg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
