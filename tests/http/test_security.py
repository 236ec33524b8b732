"""Keys, rates, deadlines, TLS, CORS, and the service manager's side: with the fake engine."""
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request

import openai
import pytest

from conftest import ROOT, Server, command_of, free_port, stop_cleanly

CHAT = "/v1/chat/completions"


# --- keys ----------------------------------------------------------------------------------------

def test_key_file_is_read_again_on_sighup(start_fake, tmp_path):
    path = tmp_path / "keys"
    path.write_text("# ours\n\n  first  \nsecond\r\n")
    server = start_fake("--key-file", str(path), "--key", "fixed")
    status = lambda key: server.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status
    assert [status(k) for k in ("first", "second", "fixed", "third", "# ours", "")] == [200] * 3 + [401] * 3
    path.write_text("second\nthird\n")
    server.signal(signal.SIGHUP)
    server.wait_until(lambda: status("third") == 200)
    assert [status(k) for k in ("first", "second", "fixed")] == [401, 200, 200]
    path.write_text("# nothing\n")  # worth an error line, and the keys stay
    server.signal(signal.SIGHUP)
    server.wait_until(lambda: "it has no key" in server.log())
    assert [status(k) for k in ("second", "third", "first")] == [200, 200, 401]


def test_dropped_key_does_not_hurt_its_running_request(start_fake, tmp_path):
    path = tmp_path / "keys"
    path.write_text("old\n")
    server = start_fake("--key-file", str(path), "--tokens", "100000")
    server.key = "old"
    stream = server.client().chat.completions.create(
        **server.chat("!slow", max_tokens=20, temperature=0), extra_body={"ignore_eos": True},
        stream=True)
    next(iter(stream))
    path.write_text("new\n")
    server.signal(signal.SIGHUP)
    server.wait_until(lambda: server.get("/v1/models").status == 401)
    assert [c.choices[0].finish_reason for c in stream][-1] == "length"


@pytest.mark.parametrize("text,words", [("", "it has no key"), (None, "No such file"),
                                        ("x" * 600 + "\n", "keys:1: a key has at most")])
def test_wrong_key_file_is_told_at_start(tmp_path, text, words):
    path = tmp_path / "keys"
    if text is not None:
        path.write_text(text)
    run = subprocess.run([*command_of("fake"), "--port", "0", "--key-file", str(path)],
                         capture_output=True, text=True, timeout=20)
    assert run.returncode == 1 and words in run.stderr and str(path) in run.stderr


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_open_to_all_needs_a_key(start_fake, host):
    run = subprocess.run([*command_of("fake"), "--port", "0", "--host", host], capture_output=True,
                         text=True, timeout=20)
    if "cannot listen" in run.stderr or "Address family" in run.stderr:
        pytest.skip("no IPv6 here")
    assert run.returncode == 1 and "without an API key" in run.stderr
    for extra in (["--key", "k"], ["--allow-open", "1"]):
        server = start_fake("--host", host, *extra)
        assert server.get("/v1/models").status == 200


# --- rates ---------------------------------------------------------------------------------------

def test_requests_per_minute(start_fake, tmp_path):
    path = tmp_path / "keys"
    path.write_text("a\nb\n")
    server = start_fake("--key-file", str(path), "--requests", "3")
    server.key = "a"
    for left in (2, 1, 0):
        reply = server.post(CHAT, server.chat(max_tokens=1))
        assert reply.status == 200 and reply.headers["x-ratelimit-limit-requests"] == "3"
        assert reply.headers["x-ratelimit-remaining-requests"] == str(left)
    reply = server.post(CHAT, server.chat())
    assert reply.status == 429 and reply.error["code"] == "rate_limit_exceeded"
    assert reply.error["type"] == "requests"
    assert 0 < int(reply.headers["retry-after-ms"]) <= 20000
    assert 1 <= int(reply.headers["retry-after"]) <= 20
    assert re.fullmatch(r"(\d+m)?[\d.]+s|\d+ms", reply.headers["x-ratelimit-reset-requests"])
    assert server.get("/v1/models").status == 200  # only generation counts
    server.key = "b"  # each key has its own
    assert server.post(CHAT, server.chat(max_tokens=1)).status == 200
    server.key = "a"
    with pytest.raises(openai.RateLimitError):
        server.client().chat.completions.create(**server.chat())
    assert server.metric("overfill_requests_rejected_total", reason="rate_limit") >= 2


def test_tokens_per_minute(start_fake):
    server = start_fake("--tokens", "60")
    first = server.post(CHAT, server.chat("ab cd ef", max_tokens=50, ignore_eos=True))
    used = first.json["usage"]["total_tokens"]
    second = server.post(CHAT, server.chat("ab cd ef", max_tokens=50, ignore_eos=True))
    assert first.status == second.status == 200
    assert 0 <= int(second.headers["x-ratelimit-remaining-tokens"]) <= 60 - used + 2
    reply = server.post(CHAT, server.chat())  # in debt by now
    assert reply.status == 429 and reply.error["type"] == "tokens"
    assert int(reply.headers["retry-after"]) > 30
    assert re.fullmatch(r"[1-9]\d*m[\d.]+s", reply.headers["x-ratelimit-reset-tokens"])


