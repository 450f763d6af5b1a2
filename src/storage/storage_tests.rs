//! A storage in a local folder, with real files.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{IfDamaged, Manifest, Opened, SectionRef, Storage, StorageError};

fn open(dir: &TempDir) -> Opened {
    Storage::open(url(dir), 7).expect("it opens")
}

fn fails(dir: &TempDir) -> StorageError {
    Storage::open(url(dir), 7).expect_err("it does not open")
}

fn url(dir: &TempDir) -> &str {
    dir.path().to_str().expect("a path in UTF-8")
}

fn records(of: &[&str]) -> Vec<Bytes> {
    of.iter().map(|record| Bytes::copy_from_slice(record.as_bytes())).collect()
}

fn log(opened: &Opened) -> Vec<(u64, &str)> {
    opened.log.iter().map(|(n, record)| (*n, std::str::from_utf8(record).expect("text"))).collect()
}

/// Writes a file with one section and commits it as the whole state.
fn commit(storage: &Storage, what: &str, log_through: u64) -> SectionRef {
    let section = storage.write(&records(&[what])).expect("written").remove(0);
    let files = BTreeSet::from([section.file.clone()]);
    storage.commit(json!({ "section": section }), files, log_through, 7).expect("committed");
    section
}

fn section(body: &Value) -> SectionRef {
    serde_json::from_value(body["section"].clone()).expect("a section")
}

fn names(dir: &TempDir, folder: &str) -> Vec<String> {
    let entries = fs::read_dir(dir.path().join(folder)).expect("a folder");
    let mut names: Vec<String> =
        entries.map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8")).collect();
    names.sort();
    names
}

fn newest(dir: &TempDir) -> PathBuf {
    dir.path().join("manifest").join(names(dir, "manifest").pop().expect("a manifest"))
}

fn change(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).expect("a file");
    change(&mut bytes);
    fs::write(path, bytes).expect("written");
}

#[test]
fn what_was_committed_is_there_after_a_restart() {
    let dir = TempDir::new().expect("a folder");
    let first = open(&dir);
    assert_eq!((first.manifest, first.log, first.storage.generation()), (None, Vec::new(), 1));
    let storage = first.storage;
    storage.append(1, &records(&["a", "b", "c"])).expect("appended");
    let sections = storage.write(&records(&["one", "", "three"])).expect("written");
    let files = BTreeSet::from([sections[0].file.clone()]);
    assert_eq!(storage.commit(json!({ "sections": sections }), files.clone(), 2, 8), Ok(2));
    storage.append(4, &records(&["d"])).expect("appended");
    drop(storage);

    let second = open(&dir);
    assert_eq!(log(&second), [(3, "c"), (4, "d")]);
    let manifest = second.manifest.expect("a manifest");
    assert_eq!((manifest.number, manifest.generation, manifest.committed_at_us), (2, 1, 8));
    assert_eq!((manifest.log_through, manifest.files), (2, files.into_iter().collect()));
    let sections: Vec<SectionRef> = serde_json::from_value(manifest.body["sections"].clone()).expect("sections");
    let read: Vec<Bytes> = sections.iter().map(|section| second.storage.read(section).expect("read")).collect();
    assert_eq!(read, records(&["one", "", "three"]));
    assert_eq!(second.storage.generation(), 2);
    second.storage.append(5, &records(&["e"])).expect("appended");
    drop(second.storage);

    assert_eq!(log(&open(&dir)), [(3, "c"), (4, "d"), (5, "e")]);
}

#[test]
fn one_process_at_a_time() {
    let dir = TempDir::new().expect("a folder");
    let first = open(&dir);
    let error = fails(&dir);
    assert_eq!(error, StorageError::Locked { location: url(&dir).into(), pid: Some(std::process::id()) });
    drop(first);
    assert_eq!(open(&dir).storage.generation(), 2);
}

#[test]
fn a_changed_byte_is_not_read_as_good() {
    let dir = TempDir::new().expect("a folder");
    let storage = open(&dir).storage;
    let section = commit(&storage, "some state", 0);
    change(&dir.path().join(&section.file), |bytes| bytes[section.offset as usize + 3] ^= 1);
    let error = storage.read(&section).expect_err("damaged").to_string();
    assert_eq!(error, format!("{} (bytes 56 to 66) is damaged: its checksum is another", section.file));
    change(&dir.path().join(&section.file), |bytes| bytes.truncate(60));
    let error = storage.read(&section).expect_err("damaged").to_string();
    assert_eq!(error, format!("{} (bytes 56 to 66) is damaged: it has 60 bytes", section.file));
}

