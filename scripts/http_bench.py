"""Measures the HTTP side of the server: see scripts/http-bench. One JSON object on stdout."""
import argparse
import http.client
import json
import os
import pathlib
import re
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
os.environ["NO_PROXY"] = "*"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def say(text):
    print("==> " + text, file=sys.stderr)


class Server:
    def __init__(self, arguments, *extra):
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        command = ([arguments.program] if "fake_server" in arguments.program else
                   [arguments.program, "serve", "--model", arguments.model, "--log-level", "warn"])
        self.process = subprocess.Popen([*command, "--port", str(self.port), *extra])
        for _ in range(600):
            try:
                with urllib.request.urlopen(self.base + "/health", timeout=2) as reply:
                    if reply.status == 200:
                        return
            except OSError:
                time.sleep(0.2)
        raise SystemExit("the server is not healthy")

    def rss_kib(self):
        text = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", text)[1])

    def stop(self):
        self.process.terminate()
        return self.process.wait(60)


NGINX = """worker_processes 2; daemon off; pid {dir}/pid; error_log {dir}/error;
events {{ worker_connections 4096; }}
http {{ access_log off; keepalive_requests 1000000; sendfile on; tcp_nodelay on;
  open_file_cache max=10; open_file_cache_valid 1h; server {{ listen 127.0.0.1:{port};
  location = /v1/models {{ default_type application/json; alias {dir}/models.json; }} }} }}
"""


class Nginx:
    """Serves the same bytes, with a process for each of the CPUs that the server may use."""
    def __init__(self, folder, body, n_workers):
        self.port = free_port()
        (folder / "models.json").write_bytes(body)
        (folder / "conf").write_text(NGINX.format(dir=folder, port=self.port)
                                     .replace("worker_processes 2", f"worker_processes {n_workers}"))
        folder.chmod(0o755)
        self.process = subprocess.Popen(["nginx", "-c", str(folder / "conf"), "-p", str(folder)],
                                        stderr=subprocess.DEVNULL)
        time.sleep(0.5)

    def stop(self):
        self.process.terminate()
        self.process.wait(10)


