//! The engine over tables and the embedded broker, statement by statement.

use riverrun::connector::{EmbeddedBroker, Producer};

use crate::db::Db;

#[tokio::test(flavor = "multi_thread")]
async fn views_over_tables_follow_inserts_updates_and_deletes() {
    for workers in [1, 3] {
        let db = Db::start(workers);
        db.run("CREATE TABLE t (k VARCHAR, v INT); INSERT INTO t VALUES ('a', 1), ('a', 5), ('b', 2)").await;
        db.run("CREATE MATERIALIZED VIEW g AS SELECT k, count(*) AS n, sum(v) AS s, max(v) AS m FROM t GROUP BY k")
            .await;
        db.run("CREATE MATERIALIZED VIEW total AS SELECT count(*) AS n, sum(s) AS s FROM g").await;
        db.run("CREATE MATERIALIZED VIEW top AS SELECT k, m FROM g ORDER BY m DESC LIMIT 1").await;
        assert_eq!(db.rows("SELECT * FROM g").await, ["a|2|6|5", "b|1|2|2"]);
        assert_eq!(db.rows("SELECT * FROM total").await, ["2|8"]);
        assert_eq!(db.rows("SELECT * FROM top").await, ["a|5"]);
        db.run("DELETE FROM t WHERE v = 5; UPDATE t SET v = v + 10 WHERE k = 'b'; INSERT INTO t VALUES ('c', 3)").await;
        assert_eq!(db.rows("SELECT * FROM g").await, ["a|1|1|1", "b|1|12|12", "c|1|3|3"]);
        assert_eq!(db.rows("SELECT * FROM total").await, ["3|16"]);
        assert_eq!(db.rows("SELECT * FROM top").await, ["b|12"]);
        db.run("DELETE FROM t").await;
        assert_eq!(db.rows("SELECT * FROM total").await, ["0|NULL"]);
        db.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_that_keeps_every_window_says_so() {
    let db = Db::start(1);
    db.run("CREATE TABLE e (k INT, ts TIMESTAMPTZ, WATERMARK FOR ts AS ts) APPEND ONLY").await;
    let says = async |with: &str, query: &str| {
        let told = db.notices(&format!("CREATE MATERIALIZED VIEW v {with} AS {query}")).await;
        db.run("DROP MATERIALIZED VIEW v").await;
        told.iter().any(|notice| notice.starts_with("keeps every window"))
    };
    let windows = "SELECT window_end, count(*) AS n FROM TUMBLE(e, ts, INTERVAL '1 minute') GROUP BY window_end";
    let sessions =
        "SELECT k, window_end, count(*) AS n FROM SESSION(e, ts, INTERVAL '1 minute') GROUP BY k, window_end";
    let bounded =
        "SELECT * FROM (SELECT window_end, count(*) AS n FROM TUMBLE(e, ts, INTERVAL '1 minute') GROUP BY window_end)
                   WHERE window_end > now() - INTERVAL '1 hour'";
    assert!(says("", windows).await && says("", sessions).await);
    assert!(!says("WITH (retention = '1 day')", windows).await && !says("", bounded).await);
    assert!(!says("", "SELECT k, count(*) AS n FROM e GROUP BY k").await);
    db.stop().await;
}

const SOURCE: &str =
    "CREATE SOURCE e (id BIGINT, kind VARCHAR, ts TIMESTAMPTZ, WATERMARK FOR ts AS ts - INTERVAL '10 seconds')
    WITH (connector = 'kafka', topic = 'e', properties.bootstrap.server = '$SERVERS') FORMAT PLAIN ENCODE JSON";

fn event(second: i64, id: i64, kind: &str) -> String {
    format!(r#"{{"id":{id},"kind":"{kind}","ts":{}}}"#, 1_767_225_600_000 + second * 1000)
}

#[tokio::test(flavor = "multi_thread")]
async fn events_reach_views_whenever_they_were_made() {
    let broker = EmbeddedBroker::start().expect("a broker");
    broker.create_topic("e", 3).expect("a topic");
    let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
    let send = |partition: i32, text: &str| {
        producer.send("e", Some(partition), None, Some(text.as_bytes()), 0).expect("a record sent");
    };
    for n in 0..300 {
        send((n % 3) as i32, &event(n / 3, n % 7, if n % 5 == 0 { "click" } else { "view" }));
    }
    send(0, "{\"id\":");
    send(1, &event(0, 1, "click"));
    producer.flush(std::time::Duration::from_secs(30)).expect("everything delivered");
    let db = Db::start(2);
    db.run(&SOURCE.replace("$SERVERS", &broker.servers())).await;
    let view = |name: &str, window: &str| {
        format!(
            "CREATE MATERIALIZED VIEW {name} AS SELECT id, window_start, window_end, count(*) AS n,
             count(*) FILTER (WHERE kind = 'click') AS clicks FROM {window} GROUP BY id, window_start, window_end"
        )
    };
    db.run(&view("hop", "HOP(e, ts, INTERVAL '10 seconds', INTERVAL '1 minute')")).await;
    db.run("WAIT FOR e").await;
    // One that shares the store, and ones that must read history by themselves.
    db.run(&view("tumble", "TUMBLE(e, ts, INTERVAL '1 minute')")).await;
    // Live at once, with what the store holds.
    assert_eq!(db.rows("SELECT sum(n) FROM tumble").await, ["300"]);
    db.run("CREATE MATERIALIZED VIEW total AS SELECT count(*) AS n FROM e").await;
    db.run("CREATE MATERIALIZED VIEW clicks AS SELECT id FROM e WHERE kind = 'click'").await;
    db.run("WAIT FOR e").await;
    assert_eq!(db.rows("SELECT sum(n), sum(clicks) FROM tumble").await, ["300|60"]);
    assert_eq!(db.rows("SELECT sum(n), sum(clicks) FROM hop").await, ["1800|360"]);
    assert_eq!(db.rows("SELECT * FROM total").await, ["300"]);
    assert_eq!(db.rows("SELECT count(*) FROM clicks").await, ["60"]);
    let counts = "SELECT sum(read), sum(accepted), sum(late), sum(dead) FROM riverrun.source_partitions";
    assert_eq!(db.rows(counts).await, ["302|300|1|1"]);
    assert_eq!(db.rows("SELECT partition, reason FROM riverrun.late_rows").await, ["1|late"]);
    assert_eq!(db.rows("SELECT partition FROM riverrun.dead_letters").await, ["0"]);
    let live = "SELECT sum(n) FROM tumble WHERE window_end = live_window_end('tumble')";
    assert_eq!(db.rows(live).await, ["120"]);
    assert_eq!(db.rows("SELECT count(*) FROM e").await, ["301"]);
    db.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_made_when_the_log_has_lost_its_beginning_says_from_when_it_is_complete() {
    let broker = EmbeddedBroker::start().expect("a broker");
    broker.create_topic("e", 2).expect("a topic");
    let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
    let db = Db::start(2);
    db.run(&SOURCE.replace("$SERVERS", &broker.servers())).await;
    db.run("CREATE MATERIALIZED VIEW seen AS SELECT count(*) AS n, min(ts) AS since FROM e").await;
    let wide = "x".repeat(200 << 10);
    for round in 0..4 {
        for n in 0..32 {
            let second = round * 16 + n / 2;
            let text = event(second, n, &wide);
            producer.send("e", Some((n % 2) as i32), None, Some(text.as_bytes()), 0).expect("a record sent");
        }
        producer.flush(std::time::Duration::from_secs(30)).expect("everything delivered");
        db.run("WAIT FOR e").await;
    }
    assert_eq!(db.rows("SELECT n FROM seen").await, ["128"]);
    // 64 records of 200 KiB were written to each partition, of which it keeps 5 MiB.
    db.run("CREATE MATERIALIZED VIEW later AS SELECT id, ts FROM e").await;
    db.run("CREATE MATERIALIZED VIEW windows AS SELECT window_end, count(*) AS n FROM TUMBLE(e, ts, INTERVAL '1 second') GROUP BY window_end").await;
    db.run("WAIT FOR e").await;
    let rows = db.rows("SELECT count(*) FROM e").await;
    let kept: usize = rows[0].parse().expect("a number");
    assert!((32..64).contains(&kept), "{kept}");
    // It begins where a watermark was noted: at the last read but one.
    assert_eq!(db.rows("SELECT count(*), min(ts) FROM later").await, ["32|2026-01-01T00:00:48Z"]);
    assert_eq!(db.rows("SELECT sum(n), min(window_end) FROM windows").await, ["32|2026-01-01T00:00:49Z"]);
    let complete = "SELECT name, complete_from FROM riverrun.materialized_views WHERE complete_from IS NOT NULL";
    assert_eq!(db.rows(complete).await, ["later|2026-01-01T00:00:47.000001Z", "windows|2026-01-01T00:00:47.000001Z"]);
    db.stop().await;
}

/// A temporal filter bounds what is kept below it: windows that it has taken back leave their store, too.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_temporal_filter_takes_back_is_not_kept() {
    let broker = EmbeddedBroker::start().expect("a broker");
    broker.create_topic("e", 1).expect("a topic");
    let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
    let db = Db::start(2);
    db.run(&SOURCE.replace("$SERVERS", &broker.servers())).await;
    let view = |name: &str, window: &str| {
        format!(
            "CREATE MATERIALIZED VIEW {name} AS SELECT id, window_end, count(*) AS n FROM {window}
             WHERE window_end > watermark('e') - INTERVAL '1 minute' GROUP BY id, window_start, window_end"
        )
    };
    db.run(&view("minutes", "HOP(e, ts, INTERVAL '10 seconds', INTERVAL '20 seconds')")).await;
    db.run(&view("visits", "SESSION(e, ts, INTERVAL '3 seconds')")).await;
    for round in 0..6 {
        for second in 0..100 {
            let text = event(round * 100 + second, second % 50, "view");
            producer.send("e", Some(0), None, Some(text.as_bytes()), 0).expect("a record sent");
        }
        producer.flush(std::time::Duration::from_secs(30)).expect("everything delivered");
        db.run("WAIT FOR e").await;
    }
    // The watermark stands at second 589. Windows that end at 530 to 610 are left, in slices of 10 seconds from 510 on.
    let windows = "SELECT count(DISTINCT window_end), min(window_end) = to_timestamp(1767225600 + 530) FROM minutes";
    assert_eq!(db.rows(windows).await, ["9|true"]);
    let kept = "SELECT count(*) FROM riverrun.slices WHERE slice_end < to_timestamp(1767225600 + 500)";
    db.until(kept, &["0"]).await;
    assert_eq!(
        db.rows("SELECT count(*) > 0 FROM visits WHERE window_end > watermark('e') - INTERVAL '1 minute'").await,
        ["true"]
    );
    db.stop().await;
}

/// By the clock: a row leaves while nothing happens but time.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_leaves_when_its_time_is_over() {
    let db = Db::start(1);
    db.run("CREATE TABLE t (k VARCHAR, until TIMESTAMPTZ)").await;
    db.run("CREATE MATERIALIZED VIEW v AS SELECT k FROM t WHERE until > now()").await;
    db.run("CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM v").await;
    db.run("INSERT INTO t VALUES ('for ever', '9999-01-01'), ('soon over', now() + INTERVAL '300 milliseconds')").await;
    db.until("SELECT n FROM n", &["1"]).await;
    assert_eq!(db.rows("SELECT * FROM v").await, ["for ever"]);
    db.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_begins_at_the_watermark_though_its_first_record_was_dead() {
    let broker = EmbeddedBroker::start().expect("a broker");
    broker.create_topic("e", 2).expect("a topic");
    let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
    let send = |partition: i32, text: &str| {
        producer.send("e", Some(partition), None, Some(text.as_bytes()), 0).expect("a record sent");
        producer.flush(std::time::Duration::from_secs(30)).expect("everything delivered");
    };
    let db = Db::start(2);
    let create = SOURCE.replace("topic = 'e'", "topic = 'e', idle_timeout = '1 second'");
    db.run(&create.replace("$SERVERS", &broker.servers())).await;
    db.run("CREATE MATERIALIZED VIEW n AS SELECT window_end, count(*) AS n FROM TUMBLE(e, ts, INTERVAL '1 second') GROUP BY window_end").await;
    send(0, &event(100, 1, "click"));
    send(0, &event(200, 1, "click"));
    db.run("WAIT FOR e").await;
    // Until the other partition, which is empty, no longer holds the watermark back.
    while db.rows("SELECT watermark FROM riverrun.sources").await == ["NULL"] {}
    send(1, "no event");
    db.run("WAIT FOR e").await;
    send(1, &event(5, 1, "click"));
    db.run("WAIT FOR e").await;
    let counts = "SELECT partition, accepted, late, dead FROM riverrun.source_partitions";
    assert_eq!(db.rows(counts).await, ["0|2|0|0", "1|0|1|1"]);
    assert_eq!(db.rows("SELECT state FROM riverrun.materialized_views").await, ["current"]);
    db.stop().await;
}