/// A place with the state `kept` and after it the state `lost`, and three records.
fn with_two_states() -> (TempDir, SectionRef, SectionRef) {
    let dir = TempDir::new().expect("a folder");
    let storage = open(&dir).storage;
    storage.append(1, &records(&["a"])).expect("appended");
    let kept = commit(&storage, "kept", 1);
    storage.append(2, &records(&["b"])).expect("appended");
    let lost = commit(&storage, "lost", 2);
    storage.append(3, &records(&["c"])).expect("appended");
    storage.sweep().expect("swept");
    (dir, kept, lost)
}

fn open_damaged(dir: &TempDir) -> Opened {
    let blobs = super::at(url(dir)).expect("a place");
    Storage::open_with(blobs, 9, 7, IfDamaged::GoOn).expect("it opens")
}

#[test]
fn a_manifest_that_is_cut_short_gives_way_to_the_one_before_it() {
    for length in [0, 10, 30, 100] {
        let (dir, kept, lost) = with_two_states();
        change(&newest(&dir), |bytes| bytes.truncate(length));
        let opened = open(&dir);
        let fallback = opened.fallback.as_deref().expect("a fallback");
        assert!(fallback.contains("manifest/00000000000000000003"), "{fallback}");
        assert_eq!(log(&opened), [(2, "b"), (3, "c")]);
        assert_eq!(section(&opened.manifest.expect("a manifest").body), kept);
        assert_eq!(opened.storage.generation(), 3, "the damaged manifest may have raised it");
        let next = commit(&opened.storage, "next", 3);
        opened.storage.sweep().expect("swept");
        assert!(!dir.path().join(&lost.file).exists());
        drop(opened.storage);
        let opened = open(&dir);
        assert_eq!((section(&opened.manifest.expect("a manifest").body), opened.fallback), (next, None));
    }
}

#[test]
fn a_manifest_that_is_damaged_gives_way_only_if_it_may() {
    let damages: [fn(&mut Vec<u8>); 5] = [
        |bytes| bytes[0] ^= 1,
        |bytes| bytes[18] ^= 1,
        |bytes| bytes[60] ^= 4,
        |bytes| bytes.fill(0),
        |bytes| bytes.push(b' '),
    ];
    for damage in damages {
        let (dir, kept, _) = with_two_states();
        change(&newest(&dir), damage);
        let error = fails(&dir);
        assert!(error.is_damage() && error.to_string().contains("manifest/00000000000000000003"), "{error}");
        let opened = open_damaged(&dir);
        let fallback = opened.fallback.as_deref().expect("a fallback");
        assert!(fallback.contains("manifest/00000000000000000003"), "{fallback}");
        assert_eq!(section(&opened.manifest.expect("a manifest").body), kept);
    }
}

#[test]
fn a_missing_file_is_noticed() {
    let (dir, _, lost) = with_two_states();
    fs::remove_file(dir.path().join(&lost.file)).expect("removed");
    let expected = format!("manifest/00000000000000000003 is damaged: its file {} is not there", lost.file);
    assert_eq!(fails(&dir).to_string(), expected);
    let opened = open_damaged(&dir);
    assert!(opened.fallback.expect("a fallback").contains(&lost.file));
    let section = section(&opened.manifest.expect("a manifest").body);
    assert_eq!(section, lost, "what is in other files is not lost");
    assert!(matches!(opened.storage.read(&section), Err(StorageError::NotFound { .. })));
}

#[test]
fn without_a_whole_manifest_nothing_opens() {
    let dir = TempDir::new().expect("a folder");
    commit(&open(&dir).storage, "state", 0);
    for name in names(&dir, "manifest") {
        change(&dir.path().join("manifest").join(name), |bytes| bytes.truncate(30));
    }
    let error = fails(&dir).to_string();
    for name in ["manifest/00000000000000000001", "manifest/00000000000000000002"] {
        assert!(error.contains(name), "{error}");
    }
    for name in names(&dir, "manifest") {
        fs::remove_file(dir.path().join("manifest").join(name)).expect("removed");
    }
    assert!(fails(&dir).to_string().contains("there is no manifest, and yet data/"));
}

