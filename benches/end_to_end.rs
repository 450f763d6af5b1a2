//! From a Kafka topic filled beforehand to current views: events/s, CPU-seconds of the engine per million events, peak memory; and
//! how long CREATE of one more window over their store takes, which has all its history then.
//!
//! ```text
//! scripts/kafka start --dir target/kafka/bench     # prints KAFKA_BOOTSTRAP=...
//! KAFKA_BOOTSTRAP=127.0.0.1:PORT cargo bench --bench end_to_end -- [--events N] [--keys N] [--workers N] [--runs N]
//! ```
//!
//! Each run of a scenario has a process of its own, which does nothing else: the figures are that process's.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use riverrun::catalog::NameContext;
use riverrun::connector::{Producer, create_topic};
use riverrun::engine::{Engine, EngineOptions, Stopwatch};
use riverrun::sql::{self, Name};

#[derive(Debug, Clone, Parser)]
struct Options {
    /// Brokers, host:port.
    #[arg(long, env = "KAFKA_BOOTSTRAP")]
    bootstrap: String,
    #[arg(long, default_value_t = 1_000_000)]
    events: u64,
    /// Distinct ads, chosen uniformly.
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    #[arg(long, default_value_t = 4)]
    partitions: i32,
    /// Event time covered.
    #[arg(long, default_value_t = 600)]
    seconds: u64,
    #[arg(long, default_value_t = 2)]
    workers: usize,
    #[arg(long, default_value_t = 3)]
    runs: usize,
    /// Keep state in an empty folder; then also the bytes written per event, and how long a start after a crash takes until the
    /// first answer and until all is in the views.
    #[arg(long)]
    data_dir: Option<String>,
    /// Run one scenario in this process.
    #[arg(long, hide = true)]
    scenario: Option<String>,
    #[arg(long, hide = true)]
    topic: Option<String>,
    /// What cargo passes to every benchmark.
    #[arg(long, hide = true)]
    bench: bool,
}

const TUMBLE_1M: &str = "TUMBLE(ad_events, ts, INTERVAL '1 minute')";
const HOP_1M: &str = "HOP(ad_events, ts, INTERVAL '10 seconds', INTERVAL '1 minute')";
const HOP_10M: &str = "HOP(ad_events, ts, INTERVAL '10 seconds', INTERVAL '10 minutes')";
const HOP_1H: &str = "HOP(ad_events, ts, INTERVAL '10 seconds', INTERVAL '1 hour')";

const HOP_30M: &str = "HOP(ad_events, ts, INTERVAL '10 seconds', INTERVAL '30 minutes')";
const SESSION_1M: &str = "SESSION(ad_events, ts, INTERVAL '1 minute')";

struct Scenario {
    name: &'static str,
    windows: &'static [&'static str],
    /// A store for each view.
    apart: bool,
    deduplicated: bool,
}

