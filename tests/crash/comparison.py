"""The end of a run: every view against DuckDB's answer from the topics, and every verdict against the law's."""

import csv

import duckdb

import law
import objects
from producers import TOPICS

KINDS = {
    "VARCHAR": "VARCHAR",
    "BIGINT": "BIGINT",
    "INT": "INTEGER",
    "DOUBLE": "DOUBLE",
    "TIMESTAMP": "BIGINT",
    "TIMESTAMPTZ": "BIGINT",
}
# Exact numbers of other types are compared as these.
AS_DOUBLE = ("HUGEINT", "DECIMAL", "DOUBLE", "UHUGEINT")


class Comparison:
    """What the logs say, computed once; Riverrun can be compared with it again and again."""

    def __init__(self, run):
        self.run, self.report, self.folder = run, run.report, run.folder
        self.db = duckdb.connect()
        self.db.execute(
            f"SET threads = 2; SET memory_limit = '4GB'; SET temp_directory = '{self.folder}/duckdb'; SET TimeZone = 'UTC'"
        )
        logs = {topic: law.read_topic(run.bootstrap, topic) for topic in TOPICS}
        self.report.add("records in the topics", sum(len(records) for log in logs.values() for records in log.values()))
        self.judged = {source.name: law.Judged(source, logs[source.topic]) for source in objects.SOURCES}
        for judged in self.judged.values():
            self.load(judged)
        self.load_tables()
        self.marks = {name: f"make_timestamp({judged.watermark_us()})" for name, judged in self.judged.items()}

    def load(self, judged):
        name, columns = judged.source.name, judged.source.columns
        path = self.folder / f"{name}.csv"
        with open(path, "w", newline="") as out:
            writer = csv.writer(out)
            writer.writerows((*row.values, row.partition, row.offset) for row in judged.rows)
        kinds = {**{column: KINDS[kind] for column, kind in columns}, "p": "INTEGER", "o": "BIGINT"}
        self.db.execute(
            f"CREATE TABLE {name} AS SELECT * EXCLUDE (ts), ts AS ts_us, make_timestamp(ts) AS ts "
            f"FROM read_csv('{path}', header = false, columns = {kinds})"
        )
        path.unlink()

    def load_tables(self):
        """Tables by what the clients have been told, and late rows by the law."""
        self.db.execute("CREATE TABLE accounts (id BIGINT, client INT, grp INT, balance BIGINT, note VARCHAR)")
        self.db.execute("CREATE TABLE ledger (client INT, seq BIGINT, account BIGINT, amount BIGINT)")
        self.db.execute(
            "CREATE TABLE late_ads (event_id VARCHAR, ad_id BIGINT, ts_us BIGINT, late_reason VARCHAR, late_partition INT, late_offset BIGINT)"
        )
        accounts, ledger, late = [], [], []
        for client in self.run.tables:
            for (table, row), count in client.rows.items():
                if table == "accounts":
                    accounts += [(row[0], client.number, *row[1:])] * count
                elif table == "ledger":
                    ledger += [(client.number, *row)] * count
                else:
                    late += [(None, row[0], None, None, -client.number, row[1])] * count
        names = [name for name, _ in objects.AD_COLUMNS]
        for place, (reason, values) in self.judged["ads"].late.items():
            fields = dict(zip(names, values))
            late.append((fields["event_id"], fields["ad_id"], fields["ts"], reason, *place))
        for table, rows in (("accounts", accounts), ("ledger", ledger), ("late_ads", late)):
            if rows:
                self.db.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)

    def truths(self):
        """(name, truth) of everything that is compared by rows."""
        for view in objects.VIEWS:
            yield view.name, view.truth
        for name, view in sorted(self.run.views.views.items()):
            yield name, view.truth
        yield "accounts", "SELECT * FROM accounts"
        yield "ledger", "SELECT * FROM ledger"
        yield (
            "late_ads",
            "SELECT event_id, ad_id, make_timestamp(ts_us) AS ts, late_reason, late_partition, late_offset FROM late_ads",
        )

    def compare(self, connection, when):
        """Every view, every verdict. Adds to the report's differences."""
        self.report.say(f"comparing {when}")
        self.when = when
        total = 0
        for name, truth in self.truths():
            total += self.compare_view(connection, name, truth)
        self.report.say(f"{when}: {total} rows compared")
        self.compare_verdicts(connection)

    def truth_table(self, name, truth):
        table = f"truth_{name}"
        if not self.db.execute("SELECT count(*) FROM duckdb_tables() WHERE table_name = ?", (table,)).fetchone()[0]:
            self.db.execute(f"CREATE TABLE raw AS {truth.format(**self.marks)}")
            columns = self.db.execute("DESCRIBE raw").fetchall()
            self.db.execute(
                f"CREATE TABLE {table} AS SELECT {', '.join(self.rounded(name, kind) for name, kind, *_ in columns)} FROM raw; DROP TABLE raw"
            )
        return table

    @staticmethod
    def rounded(column, kind):
        return f"round({column}::DOUBLE, 6) AS {column}" if kind.startswith(AS_DOUBLE) else column

    def compare_view(self, connection, name, truth):
        expected = self.truth_table(name, truth)
        columns = self.db.execute(f"DESCRIBE {expected}").fetchall()
        path = self.folder / "view.csv"
        with open(path, "wb") as out, connection.cursor() as cursor:
            with cursor.copy(f"COPY (SELECT * FROM {name}) TO STDOUT (FORMAT csv)") as copy:
                for part in copy:
                    out.write(part)
        kinds = {column: kind for column, kind, *_ in columns}
        selected = ", ".join(self.rounded(column, kind) for column, kind, *_ in columns)
        self.db.execute(
            f"CREATE OR REPLACE TABLE shown AS SELECT {selected} FROM read_csv('{path}', header = false, columns = {kinds})"
        )
        rows = self.db.execute(f"SELECT count(*) FROM {expected}").fetchone()[0]
        missing = self.db.execute(f"SELECT * FROM {expected} EXCEPT ALL SELECT * FROM shown ORDER BY ALL").fetchall()
        extra = self.db.execute(f"SELECT * FROM shown EXCEPT ALL SELECT * FROM {expected} ORDER BY ALL").fetchall()
        print(f"  {name:<16} {rows:>9} rows   {len(missing)} missing   {len(extra)} extra", flush=True)
        if missing or extra:
            self.report.difference(
                f"{self.when}, {name}: missing {missing[:3]}, extra {extra[:3]}", len(missing) + len(extra)
            )
        path.unlink()
        return rows

    def compare_verdicts(self, connection):
        partitions = connection.execute(
            "SELECT source, partition, read, accepted, late, duplicate, dead, skipped FROM riverrun.source_partitions"
        )
        counts = {(source, partition): tuple(numbers) for source, partition, *numbers in partitions}
        for name, judged in self.judged.items():
            for partition in judged.read:
                expected, there = judged.counts(partition), counts.get((name, partition))
                if there != expected:
                    self.report.difference(
                        f"{self.when}, {name}, partition {partition}: {there}, by the law {expected}"
                    )
            self.compare_places(
                connection,
                "late_rows",
                judged,
                [(p, o, reason) for (p, o), (reason, _) in judged.late.items()],
                ", reason",
            )
            self.compare_places(connection, "dead_letters", judged, judged.verdicts["dead"])
            self.compare_places(connection, "duplicates", judged, judged.verdicts["duplicate"])

    def compare_places(self, connection, table, judged, expected, more=""):
        name = judged.source.name
        there = connection.execute(
            f'SELECT partition, "offset"{more} FROM riverrun.{table} WHERE source = %s', (name,)
        ).fetchall()
        missing, extra = set(expected) - set(there), set(there) - set(expected)
        twice = len(there) - len(set(there))
        if missing or extra or twice:
            what = f"{self.when}, riverrun.{table} of {name}: {len(missing)} missing {sorted(missing)[:3]}, {len(extra)} extra {sorted(extra)[:3]}, {twice} twice"
            self.report.difference(what, len(missing) + len(extra) + twice)

    def reconcile(self, connection):
        """What the engine itself finds when it computes views again from the log."""
        for name in ("country_1m", "closed", "visits", "per_ad", "payments_1m", "clicks_1m", "here_by"):
            rows = connection.execute(f"RECONCILE MATERIALIZED VIEW {name}").fetchall()
            if rows:
                self.report.difference(f"{self.when}, RECONCILE {name}: {rows[:3]}", len(rows))
            self.report.add("views reconciled")

    def compare_shown(self, reader):
        """What was shown of closed windows at some time is what they hold for ever."""
        for name, rows in reader.shown.items():
            view = next(view for view in objects.VIEWS if view.name == name)
            expected = self.truth_table(name, view.truth)
            true = {self.plain(row) for row in self.db.execute(f"SELECT * FROM {expected}").fetchall()}
            wrong = [row for row in rows if self.plain(row) not in true]
            if wrong:
                self.report.difference(f"{name} has shown closed windows that changed: {wrong[:3]}", len(wrong))

    @staticmethod
    def plain(row):
        def value(v):
            if hasattr(v, "tzinfo"):
                return v.replace(tzinfo=None)
            return v if v is None or isinstance(v, str) else round(float(v), 6)

        return tuple(value(v) for v in row)

    def verdicts(self):
        """Records by verdict, over all sources, as the law has them."""
        names = ("read", "accepted", "late", "duplicate", "dead", "skipped")
        sums = [sum(column) for column in zip(*(j.counts(p) for j in self.judged.values() for p in j.read))]
        return dict(zip(names, sums))
