"""What a caller can tell the sandbox to do, and the one pure function that reads it.

A directive string is a comma-separated list of `name=value`; a switch may go without its `=1`. It comes after
an `@` in the model's name, `sandbox-chat@tokens=500,ttft_ms=200`, or in the request's metadata, or both: then
the metadata is read last and wins. Whatever it says is the whole truth about a call: the sandbox keeps no
other state per caller, save the counter behind `times`.
"""

from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from attrs import evolve, field, fields, frozen

TOKENS_MAX: Final = 1_000_000
"""Of text in one answer: as long as the longest outputs there are; `endless` is for more."""

MILLISECONDS_MAX: Final = 3_600_000
"""An hour: no deadline that a test could want to provoke is longer."""

DIRECTIVES_LENGTH_MAX: Final = 512
"""Of one directive string: OpenAI's own limit for a metadata value, which may carry it."""


class BadDirectiveError(ValueError):
    """The directive string is not understood; the message says what there is."""


def _number(name: str, value: str, least: int, most: int) -> int:
    if not (value.isascii() and value.isdigit()) or len(value) > 12 or not least <= int(value) <= most:
        raise BadDirectiveError(f"{name}={value}: expected a whole number from {least} to {most}")
    return int(value)


def _flag(name: str, value: str) -> bool:
    if value.lower() in ("1", "true", "yes"):
        return True
    if value.lower() in ("0", "false", "no"):
        return False
    raise BadDirectiveError(f"{name}={value}: expected 1 or 0")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise BadDirectiveError(f"{name}={value}: expected one of {', '.join(choices)}")
    return value


def _word(name: str, value: str) -> str:
    if not value:
        raise BadDirectiveError(f"{name}: expected a value")
    return value


def _names(name: str, value: str) -> tuple[str, ...]:
    return tuple(_word(name, part) for part in value.split("+"))


Reader = Callable[[str, str], Any]


def _directive(default: Any, read: Reader, help_text: str) -> Any:
    return field(default=default, metadata={"read": read, "help": help_text})


def _count(default: int | None, most: int, help_text: str, *, least: int = 0) -> Any:
    return _directive(default, partial(_number, least=least, most=most), help_text)


def _milliseconds(help_text: str) -> Any:
    return _count(0, MILLISECONDS_MAX, help_text)


@frozen
class Directives:
    """Everything that one call can be told; each field is a directive of the same name.

    `text` alone is none: it is the string that was read, by which `times` counts.
    """

    tokens: int | None = _count(
        None, TOKENS_MAX, "tokens of text to answer with (else 24 to 55, chosen by the request)"
    )
    reasoning: int | None = _count(
        None, TOKENS_MAX, "reasoning tokens before the text (else 16 where the request turns reasoning on)"
    )
    tool: tuple[str, ...] = _directive(
        (), _names, "call this declared tool if the last message is a user's; `a+b` calls both"
    )
    head_ms: int = _milliseconds("wait before the status line")
    ttft_ms: int = _milliseconds("time to the first token, from the status line on")
    gap_ms: int = _milliseconds("time between tokens, hidden ones included")
    ping_ms: int = _milliseconds("Anthropic: a ping event in every such span of silence; 0 is never")
    frame_tokens: int = _count(1, TOKENS_MAX, "tokens in one frame", least=1)
    batch: int = _count(32, 10_000, "frames in one write where no time passes between them", least=1)
    split_bytes: int = _count(0, 2**20, "cut every write into writes of that many bytes; 0 is never")
    cached: int = _count(0, 100, "percent of the input that is read from the prompt cache")
    cache_write: int | None = _count(
        None, 100, "percent of the input that is written to it (5 minutes); else what cache_control marks"
    )
    cache_write_1h: int | None = _count(None, 100, "the same, for an hour")
    status: int | None = _count(
        None, 599, "fail with this HTTP status; with fail_at, the error in mid-stream is that one", least=400
    )
    retry_after: int | None = _count(None, 86_400, "seconds, said with a failure")
    fail_at: int | None = _count(
        None, TOKENS_MAX, "an error in mid-stream once that many tokens are out; not streamed: status 500"
    )
    bare_error: bool = _directive(
        False, _flag, "Gemini: an error in mid-stream is bare JSON after the events, as Google does too"
    )
    overload_in_prelude: bool = _directive(
        False,
        _flag,
        "status 200, the prelude, then an overload error; bills nothing; not streamed: 529 or 503",
    )
    cut_at: int | None = _count(None, TOKENS_MAX, "cut the connection once that many tokens are out")
    stall_at: int | None = _count(None, TOKENS_MAX, "say nothing more once that many tokens are out")
    silent: bool = _directive(False, _flag, "accept the request and never answer; bills nothing")
    times: int | None = _count(
        None, 1_000_000, "only the first N calls with this very directive string fail, later ones answer"
    )
    fail_key: str | None = _directive(
        None, _word, "only calls whose credential ends in this text fail (for pools of accounts)"
    )
    endless: bool = _directive(
        False, _flag, "never stop, whatever output bound was sent; gap_ms is 10 unless said; streams only"
    )
    no_close: bool = _directive(False, _flag, "keep the connection open after the end of the answer")
    bills_on: bool = _directive(False, _flag, "when hung up on, bill the whole answer")
    usage: str = _directive(
        "true",
        partial(_one_of, choices=("true", "none", "double", "over")),
        "`none` reports no usage; `double` reports and bills everything twice; `over` reports and bills an "
        "output of twice its bound and one more",
    )
    text: str = ""

    @property
    def fails(self) -> bool:
        """Whether this call is told to fail in some way."""
        return (
            self.status is not None
            or self.fail_at is not None
            or self.cut_at is not None
            or self.stall_at is not None
            or self.silent
            or self.overload_in_prelude
        )

    def forgiven(self) -> "Directives":
        """The same without any failure: for calls after the first `times`, or of another credential."""
        return evolve(
            self,
            status=None,
            fail_at=None,
            cut_at=None,
            stall_at=None,
            silent=False,
            overload_in_prelude=False,
        )


KNOWN: Final = MappingProxyType(
    {
        attribute.name: (attribute.metadata["read"], attribute.metadata["help"])
        for attribute in fields(Directives)
        if attribute.metadata
    }
)
"""Name of each directive to its reader and its sentence in the guide."""


def parse(model: str, metadata: str | None = None) -> tuple[str, Directives]:
    """Split a model's name from its directives, and read those of the request's metadata too.

    Args:
        model: as it was sent, `name` or `name@directives`.
        metadata: a directive string from the request's metadata, or `None`.

    Raises:
        BadDirectiveError: unknown, malformed or too long.
    """
    name, at, suffix = model.partition("@")
    if not at and metadata is None:
        return name, NO_DIRECTIVES
    text = ",".join(part for part in (suffix, metadata) if part)
    if max(len(suffix), len(metadata or "")) > DIRECTIVES_LENGTH_MAX:
        raise BadDirectiveError(f"directives are at most {DIRECTIVES_LENGTH_MAX} characters long")
    said: dict[str, Any] = {}
    for part in text.split(","):
        key, equals, value = part.strip().partition("=")
        if not key and not equals:
            continue
        if key not in KNOWN:
            raise BadDirectiveError(f"unknown directive {key[:40]!r}; there are: {', '.join(KNOWN)}")
        read = KNOWN[key][0]
        said[key] = read(key, value if equals or read is not _flag else "1")
    if said.get("endless") and "gap_ms" not in said:
        said["gap_ms"] = 10  # an endless answer as fast as it can go would starve everything else
    return name, Directives(**said, text=text)


NO_DIRECTIVES: Final = Directives()
