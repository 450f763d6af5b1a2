//! Processes that take the state from each other, crash, and lose answers, on a simulated disk.
//!
//! The state of a process is the list of all records, and it keeps it in sections: a data file for each commit. So whatever was
//! acknowledged with a number must be in the final state in that place, once, whoever committed or replayed it.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use proptest::prelude::*;
use serde_json::json;

use super::copying::copy;
use super::sim::{Faults, Kind, SimDisk, Turn, Turns};
use super::{Blobs, IfDamaged, Opened, SectionRef, Storage, StorageError};

#[derive(Debug, Clone, Copy)]
enum Step {
    Append(usize),
    Commit,
    Sweep,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![4 => (1..4usize).prop_map(Step::Append), 2 => Just(Step::Commit), 1 => Just(Step::Sweep)];
    prop::collection::vec(step, 0..8)
}

/// What the outside has been told.
#[derive(Default)]
struct Told {
    /// Numbers of records, and what they are.
    records: Vec<(u64, String)>,
    /// Numbers of manifests, and who committed them.
    manifests: Vec<(u64, u64)>,
}

/// How often a call is made again before a process gives up.
const TRIES: usize = 6;

fn again<T>(mut call: impl FnMut() -> Result<T, StorageError>) -> Result<T, StorageError> {
    let mut outcome = call();
    for _ in 1..TRIES {
        match outcome {
            Err(error) if error.is_retryable() => outcome = call(),
            outcome => return outcome,
        }
    }
    outcome
}

fn text(record: &Bytes) -> String {
    String::from_utf8(record.to_vec()).expect("text")
}

/// All records, from the files of the manifest and the log.
fn state(opened: &Opened) -> Result<Vec<String>, StorageError> {
    let mut records = Vec::new();
    if let Some(manifest) = &opened.manifest {
        let sections: Vec<SectionRef> = serde_json::from_value(manifest.body["sections"].clone()).expect("sections");
        for section in &sections {
            let bytes = again(|| opened.storage.read(section))?;
            records.extend(text(&bytes).lines().map(str::to_string));
        }
        assert_eq!(records.len() as u64, manifest.log_through);
    }
    for (number, record) in &opened.log {
        assert_eq!(*number, records.len() as u64 + 1, "the log goes on where the state ends");
        records.push(text(record));
    }
    Ok(records)
}

/// A life: take over, do the steps, and end, early if fenced or if something goes on failing.
fn live(blobs: Arc<dyn Blobs>, writer: u64, steps: &[Step], told: &Mutex<Told>) -> Result<(), StorageError> {
    let opened = Storage::open_with(blobs, writer, 0, IfDamaged::Refuse)?;
    let mut records = state(&opened)?;
    let storage = opened.storage;
    for (i, step) in steps.iter().enumerate() {
        match step {
            Step::Append(count) => {
                let group: Vec<String> = (0..*count).map(|n| format!("{writer}.{i}.{n}")).collect();
                let bytes: Vec<Bytes> = group.iter().map(|record| Bytes::from(record.clone())).collect();
                let mut done = 0;
                while done < *count {
                    let first = records.len() as u64 + 1;
                    let mut until = done;
                    // A group may have grown when it is tried again.
                    again(|| {
                        until = (until + 1).min(*count);
                        storage.append(first, &bytes[done..until])
                    })?;
                    told.lock().records.extend((first..).zip(group[done..until].iter().cloned()));
                    records.extend_from_slice(&group[done..until]);
                    done = until;
                }
            }
            Step::Commit => {
                let (one, two) = records.split_at(records.len() / 2);
                let lines = |records: &[String]| Bytes::from(records.join("\n"));
                let number = again(|| {
                    let sections = storage.write(&[lines(one), lines(two)])?;
                    let files = BTreeSet::from([sections[0].file.clone()]);
                    storage.commit(json!({ "sections": sections }), files, records.len() as u64, 0)
                })?;
                told.lock().manifests.push((number, writer));
            }
            Step::Sweep => {
                again(|| storage.sweep())?;
            }
        }
    }
    Ok(())
}

