"""Where a request comes from, as far as the proxies in front of us can be trusted."""

from ipaddress import ip_address, ip_network

# A household or a server has at least so much of IPv6 to itself.
IPV6_PREFIX_BITS = 64


class ClientAddresses:
    """trusted: the networks of our proxies."""

    def __init__(self, trusted):
        self.trusted = trusted

    def of(self, environ):
        """The nearest address, counted from us, that is no trusted proxy's."""
        address = environ["REMOTE_ADDR"]
        if not self.trusted:
            return address
        for hop in reversed(environ.get("HTTP_X_FORWARDED_FOR", "").split(",")):
            if not self.trusts(address):
                break
            named = _address(hop)
            if named is None:
                break
            address = named
        return address

    def trusts(self, address):
        """Whether it is a proxy of ours."""
        return any(ip_address(address) in network for network in self.trusted)


def neighbourhood(address):
    """The addresses that are probably the same client's: an IPv4 address itself, the /64 of an IPv6 one."""
    if ":" not in address:
        return address
    return str(ip_network((address, IPV6_PREFIX_BITS), strict=False))


def _address(hop):
    """An address of X-Forwarded-For, which some proxies write with a port; None for anything else."""
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
