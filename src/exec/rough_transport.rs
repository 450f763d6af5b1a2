//! A transport for tests that treats messages as a network does: turns them into bytes, holds them back, mixes them up and
//! delivers some more than once. From a seed.
//!
//! A message is one Arrow IPC stream: its rows are one batch, everything else stands in the schema's metadata as JSON.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{Field, Int64Type, Schema};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use super::dedup::{AcceptedRows, Place};
use super::exchange::{Batch, Body, Message, SourceProgress, Transport};
use super::law::PartitionProgress;
use super::rows::batch_of;
use super::slice_store::{PartialRows, StoreRows};

/// One sender's way to all owners. Messages are delivered at the latest when the sender ends its tick; copies may come
/// at any time after.
pub struct RoughTransport<D> {
    /// Hands a message to an owner.
    deliver: D,
    random: StdRng,
    /// Owner, message, and whether it has been delivered before.
    held: Vec<(usize, Vec<u8>, bool)>,
}

impl<D: FnMut(usize, Message) + Send> RoughTransport<D> {
    pub fn new(seed: u64, deliver: D) -> Self {
        RoughTransport { deliver, random: StdRng::seed_from_u64(seed), held: Vec::new() }
    }

    fn release(&mut self, goes: impl Fn(&mut StdRng, usize, bool) -> bool) {
        self.held.shuffle(&mut self.random);
        for (owner, bytes, delivered) in std::mem::take(&mut self.held) {
            if !goes(&mut self.random, owner, delivered) {
                self.held.push((owner, bytes, delivered));
                continue;
            }
            (self.deliver)(owner, from_bytes(&bytes));
            if self.random.random_bool(0.3) {
                self.held.push((owner, bytes, true));
            }
        }
    }
}

impl<D: FnMut(usize, Message) + Send> Transport for RoughTransport<D> {
    fn send(&mut self, owner: usize, message: Message) {
        let end = matches!(message.body, Body::End { .. });
        self.held.push((owner, to_bytes(&message), false));
        if end {
            self.release(|random, to, delivered| to == owner && (!delivered || random.random_bool(0.5)));
        } else {
            self.release(|random, _, _| random.random_bool(0.2));
        }
    }
}

