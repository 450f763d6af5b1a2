"""The sources, tables and views of the run, and for each view what DuckDB is to answer.

A view's truth is a query over the rows that the law accepts, one table a source (see law.py): its columns by name, and `ts` in
microseconds as `ts_us`. `{ads}` and its like stand for the watermark of a source. Truths read views below them from the log
as well, never from what Riverrun says.

No partition is ever idle (a day), and event times lie in the past, so that verdicts depend on the logs alone: no fact about
idle partitions or rows from the future is needed.
"""

from dataclasses import dataclass

DELAY_US = 10_000_000
LENIENCE_US = 15_000_000
WITHIN_US = 60_000_000

AD_COLUMNS = [
    ("event_id", "VARCHAR"),
    ("ad_id", "BIGINT"),
    ("event_type", "VARCHAR"),
    ("user_id", "BIGINT"),
    ("country", "VARCHAR"),
    ("amount", "BIGINT"),
    ("price", "DOUBLE"),
    ("ts", "TIMESTAMPTZ"),
]
PAYMENT_COLUMNS = [("payment_id", "VARCHAR"), ("account", "INT"), ("amount", "BIGINT"), ("ts", "TIMESTAMP")]
SIGNUP_COLUMNS = [("signup_id", "VARCHAR"), ("plan", "VARCHAR"), ("amount", "BIGINT"), ("ts", "TIMESTAMPTZ")]
CLICK_COLUMNS = [("event_id", "VARCHAR"), ("ad_id", "BIGINT"), ("amount", "BIGINT"), ("ts", "TIMESTAMPTZ")]

TABLES = [
    "CREATE TABLE accounts (id BIGINT PRIMARY KEY, client INT NOT NULL, grp INT, balance BIGINT NOT NULL, note VARCHAR)",
    "CREATE TABLE ledger (client INT, seq BIGINT, account BIGINT, amount BIGINT)",
    "CREATE TABLE late_ads (event_id VARCHAR, ad_id BIGINT, ts TIMESTAMPTZ, late_reason VARCHAR, late_partition INT, late_offset BIGINT)",
]


@dataclass(frozen=True)
class Source:
    """A source over a topic; `lateness_us` and `within` are the law's."""

    name: str
    topic: str
    columns: list
    lateness_us: int = 0
    within: str = ""  # "", "across" or "same_partition"
    options: str = ""
    last: str = ""
    # A source without a watermark has no late rows. The watermark of a partition that comes later is a fact that no log holds.
    timed: bool = True

    def sql(self, bootstrap):
        columns = ", ".join(f"{name} {kind}" for name, kind in self.columns)
        unique = (
            f", DEDUPLICATE BY ({self.columns[0][0]}) WITHIN INTERVAL '{WITHIN_US // 1_000_000} seconds'"
            if self.within
            else ""
        )
        options = self.options + (
            f", allowed_lateness = '{self.lateness_us // 1_000_000} seconds'" if self.lateness_us else ""
        )
        if self.within == "same_partition":
            options += ", deduplicate.same_partition = true"
        if self.timed:
            columns += f", WATERMARK FOR ts AS ts - INTERVAL '{DELAY_US // 1_000_000} seconds'"
            options += ", idle_timeout = '1 day'"
        return (
            f"CREATE SOURCE {self.name} ({columns}{unique}) "
            f"INCLUDE partition AS p INCLUDE offset AS o WITH (connector = 'kafka', topic = '{self.topic}', "
            f"properties.bootstrap.server = '{bootstrap}'{options}) FORMAT PLAIN ENCODE JSON {self.last}"
        )


SOURCES = [
    Source("ads", "ads", AD_COLUMNS, last="LATE ROWS INTO late_ads"),
    Source("lenient", "ads", AD_COLUMNS, lateness_us=LENIENCE_US),
    Source("payments", "payments", PAYMENT_COLUMNS, options=", properties.isolation.level = 'read_committed'"),
    Source("clicks", "clicks", CLICK_COLUMNS, within="across"),
    Source("clicks_here", "clicks", CLICK_COLUMNS, within="same_partition"),
    Source("signups", "signups", SIGNUP_COLUMNS, timed=False),
]


@dataclass(frozen=True)
class View:
    name: str
    body: str
    truth: str
    options: str = ""
    # Shows a window once: what it has shown never changes.
    final: bool = False

    def sql(self, name=None):
        return f"CREATE MATERIALIZED VIEW {name or self.name} {self.options} AS {self.body}"


