"""The law of acceptance, written anew from the topics: which records count, and which do not.

In a partition, in the order of its log: a null value is skipped; what does not fit the columns is dead; a row without a time, or
whose time lies below the partition's watermark less the allowed lateness, is late; the rest is accepted, and moves the watermark
to its time less the delay. Of the accepted rows duplicates are taken out by the rule of the source.
"""

import collections
import json
from decimal import Decimal, InvalidOperation

from confluent_kafka import Consumer, KafkaError, TopicPartition

import objects


class Dead(Exception):
    """The record does not fit the columns."""


def read_topic(bootstrap, topic):
    """Committed records of a topic as it stands: by partition, (offset, value)."""
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "crash-test-law",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
    )
    partitions = consumer.list_topics(topic, timeout=30).topics[topic].partitions
    consumer.assign([TopicPartition(topic, partition, 0) for partition in partitions])
    log = {partition: [] for partition in partitions}
    open_partitions = set(log)
    while open_partitions:
        for message in consumer.consume(1_000, timeout=0.2):
            if message.error() is None:
                log[message.partition()].append((message.offset(), message.value()))
            elif message.error().code() == KafkaError._PARTITION_EOF:
                open_partitions.discard(message.partition())
            elif not message.error().retriable():
                raise RuntimeError(f"topic {topic}: {message.error()}")
    consumer.close()
    return log


class Number(str):
    """A number as the record writes it."""


def whole(value, low, high):
    if isinstance(value, bool) or not isinstance(value, str):
        raise Dead("no number")
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        raise Dead("no number") from None
    if not number.is_finite() or number != number.to_integral_value() or not low <= number <= high:
        raise Dead("no number of the type")
    return int(number)


def moment_us(value):
    """An epoch number in milliseconds (the run writes no others), or UTC as ISO 8601."""
    import datetime

    if isinstance(value, Number):
        return int(Decimal(str(value)) * 1000)
    if isinstance(value, bool) or not isinstance(value, str):
        raise Dead("no time")
    try:
        at = datetime.datetime.fromisoformat(value.replace("Z", "+00:00"))
    except ValueError:
        raise Dead("no time") from None
    if at.tzinfo is None:
        at = at.replace(tzinfo=datetime.timezone.utc)
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
    return (at - epoch) // datetime.timedelta(microseconds=1)


def column_value(value, kind):
    if value is None:
        return None
    match kind:
        case "BIGINT":
            return whole(value, -(2**63), 2**63 - 1)
        case "INT":
            return whole(value, -(2**31), 2**31 - 1)
        case "VARCHAR":
            if isinstance(value, bool) or not isinstance(value, str):
                raise Dead("no text")
            return str(value)
        case "DOUBLE":
            if isinstance(value, bool) or not isinstance(value, str):
                raise Dead("no number")
            try:
                return float(value)
            except ValueError:
                raise Dead("no number") from None
        case "TIMESTAMP" | "TIMESTAMPTZ":
            return moment_us(value)
    raise ValueError(f"no law for {kind}")


class Fields(list):
    """An object's fields in their order, so that one that comes twice is seen."""


def no_constant(name):
    raise ValueError(name)


def decode(value, columns):
    """A record's values in the order of the columns."""
    try:
        fields = json.loads(
            value.decode("utf-8"),
            object_pairs_hook=Fields,
            parse_int=Number,
            parse_float=Number,
            parse_constant=no_constant,
        )
    except (ValueError, RecursionError):
        raise Dead("not JSON") from None
    if not isinstance(fields, Fields):
        raise Dead("no object")
    found = {}
    names = [name for name, _ in columns]
    for name, field in fields:
        column = name if name in names else name.lower()
        if column in names:
            if column in found:
                raise Dead("a field twice")
            found[column] = field
    return [column_value(found.get(name), kind) for name, kind in columns]


Row = collections.namedtuple("Row", "ts_us partition offset values")


class Judged:
    """What the law says of a source: accepted rows, and by verdict the places (partition, offset) of the others."""

    def __init__(self, source, log):
        self.source = source
        self.rows = []
        self.verdicts = collections.defaultdict(list)
        self.read = {partition: len(records) for partition, records in log.items()}
        self.watermarks_us = {partition: None for partition in log}
        self.late = {}  # place -> (reason, values)
        for partition, records in log.items():
            self._judge(partition, records)
        if source.within == "across":
            self._take_out_across()
        elif source.within == "same_partition":
            self._take_out_within()

    def watermark_us(self):
        """The source's: the smallest of its partitions', none of which is ever idle."""
        return None if None in self.watermarks_us.values() else min(self.watermarks_us.values())

    def _judge(self, partition, records):
        columns = self.source.columns
        time = [name for name, _ in columns].index("ts")
        watermark = None
        for offset, value in records:
            place = (partition, offset)
            if value is None:
                self.verdicts["skipped"].append(place)
                continue
            try:
                values = decode(value, columns)
            except Dead:
                self.verdicts["dead"].append(place)
                continue
            ts = values[time]
            if not self.source.timed:
                self.rows.append(Row(ts, partition, offset, values))
                continue
            if ts is None or (watermark is not None and ts < watermark - self.source.lateness_us):
                self.verdicts["late"].append(place)
                self.late[place] = ("null_time" if ts is None else "late", values)
                continue
            watermark = max(ts - objects.DELAY_US, watermark) if watermark is not None else ts - objects.DELAY_US
            self.rows.append(Row(ts, partition, offset, values))
        self.watermarks_us[partition] = watermark

    def _take_out_across(self):
        """By event time, partition and offset: a kept row less than the interval before."""
        kept, rows = {}, []
        for row in sorted(self.rows, key=lambda row: row[:3]):
            id = row.values[0]
            if id is not None and id in kept and row.ts_us - kept[id] < objects.WITHIN_US:
                self.verdicts["duplicate"].append((row.partition, row.offset))
                continue
            kept[id] = row.ts_us
            rows.append(row)
        self.rows = rows

    def _take_out_within(self):
        """By the partition's log: a kept row before it less than the interval away."""
        kept, rows = collections.defaultdict(list), []
        for row in self.rows:
            of_id = kept[row.partition, row.values[0]]
            if row.values[0] is not None and any(abs(row.ts_us - ts) < objects.WITHIN_US for ts in of_id):
                self.verdicts["duplicate"].append((row.partition, row.offset))
                continue
            of_id.append(row.ts_us)
            rows.append(row)
        self.rows = rows

    def counts(self, partition):
        """read, accepted, late, duplicate, dead, skipped of a partition."""
        of = {verdict: sum(1 for place in places if place[0] == partition) for verdict, places in self.verdicts.items()}
        others = [of.get(verdict, 0) for verdict in ("late", "duplicate", "dead", "skipped")]
        accepted = sum(1 for row in self.rows if row.partition == partition)
        return (self.read[partition], accepted, *others)
