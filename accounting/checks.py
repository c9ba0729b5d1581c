"""The invariants of the books as queries that must return nothing; `accounting/audit.py` asks them.

Each is one statement over the store and so sees one instant, whatever is loaded meanwhile.
"""

from typing import Final

from attrs import frozen

from accounting.reports import SEQ_MAX
from accounting.spending import TASK_IDLE_MS


@frozen
class Check:
    """A query that must return nothing; each row that it does return is (where, what)."""

    invariant: str
    sql: str


_ENDS: Final = "(SELECT seq, request, number FROM usage UNION ALL SELECT seq, request, number FROM void)"
_PAID: Final = """(
    SELECT u.seq, u.request, u.number, u.wallet, leg.grant_ AS grant_, leg.amount AS amount
    FROM (SELECT seq, request, number, wallet, unnest(legs) AS leg FROM usage) u
)"""
REMAINS: Final = f"""
    SELECT g.wallet AS wallet, g.grant_ AS grant_, g.amount - coalesce(sum(m.amount), 0) AS remains
    FROM grant_ g LEFT JOIN (
        SELECT grant_, amount FROM {_PAID} WHERE seq <= $1
        UNION ALL SELECT grant_, amount FROM transfer WHERE grant_ IS NOT NULL AND seq <= $1
    ) m ON m.grant_ = g.grant_
    WHERE g.seq <= $1
    GROUP BY g.seq, g.wallet, g.grant_, g.amount"""  # noqa: S608 - the same constants everywhere
"""What is left of each grant after line $1."""

_HELD: Final = "(SELECT request, number, arg_max(hold, seq) AS held FROM extension GROUP BY request, number)"
"""What is set aside for an attempt by its newest X."""

_LIVES: Final = f"""(
    SELECT *, count(*) FILTER (WHERE anew) OVER (PARTITION BY wallet, budget ORDER BY seq) AS life
    FROM (
        SELECT *, asked_ms - max(asked_ms) OVER earlier > {TASK_IDLE_MS} AND max(ended) OVER earlier < seq AS anew
        FROM (
            SELECT a.seq, a.request, a.number, a.wallet, a.budget, a.budget_max,
                if(a.hold_ms = 0, a.at_ms, a.hold_ms) AS asked_ms, coalesce(e.seq, {SEQ_MAX}) AS ended
            FROM attempt a LEFT JOIN {_ENDS} e ON e.request = a.request AND e.number = a.number
            WHERE a.budget <> ''
        )
        WINDOW earlier AS (
            PARTITION BY wallet, budget ORDER BY seq ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        )
    )
)"""  # noqa: S608
"""The attempts of tasks; a task that was forgotten and named again has another `life`."""

