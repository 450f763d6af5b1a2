//! A steady reader over the embedded broker.

use super::super::{EmbeddedBroker, Producer};
use super::*;

const LONG: Duration = Duration::from_secs(60);

struct Log {
    broker: EmbeddedBroker,
    producer: Producer,
}

impl Log {
    fn new() -> Log {
        let broker = EmbeddedBroker::start().expect("a broker");
        broker.create_topic("t", 2).expect("a topic");
        let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
        Log { broker, producer }
    }

    fn write(&self, partition: i32, value: &str) {
        self.producer.send("t", Some(partition), None, Some(value.as_bytes()), 5).expect("room");
        self.producer.flush(LONG).expect("delivery");
    }

    fn options(&self, more: &[(&str, &str)]) -> SourceOptions {
        let servers = self.broker.servers();
        let options = [("connector", "kafka"), ("topic", "t"), ("properties.bootstrap.server", &servers)];
        let options = options.iter().chain(more).map(|(key, value)| (key.to_string(), value.to_string())).collect();
        SourceOptions::parse(&options, &[]).expect("options")
    }
}

fn from_0() -> [PartitionOffset; 2] {
    [0, 1].map(|partition| PartitionOffset { partition, offset: 0 })
}

/// Polls until `done` says so; what came, as `partition:offset=value`.
fn poll_until(reader: &mut SteadyReader, done: impl Fn(&SteadyReader) -> bool) -> Vec<String> {
    let begun = Instant::now();
    let (mut records, mut lines) = (Records::default(), Vec::new());
    while !done(reader) {
        assert!(begun.elapsed() < LONG, "{:?}", reader.health());
        records.clear();
        reader.poll(&mut records, 1 << 20).expect("nothing is lost");
        lines.extend((0..records.len()).map(|i| {
            let record = records.records[i];
            let value = String::from_utf8_lossy(records.value(i).unwrap_or_default());
            format!("{}:{}={value}", record.partition, record.offset)
        }));
    }
    lines.sort();
    lines
}

fn stands_at(first: i64, second: i64) -> impl Fn(&SteadyReader) -> bool {
    move |reader| (reader.position(0), reader.position(1)) == (Some(first), Some(second))
}

#[test]
fn what_cannot_be_opened_is_opened_later() {
    let log = Log::new();
    log.write(0, "a");
    let nowhere = [("properties.security.protocol", "ssl"), ("properties.ssl.ca.location", "/nowhere/ca.pem")];
    let options = log.options(&nowhere);
    options.check().expect_err("there is no such file");
    let mut reader = SteadyReader::new(&options, &from_0()[..1]);
    let Health::Retrying { message } = reader.health() else { panic!("there is no such file") };
    assert!(message.contains("ssl.ca.location"), "{message}");
    // What is asked for meanwhile counts.
    reader.add(&from_0()[1..]);
    reader.add(&[PartitionOffset { partition: 7, offset: 0 }]);
    reader.remove(&[7]);
    log.write(1, "b");
    reader.options = log.options(&[]);
    assert_eq!(poll_until(&mut reader, stands_at(1, 1)), ["0:0=a", "1:0=b"]);
    assert_eq!((reader.health(), reader.position(7)), (&Health::Running, None));
}

#[test]
fn a_connection_that_brings_nothing_is_made_anew() {
    let log = Log::new();
    log.write(0, "a");
    log.write(1, "b");
    let mut reader = SteadyReader::new(&log.options(&[]), &from_0());
    assert_eq!(poll_until(&mut reader, stands_at(1, 1)), ["0:0=a", "1:0=b"]);
    // At their ends nothing is expected.
    reader.wanted.values_mut().for_each(|wanted| wanted.patience = Duration::from_millis(1));
    reader.told_ends(&[(0, 1), (1, 1)]);
    for _ in 0..1000 {
        reader.poll(&mut Records::default(), 1 << 20).expect("nothing is lost");
    }
    assert_eq!(reader.connections, 1);
    // Of one there should be more.
    reader.told_ends(&[(0, 1), (1, 2)]);
    poll_until(&mut reader, |reader| reader.connections == 2);
    assert!(reader.wanted[&1].patience <= PATIENCE.1);
    log.write(0, "c");
    log.write(1, "d");
    assert_eq!(poll_until(&mut reader, stands_at(2, 2)), ["0:1=c", "1:1=d"]);
    assert_eq!(reader.wanted[&1].patience, PATIENCE.0);
}

#[test]
fn a_place_that_is_lost_is_told_once_and_not_read() {
    let log = Log::new();
    let value = "x".repeat(200 << 10);
    (0..40).for_each(|_| log.write(0, &value));
    log.write(1, "b");
    let mut reader = SteadyReader::new(&log.options(&[]), &from_0());
    let begun = Instant::now();
    let lost = loop {
        assert!(begun.elapsed() < LONG, "{:?}", reader.health());
        if let Err(error) = reader.poll(&mut Records::default(), 1 << 20) {
            break error;
        }
    };
    assert!(matches!(lost, ConnectorError::OffsetLost { partition: 0, offset: 0, .. }), "{lost:?}");
    assert_eq!(reader.position(0), None);
    // Not with another connection, either.
    reader.close(&lost);
    poll_until(&mut reader, |reader| reader.connections == 2);
    log.write(1, "c");
    let came = poll_until(&mut reader, |reader| reader.position(1) == Some(2));
    assert_eq!(came.last().map(String::as_str), Some("1:1=c"));
    assert_eq!(reader.position(0), None);
    reader.add(&[PartitionOffset { partition: 0, offset: PartitionOffset::EARLIEST }]);
    let came = poll_until(&mut reader, |reader| reader.position(0) == Some(40));
    assert!((20..27).contains(&came.len()), "{}", came.len());
}
