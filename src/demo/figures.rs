//! What the demo shows: the answer of one query and the engine's figures, as of one moment.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use chrono_tz::Tz;
use datafusion::error::DataFusionError;

use super::AD_EVENTS;
use crate::catalog::{NameContext, ObjectKind};
use crate::engine::{Counts, Engine, EngineError, Stats, Stopwatch, now_us};
use crate::planner::{self, Reads, Runtime};
use crate::sql::{self, Statement};

/// The Top-10 ads of the last minute.
pub const TOP_ADS: &str = "SELECT ad_id, sum(clicks)::BIGINT AS clicks, sum(impressions)::BIGINT AS impressions,
    min(window_start) AS window_start, max(window_end) AS window_end
FROM ad_1m WHERE window_end = live_window_end('ad_1m')
GROUP BY ad_id ORDER BY clicks DESC, ad_id LIMIT 10";

/// What one query of the board may hold in memory.
const QUERY_BYTES: usize = 256 << 20;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopAd {
    pub ad_id: i64,
    pub clicks: i64,
    pub impressions: i64,
}

/// One look at the engine.
#[derive(Debug, Clone, Default)]
pub struct Figures {
    /// Best first; empty before the first event.
    pub top: Vec<TopAd>,
    /// Start and end of the window they are of, in microseconds since the epoch.
    pub window_us: Option<(i64, i64)>,
    pub query_ms: f64,
    /// Events accepted per second since the last look, over all sources.
    pub accepted_per_second: f64,
    /// Over all sources and partitions, since the start.
    pub counts: Counts,
    /// Records in the topics that have not been read yet, as far as the engine knows the ends.
    pub lag: u64,
    /// How old the newest ad event is that the views contain: now less its event time. `None` before the first.
    pub freshness_us: Option<i64>,
    pub tick_ms: f64,
    /// Views that are current, and all.
    pub views: (usize, usize),
    /// What does not go well.
    pub troubles: Vec<String>,
}

/// Takes figures, and remembers those that rates are made of.
pub struct Meter {
    accepted: u64,
    since: Stopwatch,
}

impl Meter {
    pub fn start(engine: &Engine) -> Meter {
        Meter { accepted: engine.stats().accepted, since: Stopwatch::start() }
    }

    pub(super) async fn look(&mut self, engine: &Engine, names: &NameContext, trouble: Option<String>) -> Figures {
        let mut figures = Figures { troubles: trouble.into_iter().collect(), ..Figures::default() };
        let watch = Stopwatch::start();
        match top_ads(engine, names).await {
            Ok(batches) => figures.take_top(&batches),
            Err(error) => figures.troubles.push(error.to_string()),
        }
        figures.query_ms = watch.elapsed().as_secs_f64() * 1000.0;
        let stats = engine.stats();
        figures.take_stats(&stats);
        figures.freshness_us = newest_event_us(&stats, engine).map(|newest| now_us().saturating_sub(newest));
        let accepted = stats.accepted.saturating_sub(self.accepted);
        figures.accepted_per_second = accepted as f64 / self.since.elapsed().as_secs_f64().max(1e-3);
        *self = Meter { accepted: stats.accepted, since: Stopwatch::start() };
        figures
    }
}

impl Figures {
    fn take_top(&mut self, batches: &[RecordBatch]) {
        for batch in batches {
            let [ad_id, clicks, impressions] = [0, 1, 2].map(|i| batch.column(i).as_primitive::<Int64Type>());
            let [start, end] = [3, 4].map(|i| batch.column(i).as_primitive::<TimestampMicrosecondType>());
            for row in 0..batch.num_rows() {
                self.top.push(TopAd {
                    ad_id: ad_id.value(row),
                    clicks: clicks.value(row),
                    impressions: impressions.value(row),
                });
                self.window_us.get_or_insert((start.value(row), end.value(row)));
            }
        }
    }

    fn take_stats(&mut self, stats: &Stats) {
        let partitions = || stats.sources.iter().flat_map(|s| &s.partitions);
        for counts in partitions().map(|p| &p.counts) {
            self.counts.read += counts.read;
            self.counts.accepted += counts.accepted;
            self.counts.late += counts.late;
            self.counts.duplicate += counts.duplicate;
            self.counts.dead += counts.dead;
            self.counts.skipped += counts.skipped;
        }
        let lags = partitions().filter_map(|p| Some(p.end?.saturating_sub(p.position)));
        self.lag = lags.map(|lag| lag.max(0) as u64).sum();
        self.tick_ms = stats.tick_ms;
        self.views = (stats.views.iter().filter(|v| v.state == "current").count(), stats.views.len());
        let of_sources = stats.sources.iter().map(|s| (&s.name, &s.message));
        let of_views = stats.views.iter().map(|v| (&v.name, &v.message));
        let troubles =
            of_sources.chain(of_views).filter_map(|(name, message)| Some(format!("{name}: {}", message.as_ref()?)));
        self.troubles.extend(troubles);
    }
}

/// The largest event time among the accepted ad events: a partition's watermark is that less the delay.
fn newest_event_us(stats: &Stats, engine: &Engine) -> Option<i64> {
    let source = stats.sources.iter().find(|s| s.name == AD_EVENTS)?;
    let object = engine.catalog().get(source.oid)?;
    let ObjectKind::Source(definition) = &object.kind else { return None };
    let delay_us = definition.watermark.as_ref()?.delay_us;
    let watermark_us = source.partitions.iter().filter_map(|p| p.watermark_us).max()?;
    Some(watermark_us.saturating_add(delay_us))
}

#[derive(Debug, thiserror::Error)]
enum QueryError {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Plan(#[from] planner::PlanError),
    #[error(transparent)]
    Run(#[from] DataFusionError),
}

async fn top_ads(engine: &Engine, names: &NameContext) -> Result<Vec<RecordBatch>, QueryError> {
    static STATEMENT: LazyLock<Statement> = LazyLock::new(|| {
        let mut parsed = sql::parse(TOP_ADS).expect("a text of ours that a test runs");
        parsed.remove(0).statement
    });
    static RUNTIME: LazyLock<Arc<Runtime>> =
        LazyLock::new(|| Runtime::new(QUERY_BYTES).expect("a memory pool needs nothing from outside"));
    let Statement::Query(query) = &*STATEMENT else { return Ok(Vec::new()) };
    let catalog = engine.catalog();
    let objects = planner::objects_in(&STATEMENT, &catalog, names)?;
    let version = engine.read(&objects, false).await?;
    let reads = Reads {
        catalog,
        names: names.clone(),
        tables: objects.iter().filter_map(|&oid| Some((oid, version.table(oid)?))).collect::<HashMap<_, _>>(),
        event_times: Some(version.event_times()),
        system: engine.stats(),
        functions: Vec::new(),
        now_us: now_us(),
        zone: Tz::UTC,
        runtime: RUNTIME.clone(),
    };
    let plan = planner::plan_query(query, &reads, &[]).await?;
    Ok(planner::session(&reads)?.execute_logical_plan(plan).await?.collect().await?)
}
