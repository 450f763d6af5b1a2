"""A client that subscribes to what is committed: whatever it was told is there after every crash."""

import collections

import psycopg

import objects
from clients import Client, is_open


class Listener(Client):
    """Follows one view of EMIT ON WINDOW CLOSE after the other: none of them takes anything back."""

    def __init__(self, run):
        super().__init__(run, "listener")
        # view -> row -> how often
        self.told = {view.name: collections.Counter() for view in objects.VIEWS if view.final}
        self.view = None
        # What the subscription begins with, until all of it has come.
        self.snapshot = None

    def connected(self):
        self.view = None

    def step(self):
        if self.view is None or self.random.random() < 0.05:
            self.subscribe(self.random.choice(sorted(self.told)))
        for _, progressed, diff, *row in self.connection.execute("FETCH ALL FROM told WITH (timeout = '200ms')"):
            if progressed:
                self.begun()
                continue
            if diff < 0:
                self.report.difference(f"{self.view} takes back {row}, which was told as committed")
            (self.told[self.view] if self.snapshot is None else self.snapshot)[tuple(row)] += diff
            self.report.add("rows told as committed")

    def subscribe(self, view):
        if self.view is not None:
            self.connection.execute("ROLLBACK")
        self.view, self.snapshot = None, collections.Counter()
        self.connection.execute("BEGIN")
        self.connection.execute(f"DECLARE told CURSOR FOR SUBSCRIBE TO {view} WITH (COMMITTED, PROGRESS)")
        self.view = view

    def begun(self):
        """All that the subscription begins with has come."""
        if self.snapshot is not None:
            self.compare(self.view, self.snapshot)
            self.told[self.view], self.snapshot = self.snapshot, None

    def compare(self, view, there):
        missing = self.told[view] - there
        if missing:
            samples = list(missing.items())[:3]
            self.report.difference(f"{view}: told as committed, and gone: {samples}", missing.total())

    def compare_all(self, connection):
        for view in self.told:
            rows = connection.execute(f"SELECT * FROM {view}").fetchall()
            self.compare(view, collections.Counter(map(tuple, rows)))

    def failed(self, error):
        reads_history = isinstance(error, psycopg.errors.ObjectNotInPrerequisiteState)
        if not is_open(error) and not reads_history and error.sqlstate != "58030":
            self.report.difference(f"listener: {error.sqlstate} {error}")
