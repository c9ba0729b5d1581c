"""Read and write requests of the Gemini API: what a body can cost, and what of it may travel.

Model, action and framing stand in the path. The body is protobuf's JSON, in which `snake_case` is another
correct spelling of every field (some SDKs send it), and one object may stand for an array of one: what goes
upstream is camelCase and arrays. Both spellings at once are refused.

Refused by name is what we could not bound or bill: tools that run at the provider (search, maps, code, URL
context …), content that is stored there (`cachedContent`, uploaded files, `gs://`), service tiers, and what
lets the provider choose another model.

Bodies and contents of the shape that nearly everybody sends are read quickly (`usual`), with the same result.
"""

from collections.abc import Callable, Mapping
from typing import Final
from urllib.parse import urlsplit

import msgspec
from attrs import define
from msgspec import UNSET

from proxy.dialects import body as read
from proxy.dialects.body import FieldLists, Object
from proxy.dialects.gemini import usual
from proxy.dialects.gemini.usual import CANDIDATES_MAX, FUNCTION_TOKENS, PART_TOKENS
from proxy.dialects.guard import BodyLimits, bad, guard
from proxy.dialects.usual import UNUSUAL, as_written, beyond_guard, put_back, take
from proxy.types import Ask, Measures, Offer, Path

_STORED: Final = "it refers to something stored at the provider, which cannot be told apart by wallet yet."
_TIER: Final = "only the standard tier has a price here."
_OTHER_MODEL: Final = "it would bill another model than the one that was asked for."
_AT_PROVIDER: Final = "it runs at the provider and bills on its own, which has no bound here yet."

BODY: Final = FieldLists(
    priced=("contents", "systemInstruction", "tools", "toolConfig", "generationConfig", "model"),
    known=("safetySettings", "labels", "store"),
    ours=("cache", "no_cache"),
    forbidden={
        "cachedContent": _STORED,
        "continuationToken": _STORED,
        "serviceTier": _TIER,
        "modelArmorConfig": _AT_PROVIDER,
    },
    either_spelling=True,
)

COUNT: Final = FieldLists(
    priced=(*BODY.priced, "generateContentRequest"),
    known=BODY.known,
    ours=BODY.ours,
    forbidden=BODY.forbidden,
    either_spelling=True,
)

CONTENT: Final = FieldLists(priced=("role", "parts"), either_spelling=True)

PART: Final = FieldLists(
    priced=(
        "text",
        "inlineData",
        "fileData",
        "functionCall",
        "functionResponse",
        "executableCode",
        "codeExecutionResult",
        "toolCall",
        "toolResponse",
        "thought",
        "thoughtSignature",
        "mediaResolution",
        "mediaProcessing",
        "videoMetadata",
    ),
    known=(
        "partMetadata",
        "audioTranscription",
        "speechMetadata",
        "documentMetadata",
        "spreadsheetMetadata",
        "audioMetadata",
    ),
    either_spelling=True,
)

BLOB: Final = FieldLists(priced=("mimeType", "data"), known=("displayName",), either_spelling=True)
FILE: Final = FieldLists(priced=("mimeType", "fileUri"), known=("displayName",), either_spelling=True)
FUNCTION_RESPONSE: Final = FieldLists(
    priced=("id", "name", "response", "parts", "willContinue", "scheduling"), either_spelling=True
)

TOOL: Final = FieldLists(
    priced=("functionDeclarations",),
    forbidden=dict.fromkeys(
        (
            "googleSearch",
            "googleSearchRetrieval",
            "enterpriseWebSearch",
            "codeExecution",
            "urlContext",
            "fileSearch",
            "computerUse",
            "googleMaps",
            "retrieval",
            "mcpServers",
            "parallelAiSearch",
            "exaAiSearch",
        ),
        _AT_PROVIDER,
    ),
    either_spelling=True,
)

GENERATION: Final = FieldLists(
    priced=(
        "maxOutputTokens",
        "candidateCount",
        "thinkingConfig",
        "responseModalities",
        "responseSchema",
        "responseJsonSchema",
        "responseFormat",
    ),
    known=(
        "temperature",
        "topP",
        "topK",
        "seed",
        "stopSequences",
        "responseMimeType",
        "presencePenalty",
        "frequencyPenalty",
        "responseLogprobs",
        "logprobs",
        "mediaResolution",
        "speechConfig",
        "imageConfig",
        "audioTimestamp",
        "audioTranscriptionConfig",
        "enableEnhancedCivicAnswers",
        "enableAffectiveDialog",
        "translationConfig",
    ),
    forbidden={"routingConfig": _OTHER_MODEL, "modelSelectionConfig": _OTHER_MODEL},
    either_spelling=True,
)

