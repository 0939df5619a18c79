"""Who may open the page: pure functions of a request's path and headers.

A browser lets any page open a websocket to any server, and names the page as the origin: it must be
ours. Where a token is asked for, the link carries it; the answer to the link is a cookie, which the
browser shows from then on, and the address without the token.
"""

import dataclasses
import hashlib
import hmac
import http
import ipaddress
import secrets
import urllib.parse
from collections.abc import Mapping

_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_PORTS = {"http": 80, "https": 443}
_QUERY = "token"
_HOW = "open the whole link that `lvsm view` printed, with ?token= at its end"


@dataclasses.dataclass(frozen=True)
class Answer:
    """A request's answer, in place of the page or of the websocket."""

    status: http.HTTPStatus
    text: str
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Access:
    """Who is let in.

    Attributes:
        loopback: Whether only this computer can reach the port: then pages whose names lead to it
            (DNS rebinding) are refused.
        token: What whoever opens the page must know; None for nothing.
    """

    loopback: bool
    token: str | None = None

    def answer(self, path: str, headers: Mapping[str, str], *, socket: bool) -> Answer | None:
        """The answer to who is not let in, and to who shows the token first; None for the others.

        `path` comes with its query, the names of `headers` in lower case. A `socket` carries all
        that there is to see; without it the request is for the page, which is the same everywhere.
        """
        secure = headers.get("x-forwarded-proto") == "https"  # which no page can say, but a proxy
        if socket:
            origin, host = headers.get("origin"), headers.get("host")
            if not is_same_origin(origin, host, loopback=self.loopback, secure=secure):
                return Answer(http.HTTPStatus.FORBIDDEN, "from another page")
        if self.token is None:
            return None
        place, _, query = path.partition("?")
        fields = urllib.parse.parse_qsl(query, keep_blank_values=True)
        if self._is_token(dict(fields).get(_QUERY)):
            return None if socket else self._enter(place, fields, secure)
        if self._is_token(_cookies(headers).get(self._cookie)):
            return None
        return Answer(http.HTTPStatus.FORBIDDEN, f"This page asks for a token: {_HOW}.\n")

    def link(self, url: str) -> str:
        """The address to open, for the address of the page."""
        return url if self.token is None else f"{url}/?{_QUERY}={self.token}"

    @property
    def _cookie(self) -> str:
        """Its name, of this viewer alone: cookies of a host go to all of its ports."""
        return f"lvsm-view-{hashlib.sha256(str(self.token).encode()).hexdigest()[:12]}"

    def _enter(self, place: str, fields: list[tuple[str, str]], secure: bool) -> Answer:
        rest = urllib.parse.urlencode([field for field in fields if field[0] != _QUERY])
        location = f"/{place.lstrip('/')}{'?' if rest else ''}{rest}"
        # Lax, so that it is there when the link is opened from another page, such as a mail.
        cookie = f"{self._cookie}={self.token}; Path=/; HttpOnly; SameSite=Lax"
        headers = {"Location": location, "Set-Cookie": cookie + ("; Secure" if secure else "")}
        headers |= {"Cache-Control": "no-store", "Referrer-Policy": "no-referrer"}
        return Answer(http.HTTPStatus.SEE_OTHER, "", headers)

    def _is_token(self, text: str | None) -> bool:
        """In a time that tells nothing."""
        if text is None or self.token is None:
            return False
        return hmac.compare_digest(text.encode(errors="replace"), self.token.encode())


def make_token() -> str:
    """One that nobody guesses: 192 random bits."""
    return secrets.token_urlsafe(24)


def is_loopback(host: str) -> bool:
    """Whether who listens at a host's address or name is reached from this computer alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def is_same_origin(
    origin: str | None, host: str | None, *, loopback: bool, secure: bool = False
) -> bool:
    """Whether a connection comes from our own page, by the Origin and Host of its request.

    Scheme, host and port must be the same; the scheme is https if `secure`, as a proxy in front
    says. Other programs than browsers name no origin, and could name any. Where we listen on the
    loopback alone, pages of other names that lead to it are refused too.
    """
    if origin is None:
        return True
    try:
        page = _origin(origin)
        ours = _origin(f"{'https' if secure else 'http'}://{host}")
    except ValueError:
        return False
    if loopback and page[1] not in _LOOPBACK:
        return False
    return page[1] is not None and page == ours


def _origin(url: str) -> tuple[str, str | None, int | None]:
    """Scheme, host and port; ValueError for what is no URL."""
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or _PORTS.get(parts.scheme)


def _cookies(headers: Mapping[str, str]) -> dict[str, str]:
    pairs = (pair.partition("=") for pair in headers.get("cookie", "").split(";"))
    return {name.strip(): value.strip() for name, _, value in pairs}
