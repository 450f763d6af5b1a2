"""A client that reads while all goes on.

At every read the verdicts of a partition add up. What a committed checkpoint holds is not taken back by a crash: counts that were
read before a checkpoint began are a floor once that checkpoint is committed. Objects that are read together are of one tick. Windows
of EMIT ON WINDOW CLOSE never change: what was shown is compared with the truth at the end.
"""

import collections
import time

import psycopg

import objects
from clients import Client, is_open

COUNTS = (
    'SELECT source, partition, "offset", read, late, dead, skipped, read - accepted - late - duplicate - dead - skipped '
    "FROM riverrun.source_partitions"
)
SUMS = (
    "SELECT (SELECT sum(n) FROM per_ad), (SELECT sum(n * ads) FROM by_count), (SELECT sum(n) FROM country_1m), "
    "(SELECT sum(n) FROM country_5m), (SELECT sum(amount) FROM ledger), (SELECT sum(total) FROM ledger_by)"
)


class Reader(Client):
    def __init__(self, run):
        super().__init__(run, "reader")
        # (source, partition) -> (offset, read, late, dead, skipped)
        self.floor = {}
        # Samples of this life of the server with the checkpoints that had begun before.
        self.samples = []
        self.committed = {}
        # view -> row -> the first life in which it was shown
        self.shown = {view.name: collections.Counter() for view in objects.VIEWS if view.final}
        self.ends = {}

    def connected(self):
        self.samples = []

    def step(self):
        counts = self.read_counts()
        begun = self.read_checkpoints()
        for key, floor in self.floor.items():
            there = counts.get(key, (0,) * len(floor))
            if any(is_ < was for is_, was in zip(there, floor)):
                self.report.difference(f"{key} went back to {there} from {floor}, which was committed")
                self.floor[key] = there
        self.samples = [(counts, begun), *self.samples[:20]]
        if self.random.random() < 0.3:
            self.read_sums()
        if self.random.random() < 0.2:
            self.read_final()
        time.sleep(0.05 + self.random.random() * 0.2)

    def read_counts(self):
        counts = {}
        for source, partition, *numbers, rest in self.connection.execute(COUNTS):
            if rest != 0:
                self.report.difference(f"{source}, partition {partition}: {numbers}: {rest} records without a verdict")
            counts[source, partition] = tuple(numbers)
        self.report.add("reads of counts")
        return counts

    def read_checkpoints(self):
        """Ticks of all checkpoints of this life; notes the committed ones."""
        rows = self.connection.execute("SELECT tick, state, number FROM riverrun.checkpoints").fetchall()
        self.committed.update({number: tick for tick, state, number in rows if state == "committed"})
        done = {tick for tick, state, _ in rows if state == "committed"}
        for counts, begun in self.samples:
            if done - begun:
                # A checkpoint that began after the sample is committed.
                self.raise_floor(counts)
                break
        return {tick for tick, *_ in rows}

    def raise_floor(self, counts):
        for key, numbers in counts.items():
            self.floor[key] = tuple(map(max, self.floor.get(key, numbers), numbers))

    def read_sums(self):
        try:
            rows, counted, minutes, five_minutes, ledger, ledger_by = self.connection.execute(SUMS).fetchone()
        except psycopg.errors.ObjectNotInPrerequisiteState:
            self.report.add("reads while history is read")
            return
        if rows != counted or minutes != five_minutes or (ledger or 0) != (ledger_by or 0):
            self.report.difference(
                f"in one tick: {rows} and {counted}, {minutes} and {five_minutes}, {ledger} and {ledger_by}"
            )
        self.report.add("reads of one tick")

    def read_final(self):
        name = self.random.choice(sorted(self.shown))
        try:
            rows = self.connection.execute(
                f"SELECT * FROM {name} WHERE window_end = closed_window_end('{name}')"
            ).fetchall()
        except psycopg.errors.ObjectNotInPrerequisiteState:
            return
        for row in rows:
            self.shown[name][row] = 1
        self.report.add("rows of closed windows read", len(rows))

    def failed(self, error):
        if not is_open(error):
            self.report.difference(f"reader: {error.sqlstate} {error}")
