"""The crash test: see scripts/crash-test, and the modules here: objects (what is made), producers, clients, reader, listener, law,
comparison."""

import argparse
import logging
import os
import pathlib
import random
import shutil
import signal
import tempfile
import threading
import time
import traceback

import psycopg
from confluent_kafka import Consumer, KafkaException, TopicPartition

import objects
import producers
from clients import TableClient, ViewClient
from comparison import Comparison
from listener import Listener
from network import Cutter, Network
from reader import Reader
from report import Report
from server import Broker, Failed, Server, free_port

# Kills that come before the server answers, at most so many in a row: each start must be able to get on in the end.
MOST_QUICK = 3
WAIT_S = 600
# Without these a run has shown nothing.
NEEDED = [
    "checkpoints committed",
    "statements acknowledged",
    "DDL acknowledged",
    "transactions taken back",
    "transactions committed",
    "transactions aborted",
    "partitions added",
    "reads of counts",
    "reads of one tick",
    "rows of closed windows read",
    "rows told as committed",
    "times caught up",
    "views reconciled",
]


def options():
    parser = argparse.ArgumentParser(
        prog="scripts/crash-test",
        description="Kills Riverrun at random moments and compares its views with DuckDB's answers.",
    )
    parser.add_argument("--kills", type=int, help="kill -9 of the server so many times (20)")
    parser.add_argument("--broker-kills", type=int, help="kill -9 of the broker so many times (0)")
    parser.add_argument("--cuts", type=int, help="cut the network between server and broker so many times (5)")
    parser.add_argument("--seconds", type=float, help="go on for so long at least; kills are spread over it")
    parser.add_argument("--rate", type=int, help="records a second over all topics (1200)")
    parser.add_argument("--seed", type=int, help="of all that is random (the clock)")
    parser.add_argument("--binary", type=pathlib.Path, help="a riverrun that is there already (else cargo builds one)")
    parser.add_argument(
        "--workers", type=int, nargs="+", metavar="N", help="numbers of workers to choose from at restarts (1 2 3 4)"
    )
    parser.add_argument(
        "--short", action="store_true", help="10 kills, 1 of the broker, 2 cuts, 25 seconds, 700 records a second"
    )
    given = parser.parse_args()
    defaults = (
        {"kills": 10, "broker_kills": 1, "cuts": 2, "seconds": 25, "rate": 700}
        if given.short
        else {"kills": 20, "broker_kills": 0, "cuts": 5, "seconds": 0, "rate": 1200}
    )
    for name, value in {**defaults, "seed": int(time.time()), "workers": [1, 2, 3, 4]}.items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    return given


class BrokerKiller(threading.Thread):
    """Kills the broker and starts it again on its data, spread over the run."""

    def __init__(self, run, kills, pause_s):
        super().__init__(name="broker killer", daemon=True)
        self.run_, self.left, self.pause_s = run, kills, pause_s
        self.random = random.Random(f"{run.seed}/broker")
        self.begun = threading.Event()

    def run(self):
        try:
            while self.left and not self.run_.ends.is_set():
                self.run_.ends.wait(self.random.uniform(0.3, 1.7) * self.pause_s)
                if self.run_.ends.is_set():
                    return
                self.run_.broker.kill()
                self.run_.report.add("kills of the broker")
                self.run_.report.say("kill -9 of the broker")
                time.sleep(self.random.uniform(0.2, 4))
                self.run_.broker.start()
                self.left -= 1
        except Exception as error:
            self.run_.report.difference(f"the broker did not come back: {error!r}")
            self.left = 0


