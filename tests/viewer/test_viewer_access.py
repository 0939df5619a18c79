"""Who may open the page, by the headers of a request alone."""

import http

import pytest

from lvsm_jax.viewer.access import Access, is_loopback, is_same_origin, make_token
from lvsm_jax.viewer.pace import Pace

HERE = {"host": "box.lan:8080"}
OURS = HERE | {"origin": "http://box.lan:8080"}
TOKEN = "a-token"
ASKING = Access(loopback=False, token=TOKEN)


@pytest.mark.parametrize(
    ("origin", "host", "loopback", "expected"),
    [
        (None, "127.0.0.1:8080", True, True),
        ("http://127.0.0.1:8080", "127.0.0.1:8080", True, True),
        ("http://localhost:9000", "localhost:9000", True, True),
        ("http://[::1]:8080", "[::1]:8080", True, True),
        ("https://evil.example", "127.0.0.1:8080", True, False),
        ("http://evil.example:8080", "evil.example:8080", True, False),
        ("null", "127.0.0.1:8080", True, False),
        ("http://box.lan:8080", "box.lan:8080", False, True),
        ("http://evil.example", "box.lan:8080", False, False),
        ("null", "box.lan:8080", False, False),
        ("http://box.lan", None, False, False),
        # Another server of the same computer, another scheme, and ports that go without saying.
        ("http://localhost:9000", "localhost:8080", True, False),
        ("http://127.0.0.1:8080", "localhost:8080", True, False),
        ("https://box.lan:8080", "box.lan:8080", False, False),
        ("http://box.lan", "box.lan:80", False, True),
        ("http://box.lan:81", "box.lan", False, False),
        ("http://BOX.lan:8080", "box.LAN:8080", False, True),
        # No URLs.
        ("http://[", "[", False, False),
        ("http://box.lan:x", "box.lan:x", False, False),
        ("http://box.lan:99999", "box.lan:99999", False, False),
        ("", "", False, False),
        ("http://", "", False, False),
        ("http://a, http://b", "a", False, False),
    ],
)
def test_other_pages_may_not_connect(origin, host, loopback, expected):
    assert is_same_origin(origin, host, loopback=loopback) == expected
    headers = {"origin": origin, "host": host}
    headers = {name: value for name, value in headers.items() if value is not None}
    answer = Access(loopback).answer("/", headers, socket=True)
    assert (answer is None) == expected
    assert Access(loopback).answer("/", headers, socket=False) is None  # is the same for all


def test_a_proxy_says_that_the_page_is_secure():
    headers = {"origin": "https://box.lan", "host": "box.lan"}
    access = Access(loopback=False)
    assert access.answer("/", headers, socket=True).status == http.HTTPStatus.FORBIDDEN
    assert access.answer("/", headers | {"x-forwarded-proto": "https"}, socket=True) is None


def test_the_link_is_answered_with_a_cookie_that_opens_page_and_socket():
    link = ASKING.link("http://box.lan:8080")
    assert link == f"http://box.lan:8080/?token={TOKEN}"
    answer = ASKING.answer(link.removeprefix("http://box.lan:8080"), HERE, socket=False)
    assert answer.status == http.HTTPStatus.SEE_OTHER
    assert answer.headers["Location"] == "/"  # without the token
    cookie, *attributes = answer.headers["Set-Cookie"].split("; ")
    assert {"HttpOnly", "SameSite=Lax", "Path=/"} == set(attributes)
    headers = OURS | {"cookie": f"other=1; {cookie}"}
    for socket in (True, False):
        assert ASKING.answer("/", headers, socket=socket) is None
    assert Access(False, "another").answer("/", headers, socket=True) is not None
    evil = headers | {"origin": "http://evil.example"}
    assert ASKING.answer("/", evil, socket=True).status == http.HTTPStatus.FORBIDDEN
    secure = HERE | {"x-forwarded-proto": "https"}
    assert "Secure" in ASKING.answer(f"/?token={TOKEN}", secure, socket=False).headers["Set-Cookie"]


def test_a_program_shows_the_token_to_the_socket():
    assert ASKING.answer(f"/?token={TOKEN}", HERE, socket=True) is None


def test_what_else_the_link_says_is_kept_and_leads_nowhere_else():
    answer = ASKING.answer(f"//evil.example/?a=1&token={TOKEN}&b=x%20y", HERE, socket=False)
    assert answer.headers["Location"] == "/evil.example/?a=1&b=x+y"
    assert TOKEN not in answer.headers["Location"]


@pytest.mark.parametrize(
    ("path", "cookie"),
    [
        ("/", ""),
        ("/?token=", ""),
        ("/?token=A-TOKEN", ""),
        ("/?token=a-toke", ""),
        ("/?token=a-token-", ""),
        (f"/?tokens={TOKEN}", ""),
        ("/?token=%ff%00", ""),
        ("/?token=\udcff", ""),
        ("/", f"token={TOKEN}"),
        ("/", TOKEN),
        ("/", f"{ASKING._cookie}="),
        ("/", f"{ASKING._cookie}=wrong"),
        ("/", "=;=;;;"),
    ],
)
def test_without_the_token_nobody_comes_in(path, cookie):
    for socket in (True, False):
        answer = ASKING.answer(path, OURS | {"cookie": cookie}, socket=socket)
        assert answer.status == http.HTTPStatus.FORBIDDEN
        assert TOKEN not in answer.text and "?token=" in answer.text


def test_tokens_differ():
    tokens = {make_token() for _ in range(10)}
    assert len(tokens) == 10 and min(map(len, tokens)) >= 32
    assert Access(True).link("http://localhost:8080") == "http://localhost:8080"


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.0.0.2", True), ("::1", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("192.168.1.2", False), ("box.lan", False), ("", False)],
)  # fmt: skip
def test_what_only_this_computer_reaches(host, expected):
    assert is_loopback(host) == expected


def test_a_pace():
    now = [100.0]
    pace = Pace(rate=2.0, burst=4.0, clock=lambda: now[0])
    assert [pace.allows() for _ in range(6)] == [True] * 4 + [False] * 2
    now[0] += 1
    assert [pace.allows() for _ in range(3)] == [True, True, False]
    now[0] += 1000
    assert pace.delay(4.0) == 0 and pace.delay(3.0) == pytest.approx(1.5)
    assert pace.delay() == pytest.approx(2.0)  # who comes later waits longer
    now[0] += 2
    assert not pace.allows()