# --- deadlines -----------------------------------------------------------------------------------

def read_all(s):
    data = b""
    while piece := s.recv(65536):
        data += piece
    return data


@pytest.mark.parametrize("start", [b"", b"GET /health HTTP/1.1\r\nHost: x\r\n"])
def test_slow_headers_are_408(start_fake, start):
    server = start_fake("--header-seconds", "1")
    with server.connect(20) as s:
        s.sendall(start or b"G")
        s.settimeout(0.3)
        data = b""
        for _ in range(40):  # a byte now and then: never idle
            try:
                data = s.recv(1000)
                break
            except TimeoutError:
                s.sendall(b"x")
        assert data.startswith(b"HTTP/1.1 408 "), data
        head, body = data.split(b"\r\n\r\n", 1)
        assert json.loads(body)["error"]["code"] == "timeout"
        assert f"Content-Length: {len(body)}".encode() in head
    assert server.metric("overfill_requests_rejected_total", reason="timeout") == 1


def test_slow_headers_after_a_request_are_408(start_fake):
    server = start_fake("--header-seconds", "1")
    with server.connect(20) as s:
        s.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert s.recv(1000).startswith(b"HTTP/1.1 200 ")
        time.sleep(2.5)  # at rest: no deadline
        s.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert s.recv(1000).startswith(b"HTTP/1.1 200 ")
        s.sendall(b"GET /ver")
        assert read_all(s).startswith(b"HTTP/1.1 408 ")


