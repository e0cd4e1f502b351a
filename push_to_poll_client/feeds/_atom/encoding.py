"""IN WHICH ENCODING is a document? By RFC 7303 §3: its byte order mark says so, else HTTP, else the document."""

import codecs
import re

from push_to_poll_client._validation import quoted

__all__ = ["as_utf8"]

_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),  # before that of UTF-16, which it begins with
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_UNMARKED = {b"<\0": "utf-16-le", b"\0<": "utf-16-be"}

_IN_HTTP = re.compile(r';[ \t]*charset[ \t]*=[ \t]*"?([^\s";]+)', re.IGNORECASE)
_IN_XML = re.compile(rb"""<\?xml[^>]{1,200}?\sencoding\s{0,20}=\s{0,20}["']([^"'>]*)""")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,39}")

_NOT_FOR_TEXT = frozenset({"idna", "mbcs", "oem", "punycode", "raw-unicode-escape", "undefined", "unicode-escape"})
"""What Python can decode and no server sends; some take quadratic time."""

_SAME = frozenset({"utf-8", "ascii"})
"""The latter is what servers say who were told nothing; what is none of it is looked at as UTF-8."""


def as_utf8(body: bytes, content_type: str) -> bytes:
    """A document in UTF-8, whatever it calls its encoding itself.

    Args:
        body: As it came.
        content_type: The header; "" when there is none. Its `charset` wins over what the document says.

    Raises:
        ValueError: The encoding is unknown, or the document is not in it.
    """
    for mark, name in _MARKS:
        if body.startswith(mark):
            return _decoded(body[len(mark) :], name)
    stated = _IN_HTTP.search(content_type)
    if stated:
        return _decoded(body, stated[1])
    unmarked = _UNMARKED.get(body[:2])
    declared = _IN_XML.match(body)
    return _decoded(body, unmarked or (declared[1].decode("latin-1") if declared else "utf-8"))


def _decoded(body: bytes, name: str) -> bytes:
    codec = _codec(name)
    if codec in _SAME:
        return body
    try:
        return body.decode(codec).encode()
    except LookupError:  # a codec for something else than text
        raise _unknown(name) from None
    except UnicodeError as error:
        raise ValueError(f"is not in {quoted(name)}, in which it is said to be: {quoted(error)}") from None


def _codec(name: str) -> str:
    """What Python calls it."""
    try:
        codec = codecs.lookup(name).name if _NAME.fullmatch(name) else ""
    except LookupError:
        codec = ""
    if not codec or codec in _NOT_FOR_TEXT:
        raise _unknown(name)
    return codec


def _unknown(name: str) -> ValueError:
    return ValueError(f"is in the encoding {quoted(name)}, which is unknown here; ask for UTF-8")
