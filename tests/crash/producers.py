"""Threads that write to the topics until the run ends.

Event time passes `SPEED` times as fast as the clock, so that a minute of a run fills half an hour of windows. Rows come out of
order, some beyond the watermark's delay; some records are malformed, some are tombstones.
"""

import datetime
import json
import logging
import random
import threading
import time

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka.admin import AdminClient, NewPartitions, NewTopic

PARTITIONS = 4
# By topic, how many partitions there are at first.
TOPICS = {"ads": PARTITIONS, "payments": PARTITIONS, "clicks": PARTITIONS, "signups": 1}
# What a topic that grows comes to have.
GROWN = 6
SPEED = 30
EPOCH_MS = 1_748_736_000_000  # 2025-06-01 UTC: long past, so that no row comes from the future
COUNTRIES = ["DE", "US", "FR", "GB", "JP", "BR", "IN"]
TYPES = ["impression"] * 14 + ["click"] * 4 + ["purchase"]
MALFORMED = [
    b'{"event_id": "x"',
    b"[1, 2, 3]",
    b"",
    b"\xff\xfe",
    b"nonsense",
    b'{"amount": "many", "ts": 1748736000000}',
    b'{"amount": 99999999999999999999, "ts": 1748736000000}',
    b'{"ts": "2026-02-30T00:00:00Z"}',
    b'{"amount": {"x": 1}}',
    b'{"amount": 1, "amount": 2, "ts": 1748736000000}',
    b'{"amount": true}',
    b'{"amount": 1.5}',
    b'"text"',
    b"{} {}",
]

# librdkafka warns of every broker that goes away.
QUIET = logging.getLogger("librdkafka")
QUIET.addHandler(logging.NullHandler())
QUIET.propagate = False


def create_topics(bootstrap):
    topics = [NewTopic(topic, partitions, 1) for topic, partitions in TOPICS.items()]
    client = AdminClient({"bootstrap.servers": bootstrap, "log_level": 3})
    for made in client.create_topics(topics).values():
        made.result(60)


class Writer(threading.Thread):
    """Writes `rate` records a second in small bursts."""

    def __init__(self, run, topic, rate):
        super().__init__(name=f"producer of {topic}", daemon=True)
        self.run_, self.topic, self.rate = run, topic, rate
        self.random = random.Random(f"{run.seed}/{topic}")
        self.sent = 0
        self.began = time.monotonic()

    def settings(self):
        return {
            "bootstrap.servers": self.run_.bootstrap,
            "linger.ms": 20,
            "compression.type": "lz4",
            "enable.idempotence": True,
            "message.timeout.ms": 0,
            "reconnect.backoff.max.ms": 500,
        }

    def run(self):
        try:
            self.write()
        except Exception as error:
            self.run_.report.difference(f"the {self.name} failed: {error!r}")

    def write(self):
        self.producer = Producer(self.settings(), logger=QUIET)
        while not self.run_.production_ends.is_set():
            self.burst()
            time.sleep(0.02)
        if self.producer.flush(120):
            self.run_.report.difference(f"the {self.name} could not write its last records")

    def burst(self):
        due = int((time.monotonic() - self.began) * self.rate) - self.sent
        for _ in range(max(0, min(due, self.rate))):
            self.send(self.random.randrange(PARTITIONS), self.record())

    def send(self, partition, value, key=None):
        while True:
            try:
                self.producer.produce(self.topic, value, key=key, partition=partition)
                break
            except BufferError:
                self.producer.poll(0.1)
        self.producer.poll(0)
        self.sent += 1

    def time_ms(self, partition_lag_ms=0):
        """Mostly within the delay, now and then beyond it."""
        now = EPOCH_MS + int((time.monotonic() - self.began) * 1000 * SPEED)
        draw = self.random.random()
        back = self.random.randrange(9_000) if draw < 0.96 else self.random.randrange(9_000, 32_000)
        return now - partition_lag_ms - (back if draw < 0.997 else self.random.randrange(180_000))

    def shown_time(self, ms):
        if self.random.random() < 0.05:
            return datetime.datetime.fromtimestamp(ms / 1000, datetime.timezone.utc).isoformat(timespec="milliseconds")
        return ms

    def record(self):
        """A value, malformed or none now and then."""
        draw = self.random.random()
        if draw < 0.006:
            return self.random.choice(MALFORMED)
        if draw < 0.009:
            return None
        event = self.event()
        if draw < 0.011:
            event.pop("ts")
        elif draw < 0.014:
            event = {name.upper(): value for name, value in event.items()}
        elif draw < 0.02:
            event["amount"] = self.random.choice([None, "17", 2.0, 3e2])
        elif draw < 0.03:
            event["unknown"] = {"deep": [1, {"er": None}]}
        return json.dumps(event).encode()


