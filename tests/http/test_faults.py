"""Errors of the engine, full queues, loading, draining, keys: with the fake engine, which fails when
its prompt says so."""
import concurrent.futures
import json
import signal
import threading
import time

import http.client
import openai
import pytest

from conftest import Reply

CHAT = "/v1/chat/completions"


def test_engine_error_before_the_first_byte_is_a_status(fake):
    for stream in (False, True):
        reply = fake.post(CHAT, fake.chat("!refuse", stream=stream))
        assert reply.status == 500 and reply.error["type"] == "server_error"
        assert reply.error["code"] == "internal_error" and reply.error["param"] is None


def test_no_memory_is_503(fake):
    reply = fake.post(CHAT, fake.chat("!memory"))
    assert reply.status == 503 and reply.error["code"] == "out_of_memory"
    assert reply.headers["retry-after"]


def test_error_in_a_stream_is_told_and_the_body_is_cut(fake):
    connection = http.client.HTTPConnection("127.0.0.1", fake.port, timeout=10)
    connection.request("POST", CHAT, json.dumps(fake.chat("!error with more text", temperature=0,
                                                          stream=True)))
    response = connection.getresponse()
    assert response.status == 200
    with pytest.raises(http.client.IncompleteRead) as caught:
        response.read()
    text = caught.value.partial.decode()
    assert "[DONE]" not in text
    last = json.loads(text.strip().split("\n\n")[-1][len("data: "):])
    assert last["error"]["code"] == "internal_error" and "choices" not in last


def test_error_in_a_stream_is_raised_by_the_client(fake):
    with pytest.raises(openai.APIError):
        for _ in fake.client().chat.completions.create(**fake.chat("!error with more text"),
                                                       stream=True):
            pass


def test_error_of_one_prompt_fails_the_whole_request(fake):
    before = fake.metric("overfill_jobs")
    reply = fake.post("/v1/completions", fake.completion(["!slow abc def", "!refuse"],
                                                         max_tokens=500, ignore_eos=True))
    assert reply.status == 500
    fake.wait_until(lambda: fake.metric("overfill_jobs") == before)


def test_full_queue_is_429(fake):
    body = fake.completion(["!slow " + "x" * 50] * 100, max_tokens=100)
    reply = fake.post("/v1/completions", body)
    assert reply.status == 429 and reply.error["code"] == "rate_limit_exceeded"
    assert int(reply.headers["retry-after"]) >= 1
    fake.wait_until(lambda: fake.metric("overfill_jobs") == 0)
    assert fake.metric("overfill_requests_rejected_total", reason="queue_full") >= 1
    with pytest.raises(openai.RateLimitError):
        fake.client().completions.create(**body)
    fake.wait_until(lambda: fake.metric("overfill_jobs") == 0)


def test_loading(start_fake):
    server = start_fake("--load-ms", "1500", wait=False)
    server.wait_until(lambda: server.get("/health").status == 503)
    health = server.get("/health")
    assert health.json["status"] == "loading" and health.error["code"] == "model_loading"
    for reply in (server.post(CHAT, {"model": "x"}), server.get("/v1/models")):
        assert reply.status == 503 and reply.error["code"] == "model_loading"
    assert server.get("/metrics").status == 200
    server.wait_until(lambda: server.get("/health").status == 200)
    assert server.post(CHAT, server.chat()).status == 200


def test_stop_while_loading(start_fake):
    server = start_fake("--load-ms", "800", wait=False)
    server.wait_until(lambda: server.get("/health").status == 503)
    assert server.stop() == 0


class Kept:
    """A connection that stays open between requests."""
    def __init__(self, server):
        self.connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        self.request("GET", "/version")

    def request(self, method, path, body=None):
        self.connection.request(method, path, json.dumps(body) if body else None)
        return Reply(self.connection.getresponse())


def stream_in_background(server, **fields):
    """Starts a long stream; returns (thread, result) once its first bytes are there."""
    result = {}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.request("POST", CHAT, json.dumps(server.chat("!slow", stream=True, temperature=0,
                                                            **fields)))
    response = connection.getresponse()

    def read():
        try:
            result["text"] = response.read().decode()
        except http.client.IncompleteRead as error:
            result["text"], result["cut"] = error.partial.decode(), True

    thread = threading.Thread(target=read)
    thread.start()
    return thread, result


def test_sigterm_lets_running_answers_finish(start_fake):
    server = start_fake("--drain", "20")
    thread, result = stream_in_background(server, max_tokens=60, ignore_eos=True)
    waiting = concurrent.futures.ThreadPoolExecutor().submit(
        server.post, CHAT, server.chat("!slow", max_tokens=40, ignore_eos=True))
    server.wait_until(lambda: server.metric("overfill_jobs") == 2)
    kept = [Kept(server) for _ in range(2)]
    server.signal()
    server.wait_until(lambda: not server.accepts())
    # Who was connected is still served, once.
    health = kept[0].request("GET", "/health")
    assert health.status == 503 and health.json["status"] == "draining"
    late = kept[1].request("POST", CHAT, server.chat("ab", temperature=0))
    assert late.status == 200 and late.json["choices"][0]["message"]["content"] == "ab"
    assert late.headers["connection"].lower() == health.headers["connection"].lower() == "close"
    thread.join(20)
    assert "cut" not in result and result["text"].endswith("data: [DONE]\n\n")
    assert waiting.result(20).json["usage"]["completion_tokens"] == 40
    assert server.process.wait(10) == 0


