"""Slow and idle connections take nothing from other clients."""

from __future__ import annotations

import http.client
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from imgcls.portable import PortableModel
from imgcls.serve.service import Limits
from tests.inputs.images import encoded
from tests.serve.conftest import Server, picture, serving
from tests.serve.test_service import wait_until

pytest.importorskip("fastapi")

PNG = encoded(picture(), "PNG")
SLOW_BODY = b"POST /invocations HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\na"
PING = b"GET /ping HTTP/1.1\r\nHost: a\r\n\r\n"


@contextmanager
def connections(server: Server, count: int, content: bytes) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        opened = []
        for _ in range(count):
            opened.append(stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=20)))
            if content:
                opened[-1].sendall(content)
        yield opened


def status_of(connection: socket.socket) -> int:
    """Read a whole response, however many packets it comes in."""
    response = http.client.HTTPResponse(connection)
    response.begin()
    response.read()
    return response.status


def is_closed(connection: socket.socket) -> bool:
    """Wait until the server closes the connection."""
    try:
        while connection.recv(1000):
            pass
    except ConnectionResetError:
        pass
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("content", [b"", b"GET /ping HTTP/1.1\r\nX: "])
def test_a_connection_without_a_whole_head_is_closed(content: bytes, model: PortableModel) -> None:
    with serving(model, head_seconds=0.2) as server, connections(server, 3, content) as opened:
        assert all(map(is_closed, opened))
        assert server.ask("GET", "/ping").status == 200


@pytest.mark.parametrize("at_once", [True, False])
def test_a_second_request_has_to_send_its_head_too(at_once: bool, model: PortableModel) -> None:
    with serving(model, head_seconds=0.2) as server, connections(server, 1, PING + b"GET /pi" * at_once) as [half]:
        assert status_of(half) == 200
        if not at_once:
            half.sendall(b"GET /pi")
        assert is_closed(half)


def test_an_idle_connection_is_kept(model: PortableModel) -> None:
    with serving(model, head_seconds=0.1) as server, connections(server, 1, PING) as [idle]:
        assert status_of(idle) == 200
        with connections(server, 1, b"GET /pi") as [half]:
            assert is_closed(half), "more than head_seconds have gone by"
        idle.sendall(PING)
        assert status_of(idle) == 200


def test_more_connections_close_the_oldest_that_wait(model: PortableModel) -> None:
    with serving(model, max_connections=8) as server, connections(server, 1, SLOW_BODY) as [slow]:
        wait_until(lambda: server.service._bytes == 1)
        with connections(server, 20, b"GET /ping HTTP/1.1\r\nX: ") as opened:
            assert server.ask("GET", "/ping").status == 200
            assert server.post(PNG).status == 200
            assert all(map(is_closed, opened[:12]))
        slow.sendall(b"a" * 499)
        assert b"400 Bad Request" in slow.recv(1000), "a request in progress is not closed"


def test_slow_bodies_take_no_place(model: PortableModel) -> None:
    with serving(model, replace(Limits(), requests=4)) as server, connections(server, 64, SLOW_BODY):
        wait_until(lambda: server.service._bytes == 64)
        assert server.post(PNG).status == 200
        assert server.ask("GET", "/ping").status == 200


def test_a_body_below_the_least_rate_is_refused(model: PortableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imgcls.serve.bodies.GRACE_SECONDS", 0.1)
    with serving(model) as server, connections(server, 1, SLOW_BODY) as [slow]:
        assert b"408 Request Timeout" in slow.recv(1000)


def test_bodies_that_arrive_are_bounded(model: PortableModel) -> None:
    with (
        serving(model, replace(Limits(), bytes=3000)) as server,
        connections(server, 1, SLOW_BODY.replace(b"500", b"2001") + b"a" * 1999),
    ):
        wait_until(lambda: server.service._bytes == 2000)
        assert server.post(bytes(2000)).status == 503
