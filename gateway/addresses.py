"""The address of a request's client, which trusted proxies name in X-Forwarded-For."""

import functools
from collections.abc import Collection
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from wsgiref.types import WSGIEnvironment

# A household or a server has at least a /64 of IPv6 to itself.
IPV6_PREFIX_BITS = 64


class TrustedProxies:
    """networks: the networks of our proxies."""

    def __init__(self, networks: Collection[IPv4Network | IPv6Network]) -> None:
        self.networks = networks
        # Most requests come from few addresses, and a look-up here is faster than parsing one again.
        self.contains = functools.lru_cache(maxsize=1024)(self._contains)

    def client_address(self, environ: WSGIEnvironment) -> str:
        """The nearest address, counted from us, that is not a trusted proxy's."""
        address = environ["REMOTE_ADDR"]
        forwarded_for = environ.get("HTTP_X_FORWARDED_FOR")
        if not self.networks or not forwarded_for:
            return address
        for hop in reversed(forwarded_for.split(",")):
            if not self.contains(address):
                break
            forwarded = _parse_hop(hop)
            if forwarded is None:
                break
            address = forwarded
        return address

    def _contains(self, address: str) -> bool:
        """Whether the address is that of a trusted proxy."""
        return any(ip_address(address) in network for network in self.networks)


def client_network(address: str) -> str:
    """The addresses that one client probably has: an IPv4 address itself, the /64 of an IPv6 address."""
    if ":" not in address:
        return address
    return str(ip_network((address, IPV6_PREFIX_BITS), strict=False))


def _parse_hop(hop: str) -> str | None:
    """An address of X-Forwarded-For, which some proxies write with a port. None for anything else."""
    hop = hop.strip()
    if hop.startswith("["):
        hop = hop[1:].partition("]")[0]
    elif hop.count(":") == 1:
        hop = hop.partition(":")[0]
    try:
        address = ip_address(hop)
    except ValueError:
        return None
    if getattr(address, "scope_id", None):
        return None
    return str(getattr(address, "ipv4_mapped", None) or address)