def hop(table, slide_s, size_s):
    """Rows of a table, once for each window that holds them."""
    slide, size = slide_s * 1_000_000, size_s * 1_000_000
    return (
        f"(SELECT *, make_timestamp(s) AS window_start, make_timestamp(s + {size}) AS window_end FROM (SELECT *, "
        f"unnest(range(ts_us // {slide} * {slide} - {size - slide}, ts_us // {slide} * {slide} + 1, {slide})) AS s FROM {table}))"
    )


def tumble(table, size_s):
    return hop(table, size_s, size_s)


def session(table, key, gap_s):
    """Rows of a table with the window of their session."""
    gap = gap_s * 1_000_000
    return (
        f"(SELECT *, make_timestamp(min(ts_us) OVER s) AS window_start, make_timestamp(max(ts_us) OVER s + {gap}) AS window_end FROM "
        f"(SELECT *, sum(begins) OVER (PARTITION BY {key} ORDER BY ts_us, p, o ROWS UNBOUNDED PRECEDING) AS number FROM "
        f"(SELECT *, CASE WHEN ts_us - lag(ts_us) OVER (PARTITION BY {key} ORDER BY ts_us, p, o) < {gap} THEN 0 ELSE 1 END AS begins FROM {table})) "
        f"WINDOW s AS (PARTITION BY {key}, number))"
    )


STATS = "count(*) AS n, sum(amount) AS total, count(DISTINCT user_id) AS users, min(amount) AS lo, max(amount) AS hi, avg(amount) AS mean"
PER_AD = f"SELECT ad_id, {STATS} FROM ads GROUP BY ad_id"
MINUTE = "SELECT ad_id, window_start, window_end, " + STATS + " FROM {} GROUP BY ad_id, window_start, window_end"
CLOSED = (
    "SELECT ad_id, country, window_start, window_end, count(*) AS n, count(*) FILTER (WHERE event_type = 'click') AS clicks, "
    "sum(price) AS price FROM {} GROUP BY ad_id, country, window_start, window_end"
)
VISITS = "SELECT user_id, window_start, window_end, count(*) AS n, sum(amount) AS total, max(ad_id) AS last FROM {} GROUP BY user_id, window_start, window_end"
COUNTRY_1M = "SELECT country, event_type, window_start, window_end, count(*) AS n, sum(amount) AS total FROM {} GROUP BY country, event_type, window_start, window_end"
LATELY = "SELECT country, window_start, window_end, count(*) AS n, max(amount) AS hi FROM {} GROUP BY country, window_start, window_end"
CLICKS_1M = "SELECT ad_id, window_start, window_end, count(*) AS n, sum(amount) AS total, min(amount) AS lo FROM {} GROUP BY ad_id, window_start, window_end"
BOTH = (
    "SELECT 'ad' AS kind, ad_id AS id, amount, ts FROM ads WHERE event_type = 'click' AND amount > 300 "
    "UNION ALL SELECT 'payment' AS kind, account::bigint AS id, amount, ts{} FROM payments WHERE amount < 200"
)
LATE_BY = "SELECT late_reason, late_partition, count(*) AS n, max(late_offset) AS last FROM late_ads GROUP BY late_reason, late_partition"
BY_GRP = "SELECT grp, count(*) AS n, sum(balance) AS total, min(balance) AS lo, max(balance) AS hi, count(DISTINCT note) AS notes FROM accounts GROUP BY grp"


def ranked(rows, partition, order, k, columns):
    return (
        f"SELECT {columns}, place FROM (SELECT {columns}, row_number() OVER (PARTITION BY {partition} ORDER BY {order}) AS place "
        f"FROM {rows}) AS ranked WHERE place <= {k}"
    )


