"""A secret that stands in the URL itself, as some vendors want it: sent, and shown nowhere."""

import hashlib
import re
from collections.abc import Callable, Mapping
from urllib.parse import quote

from push_to_poll_client import _http
from push_to_poll_client._http import without_secrets

__all__ = ["Hidden"]

MAX_SECRET = 4096
"""Characters. Tokens in URLs have some 50."""

_SCHEME_AND_AUTHORITY = re.compile(r"[^:/?#]*:?//[^/?#]*")


class Hidden:
    """Fills the fields of a URL, `https://api.example/bot{token}/updates`, and puts them back into what is shown.

    Args:
        template: With a field in braces for each secret, in its path or query.
        secrets: By the names of the fields.

    Attributes:
        where: The template without what else is secret in it.
        url: Filled, each secret percent-encoded but for what every path may have (RFC 3986 §3.3).
        identity: What the feed is, without secrets. Another secret is another feed: behind another token there
            are other messages, and no cursor is good for both.

    Raises:
        TypeError: A name or a secret is no `str`.
        ValueError: A secret is empty, or has no field, or one where no secret can stand.
    """

    def __init__(self, template: str, secrets: Mapping[str, str]) -> None:
        self.where = without_secrets(template)
        self.url = template
        self._forms: list[tuple[re.Pattern[str], str]] = []
        for name, secret in sorted(_checked(template, secrets).items(), key=lambda item: -len(item[1])):
            self.url = self.url.replace(f"{{{name}}}", quote(secret, safe=":@"))
            self._forms.append((_every_form(secret), f"{{{name}}}"))
        self.identity = _http.identity(template)
        if secrets:
            digest = hashlib.sha256(self.url.encode(errors="surrogatepass")).hexdigest()
            self.identity = f"{self.where}#{digest[:8]}"
        self.shown: Callable[[object], str] = self._shown if secrets else without_secrets
        """A URL as `without_secrets` shows it, and without these secrets, whoever wrote it."""

    def masked(self, text: str) -> str:
        """Any text, with the fields in place of their secrets."""
        for form, field in self._forms:
            text = form.sub(field, text)
        return text

    def _shown(self, url: object) -> str:
        return without_secrets(self.masked(str(url)))


def _checked(template: str, secrets: Mapping[str, str]) -> Mapping[str, str]:
    authority = _SCHEME_AND_AUTHORITY.match(template)
    for name, secret in secrets.items():
        if not (isinstance(name, str) and isinstance(secret, str)):
            raise TypeError(f"secrets have a {type(secret).__name__} for {name!r}; give str for both")
        field = f"{{{name}}}"
        if not 0 < len(secret) <= MAX_SECRET:
            raise ValueError(f"the secret {name!r} has {len(secret)} characters; give 1 to {MAX_SECRET}")
        if field not in template or (authority is not None and field in authority[0]):
            raise ValueError(f"url has no field {field} in its path or query for the secret {name!r}")
    return secrets


def _every_form(secret: str) -> re.Pattern[str]:
    """It as it is and percent-encoded in any way, since servers write URLs anew."""
    forms = (f"(?:{_encoded(char)}|{re.escape(char)})" for char in secret)
    return re.compile("".join(forms))


def _encoded(char: str) -> str:
    octets = char.encode(errors="surrogatepass")
    return "".join(f"(?i:%{octet:02x})" for octet in octets)
