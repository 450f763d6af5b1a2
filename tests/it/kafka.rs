//! Kafka: the broker embedded in the process, or the one at KAFKA_BOOTSTRAP.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use riverrun::connector::{EmbeddedBroker, Producer, create_topic};

use crate::db::Db;

/// A broker and topics of this test's own on it.
struct Kafka {
    embedded: Option<EmbeddedBroker>,
    servers: String,
    producer: Producer,
}

impl Kafka {
    fn start() -> Kafka {
        let (embedded, servers) = match std::env::var("KAFKA_BOOTSTRAP") {
            Ok(servers) => (None, servers),
            Err(_) => {
                let broker = EmbeddedBroker::start().expect("a broker");
                let servers = broker.servers();
                (Some(broker), servers)
            }
        };
        let producer = Producer::new(&servers, &[]).expect("a producer");
        Kafka { embedded, servers, producer }
    }

    fn topic(&self, name: &str, partitions: i32) -> String {
        let topic = format!("{name}_{}", std::process::id());
        match &self.embedded {
            Some(broker) => broker.create_topic(&topic, partitions).expect("a topic"),
            None => create_topic(&self.servers, &topic, partitions).expect("a topic"),
        }
        topic
    }

    /// Deletes a topic and makes another of one partition under its name.
    async fn make_anew(&self, topic: &str) {
        self.delete(topic).await;
        // It is gone some time after the answer.
        while create_topic(&self.servers, topic, 1).is_err() {}
    }

    async fn delete(&self, topic: &str) {
        let admin: AdminClient<DefaultClientContext> =
            rdkafka::ClientConfig::new().set("bootstrap.servers", &self.servers).create().expect("a client");
        admin.delete_topics(&[topic], &AdminOptions::new()).await.expect("an answer");
    }

    fn send(&self, topic: &str, partition: i32, value: Option<&[u8]>) {
        self.producer.send(topic, Some(partition), Some(b"k"), value, 1_767_225_600_000).expect("a record sent");
    }

    fn flush(&self) {
        self.producer.flush(Duration::from_secs(60)).expect("everything delivered");
    }

    fn source(&self, topic: &str) -> String {
        format!(
            "CREATE SOURCE e (ad BIGINT, price DECIMAL(10, 2), name VARCHAR, day DATE, ok BOOLEAN, ts TIMESTAMPTZ,
               WATERMARK FOR ts AS ts - INTERVAL '1 minute')
             INCLUDE partition AS p INCLUDE offset AS o INCLUDE timestamp AS at INCLUDE key AS k
             WITH (connector = 'kafka', topic = '{topic}', properties.bootstrap.server = '{}')
             FORMAT PLAIN ENCODE JSON",
            self.servers
        )
    }
}

const START_MS: i64 = 1_767_225_600_000;

