"""The story of one request: held before, metered live, settled exactly once. Read `serve` top to bottom.

Nothing here knows which door the bytes came in by or which provider answers: `reply` and `gateway.upstreams` are
arguments. Money moves only inside the hold, synchronously; the awaits here carry bytes or wait for durability.
"""

from proxy import credit
from proxy.errors import Failure, Kind
from proxy.gateway import Gateway
from proxy.headers import answer_headers, hold_headers, receipt_headers
from proxy.types import Path, Reply, Request


async def respond(gateway: Gateway, path: Path, request: Request, reply: Reply) -> None:
    """Serve one request, and word whatever goes wrong in the caller's dialect."""
    dialect = gateway.dialects[path.dialect]
    try:
        await serve(gateway, path, request, reply)
    except Failure as failure:
        gateway.telemetry.failed(request, failure)
    except Exception as error:  # noqa: BLE001 - our own fault: the caller gets a 500, the log the traceback
        gateway.telemetry.crashed(request, error)
        failure = Failure(Kind.INTERNAL, f"Something went wrong here. The request's id is {request.id}.")
    else:
        return
    if reply.started:
        await reply.end(dialect.error_event(failure, request.id))
    else:
        wording = dialect.error(failure, request.id)
        reply.start(wording.status, dict(wording.headers))
        await reply.end(wording.body)


async def serve(gateway: Gateway, path: Path, request: Request, reply: Reply) -> None:
    """Answer one request and settle it, whatever happens on the way.

    Raises:
        Failure: with what the caller is to be told; by then everything is settled or void.
    """
    config, dialect = gateway.config, gateway.dialects[path.dialect]
    caller = gateway.keys.caller(request.headers, request.query, path.dialect)
    with gateway.limits.admit(caller, reply) as slot:
        reply.note(slot.headers(path.dialect))
        body = await request.body(config.limits.body_bytes_max)
        ask = dialect.read_request(path, request.headers, body, config.unknown_fields)
        offers = gateway.router.offers(ask, caller)
        slot.tokens(offers)
        with credit.hold(gateway, request.id, caller, offers, reply) as hold:
            reply.note(hold_headers(hold, offers[0]))
            async with (
                reply.keep_alive(dialect.heartbeat if ask.stream else b"", config.deadlines.heartbeat_seconds),
                gateway.upstreams.answer(ask, offers, hold, reply) as answer,
            ):
                translator = dialect.passthrough(ask, hold.meter)
                await hold.journaled()
                reply.start(answer.status, answer_headers(answer, ask))
                async for chunk in answer:
                    await reply.write(hold.cover(translator.feed(chunk)))
                    if translator.ended:
                        answer.expect_close()
                translator.finish()
        slot.true_up(hold.receipt)
        await hold.settled()
        await reply.end(translator.end(hold.receipt), receipt_headers(hold.receipt))
