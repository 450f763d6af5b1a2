//! Storage through its public face: in a folder, or in the bucket of the S3 server at S3_ENDPOINT (the variables that
//! `scripts/s3 start` prints tell how to reach it).

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use riverrun::storage::{Opened, SectionRef, Storage, StorageError, backup, restore};
use serde_json::json;
use tempfile::TempDir;

/// A place of a test's own.
struct Place {
    url: String,
    in_bucket: bool,
    _folder: Option<TempDir>,
}

impl Place {
    fn new() -> Place {
        static PLACES: AtomicU32 = AtomicU32::new(0);
        if std::env::var_os("S3_ENDPOINT").is_none() {
            return Place::folder();
        }
        let n = PLACES.fetch_add(1, Ordering::Relaxed);
        let url = format!("s3://riverrun/tests/{}/{n}", std::process::id());
        Place { url, in_bucket: true, _folder: None }
    }

    fn folder() -> Place {
        let folder = TempDir::new().expect("a folder");
        // Not there yet, as a prefix is not.
        let url = folder.path().join("state").to_str().expect("UTF-8").to_string();
        Place { url, in_bucket: false, _folder: Some(folder) }
    }

    fn open(&self) -> Opened {
        Storage::open(&self.url, 7).expect("it opens")
    }
}

fn records(of: &[&str]) -> Vec<Bytes> {
    of.iter().map(|record| Bytes::copy_from_slice(record.as_bytes())).collect()
}

fn log(opened: &Opened) -> Vec<(u64, &str)> {
    opened.log.iter().map(|(n, record)| (*n, std::str::from_utf8(record).expect("text"))).collect()
}

/// Commits some sections as the whole state.
fn commit(storage: &Storage, sections: &[Bytes], log_through: u64) -> Result<u64, StorageError> {
    let sections = storage.write(sections)?;
    let files = BTreeSet::from([sections[0].file.clone()]);
    storage.commit(json!({ "sections": sections }), files, log_through, 7)
}

fn sections(opened: &Opened) -> Vec<Bytes> {
    let manifest = opened.manifest.as_ref().expect("a manifest");
    let sections: Vec<SectionRef> = serde_json::from_value(manifest.body["sections"].clone()).expect("sections");
    sections.iter().map(|section| opened.storage.read(section).expect("a section")).collect()
}

#[test]
fn state_and_log_are_there_for_the_next_process() {
    let place = Place::new();
    let first = place.open();
    assert!(first.manifest.is_none() && first.log.is_empty());
    let storage = first.storage;
    storage.append(1, &records(&["a", "b"])).expect("appended");
    // More than goes in one request.
    let large = Bytes::from((0..20 << 20).map(|i: u32| (i % 251) as u8).collect::<Vec<u8>>());
    let state = [Bytes::from_static(b"small"), large, Bytes::new()];
    assert_eq!(commit(&storage, &state, 1), Ok(2));
    storage.append(3, &records(&["c"])).expect("appended");
    drop(storage);

    let second = place.open();
    assert_eq!(log(&second), [(2, "b"), (3, "c")]);
    assert_eq!(sections(&second), state);
    assert_eq!(second.storage.generation(), 2);
    let written = second.storage.written();
    assert_eq!((written.reads, written.read_bytes), (3, 5 + (20 << 20)));
}

#[tokio::test]
async fn calls_may_come_from_a_thread_of_a_runtime() {
    let place = Place::new();
    let storage = place.open().storage;
    assert_eq!(commit(&storage, &records(&["state"]), 0), Ok(2));
}

#[test]
fn a_process_that_was_replaced_writes_nothing_more() {
    let place = Place::new();
    let old = place.open().storage;
    old.append(1, &records(&["a"])).expect("appended");
    if !place.in_bucket {
        let error = Storage::open(&place.url, 7).expect_err("one process at a time");
        assert!(matches!(error, StorageError::Locked { .. }), "{error}");
        return;
    }
    let new = place.open();
    assert_eq!(log(&new), [(1, "a")]);
    let fenced =
        |outcome: Result<(), StorageError>| assert!(matches!(outcome, Err(StorageError::Fenced { .. })), "{outcome:?}");
    fenced(old.append(2, &records(&["lost?"])));
    fenced(old.append(2, &records(&["lost?"])));
    fenced(old.commit(json!(1), BTreeSet::new(), 1, 7).map(drop));
    fenced(old.sweep().map(drop));
    new.storage.append(2, &records(&["b"])).expect("appended");
    assert_eq!(commit(&new.storage, &records(&["state"]), 2), Ok(3));

    let third = place.open();
    assert_eq!(sections(&third), records(&["state"]));
    let again = place.open();
    // Not told by the log, but by the manifest.
    fenced(third.storage.commit(json!(1), BTreeSet::new(), 2, 7).map(drop));
    assert_eq!(sections(&again), records(&["state"]));
}

#[test]
fn a_sweep_leaves_what_is_needed() {
    let place = Place::new();
    let storage = place.open().storage;
    for n in 1..=5 {
        storage.append(n, &records(&["r"])).expect("appended");
        commit(&storage, &records(&[&format!("state {n}")]), n).expect("committed");
    }
    let swept = storage.sweep().expect("swept");
    assert_eq!((swept.files, swept.manifests, swept.log_groups), (3, 4, 4));
    assert_eq!(storage.sweep().expect("swept").files, 0);
    drop(storage);
    let opened = place.open();
    assert_eq!(sections(&opened), records(&["state 5"]));
    assert_eq!(log(&opened), []);
}

#[test]
fn a_backup_of_a_running_process_is_restored() {
    let (place, copy, target) = (Place::new(), Place::folder(), Place::new());
    let storage = place.open().storage;
    assert!(matches!(backup(&target.url, &copy.url), Err(StorageError::NotFound { .. })), "there is nothing to copy");
    storage.append(1, &records(&["a", "b"])).expect("appended");
    commit(&storage, &records(&["one"]), 1).expect("committed");
    commit(&storage, &records(&["two", "three"]), 1).expect("committed");
    storage.append(3, &records(&["c"])).expect("appended");

    let copied = backup(&place.url, &copy.url).expect("copied");
    assert_eq!((copied.manifest, copied.files, copied.log_records), (3, 1, 2));
    let refused = backup(&place.url, &copy.url).expect_err("refused");
    assert!(matches!(refused, StorageError::NotEmpty { .. }), "{refused}");
    storage.append(4, &records(&["later"])).expect("the process goes on");

    restore(&copy.url, &target.url).expect("restored");
    let opened = target.open();
    assert_eq!(sections(&opened), records(&["two", "three"]));
    assert_eq!(log(&opened), [(2, "b"), (3, "c")]);
    opened.storage.append(4, &records(&["d"])).expect("appended");
}

#[test]
fn a_bucket_that_is_not_there_is_said_so() {
    if std::env::var_os("S3_ENDPOINT").is_some() {
        let error = Storage::open("s3://nobody-has-made-this/x", 7).expect_err("refused").to_string();
        assert_eq!(error, "s3://nobody-has-made-this/x is no place to keep data: there is no such bucket");
    }
}
