"""Quality and speed of each setting of the dial; called by scripts/dial.

Quality is the decoder's, on given text, as `overfill eval` scores it: with `verify` it is the full model's by
construction, which the run shows. Speed is a server's with 1 and 16 streams of greedy answers to chat prompts.
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time

import bench_sched

SETTINGS = [("pruned", 0), ("refresh", 32), ("refresh", 16), ("refresh", 8), ("refresh", 4), ("verify", 2),
            ("verify", 4), ("verify", 8), ("full", 0)]
BATCHES = (1, 16)
ROUNDS = 3  # of all settings in turn; the median counts
ANSWER_TOKENS = 160
TOPICS = ("the sea", "a long winter", "how bread is made", "the history of paper", "two brothers", "a city at night",
          "why the sky is blue", "learning to swim", "an old lighthouse", "the rules of chess", "a lost dog",
          "how trees grow", "a journey by train", "the first telephone", "cooking rice", "a garden in spring")


def name_of(mode: str, every: int) -> str:
    return f"{mode} {every}" if every else mode


def evaluate(args, mode: str, every: int, task: str, extra: list) -> dict:
    system = ["--system", "full"] if mode == "full" else ["--system", "overfill", "--pruned", args.twin, "--decode",
                                                           mode]
    if every:
        system += ["--every", every]
    command = [args.program, "eval", "--model", args.model, "--task", task, "--json", *system, *extra]
    done = subprocess.run([str(c) for c in command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    if done.returncode:
        sys.exit(f"error: {' '.join(str(c) for c in command)} failed with {done.returncode}")
    return json.loads(done.stdout)


def quality(args, mode: str, every: int) -> dict:
    nll = evaluate(args, mode, every, "nll", ["--data", args.data / "wikitext2-test.txt", "--limit", args.documents,
                                              "--full-rows", args.work / f"rows-{args.documents}.bin"])
    lambada = evaluate(args, mode, every, "lambada", ["--data", args.data / "lambada_openai.jsonl", "--limit",
                                                      args.passages, "--decoder-first"])
    return {"nll": nll["metric"]["nll"], "kl": nll["metric"].get("kl", 0), "agree": nll["metric"].get("agree", 1),
            "lambada": lambada["metric"]["acc"], "documents": nll["n"], "passages": lambada["n"]}


def chat(server, mode: str, every: int, i: int) -> bench_sched.Stream:
    dial = {"decode": mode} | ({"every": every} if every else {})
    body = {"messages": [{"role": "user", "content": f"Write about {TOPICS[i]}."}], "max_tokens": ANSWER_TOKENS,
            "temperature": 0, "ignore_eos": True, "overfill": dial, "stream_options": {"include_usage": True}}
    return bench_sched.Stream(server, "/v1/chat/completions", body)


def usage_of(stream: bench_sched.Stream) -> dict:
    last = [line for line in stream.text.split(b"\n") if b'"usage":{' in line][-1]
    return json.loads(last[6:])["usage"]


def speed(server, mode: str, every: int, n: int) -> dict:
    """Tokens a second from the first token of all streams on: prefill does not count."""
    streams = [chat(server, mode, every, i) for i in range(n)]
    bench_sched.read_to_end(streams)
    begin = max(s.arrivals[1] for s in streams)
    times = sorted(t for s in streams for t in s.arrivals if t > begin)
    usages = [usage_of(s) for s in streams]
    drafted = sum(u["overfill"].get("drafted_tokens", 0) for u in usages)
    accepted = sum(u["overfill"].get("accepted_tokens", 0) for u in usages)
    return {"tok_s": len(times) / (times[-1] - begin),
            "accepted": accepted / drafted if drafted else None}


def measure(args) -> dict:
    results = {"settings": [], "twin": args.twin.name, "twin_bytes": args.twin.stat().st_size,
               "model_bytes": args.model.stat().st_size}
    server = bench_sched.Server("overfill", [args.program, "serve", "--model", args.model, "--pruned", args.twin],
                                args.work / "server.log")
    speeds = {(mode, every, n): [] for mode, every in SETTINGS for n in BATCHES}
    try:
        speed(server, "pruned", 0, 16)  # every prompt is in the prefix cache from here on
        for mode, every in SETTINGS * ROUNDS:
            found = {n: speed(server, mode, every, n) for n in BATCHES}
            for n in BATCHES:
                speeds[mode, every, n].append(found[n])
            bench_sched.say(f"{name_of(mode, every)}: {found}")
            time.sleep(2)  # answers are read in the background
    finally:
        server.stop()
    for mode, every in SETTINGS:
        found = quality(args, mode, every)
        bench_sched.say(f"{name_of(mode, every)}: {found}")
        rates = {n: statistics.median(s["tok_s"] for s in speeds[mode, every, n]) for n in BATCHES}
        results["settings"].append({"mode": mode, "every": every, "tok_s": rates,
                                    "accepted": speeds[mode, every, 1][0]["accepted"], **found})
    return results


def picture(results: dict) -> str:
    """Tokens a second of one stream against agreement with the full model."""
    width, height, left, bottom = 640, 360, 60, 50
    rows = results["settings"]
    most = max(r["tok_s"]["1"] for r in rows) * 1.1
    least = min(r["agree"] for r in rows) - 0.03
    colours = {"pruned": "#b03a2e", "refresh": "#b9770e", "verify": "#1e8449", "full": "#1f618d"}
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
             'font-size="12">', f'<rect width="{width}" height="{height}" fill="white"/>']

    def x(v: float) -> float:
        return left + v / most * (width - left - 90)

    def y(v: float) -> float:
        return 20 + (1 - v) / (1 - least) * (height - bottom - 30)

    for i in range(5):
        v = least + (1 - least) * i / 4
        parts.append(f'<line x1="{left}" x2="{width - 10}" y1="{y(v):.0f}" y2="{y(v):.0f}" stroke="#ddd"/>'
                     f'<text x="{left - 8}" y="{y(v) + 4:.0f}" text-anchor="end">{v:.0%}</text>')
        parts.append(f'<text x="{x(most * i / 4):.0f}" y="{height - bottom + 14}" text-anchor="middle">'
                     f"{most * i / 4:.0f}</text>")
    for r in rows:
        cx, cy = x(r["tok_s"]["1"]), y(r["agree"])
        lift = -8 if r["mode"] != "verify" else 14 + 12 * [2, 4, 8].index(r["every"])
        parts.append(f'<circle cx="{cx:.0f}" cy="{cy:.0f}" r="5" fill="{colours[r["mode"]]}"/>'
                     f'<text x="{cx + 6:.0f}" y="{cy + lift:.0f}">{name_of(r["mode"], r["every"])}</text>')
    parts.append(f'<text x="{(left + width) / 2:.0f}" y="{height - 10}" text-anchor="middle">tokens a second, '
                 "one stream</text>")
    parts.append(f'<text x="14" y="{height / 2:.0f}" transform="rotate(-90 14 {height / 2:.0f})" '
                 'text-anchor="middle">agreement with the full model</text></svg>')
    return "\n".join(parts) + "\n"


def lossless(rows: list) -> str:
    """Whether verify pays: it writes what full writes."""
    full = next(r for r in rows if r["mode"] == "full")["tok_s"]
    twin = next(r for r in rows if r["mode"] == "pruned")["tok_s"]
    best = {n: max((r for r in rows if r["mode"] == "verify"), key=lambda r: r["tok_s"][n]) for n in ("1", "16")}
    gain = {n: best[n]["tok_s"][n] / full[n] for n in best}
    said = (f"The same words at once from both: with one stream {name_of('verify', best['1']['every'])} has {gain['1']:.2f} times the speed of "
            f"`full`, with 16 {name_of('verify', best['16']['every'])} has {gain['16']:.2f} times. ")
    if min(gain.values()) > 1:
        return said + "Whoever wants the full model's words should ask for it."
    return said + (f"So it is no default: the twin is only {twin['1'] / full['1']:.1f} and {twin['16'] / full['16']:.1f} times as fast as the "
                   "full model here, and reading several drafts costs the full model more than writing one token. It can pay where the "
                   "full model waits for memory and its twin is far smaller.")


def report(results: dict) -> str:
    rows = results["settings"]
    lines = [
        "# The quality dial", "",
        "Who writes the answer after the first token, per request "
        '(`"overfill": {"decode": "refresh", "every": 8}`) or as the server\'s default (`--decode`, `--every`):', "",
        "- `pruned`: the twin, on the full model's keys and values of the prompt.",
        "- `refresh`: the twin; after every `every` tokens the full model reads them again, and its keys and values "
        "take the place of the twin's.",
        "- `verify`: the twin drafts `every` tokens, the full model accepts or replaces them. Greedy answers are the "
        "full model's token for token, sampled ones have its distribution (speculative sampling).",
        "- `full`: the full model.", "",
        f"Written by `scripts/dial`: SmolLM2-135M-Instruct Q4_1 ({results['model_bytes'] / 1e6:.0f} MB) and "
        f"`{results['twin']}` ({results['twin_bytes'] / 1e6:.0f} MB). KL (nats a token) and agreement (share of tokens "
        f"where both models' best is the same) against the full model over {rows[0]['documents']} WikiText-2 documents, "
        f"128 tokens read and 384 scored; LAMBADA over {rows[0]['passages']} passages, the decoder scoring the whole "
        f"word; tokens a second of all streams together, the median of {ROUNDS} rounds, greedy answers to chat prompts "
        "that the prefix cache knows.", "",
        "| setting | KL | agreement | LAMBADA | tok/s, 1 stream | tok/s, 16 streams | drafts accepted |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in rows:
        accepted = f"{r['accepted']:.0%}" if r["accepted"] is not None else ""
        lines.append(f"| {name_of(r['mode'], r['every'])} | {r['kl']:.3f} | {r['agree']:.1%} | {r['lambada']:.1%} | "
                     f"{r['tok_s']['1']:.0f} | {r['tok_s']['16']:.0f} | {accepted} |")
    lines += ["", lossless(rows)]
    lines += ["", "![Agreement with the full model against tokens a second](dial.svg)"]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("program", "model", "twin", "data", "work"):
        parser.add_argument(f"--{name}", type=pathlib.Path)
    parser.add_argument("--documents", type=int, default=12)
    parser.add_argument("--passages", type=int, default=100)
    parser.add_argument("--report", action="store_true")
    args = parser.parse_args()
    kept = args.work / "dial.json"
    if not args.report:
        kept.write_text(json.dumps(measure(args), indent=1))
    results = json.loads(kept.read_text())
    pathlib.Path("docs/DIAL.md").write_text(report(results))
    pathlib.Path("docs/dial.svg").write_text(picture(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
