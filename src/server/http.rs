//! `/healthz`, `/readyz` and `/metrics`: pages for machines, one request per connection.

use std::fmt::Write;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::engine::{Counts, Engine, Stats};

const MAX_REQUEST_BYTES: usize = 8 << 10;
const PATIENCE: Duration = Duration::from_secs(5);
const MAX_CONNECTIONS: usize = 64;

/// Answers until `stop` says so.
pub async fn serve(listener: TcpListener, engine: Engine, mut stop: watch::Receiver<bool>) {
    let mut clients = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if clients.len() < MAX_CONNECTIONS => match accepted {
                Ok((stream, _)) => {
                    let engine = engine.clone();
                    clients.spawn(async move {
                        // A client that is slow or gone is no concern of ours.
                        let _late = tokio::time::timeout(PATIENCE, answer(stream, &engine)).await;
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    super::accept_again_later().await;
                }
            },
            Some(_) = clients.join_next(), if !clients.is_empty() => {}
            () = super::stopped(&mut stop) => return,
        }
    }
}

async fn answer(mut stream: TcpStream, engine: &Engine) -> std::io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() > MAX_REQUEST_BYTES || stream.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    let line = request.split(|b| *b == b'\r').next().unwrap_or_default();
    let response = respond(&String::from_utf8_lossy(line), &engine.stats(), resident_bytes());
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await
}

/// The whole response to a request's first line.
fn respond(request: &str, stats: &Stats, resident_bytes: Option<u64>) -> String {
    let mut words = request.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default();
    let (status, body) = match (method, path) {
        ("GET" | "HEAD", "/healthz") => ("200 OK", "ok\n".to_string()),
        ("GET" | "HEAD", "/readyz") => match troubles(stats) {
            troubles if troubles.is_empty() => ("200 OK", "ok\n".to_string()),
            troubles => ("503 Service Unavailable", troubles),
        },
        ("GET" | "HEAD", "/metrics") => ("200 OK", metrics(stats, resident_bytes)),
        ("GET" | "HEAD", _) => ("404 Not Found", "there are /healthz, /readyz and /metrics\n".to_string()),
        _ => ("405 Method Not Allowed", "only GET is answered\n".to_string()),
    };
    let length = body.len();
    let body = if method == "HEAD" { String::new() } else { body };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: {length}\r\n\
         Connection: close\r\n\r\n{body}"
    )
}

/// Why not all that comes is read, a line each; nothing if all is.
fn troubles(stats: &Stats) -> String {
    let failed = stats.sources.iter().filter(|source| source.state == "failed");
    let failed = failed.map(|source| {
        let message = source.message.as_deref().unwrap_or("nobody knows why");
        format!("source \"{}\" has failed: {message}\n", source.name)
    });
    let stalled = stats.stalled.iter().map(|(reason, _)| reason);
    stalled.chain(&stats.rests).map(|reason| format!("{reason}\n")).chain(failed).collect()
}

/// Memory of this process as Linux tells it.
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Prometheus' text format, family by family.
struct Page(String);

