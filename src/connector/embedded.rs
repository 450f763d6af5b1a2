//! A Kafka broker inside the process, for `riverrun demo` and tests, and a producer for it and for real ones.

use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer as _, ProducerContext};
use rdkafka::{ClientContext, Message};

use super::error::ConnectorError;

/// librdkafka's mock cluster: one broker on a free port of loopback, everything in memory. It forgets the oldest records of
/// a partition beyond [`EmbeddedBroker::KEPT_BYTES`], so who writes must not run ahead of who reads by more. It does not
/// know transactions, offsets by time, or authentication.
pub struct EmbeddedBroker {
    cluster: MockCluster<'static, DefaultProducerContext>,
}

// SAFETY: the mock cluster runs in a thread of its own; its functions take its lock or send it a message.
unsafe impl Send for EmbeddedBroker {}
// SAFETY: as above.
unsafe impl Sync for EmbeddedBroker {}

impl EmbeddedBroker {
    /// What a partition keeps.
    pub const KEPT_BYTES: usize = 5 << 20;

    pub fn start() -> Result<EmbeddedBroker, ConnectorError> {
        let cluster = MockCluster::new(1).map_err(kafka_error("starting the embedded broker"))?;
        Ok(EmbeddedBroker { cluster })
    }

    /// `host:port`.
    pub fn servers(&self) -> String {
        self.cluster.bootstrap_servers()
    }

    pub fn create_topic(&self, topic: &str, partitions: i32) -> Result<(), ConnectorError> {
        self.cluster.create_topic(topic, partitions, 1).map_err(kafka_error("creating a topic"))
    }

    /// Closes its connections and takes no new ones.
    pub fn take_down(&self) -> Result<(), ConnectorError> {
        self.cluster.broker_down(-1).map_err(kafka_error("taking the broker down"))
    }

    pub fn bring_up(&self) -> Result<(), ConnectorError> {
        self.cluster.broker_up(-1).map_err(kafka_error("bringing the broker up"))
    }
}

/// Writes records to any topic. Sends in the background, in batches; order within a partition is that of the calls.
pub struct Producer {
    inner: BaseProducer<Deliveries>,
}

/// Keeps the first record that could not be delivered.
#[derive(Default)]
struct Deliveries {
    failed: Mutex<Option<(String, i32, KafkaError)>>,
}

impl ClientContext for Deliveries {
    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka producer error");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, message)) = result {
            let failed = || (message.topic().to_string(), message.partition(), error.clone());
            self.failed.lock().get_or_insert_with(failed);
        }
    }
}

impl Producer {
    /// `properties` are librdkafka's; retries do not duplicate or reorder records.
    pub fn new(servers: &str, properties: &[(&str, &str)]) -> Result<Producer, ConnectorError> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", servers).set("enable.idempotence", "true").set("linger.ms", "5");
        config.set("queue.buffering.max.kbytes", "65536");
        for (key, value) in properties {
            config.set(*key, *value);
        }
        let inner = config.create_with_context(Deliveries::default()).map_err(kafka_error("making a producer"))?;
        Ok(Producer { inner })
    }

    /// Hands a record over; waits while the producer's queue is full. `partition: None` leaves it to the key's hash, or to
    /// chance without a key. Errors of earlier records come back here or from [`Producer::flush`].
    pub fn send(
        &self,
        topic: &str,
        partition: Option<i32>,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        timestamp_ms: i64,
    ) -> Result<(), ConnectorError> {
        let mut record = BaseRecord::<[u8], [u8]>::to(topic).timestamp(timestamp_ms);
        record.partition = partition;
        record.key = key;
        record.payload = value;
        loop {
            match self.inner.send(record) {
                Ok(()) => return self.first_failure(),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    self.inner.poll(Duration::from_millis(10));
                    self.first_failure()?;
                    record = back;
                }
                Err((error, _)) => return Err(kafka_error("writing a record")(error)),
            }
        }
    }

    /// Records handed over that the broker has not acknowledged.
    pub fn pending(&self) -> usize {
        self.inner.in_flight_count().max(0) as usize
    }

    /// Serves delivery reports without waiting; [`Producer::send`] does so only when the queue is full.
    pub fn poll(&self) -> Result<(), ConnectorError> {
        // Each call of the library's serves one report at most.
        loop {
            let before = self.pending();
            self.inner.poll(Duration::ZERO);
            if self.pending() >= before {
                return self.first_failure();
            }
        }
    }

    /// Returns when every record handed over has been delivered.
    pub fn flush(&self, timeout: Duration) -> Result<(), ConnectorError> {
        let deadline = Instant::now() + timeout;
        while self.inner.in_flight_count() > 0 {
            self.first_failure()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let reason = format!("{} records not delivered in time", self.inner.in_flight_count());
                return Err(ConnectorError::Kafka { doing: "writing records", reason });
            }
            match self.inner.flush(left.min(Duration::from_millis(100))) {
                Ok(()) | Err(KafkaError::Flush(RDKafkaErrorCode::OperationTimedOut)) => {}
                Err(error) => return Err(kafka_error("writing records")(error)),
            }
        }
        self.first_failure()
    }

    fn first_failure(&self) -> Result<(), ConnectorError> {
        match self.inner.context().failed.lock().take() {
            None => Ok(()),
            Some((topic, partition, error)) => Err(ConnectorError::Kafka {
                doing: "writing records",
                reason: format!("topic {topic}, partition {partition}: {error}"),
            }),
        }
    }
}

fn kafka_error(doing: &'static str) -> impl Fn(KafkaError) -> ConnectorError {
    move |error| ConnectorError::Kafka { doing, reason: error.to_string() }
}
