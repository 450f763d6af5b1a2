//! The demo's parts in one process: what it writes is what the engine reads, and the board's query answers.

use riverrun::demo::{Demo, DemoOptions, Figures, Meter, QUERIES};
use riverrun::sql::{self, Statement};

use crate::db::Db;

#[tokio::test(flavor = "multi_thread")]
async fn every_event_written_has_a_verdict_and_the_board_shows_ten_ads() {
    let db = Db::start(2);
    // Fewer than are due at once: the generator begins with the last minute.
    let events = 20_000;
    let options = DemoOptions { events_per_second: 400, ads: 1000, events: Some(events), ..DemoOptions::default() };
    let mut demo = Demo::start(db.engine.clone(), &options).await.expect("a demo");
    demo.all_sent().await;
    for name in ["ad_events", "page_views", "paid_events"] {
        db.run(&format!("WAIT FOR {name}")).await;
    }
    let counts = "SELECT source, sum(read), sum(read - accepted - late - duplicate - dead - skipped) FROM riverrun.source_partitions
        GROUP BY source";
    let paid = format!("paid_events|{events}|0");
    assert_eq!(db.rows(counts).await, [format!("ad_events|{events}|0"), format!("page_views|{}|0", events / 10), paid]);

    let mut meter = Meter::start(&db.engine);
    let figures = demo.look(&mut meter).await;
    let unbilled = db.rows("SELECT count(*), min(late_reason), max(late_reason) FROM unbilled_events").await;
    let late = db.rows("SELECT sum(late) FROM riverrun.source_partitions WHERE source = 'paid_events'").await;
    assert_eq!(unbilled, [format!("{}|late|late", late[0])]);
    let Figures { top, counts, troubles, views, .. } = &figures;
    assert_eq!(troubles, &Vec::<String>::new());
    assert_eq!(top.len(), 10);
    assert!(top.is_sorted_by(|a, b| a.clicks >= b.clicks), "{top:?}");
    // Two sources read the ad events.
    assert_eq!(counts.read, 2 * events + events / 10);
    assert_eq!(views.0, views.1);
    assert!(figures.freshness_us.is_some());
    // The generator makes some of each.
    assert!(counts.late > 0 && counts.dead > 0 && counts.duplicate > 0 && counts.accepted > events, "{counts:?}");

    // Views forget in time, but for those without windows of their own and what a temporal filter bounds.
    for parsed in QUERIES.iter().flat_map(|(_, text)| sql::parse(text).expect("the file is SQL")) {
        let Statement::CreateMaterializedView(create) = parsed.statement else { continue };
        let object = db.engine.catalog().resolve(&create.name, &db.names).expect("the view is there");
        let forgets = object.sql.contains("retention = '2 hours'");
        let otherwise = ["country_podium", "page_last_hour", "top_pages", "credit_notes", "scoreboard_leader"]
            .contains(&object.name.as_str());
        assert_eq!(forgets, !otherwise, "{}", object.sql);
    }
    demo.stop().await;
    db.stop().await;
}