def test_slow_body_is_408(start_fake):
    server = start_fake("--body-seconds", "1")
    with server.connect(20) as s:
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5000\r\n\r\n{")
        assert read_all(s).startswith(b"HTTP/1.1 408 ")
    server.wait_until(lambda: " 408 " in server.log())
    # A long answer is no slow request.
    reply = server.post(CHAT, server.chat("!slow", max_tokens=100, ignore_eos=True))
    assert reply.status == 200 and reply.json["usage"]["completion_tokens"] == 100


def test_connections_of_one_address(start_fake):
    server = start_fake("--per-address", "4", wait=False)
    sockets = []

    def connect():
        s = server.connect()
        try:
            s.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
            is_served = s.recv(1000).startswith(b"HTTP/1.1 200 ")
        except ConnectionError:
            is_served = False
        (sockets.append if is_served else socket.socket.close)(s)
        return is_served

    server.wait_until(lambda: connect() and len(sockets) == 4)
    assert not connect()
    sockets.pop().close()
    server.wait_until(connect)
    for s in sockets:
        s.close()


# --- TLS, CORS -----------------------------------------------------------------------------------

@pytest.fixture
def certificate(tmp_path):
    if not shutil.which("openssl"):
        pytest.skip("openssl is missing")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                    "-nodes", "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True)
    return cert, key


def test_tls(start_fake, certificate):
    cert, key = certificate
    server = start_fake("--tls-cert", str(cert), "--tls-key", str(key), "--header-seconds", "1",
                        wait=False)
    context = ssl.create_default_context(cafile=cert)
    base = f"https://127.0.0.1:{server.port}"

    def get(path):
        return urllib.request.urlopen(base + path, context=context, timeout=10)

    server.wait_until(lambda: get("/health").status == 200)
    body = json.dumps({"model": "fake", "messages": [{"role": "user", "content": "ab cd ef"}],
                       "temperature": 0, "stream": True}).encode()
    with urllib.request.urlopen(base + CHAT, body, context=context, timeout=20) as reply:
        assert reply.read().decode().endswith("data: [DONE]\n\n")
    with server.connect(10) as s:  # no TLS at all: closed, and the next one is served
        s.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        s.recv(1000)
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain, \
            context.wrap_socket(plain, server_hostname="127.0.0.1") as s:
        assert s.version() in ("TLSv1.2", "TLSv1.3")
        s.sendall(b"GET / HT")  # slow headers end here too
        try:
            assert s.recv(1000) == b""
        except (ssl.SSLError, ConnectionError):
            pass
    old = ssl.create_default_context(cafile=cert)
    try:
        old.minimum_version = ssl.TLSVersion.TLSv1
        old.maximum_version = ssl.TLSVersion.TLSv1_1
    except ValueError:
        return
    with pytest.raises((ssl.SSLError, ConnectionError)):
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as plain:
            old.wrap_socket(plain, server_hostname="127.0.0.1")


def test_client_that_leaves_over_tls_frees_its_work(start_fake, certificate):
    cert, key = certificate
    server = start_fake("--tls-cert", str(cert), "--tls-key", str(key), wait=False)
    context = ssl.create_default_context(cafile=cert)
    base = f"https://127.0.0.1:{server.port}"
    page = lambda: urllib.request.urlopen(base + "/metrics", context=context, timeout=10).read().decode()
    server.wait_until(lambda: "overfill_sequences_decoding" in page())
    body = json.dumps({"model": "fake", "prompt": "!slow", "max_tokens": 2000, "ignore_eos": True,
                       "stream": True}).encode()
    reply = urllib.request.urlopen(base + "/v1/completions", body, context=context, timeout=20)
    server.wait_until(lambda: 'overfill_jobs{model_name="fake"} 1' in page())
    reply.close()
    server.wait_until(lambda: 'overfill_jobs{model_name="fake"} 0' in page())


def test_tls_files_that_do_not_fit_are_told(certificate, tmp_path):
    cert, key = certificate
    for arguments, words in ((["--tls-cert", cert], "both or none"),
                             (["--tls-cert", tmp_path / "no.pem", "--tls-key", key], "no.pem"),
                             (["--tls-cert", cert, "--tls-key", cert], "matching pair")):
        run = subprocess.run([*command_of("fake"), "--port", "0", *map(str, arguments)],
                             capture_output=True, text=True, timeout=20)
        assert run.returncode == 1 and words in run.stderr, run.stderr


def test_cors_is_off_by_default(fake):
    reply = fake.get("/v1/models", headers={"Origin": "https://a.example"})
    assert not [h for h in reply.headers if h.startswith("access-control") or h == "vary"]


def test_cors(start_fake):
    server = start_fake("--cors", "https://a.example, http://localhost:3000")
    listed, other = {"Origin": "http://localhost:3000"}, {"Origin": "https://b.example"}
    for reply in (server.get("/v1/models", headers=listed),
                  server.post(CHAT, server.chat(), headers=listed),
                  server.post(CHAT, server.chat(stream=True), headers=listed),
                  server.post(CHAT, {}, headers=listed)):
        assert reply.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert "x-request-id" in reply.headers["access-control-expose-headers"]
        assert reply.headers["vary"] == "origin"
    assert "access-control-allow-origin" not in server.get("/v1/models", headers=other).headers
    preflight = server.request("OPTIONS", CHAT, headers={
        **listed, "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, content-type, x-stainless-os"})
    assert preflight.status == 204 and "POST" in preflight.headers["access-control-allow-methods"]
    assert preflight.headers["access-control-allow-headers"] == "authorization, content-type, x-stainless-os"
    everyone = start_fake("--cors", "*")
    assert everyone.get("/", headers=other).headers["access-control-allow-origin"] == "https://b.example"


# --- the service manager -------------------------------------------------------------------------

@pytest.fixture
def notify(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.bind(str(tmp_path / "notify"))
        s.settimeout(20)
        yield s


def test_readiness_and_signs_of_life_are_told(notify, tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", notify.getsockname())
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    server = Server(command_of("fake", ["--load-ms", "300"]), tmp_path / "log", wait=False)
    try:
        # A sign of life may come before readiness: the loop lives while the model is loaded.
        while (word := notify.recv(100)) == b"WATCHDOG=1":
            pass
        assert word == b"READY=1"
        assert server.get("/health").status == 200
        assert notify.recv(100) == b"WATCHDOG=1"
        server.signal()
        while (word := notify.recv(100)) == b"WATCHDOG=1":
            pass
        assert word == b"STOPPING=1"
        assert server.process.wait(20) == 0
    finally:
        server.process.kill()


def test_socket_that_is_handed_over_outlives_the_server(tmp_path):
    """As systemd does it: the socket is there before the server and after it; who connects in
    between waits for the next one."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=16)
    port = listener.getsockname()[1]

    def start(log):
        def hand_over():
            os.dup2(listener.fileno(), 3)
            os.set_inheritable(3, True)
            os.environ["LISTEN_PID"], os.environ["LISTEN_FDS"] = str(os.getpid()), "1"
        # The shell's exec keeps the pid, which the variables must name.
        server = Server.__new__(Server)
        server.port, server.base, server.log_path, server.key = port, "", log, "k"
        with open(log, "wb") as out:
            server.process = subprocess.Popen(
                ["sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"', "sh", *command_of("fake"),
                 "--port", str(free_port())],
                stderr=out, pass_fds=(3,), preexec_fn=lambda: os.dup2(listener.fileno(), 3))
        return server

    saved = os.dup(3) if os.path.exists("/proc/self/fd/3") else None
    first = start(tmp_path / "log1")
    first.wait_until(lambda: first.get("/health").status == 200)
    first.signal()
    assert first.process.wait(10) == 0
    waiting = socket.create_connection(("127.0.0.1", port), timeout=30)
    waiting.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    second = start(tmp_path / "log2")
    assert read_all(waiting).startswith(b"HTTP/1.1 200 ")
    stop_cleanly(second)
    listener.close()
    if saved is not None:
        os.close(saved)


def test_unit_files_are_valid():
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is missing")
    folder = ROOT / "contrib" / "systemd"
    run = subprocess.run(["systemd-analyze", "verify", "--man=no", *folder.glob("overfill.*")],
                         capture_output=True, text=True)
    wrong = [l for l in run.stderr.splitlines() if "overfill" in l and "not executable" not in l
             and "No such file" not in l]
    assert not wrong, run.stderr
