"""Measures overfill and llama.cpp in turn and writes every sample as JSON. Called by scripts/bench.

One pair is: `overfill bench` for the full model and the twin, and with coarse activations, then llama-bench and llama-batched-bench for
each weight type (after the first pair: those that won a stage there). After that both servers stay up, idle but for the one that is asked, for the time to the
first token; last, each is started anew for its load time. No sample is dropped.
"""
import argparse
import json
import os
import pathlib
import random
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request

import document

PREFILL_TOKENS = 512
BATCH_PROMPT = 31  # tokens, and generated: as `overfill bench` does it
BATCH_TOKENS = 64
BATCHES = (1, 4, 16)
TTFT_TOKENS = 2000
STAGES = ("prefill", *(f"decode-{n}" for n in BATCHES))
TYPES = ("Q4_0", "Q8_0", "BF16", "Q4_1")
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


def run(command: list, log: pathlib.Path) -> str:
    with log.open("a") as errors:
        done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=errors, text=True,
                              timeout=1800)
    if done.returncode != 0:
        sys.exit(f"error: {command[0]} failed with {done.returncode}; see {log}")
    return done.stdout


def json_lines(text: str) -> list:
    return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def ours(args, log, *options) -> dict:
    return json.loads(run([args.program, "bench", "--json", "--runs", 2, "--model", args.model, *options], log))


def theirs(args, weights: str, threads: int, log) -> dict:
    """Tokens a second of one weight type: prefill, decode of one, of several at once."""
    file = args.variants / f"llama-{weights}.gguf"
    common = ["-m", file, "-t", threads]
    rows = json_lines(run([args.llama / "llama-bench", *common, "-p", PREFILL_TOKENS, "-n", BATCH_TOKENS, "-r", 2,
                           "-o", "jsonl"], log))
    found = {"prefill": next(row["avg_ts"] for row in rows if row["n_prompt"]),
             "decode-1": next(row["avg_ts"] for row in rows if row["n_gen"])}
    wanted = ",".join(str(n) for n in BATCHES)
    rows = json_lines(run([args.llama / "llama-batched-bench", *common, "-c", 2048, "-npp", BATCH_PROMPT, "-ntg", 32,
                           "-npl", wanted, "--output-format", "jsonl"], log))
    for row in rows:
        name = f"decode-{row['pl']}"
        found[name] = max(found.get(name, 0), row["speed_tg"])
    return found


