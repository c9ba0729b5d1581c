"""A value that fits a JSON schema: for tool arguments and structured answers. Deterministic and pure."""

from collections.abc import Iterator
from typing import Any, Final

DEPTH_MAX: Final = 12
"""A schema that refers to itself ends here: deeper values are null."""

PROPERTIES_MAX: Final = 64
"""Of one object: a schema with more is cut, so that no request can ask for an absurd answer."""

_FORMATS: Final = {
    "date-time": "2026-01-02T03:04:05Z",
    "date": "2026-01-02",
    "time": "03:04:05Z",
    "email": "someone@example.com",
    "uri": "https://example.com/",
    "uuid": "00000000-0000-4000-8000-000000000000",
}


def sample(schema: Any, words: Iterator[str]) -> Any:
    """Make a value that fits `schema` (JSON Schema, or Gemini's upper-case types); `words` fill its strings.

    What a schema demands by pattern or by arithmetic is not solved: such a value fits in type only.
    """
    return _sample(schema, schema, words, 0)


def _sample(schema: Any, root: Any, words: Iterator[str], depth: int) -> Any:
    if not isinstance(schema, dict) or depth > DEPTH_MAX:
        return None
    if isinstance(reference := schema.get("$ref"), str):
        return _sample(_resolve(reference, root), root, words, depth + 1)
    if "const" in schema:
        return schema["const"]
    if isinstance(enum := schema.get("enum"), list) and enum:
        return enum[0]
    for key in ("anyOf", "oneOf", "allOf"):
        if isinstance(options := schema.get(key), list) and options:
            return _sample(options[0], root, words, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else None)
    if isinstance(kind, list):
        kind = kind[0] if kind else None
    return _of_type(str(kind).lower(), schema, root, words, depth)


def _of_type(kind: str, schema: dict[str, Any], root: Any, words: Iterator[str], depth: int) -> Any:
    match kind:
        case "object":
            properties = schema.get("properties")
            wanted = list(properties.items())[:PROPERTIES_MAX] if isinstance(properties, dict) else []
            return {name: _sample(inner, root, words, depth + 1) for name, inner in wanted}
        case "array":
            least = schema.get("minItems")
            length = min(max(least, 1), PROPERTIES_MAX) if isinstance(least, int) else 1
            return [_sample(schema.get("items"), root, words, depth + 1) for _ in range(length)]
        case "string":
            return _FORMATS.get(str(schema.get("format")), None) or next(words).strip()
        case "integer" | "number":
            return schema.get("minimum", 7)
        case _:
            return True if kind == "boolean" else None


def _resolve(reference: str, root: Any) -> Any:
    """Follow a reference within the schema itself; any other leads nowhere."""
    found = root
    for step in reference.removeprefix("#").strip("/").split("/"):
        if step:
            found = found.get(step) if isinstance(found, dict) else None
    return found if reference.startswith("#") else None
