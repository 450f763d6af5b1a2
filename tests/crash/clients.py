"""Clients that write: tables by single statements and by transactions, and materialized views made and dropped.

What was acknowledged must be there after every restart, exactly once. What was under way when the connection broke may be there
or not, but as a whole: after the break a client reads what there is, and that must be the state before or the state after.
"""

import collections
import random
import threading
import time

import psycopg

import objects

# The connection broke or the server says that it does not know: the outcome is open. All other errors are answers.
OPEN = ("08", "57P", "40003")
TRIES_S = 0.05


def is_open(error):
    return error.sqlstate is None or error.sqlstate.startswith(OPEN)


class Client(threading.Thread):
    """Works on one connection until the run ends, connecting again when it breaks."""

    def __init__(self, run, name):
        super().__init__(name=name, daemon=True)
        self.run_ = run
        self.report = run.report
        self.random = random.Random(f"{run.seed}/{name}")
        self.connection = None

    def run(self):
        try:
            while not self.run_.clients_end.is_set():
                try:
                    if self.connection is None:
                        self.connection = self.run_.server.connect()
                        self.connected()
                    self.step()
                except psycopg.Error as error:
                    self.failed(error)
                    self.disconnect()
                    time.sleep(TRIES_S)
        except Exception as error:
            self.report.difference(f"client {self.name} failed: {error!r}")
        self.disconnect()

    def disconnect(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def connected(self):
        pass

    def failed(self, error):
        pass


class Undone(Exception):
    """Takes a transaction back."""


class TableClient(Client):
    """Owns the rows of its number in `accounts`, `ledger` and `late_ads`, and knows what they must be."""

    def __init__(self, run, number):
        super().__init__(run, f"tables {number}")
        self.number = number
        # (table, row) -> how often.
        self.rows = collections.Counter()
        # What was under way when the connection broke: changes of `rows`.
        self.open_changes = None
        self.next = 0

    def connected(self):
        there = self.read(self.connection)
        before, self.open_changes = self.open_changes, None
        if before is not None:
            after = self.rows + collections.Counter()
            after.update(before)
            after = +after
            if there == after and there != self.rows:
                self.report.add("open statements that were there")
                self.rows = after
                return
            self.report.add("open statements that were not there")
        self.compare(there)

    def compare(self, there):
        if there != self.rows:
            missing, extra = self.rows - there, there - self.rows
            samples = f"missing {list(missing.items())[:3]}, extra {list(extra.items())[:3]}"
            self.report.difference(f"tables of client {self.number}: {samples}", missing.total() + extra.total())
            self.rows = there

    def read(self, connection):
        """In one transaction, so as of one tick."""
        rows = collections.Counter()
        with connection.transaction():
            for row in connection.execute(
                "SELECT id, grp, balance, note FROM accounts WHERE client = %s", (self.number,)
            ):
                rows["accounts", row] += 1
            for row in connection.execute("SELECT seq, account, amount FROM ledger WHERE client = %s", (self.number,)):
                rows["ledger", row] += 1
            for row in connection.execute(
                "SELECT ad_id, late_offset FROM late_ads WHERE late_partition = %s", (-self.number,)
            ):
                rows["late_ads", row] += 1
        return rows

    def step(self):
        self.statements, self.changes = [], collections.Counter()
        whole = self.random.random()
        for _ in range(1 if whole < 0.6 else self.random.randrange(2, 5)):
            self.choose()
        if whole > 0.92:
            self.take_back()
        elif self.statements:
            self.open_changes = self.changes
            # A block even for one statement now and then.
            if len(self.statements) > 1 or whole < 0.1:
                with self.connection.transaction():
                    self.execute()
            else:
                self.execute()
            self.open_changes = None
            self.rows.update(self.changes)
            self.rows = +self.rows
            self.report.add("statements acknowledged", len(self.statements))
        if self.random.random() < 0.03:
            self.compare(self.read(self.connection))
        time.sleep(self.random.random() * 0.1)

    def execute(self):
        for statement, parameters in self.statements:
            self.connection.execute(statement, parameters)

    def take_back(self):
        """ROLLBACK, or an error that takes the whole transaction back."""
        try:
            with self.connection.transaction():
                self.execute()
                account = self.account()
                if account is not None and self.random.random() < 0.5:
                    self.connection.execute(
                        "INSERT INTO accounts VALUES (%s, %s, 0, 0, 'twice')", (account[0], self.number)
                    )
                raise Undone
        except (Undone, psycopg.errors.UniqueViolation):
            self.report.add("transactions taken back")

    def failed(self, error):
        if not is_open(error):
            self.open_changes = None
            # Nothing was done: a refusal while the storage fails, or a conflict, is an answer like another.
            self.report.add(f"statements refused with {error.sqlstate}")
            if error.sqlstate not in ("40001", "58030"):
                self.report.difference(f"client {self.number}: {self.statements}: {error.sqlstate} {error}")

    def change(self, statement, parameters, minus=(), plus=()):
        self.statements.append((statement, parameters))
        for row in minus:
            self.changes[row] -= 1
        for row in plus:
            self.changes[row] += 1

    def now(self, table):
        """Rows of a table as of this place in the transaction."""
        rows = self.rows + collections.Counter()
        rows.update(self.changes)
        return [(row, count) for (of, row), count in rows.items() if of == table and count > 0]

    def account(self):
        accounts = sorted(row for row, _ in self.now("accounts"))
        return self.random.choice(accounts) if accounts else None

    def choose(self):
        r, client = self.random, self.number
        account = self.account()
        self.next += 1
        id = client * 1_000_000 + self.next
        match r.choice(["add", "add", "pay", "pay", "pay", "drop", "book", "book", "book", "rebook", "forget", "late"]):
            case "add" if account is None or len(self.now("accounts")) < 150:
                row = (id, r.randrange(5), r.randrange(100), r.choice(["a", "b", None]))
                conflict = r.choice(["", " ON CONFLICT (id) DO NOTHING"])
                sql = "INSERT INTO accounts (id, client, grp, balance, note) VALUES (%s, %s, %s, %s, %s)" + conflict
                self.change(sql, (row[0], client, *row[1:]), plus=[("accounts", row)])
                if conflict and account is not None:
                    self.change(sql, (account[0], client, *row[1:]))
            case "pay" if account is not None:
                amount = r.randrange(-50, 50)
                to = (account[0], account[1], account[2] + amount, account[3])
                self.change(
                    "UPDATE accounts SET balance = balance + %s WHERE id = %s",
                    (amount, account[0]),
                    [("accounts", account)],
                    [("accounts", to)],
                )
                self.change(
                    "INSERT INTO ledger VALUES (%s, %s, %s, %s)",
                    (client, id, account[0], amount),
                    plus=[("ledger", (id, account[0], amount))],
                )
            case "drop" if account is not None:
                self.change("DELETE FROM accounts WHERE id = %s", (account[0],), [("accounts", account)])
            case "book":
                # Equal rows: without a primary key each counts.
                row = (id, r.randrange(20), r.randrange(-9, 9))
                values = ", ".join(["(%s, %s, %s, %s)"] * (count := r.randrange(1, 4)))
                self.change(
                    f"INSERT INTO ledger VALUES {values}", (client, *row) * count, plus=[("ledger", row)] * count
                )
            case "rebook" if ledger := self.now("ledger"):
                row, _ = r.choice(sorted(ledger))
                same = [(other, count) for other, count in ledger if other[0] == row[0]]
                minus = [("ledger", other) for other, count in same for _ in range(count)]
                plus = [("ledger", (other[0], other[1], other[2] * 2)) for other, count in same for _ in range(count)]
                self.change(
                    "UPDATE ledger SET amount = amount * 2 WHERE client = %s AND seq = %s",
                    (client, row[0]),
                    minus,
                    plus,
                )
            case "forget" if len(self.now("ledger")) > 400:
                old = sorted(self.now("ledger"))[:200]
                minus = [("ledger", row) for row, count in old for _ in range(count)]
                self.change("DELETE FROM ledger WHERE client = %s AND seq <= %s", (client, old[-1][0][0]), minus)
            case "late":
                # Into the table that takes the late rows of a source.
                self.change(
                    "INSERT INTO late_ads (ad_id, late_partition, late_offset) VALUES (%s, %s, %s)",
                    (id, -client, self.next),
                    plus=[("late_ads", (id, self.next))],
                )


class ViewClient(Client):
    """Makes and drops materialized views, and small tables with a row."""

    MOST = 4

    def __init__(self, run):
        super().__init__(run, "views")
        self.views, self.tables = {}, set()
        # Tables whose row has been acknowledged.
        self.filled = set()
        self.open = None
        self.next = 0

    def connected(self):
        names = self.connection.execute(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'm') AND (relname LIKE 'passing%' OR relname LIKE 'small%')"
        )
        there = {name for (name,) in names}
        if self.open is not None:
            name, view, makes = self.open
            if name in there:
                self.views.update({name: view}) if view else self.tables.add(name)
            elif view:
                self.views.pop(name, None)
            else:
                self.tables.discard(name)
            self.report.add("open DDL that was there" if (name in there) == makes else "open DDL that was not there")
            self.open = None
        for name in there ^ (self.views.keys() | self.tables):
            self.report.difference(f"{name} is {'there after DROP' if name in there else 'not there after CREATE'}")
            self.views.pop(name, None)
            self.tables.discard(name)
        for table in self.tables:
            rows = self.connection.execute(f"SELECT v FROM {table}").fetchall()
            if rows not in ([], [(1,)]) or (rows == [] and table in self.filled):
                self.report.difference(f"table {table} holds {rows}")

    def step(self):
        r = self.random
        self.next += 1
        if r.random() < 0.25:
            self.small_table()
        elif len(self.views) >= self.MOST:
            name = r.choice(sorted(self.views))
            self.ddl(name, self.views[name], f"DROP MATERIALIZED VIEW {name}", False)
        else:
            view = r.choice(objects.PASSING)
            name = f"passing_{self.next}"
            self.ddl(name, view, view.sql(name), True)
        time.sleep(r.random() * 0.8)

    def ddl(self, name, view, sql, makes):
        self.open = (name, view, makes)
        self.connection.execute(sql)
        self.open = None
        if view is None:
            (self.tables.add if makes else self.tables.discard)(name)
        elif makes:
            self.views[name] = view
        else:
            self.views.pop(name)
        self.report.add("DDL acknowledged")

    def small_table(self):
        if len(self.tables) >= 3:
            name = sorted(self.tables)[0]
            self.ddl(name, None, f"DROP TABLE {name}", False)
            return
        name = f"small_{self.next}"
        self.ddl(name, None, f"CREATE TABLE {name} (v INT PRIMARY KEY)", True)
        self.connection.execute(f"INSERT INTO {name} VALUES (1)")
        self.filled.add(name)

    def failed(self, error):
        if not is_open(error):
            self.open = None
            self.report.add(f"DDL refused with {error.sqlstate}")
            if error.sqlstate != "58030":
                self.report.difference(f"DDL: {error.sqlstate} {error}")