THINKING: Final = FieldLists(
    priced=("thinkingBudget", "thinkingLevel", "includeThoughts"), either_spelling=True
)


def read_request(
    path: Path, headers: Mapping[str, str], body: bytes, unknown_fields: str, limits: BodyLimits
) -> Ask:
    """Read and check a request for `:generateContent`, `:streamGenerateContent` or `:countTokens`.

    Raises:
        Rejected: 400 or 413, naming the field.
    """
    model = read.required(path.model, "model")
    stream, free = path.action == "stream", path.action == "count"
    taken = _read_usual(body, limits)
    if taken is None:
        reader = Reader(limits, model, unknown_fields)
        whole = read.read_object(body, limits)
        fields = reader.count_request(whole) if free else reader.request(whole, BODY, "")
        taken = fields, reader.measures()
    return Ask(
        dialect="gemini",
        model=model,
        stream=stream,
        measures=taken[1],
        fields=taken[0],
        free=free,
        live_cost=read.wants_live_cost(headers),
        gemini_array=stream and not path.sse,
    )


def _read_usual(body: bytes, limits: BodyLimits) -> tuple[Object, Measures] | None:
    """Read a request of the usual shape; `None` for any other, which is then read by the long way.

    Raises:
        Rejected: by the guard, before which the long way would do nothing.
    """
    taken = take(body, usual.BODY, limits)
    if taken is None:
        return None
    said, fields = taken
    if len(said.contents) > limits.messages_max:
        return None
    content_bytes = read.size(fields["contents"])
    total = usual.Sum()
    total.contents(said.contents)
    if said.system_instruction is not UNSET:
        content_bytes += read.size(fields["systemInstruction"])
        total.contents([said.system_instruction])
    if not (
        put_back(fields, "contents", said.contents)
        and put_back(fields, "systemInstruction", said.system_instruction)
    ):
        return None
    if total.opaque or not beyond_guard(body, content_bytes, total.turns + total.parts, limits):
        guard(body, limits)
    config, stop_bytes = usual.NOTHING, 0
    if said.generation_config is not UNSET:
        config = said.generation_config
        again = _config_again(fields["generationConfig"])
        fields["generationConfig"] = read.encode(again)
        if "stopSequences" in again:
            stop_bytes = read.size(again["stopSequences"])
    reasoning, budget = usual.reasoning(config.thinking_config)
    measures = Measures(
        text_bytes=total.text_bytes,
        messages=total.turns,
        images=total.images,
        output=config.max_output_tokens,
        choices=config.candidate_count or 1,
        stop_bytes=stop_bytes,
        reasoning=reasoning,
        thinking=budget,
    )
    return fields, measures


def _config_again(raw: msgspec.Raw) -> Object:
    """Take a usual `generationConfig` apart as by the long way: its numbers have more than one short spelling."""
    config = read.OBJECT.decode(raw)
    if "thinkingConfig" in config:
        config["thinkingConfig"] = read.encode(read.OBJECT.decode(config["thinkingConfig"]))
    return config


def write_request(ask: Ask, offer: Offer) -> bytes:
    """Write the body that goes upstream: the ask's fields and the bounds in force; the path has the model.

    A bound on thinking goes only where the caller's own stands.
    """
    fields: dict[str, object] = dict(ask.fields)
    if ask.free:
        inner = read.obj(dict(ask.fields), "generateContentRequest")
        if inner is not None:  # the one place where a body must name the model
            fields["generateContentRequest"] = {"model": f"models/{offer.wire_name}", **inner}
        return read.write(fields)
    rebound = offer.thinking_limit is not None and ask.measures.thinking is not None
    if offer.output_limit is None and not rebound:
        return read.write(fields)
    said = read.obj(dict(ask.fields), "generationConfig") or {}
    generation: dict[str, object] = dict(said)
    if offer.output_limit is not None:
        generation["maxOutputTokens"] = offer.output_limit
    if rebound:
        thinking = read.obj(said, "thinkingConfig") or {}
        generation["thinkingConfig"] = {**thinking, "thinkingBudget": offer.thinking_limit}
    fields["generationConfig"] = generation
    return read.write(fields)


def bare(model: str) -> str:
    """A model's name without the collection that it may stand in."""
    return model.removeprefix("models/")


