"""Raw sockets: clients that leave at every stage, half requests, pipelining, slow readers. The server
must free the engine's work at once and serve everybody else."""
import http.client
import json
import resource
import socket
import struct
import time

import pytest

CHAT = "/v1/chat/completions"


def raw(server, body, path=CHAT, extra=""):
    data = json.dumps(body).encode()
    return (f"POST {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer k\r\n"
            f"Content-Length: {len(data)}\r\n{extra}\r\n").encode() + data


def reset(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    s.close()


def half_close(s):
    s.shutdown(socket.SHUT_WR)


def is_idle(server):
    return (server.metric("overfill_jobs") == 0 and server.metric("vllm:num_requests_running") == 0
            and server.metric("vllm:num_requests_waiting") == 0)


LONG = dict(max_tokens=1500, ignore_eos=True, temperature=0)


@pytest.mark.parametrize("leave", [socket.socket.close, reset, half_close])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("after", [0.02, 0.6])
def test_client_that_leaves_frees_its_work(server, leave, stream, after):
    text = "!slow" if server.kind == "fake" else "word " * 200
    cancelled = server.metric("overfill_cancelled_total")
    s = server.connect()
    s.sendall(raw(server, server.chat(text, stream=stream, **LONG)))
    server.wait_until(lambda: server.metric("overfill_jobs") == 1)
    time.sleep(after)
    leave(s)
    start = time.monotonic()
    server.wait_until(lambda: is_idle(server))
    assert time.monotonic() - start < 2
    assert server.metric("overfill_cancelled_total") == cancelled + 1
    s.close()


def test_one_of_many_leaves(server):
    text = "!slow" if server.kind == "fake" else "x"
    sockets = [server.connect() for _ in range(8)]
    for s in sockets:
        s.sendall(raw(server, server.chat(text, stream=True, max_tokens=30, ignore_eos=True,
                                          temperature=0)))
    for s in sockets[:4]:
        assert s.recv(10)
        reset(s)
    for s in sockets[4:]:
        s.settimeout(60)
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            piece = s.recv(65536)
            assert piece, data[-300:]
            data += piece
        assert b"data: [DONE]" in data
        s.close()
    server.wait_until(lambda: is_idle(server))


def test_pipelined_requests_are_answered_in_order(server):
    with server.connect(60) as s:
        s.sendall(raw(server, server.chat(max_tokens=2)) + raw(server, server.completion(max_tokens=2),
                                                               "/v1/completions")
                  + b"GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        data = b""
        while piece := s.recv(65536):
            data += piece
    assert data.count(b"HTTP/1.1 200 OK") == 3
    assert data.index(b"chatcmpl-") < data.index(b'"cmpl-') < data.index(b'"version"')


def test_keep_alive(server):
    before = server.metric("overfill_connections_total")
    with server.connect(60) as s:
        for _ in range(20):
            s.sendall(raw(server, server.chat(max_tokens=1)))
            data = s.recv(65536)
            while b"\r\n\r\n" not in data or not data.endswith(b"}"):
                data += s.recv(65536)
            assert data.startswith(b"HTTP/1.1 200 OK")
    assert server.metric("overfill_connections_total") - before == 2  # this one and the metrics'


def test_http_1_0_stream(server):
    with server.connect(60) as s:
        s.sendall(raw(server, server.chat(stream=True, max_tokens=2)).replace(b"HTTP/1.1", b"HTTP/1.0"))
        data = b""
        while piece := s.recv(65536):
            data += piece
    head, body = data.split(b"\r\n\r\n", 1)
    assert b"chunked" not in head.lower() and body.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("data", [
    b"\r\n\r\n", b"nonsense\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\x00\xff" * 500,
    b"GET /" + b"a" * 100000 + b" HTTP/1.1\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 20000 + b"\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999999999999\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: abc\r\n\r\nabc",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
    b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n{}",
], ids=range(14))
def test_broken_requests(server, data):
    with server.connect(2) as s:
        try:
            s.sendall(data)
            s.shutdown(socket.SHUT_WR)
            while s.recv(65536):
                pass
        except OSError:
            pass  # a reset, or no answer: both are fine
    assert server.get("/health").status == 200


def test_path_ends_where_it_was_sent(server):
    """A NUL in it, escaped as URLs are, does not cut it short; other escapes mean what they stand for."""
    status = lambda path: server.get(path).status
    assert [status(p) for p in ("/v1/models%00", "/v1/models%00x", "/%00", "/v1/models/%00")] == [404] * 4
    assert [status(p) for p in ("/v1%2Fmodels", "/v1/mod%65ls", "/v1/models?x=%00")] == [200] * 3


def test_slow_body_does_not_hold_others(server):
    data = raw(server, server.chat(max_tokens=1))
    with server.connect(30) as s:
        for i in range(0, len(data), 40):
            s.sendall(data[i:i + 40])
            start = time.monotonic()
            assert server.get("/version").status == 200
            assert time.monotonic() - start < 0.5
        assert s.recv(20).startswith(b"HTTP/1.1 200")


def test_slow_reader_does_not_hold_others(server):
    with server.connect(60) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        n_tokens = 300 if server.kind == "fake" else 80  # more than the sockets' buffers hold
        s.sendall(raw(server, server.chat("ab cd ef", stream=True, max_tokens=n_tokens, n=4,
                                          ignore_eos=True, temperature=0)))
        time.sleep(0.5)
        assert server.post(CHAT, server.chat(max_tokens=1)).status == 200
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            piece = s.recv(2048)
            assert piece
            data += piece
    assert data.count(b'"finish_reason":"length"') == 4
    server.wait_until(lambda: is_idle(server))


def test_many_idle_connections(server):
    sockets = [server.connect() for _ in range(200)]
    for s in sockets[::2]:
        s.sendall(b"GET / HT")
    assert server.post(CHAT, server.chat(max_tokens=1)).status == 200
    for s in sockets:
        s.close()


@pytest.mark.parametrize("limit", ["descriptors", "connections"])
def test_limit_of_connections_is_survived(start_fake, limit):
    server = start_fake(*(["--connections", "40"] if limit == "connections" else []))
    if limit == "descriptors":
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (64, 64))
    kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    kept.request("POST", CHAT, json.dumps(server.chat("!slow ab", max_tokens=30, ignore_eos=True)))
    server.wait_until(lambda: server.metric("overfill_jobs") == 1)
    sockets = [server.connect() for _ in range(200)]  # the kernel takes them, the server cannot all
    whole = json.loads(kept.getresponse().read())  # who was there before does not notice
    assert whole["usage"]["completion_tokens"] == 30
    kept.request("GET", "/v1/models")
    assert kept.getresponse().status == 200
    for s in sockets:
        s.close()
    server.wait_until(lambda: server.get("/health", timeout=2).status == 200, 20)
    assert server.post(CHAT, server.chat(max_tokens=1)).status == 200