def test_sigterm_under_load_fails_no_request(start_fake):
    """16 clients send one request after another on connections of their own and are stopped in the
    middle. Every request that was sent gets its whole answer; only connecting may be refused."""
    server = start_fake("--drain", "20")
    done, failures = [], []

    def work(i):
        while True:
            try:
                kept = Kept(server)
            except OSError:
                return  # the port is closed
            while True:
                try:
                    reply = kept.request("POST", CHAT, server.chat("ab cd ef", max_tokens=20,
                                                                   temperature=0, stream=i % 2 == 0))
                except (OSError, http.client.HTTPException) as error:
                    failures.append(repr(error))
                    return
                if reply.status != 200 or not ("[DONE]" in reply.text or "usage" in reply.text):
                    failures.append(reply.text)
                done.append(i)
                if reply.headers.get("connection", "").lower() == "close":
                    break

    server.model
    threads = [threading.Thread(target=work, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    server.wait_until(lambda: len(done) > 200, 30)
    server.signal()
    for thread in threads:
        thread.join(30)
    assert server.process.wait(10) == 0
    assert not failures, failures[:3]


def test_model_file_cut_while_it_is_served(tmp_path):
    """The answer stays the same: nothing is read from the file any more."""
    from conftest import MODEL, Server, command_of, stop_cleanly
    import shutil
    command = command_of("real")
    copy = tmp_path / "model.gguf"
    shutil.copyfile(MODEL, copy)
    command[command.index("--model") + 1] = str(copy)
    server = Server(command, tmp_path / "log.txt")
    body = server.completion("Once upon a time", temperature=0, cache_prompt=False)
    before = server.post("/v1/completions", body).json["choices"]
    with open(copy, "r+b") as file:
        file.truncate(100)
    assert server.post("/v1/completions", body).json["choices"] == before
    assert server.post("/v1/completions", server.completion("Zürich, 北京 🙂")).status == 200
    stop_cleanly(server)


def test_drain_deadline_cancels(start_fake):
    server = start_fake("--drain", "1")
    thread, result = stream_in_background(server, max_tokens=2000, ignore_eos=True)
    start = time.monotonic()
    server.signal()
    assert server.process.wait(10) == 0
    assert time.monotonic() - start < 6
    thread.join(10)
    assert result["cut"] and '"code":"server_shutting_down"' in result["text"]


def test_second_signal_ends_at_once(start_fake):
    server = start_fake("--drain", "60")
    thread, result = stream_in_background(server, max_tokens=2000, ignore_eos=True)
    server.signal(signal.SIGINT)
    server.wait_until(lambda: not server.accepts())
    start = time.monotonic()
    server.signal(signal.SIGINT)
    assert server.process.wait(10) == 0
    assert time.monotonic() - start < 2
    thread.join(10)
    assert result["cut"]


def test_keys(start_fake):
    server = start_fake("--key", "secret", wait=False)
    server.key = "secret"
    server.wait_until(lambda: server.get("/health").status == 200)
    assert server.get("/v1/models").status == 200
    assert server.get("/v1/models", headers={"Authorization": "", "X-Api-Key": "secret"}).status == 200
    for wrong in ("Bearer secreT", "Bearer ", "Bearer secretsecret", "Basic secret", ""):
        reply = server.get("/v1/models", headers={"Authorization": wrong})
        assert reply.status == 401 and reply.error["code"] == "invalid_api_key"
    reply = server.post(CHAT, server.chat(), headers={"Authorization": "Bearer x"})
    assert reply.status == 401
    assert server.get("/health", headers={"Authorization": ""}).status == 200
    server.key = "wrong"
    with pytest.raises(openai.AuthenticationError):
        server.client().models.list()


def test_silent_stream_gets_pings(start_fake):
    server = start_fake("--ping", "1", "--token-us", "2500000")
    body = server.chat("abcd", max_tokens=2, temperature=0, stream=True)
    text = server.post(CHAT, body).text
    assert ": ping\n\n" in text and text.endswith("data: [DONE]\n\n")
    text = server.post(CHAT, {**body, "sse_ping_interval": -1}).text
    assert ": ping" not in text


def test_body_limit(start_fake):
    server = start_fake("--max-body", "10000")
    assert server.post(CHAT, server.chat("x" * 2000)).status == 200
    reply = server.post(CHAT, server.chat("x" * 20000))
    assert reply.status == 413 and reply.error["code"] == "request_too_large"
    with server.connect() as s:  # declared far beyond: refused with the headers alone
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
        assert s.recv(100).startswith(b"HTTP/1.1 413 ")
    with server.connect() as s:  # chunked: found while it comes in
        s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(20):
            s.sendall(b"3e8\r\n" + b"x" * 1000 + b"\r\n")
        s.sendall(b"0\r\n\r\n")
        assert s.recv(100).startswith(b"HTTP/1.1 413 ")