class Run:
    def __init__(self, given):
        self.given, self.seed = given, given.seed
        self.report = Report()
        self.random = random.Random(f"{self.seed}/kills")
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="riverrun-crash-"))
        self.production_ends, self.clients_end, self.ends = threading.Event(), threading.Event(), threading.Event()
        self.broker = Broker(self, self.folder / "kafka")
        self.network = self.broker.network = Network(self, free_port())
        self.server = Server(self, given.binary.resolve(), self.folder)
        self.quick = 0
        self.ready_s = 1.0

    def go(self):
        self.report.say(f"seed {self.seed}, {self.folder}")
        self.network.start()
        self.bootstrap = self.broker.start()
        producers.create_topics(self.bootstrap)
        self.server.start()
        self.server.wait_until_ready()
        self.set_up()
        self.start_threads()
        self.report.say(f"{len(objects.VIEWS)} views; {self.given.kills} kills begin")
        self.kill_again_and_again()
        self.settle()
        self.verify()

    def set_up(self):
        with self.server.connect() as connection:
            for sql in objects.TABLES:
                connection.execute(sql)
            for source in objects.SOURCES:
                connection.execute(source.sql(f"127.0.0.1:{self.network.front}"))
            for view in objects.VIEWS:
                try:
                    connection.execute(view.sql())
                except psycopg.Error as error:
                    raise Failed(f"{view.sql()}: {error}") from None

    def start_threads(self):
        rate = self.given.rate
        self.mean_life_s = max(2.0, self.given.seconds / max(1, self.given.kills))
        expected_s = self.mean_life_s * self.given.kills * 1.2
        self.producers = [
            producers.Ads(self, "ads", rate * 55 // 100),
            producers.Payments(self, "payments", rate * 2 // 10),
            producers.Clicks(self, "clicks", rate * 2 // 10),
            producers.Signups(self, "signups", rate // 20, expected_s / 10),
        ]
        self.tables = [TableClient(self, number) for number in (1, 2, 3)]
        self.views = ViewClient(self)
        self.reader = Reader(self)
        self.listener = Listener(self)
        self.broker_killer = BrokerKiller(
            self, self.given.broker_kills, expected_s / max(1, self.given.broker_kills + 1)
        )
        self.cutter = Cutter(self, self.network, self.given.cuts, expected_s / (self.given.cuts + 1))
        self.killers = [self.broker_killer, self.cutter]
        self.threads = [*self.producers, *self.tables, self.views, self.reader, self.listener, *self.killers]
        for thread in self.threads:
            thread.start()

    def kill_again_and_again(self):
        began = time.monotonic()
        kills = 0

        def going_on():
            more = any(killer.left for killer in self.killers)
            return kills < self.given.kills or time.monotonic() - began < self.given.seconds or more

        while going_on():
            kills += self.one_life(kills < self.given.kills)
            self.server.workers = (
                self.random.choice(self.given.workers) if self.random.random() < 0.4 else self.server.workers
            )
            self.server.interval_ms = self.random.choice([200, 300, 500, 1000])
            self.server.start()
        self.server.wait_until_ready()

    def one_life(self, may_kill):
        """One life of the server, which is running; how many times it was killed: once or not at all."""
        r = self.random
        if may_kill and self.quick < MOST_QUICK and r.random() < 0.2:
            self.quick += 1
            time.sleep(r.uniform(0, 1.2 * self.ready_s))
            self.server.kill()
            self.report.add("kills while starting")
            return 1
        self.quick = 0
        self.ready_s = self.server.wait_until_ready()
        self.live(r.uniform(0.2, 1.8) * self.mean_life_s, self.topic_ends())
        while r.random() < 0.12:
            self.report.add("pauses (SIGSTOP)")
            self.server.pause(r.uniform(0.3, 3))
            self.live(r.uniform(0, 1))
        if may_kill and r.random() < 0.85:
            self.server.kill()
            self.report.add("kills")
            return 1
        floor = self.counts()
        self.server.terminate()
        self.report.add("ends by SIGTERM")
        # Nothing of what was there before is lost.
        self.reader.raise_floor(floor)
        return 0

    def live(self, seconds, ends=None):
        """Lets the server run, and notes when it has caught up with these ends of the topics."""
        until = time.monotonic() + seconds
        topic_of = {source.name: source.topic for source in objects.SOURCES}
        while time.monotonic() < until:
            self.server.check_alive()
            if ends:
                try:
                    counts = self.counts()
                except psycopg.Error:
                    counts = {}
                there = {(source, partition): numbers[0] for (source, partition), numbers in counts.items()}
                if all(
                    there.get((source, at[1]), -1) >= end
                    for source, topic in topic_of.items()
                    for at, end in ends.items()
                    if at[0] == topic
                ):
                    self.report.took("from start to caught up", time.monotonic() - self.server.started)
                    self.report.add("times caught up")
                    ends = None
            time.sleep(0.05)

    def counts(self):
        with self.server.connect(connect_timeout=20) as connection:
            rows = connection.execute(
                'SELECT source, partition, "offset", read, late, dead, skipped FROM riverrun.source_partitions'
            )
            return {(source, partition): tuple(numbers) for source, partition, *numbers in rows}

    def topic_ends(self):
        """Where the topics end, as far as records of transactions that are over go; none while the broker is away."""
        consumer = Consumer(
            {"bootstrap.servers": self.bootstrap, "group.id": "crash-test-ends", "isolation.level": "read_committed"},
            logger=producers.QUIET,
        )
        try:
            topics = consumer.list_topics(timeout=2).topics
            partitions = [(topic, partition) for topic in producers.TOPICS for partition in topics[topic].partitions]
            return {at: consumer.get_watermark_offsets(TopicPartition(*at), timeout=2)[1] for at in partitions}
        except KafkaException:
            return None
        finally:
            consumer.close()

    def settle(self):
        """Ends what writes, and waits until the server has all of it."""
        self.report.say("producers and clients end")
        self.production_ends.set()
        for thread in [*self.producers, *self.killers]:
            thread.join(180)
            if thread.is_alive():
                raise Failed(f"the {thread.name} does not end")
        self.wait_for_all()
        self.clients_end.set()
        for thread in [*self.tables, self.views, self.reader, self.listener]:
            thread.join(60)
            if thread.is_alive():
                raise Failed(f"client {thread.name} does not end")
        for client in [*self.tables, self.views]:
            # What was under way at the end is decided now.
            client.connection = self.server.connect()
            client.connected()
            client.disconnect()

    def wait_for_all(self):
        with self.server.connect() as connection:
            for source in objects.SOURCES:
                try:
                    connection.execute(f"WAIT FOR {source.name} TIMEOUT '{WAIT_S} s'")
                except psycopg.Error as error:
                    raise Failed(f"WAIT FOR {source.name}: {error}") from None
            connection.execute("FLUSH")

    def verify(self):
        comparison = Comparison(self)
        self.report.say("the law has judged the topics")
        with self.server.connect() as connection:
            comparison.compare(connection, "after the run")
            comparison.compare_shown(self.reader)
            self.listener.compare_all(connection)
        # From the files alone: by one more kill, once by a stop, with other workers.
        for end in (self.kill_when_kept, self.server.terminate):
            end()
            self.server.workers = self.random.choice(
                [n for n in self.given.workers if n != self.server.workers] or self.given.workers
            )
            self.server.start()
            self.server.wait_until_ready()
            self.wait_for_all()
            with self.server.connect() as connection:
                comparison.compare(connection, f"after a restart with {self.server.workers} workers")
                if end == self.server.terminate:
                    comparison.reconcile(connection)
        self.comparison = comparison
        self.report.add("checkpoints committed", len(self.reader.committed))
        for name in [name for name in NEEDED if not self.report.counts[name]]:
            self.report.difference(f"{name}: none")
        for name, count in comparison.verdicts().items():
            if not count:
                self.report.difference(f"no record is {name}")

    def kill_when_kept(self):
        """kill -9 when a checkpoint holds everything."""
        with self.server.connect() as connection:
            connection.execute("CREATE TABLE kept (v INT)")
            connection.execute("DROP TABLE kept")
        self.server.kill()
        self.report.add("kills")

    def read_logs(self):
        for log in sorted(self.folder.glob("server-*.log")):
            text = log.read_text(errors="replace")
            self.report.add("views that read their history again", text.count("reads its history again"))
            self.report.add("errors in the log", text.count(" ERROR "))
            if "panicked at" in text:
                at = text.index("panicked at")
                self.report.difference(f"a panic in {log}: {text[at : at + 300]}")

    def end(self):
        """Ends all that was started; safe to call at any time."""
        for event in (self.ends, self.production_ends, self.clients_end):
            event.set()
        self.server.end()
        if hasattr(self, "broker_killer") and self.broker_killer.is_alive():
            # It may be starting the broker.
            self.broker_killer.join(120)
        if self.broker.folder.exists():
            self.broker.end()

    def print_report(self):
        report = self.report
        self.read_logs()
        print()
        if hasattr(self, "comparison"):
            print(
                "events by verdict, over all sources: "
                + ", ".join(f"{name} {count}" for name, count in self.comparison.verdicts().items())
            )
        for name, count in sorted(report.counts.items()):
            print(f"{name}: {count}")
        for name, seconds in sorted(report.slowest_s.items()):
            print(f"slowest {name}: {seconds:.2f} s")
        for what, count in report.wrong:
            print(f"- {what} ({count})")


def interrupted(*_):
    raise KeyboardInterrupt


def main():
    # It warns of every connection that a kill breaks.
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        signal.signal(number, interrupted)
    run = Run(options())
    code = 1
    try:
        run.go()
    except Failed as error:
        run.report.difference(str(error))
    except KeyboardInterrupt:
        code = 130
    except Exception:
        run.report.difference(f"the run failed: {traceback.format_exc()}")
    # A second signal must not leave anything running.
    for number in signals:
        signal.signal(number, signal.SIG_IGN)
    run.end()
    if code == 130:
        shutil.rmtree(run.folder)
        print("interrupted", flush=True)
        os._exit(code)
    run.print_report()
    differences = run.report.differences()
    if differences:
        print(f"data and logs are kept in {run.folder}; --seed {run.seed}")
    else:
        shutil.rmtree(run.folder)
    print(f"differences: {differences}", flush=True)
    # At once: what ends in its turn (the binding of DuckDB) would print behind the last line.
    os._exit(1 if differences else 0)


if __name__ == "__main__":
    main()
