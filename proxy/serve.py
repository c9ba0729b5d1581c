"""The story of one request: held before, metered live, settled exactly once. Read `serve` top to bottom.

Nothing here knows which door the bytes came in by or which provider answers: `reply` and `gateway.upstreams` are
arguments. Money moves only inside the hold, synchronously; the awaits here carry bytes or wait for durability.
"""

from collections.abc import Awaitable

from accounting.hold import Hold
from accounting.ports import Overloaded
from proxy import credit, headers
from proxy.errors import Failure, Kind
from proxy.gateway import Gateway
from proxy.limits import Limited
from proxy.types import WRITTEN, Answer, Path, Reply, Request, Translator


async def serve(gateway: Gateway, path: Path, request: Request, reply: Reply) -> None:
    """Answer one request and settle it, whatever happens on the way.

    Raises:
        Failure: what the caller is to be told; by then everything is settled or void.
    """
    config, dialect = gateway.config, gateway.dialects[path.dialect]
    caller = gateway.keys.caller(request.headers, request.query, path.dialect)
    reply.note(headers.balance(gateway.books.balance(caller.spender.wallet)))
    with gateway.limits.admit(caller, reply) as slot:
        if standing := slot.standing():
            reply.note(headers.standing(standing, path.dialect, gateway.books.clock()))
        claim = credit.claim(gateway, caller, path, request)
        ask = dialect.read_request(
            path,
            request.headers,
            await request.body(config.limits.body_bytes_max, gateway.limits.uploads),
            config.unknown_fields,
        )
        offers = gateway.router.offers(ask, caller, gateway.books.available_to(claim))
        slot.tokens(offers[0].bounds)
        with slot.spending(await credit.hold(gateway, request.id, claim, offers, reply)) as hold:
            reply.note(headers.held(hold, offers[0], ask))
            async with (
                reply.keep_alive(headers.heartbeat(dialect, ask), config.deadlines.heartbeat_seconds),
                gateway.upstreams.answer(ask, offers, hold, reply) as answer,
            ):
                ask = ask.answered()
                translator = dialect.passthrough(ask, hold.meter, hold.cost_so_far)
                await hold.journaled()
                reply.start(answer.status, headers.answer(answer, ask))
                await relay(answer, translator, hold, reply)
                translator.finish()
                hold.cover(b"", translator.cut)  # the last frame may have waited for the end
        await hold.settled()
        await reply.end(translator.end(hold.receipt), headers.receipt(hold.receipt))


async def relay(answer: Answer, translator: Translator, hold: Hold, reply: Reply) -> None:
    """Meter what comes, cover it, and write it, until the answer is over or the credit used up."""
    writing: Awaitable[None] = WRITTEN

    def take(chunk: bytes) -> bool:
        # called where bytes arrive, mostly without this task being woken: so it waits for nothing
        nonlocal writing
        covered = hold.cover(translator.feed(chunk), translator.cut)
        writing = WRITTEN if reply.client_gone else reply.write(covered)
        return writing is WRITTEN and not translator.ended and not hold.exhausted

    over = False
    while not over and not hold.exhausted:
        over = await answer.hand_on(take)
        if writing is not WRITTEN:
            await answer.in_time(writing, more=not (over or hold.exhausted))
            writing = WRITTEN
        if translator.ended:
            answer.expect_close()


async def respond(gateway: Gateway, path: Path, request: Request, reply: Reply) -> None:
    """Serve one request, and word whatever goes wrong in the caller's dialect."""
    with gateway.telemetry.request(request, path, reply) as log:
        try:
            await serve(gateway, path, request, reply)
        except Overloaded as overloaded:
            await _fail(gateway, path, request, reply, log.failed(credit.overloaded(overloaded)))
        except Failure as failure:
            await _fail(gateway, path, request, reply, log.failed(failure))
        except Exception as error:  # noqa: BLE001 - our own fault: a 500 for the caller, the traceback for the log
            log.crashed(error)
            ours = Failure(Kind.INTERNAL, f"Something went wrong here. The request's id is {request.id}.")
            await _fail(gateway, path, request, reply, ours)


async def _fail(gateway: Gateway, path: Path, request: Request, reply: Reply, failure: Failure) -> None:
    dialect = gateway.dialects[path.dialect]
    if reply.started:
        await reply.end(dialect.error_event(failure, request.id, path))
        return
    if isinstance(failure, Limited):
        reply.note(headers.standing(failure.standing, path.dialect, gateway.books.clock()))
    wording = dialect.error(failure, request.id)
    reply.start(wording.status, dict(wording.headers))
    await reply.end(wording.body)
