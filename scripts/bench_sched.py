"""The scheduler under load, from outside: called by scripts/bench-sched.

Eight streams decode all the time. First alone, then while prompts of 2,000 tokens arrive one after another,
then the same prompts without the streams. A gap is the time between two pieces of one stream, as its client
sees them. Plain sockets and one thread: the client should cost little on the machine it measures.
"""
import argparse
import json
import os
import pathlib
import random
import re
import selectors
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request

STREAMS = 8
PROMPT_TOKENS = 2000
ANSWER_TOKENS = 400
CONTEXT = 4096
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
WORDS = ("time", "people", "water", "house", "school", "river", "music", "light", "garden", "story", "winter",
         "bread", "letter", "window", "market", "doctor")


def say(text: str) -> None:
    print(f"==> {text}", file=sys.stderr, flush=True)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    def __init__(self, name: str, command: list, log: pathlib.Path):
        self.name, self.port = name, free_port()
        with log.open("w") as out:
            self.process = subprocess.Popen([str(c) for c in command] + ["--host", "127.0.0.1", "--port",
                                                                        str(self.port)], stdout=out, stderr=out)
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.get("/health")
                self.model = json.loads(self.get("/v1/models"))["data"][0]["id"]
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        sys.exit(f"error: {name} did not start; see {log}")

    def get(self, path: str) -> str:
        with OPENER.open(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            return answer.read().decode()

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Stream:
    """One streamed request; `arrivals` are the times of its pieces."""

    def __init__(self, server: Server, path: str, body: dict):
        data = json.dumps({"model": server.model, "stream": True, **body}).encode()
        head = (f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nConnection: close\r\n"
                f"Content-Length: {len(data)}\r\n\r\n").encode()
        self.began = time.monotonic()
        self.socket = socket.create_connection(("127.0.0.1", server.port))
        self.socket.sendall(head + data)
        self.arrivals: list[float] = []
        self.text = b""
        self.ended = False

    def read(self) -> None:
        data = self.socket.recv(65536)
        now = time.monotonic()
        self.text += data
        self.arrivals += [now] * data.count(b'"text":') or [now] * data.count(b'"content":')
        if not self.text.startswith(b"HTTP/1.1 200"[:len(self.text)]):
            sys.exit(f"error: {self.text.decode(errors='replace')}")
        if not data or b"[DONE]" in data:
            self.ended = True
            self.socket.close()

    def gaps(self, since: float) -> list[float]:
        times = [t for t in self.arrivals if t >= since]
        return [b - a for a, b in zip(times, times[1:])]


def prompt(rng: random.Random, n_words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(n_words))


def stream_body(rng: random.Random) -> dict:
    return {"prompt": prompt(rng, 12), "max_tokens": ANSWER_TOKENS, "ignore_eos": True, "temperature": 0.8,
            "seed": rng.randrange(1 << 30)}


def words_for_tokens(server: Server, rng: random.Random) -> int:
    """Words of a prompt of PROMPT_TOKENS tokens: WORDS are a token each for most vocabularies."""
    data = json.dumps({"content": prompt(rng, 400)}).encode()
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{server.port}/tokenize", data,
                                         {"Content-Type": "application/json"})
        n = len(json.loads(OPENER.open(request, timeout=10).read())["tokens"])
    except (urllib.error.URLError, KeyError):
        n = 400
    return int(PROMPT_TOKENS * 400 / max(n, 200))