pub fn to_bytes(message: &Message) -> Vec<u8> {
    let mut columns: Vec<(String, ArrayRef)> = Vec::new();
    let mut put = |name: String, column: ArrayRef| columns.push((name, column));
    let numbers = |values: &[i64]| Arc::new(Int64Array::from(values.to_vec())) as ArrayRef;
    let (body, rows) = match &message.body {
        Body::End { messages, progress } => {
            let progress: Vec<Value> = progress
                .iter()
                .map(|p| {
                    let partitions: Vec<Value> =
                        p.partitions.iter().map(|p| json!([p.partition, p.watermark_us, p.idle_us])).collect();
                    json!({ "source": p.source, "partitions": partitions, "offsets": p.offsets })
                })
                .collect();
            (json!({ "end": messages, "progress": progress }), 0)
        }
        Body::Accepted { source, buckets, rows } => {
            for (field, column) in rows.rows.schema().fields().iter().zip(rows.rows.columns()) {
                put(field.name().clone(), column.clone());
            }
            let buckets = [buckets.start(), buckets.end()];
            let (partitions, offsets) = (&rows.partitions, &rows.offsets);
            let body = json!({ "accepted": source, "buckets": buckets, "partitions": partitions, "offsets": offsets });
            (body, rows.rows.num_rows())
        }
        Body::Verdicts { source, changed } => {
            let changed: Vec<Value> = changed.iter().map(|(at, is)| json!([at.partition, at.offset, is])).collect();
            (json!({ "verdicts": changed, "source": source }), 0)
        }
        Body::Rows { store, buckets, batch } => {
            let buckets = [buckets.start(), buckets.end()];
            match batch {
                Batch::Raw(raw) => {
                    put("slices".into(), numbers(&raw.slices));
                    raw.keys.iter().enumerate().for_each(|(i, key)| put(format!("k{i}"), key.clone()));
                    for (m, args) in raw.args.iter().enumerate() {
                        args.iter().enumerate().for_each(|(i, arg)| put(format!("a{m}.{i}"), arg.clone()));
                    }
                    for (m, filter) in raw.filters.iter().enumerate() {
                        filter.iter().for_each(|filter| put(format!("f{m}"), Arc::new(filter.clone())));
                    }
                    raw.weights.iter().for_each(|weights| put("weights".into(), numbers(weights)));
                    let args: Vec<usize> = raw.args.iter().map(Vec::len).collect();
                    let body = json!({ "store": store, "buckets": buckets, "keys": raw.keys.len(), "args": args });
                    (body, raw.rows)
                }
                Batch::Partial(partial) => {
                    put("slices".into(), numbers(&partial.slices));
                    put("counts".into(), numbers(&partial.counts));
                    partial.keys.iter().enumerate().for_each(|(i, key)| put(format!("k{i}"), key.clone()));
                    partial.states.iter().enumerate().for_each(|(i, state)| put(format!("s{i}"), state.clone()));
                    let (keys, states) = (partial.keys.len(), partial.states.len());
                    let body = json!({ "store": store, "buckets": buckets, "keys": keys, "states": states });
                    (body, partial.slices.len())
                }
            }
        }
    };
    let head = json!([message.sender, message.epoch, message.tick, message.round, message.number, body]);
    let fields: Vec<Field> =
        columns.iter().map(|(name, column)| Field::new(name, column.data_type().clone(), true)).collect();
    let metadata = HashMap::from([("message".to_string(), head.to_string())]);
    let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    let batch = batch_of(&schema, columns, rows).expect("columns of one length");
    let mut writer = StreamWriter::try_new(Vec::new(), &schema).expect("a schema that IPC knows");
    writer.write(&batch).expect("a batch of the schema");
    writer.into_inner().expect("writes to memory")
}

pub fn from_bytes(bytes: &[u8]) -> Message {
    let mut reader = StreamReader::try_new(bytes, None).expect("what to_bytes wrote");
    let batch = reader.next().expect("one batch").expect("what to_bytes wrote");
    let head: Value = serde_json::from_str(&batch.schema().metadata()["message"]).expect("what to_bytes wrote");
    let number = |value: &Value| value.as_u64().expect("a number");
    let body = match &head[5] {
        end if !end["end"].is_null() => Body::End {
            messages: number(&end["end"]) as u32,
            progress: end["progress"].as_array().expect("a list").iter().map(progress_of).collect(),
        },
        accepted if !accepted["accepted"].is_null() => Body::Accepted {
            source: number(&accepted["accepted"]) as u32,
            buckets: RangeInclusive::new(number(&accepted["buckets"][0]) as u8, number(&accepted["buckets"][1]) as u8),
            rows: AcceptedRows {
                rows: RecordBatch::try_new(plain(&batch.schema()), batch.columns().to_vec()).expect("the same columns"),
                partitions: serde_json::from_value(accepted["partitions"].clone()).expect("numbers"),
                offsets: serde_json::from_value(accepted["offsets"].clone()).expect("numbers"),
            },
        },
        verdicts if !verdicts["verdicts"].is_null() => Body::Verdicts {
            source: number(&verdicts["source"]) as u32,
            changed: verdicts["verdicts"].as_array().expect("a list").iter().map(verdict_of).collect(),
        },
        rows => Body::Rows {
            store: number(&rows["store"]),
            buckets: RangeInclusive::new(number(&rows["buckets"][0]) as u8, number(&rows["buckets"][1]) as u8),
            batch: batch_from(&batch, rows),
        },
    };
    Message {
        sender: number(&head[0]) as u32,
        epoch: number(&head[1]),
        tick: number(&head[2]),
        round: number(&head[3]) as u8,
        number: number(&head[4]) as u32,
        body,
    }
}