CHECKS: Final = (
    Check(
        "I1",
        """SELECT 'transfer ' || transfer, 'moves ' || amount || ' from ' || debit || ' to ' || credit
           FROM transfer WHERE amount <= 0 OR debit = credit""",
    ),
    Check(
        "I3",
        f"""SELECT 'request ' || request || ', attempt ' || number, 'ended ' || count(*) || ' times'
            FROM {_ENDS} GROUP BY request, number HAVING count(*) > 1""",  # noqa: S608
    ),
    Check(
        "I3",
        """SELECT 'request ' || request || ', attempt ' || number, 'began ' || count(*) || ' times'
           FROM attempt GROUP BY request, number HAVING count(*) > 1""",
    ),
    Check(
        "I3",
        f"""SELECT 'request ' || e.request || ', attempt ' || e.number, 'ended but did not begin before'
            FROM {_ENDS} e ANTI JOIN attempt a
            ON a.request = e.request AND a.number = e.number AND a.seq < e.seq""",  # noqa: S608
    ),
    Check(
        "I3",
        """SELECT 'request ' || u.request || ', attempt ' || u.number, 'was settled otherwise than it began'
           FROM usage u JOIN attempt a ON a.request = u.request AND a.number = u.number
           WHERE (a.wallet, a.key, a.model, a.price_version, a.markup_ppm, a.budget)
             <> (u.wallet, u.key, u.model, u.price_version, u.markup_ppm, u.budget)""",
    ),
    Check(
        "I3",
        f"""SELECT 'request ' || u.request || ', attempt ' || u.number,
                   'was settled with ' || u.held || ' held, and ' || coalesce(x.held, a.hold) || ' were'
            FROM usage u JOIN attempt a ON a.request = u.request AND a.number = u.number
            LEFT JOIN {_HELD} x ON x.request = u.request AND x.number = u.number
            WHERE u.held <> coalesce(x.held, a.hold)""",  # noqa: S608
    ),
    Check(
        "I3",
        f"""SELECT 'request ' || n.request || ', attempt ' || n.number,
                   'line ' || n.seq || ' is news of it, but it is not open there'
            FROM (
                SELECT seq, request, number FROM extension UNION ALL SELECT seq, request, number FROM job
            ) n ANTI JOIN (
                SELECT a.seq, a.request, a.number, coalesce(e.seq, {SEQ_MAX}) AS ended
                FROM attempt a LEFT JOIN {_ENDS} e ON e.request = a.request AND e.number = a.number
            ) a ON a.request = n.request AND a.number = n.number AND n.seq > a.seq AND n.seq < a.ended""",  # noqa: S608
    ),
    Check(
        "I3",
        """SELECT 'request ' || request || ', attempt ' || number, 'is ' || count(*) || ' jobs'
           FROM job GROUP BY request, number HAVING count(*) > 1""",
    ),
    Check(
        "I3",
        """SELECT 'request ' || a.request || ', attempt ' || a.number, 'became a job, but began as a ' || a.kind
           FROM attempt a JOIN job j ON j.request = a.request AND j.number = a.number
           WHERE a.kind <> 'job'""",
    ),
    Check(
        "I2",
        f"""SELECT 'wallet ' || wallet || ', task ' || budget,
                   'was charged ' || max(spent) || ' and might spend ' || min(most)
            FROM (
                SELECT wallet, budget, life, sum(charged) OVER sofar AS spent, min(budget_max) OVER sofar AS most
                FROM (
                    SELECT wallet, budget, life, seq, budget_max, 0::HUGEINT AS charged FROM {_LIVES}
                    UNION ALL
                    SELECT l.wallet, l.budget, l.life, u.seq, NULL, u.charged
                    FROM usage u JOIN {_LIVES} l ON l.request = u.request AND l.number = u.number
                ) WINDOW sofar AS (PARTITION BY wallet, budget, life ORDER BY seq)
            ) WHERE spent > most GROUP BY wallet, budget, life""",  # noqa: S608
    ),
    Check(
        "I4",
        """SELECT 'line ' || seq, 'stands in ' || count(*) || ' rows' FROM (
             SELECT seq FROM grant_ UNION ALL SELECT seq FROM attempt UNION ALL SELECT seq FROM usage
             UNION ALL SELECT seq FROM void UNION ALL SELECT seq FROM wallet UNION ALL SELECT seq FROM api_key
             UNION ALL SELECT seq FROM extension UNION ALL SELECT seq FROM job
           ) GROUP BY seq HAVING count(*) > 1""",
    ),
    Check(
        "I4",
        """SELECT 'line ' || seq, 'is beyond the last one loaded' FROM (
             SELECT seq FROM grant_ UNION ALL SELECT seq FROM attempt UNION ALL SELECT seq FROM usage
             UNION ALL SELECT seq FROM void UNION ALL SELECT seq FROM wallet UNION ALL SELECT seq FROM api_key
             UNION ALL SELECT seq FROM extension UNION ALL SELECT seq FROM job
             UNION ALL SELECT seq FROM transfer
           ) WHERE seq < 1 OR seq > (SELECT loaded_seq FROM meta)""",
    ),
    Check("I4", "SELECT 'meta', 'has ' || count(*) || ' rows' FROM meta HAVING count(*) <> 1"),
    Check(
        "I6",
        f"""SELECT 'wallet ' || wallet,
                   kind || ': ' || sum(ours) || ' in the subledger, ' || sum(posted) || ' posted'
            FROM (
              SELECT wallet, kind, 0::HUGEINT AS ours, amount AS posted FROM transfer
              WHERE kind IN ('top_up', 'promo', 'usage', 'usage_promo', 'loss', 'cost')
              UNION ALL
              SELECT wallet, CASE kind WHEN 'paid' THEN 'top_up' ELSE 'promo' END, amount, 0 FROM grant_
              UNION ALL
              SELECT p.wallet, CASE g.kind WHEN 'paid' THEN 'usage' ELSE 'usage_promo' END, p.amount, 0
              FROM {_PAID} p JOIN grant_ g ON g.grant_ = p.grant_
              UNION ALL SELECT wallet, 'loss', loss, 0 FROM usage
              UNION ALL SELECT wallet, 'cost', cost, 0 FROM usage
            ) GROUP BY wallet, kind HAVING sum(ours) <> sum(posted)""",  # noqa: S608
    ),
    Check(
        "I7",
        """SELECT 'request ' || request || ', attempt ' || number,
                  'charged ' || charged || ' at a price of ' || price
                  || ' with ' || held || ' held and a loss of ' || loss
           FROM usage WHERE charged <> least(price, held) OR loss <> price - charged""",
    ),
    Check(
        "I7",
        """SELECT 'request ' || u.request || ', attempt ' || u.number,
                  'has a price of ' || u.price || ', and the job was to cost ' || j.cost
           FROM usage u JOIN job j ON j.request = u.request AND j.number = u.number WHERE u.price <> j.cost""",
    ),
    Check(
        "I7",
        """SELECT 'request ' || request || ', attempt ' || number,
                  'charged ' || charged || ' but its grants paid otherwise'
           FROM usage WHERE charged <> coalesce(list_sum(list_transform(legs, lambda leg: leg.amount)), 0)""",
    ),
    Check(
        "I7",
        f"""SELECT 'request ' || p.request || ', attempt ' || p.number, 'was paid by grant ' || p.grant_
            FROM {_PAID} p ANTI JOIN grant_ g
            ON g.grant_ = p.grant_ AND g.wallet = p.wallet AND g.seq < p.seq""",  # noqa: S608
    ),
    Check(
        "I7",
        """SELECT 'transfer ' || t.transfer, 'takes from grant ' || t.grant_ FROM transfer t
           ANTI JOIN grant_ g ON g.grant_ = t.grant_ AND g.wallet = t.wallet AND g.seq < t.seq
           WHERE t.grant_ IS NOT NULL""",
    ),
    Check(
        "I8",
        """SELECT o.what,
                  'in ' || o.currency || ', its wallet in ' || coalesce(w.currency, 'nothing: there is none')
           FROM (
             SELECT 'transfer ' || transfer AS what, wallet, currency FROM transfer UNION ALL
             SELECT 'request ' || request || ', attempt ' || number, wallet, currency FROM usage
           ) o LEFT JOIN wallet w ON w.wallet = o.wallet WHERE w.currency IS DISTINCT FROM o.currency""",
    ),
    Check(
        "I8",
        """SELECT o.what, 'belongs to no wallet' FROM (
             SELECT 'grant ' || grant_ AS what, wallet FROM grant_ UNION ALL
             SELECT 'key ' || key, wallet FROM api_key UNION ALL
             SELECT 'request ' || request || ', attempt ' || number, wallet FROM attempt
           ) o ANTI JOIN wallet w ON w.wallet = o.wallet""",
    ),
    Check(
        "I9",
        """SELECT 'payment ' || source_key, 'was credited ' || count(*) || ' times'
           FROM grant_ GROUP BY source_key HAVING count(*) > 1""",
    ),
    Check(
        "I9",
        """SELECT 'grant ' || grant_, 'stands in the books ' || count(*) || ' times'
           FROM grant_ GROUP BY grant_ HAVING count(*) > 1""",
    ),
)

