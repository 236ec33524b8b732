"""Measures a pair at full size and writes docs/PAIRS.md and its picture; called by scripts/bench-pairs.

One server holds both models; a request says which of them decodes, so that the two alternate under the same
conditions. Times are a client's, on the same machine. Prompts are random tokens, so no prefix is ever found again."""
import argparse
import json
import os
import pathlib
import random
import re
import shutil
import statistics
import subprocess
import sys
import time

import bench_aims
import bench_sched
import document
import make_model

RESULTS = pathlib.Path("docs/PAIRS.md")
CHART = document.picture(pathlib.Path("docs/pairs.svg"))
PREFILL_TOKENS = 512
SHORT_PROMPT = 31
TINY_PROMPT = 4  # of several streams: the last begins before the first ends
STORY_PROMPT = 1000
HAND_OVERS, HAND_OVER_PROMPT, HAND_OVER_TOKENS = 9, 128, 16  # one alone would tell what else the machine does
MODES = ("full", "pruned")


def model_bytes(shape: dict, kind: str) -> int:
    """What make_model writes for the shape, without metadata."""
    _, block, size = make_model.TYPES[kind]
    hidden, mlp = (-(-shape[key] // block) * block for key in ("hidden", "mlp"))
    return sum((rows or 1) * (columns // block * size if what == "matrix" else 4 * columns)
               for _, rows, columns, what in make_model.tensor_list(shape, hidden, mlp))


def make_models(args) -> None:
    missing = {name: path for name, path in args.models.items() if not path.exists()}
    bytes_of = {name: model_bytes(make_model.SHAPES[getattr(args, name)], args.type) for name in args.models}
    # the packed cache of both, beside the files
    needed = sum(bytes_of[name] for name in missing) + int(1.2 * sum(bytes_of.values()))
    args.work.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(args.work).free
    if free < needed:
        sys.exit(f"error: {args.work}: {needed} bytes of disk are needed, {free} are free")
    for name, path in missing.items():
        bench_sched.say(f"random weights in the shape of {getattr(args, name)}, {args.type}")
        part = path.with_suffix(".part.gguf")
        subprocess.run([sys.executable, "scripts/make_model.py", getattr(args, name), "--type", args.type, "--out", part],
                       check=True, stderr=subprocess.DEVNULL)
        part.rename(path)


def peaks(args) -> dict:
    """The machine's, by `overfill bench` with a small model."""
    done = subprocess.run([args.program, "bench", "--json", "--runs", "1", "--model", args.small], check=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return json.loads(done.stdout)["machine"]


def memory_of(pid: int) -> dict:
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return {key: int(re.search(rf"{key}:\s+(\d+) kB", text)[1]) * 1024 for key in ("VmRSS", "VmHWM", "RssFile")}


class Others:
    """How many CPUs all other programs took while `server` was measured."""

    def __init__(self, server):
        self.pid = server.process.pid
        self.begin = self.look()

    def look(self) -> tuple:
        tick = os.sysconf("SC_CLK_TCK")
        total = [int(x) for x in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
        mine = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        own = sum(os.times()[:2])
        return time.monotonic(), (sum(total[:8]) - total[3] - total[4] - int(mine[11]) - int(mine[12])) / tick - own

    def cpus(self) -> float:
        now = self.look()
        return max(0.0, (now[1] - self.begin[1]) / (now[0] - self.begin[0]))


def start(args, name: str, *extra) -> tuple:
    """A server that is ready, and the seconds that took."""
    begin = time.monotonic()
    server = bench_sched.Server(name, [args.program, "serve", "--model", args.models["full"], "--pruned", args.models["twin"],
                                       "--context", 2048, "--kv-memory", "2GiB", "--prefix-cache", "off",
                                       "--background", "off", *extra], args.work / f"{name}.log")
    return server, time.monotonic() - begin


def measure_load(args) -> dict:
    """Packing, packing into a cache, and from the cache."""
    found = {}
    cache = args.work / "packed"
    for name, extra in (("packed", ()), ("kept", ("--packed-cache", cache)), ("mapped", ("--packed-cache", cache))):
        server, seconds = start(args, name, *extra)
        run_streams(server, "full", 1, SHORT_PROMPT, 4)
        found[name] = {"seconds": seconds, "tok_s": decode_speed(server, "full", 1, args.tokens),
                       **memory_of(server.process.pid)}
        server.stop()
        bench_sched.say(f"start, weights {name}: {seconds:.1f} s, {found[name]['VmRSS'] / 1e9:.2f} GB resident")
    shutil.rmtree(cache)
    return found


def run_streams(server, mode: str, n: int, n_prompt: int, n_tokens: int) -> list:
    """n requests at once; the arrivals of each one's tokens, from when it was sent."""
    streams = []
    for _ in range(n):
        prompt = [random.randrange(1000, 100000) for _ in range(n_prompt)]
        body = {"prompt": prompt, "max_tokens": n_tokens, "temperature": 0, "ignore_eos": True, "overfill": {"decode": mode}}
        streams.append(bench_sched.Stream(server, "/v1/completions", body))
    bench_sched.read_to_end(streams)
    return [[t - s.began for t in s.arrivals] for s in streams]


def decode_speed(server, mode: str, n: int, n_tokens: int) -> float:
    """Tokens a second while all n streams run."""
    streams = run_streams(server, mode, n, TINY_PROMPT if n > 1 else SHORT_PROMPT, n_tokens)
    begin = max(s[1] for s in streams)
    end = min(s[-1] for s in streams)
    if end <= begin:
        sys.exit(f"error: {n} streams of {n_tokens} tokens never ran together")
    return sum(begin < t <= end for s in streams for t in s) / (end - begin)


def measure_speed(args) -> dict:
    found = {"machine": [], "prefill": [], "decode": {f"{mode}-{n}": [] for n in (1, 16) for mode in MODES}}
    server, _ = start(args, "speed")
    try:
        metrics = server.get("/metrics")
        found["model_bytes"] = {mode: float(re.search(rf'overfill_model_bytes{{[^}}]*="{mode}"[^}}]*}} (\S+)', metrics)[1])
                                for mode in MODES}
        run_streams(server, "pruned", 1, SHORT_PROMPT, 4)
        others = Others(server)
        for i in range(args.rounds):
            found["machine"].append(peaks(args))  # anew: on a shared machine they change from minute to minute
            seconds = run_streams(server, "pruned", 1, PREFILL_TOKENS, 2)[0][0]
            found["prefill"].append(PREFILL_TOKENS / seconds)
            for name, speeds in found["decode"].items():
                mode, n = name.split("-")
                speeds.append(decode_speed(server, mode, int(n), args.tokens * (1 if n == "1" else 2)))
            bench_sched.say(f"round {i + 1}: prefill {found['prefill'][-1]:.1f}, " + ", ".join(
                f"{name} {speeds[-1]:.1f}" for name, speeds in found["decode"].items()) + " tokens/s")
        found["others"] = others.cpus()
    finally:
        server.stop()
    return found


def measure_story(args) -> dict:
    server, _ = start(args, "story")
    try:
        for mode in MODES:  # first touches of buffers belong to no hand-over
            run_streams(server, mode, 1, SHORT_PROMPT, 4)
        others = Others(server)
        found = {mode: run_streams(server, mode, 1, STORY_PROMPT, args.story)[0] for mode in MODES}
        found["hand_overs"] = [run_streams(server, "pruned", 1, HAND_OVER_PROMPT, HAND_OVER_TOKENS)[0] for _ in range(HAND_OVERS)]
        return found | {"tokens": args.story, "others": others.cpus()}
    finally:
        server.stop()


STAGES = {"load": measure_load, "speed": measure_speed, "story": measure_story}


def describe(args) -> dict:
    return {"full": args.full, "twin": args.twin, "type": args.type,
            "file_bytes": {name: path.stat().st_size for name, path in args.models.items()},
            "cpu": document.cpu(),
            "cpus": len(os.sched_getaffinity(0))}


def measure(args, results: pathlib.Path) -> dict:
    """Runs the stages that are asked for; those of an earlier call with the same files are kept."""
    what = describe(args)
    result = json.loads(results.read_text()) if results.exists() else {}
    if any(result.get("what", {}).get(key) != value for key, value in what.items()):
        result = {"stages": {}}
    result["what"] = what
    for name in args.stages:
        result["stages"][name] = STAGES[name](args)
        result["date"] = time.strftime("%Y-%m-%d")
        results.write_text(json.dumps(result, indent=1))
    return result


# ---- the document

def spread(values: list) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def layer_products(shape: dict) -> int:
    """Of weights and one row of activations."""
    return sum(rows * columns for name, rows, columns, what in make_model.tensor_list(shape, shape["hidden"], shape["mlp"])
               if what == "matrix" and name.startswith("blk."))


def speed_rows(r: dict, shape: dict) -> list:
    medians = {name: statistics.median(values) for name, values in r["decode"].items()}
    share = bench_aims.share_of_int8(layer_products(shape), r["prefill"], r["machine"])
    rows = [["prefill 512, full model", spread(r["prefill"]), "-", f"{100 * share:.0f} % of the int8 peak"]]
    for n in (1, 16):
        for mode in MODES:
            name = f"{mode}-{n}"
            share = f"{100 * bench_aims.share_of_memory(r, mode):.0f} % of the memory's speed" if n == 1 else "-"
            ratio = f"{medians[name] / medians[f'full-{n}']:.2f}" if mode == "pruned" else "-"
            title = "twin" if mode == "pruned" else "full model"
            rows.append([f"decode, {n} sequence{'s' if n > 1 else ''}, {title}", spread(r["decode"][name]), ratio, share])
    return rows


def load_rows(load: dict, file_bytes: dict) -> list:
    titles = {"packed": "weights packed at the start", "kept": "packed, and written to a packed cache",
              "mapped": "mapped from the packed cache"}
    files = sum(file_bytes.values())
    return [[titles[name], f"{x['seconds']:.1f}", f"{x['VmRSS'] / 1e9:.2f}", f"{x['VmRSS'] / files:.2f}", f"{x['VmHWM'] / 1e9:.2f}",
             f"{x['RssFile'] / 1e9:.2f}", f"{x['tok_s']:.1f}"] for name, x in load.items()]


def story_text(story: dict) -> str:
    full, twin = (story[mode] for mode in MODES)
    step = bench_aims.median_step(twin)
    return (f"A prompt of 1,000 tokens and an answer of {story['tokens']}: {full[-1]:.1f} s with the full model alone, {twin[-1]:.1f} s with the "
            f"twin, {full[-1] / twin[-1]:.2f} times as fast. The first token came after {full[0]:.2f} and {twin[0]:.2f} s: prefill is "
            f"the full model's in both. Between first and second token the twin took {1e3 * bench_aims.hand_over(story):+.1f} ms more than "
            f"its median step of {1e3 * step:.1f} ms, the median of this and {len(story['hand_overs'])} short answers: this difference holds the hand-over.")


def chart(story: dict) -> str:
    width, height, left, bottom = 640, 320, 60, 40
    n = max(len(story[mode]) for mode in MODES)
    most = max(story[mode][-1] for mode in MODES)

    def points(times):
        return " ".join(f"{left + (width - left - 20) * i / n:.1f},{height - bottom - (height - bottom - 20) * t / most:.1f}"
                        for i, t in enumerate(times, 1))

    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
             f'<rect width="{width}" height="{height}" fill="white"/>',
             f'<path d="M{left},20V{height - bottom}H{width - 20}" stroke="black" fill="none"/>']
    for i in range(5):
        y = height - bottom - (height - bottom - 20) * i / 4
        x = left + (width - left - 20) * i / 4
        lines.append(f'<text x="{left - 6}" y="{y + 4:.0f}" text-anchor="end">{most * i / 4:.0f} s</text>')
        lines.append(f'<text x="{x:.0f}" y="{height - bottom + 16}" text-anchor="middle">{n * i // 4}</text>')
    for mode, color, label in (("full", "#999", "full model alone"), ("pruned", "#c30", "full model, then twin")):
        lines.append(f'<polyline points="{points(story[mode])}" fill="none" stroke="{color}" stroke-width="2"/>')
        y = height - bottom - (height - bottom - 20) * story[mode][-1] / most
        lines.append(f'<text x="{width - 24}" y="{y + 16:.0f}" text-anchor="end" fill="{color}">{label}</text>')
    lines += [f'<text x="{width / 2:.0f}" y="{height - 6}" text-anchor="middle">tokens of the answer, after a prompt of 1,000</text>', "</svg>"]
    return "\n".join(lines) + "\n"


def report(r: dict) -> None:
    what, stages = r["what"], r["stages"]
    missing = [name for name in STAGES if name not in stages]
    if missing:
        bench_sched.say(f"{RESULTS} is not written: {', '.join(missing)} not measured yet")
        return
    files, speed = what["file_bytes"], stages["speed"]
    text = f"""{what['cpu']}, {what['cpus']} CPUs; {r['date']}, rounds in turn: {len(speed['prefill'])}, medians (least to most). Random
weights in the shapes of {what['full']} ({files['full'] / 1e9:.2f} GB) and {what['twin']} ({files['twin'] / 1e9:.2f} GB), {what['type'].upper()}.
The memory reads {spread([m['ram_gbs'] for m in speed['machine']])} GB/s here, measured in each round, and int8 products peak at {bench_aims.peak(speed, 'int8_gops'):.0f} GOP/s.

Other programs took {speed['others']:.1f} CPUs meanwhile, and {stages['story']['others']:.1f} during the long answers below.

{document.table(["work", "tokens/s", "times the full model", "share of a limit"], speed_rows(speed, make_model.SHAPES[what["full"]]))}

{story_text(stages["story"])}

![time against the length of the answer]({CHART.name})

{document.table(["start", "seconds until ready", "resident, GB", "of the files", "peak, GB", "of it pages of files, GB",
        "decode 1, full model, tokens/s"], load_rows(stages["load"], files))}"""
    document.put(RESULTS, "scripts/bench-pairs", text, "Pairs at full size")
    CHART.write_text(chart(stages["story"]))
    bench_aims.write()


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench-pairs")
    parser.add_argument("--program", type=pathlib.Path, required=True)
    parser.add_argument("--small", type=pathlib.Path, required=True)
    parser.add_argument("--full", choices=make_model.SHAPES, default="llama-3.2-3b")
    parser.add_argument("--twin", choices=make_model.SHAPES, default="llama-3.2-3b-pruned")
    parser.add_argument("--type", choices=make_model.TYPES, default="q4_0")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--stages", type=lambda text: text.split(","), default=list(STAGES))
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path(".cache/pairs"))
    for name in ("short", "make-only", "keep", "report"):
        parser.add_argument(f"--{name}", action="store_true")
    args = parser.parse_args()
    rounds, args.tokens, args.story = (2, 32, 128) if args.short else (5, 64, 500)
    args.rounds = rounds if args.rounds is None else max(args.rounds, 1)
    args.models = {name: args.work / f"{getattr(args, name)}-{args.type}.gguf" for name in ("full", "twin")}
    results = args.work / "results.json"
    if set(args.stages) - set(STAGES):
        sys.exit(f"error: --stages: {', '.join(STAGES)} are known")
    if args.report:
        report(json.loads(results.read_text()))
        return
    try:
        make_models(args)
        if args.make_only:
            args.keep = True
            return
        report(measure(args, results))
    finally:
        if not args.keep:
            for path in args.models.values():
                path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
