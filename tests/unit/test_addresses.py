"""Which URLs may be asked, and which addresses connected to."""

import ipaddress

import pytest

from libs.common.errors import ErrorCode, PermanentError
from libs.common.outbound.addresses import Policy, is_denied

_POLICY = Policy.parse("80,443", "")

_DENIED = str.split("""
0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 100.127.255.255 127.0.0.1 127.255.255.254
168.63.129.16 169.254.0.1 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.8 192.0.0.170 192.0.0.192
192.0.2.1 192.31.196.1 192.52.193.1 192.88.99.1 192.168.1.1 192.175.48.1 198.18.0.1 198.19.255.255
198.51.100.1 203.0.113.1 224.0.0.1 233.252.0.1 239.255.255.255 240.0.0.1 255.255.255.255 :: ::1 ::127.0.0.1
::8.8.8.8 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:127.0.0.1 64:ff9b::7f00:1 64:ff9b::808:808 64:ff9b:1::1
100::1 100:0:0:1::1 2001::1 2001:0:7f00:1:: 2001:2::1 2001:10::1 2001:20::1 2001:30::1 2001:1::1 2001:db8::1
2002:7f00:1:: 2002:808:808:: 2620:4f:8000::1 3fff::1 3fff:fff:ffff::1 4000::1 5f00::1 8000::1 c000::1 fc00::1
fd00:ec2::254 fd12:3456::1 fe80::1 fe80::1%1 fec0::1 feff::1 ff02::1 ff0e::1
""")
_PUBLIC = str.split("""
1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.1 168.63.129.17
172.15.255.255 172.32.0.0 192.0.1.1 192.167.255.255 192.169.0.0 198.17.255.255 198.20.0.0 223.255.255.255
2001:200::1 2001:4860:4860::8888 2003::1 2606:4700:4700::1111 2a00:1450::1 3ffe::1
""")


@pytest.mark.parametrize("address", _DENIED)
def test_special_addresses_are_denied(address: str) -> None:
    assert is_denied(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", _PUBLIC)
def test_public_addresses_are_not(address: str) -> None:
    assert not is_denied(ipaddress.ip_address(address))


def test_nothing_passes_that_the_standard_library_knows_as_special() -> None:
    for network in ipaddress.IPv4Network("0.0.0.0/0").subnets(new_prefix=14):
        for address in (network[0], network[1], network[-1]):
            assert is_denied(address) or (address.is_global and not address.is_multicast)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "example.com",
        "//example.com/a",
        "ftp://example.com/a",
        "file:///etc/passwd",
        "gopher://example.com/",
        "javascript:alert(1)",
        "https://",
        "https:///a",
        "https://user@example.com/",
        "https://user:secret@example.com/",
        "https://@example.com/",
        "https://example.com@127.0.0.1/",
        "https://127.0.0.1\\@example.com/",
        "https://example.com\\.evil.test/",
        "https://example.com/a b",
        "https://example.com/\n",
        "https://exa\tmple.com/",
        "https://example.com:99999/",
        "https://example.com:x/",
        "https://[::1",
        "https://[v1.x]/",
        "https://[127.0.0.1]/",
        "https://[example.com]/",
        "https://a[::1]/",
        "https://exämple.com/",
        "https://１２７.0.0.1/",  # noqa: RUF001 - digits that some parsers take for others
        "https://127。0。0。1/",
        "https://ⓔxample.com/",
        "https://%31%32%37.0.0.1/",
        "https://%6cocalhost/",
        "https://127.1/",
        "https://127.0.1/",
        "https://2130706433/",
        "https://0x7f000001/",
        "https://0x7f.1/",
        "https://0x/",
        "https://0177.0.0.1/",
        "https://017700000001/",
        "https://127.0.0.1.0/",
        "https://1.2.3.4.5/",
        "https://256.1.1.1/",
        "https://example..com/",
        "https://.example.com/",
        "https://-a.example.com/",
        "https://" + "a" * 64 + ".com/",
        "https://" + "a." * 127 + "com/",
        "https://example.com/" + "a" * 2048,
        "https://[fe80::1%25eth0]/",
        "https://[::ffff:127.0.0.1]/",
        "https://[::1]/",
        "http://127.0.0.1/",
        "http://127.0.0.1./",
        "http://169.254.169.254/latest/meta-data/",
        "http://[64:ff9b::7f00:1]/",
        "http://[2002:7f00:1::]/",
        "http://example.com:22/",
        "http://example.com:0/",
        "http://example.com:8080/",
        "https://example.com/\ud800",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(PermanentError) as caught:
        _POLICY.checked(url)
    assert (caught.value.code, caught.value.param) == (ErrorCode.INVALID_URL, "url")
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("url", "authority", "port", "path"),
    [
        ("https://Example.COM", "example.com", 443, "/"),
        ("HTTP://example.com./a?b=c#d", "example.com", 80, "/a?b=c"),
        ("https://example.com:80/", "example.com:80", 80, "/"),
        ("http://8.8.8.8/x", "8.8.8.8", 80, "/x"),
        ("https://[2606:4700:4700::1111]/", "[2606:4700:4700::1111]", 443, "/"),
        ("https://xn--exmple-cua.com/%C3%A4?q=@", "xn--exmple-cua.com", 443, "/%C3%A4?q=@"),
        ("https://localhost/", "localhost", 443, "/"),  # what it resolves to is judged
    ],
)
def test_urls_that_may_be_asked(url: str, authority: str, port: int, path: str) -> None:
    target = _POLICY.checked(url)
    assert (target.authority, target.port, target.path) == (authority, port, path)


def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    target = _POLICY.checked("https://example.com/")
    public, private = map(ipaddress.ip_address, ("8.8.8.8", "10.0.0.1"))
    _POLICY.judge(target, [public])
    with pytest.raises(PermanentError) as caught:
        _POLICY.judge(target, [public, private])
    assert "10.0.0.1" not in caught.value.message


def test_an_operator_allows_a_host_and_a_port_and_no_other() -> None:
    policy = Policy.parse("443", "files.internal, 127.0.0.1:9000,[::1]:9000")
    for url in ("http://files.internal/", "https://FILES.internal/", "http://127.0.0.1:9000/", "http://[::1]:9000/"):
        target = policy.checked(url)
        policy.judge(target, [ipaddress.ip_address("10.0.0.1")])
    for url in ("http://files.internal:9000/", "http://127.0.0.1/", "https://127.0.0.1:9001/", "http://example.com/"):
        with pytest.raises(PermanentError):
            policy.checked(url)


@pytest.mark.parametrize("hosts", ["http://files.internal", "user@host", "host:port", "host/path", "host:99999"])
def test_an_allowance_that_cannot_be_read_is_an_error(hosts: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Policy.parse("443", hosts)
