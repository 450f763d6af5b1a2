//! The rules of the house, the engine against the batch engine, Kafka, and clients: one binary, because linking is what costs.

mod db;
mod demo;
mod duplicates;
mod durable;
mod emit_every;
mod engine;
mod faults;
mod house;
mod kafka;
mod lasting_faults;
mod law;
mod limits;
mod oracle;
mod random_streams;
mod random_views;
mod random_windows;
mod reconcile;
mod sources;
mod storage_buckets;
mod subscribe;
mod week;
mod wire;
