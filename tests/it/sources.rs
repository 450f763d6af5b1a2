//! What happens to a source in its life: its log loses its beginning, a clock goes wrong, the stream stops, rows come too late,
//! views come later. The broker is the embedded one, which keeps the last 5 MiB of a partition.

use std::time::Duration;

use riverrun::connector::{EmbeddedBroker, Producer};
use riverrun::engine::now_us;
use riverrun::sql::Name;

use crate::db::Db;

struct Topic {
    broker: EmbeddedBroker,
    producer: Producer,
}

impl Topic {
    fn new(partitions: i32) -> Topic {
        let broker = EmbeddedBroker::start().expect("a broker");
        broker.create_topic("e", partitions).expect("a topic");
        let producer = Producer::new(&broker.servers(), &[]).expect("a producer");
        Topic { broker, producer }
    }

    fn send(&self, partition: i32, id: i64, time_us: Option<i64>, padding: usize) {
        let time = time_us.map_or("null".to_string(), |us| format!("{}", us / 1000));
        let text = format!(r#"{{"id":{id},"pad":"{}","ts":{time}}}"#, "x".repeat(padding));
        self.producer.send("e", Some(partition), None, Some(text.as_bytes()), 0).expect("a record sent");
    }

    fn flush(&self) {
        self.producer.flush(Duration::from_secs(60)).expect("everything delivered");
    }

    /// Ids `from..to` at that second each, of 200 KiB: 26 of them fill what a partition keeps.
    fn fill(&self, partition: i32, ids: std::ops::Range<i64>) {
        for id in ids {
            self.send(partition, id, Some(second(id)), 200 << 10);
        }
        self.flush();
    }

    fn source(&self, options: &str, behind: &str) -> String {
        format!(
            "CREATE SOURCE e (id BIGINT, ts TIMESTAMPTZ, WATERMARK FOR ts AS ts - INTERVAL '10 seconds')
             INCLUDE partition AS p INCLUDE offset AS o
             WITH (connector = 'kafka', topic = 'e', properties.bootstrap.server = '{}', timestamptz.handling.mode = 'milli'{options})
             FORMAT PLAIN ENCODE JSON {behind}",
            self.broker.servers()
        )
    }
}

fn second(n: i64) -> i64 {
    1_767_225_600_000_000 + n * 1_000_000
}

const COUNTS: &str =
    "SELECT sum(read), sum(accepted), sum(late), sum(read - accepted - late - duplicate - dead - skipped)
    FROM riverrun.source_partitions";

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_lost_its_beginning_before_it_was_read_is_read_from_where_one_says() {
    for (place, kept) in [("earliest", 20..26), ("latest", 0..0)] {
        let topic = Topic::new(1);
        let db = Db::start(2);
        // The start is fixed, at offset 0, and gone when the first view comes.
        db.run(&topic.source("", "")).await;
        topic.fill(0, 0..60);
        let view = "CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n, min(id) AS first FROM e";
        db.run(view).await;
        // Who waits already is told, too.
        let error = db.error("WAIT FOR v").await;
        assert!(error.contains("has failed"), "{error}");
        db.until("SELECT state FROM riverrun.sources", &["failed"]).await;
        let message = &db.rows("SELECT message FROM riverrun.sources").await[0];
        let error = db.error("SELECT * FROM v").await;
        assert!(error.starts_with("source \"e\" has failed: "), "{error}");
        assert!(
            message.contains("offset 0 of partition 0") && message.contains("ALTER SOURCE e RESET TO"),
            "{message}"
        );
        let error = db.error("WAIT FOR v").await;
        assert!(error.contains("has failed"), "{error}");
        let told = db.notices(&format!("ALTER SOURCE e RESET TO {place}")).await;
        assert!(told[0].contains("offsets from 0 on were not read"), "{told:?}");
        topic.fill(0, 60..62);
        db.run("WAIT FOR v").await;
        let n: i64 = db.rows("SELECT n FROM v").await[0].parse().expect("a number");
        assert!(kept.is_empty() && n == 2 || kept.contains(&(n - 2)), "{place}: {n}");
        assert_eq!(db.rows("SELECT n + first FROM v").await, ["62"]);
        let gap = "SELECT source, partition, from_offset, to_offset, lost, at IS NOT NULL FROM riverrun.source_gaps";
        assert_eq!(db.rows(gap).await, [format!("e|0|0|{0}|{0}|true", 62 - n)]);
        assert_eq!(db.rows(COUNTS).await, [format!("{n}|{n}|0|0")]);
        assert_eq!(db.rows("SELECT state FROM riverrun.sources").await, ["running"]);
        let error = db.error("ALTER SOURCE e RESET TO earliest").await;
        assert!(error.contains("no partition of \"e\" has lost its place"), "{error}");
        db.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_that_is_lost_later_leaves_a_gap_and_true_counts() {
    let topic = Topic::new(2);
    let db = Db::start(2);
    db.run(&topic.source(", allowed_lateness = '1 hour'", "")).await;
    db.run("CREATE MATERIALIZED VIEW all_ids AS SELECT id, p FROM e").await;
    topic.fill(0, 0..10);
    topic.fill(1, 0..10);
    // One more view over the same rows, so that dropping the first leaves the source without readers.
    db.run("WAIT FOR e").await;
    assert_eq!(db.rows("SELECT count(*), min(id), max(id) FROM all_ids").await, ["20|0|9"]);
    db.run("DROP MATERIALIZED VIEW all_ids").await;
    topic.fill(0, 10..70);
    db.run("CREATE MATERIALIZED VIEW later AS SELECT id, p FROM e").await;
    db.until("SELECT state FROM riverrun.sources", &["failed"]).await;
    // Partition 1 goes on meanwhile, and the law of counts holds.
    topic.fill(1, 10..12);
    db.until("SELECT read FROM riverrun.source_partitions WHERE partition = 1", &["12"]).await;
    db.run("ALTER SOURCE e RESET TO earliest; WAIT FOR later").await;
    // Of partition 0 only what the log held; what came before is gone for a view that comes now.
    let of_0 = &db.rows("SELECT count(*), max(id) FROM later WHERE p = 0").await[0];
    let (n, last) = of_0.split_once('|').expect("two columns");
    let n: i64 = n.parse().expect("a number");
    assert!((20..27).contains(&n) && last == "69", "{of_0}");
    assert_eq!(db.rows("SELECT count(*) FROM later WHERE p = 1").await, ["12"]);
    let gap = "SELECT partition, from_offset, to_offset, lost FROM riverrun.source_gaps";
    assert_eq!(db.rows(gap).await, [format!("0|10|{}|{}", 70 - n, 60 - n)]);
    assert_eq!(db.rows(COUNTS).await, [format!("{0}|{0}|0|0", 22 + n)]);
    // It was made when rows up to the ninth second had been read, and are lost: it is complete behind them.
    let complete = "SELECT complete_from FROM riverrun.materialized_views";
    assert_eq!(db.rows(complete).await, ["2026-01-01T00:00:09.000001Z"]);
    // A view that comes now has the same rows: its reader begins where reading was begun again.
    db.run("CREATE MATERIALIZED VIEW latest AS SELECT id + 0 AS id, p FROM e; WAIT FOR e").await;
    assert_eq!(db.rows("SELECT * FROM latest").await, db.rows("SELECT * FROM later").await);
    db.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watermark_that_a_wrong_clock_moved_is_taken_back() {
    let topic = Topic::new(2);
    let db = Db::start(2);
    db.run(&topic.source(", max_future = '2 hours'", "")).await;
    db.run("CREATE MATERIALIZED VIEW v AS SELECT window_end, count(*) AS n FROM TUMBLE(e, ts, INTERVAL '1 minute') GROUP BY window_end").await;
    db.run("CREATE MATERIALIZED VIEW ids AS SELECT id FROM e").await;
    let now = now_us() / 1_000_000 * 1_000_000;
    topic.send(0, 1, Some(now - 60_000_000), 0);
    topic.send(1, 2, Some(now - 50_000_000), 0);
    topic.send(1, 3, Some(now + 3_600_000_000), 0);
    topic.flush();
    db.run("WAIT FOR e").await;
    topic.send(1, 4, Some(now - 40_000_000), 0);
    topic.flush();
    db.run("WAIT FOR e").await;
    // An hour of rows of partition 1 would be late; partition 0 holds the source's watermark.
    assert_eq!(db.rows("SELECT id FROM ids").await, ["1", "2", "3"]);
    let told = db.notices("ALTER SOURCE e RESET WATERMARK").await;
    assert!(told[0].starts_with("the watermark of partition 1 went back from "), "{told:?}");
    assert!(
        told[1].starts_with("the watermark of \"e\" stays at ") && told[2].contains("are final and stay so"),
        "{told:?}"
    );
    topic.send(1, 5, Some(now - 40_000_000), 0);
    topic.send(1, 6, Some(now - 71_000_000), 0);
    topic.flush();
    db.run("WAIT FOR e").await;
    // Below what partition 0 had let become final nothing is accepted.
    assert_eq!(db.rows("SELECT id FROM ids").await, ["1", "2", "3", "5"]);
    assert_eq!(db.rows("SELECT sum(n) FROM v").await, ["4"]);
    let changes = "SELECT partition, \"offset\", watermark < watermark_before, final_until IS NOT NULL FROM riverrun.source_changes";
    assert_eq!(db.rows(changes).await, ["0|1|false|true", "1|3|true|true"]);
    // A view that reads the log again comes to the same verdicts.
    db.run("CREATE MATERIALIZED VIEW again AS SELECT id + 0 AS id FROM e; WAIT FOR e").await;
    assert_eq!(db.rows("SELECT id FROM again").await, ["1", "2", "3", "5"]);
    assert_eq!(db.rows(COUNTS).await, ["6|4|2|0"]);
    // To a time: not further on than anything, and not below what is final.
    let error = db.error("ALTER SOURCE e RESET WATERMARK TO '2100-01-01'").await;
    assert!(error.contains("has come further"), "{error}");
    let error = db.error("ALTER SOURCE e RESET WATERMARK TO 'soon'").await;
    assert!(error.contains("invalid input syntax for type timestamp"), "{error}");
    let told = db.notices("ALTER SOURCE e RESET WATERMARK TO '2026-01-01'").await;
    assert!(told.last().expect("a notice").contains("are final and stay so"), "{told:?}");
    let watermarks = "SELECT count(*) FROM riverrun.source_partitions WHERE watermark < TIMESTAMPTZ '2026-01-02'";
    assert_eq!(db.rows(watermarks).await, ["0"]);
    db.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bounds_change_for_the_rows_that_come_after() {
    let topic = Topic::new(1);
    let db = Db::start(1);
    db.run(&topic.source("", "")).await;
    db.run("CREATE MATERIALIZED VIEW ids AS SELECT id FROM e").await;
    db.run("CREATE MATERIALIZED VIEW v AS SELECT window_end, count(*) AS n FROM TUMBLE(e, ts, INTERVAL '1 second') GROUP BY window_end EMIT ON WINDOW CLOSE").await;
    let send = async |rows: &[(i64, i64)]| {
        rows.iter().for_each(|&(id, at)| topic.send(0, id, Some(second(at)), 0));
        topic.flush();
        db.run("WAIT FOR e").await;
    };
    // The watermark stands at 90: what lies before it is final.
    send(&[(1, 100), (2, 89)]).await;
    let told = db.notices("ALTER SOURCE e SET (allowed_lateness = '1 minute')").await;
    assert_eq!(told, ["windows that end at or before 2026-01-01 00:01:30+00 are final and stay so"]);
    send(&[(3, 91), (4, 89), (5, 200), (6, 131), (7, 129)]).await;
    assert_eq!(db.rows("SELECT id FROM ids").await, ["1", "3", "5", "6"]);
    db.run("ALTER SOURCE e RESET (allowed_lateness)").await;
    send(&[(8, 189), (9, 191)]).await;
    assert_eq!(db.rows("SELECT id FROM ids").await, ["1", "3", "5", "6", "9"]);
    assert_eq!(db.rows("SELECT sum(n) FROM v").await, ["3"]);
    db.run("CREATE MATERIALIZED VIEW again AS SELECT id + 0 AS id FROM e; WAIT FOR e").await;
    assert_eq!(db.rows("SELECT id FROM again").await, ["1", "3", "5", "6", "9"]);
    db.run("ALTER SOURCE e SET (idle_timeout = '1 minute', max_future = '1 day', idle_advance = true)").await;
    let source = db.engine.catalog().resolve(&Name(vec!["e".into()]), &db.names).expect("the source");
    assert!(
        source.sql.contains("idle_advance = 'true'") && source.sql.contains("max_future = '1 day'"),
        "{}",
        source.sql
    );
    assert!(!source.sql.contains("allowed_lateness"), "{}", source.sql);
    for (options, why) in [
        ("topic = 'other'", "option topic of a source cannot be changed"),
        ("timestamptz.handling.mode = 'guess'", "option timestamptz.handling.mode of a source cannot be changed"),
        ("idle_advance = 5", "'5' is neither true nor false"),
        ("max_future = '-1 s'", "option max_future is negative"),
        ("max_future = 'soon'", "invalid input syntax for type interval"),
    ] {
        let error = db.error(&format!("ALTER SOURCE e SET ({options})")).await;
        assert!(error.contains(why), "{error}");
    }
    let error = db.error("ALTER SOURCE nowhere RESET WATERMARK").await;
    assert!(error.contains("does not exist"), "{error}");
    assert!(db.error("ALTER SOURCE ids RESET WATERMARK").await.contains("is not a source"));
    db.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_stops_does_not_hide_its_end() {
    let topic = Topic::new(2);
    let db = Db::start(2);
    db.run(&topic.source(", idle_timeout = '0 s', idle_advance = true", "")).await;
    db.run("CREATE MATERIALIZED VIEW v AS SELECT window_end, count(*) AS n FROM TUMBLE(e, ts, INTERVAL '1 second') GROUP BY window_end EMIT ON WINDOW CLOSE").await;
    db.run("CREATE MATERIALIZED VIEW ids AS SELECT id FROM e").await;
    topic.send(0, 1, Some(second(0)), 0);
    topic.send(1, 2, Some(second(9)), 0);
    topic.flush();
    db.run("WAIT FOR e").await;
    // Its end lies ahead of every row's time less the delay: it closes by the clock alone.
    db.until("SELECT n FROM v", &["1"]).await;
    // What comes now below it is late, whoever reads it.
    topic.send(0, 3, Some(second(0)), 0);
    topic.send(0, 4, Some(second(60)), 0);
    topic.flush();
    db.run("WAIT FOR e; CREATE MATERIALIZED VIEW again AS SELECT id + 0 AS id FROM e; WAIT FOR e").await;
    assert_eq!(db.rows("SELECT id FROM ids").await, ["1", "2", "4"]);
    assert_eq!(db.rows("SELECT id FROM again").await, ["1", "2", "4"]);
    db.stop().await;
}

/// All partitions become idle at once, before the source has had a watermark, since one of them is empty and another holds only
/// what does not count.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_nobody_writes_to_has_a_watermark_though_a_partition_is_empty() {
    let topic = Topic::new(4);
    let folder = tempfile::tempdir().expect("a folder");
    let mut db = Db::start_at(2, folder.path());
    db.run(&topic.source(", idle_timeout = '1 day'", "")).await;
    db.run("CREATE MATERIALIZED VIEW v AS SELECT window_end, count(*) AS n FROM TUMBLE(e, ts, INTERVAL '1 minute') GROUP BY window_end").await;
    db.run("CREATE MATERIALIZED VIEW ids AS SELECT id FROM e").await;
    for (partition, id, at) in [(0, 1, 100), (0, 2, 300), (1, 3, 40), (1, 4, 200)] {
        topic.send(partition, id, Some(second(at)), 0);
    }
    topic.send(2, 5, None, 0);
    topic.flush();
    db.run("WAIT FOR e").await;
    let watermark = "SELECT watermark FROM riverrun.sources";
    for workers in [1, 3] {
        assert_eq!(db.rows(watermark).await, ["NULL"]);
        db.engine.crash().await;
        drop(db);
        db = Db::start_at(workers, folder.path());
        db.run("WAIT FOR e").await;
    }
    assert_eq!(db.rows(watermark).await, ["NULL"]);
    db.run("ALTER SOURCE e SET (idle_timeout = '0 s')").await;
    // That of partition 1: no row that it may still get is late because of the others.
    db.until(watermark, &["2026-01-01T00:03:10Z"]).await;
    let live = "SELECT live_window_end('v'), closed_window_end('v'), sum(n) FROM v";
    assert_eq!(db.rows(live).await, ["2026-01-01T00:04:00Z|2026-01-01T00:03:00Z|4"]);
    db.run("ALTER SOURCE e SET (idle_timeout = '1 day')").await;
    // Below it is late what comes to the partitions that had none.
    for (partition, id, at) in [(2, 6, 189), (2, 7, 190), (3, 8, 189), (3, 9, 191), (1, 10, 190), (0, 11, 291)] {
        topic.send(partition, id, Some(second(at)), 0);
    }
    topic.flush();
    db.run("WAIT FOR e; CREATE MATERIALIZED VIEW again AS SELECT id + 0 AS id FROM e; WAIT FOR e").await;
    let accepted = ["1", "10", "11", "2", "3", "4", "7", "9"];
    for _ in 0..2 {
        // What was not whole at the crash reads its history again.
        db.run("WAIT FOR e").await;
        assert_eq!(db.rows("SELECT id FROM ids").await, accepted);
        assert_eq!(db.rows("SELECT id FROM again").await, accepted);
        assert_eq!(db.rows(COUNTS).await, ["11|8|3|0"]);
        assert_eq!(db.rows(watermark).await, ["2026-01-01T00:03:10Z"]);
        db.engine.crash().await;
        drop(db);
        db = Db::start_at(2, folder.path());
    }
    db.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn late_rows_go_into_a_table_of_ones_own() {
    let topic = Topic::new(2);
    let db = Db::start(2);
    db.run("CREATE TABLE late (late_reason VARCHAR, ts TIMESTAMPTZ, id BIGINT, late_offset BIGINT NOT NULL, late_partition INT, late_watermark TIMESTAMPTZ)").await;
    db.run(&topic.source("", "LATE ROWS INTO late")).await;
    db.run("CREATE MATERIALIZED VIEW by_reason AS SELECT late_reason, count(*) AS n FROM late GROUP BY late_reason")
        .await;
    // The view wants no column of the source's: the table gets its own all the same.
    db.run("CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM e").await;
    for (id, at) in [
        (1, Some(second(100))),
        (2, Some(second(89))),
        (3, None),
        (4, Some(now_us() + 7_200_000_000)),
        (5, Some(second(95))),
    ] {
        topic.send(0, id, at, 0);
        topic.send(1, id + 10, at, 0);
    }
    topic.flush();
    db.run("WAIT FOR e").await;
    let rows =
        db.rows("SELECT id, late_reason, late_partition, late_offset, late_watermark, ts IS NULL FROM late").await;
    let watermark = "2026-01-01T00:01:30Z";
    let expected: Vec<String> = [
        (12, "late", 1, 1, false),
        (13, "null_time", 1, 2, true),
        (14, "future", 1, 3, false),
        (2, "late", 0, 1, false),
        (3, "null_time", 0, 2, true),
        (4, "future", 0, 3, false),
    ]
    .map(|(id, reason, p, o, null)| format!("{id}|{reason}|{p}|{o}|{watermark}|{null}"))
    .to_vec();
    assert_eq!(rows, expected);
    assert_eq!(db.rows("SELECT * FROM by_reason").await, ["future|2", "late|2", "null_time|2"]);
    assert_eq!(db.rows("SELECT n FROM n").await, ["4"]);
    assert_eq!(db.rows(COUNTS).await, ["10|4|6|0"]);
    // Reading history again adds nothing.
    db.run("CREATE MATERIALIZED VIEW again AS SELECT id FROM e; WAIT FOR e").await;
    assert_eq!(db.rows("SELECT count(*) FROM late").await, ["6"]);
    let error = db.error("DROP TABLE late").await;
    assert!(error.contains("because other objects depend on it"), "{error}");
    // It is the user's: rows that have been looked after can go.
    db.run("DELETE FROM late WHERE late_reason = 'future'").await;
    assert_eq!(db.rows("SELECT * FROM by_reason").await, ["late|2", "null_time|2"]);
    db.run("DROP SOURCE e CASCADE; DROP TABLE late CASCADE").await;
    db.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn history_is_a_job_that_can_be_cancelled() {
    let topic = Topic::new(2);
    let db = Db::start(2);
    db.run(&topic.source("", "")).await;
    db.run("CREATE MATERIALIZED VIEW first AS SELECT count(*) AS n FROM e").await;
    for id in 0..20_000 {
        topic.send((id % 2) as i32, id, Some(second(id)), 0);
    }
    topic.flush();
    db.run("WAIT FOR e").await;
    assert_eq!(db.rows("SELECT * FROM riverrun.jobs").await, Vec::<String>::new());
    // Nothing can be read: a job stays at its beginning.
    topic.broker.take_down().expect("down");
    db.run("CREATE MATERIALIZED VIEW second AS SELECT id FROM e").await;
    let jobs = "SELECT name, records_read, records_to_read, progress, seconds_left FROM riverrun.jobs";
    assert_eq!(db.rows(jobs).await, ["second|0|20000|0.0|NULL"]);
    let partitions = "SELECT source, partition, \"offset\", end_offset, records_left FROM riverrun.job_partitions";
    assert_eq!(db.rows(partitions).await, ["e|0|0|10000|10000", "e|1|0|10000|10000"]);
    let views = "SELECT name, state, records_to_read FROM riverrun.materialized_views";
    assert_eq!(db.rows(views).await, ["first|current|NULL", "second|reading history|20000"]);
    // The view that is current is read all the same.
    assert_eq!(db.rows("SELECT n FROM first").await, ["20000"]);
    let job = &db.rows("SELECT id FROM riverrun.jobs").await[0];
    db.run(&format!("CANCEL JOB {job}")).await;
    assert_eq!(db.rows(views).await, ["first|current|NULL"]);
    assert!(db.error("SELECT * FROM second").await.contains("does not exist"));
    // One whose end nobody knows yet.
    db.run("DROP MATERIALIZED VIEW first; CREATE MATERIALIZED VIEW third AS SELECT id FROM e").await;
    let job = &db.rows("SELECT id FROM riverrun.jobs").await[0];
    db.run("CREATE MATERIALIZED VIEW over_third AS SELECT count(*) AS n FROM third").await;
    let error = db.error(&format!("CANCEL JOB {job}")).await;
    assert!(error.contains("because other objects depend on it"), "{error}");
    let both = db.rows("SELECT id FROM riverrun.jobs").await.join(", ");
    db.run(&format!("CANCEL JOBS {both}")).await;
    assert_eq!(db.rows(views).await, Vec::<String>::new());
    // A finished view is no job.
    topic.broker.bring_up().expect("up");
    db.run("CREATE MATERIALIZED VIEW fourth AS SELECT count(*) AS n FROM e; WAIT FOR fourth").await;
    assert_eq!(db.rows("SELECT n FROM fourth").await, ["20000"]);
    let fourth = db.engine.catalog().resolve(&Name(vec!["fourth".into()]), &db.names).expect("the view").oid;
    for id in [1, fourth] {
        assert!(db.error(&format!("CANCEL JOB {id}")).await.contains(&format!("there is no job {id}")));
    }
    db.stop().await;
}

/// Views that come in the middle of a stream, each with a store or a pass of its own, hold what the first holds.
#[tokio::test(flavor = "multi_thread")]
async fn views_made_in_the_middle_join_without_gap_or_overlap() {
    let topic = Topic::new(3);
    let db = Db::start(2);
    db.run(&topic.source(", allowed_lateness = '5 seconds'", "")).await;
    db.run("CREATE MATERIALIZED VIEW v0 AS SELECT id, p, o FROM e").await;
    let mut id = 0;
    for round in 1..7_i64 {
        for _ in 0..2_000 {
            id += 1;
            // Skewed, out of order, and some of them late.
            let partition = if id % 7 < 5 { 0 } else { (id % 3) as i32 };
            topic.send(partition, id, Some(second(id / 20 - (id * 31) % 19)), 40);
        }
        if round % 2 == 0 {
            topic.flush();
        }
        db.run(&format!("CREATE MATERIALIZED VIEW v{round} AS SELECT id + {round} AS id, p, o FROM e")).await;
        db.run(&format!("CREATE MATERIALIZED VIEW w{round} AS SELECT p, o % {} AS m, count(*) AS n, sum(id) AS s FROM e GROUP BY p, o % {}", round + 1, round + 1)).await;
    }
    topic.flush();
    db.run("WAIT FOR e").await;
    let rows = db.rows("SELECT * FROM v0").await;
    assert!(rows.len() > 6_000 && rows.len() < 12_000, "{} of 12000", rows.len());
    assert_eq!(db.rows(COUNTS).await, [format!("12000|{}|{}|0", rows.len(), 12_000 - rows.len())]);
    for round in 1..7 {
        let joined = db.rows(&format!("SELECT id - {round} AS id, p, o FROM v{round}")).await;
        assert!(joined == rows, "v{round} has {} rows, v0 {}", joined.len(), rows.len());
        let counted = db.rows(&format!("SELECT p, m, n, s FROM w{round}")).await;
        let expected = db
            .rows(&format!(
                "SELECT p, o % {0} AS m, count(*) AS n, sum(id) AS s FROM v0 GROUP BY p, o % {0}",
                round + 1
            ))
            .await;
        assert_eq!(counted, expected, "w{round}");
    }
    db.stop().await;
}

/// Who begins downstream of a view that shows what is final, while some of its history is still to come: what that view tells
/// later must not be in what it began with.
#[tokio::test(flavor = "multi_thread")]
async fn downstream_of_final_windows_that_lack_history_nothing_counts_twice() {
    let (here, away) = (Topic::new(1), Topic::new(1));
    let db = Db::start(2);
    db.run(&here.source("", "")).await;
    db.run(&away.source("", "").replace("SOURCE e", "SOURCE f")).await;
    db.run("CREATE MATERIALIZED VIEW n AS SELECT count(*) AS n FROM e").await;
    db.run("CREATE MATERIALIZED VIEW m AS SELECT count(*) AS n FROM f").await;
    for topic in [&here, &away] {
        (0..300).for_each(|id| topic.send(0, id, Some(second(id)), 0));
        topic.flush();
    }
    db.run("WAIT FOR e; WAIT FOR f").await;
    // Both have passed four minutes. The history of one cannot be read now, that of the other is there.
    away.broker.take_down().expect("down");
    db.run(
        "CREATE MATERIALIZED VIEW v AS SELECT window_end, count(*) AS n
         FROM TUMBLE((SELECT ts FROM e UNION ALL SELECT ts FROM f), ts, INTERVAL '1 minute') GROUP BY window_end EMIT ON WINDOW CLOSE",
    )
    .await;
    db.until("SELECT records_read, records_to_read FROM riverrun.jobs WHERE name = 'v'", &["300|600"]).await;
    db.run("CREATE MATERIALIZED VIEW over_v AS SELECT count(*) AS windows, sum(n) AS n FROM v").await;
    db.run("CREATE MATERIALIZED VIEW beside_v AS SELECT window_end, n FROM v WHERE n > 0").await;
    away.broker.bring_up().expect("up");
    db.run("WAIT FOR over_v; WAIT FOR beside_v").await;
    assert_eq!(db.rows("SELECT count(*), sum(n) FROM v").await, ["4|480"]);
    assert_eq!(db.rows("SELECT windows, n FROM over_v").await, ["4|480"]);
    assert_eq!(db.rows("SELECT * FROM beside_v").await, db.rows("SELECT * FROM v").await);
    db.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_is_as_fresh_as_the_last_look_at_a_topic_that_was_read_to_its_end() {
    let topic = Topic::new(2);
    let db = Db::start(2);
    db.run(&topic.source("", "")).await;
    db.run("CREATE MATERIALIZED VIEW v AS SELECT count(*) AS n FROM e").await;
    db.run("CREATE MATERIALIZED VIEW over_v AS SELECT max(n) AS n FROM v WHERE n > 0").await;
    (0..100).for_each(|id| topic.send((id % 2) as i32, id, Some(second(id)), 0));
    topic.flush();
    db.run("WAIT FOR e").await;
    let among = |condition: &str| format!("SELECT name FROM riverrun.materialized_views WHERE freshness {condition}");
    let (fresh, old) = (among("BETWEEN INTERVAL '0 s' AND INTERVAL '1500 ms'"), among("> INTERVAL '1500 ms'"));
    db.until(&fresh, &["over_v", "v"]).await;
    // Nobody tells where the topic ends: what is known grows old.
    topic.broker.take_down().expect("down");
    db.until(&old, &["over_v", "v"]).await;
    // What reads history is not known to have anything.
    db.run("CREATE MATERIALIZED VIEW h AS SELECT id FROM e; CREATE MATERIALIZED VIEW over_h AS SELECT count(*) AS n FROM h").await;
    assert_eq!(db.rows(&among("IS NULL")).await, ["h", "over_h"]);
    topic.broker.bring_up().expect("up");
    db.until(&fresh, &["h", "over_h", "over_v", "v"]).await;
    db.stop().await;
}