const fn scenario(name: &'static str, windows: &'static [&'static str]) -> Scenario {
    Scenario { name, windows, apart: false, deduplicated: false }
}

const SCENARIOS: [Scenario; 7] = [
    scenario("TUMBLE 1m", &[TUMBLE_1M]),
    scenario("HOP 1m by 10s", &[HOP_1M]),
    scenario("HOP 1h by 10s", &[HOP_1H]),
    scenario("HOP 1m, 10m, 1h by 10s", &[HOP_1M, HOP_10M, HOP_1H]),
    Scenario { apart: true, ..scenario("the three, a store each", &[HOP_1M, HOP_10M, HOP_1H]) },
    Scenario { deduplicated: true, ..scenario("TUMBLE 1m, deduplicated", &[TUMBLE_1M]) },
    scenario("SESSION, gap 1m", &[SESSION_1M]),
];

fn main() -> Result<()> {
    let options = Options::parse();
    match (&options.scenario, &options.topic) {
        (Some(scenario), Some(topic)) => run(&options, scenario, topic),
        _ => run_all(&options),
    }
}

fn run_all(options: &Options) -> Result<()> {
    let topic = format!("bench_{}", std::process::id());
    let bytes = fill(options, &topic)?;
    println!(
        "{} events of {:.0} bytes, {} keys, {} partitions, {} workers",
        options.events,
        bytes as f64 / options.events as f64,
        options.keys,
        options.partitions,
        options.workers
    );
    println!("{:<26} {:>12} {:>16} {:>12} {:>12}", "views", "events/s", "CPU-s/M events", "peak MiB", "CREATE ms");
    for Scenario { name, .. } in SCENARIOS {
        for _ in 0..options.runs {
            let mut command = Command::new(std::env::current_exe()?);
            if let Some(folder) = &options.data_dir {
                command.args(["--data-dir", folder]);
            }
            let status = command
                .args(["--scenario", name, "--topic", &topic, "--bootstrap", &options.bootstrap])
                .args(["--events", &options.events.to_string(), "--workers", &options.workers.to_string()])
                .status()?;
            ensure!(status.success(), "scenario {name} failed");
        }
    }
    Ok(())
}

/// A fixed sequence of pseudo-random numbers (splitmix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Writes the events; they are in order of time but for three seconds of jitter. Returns their bytes.
fn fill(options: &Options, topic: &str) -> Result<u64> {
    create_topic(&options.bootstrap, topic, options.partitions)?;
    let producer = Producer::new(&options.bootstrap, &[("compression.type", "lz4"), ("linger.ms", "20")])?;
    let mut random = Random(1);
    let mut line = String::new();
    let mut bytes = 0;
    let start_ms = 1_767_225_600_000_u64;
    for n in 0..options.events {
        let ad = random.next() % options.keys;
        let bits = random.next();
        let kind = if bits.is_multiple_of(20) { "click" } else { "impression" };
        let country = ["DE", "US", "FR", "IN", "BR", "JP", "GB", "IT"][(bits >> 8) as usize % 8];
        let device = ["ios", "android", "desktop"][(bits >> 16) as usize % 3];
        let user = (bits >> 40) % 1_000_000;
        let ts = start_ms + n * options.seconds * 1000 / options.events + (bits >> 32) % 3000;
        line.clear();
        write!(
            line,
            r#"{{"event_id":"{n:x}","ad_id":{ad},"event_type":"{kind}","user_id":{user},"country":"{country}","#
        )?;
        write!(line, r#""device":"{device}","ts":{ts}}}"#)?;
        bytes += line.len() as u64;
        let partition = (n % options.partitions as u64) as i32;
        producer.send(topic, Some(partition), None, Some(line.as_bytes()), ts as i64)?;
    }
    producer.flush(Duration::from_secs(120))?;
    Ok(bytes)
}

fn run(options: &Options, scenario: &str, topic: &str) -> Result<()> {
    let Some(Scenario { windows, apart, deduplicated, .. }) = SCENARIOS.iter().find(|s| s.name == scenario) else {
        bail!("no scenario {scenario}");
    };
    let deduplicate = if *deduplicated { "DEDUPLICATE BY (event_id) WITHIN INTERVAL '1 minute'" } else { "" };
    let with = if *apart { "WITH (store = 'own')" } else { "" };
    let view = |name: &str, with: &str, window: &str| {
        format!(
            "CREATE MATERIALIZED VIEW {name} {with} AS
             SELECT ad_id, window_start, window_end, count(*) FILTER (WHERE event_type = 'click') AS clicks,
                    count(*) FILTER (WHERE event_type = 'impression') AS impressions
             FROM {window} GROUP BY ad_id, window_start, window_end"
        )
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let data = options.data_dir.as_ref().map(|folder| format!("{folder}/{}", std::process::id()));
        let kept = EngineOptions { workers: options.workers, data, ..EngineOptions::default() };
        let engine = Engine::start(kept.clone())?;
        let names = NameContext::new("dev", "bench");
        let source = format!(
            "CREATE SOURCE ad_events (event_id VARCHAR, ad_id BIGINT, event_type VARCHAR, user_id BIGINT, country VARCHAR,
               device VARCHAR, ts TIMESTAMPTZ, WATERMARK FOR ts AS ts - INTERVAL '10 seconds') {deduplicate}
             WITH (connector = 'kafka', topic = '{topic}', properties.bootstrap.server = '{}') FORMAT PLAIN ENCODE JSON",
            options.bootstrap
        );
        create(&engine, &names, &source).await?;
        let watch = Stopwatch::start();
        let before = cpu_seconds()?;
        for (i, window) in windows.iter().enumerate() {
            create(&engine, &names, &view(&format!("v{i}"), with, window)).await?;
        }
        engine.wait_for(&Name(vec!["ad_events".into()]), &names, Some(Duration::from_secs(600))).await?;
        let (seconds, cpu) = (watch.elapsed().as_secs_f64(), cpu_seconds()? - before);
        let accepted = engine.stats().accepted;
        ensure!(accepted == options.events, "{accepted} of {} events were accepted", options.events);
        let millions = options.events as f64 / 1e6;
        let peak = peak_mib()?;
        let watch = Stopwatch::start();
        let notices = create(&engine, &names, &view("one_more", "", HOP_30M)).await?;
        // Sessions and minutes have no slices of 10 seconds: there it would read the topic again.
        let shares = notices.iter().any(|notice| notice.starts_with("shares"));
        let created = if shares { format!("{:.1}", watch.elapsed().as_secs_f64() * 1000.0) } else { "-".into() };
        let rate = options.events as f64 / seconds;
        println!("{scenario:<26} {rate:>12.0} {:>16.3} {peak:>12.0} {created:>12}", cpu / millions);
        if kept.data.is_none() {
            engine.stop().await;
            return Ok(());
        }
        let written: u64 = engine.stats().checkpoints.iter().map(|checkpoint| checkpoint.bytes).sum();
        engine.crash().await;
        drop(engine);
        let watch = Stopwatch::start();
        let engine = Engine::start(kept)?;
        let answers = watch.elapsed().as_secs_f64();
        engine.wait_for(&Name(vec!["ad_events".into()]), &names, Some(Duration::from_secs(600))).await?;
        let current = watch.elapsed().as_secs_f64();
        let accepted = engine.stats().accepted;
        ensure!(accepted == options.events, "{accepted} of {} events after the crash", options.events);
        println!(
            "{:<26} {:.1} bytes written per event by then; after a crash the first answer came in {answers:.2} s, all in {current:.2} s",
            "", written as f64 / options.events as f64
        );
        engine.stop().await;
        Ok(())
    })
}

/// Returns the notices.
async fn create(engine: &Engine, names: &NameContext, text: &str) -> Result<Vec<String>> {
    let mut notices = Vec::new();
    for parsed in sql::parse(text)? {
        notices.extend(engine.create(&parsed.statement, names).await?.notices);
    }
    Ok(notices)
}

/// User and system time of this process.
fn cpu_seconds() -> Result<f64> {
    let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
    // SAFETY: the pointer is to a rusage that lives through the call, which zeroes are a valid value of.
    let usage = unsafe {
        ensure!(libc::getrusage(libc::RUSAGE_SELF, usage.as_mut_ptr()) == 0, "getrusage failed");
        usage.assume_init()
    };
    let seconds = |t: libc::timeval| t.tv_sec as f64 + t.tv_usec as f64 / 1e6;
    Ok(seconds(usage.ru_utime) + seconds(usage.ru_stime))
}

fn peak_mib() -> Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).context("no VmHWM in /proc/self/status")?;
    let kib: f64 = line.split_whitespace().nth(1).context("no figure")?.parse()?;
    Ok(kib / 1024.0)
}
