"""Which addresses lie inside this machine or its network, and a connection that refuses to end there.

An address that anybody may have written (a gallery of the network, a request) must not make the server ask its own network,
neither by an IP address, nor by a redirect, nor by a public name that means a private address.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from typing import Any

import idna

from llmgallery.config.settings import is_loopback
from llmgallery.core.errors import ConfigError

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_OF_A_NETWORK = tuple(map(ipaddress.ip_network, ("64:ff9b:1::/48", "fec0::/10", "168.63.129.16/32", "192.0.0.0/24")))
"""Of RFC 8215 and 3879, and what two clouds tell their machines' secrets at: public for the tables of this Python."""
_OURS = (".localhost", ".local", ".internal", ".lan", ".home.arpa")


def is_inside(host: str) -> bool:
    """The name or address is this machine, or one that only its network reaches. Asks no name server."""
    host = host.strip("[]").rstrip(".").lower()
    if is_loopback(host) or host.endswith(_OURS):
        return True
    try:
        return not _is_public(host)
    except ValueError:
        return False


def check_redirect(before: str, after: str, url: str) -> None:
    """Raise ConfigError where a host outside leads to one inside; `url`: the address that it leads to."""
    if is_inside(after) and not is_inside(before):
        raise ConfigError(f"{url} is inside this network, and what leads there is not: that is not followed")


def outside_only(host: str) -> Mapping[str, Any]:
    """Extensions of an httpx request to `host` that raise ConfigError when a new connection to it ends inside, before a byte is
    sent. What goes through a proxy is the proxy's to judge."""
    direct = False

    async def trace(event: str, info: Mapping[str, Any]) -> None:
        nonlocal direct
        if event == "connection.connect_tcp.started":
            direct = _same(host, str(info["host"]))
        elif event == "connection.connect_tcp.complete" and direct:
            stream = info["return_value"]
            address = str((stream.get_extra_info("server_addr") or ("",))[0])
            if not _is_public(address.partition("%")[0]):
                await stream.aclose()
                raise ConfigError(
                    f"{host} is {address}, inside this network, where only the galleries of this machine may lead: "
                    "have it named by an entry of a gallery in a local folder"
                )

    return {"trace": trace}


def _same(host: str, other: str) -> bool:
    """`other`: as it is connected to. A URL tells its host with the letters that people read, where it has others."""
    host = host.strip("[]").lower()
    try:
        return other.strip("[]").lower() in (host, host if host.isascii() else idna.encode(host).decode())
    except idna.IDNAError:
        return True


def _is_public(address: str) -> bool:
    """Raises ValueError for what is no IP address."""
    found = ipaddress.ip_address(address)
    if any(found in network for network in _OF_A_NETWORK):
        return False
    if isinstance(found, ipaddress.IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        if int(found) < 2**32:  # ::127.0.0.1, RFC 4291's first way to write it
            inner = ipaddress.IPv4Address(int(found))
        if inner is not None:
            return inner.is_global and not inner.is_multicast
    return found.is_global and not found.is_multicast
