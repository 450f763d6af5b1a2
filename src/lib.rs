//! Riverrun: a streaming SQL engine. Kafka topics go in, any Postgres client reads the answers.
//!
//! The rooms, in the order a statement passes them:
//!
//! | room | what it does |
//! |---|---|
//! | [`sql`] | text → [`sql::Statement`]; knows no catalog |
//! | [`catalog`] | names → objects with stable OIDs; `pg_catalog`, `information_schema`, `riverrun.*` as tables |
//! | [`planner`] | statement + catalog → DataFusion's logical plan → [`planner::stream_plan::StreamPlan`] |
//! | [`exec`] | deltas in, deltas out: slices, windows, watermarks. No I/O, no clock, no async |
//! | [`connector`] | Kafka (sole user of rdkafka), generator, formats |
//! | [`storage`] | files of state, the manifest that names them, and a log; on a disk or in a bucket |
//! | [`engine`] | owns catalog, dataflows and ticks; the only place where time passes |
//! | [`server`] | session (SQL, no bytes) and wire (sole user of pgwire) |
//! | [`demo`] | a stream of made-up events through all of this |

pub mod catalog;
pub mod connector;
pub mod demo;
pub mod engine;
pub mod exec;
pub mod planner;
pub mod server;
pub mod sql;
pub mod storage;
