import hashlib

import pytest

from fairlead.config import resolve
from fairlead.gateway.identity import CLIENT_HEADERS, Identity, Unauthorized


def bearer(key):
    return {b"authorization": b"Bearer " + key.encode()}


def test_keys_in_plain_and_as_hashes():
    digest = hashlib.sha256(b"k2").hexdigest()
    config = resolve(
        {"clients": {"bob": {"api_keys": [f"sha256:{digest}"]}}}, {}, {"api_key": ["alice=k1", "k3=="]}
    )
    identity = Identity(config)
    assert "k1" not in repr(config)
    for _ in range(2):
        assert identity.identify(bearer("k1"), "")[0].name == "alice"
        assert identity.identify(bearer("k2"), "")[0].name == "bob"
        assert identity.identify({b"authorization": b"bearer  k3=="}, "")[0].name == "default"
    for bad in (bearer("k4"), bearer(""), bearer(f"sha256:{digest}"), {}, {b"authorization": b"Basic k1"}):
        with pytest.raises(Unauthorized):
            identity.identify(bad, "")


def test_headers_count_only_from_trusted_proxies_and_after_the_key():
    identity = Identity(resolve({"trusted_proxies": ["10.0.0.0/8", "::1/128"]}))
    for header in CLIENT_HEADERS:
        claim = {header: b"tenant"}
        assert identity.identify(claim, "10.1.2.3")[0].name == "tenant"
        assert identity.identify(claim, "::1")[0].name == "tenant"
        assert identity.identify(claim, "::ffff:10.1.2.3")[0].name == "tenant"
        for stranger in ("11.0.0.1", "", "unix", "::2"):
            assert identity.identify(claim, stranger)[0].name == "default"
    both = {CLIENT_HEADERS[0]: b"first", CLIENT_HEADERS[2]: b"second"}
    assert identity.identify(both, "10.0.0.1")[0].name == "first"
    keyed = Identity(resolve({"trusted_proxies": ["10.0.0.0/8"]}, {}, {"api_key": ["alice=k1"]}))
    assert keyed.identify({**bearer("k1"), CLIENT_HEADERS[0]: b"x"}, "10.0.0.1")[0].name == "alice"
    assert keyed.identify({CLIENT_HEADERS[0]: b"x"}, "10.0.0.1")[0].name == "x"
    with pytest.raises(Unauthorized):
        keyed.identify({CLIENT_HEADERS[0]: b"x"}, "11.0.0.1")
    with pytest.raises(Unauthorized):
        keyed.identify({**bearer("wrong"), CLIENT_HEADERS[0]: b"x"}, "10.0.0.1")


def test_names_cannot_break_out_of_their_header():
    identity = Identity(resolve({"trusted_proxies": ["0.0.0.0/0"], "use_body_user": True}))
    client, _ = identity.identify({CLIENT_HEADERS[0]: b"a\xff\r\nx: y" + b"z" * 500}, "1.2.3.4")
    assert client.fields.count(b"\r\n") == 3
    assert len(client.name) <= 200
    assert identity.by_user("evil\r\nx-admin: 1").fields.count(b"\r\n") == 3


def test_the_bodys_user_only_if_configured():
    assert Identity(resolve({})).by_user("u").name == "default"
    identity = Identity(resolve({"use_body_user": True}))
    assert identity.by_user("u").name == "u"
    assert identity.by_user(None).name == identity.by_user("  ").name == "default"


def test_caches_are_bounded():
    identity = Identity(resolve({"trusted_proxies": ["0.0.0.0/0"]}))
    for n in range(25_000):
        identity.identify({CLIENT_HEADERS[0]: b"c%d" % n}, f"1.{n % 250}.{n // 250 % 250}.1")
    assert len(identity._by_name) <= 10_000
    assert len(identity._peers) <= 10_000
