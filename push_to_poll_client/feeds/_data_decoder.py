"""Convert the data of messages by the user's `decode=`: a msgspec type, a pydantic model, or a function.

If the data does not fit, the error names the field and the expected type, but not the data, which may be secret.
pydantic is not imported: a model is recognised by its methods.
"""

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any, Generic, NewType, TypeAlias, get_origin

import msgspec

from push_to_poll_client._exceptions import DecodeError
from push_to_poll_client._types import D_co, Message
from push_to_poll_client._validation import describe, one_line, quoted

Decode: TypeAlias = type[D_co] | Callable[[Any], D_co]
"""A type that msgspec or pydantic can make of the data, or a function of the data."""

_MAX_SHOWN = 3
"""Faults that the error of a pydantic model names."""

_MAX_FAULTS = 100
"""Above this number no fault is named: pydantic makes a dict for each, and a list may have millions."""

# These errors repeat a value of the data: an enum, a Literal, or the tag of a union.
_SHOWS_VALUE = re.compile(r"(Invalid (?:enum )?value) .*?( - at `\$[^`]*`)?", re.DOTALL)
_PYDANTIC_SHOWS_VALUE = "union_tag_invalid"


class DataDecoder(Generic[D_co]):
    """A user's `decode=`; raises TypeError if it is neither a type that can be decoded nor a function."""

    def __init__(self, decode: Decode[D_co]) -> None:
        self._is_type = isinstance(decode, type | NewType) or get_origin(decode) is not None
        self._name = decode.__name__ if isinstance(decode, type) else str(decode)
        if self._is_type:
            self._convert: Callable[[Any], D_co] = _convert_to(decode)
        elif callable(decode) and not inspect.iscoroutinefunction(decode):
            self._convert = decode
        else:
            raise TypeError(f"decode must be a type, a pydantic model or a plain function, got {decode!r}")

    def decode(self, data: Any, message: Message) -> D_co:
        """Convert the data of a message; raise DecodeError if it does not fit."""
        try:
            return self._convert(data)
        except DecodeError:
            raise
        except Exception as error:
            if not self._is_type:
                text = f"decode= failed for the data of message {quoted(message.id)}: {describe(error)}"
                raise DecodeError(text) from error
            reason = str(error) if isinstance(error, ValueError) else describe(error)
            if found := _SHOWS_VALUE.fullmatch(reason):
                reason = f"{found[1]}{found[2] or ''}"
            text = f"the data of message {quoted(message.id)} does not fit {self._name}: {one_line(reason)}"
            # Not chained: the error of a model contains the data, and a log line would show it.
            raise DecodeError(f"{text}; correct decode=, or report it to the publisher") from None


def _convert_to(type_: Any) -> Callable[[Any], Any]:
    from msgspec.inspect import type_info

    try:
        unknown = [cls for cls in _custom_classes(type_info(type_)) if not _is_model(cls) and cls is not object]
    except Exception as error:  # annotations of the user's class may raise anything
        raise TypeError(f"decode cannot be {type_!r}: {describe(error)}") from error
    if unknown:
        raise TypeError(
            f"decode cannot make a {unknown[0].__name__}; pass a msgspec Struct, a dataclass, a TypedDict, a "
            "pydantic model, or a function of the data"
        )
    # By way of JSON: `msgspec.convert` would read the type anew for each message, and a strict model of pydantic
    # takes dates and the like from JSON alone.
    if _is_model(type_):
        return partial(_make_custom, type_)
    decode = msgspec.json.Decoder(type_, dec_hook=_make_custom).decode
    return lambda data: decode(msgspec.json.encode(data))


def _is_model(cls: Any) -> bool:
    return hasattr(cls, "model_validate_json")


def _custom_classes(info: Any) -> list[type]:
    """Find the classes in a type that msgspec leaves to `_make_custom`."""
    from msgspec.inspect import CustomType

    found, seen, rest = list[type](), set[int](), [info]
    while rest:
        part = rest.pop()
        if isinstance(part, CustomType):
            found.append(part.cls)
        elif isinstance(part, tuple):
            rest += part
        elif isinstance(part, msgspec.Struct) and id(part) not in seen:  # a type may contain itself
            seen.add(id(part))
            rest += msgspec.structs.astuple(part)
    return found


def _make_custom(cls: Any, data: Any) -> Any:
    """Make a pydantic model, with its errors in one line; an `object` accepts any data."""
    if cls is object:
        return data
    try:
        return cls.model_validate_json(msgspec.json.encode(data))
    except ValueError as error:
        if not (hasattr(error, "errors") and hasattr(error, "error_count")):
            raise  # by a validator of another library
        if error.error_count() > _MAX_FAULTS:
            raise ValueError(f"it has {error.error_count()} invalid fields") from None
        faults = error.errors(include_url=False, include_input=False, include_context=False)
        shown = [_describe_fault(fault) for fault in faults[:_MAX_SHOWN]]
        more = [f"{len(faults) - _MAX_SHOWN} more"] if len(faults) > _MAX_SHOWN else []
        raise ValueError("; ".join(shown + more)) from None


def _describe_fault(fault: Any) -> str:
    place = ".".join(map(str, fault["loc"])) or "the data"
    return f"{place}: {fault['type'] if fault['type'] == _PYDANTIC_SHOWS_VALUE else fault['msg']}"