impl Page {
    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<String> = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn metrics(stats: &Stats, resident_bytes: Option<u64>) -> String {
    let mut page = Page(String::new());
    page.family("riverrun_tick", "counter", "Ticks since the start.");
    page.value("riverrun_tick", &[], stats.tick.1);
    page.family("riverrun_tick_duration_seconds", "gauge", "How long the last tick that had something to do took.");
    page.value("riverrun_tick_duration_seconds", &[], stats.tick_ms / 1_000.0);
    page.family("riverrun_tick_stalled_seconds", "gauge", "For how long the present tick has not ended, from 10 on.");
    page.value("riverrun_tick_stalled_seconds", &[], stats.stalled.as_ref().map_or(0, |(_, seconds)| *seconds));
    page.family(
        "riverrun_clock_ahead_seconds",
        "gauge",
        "How far now() in views is ahead of a clock that was set back.",
    );
    page.value("riverrun_clock_ahead_seconds", &[], stats.ahead_us as f64 / 1e6);
    page.family("riverrun_events_accepted_total", "counter", "Events accepted since the start, over all sources.");
    page.value("riverrun_events_accepted_total", &[], stats.accepted);

    page.family("riverrun_source_records_total", "counter", "Records read, by verdict.");
    // Over all partitions, for a counter must not go back: a copy in one partition may take the place of a row of another. In
    // all no row that comes makes fewer rows count.
    for source in &stats.sources {
        for verdict in 0..5 {
            let of = source.partitions.iter().map(|partition| verdicts(&partition.counts)[verdict]);
            let (name, _) = verdicts(&Counts::default())[verdict];
            let count: u64 = of.map(|(_, count)| count).sum();
            page.value("riverrun_source_records_total", &[("source", &source.name), ("verdict", name)], count);
        }
    }
    page.family("riverrun_source_ids", "gauge", "Ids that DEDUPLICATE BY remembers.");
    for source in stats.sources.iter().filter(|source| source.ids.bytes > 0) {
        page.value("riverrun_source_ids", &[("source", &source.name)], source.ids.ids);
    }
    page.family("riverrun_source_id_bytes", "gauge", "Memory held for DEDUPLICATE BY.");
    for source in stats.sources.iter().filter(|source| source.ids.bytes > 0) {
        page.value("riverrun_source_id_bytes", &[("source", &source.name)], source.ids.bytes);
    }
    page.family("riverrun_source_lag_records", "gauge", "Records between the position and the end of a partition.");
    for (source, partition, of) in partitions(stats) {
        if let Some(end) = of.end {
            let labels = [("source", source), ("partition", partition.as_str())];
            page.value("riverrun_source_lag_records", &labels, (end - of.position).max(0));
        }
    }
    page.family("riverrun_source_state", "gauge", "1 for the state that a source is in.");
    for source in &stats.sources {
        page.value("riverrun_source_state", &[("source", &source.name), ("state", source.state)], 1);
    }
    let committed = || stats.checkpoints.iter().filter(|checkpoint| checkpoint.state == "committed");
    if let Some(last) = stats.checkpoints.last() {
        page.family(
            "riverrun_checkpoint_failing",
            "gauge",
            "1 while a checkpoint cannot be written, and nothing is read.",
        );
        page.value("riverrun_checkpoint_failing", &[], u8::from(last.state == "failing"));
    }
    if let Some(last) = committed().next_back() {
        page.family("riverrun_checkpoint_number", "counter", "The number of the last manifest.");
        page.value("riverrun_checkpoint_number", &[], last.number.unwrap_or_default());
        page.family("riverrun_checkpoint_timestamp_seconds", "gauge", "When the last checkpoint was committed.");
        page.value("riverrun_checkpoint_timestamp_seconds", &[], last.committed_us.unwrap_or_default() as f64 / 1e6);
        page.family("riverrun_checkpoint_duration_seconds", "gauge", "How long the last checkpoint took to write.");
        page.value("riverrun_checkpoint_duration_seconds", &[], last.took_us as f64 / 1e6);
        page.family("riverrun_checkpoint_bytes", "gauge", "What the last checkpoint wrote.");
        page.value("riverrun_checkpoint_bytes", &[], last.bytes);
    }
    page.family("riverrun_reading_rests", "gauge", "1 while nothing is read, as it could not be kept or held.");
    page.value("riverrun_reading_rests", &[], u8::from(stats.rests.is_some()));
    page.family("riverrun_state_bytes", "gauge", "Memory held by state, but for closed slices that are in files.");
    page.value("riverrun_state_bytes", &[], stats.memory.state_bytes);
    page.family("riverrun_slice_cache_bytes", "gauge", "Memory held by closed slices that are in files.");
    page.value("riverrun_slice_cache_bytes", &[], stats.memory.cached_bytes);
    if let Some(limit) = stats.memory.limit_bytes {
        page.family("riverrun_memory_limit_bytes", "gauge", "What state may take of memory.");
        page.value("riverrun_memory_limit_bytes", &[], limit);
    }
    page.family("riverrun_view_state_bytes", "gauge", "Memory held by a materialized view's state.");
    for view in &stats.views {
        page.value("riverrun_view_state_bytes", &[("view", &view.name)], view.state_bytes);
    }
    let help = "How long ago all that then stood in a view's topics and tables is in it.";
    page.family("riverrun_view_freshness_seconds", "gauge", help);
    for view in &stats.views {
        if let Some(us) = view.freshness_us {
            page.value("riverrun_view_freshness_seconds", &[("view", &view.name)], us as f64 / 1e6);
        }
    }
    page.family("riverrun_view_late_rows_total", "counter", "Rows that came too late for a materialized view.");
    for view in &stats.views {
        page.value("riverrun_view_late_rows_total", &[("view", &view.name)], view.late_rows);
    }
    page.family("riverrun_view_expression_errors_total", "counter", "Expressions of a view that failed on a row.");
    for view in &stats.views {
        page.value("riverrun_view_expression_errors_total", &[("view", &view.name)], view.expression_errors);
    }
    let help = "Aggregates of a view that were shown as NULL because they do not fit their type.";
    page.family("riverrun_view_overflowed_values_total", "counter", help);
    for view in &stats.views {
        page.value("riverrun_view_overflowed_values_total", &[("view", &view.name)], view.overflowed_values);
    }
    page.family("riverrun_view_rows_without_window_total", "counter", "Rows of a view without a time.");
    for view in &stats.views {
        page.value("riverrun_view_rows_without_window_total", &[("view", &view.name)], view.rows_without_window);
    }
    page.family("riverrun_job_records_left", "gauge", "Records of history that a view has still to read.");
    for job in &stats.jobs {
        page.value("riverrun_job_records_left", &[("view", &job.name)], job.to_read - job.read);
    }
    if let Some(bytes) = resident_bytes {
        page.family("process_resident_memory_bytes", "gauge", "Memory of this process.");
        page.value("process_resident_memory_bytes", &[], bytes);
    }
    page.0
}

fn verdicts(counts: &Counts) -> [(&'static str, u64); 5] {
    [
        ("accepted", counts.accepted),
        ("late", counts.late),
        ("duplicate", counts.duplicate),
        ("dead", counts.dead),
        ("skipped", counts.skipped),
    ]
}

fn partitions(stats: &Stats) -> impl Iterator<Item = (&str, String, &crate::engine::PartitionStats)> {
    let sources = stats.sources.iter();
    sources.flat_map(|source| {
        source.partitions.iter().map(|partition| (source.name.as_str(), partition.partition.to_string(), partition))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Ids, PartitionStats, SourceStats};

    #[test]
    fn pages() {
        let stats = Stats::default();
        assert!(respond("GET /healthz HTTP/1.1", &stats, None).ends_with("\r\n\r\nok\n"));
        assert!(respond("GET /readyz HTTP/1.1", &stats, None).ends_with("\r\n\r\nok\n"));
        assert!(respond("GET /other HTTP/1.1", &stats, None).starts_with("HTTP/1.1 404 "));
        assert!(respond("POST /metrics HTTP/1.1", &stats, None).starts_with("HTTP/1.1 405 "));
        assert!(respond("", &stats, None).starts_with("HTTP/1.1 405 "));
        assert!(respond("HEAD /healthz HTTP/1.1", &stats, None).ends_with("\r\n\r\n"));
    }

    #[test]
    fn what_keeps_from_reading_is_told() {
        let source =
            |name: &str, state| SourceStats { state, message: Some("lost".into()), name: name.into(), ..source() };
        let sources = vec![source("a", "running"), source("b", "failed"), source("c", "retrying")];
        let stalled = Some(("tick 7 has not ended".into(), 20));
        let stats = Stats { sources, rests: Some("nothing is read".into()), stalled, ..Stats::default() };
        assert!(respond("GET /metrics HTTP/1.1", &stats, None).contains("\nriverrun_tick_stalled_seconds 20\n"));
        let page = respond("GET /readyz HTTP/1.1", &stats, None);
        assert!(page.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{page}");
        assert!(
            page.ends_with("\r\n\r\ntick 7 has not ended\nnothing is read\nsource \"b\" has failed: lost\n"),
            "{page}"
        );
        assert!(respond("GET /healthz HTTP/1.1", &stats, None).ends_with("\r\n\r\nok\n"));
    }

    fn source() -> SourceStats {
        let partition = PartitionStats {
            partition: 3,
            position: 10,
            end: Some(12),
            counts: Counts { accepted: 7, late: 2, ..Counts::default() },
            watermark_us: None,
            idle: false,
            error: None,
        };
        SourceStats {
            oid: 1,
            schema: "public".into(),
            name: "a\"b".into(),
            connector: "kafka".into(),
            state: "running",
            message: None,
            watermark_us: None,
            unseen_columns: vec![],
            ids: Ids { ids: 5, bytes: 600 },
            partitions: vec![partition.clone(), PartitionStats { partition: 4, ..partition }],
            gaps: vec![],
            changes: vec![],
        }
    }

    #[test]
    fn metrics_by_source_and_verdict() {
        let page = metrics(&Stats { sources: vec![source()], ..Stats::default() }, Some(1));
        for line in [
            "riverrun_source_records_total{source=\"a\\\"b\",verdict=\"late\"} 4",
            "riverrun_source_id_bytes{source=\"a\\\"b\"} 600",
            "riverrun_source_lag_records{source=\"a\\\"b\",partition=\"3\"} 2",
            "riverrun_source_state{source=\"a\\\"b\",state=\"running\"} 1",
            "process_resident_memory_bytes 1",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} is missing from\n{page}");
        }
    }
}
