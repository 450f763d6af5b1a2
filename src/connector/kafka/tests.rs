//! The reader and the metadata against a broker: the embedded one, or Apache Kafka where `KAFKA_BOOTSTRAP` names it.
//! Nothing sleeps: a test polls until what it waits for is there, and fails after a generous time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

use super::{KafkaOptions, Metadata, Reader};
use crate::connector::embedded::{EmbeddedBroker, Producer};
use crate::connector::{ConnectorError, Health, PartitionOffset, Records, Watermarks};

const LONG: Duration = Duration::from_secs(30);

struct Broker {
    embedded: Option<EmbeddedBroker>,
    servers: String,
}

impl Broker {
    fn new() -> Broker {
        match real() {
            Some(servers) => Broker { embedded: None, servers },
            None => {
                let embedded = EmbeddedBroker::start().expect("a broker");
                Broker { servers: embedded.servers(), embedded: Some(embedded) }
            }
        }
    }

    /// A new topic and the options to read it.
    fn topic(&self, partitions: i32) -> (String, KafkaOptions) {
        let (name, options) = self.topic_to_come();
        self.create(&name, partitions);
        (name, options)
    }

    fn topic_to_come(&self) -> (String, KafkaOptions) {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let options = options(&self.servers, &name, &[]);
        (name, options)
    }

    fn create(&self, name: &str, partitions: i32) {
        match &self.embedded {
            Some(embedded) => embedded.create_topic(name, partitions).expect("a topic"),
            None => crate::connector::create_topic(&self.servers, name, partitions).expect("a topic"),
        }
    }
}

fn real() -> Option<String> {
    std::env::var("KAFKA_BOOTSTRAP").ok().filter(|servers| !servers.is_empty())
}

fn options(servers: &str, topic: &str, more: &[(&str, &str)]) -> KafkaOptions {
    let mut options: BTreeMap<String, String> =
        [("connector", "kafka"), ("topic", topic), ("servers", servers)].map(|(k, v)| (k.into(), v.into())).into();
    options.extend(more.iter().map(|(k, v)| (k.to_string(), v.to_string())));
    KafkaOptions::parse(&options).expect("valid options")
}

fn from(offsets: &[(i32, i64)]) -> Vec<PartitionOffset> {
    offsets.iter().map(|(partition, offset)| PartitionOffset { partition: *partition, offset: *offset }).collect()
}

fn write(broker: &Broker, topic: &str, partition: i32, values: &[&str]) {
    let producer = Producer::new(&broker.servers, &[]).expect("a producer");
    for value in values {
        producer.send(topic, Some(partition), None, Some(value.as_bytes()), 5).expect("room");
    }
    producer.flush(LONG).expect("delivery");
}

/// Polls until `done` says so.
fn poll_until(reader: &mut Reader, records: &mut Records, done: impl Fn(&Reader, &Records) -> bool) {
    let deadline = Instant::now() + LONG;
    while !done(reader, records) {
        assert!(Instant::now() < deadline, "positions {:?}, health {:?}", reader.positions(), reader.health());
        reader.poll(records, 1 << 20, Duration::from_millis(50)).expect("no error");
    }
}

/// `partition:offset=value` of each record, by partition.
fn shown(records: &Records) -> Vec<String> {
    let mut lines: Vec<String> = (0..records.len())
        .map(|i| {
            let record = records.records[i];
            let value = records.value(i).map_or("NULL".into(), String::from_utf8_lossy);
            format!("{}:{}={value}", record.partition, record.offset)
        })
        .collect();
    lines.sort();
    lines
}

