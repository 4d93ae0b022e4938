"""Fetching an image from the web for a client, without reaching what only this machine may reach.

A server that fetches any address it is given lets strangers into its network (server-side request forgery, OWASP).
So the name is resolved first, all its addresses must be public, and the connection goes to the very address that was
checked; each redirect is checked again.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooSlow
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from urllib.parse import SplitResult, urljoin, urlsplit

from imgcls.serve.payloads import MAX_BODY_BYTES
from imgcls.serve.refusals import Refusal

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
PORTS = {"http": 80, "https": 443}
REDIRECTS = frozenset({301, 302, 303, 307, 308})
NAT64 = ipaddress.ip_network("64:ff9b::/96")
# What `ipaddress` of some Python versions calls global, but the IANA special-purpose registries or clouds do not.
NOT_PUBLIC = [
    ipaddress.ip_network(network)
    for network in (
        *("0.0.0.0/8", "100.64.0.0/10", "192.0.0.0/24", "192.31.196.0/24", "192.52.193.0/24", "192.88.99.0/24"),
        *("192.175.48.0/24", "198.18.0.0/15", "240.0.0.0/4"),
        "168.63.129.16/32",  # Azure's wire server
        *("64:ff9b:1::/48", "100::/64", "100:0:0:1::/64", "2001::/23", "2001:db8::/32", "2620:4f:8000::/48"),
        *("3fff::/20", "5f00::/16", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8"),
    )
]
CHUNK_BYTES = 65536
HEADERS = {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "imgcls", "Connection": "close"}


def resolve(host: str, port: int) -> list[str]:
    """All addresses of `host` according to the system's resolver."""
    entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in entries))


def is_public(address: str) -> bool:
    """Whether `address` is globally reachable: neither private, loopback, link-local nor reserved.

    >>> [is_public(a) for a in ("93.184.216.34", "10.0.0.1", "127.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1")]
    [True, False, False, False, False, False]
    """
    try:
        parsed: Address = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    inner = _embedded_ipv4(parsed) if isinstance(parsed, ipaddress.IPv6Address) else None
    if inner is not None:
        return is_public(str(inner))
    if any(parsed in network for network in NOT_PUBLIC):
        return False
    return parsed.is_global and not (parsed.is_multicast or parsed.is_reserved or parsed.is_unspecified)


