"""Fetching pages: closed addresses stay closed on every way there, and bounds hold."""

import io
import socket
from contextlib import closing
from ipaddress import ip_address

import httpcore
import pytest

from app.errors import InvalidInput, TooLarge, Unavailable
from app.scripts.initialize_data.addresses import (
    AllowedPrivate,
    GuardedBackend,
    is_public,
    read_allowed,
    resolve,
)
from app.scripts.initialize_data.fetching import (
    USER_AGENT,
    Fetcher,
    FetchLimits,
    normalise_url,
    retry_after_s,
)
from app.scripts.initialize_data.robots import Robots
from tests.scripts.web_server import serve_site

LOOPBACK = read_allowed("127.0.0.1/32")


@pytest.fixture
def site():
    with serve_site() as site:
        yield site


@pytest.fixture
def waits():
    return []


@pytest.fixture
def fetcher(waits):
    limits = FetchLimits(timeout_s=5, max_wait_s=60)
    with closing(Fetcher(GuardedBackend(LOOPBACK), limits, waits.append)) as fetcher:
        yield fetcher


def get(fetcher, url, max_bytes=1_000_000, headers=(), check=lambda url: None):
    body = io.BytesIO()
    reply = fetcher.fetch(url, body, max_bytes, dict(headers), check)
    return reply, body.getvalue()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1",
        "100.64.0.1", "100.100.100.200", "169.254.169.254", "168.63.129.16", "192.0.0.192",
        "224.0.0.1", "240.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1",
        "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "fec0::1", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:80ff:fffe", "64:ff9b::7f00:1", "64:ff9b:1::a00:1",
        "2001:db8::1",
    ],
)  # fmt: skip
def test_private_addresses_are_not_public_in_any_spelling(address):
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:4700::1111", "64:ff9b::808:808"])
def test_public_addresses_are_public(address):
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "host", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "localhost", "127.0.0.1", "::1"]
)
def test_spellings_of_loopback_are_refused_as_the_system_resolves_them(host):
    backend = GuardedBackend(AllowedPrivate())
    with pytest.raises(InvalidInput, match="FOLIO_WEB_ALLOW_PRIVATE"):
        backend.connect_tcp(host, 80)


def test_one_private_address_closes_a_name_with_public_ones():
    backend = GuardedBackend(AllowedPrivate(), lambda host, port: ["93.184.216.34", "10.0.0.7"])
    with pytest.raises(InvalidInput, match=r"example\.com is at 10\.0\.0\.7"):
        backend.connect_tcp("example.com", 80)


def test_the_connection_goes_to_the_address_that_was_judged(site):
    """A name that resolves to something else at the second look gains nothing."""
    answers = iter([["127.0.0.1"], ["169.254.169.254"]])
    backend = GuardedBackend(LOOPBACK, lambda host, port: next(answers))
    url = site.put("/", "hello").replace("127.0.0.1", "rebinding.example")
    with closing(Fetcher(backend)) as fetcher:
        assert get(fetcher, url)[1] == b"hello"
    assert site.requests[0][1]["Host"].startswith("rebinding.example:")


def test_a_named_host_opens_private_addresses_but_no_credentials_of_a_cloud():
    allowed = read_allowed("wiki.corp, 10.0.0.0/8")
    assert allowed.holds("wiki.corp", ip_address("192.168.0.2"))
    assert allowed.holds("other", ip_address("10.9.9.9"))
    assert not allowed.holds("other", ip_address("192.168.0.2"))
    assert not allowed.holds("wiki.corp", ip_address("169.254.169.254"))
    assert not allowed.holds("wiki.corp", ip_address("168.63.129.16"))


def test_what_is_no_host_and_no_network_is_named():
    with pytest.raises(InvalidInput, match=r"10\.0\.0\.0/99"):
        read_allowed("10.0.0.0/99")


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://[::1]/",
        "http://2130706434/",
        "http://10.0.0.1/",
        "file:///etc/passwd",
        "ftp://example.com/x",
        "gopher://127.0.0.1/",
        "//user:secret@127.0.0.1/",
    ],
)
def test_redirects_to_closed_places_are_refused(site, fetcher, target):
    url = site.put("/", status=302, headers={"Location": target})
    with pytest.raises(InvalidInput):
        get(fetcher, url)


def test_a_redirect_to_loopback_is_refused_where_loopback_is_closed(site):
    """The first host is opened by name; what it leads to is judged by itself."""
    url = site.put("/", status=301, headers={"Location": site.url + "/inner"})
    allowed = AllowedPrivate(frozenset({"front.example"}))
    backend = GuardedBackend(allowed, lambda host, port: ["127.0.0.1"])
    with closing(Fetcher(backend)) as fetcher, pytest.raises(InvalidInput, match="public address"):
        get(fetcher, url.replace("127.0.0.1", "front.example"))
    assert site.asked("/inner") == []


