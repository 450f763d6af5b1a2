//! `riverrun demo`: a made-up stream of ad events and page views in Kafka, the views of `queries/` over it, and figures of what
//! goes on. It is built of what users have: topics, SQL, and the engine's own tables.
//!
//! ```text
//! Generator (thread) ──► embedded broker, or --kafka ──► Engine with the views of queries/ ◄── Figures ──► board
//! ```

mod board;
mod figures;
mod generator;
mod queries;

use std::io;

pub use board::{Board, show};
pub use figures::{Figures, Meter, TopAd};
pub use queries::QUERIES;

use self::generator::{Generator, Plan};
use crate::catalog::NameContext;
use crate::connector::{ConnectorError, EmbeddedBroker, ensure_topic};
use crate::engine::{Engine, EngineError};
use crate::planner::PlanError;
use crate::sql::SqlError;

/// The topics that `queries/` read.
pub const AD_EVENTS: &str = "ad_events";
pub const PAGE_VIEWS: &str = "page_views";
const PARTITIONS: i32 = 4;

/// What is made up, and where it goes.
#[derive(Debug, Clone)]
pub struct DemoOptions {
    /// A broker, `host:port`; none for one in the process.
    pub kafka: Option<String>,
    /// Ad events; page views come at a tenth of this.
    pub events_per_second: u64,
    /// Distinct ads.
    pub ads: u64,
    pub seed: u64,
    /// The generator ends after so many ad events.
    pub events: Option<u64>,
}

impl Default for DemoOptions {
    fn default() -> Self {
        DemoOptions { kafka: None, events_per_second: 20_000, ads: 100_000, seed: 1, events: None }
    }
}

/// Why the demo does not start.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The broker: correct `--kafka`, or start it.
    #[error(transparent)]
    Connector(#[from] ConnectorError),
    #[error("queries/{file}: {error}")]
    Syntax { file: &'static str, error: SqlError },
    #[error("queries/{file}: {error}")]
    Plan { file: &'static str, error: PlanError },
    #[error("queries/{file}: {error}")]
    Create { file: &'static str, error: Box<EngineError> },
    /// Free threads or memory.
    #[error("a thread cannot be started: {0}")]
    Thread(io::Error),
    #[error("the demo was interrupted while it started")]
    Interrupted,
}

/// A running demo over an engine, which it does not stop.
pub struct Demo {
    engine: Engine,
    names: NameContext,
    generator: Generator,
    /// Dropped last: the engine's readers and the generator are its clients.
    _broker: Option<EmbeddedBroker>,
}

impl Demo {
    /// Makes topics, sources and views, and begins to write.
    pub async fn start(engine: Engine, options: &DemoOptions) -> Result<Demo, DemoError> {
        let kafka = options.kafka.clone();
        let topics = tokio::task::spawn_blocking(move || make_topics(kafka)).await;
        let (broker, servers) = topics.map_err(|_| DemoError::Interrupted)??;
        let names = NameContext::new("dev", "demo");
        queries::load(&engine, &names, &servers).await?;
        let plan = Plan {
            ads: options.ads,
            seed: options.seed,
            events_per_second: options.events_per_second,
            events: options.events,
            // Only a broker that forgets what is not read in time is waited for.
            paced_partitions: broker.is_some().then_some(PARTITIONS),
        };
        let generator = Generator::start(engine.clone(), &servers, plan)?;
        Ok(Demo { engine, names, generator, _broker: broker })
    }

    /// The figures as of now.
    pub async fn look(&self, meter: &mut Meter) -> Figures {
        meter.look(&self.engine, &self.names, self.generator.trouble()).await
    }

    /// Returns when [`DemoOptions::events`] have been written and the broker has them.
    pub async fn all_sent(&mut self) {
        self.generator.finished().await;
    }

    /// Ends the generator; the broker, if it is the demo's, goes with it.
    pub async fn stop(self) {
        let Demo { generator, _broker: broker, .. } = self;
        let stop = move || {
            generator.stop();
            drop(broker);
        };
        if let Err(error) = tokio::task::spawn_blocking(stop).await {
            tracing::error!(%error, "the generator broke down");
        }
    }
}

fn make_topics(kafka: Option<String>) -> Result<(Option<EmbeddedBroker>, String), ConnectorError> {
    match kafka {
        Some(servers) => {
            for topic in [AD_EVENTS, PAGE_VIEWS] {
                if !ensure_topic(&servers, topic, PARTITIONS)? {
                    tracing::info!(topic, "the topic is there already and is written to");
                }
            }
            Ok((None, servers))
        }
        None => {
            let broker = EmbeddedBroker::start()?;
            for topic in [AD_EVENTS, PAGE_VIEWS] {
                broker.create_topic(topic, PARTITIONS)?;
            }
            let servers = broker.servers();
            Ok((Some(broker), servers))
        }
    }
}