VIEWS = [
    # Windows of a source in stores of slices, shared and not.
    View(
        "minute",
        MINUTE.format("HOP(ads, ts, INTERVAL '10 seconds', INTERVAL '1 minute')"),
        MINUTE.format(hop("ads", 10, 60)),
    ),
    View(
        "ten_minutes",
        f"SELECT country, event_type, window_start, window_end, {STATS} FROM HOP(ads, ts, INTERVAL '10 seconds', INTERVAL '10 minutes') GROUP BY country, event_type, window_start, window_end",
        f"SELECT country, event_type, window_start, window_end, {STATS} FROM {hop('ads', 10, 600)} GROUP BY ALL",
    ),
    View(
        "ten_by_ad",
        "SELECT ad_id, window_end, count(*) AS n, sum(amount) AS total FROM HOP(ads, ts, INTERVAL '10 seconds', INTERVAL '10 minutes') GROUP BY ad_id, window_end",
        f"SELECT ad_id, window_end, count(*) AS n, sum(amount) AS total FROM {hop('ads', 10, 600)} GROUP BY ALL",
    ),
    View(
        "closed",
        CLOSED.format("TUMBLE(ads, ts, INTERVAL '1 minute')") + " EMIT ON WINDOW CLOSE",
        f"SELECT * FROM ({CLOSED.format(tumble('ads', 60))}) WHERE window_end <= {{ads}}",
        final=True,
    ),
    View(
        "visits", VISITS.format("SESSION(ads, ts, INTERVAL '25 seconds')"), VISITS.format(session("ads", "user_id", 25))
    ),
    View(
        "lately",
        LATELY.format("HOP(ads, ts, INTERVAL '20 seconds', INTERVAL '1 minute')"),
        f"SELECT * FROM ({LATELY.format(hop('ads', 20, 60))}) WHERE window_end > {{ads}} - INTERVAL '3 minutes'",
        options="WITH (retention = '3 minutes', store = 'own')",
    ),
    # Views over views of windows.
    View("country_1m", COUNTRY_1M.format("TUMBLE(ads, ts, INTERVAL '1 minute')"), COUNTRY_1M.format(tumble("ads", 60))),
    View(
        "country_5m",
        "SELECT country, window_start, window_end, sum(n) AS n, sum(total) AS total FROM TUMBLE(country_1m, window_start, INTERVAL '5 minutes') GROUP BY country, window_start, window_end",
        f"SELECT country, window_start, window_end, count(*) AS n, sum(amount) AS total FROM {tumble('ads', 300)} GROUP BY ALL",
    ),
    View(
        "per_window",
        "SELECT window_end, count(*) AS ads, max(n) AS most, sum(total) AS total FROM minute GROUP BY window_end",
        f"SELECT window_end, count(*) AS ads, max(n) AS most, sum(total) AS total FROM ({MINUTE.format(hop('ads', 10, 60))}) GROUP BY window_end",
    ),
    View(
        "closed_sum",
        "SELECT ad_id, sum(n) AS n, sum(price) AS price, count(*) AS windows FROM closed GROUP BY ad_id",
        f"SELECT ad_id, sum(n) AS n, sum(price) AS price, count(*) AS windows FROM ({CLOSED.format(tumble('ads', 60))}) WHERE window_end <= {{ads}} GROUP BY ad_id",
    ),
    View(
        "visit_ends",
        "SELECT window_start, window_end, count(*) AS visits, sum(n) AS n FROM TUMBLE(visits, window_end, INTERVAL '1 minute') GROUP BY window_start, window_end",
        f"SELECT time_bucket(INTERVAL '1 minute', window_end) AS ws, ws + INTERVAL '1 minute' AS we, count(*) AS visits, sum(n) AS n FROM ({VISITS.format(session('ads', 'user_id', 25))}) GROUP BY ALL",
    ),
    # Rows, groups without windows, Top-N and what moves with the watermark.
    View(
        "purchases",
        "SELECT event_id, ad_id, amount, price, ts, p, o FROM ads WHERE event_type = 'purchase'",
        "SELECT event_id, ad_id, amount, price, ts, p, o FROM ads WHERE event_type = 'purchase'",
    ),
    View("per_ad", PER_AD, PER_AD),
    View(
        "by_count",
        "SELECT n, count(*) AS ads FROM per_ad GROUP BY n",
        f"SELECT n, count(*) AS ads FROM ({PER_AD}) GROUP BY n",
    ),
    View(
        "top_ads",
        ranked("per_ad", "ad_id % 7", "total DESC, ad_id", 5, "ad_id, total"),
        ranked(f"({PER_AD})", "ad_id % 7", "total DESC NULLS FIRST, ad_id", 5, "ad_id, total"),
    ),
    View(
        "best_ads",
        "SELECT ad_id, n FROM per_ad ORDER BY n DESC, ad_id LIMIT 25",
        f"SELECT ad_id, n FROM ({PER_AD}) ORDER BY n DESC, ad_id LIMIT 25",
    ),
    View(
        "dearest",
        "SELECT event_id, amount, ts FROM lenient WHERE event_id IS NOT NULL AND amount IS NOT NULL ORDER BY amount DESC, event_id LIMIT 50",
        "SELECT event_id, amount, ts FROM lenient WHERE event_id IS NOT NULL AND amount IS NOT NULL ORDER BY amount DESC, event_id LIMIT 50",
    ),
    View(
        "top_of_window",
        ranked("minute", "window_end", "n DESC, ad_id", 3, "window_end, ad_id, n"),
        ranked(f"({MINUTE.format(hop('ads', 10, 60))})", "window_end", "n DESC, ad_id", 3, "window_end, ad_id, n"),
    ),
    View(
        "recent",
        "SELECT event_id, country, ts, p, o FROM ads WHERE event_type = 'click' AND ts > watermark('ads') - INTERVAL '1 minute'",
        "SELECT event_id, country, ts, p, o FROM ads WHERE event_type = 'click' AND ts > {ads} - INTERVAL '1 minute'",
    ),
    View(
        "recent_by",
        "SELECT country, count(*) AS n FROM recent GROUP BY country",
        "SELECT country, count(*) AS n FROM ads WHERE event_type = 'click' AND ts > {ads} - INTERVAL '1 minute' GROUP BY country",
    ),
    # With lateness: windows that closed are corrected, and shown as final later.
    View(
        "lenient_1m",
        COUNTRY_1M.format("TUMBLE(lenient, ts, INTERVAL '1 minute')"),
        COUNTRY_1M.format(tumble("lenient", 60)),
    ),
    View(
        "lenient_closed",
        CLOSED.format("TUMBLE(lenient, ts, INTERVAL '30 seconds')") + " EMIT ON WINDOW CLOSE",
        f"SELECT * FROM ({CLOSED.format(tumble('lenient', 30))}) WHERE window_end <= {{lenient}} - INTERVAL '{LENIENCE_US // 1_000_000} seconds'",
        final=True,
    ),
    View(
        "lenient_visits",
        VISITS.format("SESSION(lenient, ts, INTERVAL '15 seconds')"),
        VISITS.format(session("lenient", "user_id", 15)),
    ),
    # Committed transactions, and both sources in one.
    View(
        "payments_1m",
        "SELECT account, window_start, window_end, count(*) AS n, sum(amount) AS total FROM TUMBLE(payments, ts, INTERVAL '1 minute') GROUP BY account, window_start, window_end",
        f"SELECT account, window_start, window_end, count(*) AS n, sum(amount) AS total FROM {tumble('payments', 60)} GROUP BY ALL",
    ),
    View(
        "payments_by",
        "SELECT account, count(*) AS n, sum(amount) AS total, max(ts) AS last FROM payments GROUP BY account",
        "SELECT account, count(*) AS n, sum(amount) AS total, max(ts) AS last FROM payments GROUP BY account",
    ),
    View("both_kinds", BOTH.format(" AT TIME ZONE 'UTC' AS ts"), BOTH.format("")),
    View(
        "both_by",
        "SELECT kind, count(*) AS n, sum(amount) AS total FROM both_kinds GROUP BY kind",
        f"SELECT kind, count(*) AS n, sum(amount) AS total FROM ({BOTH.format('')}) GROUP BY kind",
    ),
    # Duplicates, across partitions and within one.
    View(
        "clicks_1m", CLICKS_1M.format("TUMBLE(clicks, ts, INTERVAL '1 minute')"), CLICKS_1M.format(tumble("clicks", 60))
    ),
    View(
        "clicks_by",
        "SELECT ad_id, count(*) AS n, sum(amount) AS total FROM clicks GROUP BY ad_id",
        "SELECT ad_id, count(*) AS n, sum(amount) AS total FROM clicks GROUP BY ad_id",
    ),
    View(
        "clicks_closed",
        CLICKS_1M.format("HOP(clicks, ts, INTERVAL '10 seconds', INTERVAL '30 seconds')") + " EMIT ON WINDOW CLOSE",
        f"SELECT * FROM ({CLICKS_1M.format(hop('clicks', 10, 30))}) WHERE window_end <= {{clicks}}",
        final=True,
    ),
    View(
        "clicks_rows",
        "SELECT event_id, ad_id, amount, ts, p, o FROM clicks WHERE ad_id < 100",
        "SELECT event_id, ad_id, amount, ts, p, o FROM clicks WHERE ad_id < 100",
    ),
    View(
        "here_1m",
        CLICKS_1M.format("TUMBLE(clicks_here, ts, INTERVAL '1 minute')"),
        CLICKS_1M.format(tumble("clicks_here", 60)),
    ),
    View(
        "here_by",
        "SELECT ad_id, count(*) AS n, sum(amount) AS total FROM clicks_here GROUP BY ad_id",
        "SELECT ad_id, count(*) AS n, sum(amount) AS total FROM clicks_here GROUP BY ad_id",
    ),
    View(
        "first_seen",
        "SELECT event_id, ts, p FROM (SELECT event_id, ts, p, row_number() OVER (PARTITION BY event_id ORDER BY ts, p, o) AS place FROM clicks_here WHERE event_id IS NOT NULL) AS r WHERE place = 1",
        "SELECT event_id, ts, p FROM (SELECT event_id, ts, p, row_number() OVER (PARTITION BY event_id ORDER BY ts, p, o) AS place FROM clicks_here WHERE event_id IS NOT NULL) AS r WHERE place = 1",
    ),
    # A topic that grows, without event time.
    View(
        "signups_by",
        "SELECT p, plan, count(*) AS n, sum(amount) AS total, max(o) AS last FROM signups GROUP BY p, plan",
        "SELECT p, plan, count(*) AS n, sum(amount) AS total, max(o) AS last FROM signups GROUP BY p, plan",
    ),
    View(
        "signups_of_firms",
        "SELECT signup_id, amount, ts, p, o FROM signups WHERE plan = 'firm'",
        "SELECT signup_id, amount, ts, p, o FROM signups WHERE plan = 'firm'",
    ),
    # Tables.
    View("by_grp", BY_GRP, BY_GRP),
    View(
        "rich",
        "SELECT id, balance FROM accounts ORDER BY balance DESC, id LIMIT 10",
        "SELECT id, balance FROM accounts ORDER BY balance DESC, id LIMIT 10",
    ),
    View(
        "ledger_by",
        "SELECT account, count(*) AS n, sum(amount) AS total, min(amount) AS lo FROM ledger GROUP BY account",
        "SELECT account, count(*) AS n, sum(amount) AS total, min(amount) AS lo FROM ledger GROUP BY account",
    ),
    View(
        "debts",
        "SELECT seq, account, amount FROM ledger WHERE amount < 0",
        "SELECT seq, account, amount FROM ledger WHERE amount < 0",
    ),
    View("late_by", LATE_BY, LATE_BY),
]

