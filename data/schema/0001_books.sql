-- The books as an index of the journal: what reports, pages and the audit ask. Only accounting/store.py writes here.
--
-- Every row carries `seq`, the place of its line in the journal; order is by seq, never by time. Times are wall clock
-- in milliseconds since 1970 (UTC). Amounts are picos (10^-12 of the wallet's currency): HUGEINT, because they are
-- summed and because one absurd report must never be a row that cannot be loaded. Column names are the field names of
-- accounting/records.py; `grant` alone is written `grant_`, since standard SQL reserves it.
--
-- Per-request tables have no primary key: its index would live in memory and slow down every load. That nothing
-- stands here twice is held by `meta.loaded_seq`, which moves in the same transaction as the rows, and is checked by
-- `farebox verify`.

-- One row. Everything up to loaded_seq is in the tables below, nothing after it is.
CREATE TABLE meta (
    loaded_seq BIGINT NOT NULL CHECK (loaded_seq >= 0)
);
INSERT INTO meta VALUES (0);

-- W: one row per wallet, its newest line; created_ms and created_seq are those of its first.
CREATE TABLE wallet (
    seq         BIGINT  NOT NULL,
    wallet      VARCHAR NOT NULL PRIMARY KEY,
    name        VARCHAR NOT NULL,
    currency    VARCHAR NOT NULL,
    frozen      BOOLEAN NOT NULL,
    at_ms       BIGINT  NOT NULL,
    created_seq BIGINT  NOT NULL,
    created_ms  BIGINT  NOT NULL
);

-- K: one row per key, its newest line; the key itself is kept nowhere.
CREATE TABLE api_key (
    seq                 BIGINT    NOT NULL,
    key                 VARCHAR   NOT NULL PRIMARY KEY,
    wallet              VARCHAR   NOT NULL,
    digest              VARCHAR   NOT NULL,
    hint                VARCHAR   NOT NULL,
    name                VARCHAR   NOT NULL,
    requests_per_minute BIGINT,
    tokens_per_minute   BIGINT,
    concurrency         BIGINT,
    models              VARCHAR[] NOT NULL,
    markup_ppm          BIGINT,
    expires_ms          BIGINT,
    revoked             BOOLEAN   NOT NULL,
    at_ms               BIGINT    NOT NULL,
    created_seq         BIGINT    NOT NULL,
    created_ms          BIGINT    NOT NULL
);

-- G: money that came in.
CREATE TABLE grant_ (
    seq        BIGINT  NOT NULL,
    grant_     VARCHAR NOT NULL,
    wallet     VARCHAR NOT NULL,
    amount     HUGEINT NOT NULL CHECK (amount >= 0),
    kind       VARCHAR NOT NULL CHECK (kind IN ('paid', 'promo')),
    source_key VARCHAR NOT NULL,
    at_ms      BIGINT  NOT NULL,
    expires_ms BIGINT
);

-- The general ledger: one debit, one credit, never changed.
-- T lines stand here as they are, with their own seq (first_seq = seq). Everything else is posted as one transfer per
-- (loaded slice, wallet, kind, accounts, currency), and `seq` is the newest line in it, `first_seq` the oldest:
--   kind         debit          credit            amount                   from
--   top_up       psp_clearing   wallet_paid       sum of amount            G, paid
--   promo        promo_expense  wallet_promo      sum of amount            G, promo
--   usage        wallet_paid    revenue           sum of legs              S, legs of paid grants
--   usage_promo  wallet_promo   revenue           sum of legs              S, legs of promotional grants
--   loss         operator_loss  revenue           sum of loss              S
--   cost         upstream_cost  upstream_payable  sum of cost              S
-- Amounts of zero are not posted. Revenue is therefore the sum of `price`: what was charged and what we bore.
CREATE TABLE transfer (
    seq       BIGINT  NOT NULL,
    first_seq BIGINT  NOT NULL,
    transfer  VARCHAR NOT NULL,
    wallet    VARCHAR NOT NULL,
    debit     VARCHAR NOT NULL,
    credit    VARCHAR NOT NULL,
    amount    HUGEINT NOT NULL,
    currency  VARCHAR NOT NULL,
    kind      VARCHAR NOT NULL,
    ref       VARCHAR NOT NULL,
    at_ms     BIGINT  NOT NULL,
    grant_    VARCHAR
);

-- A: written before the first byte left for a provider. It ends in one row of usage or of void.
CREATE TABLE attempt (
    seq           BIGINT  NOT NULL,
    request       VARCHAR NOT NULL,
    number        BIGINT  NOT NULL CHECK (number >= 1),
    wallet        VARCHAR NOT NULL,
    key           VARCHAR NOT NULL,
    hold          HUGEINT NOT NULL CHECK (hold >= 0),
    model         VARCHAR NOT NULL,
    provider      VARCHAR NOT NULL,
    account       VARCHAR NOT NULL,
    dialect       VARCHAR NOT NULL,
    stream        BOOLEAN NOT NULL,
    price_version VARCHAR NOT NULL,
    markup_ppm    BIGINT  NOT NULL,
    kind          VARCHAR NOT NULL,
    at_ms         BIGINT  NOT NULL
);

-- S: the subledger, one row per settled attempt, never added together. What must not exceed what (charged, held) is
-- for `farebox verify` to find, not for a CHECK: a row that can never be loaded would stop all those after it.
CREATE TABLE usage (
    seq            BIGINT    NOT NULL,
    request        VARCHAR   NOT NULL,
    number         BIGINT    NOT NULL CHECK (number >= 1),
    wallet         VARCHAR   NOT NULL,
    key            VARCHAR   NOT NULL,
    model          VARCHAR   NOT NULL,
    provider       VARCHAR   NOT NULL,
    account        VARCHAR   NOT NULL,
    dialect        VARCHAR   NOT NULL,
    stream         BOOLEAN   NOT NULL,
    outcome        VARCHAR   NOT NULL,
    status         BIGINT    NOT NULL,
    source         VARCHAR   NOT NULL,
    price_version  VARCHAR   NOT NULL,
    markup_ppm     BIGINT    NOT NULL,
    held           HUGEINT   NOT NULL CHECK (held >= 0),
    price          HUGEINT   NOT NULL CHECK (price >= 0),
    charged        HUGEINT   NOT NULL CHECK (charged >= 0),
    cost           HUGEINT   NOT NULL CHECK (cost >= 0),
    loss           HUGEINT   NOT NULL CHECK (loss >= 0),
    currency       VARCHAR   NOT NULL,
    started_ms     BIGINT    NOT NULL,
    first_byte_ms  BIGINT,
    ended_ms       BIGINT    NOT NULL,
    upstream_id    VARCHAR,
    flags          VARCHAR[] NOT NULL,
    -- The buckets of Usage, at most 2^40 each (pricing.usage.COUNT_MAX).
    input          BIGINT    NOT NULL CHECK (input BETWEEN 0 AND 1099511627776),
    cache_read     BIGINT    NOT NULL CHECK (cache_read BETWEEN 0 AND 1099511627776),
    cache_write_5m BIGINT    NOT NULL CHECK (cache_write_5m BETWEEN 0 AND 1099511627776),
    cache_write_1h BIGINT    NOT NULL CHECK (cache_write_1h BETWEEN 0 AND 1099511627776),
    output         BIGINT    NOT NULL CHECK (output BETWEEN 0 AND 1099511627776),
    reasoning      BIGINT    NOT NULL CHECK (reasoning BETWEEN 0 AND 1099511627776),
    audio_input    BIGINT    NOT NULL CHECK (audio_input BETWEEN 0 AND 1099511627776),
    audio_cached   BIGINT    NOT NULL CHECK (audio_cached BETWEEN 0 AND 1099511627776),
    audio_output   BIGINT    NOT NULL CHECK (audio_output BETWEEN 0 AND 1099511627776),
    image_input    BIGINT    NOT NULL CHECK (image_input BETWEEN 0 AND 1099511627776),
    image_output   BIGINT    NOT NULL CHECK (image_output BETWEEN 0 AND 1099511627776),
    requests       BIGINT    NOT NULL CHECK (requests BETWEEN 0 AND 1099511627776),
    web_searches   BIGINT    NOT NULL CHECK (web_searches BETWEEN 0 AND 1099511627776),
    seconds        BIGINT    NOT NULL CHECK (seconds BETWEEN 0 AND 1099511627776),
    characters     BIGINT    NOT NULL CHECK (characters BETWEEN 0 AND 1099511627776),
    images         BIGINT    NOT NULL CHECK (images BETWEEN 0 AND 1099511627776),
    -- The legs that were priced, where there is more than one, and which grants paid.
    usage_legs     JSON      NOT NULL,
    legs           STRUCT(grant_ VARCHAR, amount HUGEINT)[] NOT NULL
);

-- V: an attempt that was never sent.
CREATE TABLE void (
    seq     BIGINT  NOT NULL,
    request VARCHAR NOT NULL,
    number  BIGINT  NOT NULL CHECK (number >= 1),
    because VARCHAR NOT NULL,
    at_ms   BIGINT  NOT NULL
);

-- Attempts that have no end yet.
CREATE VIEW open_attempt AS
    SELECT a.* FROM attempt a
    ANTI JOIN (SELECT request, number FROM usage UNION ALL SELECT request, number FROM void) e
    ON a.request = e.request AND a.number = e.number;