class Load:
    """Keeps STREAMS streams and one long prompt going, as asked."""

    def __init__(self, server: Server, seed: int):
        self.server, self.rng = server, random.Random(seed)
        self.n_words = words_for_tokens(server, self.rng)
        self.selector = selectors.DefaultSelector()

    def open(self, body: dict) -> Stream:
        stream = Stream(self.server, "/v1/completions", body)
        self.selector.register(stream.socket, selectors.EVENT_READ, stream)
        return stream

    def long_prompt(self) -> Stream:
        return self.open({"prompt": prompt(self.rng, self.n_words), "max_tokens": 1, "temperature": 0})

    def run(self, seconds: float, n_streams: int, with_prompts: bool) -> dict:
        streams = [self.open(stream_body(self.rng)) for _ in range(n_streams)]
        ended: list[Stream] = []
        while any(not s.arrivals for s in streams):
            self.step(0.1)
        begin = time.monotonic()
        long = self.long_prompt() if with_prompts else None
        n_prompts, prompt_seconds = 0, 0.0
        while time.monotonic() < begin + seconds or (long and not n_prompts):
            self.step(0.05)
            for i, stream in enumerate(streams):
                if stream.ended:
                    ended.append(stream)
                    streams[i] = self.open(stream_body(self.rng))
            if long and long.ended:
                n_prompts += 1
                prompt_seconds += time.monotonic() - long.began
                long = self.long_prompt()
        gaps = sorted(g for s in ended + streams for g in s.gaps(begin))
        n_tokens = sum(len([t for t in s.arrivals if t >= begin]) for s in ended + streams)
        for stream in streams + ([long] if long else []):
            if not stream.ended:
                self.selector.unregister(stream.socket)
                stream.socket.close()
        result = {"seconds": time.monotonic() - begin, "tokens": n_tokens, "prompts": n_prompts,
                  "prompt_tok_s": n_prompts * PROMPT_TOKENS / prompt_seconds if prompt_seconds else 0}
        if gaps:
            result |= {"p50_ms": 1e3 * gaps[len(gaps) // 2], "p99_ms": 1e3 * gaps[int(len(gaps) * 0.99)],
                       "max_ms": 1e3 * gaps[-1]}
        return result

    def step(self, timeout: float) -> None:
        read_once(self.selector, timeout)


def read_once(selector, timeout: float) -> None:
    """What the selector's streams have; those that end leave it."""
    for key, _ in selector.select(timeout):
        stream = key.data
        handle = stream.socket
        fileno = key.fd
        stream.read()
        if stream.ended:
            selector.unregister(fileno if handle.fileno() < 0 else handle)


def read_to_end(streams: list) -> None:
    selector = selectors.DefaultSelector()
    for stream in streams:
        selector.register(stream.socket, selectors.EVENT_READ, stream)
    while any(not stream.ended for stream in streams):
        read_once(selector, 1)


def measure_gaps(server: Server, seconds: float) -> dict:
    load = Load(server, 1)
    load.run(2, 2, False)  # warm
    found = {"alone": load.run(seconds / 3, STREAMS, False)}
    wait_until_idle(server)
    found["beside"] = load.run(seconds, STREAMS, True)
    wait_until_idle(server)
    found["prompts"] = load.run(seconds / 3, 0, True)
    wait_until_idle(server)
    return found


def wait_until_idle(server: Server) -> None:
    """Until a small request is answered quickly: what was cut off is gone then."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        begin = time.monotonic()
        stream = Stream(server, "/v1/completions", {"prompt": "a", "max_tokens": 1})
        while not stream.ended:
            stream.read()
        if time.monotonic() - begin < 0.25:
            return
        time.sleep(0.2)


def ttft(server: Server, messages: list) -> tuple[float, str]:
    stream = Stream(server, "/v1/chat/completions", {"messages": messages, "max_tokens": 64, "temperature": 0})
    while not stream.ended:
        stream.read()
    parts = re.findall(rb"^data: (\{.*\})", stream.text, re.M)
    text, first = "", None
    for part in parts:
        for choice in json.loads(part)["choices"]:
            text += choice["delta"].get("content") or ""
    # the first piece may only tell the role: the first one with text counts
    first = next((t for t in stream.arrivals[1:]), stream.arrivals[0])
    return first - stream.began, text


def measure_turns(server: Server, n: int) -> dict:
    rng = random.Random(2)
    first, second = [], []
    for _ in range(n):
        messages = [{"role": "user", "content": "Tell me about this. " + prompt(rng, 1450)}]
        seconds, text = ttft(server, messages)
        first.append(seconds)
        time.sleep(1.5)  # somebody reads the answer
        messages += [{"role": "assistant", "content": text}, {"role": "user", "content": "Why is that so?"}]
        second.append(ttft(server, messages)[0])
    return {"first_ms": 1e3 * statistics.median(first), "second_ms": 1e3 * statistics.median(second)}


def gauge(server: Server, name: str) -> float:
    return float(re.search(rf"^{name}(?:\{{.*\}})? (\S+)$", server.get("/metrics"), re.M).group(1))


def measure_gone(server: Server) -> dict:
    """Clients that close their socket in prefill and in decode; what the server says it took to let go."""
    rng = random.Random(3)
    for after in (0.05, 0.2, 0.5, 2.5):
        stream = Stream(server, "/v1/completions", {"prompt": prompt(rng, PROMPT_TOKENS), "max_tokens": 500,
                                                    "ignore_eos": True})
        time.sleep(after)
        stream.socket.close()
        while gauge(server, "overfill_jobs") > 0 or gauge(server, "overfill_kv_bytes") > 0:
            time.sleep(0.01)
    return {"longest_ms": 1e3 * gauge(server, "overfill_cancel_longest_seconds")}


def servers(args) -> list:
    threads = len(os.sched_getaffinity(0))
    ours = [args.program, "serve", "--model", args.model, "--context", CONTEXT, "--pruned", args.twin]
    found = [("overfill", ours)]
    if args.llama:
        theirs = [args.llama, "-m", args.model, "-t", threads, "-c", CONTEXT * (STREAMS + 1), "-np", STREAMS + 1,
                  "--no-webui"]
        found += [("llama-server", theirs), ("llama-server -b 128 -ub 128", theirs + ["-b", 128, "-ub", 128])]
    return found


def measure(args) -> dict:
    results = {"cpus": len(os.sched_getaffinity(0)), "seconds": args.seconds, "load": os.getloadavg()[0],
               "servers": {}}
    for name, command in servers(args):
        say(name)
        server = Server(name, command, args.work / "sched.log")
        try:
            found = measure_gaps(server, args.seconds)
            found["turns"] = measure_turns(server, 3)
            if name == "overfill":
                found["gone"] = measure_gone(server)
        finally:
            server.stop()
        results["servers"][name] = found
        say(json.dumps(found))
    return results


def report(results: dict) -> str:
    lines = [
        "# Scheduling under load", "",
        f"Written by `scripts/bench-sched`. SmolLM2-135M-Instruct on {results['cpus']} CPUs, {STREAMS} streams of "
        f"{ANSWER_TOKENS} tokens each; prompts of {PROMPT_TOKENS:,} tokens arrive one after another for "
        f"{results['seconds']:g} s. A gap is the time between two pieces of a stream at its client. overfill decodes "
        "with the twin, llama-server with its one model: compare each server with itself.", "",
        "| server | p50 / p99 / max gap alone, ms | beside prompts, ms | p99 ratio | prefill beside, tok/s | alone | "
        "share |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, r in results["servers"].items():
        a, b, p = r["alone"], r["beside"], r["prompts"]
        lines.append(
            f"| {name} | {a['p50_ms']:.0f} / {a['p99_ms']:.0f} / {a['max_ms']:.0f} | {b['p50_ms']:.0f} / "
            f"{b['p99_ms']:.0f} / {b['max_ms']:.0f} | {b['p99_ms'] / a['p99_ms']:.1f} | {b['prompt_tok_s']:.0f} | "
            + (f"{p['prompt_tok_s']:.0f} | {b['prompt_tok_s'] / p['prompt_tok_s']:.0%} |" if p["prompts"] else
               f"none ended in {p['seconds']:.0f} s | |"))
    lines += ["", "## The next turn", "",
              "Time to the first piece of the answer: a first turn of about 1,500 tokens, then the same chat with the "
              "answer and a short question.", "",
              "| server | first turn, ms | second turn, ms | ratio |", "| --- | --- | --- | --- |"]
    for name, r in results["servers"].items():
        t = r.get("turns")
        if not t:
            continue
        lines.append(f"| {name} | {t['first_ms']:.0f} | {t['second_ms']:.0f} | {t['second_ms'] / t['first_ms']:.0%} |")
    gone = results["servers"]["overfill"].get("gone")
    if gone:
        lines += ["", "## A client that leaves", "",
                  "Sockets closed in prefill and in decode: from the cancel to the release of all pages took at most "
                  f"{gone['longest_ms']:.0f} ms (gauge `overfill_cancel_longest_seconds`)."]
    if results.get("note"):
        lines += ["", results["note"]]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--program", type=pathlib.Path)
    parser.add_argument("--model", type=pathlib.Path)
    parser.add_argument("--twin", type=pathlib.Path)
    parser.add_argument("--llama", default="")
    parser.add_argument("--work", type=pathlib.Path)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--report", type=pathlib.Path)
    args = parser.parse_args()
    if args.report:
        results = json.loads(args.report.read_text())
    else:
        results = measure(args)
        (args.work / "sched.json").write_text(json.dumps(results, indent=1))
    pathlib.Path("docs/SCHEDULING.md").write_text(report(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
