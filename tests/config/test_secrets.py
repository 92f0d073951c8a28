"""No password or token of an address is accepted, shown or kept."""

from __future__ import annotations

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from multistill.config import JobConfig
from multistill.config.secrets import has_secret, hide
from multistill.errors import JobFileError
from multistill.pipeline import jobfile
from multistill.tracking import redact

SMALL = "name: t\ncorpora: [{kind: demo}]\n"
FIELDS = ("tracking.uri", "search.storage", "resources.address")
MARK = "geheim"
printable = st.characters(min_codepoint=33, max_codepoint=0x2FF, exclude_categories=["C", "Z"])
# A password with any character in it, that a message can be searched for.
passwords = st.builds(
    lambda before, after: f"{before}{MARK}{after}",
    st.text(printable, max_size=6),
    st.text(printable, max_size=6),
)
users = st.sampled_from(["me", "ann@lab.org", "a.b-c", "LAB/me", "me%40lab", ""])
schemes = st.sampled_from(
    [
        "http",
        "https",
        "postgresql",
        "postgresql+psycopg",
        "mysql+pymysql",
        "ray",
        "redis",
        "x",
        "1http",
    ]
)
hosts = st.sampled_from(["h", "h:5000", "db/name", "db:5432/name", "127.0.0.1:1/x?a=b", ""])
behind_user = st.builds("{}://{}:{}@{}".format, schemes, users, passwords, hosts)
without_scheme = st.builds("{}:{}@{}".format, st.sampled_from(["me", "a.b"]), passwords, hosts)
keys = st.sampled_from(
    [
        "password",
        "PASSWORD",
        "passwd",
        "pwd",
        "token",
        "access_token",
        "sslpassword",
        "api_key",
        "secret",
        "pass%77ord",
    ]
)
in_query = st.builds(
    lambda scheme, host, more, key, secret: f"{scheme}://{host}?{more}{key}={secret}",
    schemes,
    st.sampled_from(["h", "h/x", "db:5432/name", "/name"]),
    st.sampled_from(["", "user=me&", "a=1&b=2&", "user=me;", "a=1;b=2;"]),
    keys,
    passwords.map(lambda text: text.replace("&", "")),
)
addresses = st.one_of(behind_user, without_scheme, in_query)


@settings(deadline=None)
@given(addresses)
@example("postgresql://me:geheim/ret@x/y")
@example("http://me:pa/geheim@h")
@example("postgresql://h/x?user=me&password=geheim")
@example("http://x?token=geheim")
@example("http://db:5432/name?password=@geheim")
@example("http://me:12/geheim@h")
@example("http://me:ge?heim#geheim@h")
def test_a_secret_of_an_address_is_never_shown(address: str) -> None:
    assume("://" in address or "://" not in address.partition("@")[0])
    for text in (address, f"`{address}` cannot be reached", f"a http://b:1 {address}\nand c@d"):
        assert MARK not in redact(text), redact(text)
    assert redact(redact(address)) == redact(address)


@settings(deadline=None, max_examples=50)
@given(addresses, st.sampled_from(FIELDS))
def test_a_secret_of_an_address_is_refused_by_every_key_that_takes_one(
    address: str, key: str
) -> None:
    section, _, name = key.partition(".")
    values = {"name": "t", "corpora": [{"kind": "demo"}], section: {name: address}}
    with pytest.raises(ValueError, match="holds a password or a token"):
        JobConfig.model_validate(values)


@pytest.mark.parametrize("key", FIELDS)
@pytest.mark.parametrize(
    "address",
    [
        "postgresql://me:geheim/ret@x/y",
        "http://me:pa/geheim@h",
        "http://me:pa geheim@h",
        "postgresql://x/y?user=me&password=geheim",
        "http://x?token=a geheim",
        "me:geheim@h",
        "sqlite://me:geheim@h",
        "postgresql:/me:geheim@h",
        "postgresql:///me:geheim@h",
    ],
)
def test_a_refused_secret_is_not_repeated(key: str, address: str) -> None:
    section, _, name = key.partition(".")
    in_file = f"{SMALL}{section}: {{{name}: '{address}'}}\n"
    for text, overrides in ((in_file, []), (SMALL, [f"{key}={address}"])):
        with pytest.raises(JobFileError) as refused:
            jobfile.parse(text, "j", overrides)
        assert "holds a password or a token" in str(refused.value)
        assert MARK not in str(refused.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://mlflow.lab:5000",
        "https://lab/mlflow?team=a&page=2",
        "postgresql://user@host/name",
        "postgresql+psycopg://ann@lab.org@host:5432/name?sslmode=require",
        "postgresql:///name?host=/run/postgresql",
        "sqlite:////tmp/a@b.db",
        "sqlite:////tmp/a:b@c.db",
        "sqlite:///C:/users/ann@lab/mlflow.db",
        "ray://head:10001",
        "10.0.0.1:6379",
        "auto",
    ],
)
def test_an_address_without_a_secret_is_left_as_it_is(address: str) -> None:
    assert not has_secret(address)
    assert hide(address) == address
    assert hide(f"{address} refused: user ann@lab has no permission") == (
        f"{address} refused: user ann@lab has no permission"
    )