#[test]
fn reads_keys_values_tombstones_and_times() {
    let broker = Broker::new();
    let (topic, options) = broker.topic(1);
    let producer = Producer::new(&broker.servers, &[]).expect("a producer");
    producer.send(&topic, Some(0), Some(b"k"), Some(b"v"), 1_700_000_000_123).expect("room");
    producer.send(&topic, Some(0), None, None, 1_700_000_000_124).expect("room");
    producer.send(&topic, Some(0), None, Some(b""), 1_700_000_000_125).expect("room");
    producer.flush(LONG).expect("delivery");
    let mut reader = Reader::new(&options).expect("a reader");
    reader.assign(&from(&[(0, 0)])).expect("an assignment");
    let mut records = Records::default();
    poll_until(&mut reader, &mut records, |_, records| records.len() == 3);
    let seen: Vec<_> = (0..3).map(|i| (records.key(i), records.value(i), records.records[i].timestamp_ms)).collect();
    assert_eq!(
        seen,
        [
            (Some(&b"k"[..]), Some(&b"v"[..]), 1_700_000_000_123),
            (None, None, 1_700_000_000_124),
            (None, Some(&b""[..]), 1_700_000_000_125)
        ]
    );
    assert_eq!(reader.position(0), Some(3));
    assert_eq!(reader.health(), &Health::Running);
}

#[test]
fn takes_on_partitions_and_goes_back() {
    let broker = Broker::new();
    let (topic, options) = broker.topic(3);
    for partition in 0..3 {
        write(&broker, &topic, partition, &["a", "b", "c"]);
    }
    let mut reader = Reader::new(&options).expect("a reader");
    let mut records = Records::default();
    reader.assign(&from(&[(0, 1)])).expect("an assignment");
    poll_until(&mut reader, &mut records, |reader, _| reader.position(0) == Some(3));
    reader.add(&from(&[(2, 2)])).expect("an assignment");
    poll_until(&mut reader, &mut records, |reader, _| reader.position(2) == Some(3));
    assert_eq!(shown(&records), ["0:1=b", "0:2=c", "2:2=c"]);

    records.clear();
    reader.assign(&from(&[(0, 0), (1, 3)])).expect("an assignment");
    poll_until(&mut reader, &mut records, |reader, _| reader.position(0) == Some(3));
    assert_eq!(shown(&records), ["0:0=a", "0:1=b", "0:2=c"]);
    assert_eq!(reader.positions(), from(&[(0, 3), (1, 3)]));

    reader.remove(&[0]);
    write(&broker, &topic, 0, &["d"]);
    write(&broker, &topic, 1, &["d"]);
    poll_until(&mut reader, &mut records, |reader, _| reader.position(1) == Some(4));
    assert_eq!(shown(&records), ["0:0=a", "0:1=b", "0:2=c", "1:3=d"]);
    assert_eq!(reader.position(0), None);
}

#[test]
fn stops_at_the_bytes_allowed_and_loses_nothing() {
    let broker = Broker::new();
    let (topic, options) = broker.topic(2);
    let value = "x".repeat(1000);
    write(&broker, &topic, 0, &vec![value.as_str(); 700]);
    write(&broker, &topic, 1, &vec![value.as_str(); 700]);
    let mut reader = Reader::new(&options).expect("a reader");
    reader.assign(&from(&[(0, 0), (1, 0)])).expect("an assignment");
    let mut offsets = [0, 0];
    let mut records = Records::default();
    let deadline = Instant::now() + LONG;
    while offsets != [700, 700] {
        assert!(Instant::now() < deadline);
        records.clear();
        reader.poll(&mut records, 10_000, Duration::from_millis(50)).expect("no error");
        assert!(records.bytes.len() <= 200_000, "{} bytes", records.bytes.len());
        for record in &records.records {
            assert_eq!(record.offset, offsets[record.partition as usize]);
            offsets[record.partition as usize] += 1;
        }
    }
}

#[test]
fn a_waker_ends_the_wait() {
    let broker = Broker::new();
    let (_, options) = broker.topic(1);
    let mut reader = Reader::new(&options).expect("a reader");
    reader.assign(&from(&[(0, 0)])).expect("an assignment");
    let waker = reader.waker();
    let mut records = Records::default();
    // Before the poll, and during it from another thread until it has returned.
    waker.wake();
    reader.poll(&mut records, 1 << 20, Duration::from_secs(3600)).expect("no error");
    let (done, finished) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        reader.poll(&mut records, 1 << 20, Duration::from_secs(3600)).expect("no error");
        done.send(()).expect("the test waits");
    });
    while finished.recv_timeout(Duration::from_millis(20)).is_err() {
        waker.wake();
    }
    thread.join().expect("no panic");
    waker.wake();
}