# For views that are made and dropped while the run goes on.
PASSING = [
    View(
        "half_minutes",
        "SELECT country, window_start, count(*) AS n, max(price) AS hi FROM TUMBLE(ads, ts, INTERVAL '30 seconds') GROUP BY country, window_start",
        f"SELECT country, window_start, count(*) AS n, max(price) AS hi FROM {tumble('ads', 30)} GROUP BY ALL",
    ),
    View(
        "hourly",
        "SELECT ad_id, window_end, count(*) AS n FROM TUMBLE(ads, ts, INTERVAL '1 hour') GROUP BY ad_id, window_end",
        f"SELECT ad_id, window_end, count(*) AS n FROM {tumble('ads', 3600)} GROUP BY ALL",
    ),
    View(
        "by_user",
        "SELECT user_id, count(*) AS n, min(ts) AS since FROM lenient GROUP BY user_id",
        "SELECT user_id, count(*) AS n, min(ts) AS since FROM lenient GROUP BY user_id",
    ),
    View(
        "large",
        "SELECT payment_id, amount FROM payments WHERE amount > 450",
        "SELECT payment_id, amount FROM payments WHERE amount > 450",
    ),
    View(
        "by_id",
        "SELECT event_id, count(*) AS n FROM clicks GROUP BY event_id",
        "SELECT event_id, count(*) AS n FROM clicks GROUP BY event_id",
    ),
    View(
        "poor",
        "SELECT id, balance FROM accounts WHERE balance < 0",
        "SELECT id, balance FROM accounts WHERE balance < 0",
    ),
    View(
        "clients",
        "SELECT client, count(*) AS n, sum(amount) AS total FROM ledger GROUP BY client",
        "SELECT client, count(*) AS n, sum(amount) AS total FROM ledger GROUP BY client",
    ),
    View(
        "visits_by_ad",
        "SELECT ad_id, window_start, window_end, count(*) AS n FROM SESSION(ads, ts, INTERVAL '5 seconds') GROUP BY ad_id, window_start, window_end",
        f"SELECT ad_id, window_start, window_end, count(*) AS n FROM {session('ads', 'ad_id', 5)} GROUP BY ALL",
    ),
]
