"""Starts the servers that the tests talk to: `real` is the built program with the model, `fake` the
same server with an engine that echoes its prompt (tests/unit/server/fake_engine.h). Tests of the wire
run against both; nothing here depends on what a model says. A server whose parts are missing is
skipped with the reason."""
import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time

import openai
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAM = pathlib.Path(os.environ.get("OVERFILL_BINARY")
                       or os.environ.get("OVERFILL_BIN")
                       or ROOT / "build" / "cli" / "overfill")
FAKE = pathlib.Path(os.environ.get("OVERFILL_FAKE_SERVER")
                    or ROOT / "build" / "tests" / "unit" / "server" / "fake_server")
MODELS = pathlib.Path(os.environ.get("OVERFILL_MODELS") or ROOT / "models")
MODEL = MODELS / "SmolLM2-135M-Instruct.Q4_1.gguf"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Reply:
    def __init__(self, response):
        self.status = response.status
        self.headers = {k.lower(): v for k, v in response.getheaders()}
        self.text = response.read().decode()

    @property
    def json(self):
        return json.loads(self.text)

    @property
    def error(self):
        return self.json["error"]


class Server:
    def __init__(self, command, log, wait=True):
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.log_path = log
        self.key = "k"
        with open(log, "wb") as out:
            self.process = subprocess.Popen([*command, "--port", str(self.port)], stderr=out)
        if wait:
            self.wait_until(lambda: self.get("/health").status == 200, 120)

    def wait_until(self, condition, seconds=10):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended with {self.process.returncode}: {self.log()}")
            try:
                if condition():
                    return
            except OSError:
                pass
            time.sleep(0.02)
        raise AssertionError(f"not so within {seconds} s; log: {self.log()[-2000:]}")

    def request(self, method, path, body=None, headers=None, timeout=120):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        if body is not None and not isinstance(body, (bytes, str)):
            body = json.dumps(body)
        connection.request(method, path, body, {"Authorization": f"Bearer {self.key}",
                                                **(headers or {})})
        reply = Reply(connection.getresponse())
        connection.close()
        return reply

    def get(self, path, **kwargs):
        return self.request("GET", path, **kwargs)

    def post(self, path, body, **kwargs):
        return self.request("POST", path, body, **kwargs)

    def chat(self, content="Say something.", **fields):
        return {"model": self.model, "messages": [{"role": "user", "content": content}],
                "max_tokens": 8, **fields}

    def completion(self, prompt="One two three", **fields):
        return {"model": self.model, "prompt": prompt, "max_tokens": 8, **fields}

    def stream(self, path, body):
        """The events of a stream, parsed, without [DONE]; and whether [DONE] came."""
        reply = self.post(path, {**body, "stream": True})
        assert reply.status == 200, reply.text
        return parse_events(reply.text)

    def metric(self, name, **labels):
        """The sum of a metric's samples that have these labels."""
        total = None
        for line in self.get("/metrics").text.splitlines():
            match = re.fullmatch(r"([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)", line)
            if not match or match[1] != name:
                continue
            found = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
            if all(found.get(k) == v for k, v in labels.items()):
                total = (total or 0) + float(match[3])
        return total

    @property
    def model(self):
        if not hasattr(self, "_model"):
            self._model = self.get("/v1/models").json["data"][0]["id"]
        return self._model

    def client(self, **kwargs):
        return openai.OpenAI(base_url=self.base + "/v1", api_key=self.key, max_retries=0,
                             timeout=120, **kwargs)

    def connect(self, timeout=10):
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout)

    def accepts(self):
        """Whether the port is open."""
        try:
            self.connect().close()
            return True
        except ConnectionRefusedError:
            return False

    def log(self):
        return pathlib.Path(self.log_path).read_text()

    def signal(self, number=signal.SIGTERM):
        self.process.send_signal(number)

    def stop(self):
        """Ends the server and returns its exit code."""
        if self.process.poll() is None:
            self.signal()
        try:
            return self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def parse_events(text):
    events, done = [], False
    for block in text.split("\n\n"):
        if block.startswith(":") or not block:
            continue
        assert block.startswith("data: ") and "\n" not in block, block
        assert not done, "an event after [DONE]"
        if block == "data: [DONE]":
            done = True
        else:
            events.append(json.loads(block[len("data: "):]))
    return events, done


def command_of(kind, extra=()):
    if kind == "fake":
        if not FAKE.exists():
            pytest.skip(f"the fake server is not built: {FAKE}")
        return [str(FAKE), *extra]
    if not PROGRAM.exists():
        pytest.skip(f"the program is not built: {PROGRAM}")
    if not MODEL.exists():
        pytest.skip(f"the model is missing: {MODEL}")
    twins = sorted(p for p in MODELS.glob("*.gguf") if p != MODEL)
    pruned = ["--pruned", str(twins[0])] if twins else []
    return [str(PROGRAM), "serve", "--model", str(MODEL), *pruned, "--host", "127.0.0.1", *extra]


def stop_cleanly(server):
    if server.process.poll() is None:
        assert server.stop() == 0, server.log()[-2000:]
    assert "ERROR: AddressSanitizer" not in server.log()
    assert "WARNING: ThreadSanitizer" not in server.log(), server.log()[-4000:]
    assert "runtime error:" not in server.log()
    assert "LeakSanitizer" not in server.log(), server.log()[-4000:]


@pytest.fixture(scope="session", params=["fake", "real"])
def server(request, tmp_path_factory):
    command = command_of(request.param)
    started = Server(command, tmp_path_factory.mktemp("log") / "log.txt")
    started.kind = request.param
    yield started
    stop_cleanly(started)


@pytest.fixture(scope="session")
def fake(tmp_path_factory):
    started = Server(command_of("fake"), tmp_path_factory.mktemp("log") / "log.txt")
    yield started
    stop_cleanly(started)


@pytest.fixture
def start_fake(tmp_path):
    """start_fake("--drain", "1") gives a fresh server of this test's own."""
    servers = []

    def start(*extra, wait=True):
        servers.append(Server(command_of("fake", extra), tmp_path / f"log{len(servers)}.txt", wait))
        return servers[-1]

    yield start
    for each in servers:
        stop_cleanly(each)


@pytest.fixture
def client(server):
    return server.client()