class Server:
    """A server on a free port of 127.0.0.1."""

    def __init__(self, command: list, log: pathlib.Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = log.open("a")
        self.started = time.monotonic()
        self.process = subprocess.Popen([str(part) for part in command] + ["--host", "127.0.0.1", "--port", str(port)],
                                        stdout=self.log, stderr=self.log)

    def wait(self) -> None:
        while time.monotonic() - self.started < 120:
            if self.process.poll() is not None:
                sys.exit(f"error: a server ended; see {self.log.name}")
            try:
                with OPENER.open(f"{self.url}/health", timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                time.sleep(0.002)
        sys.exit(f"error: {self.url} is not healthy after two minutes; see {self.log.name}")

    def first_token_seconds(self, tokens: list) -> float:
        body = {"model": self.model(), "prompt": tokens, "max_tokens": 2, "stream": True, "temperature": 0}
        request = urllib.request.Request(f"{self.url}/v1/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        begin = time.monotonic()
        with OPENER.open(request, timeout=600) as response:
            for line in response:
                if line.startswith(b"data: {"):
                    seconds = time.monotonic() - begin
                    for _ in response:
                        pass
                    return seconds
        sys.exit(f"error: {self.url} gave no token")

    def model(self) -> str:
        with OPENER.open(f"{self.url}/v1/models", timeout=30) as response:
            return json.load(response)["data"][0]["id"]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)
        self.log.close()


def our_server(args, log) -> Server:
    return Server([args.program, "serve", "--model", args.model, "--pruned", args.twin, "--log-level", "warn"], log)


def their_server(args, weights: str, threads: int, log) -> Server:
    return Server([args.llama / "llama-server", "-m", args.variants / f"llama-{weights}.gguf", "-t", threads,
                   "-c", 4096, "-np", 1], log)


def measure_ttft(args, weights: str, threads: int, log) -> dict:
    numbers = random.Random(7)
    servers = {"ours": our_server(args, log), "theirs": their_server(args, weights, threads, log)}
    found = {name: [] for name in servers}
    try:
        for server in servers.values():
            server.wait()
            server.first_token_seconds([numbers.randrange(1000, 49000) for _ in range(TTFT_TOKENS)])
        for i in range(args.pairs):
            for name, server in servers.items():
                # other tokens each time, so that no cache of prefixes helps
                prompt = [numbers.randrange(1000, 49000) for _ in range(TTFT_TOKENS)]
                found[name].append(server.first_token_seconds(prompt))
            say(f"first token of {TTFT_TOKENS}, pair {i + 1} of {args.pairs}")
    finally:
        for server in servers.values():
            server.stop()
    return found


def measure_load(args, weights: str, threads: int, log) -> dict:
    """Process start to the first token of a short prompt, files in the page cache."""
    found = {"ours": [], "theirs": []}
    for i in range(args.pairs + 1):
        for name in found:
            server = our_server(args, log) if name == "ours" else their_server(args, weights, threads, log)
            try:
                server.wait()
                server.first_token_seconds([504, 338, 253])
                if i:  # the first warms the page cache
                    found[name].append(time.monotonic() - server.started)
            finally:
                server.stop()
    return found


# (name in the table, options): how the engine may hold the same weights and activations.
KINDS = (
    ("4-bit weights, 12-bit activations (default)", ()),
    ("8-bit weights, 12-bit activations", ("--weights", "q8")),
    ("4-bit weights, 8-bit activations (a twin's)", ("--pruned-activations", "8")),
)


def measure_kinds(args, log) -> list:
    """How far the model is from itself in float32, on documents: it decodes as its own twin, behind its own prompt."""
    rows = args.variants / "float32.rows"
    rows.unlink(missing_ok=True)
    command = [args.program, "eval", "--model", args.model, "--pruned", args.model, "--system", "overfill", "--task", "nll",
               "--data", args.text, "--limit", 8, "--json", "--full-rows", rows]
    say("types beside float32")
    run([*command, "--weights", "f32"], log)
    found = []
    for title, options in KINDS:
        metric = json.loads(run([*command, "--rows-as-given", *options], log))["metric"]
        found.append({"title": title, "kl": metric["kl"], "agree": metric["agree"]})
    rows.unlink()
    return found


def text_of(path: str) -> str:
    try:
        return pathlib.Path(path).read_text()
    except OSError:
        return ""


def machine(args) -> dict:
    system = re.search(r'PRETTY_NAME="(.*)"', text_of("/etc/os-release"))
    memory = re.search(r"MemTotal:\s+(\d+) kB", text_of("/proc/meminfo"))
    revision = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    version = subprocess.run([args.llama / "llama-server", "--version"], capture_output=True, text=True)
    number = re.search(r"version: (.*)", version.stdout + version.stderr)
    return {
        "cpu": document.cpu(),
        "cpus": len(os.sched_getaffinity(0)),
        "system": system.group(1) if system else "unknown",
        "kernel": os.uname().release,
        "memory_gb": int(memory.group(1)) * 1024 / 1e9 if memory else 0,
        "overfill": revision.stdout.strip(),
        "llama": number.group(1) if number else "unknown",
        "load_before": os.getloadavg()[0],
        "policy": os.sched_getscheduler(0),
    }


def best_type(pairs: list, stage: str) -> str:
    """The fastest of the types that every pair has."""
    types = set(TYPES).intersection(*(pair["theirs"] for pair in pairs))
    return max(types, key=lambda weights: statistics.median(pair["theirs"][weights][stage] for pair in pairs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("program", "model", "twin", "llama", "variants", "text", "out"):
        parser.add_argument(f"--{name}", type=pathlib.Path, required=True)
    parser.add_argument("--pairs", type=int, default=5)
    args = parser.parse_args()
    log = args.variants / "bench.log"
    log.write_text("")
    for name in [name for name in os.environ if name.startswith("OPENBLAS_")]:
        del os.environ[name]
    result = {"date": time.strftime("%Y-%m-%d"), "pairs": [], "machine": machine(args)}
    threads = result["machine"]["cpus"]
    for i in range(args.pairs):
        begin = time.monotonic()
        say(f"pair {i + 1} of {args.pairs}")
        pair = {"ours": ours(args, log, "--pruned", args.twin), "theirs": {}, "coarse": ours(args, log, "--activations", 8)}
        # every type once, then those that won a stage
        wanted = {best_type(result["pairs"][:1], stage) for stage in STAGES} if i else set(TYPES)
        for weights in sorted(wanted):
            pair["theirs"][weights] = theirs(args, weights, threads, log)
        result["pairs"].append(pair)
        say(f"pair {i + 1}: {time.monotonic() - begin:.0f} s")
    prefill_type = best_type(result["pairs"], "prefill")
    args.out.with_suffix(".part").write_text(json.dumps(result, indent=1))
    result["kinds"] = measure_kinds(args, log)
    result["ttft"] = {"weights": prefill_type, **measure_ttft(args, prefill_type, threads, log)}
    result["load"] = {"weights": prefill_type, **measure_load(args, prefill_type, threads, log)}
    result["machine"]["load_after"] = os.getloadavg()[0]
    args.out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