/// Fails unless everything that was told is in the final state.
fn check(disk: &SimDisk, told: &Told) {
    disk.set_faults(Faults::default());
    // What a dead process had put may still arrive, and looks as if it were alive.
    let arrives = |outcome: &Result<Opened, StorageError>| matches!(outcome, Err(StorageError::Fenced { .. }));
    let mut outcome = Storage::open_with(disk.process(), 999, 0, IfDamaged::Refuse);
    while arrives(&outcome) {
        outcome = Storage::open_with(disk.process(), 999, 0, IfDamaged::Refuse);
    }
    let opened = outcome.expect("it opens without faults");
    let records = state(&opened).expect("it is read without faults");
    for (number, record) in &told.records {
        assert_eq!(records.get(*number as usize - 1), Some(record), "record {number} of {records:?}");
    }
    let unique: BTreeSet<&String> = records.iter().collect();
    assert_eq!(unique.len(), records.len(), "no record is there twice: {records:?}");
    let numbers: BTreeSet<u64> = told.manifests.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers.len(), told.manifests.len(), "each number has one winner: {:?}", told.manifests);
}

/// What may end a life; all else is a fault of ours.
fn ends_well(outcome: Result<(), StorageError>) {
    match outcome {
        Ok(()) | Err(StorageError::Fenced { .. }) => {}
        Err(error) if error.is_retryable() => {}
        Err(error) => panic!("{error}"),
    }
}

type Body<'a, T> = Box<dyn FnOnce(Turn) -> T + Send + 'a>;

fn records(of: &[&str]) -> Vec<Bytes> {
    of.iter().map(|record| Bytes::copy_from_slice(record.as_bytes())).collect()
}

/// A process that has been away while another committed several times and swept.
#[test]
fn the_free_place_of_a_swept_manifest_is_no_way_back() {
    let disk = SimDisk::new(Kind::Bucket, 1);
    let old = Storage::open_with(disk.process(), 1, 0, IfDamaged::Refuse).expect("it opens").storage;
    let new = Storage::open_with(disk.process(), 2, 0, IfDamaged::Refuse).expect("it opens").storage;
    for n in 1..5 {
        assert_eq!(new.commit(json!(n), BTreeSet::new(), 0, 0), Ok(n + 2));
    }
    new.sweep().expect("swept");
    assert!(!disk.names().contains(&super::Manifest::name(2)), "the place is free");
    let fenced = |outcome| assert!(matches!(outcome, Err(StorageError::Fenced { .. })), "{outcome:?}");
    fenced(old.commit(json!("old"), BTreeSet::new(), 0, 0));
    fenced(old.commit(json!("old"), BTreeSet::new(), 0, 0));
    let third = Storage::open_with(disk.process(), 3, 0, IfDamaged::Refuse).expect("it opens");
    assert_eq!(third.manifest.expect("a manifest").body, json!(4));
}

/// One process stops at some call of its `open` while another lives; then it goes on.
#[test]
fn no_two_processes_have_one_generation() {
    for pause in 0..12 {
        let disk = SimDisk::new(Kind::Bucket, 1);
        Storage::open_with(disk.process(), 1, 0, IfDamaged::Refuse).expect("it opens");
        let slow: Body<Option<u64>> = Box::new(|turn| {
            let opened = Storage::open_with(disk.process_in_turns(turn), 2, 0, IfDamaged::Refuse);
            opened.ok().map(|opened| opened.storage.generation())
        });
        let quick: Body<Option<u64>> = Box::new(|turn| {
            let storage =
                Storage::open_with(disk.process_in_turns(turn), 3, 0, IfDamaged::Refuse).expect("it opens").storage;
            for n in 0..4 {
                storage.commit(json!(n), BTreeSet::new(), 0, 0).expect("committed");
            }
            storage.sweep().expect("swept");
            Some(storage.generation())
        });
        let mut calls = 0;
        let generations = Turns::run(vec![slow, quick], |waiting| {
            calls += 1;
            if calls <= pause { 0 } else { waiting - 1 }
        });
        assert_ne!(generations[0], generations[1], "it stopped after {pause} calls");
    }
}

/// While a group is under way another takes over; and the answer to a group is lost.
#[test]
fn an_append_counts_once_or_is_fenced() {
    let disk = SimDisk::new(Kind::Bucket, 1);
    let old = Storage::open_with(disk.process(), 1, 0, IfDamaged::Refuse).expect("it opens").storage;
    disk.set_faults(Faults { after: 1.0, ..Faults::default() });
    // The second put, which is to tell what became of the first, fails as well.
    assert!(old.append(1, &records(&["a"])).expect_err("its answer is lost").is_retryable());
    let error = old.append(1, &records(&["other"])).expect_err("refused");
    assert!(error.is_retryable(), "{error}");
    disk.set_faults(Faults::default());
    let error = old.append(1, &records(&["other"])).expect_err("refused").to_string();
    assert_eq!(error, "broken invariant: the log holds other records from 1 on, of an append that was given up");
    old.append(1, &records(&["a", "b"])).expect("the first is there, the second is new");
    let new = Storage::open_with(disk.process(), 2, 0, IfDamaged::Refuse).expect("it opens");
    assert_eq!(new.log, (1..).zip(records(&["a", "b"])).collect::<Vec<_>>());
    assert!(matches!(old.append(3, &records(&["c"])), Err(StorageError::Fenced { .. })));
    new.storage.append(3, &records(&["c"])).expect("appended");
}

fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases.max(300), failure_persistence: None, ..default }
}

proptest! {
    #![proptest_config(config())]

    /// Three processes on a bucket, each thinking that it is alone.
    #[test]
    fn takeovers_lose_nothing(
        seed in any::<u64>(),
        before in steps(),
        lives in prop::collection::vec(steps(), 2..4),
        order in prop::collection::vec(any::<u8>(), 200),
        faults in prop::bool::ANY,
    ) {
        let disk = SimDisk::new(Kind::Bucket, seed);
        let told = Mutex::new(Told::default());
        ends_well(live(disk.process(), 1, &before, &told));
        if faults {
            disk.set_faults(Faults { before: 0.03, after: 0.05, late: 0.05, delay: 3 });
        }
        let threads = lives.iter().zip(2..).map(|(steps, writer)| {
            let (disk, told) = (&disk, &told);
            let body = move |turn| ends_well(live(disk.process_in_turns(turn), writer, steps, told));
            Box::new(body) as Body<()>
        });
        let mut order = order.into_iter().cycle();
        Turns::run(threads.collect(), |_| order.next().map_or(0, usize::from));
        check(&disk, &told.into_inner());
    }

    /// One process after the other in a folder, each killed at some call.
    #[test]
    fn crashes_lose_nothing(
        seed in any::<u64>(),
        local in prop::bool::ANY,
        lives in prop::collection::vec((steps(), 1..60u64), 1..6),
        torn in prop::option::of(0..6usize),
        faults in prop::bool::ANY,
    ) {
        let disk = SimDisk::new(if local { Kind::Local } else { Kind::Bucket }, seed);
        let told = Mutex::new(Told::default());
        // Of the first manifest there is none before it.
        ends_well(live(disk.process(), 0, &[], &told));
        if faults {
            disk.set_faults(Faults { before: 0.05, after: 0.05, late: 0.03, delay: 0 });
        }
        for (i, (steps, crash)) in lives.iter().enumerate() {
            disk.crash_in(*crash);
            if torn == Some(i) {
                disk.tear_manifest();
            }
            ends_well(live(disk.process(), i as u64 + 1, steps, &told));
            disk.crash();
        }
        check(&disk, &told.into_inner());
    }

    /// A copy is made while a process commits, appends and sweeps.
    #[test]
    fn a_copy_is_a_state(
        seed in any::<u64>(),
        before in steps(),
        during in prop::collection::vec(steps(), 1..4),
        order in prop::collection::vec(any::<u8>(), 200),
    ) {
        let (disk, target) = (SimDisk::new(Kind::Bucket, seed), SimDisk::new(Kind::Bucket, seed));
        let told = Mutex::new(Told::default());
        ends_well(live(disk.process(), 1, &before, &told));
        let acknowledged = told.lock().records.clone();
        let writer: Body<Option<StorageError>> = Box::new(|turn| {
            ends_well(live(disk.process_in_turns(turn), 2, &during.concat(), &told));
            None
        });
        let copier: Body<Option<StorageError>> =
            Box::new(|turn| copy(&*disk.process_in_turns(turn), &*target.process()).err());
        let mut order = order.into_iter().cycle();
        let outcomes = Turns::run(vec![writer, copier], |_| order.next().map_or(0, usize::from));
        prop_assert_eq!(&outcomes[1], &None);
        check(&target, &Told { records: acknowledged, manifests: Vec::new() });
        let copied = state(&Storage::open_with(target.process(), 3, 0, IfDamaged::Refuse).expect("it opens")).expect("it is read");
        let all = state(&Storage::open_with(disk.process(), 4, 0, IfDamaged::Refuse).expect("it opens")).expect("it is read");
        prop_assert!(all.starts_with(&copied), "{:?} is how {:?} began", copied, all);
    }
}
