import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.http.address import Address, parse_address
from fairlead.http.client import Pool


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("http://a", (False, "a", 80, b"a", b"")),
        ("HTTPS://A.example/", (True, "a.example", 443, b"A.example", b"")),
        ("http://a:8000/v1/", (False, "a", 8000, b"a:8000", b"/v1")),
        ("http://[::1]:8000", (False, "::1", 8000, b"[::1]:8000", b"")),
    ],
)
def test_addresses_in_their_parts(url, address):
    assert parse_address(url) == Address(*address)


BAD = {
    "a user or a password": ["http://user:secret@a", "http://secret@a", "http://a/@secret"],
    "a query": ["http://a?key=secret", "http://a?", "http://a/#secret"],
    "neither http": ["a:1", "ftp://a", "", "//a"],
    "no host": ["http://", "http:///path", "http://:80"],
    "its port": ["http://a:0", "http://a:65536", "http://a:secret", "http://a:-1", "http://a:1e3"],
    "spaces": ["http://a b", "http://a\r\nx: y", "http://a\t", "http://\u00e4", " http://a", "http://a/\x00"],
    "cannot be read": ["http://[::1", "http://[x]"],
}


@pytest.mark.parametrize(("reason", "url"), [(reason, url) for reason, urls in BAD.items() for url in urls])
def test_what_is_no_address_says_why_and_shows_nothing(reason, url):
    with pytest.raises(ValueError, match=reason) as caught:
        Pool(url)
    assert "secret" not in str(caught.value)


@given(st.text() | st.text("ht:p/@?#[].8a", max_size=12).map(lambda rest: "http://" + rest))
def test_any_text_is_an_address_or_a_plain_error(text):
    try:
        found = parse_address(text)
    except ValueError:
        return
    assert found.host
    assert 1 <= found.port <= 65_535
    assert not set(b"@?# \r\n") & set(found.authority + found.prefix)
