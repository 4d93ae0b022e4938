"""Images are fetched from public addresses only, however an address is spelled."""

from __future__ import annotations

import ipaddress
import socket
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest

from imgcls.portable import PortableModel
from imgcls.serve.refusals import Refusal
from imgcls.serve.urls import Fetcher, is_public, resolve
from tests.inputs.images import encoded
from tests.serve.conftest import picture, serving

PNG = encoded(picture(), "PNG")
PUBLIC = "93.184.216.34"


@dataclass
class Web:
    """Hosts that are all one server on loopback; records what a fetcher connects to."""

    port: int
    answers: dict[str, bytes]
    names: dict[str, list[list[str]]] = field(default_factory=dict)
    """The addresses of each host: of the first lookup, the second, …"""
    connected: list[tuple[str, int]] = field(default_factory=list)
    requests: list[bytes] = field(default_factory=list)

    def resolve(self, host: str, port: int) -> list[str]:
        lookups = self.names.get(host)
        if lookups is None:
            return resolve(host, port)
        return lookups.pop(0) if len(lookups) > 1 else lookups[0]

    def connect(self, address: tuple[str, int], seconds: float) -> socket.socket:
        self.connected.append(address)
        assert is_public(address[0]), "only public addresses may be connected to"
        return socket.create_connection(("127.0.0.1", self.port), seconds)

    def fetcher(self, **options: object) -> Fetcher:
        return Fetcher(resolve=self.resolve, connect=self.connect, **options)  # type: ignore[arg-type]