#[test]
fn a_newer_format_is_refused() {
    let dir = TempDir::new().expect("a folder");
    open(&dir);
    change(&newest(&dir), |bytes| {
        let at = bytes.iter().position(|byte| *byte == b'\n').expect("a line");
        let rest = bytes.split_off(at + 1);
        let checksum = twox_hash::XxHash3_64::oneshot_with_seed(2, &rest);
        *bytes = format!("riverrun manifest 2 {checksum:016x} {}\n", rest.len()).into_bytes();
        bytes.extend(rest);
    });
    let error = fails(&dir);
    assert_eq!(
        error,
        StorageError::NewerFormat { file: Manifest::name(1), format: 2, known: 1 },
        "only a whole manifest is newer, a changed byte is not"
    );
}

#[test]
fn a_folder_with_something_else_is_left_alone() {
    let dir = TempDir::new().expect("a folder");
    fs::write(dir.path().join("thesis.txt"), "three years").expect("written");
    let found = "thesis.txt".to_string();
    assert_eq!(fails(&dir), StorageError::NotRiverrun { location: url(&dir).into(), found });
    assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 1);
    let file = dir.path().join("thesis.txt");
    let error = Storage::open(file.to_str().expect("UTF-8"), 7).expect_err("a file is no folder");
    assert!(matches!(error, StorageError::NotRiverrun { .. }), "{error}");
}

#[test]
fn folders_on_the_way_are_made() {
    let dir = TempDir::new().expect("a folder");
    let url = format!("file://{}/a/b", url(&dir));
    drop(Storage::open(&url, 7).expect("it opens"));
    assert_eq!(Storage::open(&url, 7).expect("it opens").storage.generation(), 2);
}

