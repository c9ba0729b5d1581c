"""Drives the sandbox's ASGI app in memory; a test in which time passes asks for a virtual clock."""

import json
from urllib.parse import quote

import pytest
import trio
from attrs import define, field

from proxy.sandbox.app import build

KEY = "sk-sandbox-account-one"
CREDENTIALS = {
    "openai_chat": {"authorization": f"Bearer {KEY}"},
    "anthropic": {"x-api-key": KEY},
    "gemini": {"x-goog-api-key": KEY},
}


@define(eq=False)
class Answer:
    status: int | None = None
    headers: list[tuple[str, str]] = field(factory=list)
    writes: list[tuple[float, bytes]] = field(factory=list)
    ended: bool = False
    started_at: float | None = None
    took: float = 0.0

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.writes)

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def lower(self) -> dict[str, str]:
        return dict(self.headers)

    @property
    def frames(self) -> list[bytes]:
        """The events, without what separates them."""
        return [frame for frame in self.body.replace(b"\r\n", b"\n").split(b"\n\n") if frame]

    @property
    def events(self) -> list:
        """What the events' data lines hold, `[DONE]` left out."""
        lines = [line for frame in self.frames for line in frame.split(b"\n") if line.startswith(b"data: ")]
        return [json.loads(line[6:]) for line in lines if line != b"data: [DONE]"]


@define(eq=False)
class Caller:
    app: object = field(factory=lambda: build(now=trio.current_time, wall=lambda: 1_763_700_000.0))

    async def send(self, method, path, body=b"", headers=None, query="", *, hang_up_after=None, until=None):
        """One request. `hang_up_after` seconds, or at the first write for which `until(answer)` holds."""
        answer, gone, began = Answer(), trio.Event(), trio.current_time()
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive():
            if waiting:
                return waiting.pop(0)
            await gone.wait()
            return {"type": "http.disconnect"}

        async def write(message):
            await trio.lowlevel.checkpoint()
            if gone.is_set():
                return
            if message["type"] == "http.response.start":
                assert answer.status is None
                answer.status, answer.started_at = message["status"], trio.current_time() - began
                answer.headers = [(name.decode(), value.decode()) for name, value in message["headers"]]
                return
            assert answer.status is not None
            assert not answer.ended
            if message["body"]:
                answer.writes.append((trio.current_time() - began, message["body"]))
            answer.ended = not message["more_body"]
            if until is not None and until(answer):
                gone.set()

        scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": quote(path).encode(),
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in (headers or {}).items()],
        }
        async with trio.open_nursery() as nursery:
            if hang_up_after is not None:

                async def leave():
                    await trio.sleep(hang_up_after)
                    gone.set()

                nursery.start_soon(leave)
            await self.app(scope, receive, write)
            nursery.cancel_scope.cancel()
        answer.took = trio.current_time() - began
        return answer

    async def chat(
        self, told="", *, key=None, metadata=None, model="sandbox-chat", leave=None, until=None, **fields
    ):
        body = {
            "model": f"{model}@{told}" if told else model,
            "messages": [{"role": "user", "content": "Hi there"}],
        }
        body |= {"metadata": {"sandbox": metadata}} if metadata else {}
        headers = {"authorization": f"Bearer {key or KEY}"}
        return await self.send(
            "POST",
            "/v1/chat/completions",
            json.dumps(body | fields).encode(),
            headers,
            hang_up_after=leave,
            until=until,
        )

    async def messages(self, told="", *, path="/v1/messages", leave=None, until=None, **fields):
        body = {
            "model": f"claude-opus-5-5@{told}" if told else "claude-opus-5-5",
            "max_tokens": 1000,
            "messages": [{"role": "user", "content": "Hi there"}],
        }
        return await self.send(
            "POST",
            path,
            json.dumps(body | fields).encode(),
            CREDENTIALS["anthropic"],
            hang_up_after=leave,
            until=until,
        )

    async def gemini(
        self,
        told="",
        *,
        action="generateContent",
        sse=True,
        version="v1beta",
        leave=None,
        until=None,
        **fields,
    ):
        model = f"gemini-2.5-flash@{told}" if told else "gemini-2.5-flash"
        body = {"contents": [{"role": "user", "parts": [{"text": "Hi there"}]}]}
        query = "alt=sse" if sse and action == "streamGenerateContent" else ""
        return await self.send(
            "POST",
            f"/{version}/models/{model}:{action}",
            json.dumps(body | fields).encode(),
            CREDENTIALS["gemini"],
            query,
            hang_up_after=leave,
            until=until,
        )

    async def in_dialect(self, dialect, told="", *, stream=False, **more):
        """The same request in any dialect."""
        match dialect:
            case "openai_chat":
                options = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
                return await self.chat(told, **options, **more)
            case "anthropic":
                return await self.messages(told, stream=stream, **more)
            case _:
                return await self.gemini(
                    told, action="streamGenerateContent" if stream else "generateContent", **more
                )

    async def calls(self, query=""):
        return (await self.send("GET", "/sandbox/calls", query=query)).json

    async def last_call(self):
        return (await self.calls())["data"][-1]


@pytest.fixture
def new_caller():
    return Caller


@pytest.fixture
def caller() -> Caller:
    return Caller()