class Ads(Writer):
    def event(self):
        r = self.random
        # Few ads take most events.
        ad = int(1000 * r.random() ** 2)
        return {
            "event_id": f"a{self.sent}",
            "ad_id": ad,
            "event_type": r.choice(TYPES),
            "user_id": r.randrange(600),
            "country": r.choice(COUNTRIES),
            "amount": r.randrange(500),
            "price": r.randrange(4000) / 4,
            "ts": self.shown_time(self.time_ms()),
        }


class Clicks(Writer):
    """Some events come again: as they were or at another time, in the same partition or another."""

    def write(self):
        self.recent = []
        super().write()

    def event(self):
        r = self.random
        if self.recent and r.random() < 0.3:
            # Older ones come back late as a rule.
            event = dict(r.choice(self.recent if r.random() < 0.1 else self.recent[-60:]))
            if r.random() < 0.4:
                # Not ahead of all others: they would be late.
                event["ts"] = min(event["ts"] + r.randrange(-15_000, 90_000), self.time_ms())
            if r.random() < 0.2:
                event["amount"] = r.randrange(500)
            return event
        event = {
            "event_id": f"c{self.sent}",
            "ad_id": r.randrange(1000),
            "amount": r.randrange(500),
            "ts": self.time_ms(),
        }
        if r.random() < 0.01:
            event["event_id"] = None
        self.recent.append(dict(event))
        self.recent = self.recent[-400:]
        return event


class Signups(Writer):
    """Into a topic that is given more partitions now and then."""

    def __init__(self, run, topic, rate, pause_s):
        super().__init__(run, topic, rate)
        self.partitions, self.pause_s = TOPICS[topic], pause_s
        self.grows_at = self.began + pause_s

    def event(self):
        r = self.random
        return {
            "signup_id": f"s{self.sent}",
            "plan": r.choice(["free", "team", "firm"]),
            "amount": r.randrange(500),
            "ts": self.time_ms(),
        }

    def burst(self):
        if self.partitions < GROWN and time.monotonic() > self.grows_at:
            self.grow()
        due = int((time.monotonic() - self.began) * self.rate) - self.sent
        for _ in range(max(0, min(due, self.rate))):
            self.send(self.random.randrange(self.partitions), self.record())

    def settings(self):
        return {**super().settings(), "topic.metadata.refresh.interval.ms": 300}

    def send(self, partition, value, key=None):
        try:
            super().send(partition, value, key)
        except KafkaException as error:
            # It has not heard of the new one yet.
            if error.args[0].code() != KafkaError._UNKNOWN_PARTITION:
                raise
            super().send(0, value, key)

    def grow(self):
        self.grows_at = time.monotonic() + self.pause_s
        client = AdminClient({"bootstrap.servers": self.run_.bootstrap, "log_level": 3}, logger=QUIET)
        try:
            for grown in client.create_partitions([NewPartitions(self.topic, self.partitions + 1)]).values():
                grown.result(10)
            self.run_.report.add("partitions added")
        except (KafkaException, TimeoutError):
            # Whether it was done before the broker went away is seen by asking.
            pass
        try:
            self.partitions = len(client.list_topics(self.topic, timeout=5).topics[self.topic].partitions)
        except KafkaException:
            pass


class Payments(Writer):
    """In transactions: committed ones, aborted ones, and some that stay open for a while."""

    def settings(self):
        return {
            **super().settings(),
            "transactional.id": "crash-test",
            "transaction.timeout.ms": 15_000,
            "message.timeout.ms": 15_000,
        }

    def event(self):
        r = self.random
        return {
            "payment_id": f"p{self.sent}",
            "account": r.randrange(200),
            "amount": r.randrange(500),
            "ts": self.time_ms(),
        }

    def write(self):
        self.producer = None
        while not self.run_.production_ends.is_set():
            try:
                if self.producer is None:
                    self.producer = Producer(self.settings(), logger=QUIET)
                    self.producer.init_transactions(30)
                self.transaction()
            except KafkaException as error:
                self.run_.report.add(f"transactions broken off ({error.args[0].name()})")
                self.recover(error)
        if self.producer:
            self.producer.flush(30)

    def transaction(self):
        r = self.random
        self.producer.begin_transaction()
        # One without records cannot be ended: the client breaks off.
        self.send(r.randrange(PARTITIONS), self.record())
        for _ in range(r.randrange(1, 6)):
            self.burst()
            time.sleep(0.5 + r.random() if r.random() < 0.01 else 0.02)
        if r.random() < 0.25:
            self.producer.abort_transaction(30)
            self.run_.report.add("transactions aborted")
        else:
            self.producer.commit_transaction(30)
            self.run_.report.add("transactions committed")

    def recover(self, error):
        """Aborts, or else begins anew: a new producer of the same id has what was left open aborted."""
        if error.args[0].txn_requires_abort():
            try:
                self.producer.abort_transaction(30)
                return
            except KafkaException:
                pass
        self.producer = None
        time.sleep(0.5)