@define(eq=False)
class Reader:
    """Walks through a body, adds up what it can cost, and gives back what was walked, encoded again.

    Attributes:
        model: as the path names it; a body that names another is refused.
        unknown_fields: what happens to top-level fields that are on no list.
    """

    limits: BodyLimits
    model: str
    unknown_fields: str
    text_bytes: int = 0
    messages: int = 0
    tools: int = 0
    images: int = 0
    audio_bytes: int = 0
    unbounded: bool = False
    output: int | None = None
    choices: int = 1
    stop_bytes: int = 0
    reasoning: bool | None = None
    thinking: int | None = None
    audio_output: bool = False
    image_output: bool = False

    def measures(self) -> Measures:
        """What was added up, as the bounds are made from it."""
        return Measures(
            text_bytes=self.text_bytes,
            messages=self.messages,
            tools=self.tools,
            images=self.images,
            audio_bytes=self.audio_bytes,
            unbounded=self.unbounded,
            output=self.output,
            choices=self.choices,
            stop_bytes=self.stop_bytes,
            reasoning=self.reasoning,
            thinking=self.thinking,
            audio_output=self.audio_output,
            image_output=self.image_output,
        )

    def count_request(self, fields: Object) -> Object:
        """Walk through a body of `:countTokens`: contents, or a whole request to count."""
        fields = COUNT.admit(fields, self.unknown_fields)
        inner = read.obj(fields, "generateContentRequest")
        if inner is None:
            return self.request(fields, COUNT, "")
        if not read.is_null(fields.get("contents")):
            raise bad("contents and generateContentRequest exclude each other.", "generateContentRequest")
        request = self.request(inner, BODY, "generateContentRequest.")
        return {**fields, "generateContentRequest": read.encode(request)}

    def request(self, fields: Object, lists: FieldLists, at: str) -> Object:
        """Walk through a request."""
        fields = dict(lists.admit(fields, self.unknown_fields, at))
        named = read.string(fields, "model", at)
        if named is not None and bare(named) != bare(self.model):
            raise bad(f"{at}model is {named[:64]}, but the path names {self.model[:64]}.", f"{at}model")
        fields.pop("model", None)
        if read.is_null(fields.get("contents")):
            raise bad(f"{at}contents is required.", f"{at}contents")
        fields["contents"] = self._usual_contents(fields["contents"]) or self._each(
            fields["contents"], f"{at}contents", self._content, self.limits.messages_max
        )
        for name, walk in (
            ("systemInstruction", self._content),
            ("generationConfig", self._generation),
        ):
            if not read.is_null(fields.get(name)):
                fields[name] = read.encode(walk(read.as_object(fields[name], f"{at}{name}"), f"{at}{name}."))
        if not read.is_null(fields.get("tools")):
            fields["tools"] = self._each(fields["tools"], f"{at}tools", self._tool, self.limits.tools_max)
        if (choice := fields.get("toolConfig")) is not None:
            self.text_bytes += read.size(choice)
        return fields

    def _usual_contents(self, raw: msgspec.Raw) -> msgspec.Raw | None:
        """Read contents of the usual shape."""
        try:
            contents = usual.CONTENTS.decode(raw)
        except UNUSUAL:
            return None
        written = as_written(raw, contents)
        if written is None or len(contents) > self.limits.messages_max:
            return None
        total = usual.Sum()
        total.contents(contents)
        self.messages += total.turns
        self.text_bytes += total.text_bytes
        self.images += total.images
        return written

    def _each(
        self,
        raw: msgspec.Raw,
        param: str,
        walk: Callable[[Object, str], Object],
        items_max: int | None = None,
    ) -> msgspec.Raw:
        """Walk through an array of objects, or one object in place of an array of one."""
        if read.is_object(raw):
            return read.encode([walk(read.as_object(raw, param), f"{param}.")])
        name = param.rpartition(".")[2]
        items = read.objects({name: raw}, name, param.removesuffix(name), items_max=items_max) or []
        return read.encode([walk(item, f"{param}[{index}].") for index, item in enumerate(items)])

    def _content(self, content: Object, at: str) -> Object:
        content = dict(CONTENT.admit(content, "pass", at))
        read.string(content, "role", at)
        self.messages += 1
        if not read.is_null(content.get("parts")):
            content["parts"] = self._each(content["parts"], f"{at}parts", self._part)
        return content

    def _part(self, part: Object, at: str) -> Object:
        part = dict(PART.admit(part, "pass", at))
        self.text_bytes += PART_TOKENS
        for name, raw in part.items():
            if read.is_null(raw):
                continue
            param = f"{at}{name}"
            if name == "text":
                self.text_bytes += read.text_size(raw, param)
            elif name == "inlineData":
                part[name] = read.encode(self._blob(read.as_object(raw, param), f"{param}."))
            elif name == "fileData":
                part[name] = read.encode(self._file(read.as_object(raw, param), f"{param}."))
            elif name == "functionResponse":
                part[name] = read.encode(self._function_response(read.as_object(raw, param), f"{param}."))
            else:
                self.text_bytes += read.size(raw) + (FUNCTION_TOKENS if name == "functionCall" else 0)
                # A kind of part that we have never heard of may fill the context window.
                self.unbounded |= name not in PART.priced and name not in PART.known
        return part

    def _blob(self, blob: Object, at: str) -> Object:
        """Media within the body."""
        blob = BLOB.admit(blob, "pass", at)
        kind = (read.string(blob, "mimeType", at) or "").lower()
        data = read.required(blob.get("data"), f"{at}data")
        if not read.is_string(data):
            raise bad(f"{at}data must be a string, not {read.shown(data)}.", f"{at}data")
        if kind.startswith("image/"):
            self.images += 1
        elif kind.startswith("audio/"):
            self.audio_bytes += read.size(data) * 3 // 4
        elif kind.startswith("text/"):
            self.text_bytes += read.size(data)
        else:  # a PDF has as many pages as it likes, a film as many frames
            self.unbounded = True
        return blob

    def _file(self, file: Object, at: str) -> Object:
        """Media elsewhere: on the web it may be anything; at the provider it may be another customer's."""
        file = FILE.admit(file, "pass", at)
        uri = read.required(read.string(file, "fileUri", at), f"{at}fileUri")
        if not _is_public(uri):
            raise bad(f"{at}fileUri is not offered: {_STORED}", f"{at}fileUri")
        self.unbounded = True
        return file

    def _function_response(self, response: Object, at: str) -> Object:
        response = dict(FUNCTION_RESPONSE.admit(response, "pass", at))
        self.text_bytes += FUNCTION_TOKENS
        for name, raw in response.items():
            if name == "parts" and not read.is_null(raw):
                response[name] = self._each(raw, f"{at}parts", self._part)
            else:
                self.text_bytes += read.size(raw)
        return response

    def _tool(self, tool: Object, at: str) -> Object:
        # Whatever else a tool may be runs at the provider: unknown kinds are refused whatever is configured.
        tool = dict(TOOL.admit(tool, "refuse", at))
        declarations = tool.get("functionDeclarations")
        if declarations is not None and not read.is_null(declarations):
            if read.is_object(declarations):
                tool["functionDeclarations"] = declarations = read.encode([declarations])
            count = len(read.array(tool, "functionDeclarations", at, items_max=self.limits.tools_max) or ())
            self.tools += count
            self.text_bytes += read.size(declarations) + count * FUNCTION_TOKENS
        return tool

    def _generation(self, config: Object, at: str) -> Object:
        config = dict(GENERATION.admit(config, "pass", at))
        self.output = read.integer(config, "maxOutputTokens", at, low=1)
        self.choices = read.integer(config, "candidateCount", at, low=1, high=CANDIDATES_MAX) or 1
        if (stops := config.get("stopSequences")) is not None:
            self.stop_bytes = read.size(stops)
        thinking = read.obj(config, "thinkingConfig", at)
        if thinking is not None:
            config["thinkingConfig"] = read.encode(self._thinking(thinking, f"{at}thinkingConfig."))
        modalities = {word.upper() for word in read.strings(config, "responseModalities", at) or ()}
        self.audio_output = "AUDIO" in modalities
        self.image_output = "IMAGE" in modalities
        if not modalities <= {"MODALITY_UNSPECIFIED", "TEXT", "IMAGE", "AUDIO"}:
            raise bad(f"{at}responseModalities may hold TEXT, IMAGE and AUDIO.", f"{at}responseModalities")
        for name in ("responseSchema", "responseJsonSchema", "responseFormat"):  # part of the prompt
            if (schema := config.get(name)) is not None:
                self.text_bytes += read.size(schema)
        return config

    def _thinking(self, thinking: Object, at: str) -> Object:
        thinking = THINKING.admit(thinking, "pass", at)
        budget = read.integer(thinking, "thinkingBudget", at, low=-1)
        level = read.string(thinking, "thinkingLevel", at)
        if budget is not None:
            self.reasoning = budget != 0
            self.thinking = budget if budget > 0 else None  # -1 leaves it to the model
        elif level is not None:
            self.reasoning = True
        return thinking


def _is_public(uri: str) -> bool:
    """Whether a URI leads to the open web, rather than to what the provider keeps for its customers."""
    try:
        parts = urlsplit(uri.strip())
        host = parts.hostname or ""
    except ValueError:
        return False
    return (
        parts.scheme in ("http", "https") and bool(host) and not host.rstrip(".").endswith("googleapis.com")
    )