#[test]
fn pauses_and_resumes_where_it_was() {
    let broker = Broker::new();
    let (topic, options) = broker.topic(2);
    write(&broker, &topic, 0, &["a", "b"]);
    let mut reader = Reader::new(&options).expect("a reader");
    reader.assign(&from(&[(0, 0), (1, 0)])).expect("an assignment");
    let mut records = Records::default();
    poll_until(&mut reader, &mut records, |reader, _| reader.position(0) == Some(2));
    reader.pause(&[0]).expect("a pause");
    write(&broker, &topic, 0, &["c"]);
    write(&broker, &topic, 1, &["x"]);
    poll_until(&mut reader, &mut records, |reader, _| reader.position(1) == Some(1));
    assert_eq!(reader.position(0), Some(2));
    reader.resume(&[0]).expect("a resumption");
    poll_until(&mut reader, &mut records, |reader, _| reader.position(0) == Some(3));
    assert_eq!(shown(&records), ["0:0=a", "0:1=b", "0:2=c", "1:0=x"]);
}

#[test]
fn knows_partitions_and_offsets() {
    let broker = Broker::new();
    let (topic, earliest) = broker.topic(2);
    write(&broker, &topic, 1, &["a", "b", "c"]);
    let metadata = Metadata::new(&earliest).expect("a client");
    assert_eq!(metadata.partitions(LONG), Ok(vec![0, 1]));
    let expected = [(0, 0, 0), (1, 0, 3)].map(|(partition, low, high)| Watermarks { partition, low, high });
    assert_eq!(metadata.watermarks(&[0, 1], LONG), Ok(expected.to_vec()));
    assert_eq!(metadata.start_offsets(&[0, 1], LONG), Ok(from(&[(0, 0), (1, 0)])));
    let latest = options(&broker.servers, &topic, &[("scan.startup.mode", "latest")]);
    let metadata = Metadata::new(&latest).expect("a client");
    assert_eq!(metadata.start_offsets(&[0, 1], LONG), Ok(from(&[(0, 0), (1, 3)])));
    // No record is that young.
    assert_eq!(metadata.offsets_for_time(&[0, 1], 1_000_000, LONG), Ok(from(&[(0, 0), (1, 3)])));
    if real().is_some() {
        assert_eq!(metadata.offsets_for_time(&[0, 1], 5, LONG), Ok(from(&[(0, 0), (1, 0)])));
    }
    assert!(matches!(
        metadata.watermarks(&[7], LONG),
        Err(ConnectorError::Kafka { .. } | ConnectorError::TopicMissing { .. })
    ));
}

#[test]
fn what_is_wrong_has_a_name() {
    let broker = Broker::new();
    let metadata = Metadata::new(&options(&broker.servers, "no-such-topic", &[])).expect("a client");
    assert!(matches!(metadata.partitions(LONG), Err(ConnectorError::TopicMissing { .. })));
    // A port that was free a moment ago: nobody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let metadata = Metadata::new(&options(&free.to_string(), "t", &[])).expect("a client");
    let error = metadata.partitions(LONG).expect_err("nobody listens");
    assert!(matches!(&error, ConnectorError::Unreachable { reason, .. } if reason.contains("refused")), "{error}");
    assert!(matches!(metadata.watermarks(&[0], LONG), Err(ConnectorError::Unreachable { .. })));
}

#[test]
fn an_offset_that_is_gone_is_an_error() {
    let broker = Broker::new();
    let (topic, options) = broker.topic(1);
    write(&broker, &topic, 0, &["a"]);
    let mut reader = Reader::new(&options).expect("a reader");
    reader.assign(&from(&[(0, 1000)])).expect("an assignment");
    let mut records = Records::default();
    let deadline = Instant::now() + LONG;
    let error = loop {
        assert!(Instant::now() < deadline, "{:?}", reader.health());
        if let Err(error) = reader.poll(&mut records, 1 << 20, Duration::from_millis(50)) {
            break error;
        }
    };
    assert!(matches!(error, ConnectorError::OffsetLost { partition: 0, offset: 1000, .. }), "{error}");
    reader.add(&from(&[(0, 0)])).expect("an assignment");
    poll_until(&mut reader, &mut records, |reader, _| reader.position(0) == Some(1));
    assert_eq!(shown(&records), ["0:0=a"]);
}