OVERDRAWN: Final = f"""
    SELECT 'wallet ' || wallet || ', grant ' || grant_, 'has ' || remains || ' left'
    FROM ({REMAINS}) WHERE remains < 0"""  # noqa: S608

STALE_ATTEMPTS: Final = """
    SELECT 'request ' || o.request || ', attempt ' || o.number, 'open since ' || o.at_ms FROM open_attempt o
    ANTI JOIN job j ON j.request = o.request AND j.number = o.number
    WHERE o.at_ms < ?"""
"""A job may be open for as long as its provider works on it; one that no provider has taken on may not."""

LOADED: Final = "SELECT loaded_seq FROM meta"

OPEN: Final = f"""
    SELECT a.request, a.number, coalesce(x.held, a.hold) FROM attempt a
    ANTI JOIN (SELECT * FROM {_ENDS} WHERE seq <= $1) e ON a.request = e.request AND a.number = e.number
    LEFT JOIN (
        SELECT request, number, arg_max(hold, seq) AS held FROM extension WHERE seq <= $1
        GROUP BY request, number
    ) x ON x.request = a.request AND x.number = a.number
    WHERE a.seq <= $1"""  # noqa: S608
"""The attempts that are open after line $1, and what is set aside for them there."""

TOTALS: Final = """
    SELECT (SELECT count(*) FROM attempt WHERE seq <= $1), (SELECT count(*) FROM void WHERE seq <= $1),
           (SELECT count(*) FROM extension WHERE seq <= $1), (SELECT count(*) FROM job WHERE seq <= $1),
           count(*), coalesce(sum(charged), 0), coalesce(sum(price), 0), coalesce(sum(cost), 0),
           coalesce(sum(loss), 0), coalesce(sum(input), 0), coalesce(sum(output), 0)
    FROM usage WHERE seq <= $1"""
"""What `accounting.audit.Totals` counts, in its order, up to line $1."""