def head(status: str = "200 OK", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def redirect(target: str) -> bytes:
    return head("302 Found", Location=target, Content_Length="0")


@contextmanager
def run_web(answer: Callable[[socket.socket, bytes], None] | None = None) -> Iterator[Web]:
    web = Web(0, {"/a.png": head(Content_Type="image/png", Content_Length=str(len(PNG))) + PNG})

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            request = self.request.recv(65536)
            web.requests.append(request)
            path = request.split(b" ")[1].decode() if request.startswith(b"GET") else ""
            try:
                if answer is not None:
                    answer(self.request, request)
                else:
                    self.request.sendall(web.answers.get(path, head("404 Not Found", Content_Length="0")))
            except OSError:
                pass  # the client has closed the connection

    class Threaded(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Threaded(("127.0.0.1", 0), Handler) as server:
        web.port = server.server_address[1]
        web.names["pictures.example"] = [[PUBLIC]]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield web
        finally:
            server.shutdown()
            thread.join()


def refusal_of(fetcher: Fetcher, url: str) -> Refusal:
    with pytest.raises(Refusal) as error:
        fetcher.fetch(url)
    return error.value


def test_an_image_is_fetched_from_the_checked_address() -> None:
    with run_web() as web:
        assert web.fetcher().fetch("http://pictures.example/a.png") == PNG
        assert web.connected == [(PUBLIC, 80)]
        assert b"Host: pictures.example\r\n" in web.requests[0]


def test_a_name_that_changes_its_address_is_connected_where_it_was_checked() -> None:
    """DNS rebinding: public when checked, private afterwards."""
    with run_web() as web:
        web.names["rebinding.example"] = [[PUBLIC], ["127.0.0.1"]]
        assert web.fetcher().fetch("http://rebinding.example/a.png") == PNG
        assert web.connected == [(PUBLIC, 80)]
        assert refusal_of(web.fetcher(), "http://rebinding.example/a.png").status == 403


SPELLINGS = [
    "127.0.0.1", "127.1", "127.0.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1", "017700000001", "0", "0.0.0.0",
    "localhost", "localhost.", "LOCALHOST", "[::1]", "[::]", "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]", "[::127.0.0.1]",
    "[::ffff:7f00:1]", "10.0.0.1", "10.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "2852039166", "0xa9fea9fe", "[::ffff:169.254.169.254]", "[fe80::1]", "[fd00:ec2::254]", "[fc00::1]", "100.64.0.1",
    "192.0.0.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "[ff02::1]", "[64:ff9b::7f00:1]",
    "[64:ff9b::a9fe:a9fe]", "[2002:7f00:1::]", "[2002:a00:1::1]", "[2001:db8::1]", "１２７.0.0.1", "127。0。0。1",
]  # fmt: skip


@pytest.mark.parametrize("host", SPELLINGS)
def test_private_addresses_are_not_reached_in_any_spelling(host: str) -> None:
    with run_web() as web:
        # 424: this system's resolver does not accept the spelling as an address
        assert refusal_of(web.fetcher(), f"http://{host}/a.png").status in (403, 424)
        assert refusal_of(web.fetcher(), f"https://{host}/a.png").status in (403, 424)
        assert not web.connected


def test_spellings_of_loopback_are_resolved() -> None:
    """The tests above must not pass merely because nothing resolves."""
    for host in ("127.0.0.1", "127.1", "2130706433", "0x7f000001", "::1", "::ffff:127.0.0.1"):
        assert not any(is_public(address) for address in resolve(host, 80)), host


# https://www.iana.org/assignments/iana-ipv4-special-registry and -ipv6-special-registry, multicast, site-local
# addresses, and the metadata services of clouds.
SPECIAL = """
0.0.0.0/8 0.0.0.0/32 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.0.0/29
192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/32 192.0.0.171/32 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24
192.88.99.0/24 192.88.99.2/32 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4
240.0.0.0/4 255.255.255.255/32 168.63.129.16/32 192.0.0.192/32 100.100.100.200/32
::1/128 ::/128 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32 2001:1::1/128 2001:1::2/128 2001:1::3/128
2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28 2001:20::/28 2001:30::/28 2001:db8::/32 2620:4f:8000::/48
3fff::/20 5f00::/16 fc00::/7 fe80::/10 fec0::/10 ff00::/8 fd00:ec2::254/128
"""
# Networks that embed IPv4 addresses: as public as these.
EMBEDDING = ["::ffff:{}", "64:ff9b::{}", "2002:{hex}::1", "::{}"]


def known_to_python() -> list[str]:
    constants = [ipaddress.IPv4Address("0.0.0.0")._constants, ipaddress.IPv6Address("::")._constants]  # type: ignore[attr-defined]
    return [str(network) for known in constants for network in known._private_networks]


@pytest.mark.parametrize("network", sorted({*SPECIAL.split(), *known_to_python()}))
def test_special_networks_are_not_public(network: str) -> None:
    parsed = ipaddress.ip_network(network)
    size = parsed.num_addresses
    for address in {parsed[0], parsed[size // 2], parsed[-1]}:
        if network == "::ffff:0:0/96" and is_public(str(address.ipv4_mapped)):  # type: ignore[union-attr]
            continue
        assert not is_public(str(address)), address
        if parsed.version == 4:
            digits = f"{int(address):08x}"
            for form in EMBEDDING:
                assert not is_public(form.format(address, hex=f"{digits[:4]}:{digits[4:]}")), (form, address)


def test_ordinary_addresses_are_public() -> None:
    for address in (PUBLIC, "1.1.1.1", "168.63.129.17", "2606:4700::1111", "2a00:1450::1", "2001:4860:4860::8888"):
        assert is_public(address), address


@pytest.mark.parametrize("addresses", [["127.0.0.1"], [PUBLIC, "10.0.0.1"], ["::ffff:192.168.0.1"], ["fe80::1%lo"], []])
def test_names_that_resolve_to_private_addresses(addresses: list[str]) -> None:
    with run_web() as web:
        web.names["inside.example"] = [addresses]
        assert refusal_of(web.fetcher(), "http://inside.example/a.png").status == 403
        assert not web.connected


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1/a.png",
        "http://169.254.169.254/latest/meta-data/",
        "//localhost/a.png",
        "https://[::1]/a.png",
        "http://inside.example/a.png",
    ],
)
def test_redirects_to_private_addresses(target: str) -> None:
    with run_web() as web:
        web.names["inside.example"] = [["192.168.0.7"]]
        web.answers["/r"] = redirect(target)
        assert refusal_of(web.fetcher(), "http://pictures.example/r").status == 403
        assert len(web.connected) == 1


def test_redirects() -> None:
    with run_web() as web:
        web.names["other.example"] = [["1.1.1.1"]]
        web.answers["/r"] = redirect("http://other.example/s")
        web.answers["/s"] = redirect("a.png")
        assert web.fetcher().fetch("http://pictures.example/r") == PNG
        assert [address for address, _ in web.connected] == [PUBLIC, "1.1.1.1", "1.1.1.1"]
        web.answers["/loop"] = redirect("/loop")
        assert "redirected more than 3 times" in refusal_of(web.fetcher(), "http://pictures.example/loop").sentence
        web.answers["/file"] = redirect("file:///etc/passwd")
        assert refusal_of(web.fetcher(), "http://pictures.example/file").status == 400
        web.answers["/nowhere"] = head("302 Found", Content_Length="0")
        assert refusal_of(web.fetcher(), "http://pictures.example/nowhere").status == 424


@pytest.mark.parametrize(
    ("url", "status"),
    [
        ("ftp://pictures.example/a.png", 400),
        ("file:///etc/passwd", 400),
        ("gopher://pictures.example/", 400),
        ("a.png", 400),
        ("http://", 400),
        ("http:///a.png", 400),
        ("http://user:secret@pictures.example/a.png", 400),
        ("http://pictures.example@127.0.0.1/a.png", 400),
        ("http://pictures.example/a.png\r\nX: y", 400),
        ("http://[::1/a.png", 400),
        ("http://pictures.example:port/", 400),
        ("http://pictures.example/" + "a" * 5000, 400),
        ("http://pictures.example:22/a.png", 403),
        ("http://pictures.example:443/a.png", 403),
    ],
)
def test_other_urls_are_refused(url: str, status: int) -> None:
    with run_web() as web:
        assert refusal_of(web.fetcher(), url).status == status
        assert not web.connected


def test_an_allow_list_restricts_the_hosts() -> None:
    with run_web() as web:
        web.names |= {
            "a.good.example": [[PUBLIC]],
            "notgood.example": [[PUBLIC]],
            "inside.good.example": [["10.0.0.1"]],
        }
        web.answers["/r"] = redirect("http://notgood.example/a.png")
        allowed = web.fetcher(allow=("Pictures.example", "*.good.example"))
        for host in ("pictures.example", "PICTURES.example.", "a.good.example"):
            web.names.setdefault(host.lower(), [[PUBLIC]])
            assert allowed.fetch(f"http://{host}/a.png") == PNG
        for host in ("notgood.example", "good.example", "pictures.example.evil.example", "inside.good.example"):
            assert refusal_of(allowed, f"http://{host}/a.png").status == 403
        assert refusal_of(allowed, "http://pictures.example/r").status == 403


@pytest.mark.parametrize(
    ("answer", "status", "message"),
    [
        (head(Content_Type="text/html", Content_Length="5") + b"hello", 415, "text/html"),
        (head(Content_Type="image/png", Content_Encoding="gzip", Content_Length="5") + b"hello", 415, "compressed"),
        (head(Content_Type="image/png", Content_Length="9999999999"), 413, "bytes"),
        (head(Content_Type="image/png", Content_Length="500") + b"short", 424, "truncated"),
        (head("404 Not Found", Content_Length="0"), 424, "404"),
        (head("500 Oh", Content_Length="0"), 424, "500"),
        (b"SSH-2.0-OpenSSH\r\n", 424, "cannot be fetched"),
        (b"", 424, "cannot be fetched"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", 424, "cannot be fetched"),
    ],
)
def test_other_answers_are_refused(answer: bytes, status: int, message: str) -> None:
    with run_web() as web:
        web.answers["/x"] = answer
        error = refusal_of(web.fetcher(), "http://pictures.example/x")
        assert (error.status, message in error.sentence) == (status, True), error.sentence


def test_an_endless_body_is_aborted_at_the_limit() -> None:
    sent_bytes = []

    def endless(connection: socket.socket, request: bytes) -> None:
        connection.sendall(head(Content_Type="image/png"))
        while True:
            connection.sendall(bytes(65536))
            sent_bytes.append(65536)

    with run_web(endless) as web:
        assert refusal_of(web.fetcher(max_bytes=200_000), "http://pictures.example/x").status == 413
    assert sum(sent_bytes) < 50_000_000


@pytest.mark.parametrize("part", ["nothing", "head", "body"])
def test_a_server_that_trickles_hits_the_time_limit(part: str) -> None:
    ended, outlasted = threading.Event(), threading.Event()

    def trickle(connection: socket.socket, request: bytes) -> None:
        if part == "body":
            connection.sendall(head(Content_Type="image/png"))
        for _ in range(1000):
            if ended.wait(0.02):
                return
            if part != "nothing":
                connection.sendall(b"X")
        outlasted.set()

    with run_web(trickle) as web:
        error = refusal_of(web.fetcher(seconds=0.3), "http://pictures.example/x")
        ended.set()
    assert (error.status, "within 0.3 s" in error.sentence) == (424, True), error.sentence
    assert not outlasted.is_set(), "the fetcher waited for the server"


def test_a_resolver_that_hangs() -> None:
    ended = threading.Event()

    def hang(host: str, port: int) -> list[str]:
        ended.wait(20)
        return [PUBLIC]

    error = refusal_of(Fetcher(resolve=hang, seconds=0.1), "http://pictures.example/x")
    ended.set()
    assert (error.status, "in time" in error.sentence) == (424, True)


def test_certificates_are_checked_against_the_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = []

    class Context:
        def wrap_socket(self, raw: socket.socket, **options: object) -> socket.socket:
            names.append(options["server_hostname"])
            raise ssl.SSLCertVerificationError("not this name")

    from imgcls.serve import urls

    assert urls._tls().verify_mode is ssl.CERT_REQUIRED
    assert urls._tls().check_hostname
    monkeypatch.setattr(urls, "_tls", Context)
    with run_web() as web:
        assert refusal_of(web.fetcher(), "https://pictures.example/a.png").status == 424
        assert web.connected == [(PUBLIC, 443)]
    assert names == ["pictures.example"]


def test_the_server_fetches_if_configured(model: PortableModel) -> None:
    pytest.importorskip("fastapi")
    with run_web() as web, serving(model, fetcher=web.fetcher()) as server:
        valid = server.post(b'{"url": "http://pictures.example/a.png"}', "application/json")
        assert valid.json["predictions"][0]["classes"][0]["class"] == model.top([picture()])[0][0][0]
        two = server.post(b'{"urls": ["http://pictures.example/a.png", "http://127.0.0.1/"]}', "application/json")
        assert two.status == 200
        assert [set(answer) for answer in two.json["predictions"]] == [{"classes"}, {"error"}]
        web.answers["/text"] = head(Content_Type="image/png", Content_Length="5") + b"hello"
        text = server.post(b'{"url": "http://pictures.example/text"}', "application/json")
        assert (text.status, "not an image" in text.json["error"]) == (400, True)


def test_the_environment_configures_the_fetcher() -> None:
    from imgcls.serve.inference import fetcher_from

    assert fetcher_from({}) is None
    assert fetcher_from({"IMGCLS_URLS": "false", "IMGCLS_URL_ALLOW": "a.org"}) is None
    fetcher = fetcher_from({"IMGCLS_URLS": "true", "IMGCLS_URL_ALLOW": "a.org, *.b.org"})
    assert fetcher is not None
    assert fetcher.allow == ("a.org", "*.b.org")