#[tokio::test(flavor = "multi_thread")]
async fn malformed_records_are_kept_apart_and_disturb_nothing() {
    let kafka = Kafka::start();
    let topic = kafka.topic("malformed", 4);
    let deep = format!("{}1{}", "{\"a\":".repeat(2000), "}".repeat(2000));
    let bad: [&[u8]; 16] = [
        b"{\"ad\":1,\"name\":\"cut",
        b"{\"ad\":\"x\"}",
        b"[1,2,3]",
        b"{\"ad\":[1]}",
        b"",
        b"{\"name\":\"\xff\xfe\"}",
        b"{\"ad\":9223372036854775808}",
        b"{\"price\":123456789.00}",
        b"{\"price\":1.234}",
        b"{\"day\":\"2025-02-30\"}",
        b"{\"ts\":\"2025-13-01T00:00:00Z\"}",
        b"{\"ok\":\"yes\"}",
        b"{\"ad\":1.5}",
        b"{\"ad\":1} x",
        b"null",
        deep.as_bytes(),
    ];
    // As large as a broker takes by default.
    let big = "x".repeat(990_000);
    let mut good = 0;
    for n in 0..4000_i64 {
        let partition = (n % 4) as i32;
        let other = match n {
            1000 | 1001 => big.as_str(),
            _ => "",
        };
        let ts = START_MS + n * 10;
        let json = format!(
            r#"{{"ad":{},"price":"{}.50","name":"n{other}","day":"2026-01-01","ok":true,"ts":{ts},"more":[{{}}]}}"#,
            n % 10,
            n % 100
        );
        kafka.send(&topic, partition, Some(json.as_bytes()));
        good += 1;
        // Four bad ones for every five good, none of them a row.
        for i in 0..4 * (n % 5 == 0) as usize {
            kafka.send(&topic, partition, Some(bad[(n as usize / 5 * 4 + i) % bad.len()]));
        }
        if n % 100 == 0 {
            kafka.send(&topic, partition, None);
        }
    }
    kafka.flush();
    let db = Db::start(2);
    db.run(&kafka.source(&topic)).await;
    db.run(
        "CREATE MATERIALIZED VIEW w AS SELECT ad, window_start, count(*) AS n, sum(price) AS s, max(length(name)) AS l
         FROM HOP(e, ts, INTERVAL '10 seconds', INTERVAL '20 seconds') GROUP BY ad, window_start;
         CREATE MATERIALIZED VIEW seen AS SELECT p, count(DISTINCT o) AS n, min(k) AS k, min(at) AS at FROM e GROUP BY p;
         WAIT FOR e",
    )
    .await;
    let prices: i64 = (0..4000).map(|n| n % 100).sum();
    let whole = prices * 2 + 4000;
    assert_eq!(db.rows("SELECT sum(n), sum(s), max(l) FROM w").await, [format!("{}|{whole}.00|990001", 2 * good)]);
    assert_eq!(
        db.rows("SELECT sum(read), sum(accepted), sum(dead), sum(skipped), sum(late) FROM riverrun.source_partitions")
            .await,
        [format!("{}|{good}|3200|40|0", good + 3200 + 40)]
    );
    assert_eq!(db.rows("SELECT count(*), count(DISTINCT reason) > 8 FROM riverrun.dead_letters").await, ["3200|true"]);
    assert_eq!(db.rows("SELECT DISTINCT n, k, at FROM seen").await, ["1000|6b|2026-01-01T00:00:00Z"]);
    // A look into the topic sees what can be decoded, and ends early.
    assert_eq!(db.rows("SELECT count(*) FROM e").await, ["4000"]);
    assert_eq!(db.run("SELECT * FROM e LIMIT 7").await.iter().map(|b| b.num_rows()).sum::<usize>(), 7);
    db.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_comes_later_is_read_from_its_first_record() {
    let kafka = Kafka::start();
    if kafka.embedded.is_some() {
        // The embedded broker makes every topic that is asked for: there, no topic is ever missing.
        return;
    }
    let topic = format!("later_{}", std::process::id());
    let db = Db::start(2);
    db.run(&kafka.source(&topic)).await;
    db.run("CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM e").await;
    let error = db.error("SELECT * FROM n").await;
    assert!(error.contains("still reading history"), "{error}");
    let topic = kafka.topic("later", 2);
    kafka.send(&topic, 1, Some(br#"{"ad":1,"ts":"2026-01-01 00:00:00"}"#));
    kafka.flush();
    // The topic is looked for with a pause that grows; nobody sleeps here but the one who asks.
    while db.try_run("WAIT FOR e; SELECT * FROM n").await.is_err() {}
    assert_eq!(db.rows("SELECT * FROM n").await, ["1"]);
    db.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_away_is_a_state_and_not_an_end() {
    let db = Db::start(1);
    // Nothing listens on the discard port of the loopback.
    db.run(
        "CREATE SOURCE e (v INT) WITH (connector = 'kafka', topic = 't', properties.bootstrap.server = '127.0.0.1:9')
         FORMAT PLAIN ENCODE JSON; CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM e",
    )
    .await;
    db.until("SELECT state FROM riverrun.sources WHERE message LIKE '%127.0.0.1:9%'", &["retrying"]).await;
    let error = db.error("SELECT * FROM n").await;
    assert!(error.contains("still reading history") && error.contains("127.0.0.1:9"), "{error}");
    // The rest goes on.
    db.run("CREATE TABLE t (v INT); INSERT INTO t VALUES (1)").await;
    assert_eq!(db.rows("SELECT * FROM t").await, ["1"]);
    db.run("DROP SOURCE e CASCADE").await;
    db.stop().await;
}

/// Only Apache Kafka deletes topics.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_is_read_from_where_one_says() {
    let kafka = Kafka::start();
    if kafka.embedded.is_some() {
        return;
    }
    let topic = kafka.topic("anew", 1);
    let send = |ads: std::ops::Range<i64>| {
        for ad in ads {
            kafka.send(&topic, 0, Some(format!(r#"{{"ad":{ad},"ts":{}}}"#, START_MS + ad * 1000).as_bytes()));
        }
        kafka.flush();
    };
    send(0..50);
    let db = Db::start(2);
    db.run(&kafka.source(&topic)).await;
    db.run("CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n, max(ad) AS m FROM e; WAIT FOR v").await;
    kafka.make_anew(&topic).await;
    send(50..60);
    db.until("SELECT state FROM riverrun.sources", &["failed"]).await;
    // A view that comes now finds nothing of the old log, and must not take the new one's records for it.
    db.run("CREATE MATERIALIZED VIEW during AS SELECT ad FROM e").await;
    let error = db.error("SELECT * FROM during").await;
    assert!(error.starts_with("source \"e\" has failed: "), "{error}");
    db.run("ALTER SOURCE e RESET TO earliest; WAIT FOR e").await;
    assert_eq!(db.rows("SELECT * FROM v").await, ["60|59"]);
    assert_eq!(db.rows("SELECT count(*), min(ad) FROM during").await, ["10|50"]);
    assert_eq!(db.rows("SELECT from_offset, to_offset, lost FROM riverrun.source_gaps").await, ["50|0|NULL"]);
    assert_eq!(db.rows("SELECT read, accepted, \"offset\" FROM riverrun.source_partitions").await, ["60|60|10"]);
    db.stop().await;
}

/// The client of the broker would go on in the new log at the place where it stood in the old one.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_read_of_another_topic_as_if_it_were_the_old_one() {
    let kafka = Kafka::start();
    if kafka.embedded.is_some() {
        return;
    }
    let topic = kafka.topic("missing", 1);
    let send = |ads: std::ops::Range<i64>| {
        for ad in ads {
            kafka.send(&topic, 0, Some(format!(r#"{{"ad":{ad},"ts":{}}}"#, START_MS + ad * 1000).as_bytes()));
        }
        kafka.flush();
    };
    send(0..50);
    let db = Db::start(2);
    db.run(&kafka.source(&topic)).await;
    db.run("CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n, max(ad) AS m FROM e; WAIT FOR v").await;
    kafka.delete(&topic).await;
    let missing = "SELECT state, message LIKE '%does not exist%' FROM riverrun.sources";
    db.until(missing, &["retrying|true"]).await;
    while create_topic(&kafka.servers, &topic, 1).is_err() {}
    send(100..400);
    db.until("SELECT state FROM riverrun.sources", &["failed"]).await;
    assert_eq!(db.rows("SELECT * FROM v").await, ["50|49"]);
    db.run("ALTER SOURCE e RESET TO earliest; WAIT FOR e").await;
    assert_eq!(db.rows("SELECT * FROM v").await, ["350|399"]);
    assert_eq!(db.rows("SELECT read, accepted, \"offset\" FROM riverrun.source_partitions").await, ["350|350|300"]);
    db.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_made_anew_and_refilled_is_told_from_the_old_one() {
    let kafka = Kafka::start();
    if kafka.embedded.is_some() {
        return;
    }
    let topic = kafka.topic("refilled", 1);
    let send = |ads: std::ops::Range<i64>| {
        for ad in ads {
            kafka.send(&topic, 0, Some(format!(r#"{{"ad":{ad},"ts":{}}}"#, START_MS + ad * 1000).as_bytes()));
        }
        kafka.flush();
    };
    send(0..50);
    let folder = tempfile::tempdir().expect("a folder");
    let db = Db::start_at(2, folder.path());
    db.run(&kafka.source(&topic)).await;
    db.run("CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n, max(ad) AS m FROM e; WAIT FOR v").await;
    db.stop().await;
    // The new log holds the place where reading would go on.
    kafka.make_anew(&topic).await;
    send(100..200);
    let db = Db::start_at(3, folder.path());
    while db.rows("SELECT state FROM riverrun.sources").await != ["failed"] {}
    let message = &db.rows("SELECT message FROM riverrun.sources").await[0];
    assert!(message.contains("the topic was deleted, and another made under its name"), "{message}");
    assert_eq!(db.rows("SELECT * FROM v").await, ["50|49"]);
    let error = db.error("WAIT FOR v").await;
    assert!(error.contains("has failed"), "{error}");
    // It is remembered.
    db.stop().await;
    let db = Db::start_at(2, folder.path());
    while db.rows("SELECT state FROM riverrun.sources").await != ["failed"] {}
    db.run("ALTER SOURCE e RESET TO earliest; WAIT FOR e").await;
    assert_eq!(db.rows("SELECT * FROM v").await, ["150|199"]);
    assert_eq!(db.rows("SELECT from_offset, to_offset, lost FROM riverrun.source_gaps").await, ["50|0|NULL"]);
    assert_eq!(db.rows("SELECT read, accepted, \"offset\" FROM riverrun.source_partitions").await, ["150|150|100"]);
    db.stop().await;
    // And so is the new one.
    let db = Db::start_at(2, folder.path());
    send(200..210);
    db.run("WAIT FOR v").await;
    assert_eq!(db.rows("SELECT * FROM v").await, ["160|209"]);
    db.stop().await;
    drop(db);

    // A source that nobody has read begins with the first record of the topic that there is.
    let db = Db::start(2);
    let latest = kafka.source(&topic).replace("connector =", "scan.startup.mode = 'latest', connector =");
    db.run(&latest).await;
    kafka.make_anew(&topic).await;
    send(300..500);
    db.run("CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n, min(ad) AS m FROM e; WAIT FOR v").await;
    assert_eq!(db.rows("SELECT * FROM v").await, ["200|300"]);
    db.stop().await;
}