#[test]
fn a_broker_that_is_away_is_a_state() {
    let Some(embedded) = Broker::new().embedded else { return };
    let broker = Broker { servers: embedded.servers(), embedded: Some(embedded) };
    let embedded = broker.embedded.as_ref().expect("just put there");
    let (topic, options) = broker.topic(1);
    write(&broker, &topic, 0, &["a"]);
    let mut reader = Reader::new(&options).expect("a reader");
    reader.assign(&from(&[(0, 0)])).expect("an assignment");
    let mut records = Records::default();
    poll_until(&mut reader, &mut records, |reader, _| reader.position(0) == Some(1));
    embedded.take_down().expect("down");
    poll_until(&mut reader, &mut records, |reader, _| reader.health() != &Health::Running);
    let Health::Retrying { message } = reader.health() else { panic!("it is down") };
    assert!(message.starts_with("cannot reach Kafka at 127.0.0.1:"), "{message}");
    // Nothing new is there to be read: that it runs again is found out by asking.
    embedded.bring_up().expect("up");
    poll_until(&mut reader, &mut records, |reader, _| reader.health() == &Health::Running);
    write(&broker, &topic, 0, &["b"]);
    poll_until(&mut reader, &mut records, |reader, _| reader.position(0) == Some(2));
    assert_eq!(shown(&records), ["0:0=a", "0:1=b"]);
}

#[test]
fn a_topic_that_comes_later_is_read() {
    let broker = Broker::new();
    let (topic, options) = broker.topic_to_come();
    let mut reader = Reader::new(&options).expect("a reader");
    reader.assign(&from(&[(0, 0)])).expect("an assignment");
    let mut records = Records::default();
    poll_until(&mut reader, &mut records, |reader, _| reader.health() != &Health::Running);
    let Health::Retrying { message } = reader.health() else { panic!("there is no topic") };
    assert!(message.contains("does not exist"), "{message}");
    broker.create(&topic, 1);
    write(&broker, &topic, 0, &["a"]);
    // An answer from before the topic came may still arrive after its first record.
    poll_until(&mut reader, &mut records, |reader, _| {
        reader.position(0) == Some(1) && reader.health() == &Health::Running
    });
    assert_eq!(shown(&records), ["0:0=a"]);
}

/// Only Apache Kafka has transactions: the end of the log lies behind their markers and aborted records.
#[test]
fn committed_records_only_and_the_position_behind_markers() {
    if real().is_none() {
        return;
    }
    let broker = Broker::new();
    let (topic, options) = broker.topic(1);
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &broker.servers)
        .set("transactional.id", &topic)
        .create()
        .expect("a producer");
    producer.init_transactions(LONG).expect("transactions");
    let send = |value: &str| {
        producer.begin_transaction().expect("a transaction");
        producer.send(BaseRecord::<[u8], [u8]>::to(&topic).partition(0).payload(value.as_bytes())).expect("room");
        producer.flush(LONG).expect("delivery");
    };
    send("kept");
    producer.commit_transaction(LONG).expect("a commit");
    send("aborted");
    producer.abort_transaction(LONG).expect("an abort");
    let metadata = Metadata::new(&options).expect("a client");
    let end = metadata.watermarks(&[0], LONG).expect("offsets")[0].high;
    assert_eq!(end, 4, "two records and two markers");
    let mut reader = Reader::new(&options).expect("a reader");
    reader.assign(&from(&[(0, 0)])).expect("an assignment");
    let mut records = Records::default();
    poll_until(&mut reader, &mut records, |reader, _| reader.position(0) == Some(end));
    assert_eq!(shown(&records), ["0:0=kept"]);

    // An open transaction is not readable, and not part of the end.
    send("open");
    assert_eq!(metadata.watermarks(&[0], LONG).expect("offsets")[0].high, end);
    producer.commit_transaction(LONG).expect("a commit");
    let end = metadata.watermarks(&[0], LONG).expect("offsets")[0].high;
    poll_until(&mut reader, &mut records, |reader, _| reader.position(0) == Some(end));
    assert_eq!(shown(&records), ["0:0=kept", "0:4=open"]);
}