fn batch_from(batch: &RecordBatch, body: &Value) -> Batch {
    let count = |name: &str| body[name].as_u64().expect("a number") as usize;
    let named = |name: String| batch.column_by_name(&name).cloned();
    let all =
        |prefix: &str, n: usize| (0..n).map(|i| named(format!("{prefix}{i}")).expect("a column")).collect::<Vec<_>>();
    let numbers = |name: &str| Some(named(name.into())?.as_primitive::<Int64Type>().values().to_vec());
    let (slices, keys) = (numbers("slices").expect("a column"), all("k", count("keys")));
    let Some(args) = body["args"].as_array() else {
        let counts = numbers("counts").expect("a column");
        return Batch::Partial(PartialRows { slices, keys, counts, states: all("s", count("states")) });
    };
    let args = args.iter().enumerate().map(|(m, n)| all(&format!("a{m}."), n.as_u64().expect("a number") as usize));
    let args: Vec<Vec<ArrayRef>> = args.collect();
    let filters = (0..args.len()).map(|m| Some(named(format!("f{m}"))?.as_boolean().clone())).collect();
    Batch::Raw(StoreRows { rows: batch.num_rows(), slices, keys, args, filters, weights: numbers("weights") })
}

fn plain(schema: &Schema) -> Arc<Schema> {
    Arc::new(Schema::new(schema.fields().clone()))
}

fn verdict_of(value: &Value) -> (Place, bool) {
    let number = |value: &Value| value.as_i64().expect("a number");
    let place = Place { partition: number(&value[0]) as i32, offset: number(&value[1]) };
    (place, value[2].as_bool().expect("a flag"))
}

