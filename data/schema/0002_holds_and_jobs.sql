-- Holds that change, work that outlives a connection, tasks with a budget, keys with a cap.

-- X: from this line on `hold` is set aside for the request; the newest one counts.
CREATE TABLE extension (
    seq     BIGINT  NOT NULL,
    request VARCHAR NOT NULL,
    number  BIGINT  NOT NULL CHECK (number >= 1),
    hold    HUGEINT NOT NULL CHECK (hold >= 0),
    at_ms   BIGINT  NOT NULL
);

-- J: a provider has taken work on, under its own id `job`. What it uses, and what that costs the customer and us at
-- list price, if it finishes.
CREATE TABLE job (
    seq       BIGINT  NOT NULL,
    request   VARCHAR NOT NULL,
    number    BIGINT  NOT NULL CHECK (number >= 1),
    job       VARCHAR NOT NULL,
    usage     JSON    NOT NULL,
    cost      HUGEINT NOT NULL CHECK (cost >= 0),
    list_cost HUGEINT NOT NULL CHECK (list_cost >= 0),
    at_ms     BIGINT  NOT NULL
);

-- When the hold of the request was taken, which decides the window of a cap (0: at_ms); the task that it belongs to,
-- or '', and what that might spend, as this request had it.
ALTER TABLE attempt ADD COLUMN hold_ms BIGINT DEFAULT 0;
ALTER TABLE attempt ADD COLUMN budget VARCHAR DEFAULT '';
ALTER TABLE attempt ADD COLUMN budget_max HUGEINT;
ALTER TABLE attempt ALTER COLUMN hold_ms SET NOT NULL;
ALTER TABLE attempt ALTER COLUMN budget SET NOT NULL;

ALTER TABLE usage ADD COLUMN budget VARCHAR DEFAULT '';
ALTER TABLE usage ALTER COLUMN budget SET NOT NULL;

-- What a key may spend in one window (lifetime, day, week, month; NULL: no cap), and whether a bound on output that
-- the credit cannot bear is lowered.
ALTER TABLE api_key ADD COLUMN cap HUGEINT;
ALTER TABLE api_key ADD COLUMN cap_window VARCHAR DEFAULT 'lifetime';
ALTER TABLE api_key ADD COLUMN clamp BOOLEAN DEFAULT false;
ALTER TABLE api_key ALTER COLUMN cap_window SET NOT NULL;
ALTER TABLE api_key ALTER COLUMN clamp SET NOT NULL;

-- Attempts that have no end yet: as before, with the new columns and what is set aside for them by now.
DROP VIEW open_attempt;
CREATE VIEW open_attempt AS
    SELECT a.*, coalesce(x.held, a.hold) AS held
    FROM attempt a
    ANTI JOIN (SELECT request, number FROM usage UNION ALL SELECT request, number FROM void) e
    ON a.request = e.request AND a.number = e.number
    LEFT JOIN (SELECT request, number, arg_max(hold, seq) AS held FROM extension GROUP BY request, number) x
    ON a.request = x.request AND a.number = x.number;
