"""Mixed traffic and what it leaves behind: see scripts/soak. One JSON object on stdout."""
import argparse
import collections
import http.client
import json
import os
import pathlib
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
WARM_S = 60       # caches fill, arenas grow
SLACK = 1.05      # of memory, after that
SLACK_KIB = 4096


class Server:
    def __init__(self, arguments):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        twin = ROOT / "models/smollm2-135m-overfill.gguf"
        pruned = ["--pruned", str(twin)] if twin.exists() else []
        # A small cache is full within the first minute.
        self.process = subprocess.Popen(
            [arguments.program, "serve", "--model", arguments.model, *pruned, "--port", str(self.port),
             "--log-level", "warn", "--context", "2048", "--kv-memory", "64MiB"])
        for _ in range(600):
            try:
                if self.request("GET", "/health")[0] == 200:
                    break
            except OSError:
                pass
            time.sleep(0.2)
        self.model = json.loads(self.request("GET", "/v1/models")[1])["data"][0]["id"]

    def request(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request(method, path, json.dumps(body) if body is not None else None)
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        return reply.status, text

    def metric(self, name):
        text = self.request("GET", "/metrics")[1]
        return sum(float(v) for v in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M))

    def sample(self):
        proc = pathlib.Path(f"/proc/{self.process.pid}")
        return {"rss_kib": int(re.search(r"VmRSS:\s+(\d+)", (proc / "status").read_text())[1]),
                "descriptors": len(os.listdir(proc / "fd")),
                "threads": len(os.listdir(proc / "task")),
                "jobs": self.metric("overfill_jobs"), "kv_bytes": self.metric("overfill_kv_bytes")}