def _embedded_ipv4(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address embedded in an IPv6 address: mapped, compatible, 6to4, Teredo, NAT64."""
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in NAT64 or int(address) >> 32 == 0:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None


@dataclass(frozen=True)
class Fetcher:
    """Fetches images from public addresses.

    Attributes:
        allow: the allowed host names, `*.example.org` for all below one; empty: all.
        seconds: for an image with all its redirects.
        max_bytes: size limit of an image.
        redirects: up to N are followed.
        resolve: from host and port to the addresses.
        connect: from (address, port) and seconds to a connected socket.
    """

    allow: Sequence[str] = ()
    seconds: float = 10.0
    max_bytes: int = MAX_BODY_BYTES
    redirects: int = 3
    resolve: Callable[[str, int], list[str]] = field(default_factory=lambda: resolve)
    connect: Callable[[tuple[str, int], float], socket.socket] = field(default_factory=lambda: socket.create_connection)

    def fetch(self, url: str) -> bytes:
        """The content behind `url`.

        Raises:
            Refusal: 400 for an invalid URL, 403 for an address that is not allowed, 413 and 415 if the content is too
                large or not an image, 424 if the other server fails or is too slow.
        """
        end = time.monotonic() + self.seconds
        for _ in range(self.redirects + 1):
            answer = self._request(self._check(url), end)
            if isinstance(answer, bytes):
                return answer
            url = urljoin(url, answer)
        raise Refusal(424, f"The URL is redirected more than {self.redirects} times.")

    def _check(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise Refusal(400, "The URL is malformed.") from error
        if parts.scheme not in PORTS:
            raise Refusal(400, "Only http and https URLs are fetched.")
        if not host or parts.username is not None or len(url) > 4096 or not url.isprintable():
            raise Refusal(400, "The URL is malformed.")
        if port not in (None, PORTS[parts.scheme]):
            raise Refusal(403, "Only the standard ports of http and https are allowed.")
        name = host.rstrip(".").lower()
        if self.allow and not any(fnmatchcase(name, pattern.lower()) for pattern in self.allow):
            raise Refusal(403, "This server does not fetch from that host.")
        return parts

    def _request(self, parts: SplitResult, end: float) -> bytes | str:
        """The content, or the target of a redirect."""
        host, port = parts.hostname or "", PORTS[parts.scheme]
        address = self._address(host, port, end)
        connection = http.client.HTTPConnection(f"[{host}]" if ":" in host else host, port)
        raw: socket.socket | None = None
        watch = threading.Timer(max(0.0, end - time.monotonic()), lambda: _shut_down(raw))
        try:
            # Connected here, to the checked address: http.client would resolve the name again.
            raw = self.connect((address, port), _remaining(end))
            watch.daemon = True
            watch.start()  # the socket's timeout is per read: a server that trickles would never exceed it
            raw.settimeout(_remaining(end))
            if parts.scheme == "https":
                raw = _tls().wrap_socket(raw, server_hostname=host, do_handshake_on_connect=False)
                raw.do_handshake()
            connection.sock = raw
            path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("GET", path.encode("ascii", "backslashreplace").decode(), headers=HEADERS)
            return self._read(connection.getresponse(), end)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if isinstance(error, TimeoutError) or time.monotonic() >= end:
                raise Refusal(424, f"The URL was not answered within {self.seconds:g} s.") from error
            raise Refusal(424, "The URL cannot be fetched.") from error
        finally:
            watch.cancel()
            connection.close()
            if raw is not None:
                raw.close()

    def _address(self, host: str, port: int, end: float) -> str:
        """An address of `host`. Raises Refusal unless all its addresses are public."""
        try:
            # In a thread, because the system's resolver has no timeout.
            addresses = _resolvers().submit(self.resolve, host, port).result(_remaining(end))
        except TooSlow as error:
            raise Refusal(424, "The host of the URL was not resolved in time.") from error
        except (OSError, UnicodeError) as error:
            raise Refusal(424, "The host of the URL is unknown.") from error
        if not addresses or not all(is_public(address) for address in addresses):
            raise Refusal(403, "The URL leads to an address that is not public.")
        return addresses[0]

    def _read(self, response: http.client.HTTPResponse, end: float) -> bytes | str:
        if response.status in REDIRECTS:
            target = response.headers.get("Location")
            if not target:
                raise Refusal(424, "The URL is redirected without a target.")
            return target
        if response.status != 200:
            raise Refusal(424, f"The URL was answered with {response.status}.")
        kind = response.headers.get_content_type()
        if not (kind.startswith("image/") or kind in ("application/octet-stream", "binary/octet-stream")):
            raise Refusal(415, f"The URL leads to {kind[:100]}, not to an image.")
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Refusal(415, "The URL leads to compressed content.")
        too_large = Refusal(413, f"The image behind the URL has more than {self.max_bytes:,} bytes.")
        if (response.length or 0) > self.max_bytes:
            raise too_large
        content = bytearray()
        while part := response.read(CHUNK_BYTES):
            content += part
            if len(content) > self.max_bytes:
                raise too_large
            if time.monotonic() >= end:
                raise TimeoutError
        if response.length:
            raise Refusal(424, "The image behind the URL is truncated.")
        return bytes(content)


def _remaining(end: float) -> float:
    seconds = end - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _shut_down(raw: socket.socket | None) -> None:
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.shutdown(socket.SHUT_RDWR)


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()


@cache
def _resolvers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(8, thread_name_prefix="imgcls-resolve")
