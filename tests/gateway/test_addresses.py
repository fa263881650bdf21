from ipaddress import ip_network

import pytest

from gateway.addresses import TrustedProxies, client_network


@pytest.mark.parametrize(
    ("trusted", "forwarded", "address"),
    [
        ((), "203.0.113.1", "10.0.0.1"),
        (("10.0.0.1",), "", "10.0.0.1"),
        (("10.0.0.2",), "203.0.113.1", "10.0.0.1"),
        (("10.0.0.1",), "203.0.113.1", "203.0.113.1"),
        (("10.0.0.1",), "198.51.100.9, 203.0.113.1", "203.0.113.1"),
        (("10.0.0.0/8",), "198.51.100.9, 203.0.113.1,10.1.1.1", "203.0.113.1"),
        (("10.0.0.0/8", "203.0.113.1"), "198.51.100.9, 203.0.113.1, 10.1.1.1", "198.51.100.9"),
        (("10.0.0.0/8",), "10.2.2.2, 10.1.1.1", "10.2.2.2"),
        (("10.0.0.1",), "203.0.113.1:4711", "203.0.113.1"),
        (("10.0.0.1",), "[2001:db8::1]:4711", "2001:db8::1"),
        (("10.0.0.1",), "2001:DB8:0::1", "2001:db8::1"),
        (("10.0.0.1",), "::ffff:203.0.113.1", "203.0.113.1"),
        (("10.0.0.1",), "unknown", "10.0.0.1"),
        (("10.0.0.0/8",), "203.0.113.1, fe80::1%eth0, 10.1.1.1", "10.1.1.1"),
    ],
)
def test_the_client_is_the_nearest_address_that_is_no_trusted_proxy(trusted, forwarded, address):
    proxies = TrustedProxies([ip_network(network) for network in trusted])

    assert proxies.client_address({"REMOTE_ADDR": "10.0.0.1", "HTTP_X_FORWARDED_FOR": forwarded}) == address


def test_the_addresses_of_an_ipv6_64_are_one_client_network():
    assert client_network("2001:db8:1:2:3::4") == client_network("2001:db8:1:2::") == "2001:db8:1:2::/64"
    assert client_network("203.0.113.1") == "203.0.113.1"