class Traffic:
    """What one client does, again and again, at random; `wrong` collects surprises."""
    def __init__(self, server, seed):
        self.server, self.random = server, random.Random(seed)
        self.counts, self.wrong = collections.Counter(), []

    def words(self, most):
        return " ".join(self.random.choice(WORDS) for _ in range(self.random.randint(1, most)))

    def expect(self, kind, status, wanted, text):
        self.counts[kind] += 1
        if status not in (wanted, 429):
            self.wrong.append(f"{kind}: {status} {text[:300]}")

    def chat(self):
        body = {"model": self.server.model, "max_tokens": self.random.randint(1, 24),
                "messages": [{"role": "user", "content": self.words(60)}],
                "overfill": {"decode": self.random.choice(["pruned", "full", "refresh", "verify"])},
                "stream": self.random.random() < 0.5, "n": self.random.choice([1, 1, 2])}
        status, text = self.server.request("POST", "/v1/chat/completions", body)
        self.expect("chat", status, 200, text)
        if status == 200 and body["stream"] and not text.endswith("data: [DONE]\n\n"):
            self.wrong.append("a stream without its end: " + text[-300:])

    def completion(self):
        status, text = self.server.request("POST", "/v1/completions", {
            "model": self.server.model, "prompt": [self.words(20), self.words(200)], "logprobs": 2,
            "max_tokens": self.random.randint(0, 8), "echo": True})
        self.expect("completion", status, 200, text)

    def responses(self):
        status, text = self.server.request("POST", "/v1/responses", {
            "model": self.server.model, "input": self.words(40), "max_output_tokens": 8,
            "stream": self.random.random() < 0.5})
        self.expect("responses", status, 200, text)

    def messages(self):
        status, text = self.server.request("POST", "/v1/messages", {
            "model": self.server.model, "max_tokens": 8, "stream": self.random.random() < 0.5,
            "messages": [{"role": "user", "content": self.words(40)}]})
        self.expect("messages", status, 200, text)

    def tokenize(self):
        status, text = self.server.request("POST", "/tokenize", {"content": self.words(4000)})
        self.expect("tokenize", status, 200, text)

    def mistake(self):
        body = self.random.choice([{}, {"model": "nobody"}, [1], {"model": self.server.model, "n": -1}])
        status, text = self.server.request("POST", "/v1/chat/completions", body)
        self.expect("mistake", status, 404 if body == {"model": "nobody"} else 400, text)

    def leave(self):
        """Sends a long request and leaves before, at or after its first bytes; or sends half of it."""
        body = json.dumps({"model": self.server.model, "prompt": self.words(300), "max_tokens": 500,
                           "stream": self.random.random() < 0.5, "ignore_eos": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=30) as s:
            s.sendall((head + body)[:self.random.choice([10, len(head) + 20, 10 ** 9, 10 ** 9])])
            s.settimeout(self.random.random())
            try:
                s.recv(100)
            except TimeoutError:
                pass
        self.counts["leave"] += 1

    def run(self, end):
        kinds = [self.chat] * 4 + [self.completion, self.responses, self.messages, self.tokenize,
                                   self.mistake, self.leave, self.leave]
        while time.monotonic() < end:
            try:
                self.random.choice(kinds)()
            except (OSError, http.client.HTTPException) as error:
                self.wrong.append(repr(error))


WORDS = "the sea is deep and blue ships go far away Zürich 北京 🙂 one two three count again".split()


def idle(server):
    """Waits until nothing is left to do, for cancelled work too."""
    for _ in range(600):
        if server.metric("overfill_jobs") == 0 and server.metric("overfill_kv_bytes") == 0:
            return
        time.sleep(0.1)


def judge(samples, first, last):
    """What is wrong with the samples, if anything."""
    warm = [s for t, s in samples if t >= WARM_S]
    faults = []
    if warm:
        # Requests come and go, so peaks are compared with peaks: of the first third, of the last.
        third = max(1, len(warm) // 3)
        for name, slack in (("rss_kib", SLACK_KIB), ("descriptors", 8)):
            before = max(s[name] for s in warm[:third])
            after = max(s[name] for s in warm[-third:])
            if after > before * SLACK + slack:
                faults.append(f"{name}: {before} -> {after}")
    if last["descriptors"] > first["descriptors"] or last["threads"] > first["threads"] + 4:
        faults.append(f"left over: {first} -> {last}")
    if last["jobs"] or last["kv_bytes"]:
        faults.append(f"work or pages left: {last}")
    return faults


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", default=str(ROOT / "build/cli/overfill"))
    parser.add_argument("--model", default=str(ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf"))
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--clients", type=int, default=8)
    arguments = parser.parse_args()
    server = Server(arguments)
    # Threads and the loop's own descriptors are there after the first requests.
    Traffic(server, 0).tokenize()
    Traffic(server, 0).chat()
    idle(server)
    first, samples, start = server.sample(), [], time.monotonic()
    end = start + arguments.minutes * 60
    clients = [Traffic(server, seed) for seed in range(1, arguments.clients + 1)]
    threads = [threading.Thread(target=c.run, args=(end,)) for c in clients]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        time.sleep(min(10, max(0.1, end - time.monotonic())))
        samples.append((round(time.monotonic() - start), server.sample()))
        print("==> {} s: {}".format(*samples[-1]), file=sys.stderr)
    for thread in threads:
        thread.join(150)
    idle(server)
    time.sleep(2)  # closed connections are noticed
    last = server.sample()
    server.process.send_signal(signal.SIGTERM)
    wrong = [w for c in clients for w in c.wrong]
    faults = judge(samples, first, last)
    code = server.process.wait(60)
    if code:
        faults.append(f"the server ended with {code}")
    json.dump({"minutes": arguments.minutes, "requests": dict(sum((c.counts for c in clients), collections.Counter())),
               "first": first, "after_a_minute": next((s for t, s in samples if t >= WARM_S), None),
               "last": last, "peak_rss_kib": max((s["rss_kib"] for _, s in samples), default=0),
               "wrong": wrong[:5], "n_wrong": len(wrong), "faults": faults}, sys.stdout, indent=1)
    print()
    return 1 if wrong or faults else 0


if __name__ == "__main__":
    sys.exit(main())