#[test]
fn a_folder_that_goes_away_gets_nothing_until_it_is_back() {
    let dir = TempDir::new().expect("a folder");
    let place = dir.path().join("state");
    let storage = Storage::open(place.to_str().expect("UTF-8"), 7).expect("it opens").storage;
    storage.append(1, &records(&["a"])).expect("appended");
    let section = commit(&storage, "state", 1);
    let away = dir.path().join("away");
    let append = || storage.append(2, &records(&["b"]));
    let write = || storage.write(&[Bytes::from("more")]).map(drop);
    let read = || storage.read(&section).map(drop);
    type Call<'a> = &'a dyn Fn() -> Result<(), StorageError>;
    let calls: [(PathBuf, &[Call<'_>]); 3] = [
        (place.clone(), &[&append, &write, &read]),
        (place.join("data"), &[&write, &read]),
        (place.join("log"), &[&append]),
    ];
    for (from, calls) in calls {
        fs::rename(&from, &away).expect("moved");
        for call in calls {
            let error = call().expect_err("it is away");
            assert!(error.is_retryable(), "{from:?}: {error}");
        }
        assert!(!from.exists(), "it was made anew");
        fs::rename(&away, &from).expect("moved back");
    }
    assert_eq!(storage.read(&section).expect("it is back"), "state");
    storage.append(2, &records(&["b"])).expect("appended");
    commit(&storage, "more", 2);
    drop(storage);
    // Another folder of the same name is not it.
    let storage = Storage::open(place.to_str().expect("UTF-8"), 7).expect("it opens").storage;
    fs::rename(&place, dir.path().join("old")).expect("moved");
    drop(Storage::open(place.to_str().expect("UTF-8"), 7).expect("it opens").storage);
    let error = storage.append(3, &records(&["c"])).expect_err("refused").to_string();
    assert_eq!(error, format!("using {}: it has been removed or replaced since the start", place.display()));
}

#[test]
fn permission_lost_is_told_and_comes_back() {
    use std::os::unix::fs::PermissionsExt;
    let dir = TempDir::new().expect("a folder");
    let storage = open(&dir).storage;
    let allow = |mode| {
        for folder in ["tmp", "data", "manifest", "log"] {
            fs::set_permissions(dir.path().join(folder), fs::Permissions::from_mode(mode)).expect("changed");
        }
    };
    allow(0o500);
    // SAFETY: it only asks.
    if unsafe { libc::geteuid() } != 0 {
        let error = storage.write(&records(&["x"])).expect_err("no right");
        assert!(matches!(error, StorageError::Denied { .. }) && error.is_retryable(), "{error}");
    }
    allow(0o700);
    commit(&storage, "x", 0);
}

#[test]
fn a_sweep_keeps_what_two_manifests_name() {
    let dir = TempDir::new().expect("a folder");
    let storage = open(&dir).storage;
    let mut sections = Vec::new();
    for n in 1..=4 {
        storage.append(n, &records(&["r"])).expect("appended");
        sections.push(commit(&storage, &format!("state {n}"), n));
    }
    let unnamed = storage.write(&records(&["to be named"])).expect("written").remove(0);
    let discarded = storage.write(&records(&["never named"])).expect("written").remove(0);
    storage.discard(&discarded.file);
    let swept = storage.sweep().expect("swept");
    assert_eq!((swept.files, swept.manifests, swept.log_groups), (3, 3, 3));
    let file = |section: &SectionRef| section.file.strip_prefix("data/").expect("a data file").to_string();
    assert_eq!(names(&dir, "data"), [file(&sections[2]), file(&sections[3]), file(&unnamed)]);
    assert_eq!(names(&dir, "manifest"), ["00000000000000000004", "00000000000000000005"]);
    assert_eq!(names(&dir, "log"), ["0000000001-00000000000000000004"]);
    drop(storage);

    let storage = open(&dir).storage;
    storage.append(5, &records(&["s"])).expect("appended");
    commit(&storage, "state 5", 5);
    commit(&storage, "state 6", 5);
    storage.sweep().expect("swept");
    // The seal of the first generation, and the last group: that the log ended there cannot be read off what follows.
    assert_eq!(names(&dir, "log"), ["0000000001-00000000000000000005", "0000000002-00000000000000000005"]);
    assert_eq!(names(&dir, "data").len(), 2);
    drop(storage);
    assert_eq!(log(&open(&dir)), []);
}

#[test]
fn calls_that_make_no_sense_are_refused() {
    let dir = TempDir::new().expect("a folder");
    let storage = open(&dir).storage;
    storage.append(1, &records(&["a", "b"])).expect("appended");
    let refused = |result: Result<(), StorageError>| assert!(matches!(result, Err(StorageError::Invariant(_))));
    refused(storage.append(2, &records(&["c"])));
    refused(storage.append(4, &records(&["c"])));
    refused(storage.commit(Value::Null, BTreeSet::new(), 3, 7).map(drop));
    commit(&storage, "x", 2);
    refused(storage.commit(Value::Null, BTreeSet::new(), 1, 7).map(drop));
    for file in ["../thesis.txt", "data/../../thesis.txt", "/etc/passwd", "data/", "lock"] {
        let section = SectionRef { file: file.into(), offset: 0, bytes: 1, checksum: 0 };
        assert!(matches!(storage.read(&section), Err(StorageError::Corrupt { .. })), "{file}");
    }
}

#[test]
fn a_missing_group_of_the_log_is_no_silent_gap() {
    let dir = TempDir::new().expect("a folder");
    let storage = open(&dir).storage;
    for n in 1..=3 {
        storage.append(n, &records(&["r"])).expect("appended");
    }
    drop(storage);
    fs::remove_file(dir.path().join("log/0000000001-00000000000000000002")).expect("removed");
    let error = fails(&dir).to_string();
    assert!(error.contains("the log goes on with record 3, and not with 2"), "{error}");
}

#[test]
fn a_damaged_group_of_the_log_is_told() {
    let dir = TempDir::new().expect("a folder");
    open(&dir).storage.append(1, &records(&["record"])).expect("appended");
    change(&dir.path().join("log/0000000001-00000000000000000001"), |bytes| bytes.truncate(80));
    let error = fails(&dir).to_string();
    assert_eq!(error, "log/0000000001-00000000000000000001 is damaged: it is cut short");
}

#[test]
fn figures_count_what_was_done() {
    let dir = TempDir::new().expect("a folder");
    let storage = open(&dir).storage;
    let before = storage.written();
    storage.append(1, &records(&["a", "b"])).expect("appended");
    let section = commit(&storage, "state", 2);
    storage.read(&section).expect("read");
    let after = storage.written();
    assert_eq!((after.files, after.manifests, after.log_groups, after.log_records), (1, 1, 1, 2));
    assert_eq!((after.reads, after.read_bytes), (1, 5));
    let on_disk = |folder: &str, name: &str| fs::metadata(dir.path().join(folder).join(name)).expect("a file").len();
    let bytes = on_disk("data", section.file.strip_prefix("data/").expect("a data file"))
        + on_disk("manifest", "00000000000000000002")
        + on_disk("log", "0000000001-00000000000000000001");
    assert_eq!(after.written_bytes, bytes);
    assert_eq!(after.syncs - before.syncs, 6, "each blob and its folder");
}