fn progress_of(value: &Value) -> SourceProgress {
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let number = |value: &Value| value.as_i64().expect("a number");
    let partition = |value: &Value| PartitionProgress {
        partition: number(&value[0]) as i32,
        watermark_us: value[1].as_i64(),
        idle_us: value[2].as_i64(),
    };
    SourceProgress {
        source: number(&value["source"]) as u32,
        partitions: list(&value["partitions"]).iter().map(partition).collect(),
        offsets: list(&value["offsets"]).iter().map(|o| (number(&o[0]) as i32, number(&o[1]))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::exec::exchange::Inbox;
    use crate::exec::text::parse;

    const SENDERS: u32 = 3;
    const OWNERS: usize = 2;
    const TICKS: u64 = 12;

    fn raw(id: i64) -> Batch {
        let delta = parse(&format!("i s b\n+ {id} x t\n-2 {id} . f"));
        Batch::Raw(StoreRows {
            rows: 2,
            slices: vec![id, -id],
            keys: vec![delta.column(0).clone(), delta.column(1).clone()],
            args: vec![vec![], vec![delta.column(0).clone(), delta.column(1).clone()]],
            filters: vec![Some(delta.column(2).as_boolean().clone()), None],
            weights: delta.weights,
        })
    }

    fn partial(id: i64) -> Batch {
        let keys = vec![parse(&format!("i\n+ {id}")).column(0).clone()];
        let states = vec![parse("d\n+ 1.5").column(0).clone(), parse("f\n+ .").column(0).clone()];
        Batch::Partial(PartialRows { slices: vec![id], keys, counts: vec![2], states })
    }

    fn accepted(id: i64) -> AcceptedRows {
        let rows = parse(&format!("i s\n+ {id} x\n+ . y")).rows;
        AcceptedRows { rows, partitions: vec![0, 1], offsets: vec![id, i64::MAX] }
    }

    fn progress(sender: u32, tick: u64) -> Vec<SourceProgress> {
        let watermark_us = (tick > 3).then_some(-7);
        let partitions = vec![PartitionProgress {
            partition: sender as i32,
            watermark_us,
            idle_us: tick.is_multiple_of(2).then_some(5),
        }];
        vec![SourceProgress { source: 9, partitions, offsets: vec![(sender as i32, tick as i64)] }]
    }

    #[test]
    fn a_message_survives_its_bytes() {
        let buckets = 3..=255;
        let bodies = [
            Body::Rows { store: 7, buckets: buckets.clone(), batch: raw(5) },
            Body::Rows { store: u64::MAX, buckets: buckets.clone(), batch: partial(5) },
            Body::Accepted { source: 9, buckets, rows: accepted(7) },
            Body::Verdicts { source: 9, changed: vec![(Place { partition: 1, offset: -2 }, true)] },
            Body::End { messages: 2, progress: progress(1, 4) },
        ];
        for body in bodies {
            let message = Message { sender: 1, epoch: 2, tick: 3, round: 1, number: 4, body };
            assert_eq!(format!("{:?}", from_bytes(&to_bytes(&message))), format!("{message:?}"));
        }
    }

    /// Whatever the transport does, every owner completes every round of every tick, in order, with exactly what was sent to it
    /// in it. Every third tick has two rounds.
    #[test]
    fn every_tick_arrives_whole_and_once() {
        for seed in 0..10 {
            let inboxes: Vec<Mutex<Inbox>> = (0..OWNERS).map(|_| Mutex::new(Inbox::new(SENDERS, 1, 1))).collect();
            let deliver = |owner: usize, message: Message| inboxes[owner].lock().unwrap().accept(message);
            let mut senders: Vec<_> =
                (0..SENDERS).map(|sender| RoughTransport::new(seed * 100 + u64::from(sender), &deliver)).collect();
            let mut random = StdRng::seed_from_u64(seed);
            let rounds = |tick: u64| if tick.is_multiple_of(3) { 0..2 } else { 0..1 };
            for (tick, round) in (1..=TICKS).flat_map(|tick| rounds(tick).map(move |round| (tick, round))) {
                let last = round + 1 == rounds(tick).end;
                let mut sent = vec![Vec::new(); OWNERS];
                let mut told = Vec::new();
                for (sender, transport) in (0..SENDERS).zip(&mut senders) {
                    let mut numbers = [0; OWNERS];
                    let message = |number, body| Message { sender, epoch: 1, tick, round, number, body };
                    for _ in 0..random.random_range(0..5) {
                        let (owner, id) = (random.random_range(0..OWNERS), random.random_range(0..1000));
                        let body = match id % 4 {
                            0 => Body::Rows { store: id as u64, buckets: 0..=255, batch: raw(id) },
                            1 => Body::Rows { store: id as u64, buckets: 0..=255, batch: partial(id) },
                            2 => Body::Accepted { source: id as u32, buckets: 0..=255, rows: accepted(id) },
                            _ => Body::Verdicts { source: id as u32, changed: vec![] },
                        };
                        sent[owner].push(match &body {
                            Body::Rows { store, batch, .. } => format!("{:?}", (store, batch)),
                            Body::Accepted { source, rows, .. } => format!("{:?}", (source, rows)),
                            Body::Verdicts { source, changed } => format!("{:?}", (source, changed)),
                            Body::End { .. } => unreachable!("none is made above"),
                        });
                        transport.send(owner, message(numbers[owner], body));
                        numbers[owner] += 1;
                    }
                    for (owner, &messages) in numbers.iter().enumerate() {
                        assert!(inboxes[owner].lock().unwrap().complete(last).is_none(), "not all senders have ended");
                        let end = Body::End { messages, progress: progress(sender, tick) };
                        transport.send(owner, message(messages, end));
                    }
                    told.extend(progress(sender, tick));
                }
                for (owner, mut sent) in sent.into_iter().enumerate() {
                    let input = inboxes[owner].lock().unwrap().complete(last).expect("all senders have ended");
                    let mut came: Vec<String> = input.rows.iter().map(|rows| format!("{rows:?}")).collect();
                    came.extend(input.accepted.iter().map(|rows| format!("{rows:?}")));
                    came.extend(input.verdicts.iter().map(|verdicts| format!("{verdicts:?}")));
                    came.sort();
                    sent.sort();
                    assert_eq!(came, sent, "seed {seed}, tick {tick}, owner {owner}");
                    assert_eq!(input.progress, told);
                }
            }
        }
    }
}
