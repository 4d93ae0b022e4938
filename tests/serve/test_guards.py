"""Who is answered, and what the log says about it."""

from __future__ import annotations

import json

import pytest

from imgcls.portable import PortableModel
from imgcls.serve.client import Client
from tests.inputs.images import encoded
from tests.serve.conftest import picture, serving

pytest.importorskip("fastapi")

from imgcls.serve.guards import Guards

PNG = encoded(picture(), "PNG")
KEY = "correct-horse"


def test_allowed_hosts(model: PortableModel) -> None:
    guards = Guards(allowed_hosts=["Images.example.org", "*.example.com", "::1"])
    with serving(model, application={"guards": guards}) as server:
        for host in ("images.example.org", "IMAGES.EXAMPLE.ORG:8080", "a.b.example.com", "[::1]:80"):
            assert server.ask("GET", "/models", Host=host).status == 200, host
        for host in (
            "evil.example",
            "images.example.org.evil.example",
            "127.0.0.1",
            "[",
            "example.com",
            "a@evil.example",
        ):
            answer = server.ask("GET", "/models", Host=host)
            assert (answer.status, list(answer.json)) == (421, ["error"]), host
            assert server.ask("GET", "/ping", Host=host).status == 200


def test_nothing_but_health_and_empty_pages_without_the_key(model: PortableModel) -> None:
    with serving(model, application={"guards": Guards(api_key=KEY)}) as server:
        for path in ("/ping", "/health", "/", "/docs"):
            assert server.ask("GET", path).status == 200, path
        for path in ("/models", "/version", "/metrics", "/page", "/examples/0"):
            answer = server.ask("GET", path)
            assert (answer.status, list(answer.json)) == (401, ["error"]), path
        assert server.post(PNG).status == 401
        assert server.post(PNG, Authorization=f"Bearer {KEY}x").status == 401
        assert server.post(PNG, Authorization=f"Basic {KEY}").status == 401
        assert server.post(PNG, Authorization="Bearer schl\xfcssel").status == 401
        assert server.post(PNG, Authorization=f"bearer {KEY}").status == 200
        assert server.post(PNG, X_API_Key=KEY).status == 200
        assert len(Client(server.url, api_key=KEY).predict(PNG)) == 1
        assert "HTTPBearer" in server.ask("GET", "/openapi.json").body.decode()


def test_only_the_named_origins_may_ask(model: PortableModel) -> None:
    app = "https://app.example.org"
    asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization,content-type"}
    with serving(model, application={"guards": Guards(cors=[app], api_key=KEY)}) as server:
        allowed = server.ask("OPTIONS", "/invocations", Origin=app, **asked)
        assert (allowed.status, allowed.headers["access-control-allow-origin"]) == (200, app)
        answer = server.post(PNG, Origin=app, Authorization=f"Bearer {KEY}")
        assert answer.headers["access-control-allow-origin"] == app
        other = server.ask("OPTIONS", "/invocations", Origin="https://evil.example", **asked)
        assert "access-control-allow-origin" not in other.headers
    with serving(model) as server:
        assert "access-control-allow-origin" not in server.post(PNG, Origin=app).headers


def test_every_request_has_an_id_and_a_line_in_the_log(model: PortableModel) -> None:
    lines: list[str] = []
    with serving(model, application={"guards": Guards(log=lines.append, api_key=KEY)}) as server:
        named = server.post(PNG, X_Request_Id="order-7", X_API_Key=KEY)
        refused = server.post(PNG, X_Request_Id='two\tlines " and more')
    assert named.headers["x-request-id"] == "order-7"
    first, second = map(json.loads, lines)
    assert (first["request_id"], first["status"], first["path"]) == ("order-7", 200, "/invocations")
    assert first["bytes"] == len(named.body)
    assert (second["request_id"], second["status"]) == (refused.headers["x-request-id"], 401)
    assert second["request_id"].isalnum()
    assert KEY not in "".join(lines)