def wrk(port, seconds, cores):
    """Requests a second. The client has the machine's last CPUs, the server under test the first."""
    out = subprocess.run(["wrk", "-t2", "-c64", f"-d{seconds}s", f"http://127.0.0.1:{port}/v1/models"],
                         capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in out or "Socket errors" in out:
        raise SystemExit(out)
    return float(re.search(r"Requests/sec:\s+([\d.]+)", out)[1])


def throughput(arguments):
    """overfill answers on one thread, so nginx gets one worker: the same core count for both."""
    server = Server(arguments)
    body = urllib.request.urlopen(server.base + "/v1/models").read()
    with tempfile.TemporaryDirectory() as folder:
        nginx = Nginx(pathlib.Path(folder), body, 1)
        rates = {"overfill": [], "nginx": []}
        for _ in range(arguments.rounds):
            rates["overfill"].append(wrk(server.port, arguments.seconds, 1))
            rates["nginx"].append(wrk(nginx.port, arguments.seconds, 1))
        nginx.stop()
    server.stop()
    best = {name: max(values) for name, values in rates.items()}
    return {"requests_per_s": rates, "ratio": round(best["overfill"] / best["nginx"], 3)}


def idle(arguments):
    """2,000 connections that have made one request and stay open."""
    n = 2000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    server = Server(arguments, *(["--connections", "4096"] if "fake_server" in arguments.program
                                 else ["--max-connections", "4096"]))
    before = server.rss_kib()
    sockets = []
    for _ in range(n):
        s = socket.create_connection(("127.0.0.1", server.port), timeout=10)
        s.sendall(b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
        if not s.recv(4096).startswith(b"HTTP/1.1 200"):
            raise SystemExit("an idle connection was not served")
        sockets.append(s)
    after = server.rss_kib()
    for s in sockets:
        s.close()
    server.stop()
    return {"connections": n, "mib": round((after - before) / 1024, 1)}


def latencies(port, seconds):
    """Milliseconds of /v1/models on a connection each, one after the other."""
    values, end = [], time.monotonic() + seconds
    while time.monotonic() < end:
        start = time.perf_counter()
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.request("GET", "/v1/models")
        if connection.getresponse().read() == b"":
            raise SystemExit("an empty reply")
        connection.close()
        values.append((time.perf_counter() - start) * 1e3)
        time.sleep(0.002)
    return sorted(values)


def p99(values):
    return round(values[int(len(values) * 0.99)], 3)


def slow(arguments):
    """slowhttptest with 500 connections: slow headers, slow body, slow reading."""
    model = None
    result = {}
    server = Server(arguments)
    model = json.load(urllib.request.urlopen(server.base + "/v1/models"))["data"][0]["id"]
    result["alone_p99_ms"] = p99(latencies(server.port, arguments.seconds))
    kinds = {"headers": ["-H", "-u", server.base + "/v1/models"],
             "body": ["-B", "-u", server.base + "/v1/completions"],
             "read": ["-X", "-k", "3", "-w", "1", "-y", "4", "-n", "1", "-z", "1",
                      "-u", server.base + "/openapi.json"]}
    for kind, options in kinds.items():
        attack = subprocess.Popen(["slowhttptest", "-c", "500", "-r", "250", "-i", "5", "-l",
                                   str(arguments.seconds + 6), *options],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(4)  # until they are connected
        result[f"slow_{kind}_p99_ms"] = p99(latencies(server.port, arguments.seconds))
        attack.wait(arguments.seconds + 60)
    reply = urllib.request.urlopen(urllib.request.Request(
        server.base + "/v1/completions", json.dumps({"model": model, "prompt": "a"}).encode()))
    result["afterwards"] = reply.status
    result["exit_code"] = server.stop()
    return result


def thread_seconds(pid):
    """CPU seconds of every thread so far, by (id, name)."""
    found = {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            nanoseconds = int((task / "schedstat").read_text().split()[0])
            found[task.name, (task / "comm").read_text().strip()] = nanoseconds / 1e9
        except FileNotFoundError:
            pass  # it ended meanwhile
    return found


def stream_again_and_again(server, model, started, stop):
    """One client: a stream after the other, read event by event as a browser would."""
    body = json.dumps({"model": model, "stream": True, "max_tokens": 256, "ignore_eos": True,
                       "messages": [{"role": "user", "content": "Tell me a long story."}]})
    while not stop.is_set():
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        connection.request("POST", "/v1/chat/completions", body)
        reply = connection.getresponse()
        while not stop.is_set() and reply.readline():
            started.set()
        connection.close()


def share(arguments):
    """16 streams of the real engine: how much of the process's CPU time is not the engine's."""
    twin = pathlib.Path(arguments.twin)
    server = Server(arguments, *(["--pruned", str(twin)] if twin.exists() else []))
    model = json.load(urllib.request.urlopen(server.base + "/v1/models"))["data"][0]["id"]
    stop, started = threading.Event(), [threading.Event() for _ in range(16)]
    clients = [threading.Thread(target=stream_again_and_again, args=(server, model, s, stop))
               for s in started]
    for client in clients:
        client.start()
    for s in started:
        s.wait(120)
    before = thread_seconds(server.process.pid)
    time.sleep(max(arguments.seconds, 10))
    after = thread_seconds(server.process.pid)
    stop.set()
    for client in clients:
        client.join()
    server.stop()
    by_name = {}
    for (tid, name), seconds in after.items():
        # The engine names its threads; the loop, its helpers and whatever libraries start are HTTP.
        kind = next((k for k in ("prefill", "decode", "intake") if name.startswith(k)), "http")
        by_name[kind] = by_name.get(kind, 0) + seconds - before.get((tid, name), 0)
    total = sum(by_name.values())
    return {"streams": len(clients), "twin": twin.exists(),
            "seconds": {kind: round(s, 3) for kind, s in by_name.items()},
            "http_share": round(by_name.get("http", 0) / total, 4)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--program", default=str(ROOT / "build/cli/overfill"))
    parser.add_argument("--model", default=str(ROOT / "models/SmolLM2-135M-Instruct.Q4_1.gguf"))
    parser.add_argument("--twin", default=str(ROOT / "models/smollm2-135m-overfill.gguf"))
    parser.add_argument("--seconds", type=int, default=5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("what", nargs="*", default=["throughput", "idle", "slow", "share"])
    arguments = parser.parse_args()
    result = {}
    for what in arguments.what:
        say(what)
        result[what] = {"throughput": throughput, "idle": idle, "slow": slow,
                        "share": share}[what](arguments)
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