def test_redirects_are_followed_to_an_end(site, fetcher):
    site.put("/a", status=301, headers={"Location": "b#part"})
    site.put("/b", "here")
    reply, body = get(fetcher, site.url + "/a")
    assert (reply.url, body) == (site.url + "/b", b"here")
    loop = site.put("/loop", status=302, headers={"Location": "/loop"})
    with pytest.raises(InvalidInput, match="5 redirects"):
        get(fetcher, loop)
    assert len(site.asked("/loop")) == 6


def test_each_address_on_the_way_is_asked_about(site, fetcher):
    site.put("/a", status=301, headers={"Location": "/b"})
    site.put("/b", "here")
    asked = []
    get(fetcher, site.url + "/a", check=asked.append)
    assert asked == [site.url + "/a", site.url + "/b"]


def test_we_say_who_we_are(site, fetcher):
    get(fetcher, site.put("/", "x"))
    assert site.requests[0][1]["User-Agent"] == USER_AGENT
    assert USER_AGENT.startswith("Folio/")


def test_a_body_over_the_limit_is_not_read_to_its_end(site, fetcher):
    with pytest.raises(TooLarge, match="FOLIO_MAX_UPLOAD_MB"):
        get(fetcher, site.put("/", "x" * 2000), max_bytes=1000)


def test_packed_bodies_are_refused(site, fetcher):
    url = site.put("/", b"\x1f\x8b", headers={"Content-Encoding": "gzip"})
    with pytest.raises(InvalidInput, match="gzip"):
        get(fetcher, url)


def test_a_busy_server_is_asked_again_when_it_says(site, fetcher, waits):
    url = site.put("/", status=503, headers={"Retry-After": "7"})
    reply, _ = get(fetcher, url)
    assert (reply.status, len(site.requests), waits) == (503, 3, [7.0, 14.0])


def test_a_server_that_asks_for_hours_is_given_up(site, fetcher, waits):
    url = site.put("/", status=429, headers={"Retry-After": "7200"})
    with pytest.raises(Unavailable, match="7200 s"):
        get(fetcher, url)
    assert (len(site.requests), waits) == (1, [])


def test_nobody_there_is_unavailable_after_some_attempts(fetcher, waits):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(Unavailable, match="cannot be reached"):
            get(fetcher, f"http://127.0.0.1:{taken.getsockname()[1]}/")
    assert waits == [1, 2]


def test_names_that_cannot_be_resolved_are_unavailable(waits):
    def fail(host, port):
        raise socket.gaierror("no such name")

    with (
        closing(Fetcher(GuardedBackend(LOOPBACK, fail), sleep=waits.append)) as fetcher,
        pytest.raises(Unavailable, match="cannot be resolved"),
    ):
        get(fetcher, "http://nowhere.example/")


def test_retry_after_is_read_in_both_forms():
    assert retry_after_s("12") == 12
    assert retry_after_s("Fri, 31 Dec 1999 23:59:59 GMT") == 0
    assert retry_after_s("Fri, 31 Dec 2100 23:59:59 GMT") > 1e6
    assert retry_after_s("soon") == 0


def test_addresses_have_one_spelling():
    assert normalise_url(" HTTP://Example.ORG:80/a b#top ") == "http://example.org/a%20b"
    assert normalise_url("http://例子.测试/页") == "http://xn--fsqu00a.xn--0zwm56d/%E9%A1%B5"
    with pytest.raises(InvalidInput, match="only http and https"):
        normalise_url("/etc/passwd")


def test_robots_are_obeyed_for_us_by_name_and_for_all(site, fetcher):
    site.put("/robots.txt", "User-agent: *\nDisallow: /closed\nCrawl-delay: 2\n")
    robots = Robots(fetcher)
    robots.check(site.url + "/open")
    with pytest.raises(InvalidInput, match=r"robots\.txt"):
        robots.check(site.url + "/closed/page")
    assert robots.delay_s(site.url) == 2
    assert len(site.asked("/robots.txt")) == 1


def test_no_robots_file_opens_a_site_and_a_broken_one_closes_it(site, fetcher):
    Robots(fetcher).check(site.url + "/page")
    site.put("/robots.txt", status=500)
    with pytest.raises(Unavailable, match="answers 500"):
        Robots(fetcher).check(site.url + "/page")


def test_the_system_resolver_gives_each_address_once():
    assert resolve("127.0.0.1", 80) == ["127.0.0.1"]
    with pytest.raises(httpcore.ConnectError):
        GuardedBackend(LOOPBACK).connect_tcp("127.0.0.1", 9, timeout=2)
