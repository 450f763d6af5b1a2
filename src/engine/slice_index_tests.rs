//! The index against a model of what is to be found, over checkpoints, packing and restarts.

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;

use super::*;
use crate::storage::IfDamaged;
use crate::storage::sim::{Kind, SimDisk};

fn at(node: u32, slice: i64) -> SliceKey {
    SliceKey::of(node, slice)
}

/// What is to be found: by part and slice a text that its section has.
type Model = BTreeMap<(String, SliceKey), String>;

struct Run {
    storage: Storage,
    index: SliceIndex,
    model: Model,
    live: BTreeSet<String>,
    texts: u64,
}

impl Run {
    fn new() -> Run {
        let disk = SimDisk::new(Kind::Local, 1);
        let storage = Storage::open_with(disk.process(), 1, 7, IfDamaged::Refuse).expect("it opens").storage;
        Run { storage, index: SliceIndex::default(), model: Model::new(), live: BTreeSet::new(), texts: 0 }
    }

    fn slice(&mut self, part: &str, key: SliceKey) -> SliceToWrite {
        self.texts += 1;
        let text = format!("{part} {key:?} as of {}", self.texts);
        let section = encode(&Saved { notes: json!(text), ..Saved::default() }).expect("encoded");
        self.model.insert((part.into(), key), text);
        SliceToWrite { part: part.into(), key, rows: self.texts, in_memory: 8, section }
    }

    /// A checkpoint of a part that is saved whole, and has `there`.
    fn anew(&mut self, part: &str, there: &[(u32, i64)], written: &[(u32, i64)], panes_stay: bool) {
        self.live.insert(part.into());
        let there: BTreeSet<(u32, i64)> = there.iter().copied().collect();
        let copies = self.index.begin_anew(part, &there, &written.iter().copied().collect(), &[], panes_stay);
        let copies = copies.expect("begun");
        if !copies.is_empty() {
            self.index.write(&self.storage, &copies).expect("written");
        }
        let stays = |key: &SliceKey| if key.level > 0 { panes_stay } else { there.contains(&(key.node, key.slice)) };
        self.model.retain(|(of, key), _| of != part || stays(key));
        let slices: Vec<SliceToWrite> =
            written.iter().map(|&(node, slice)| self.slice(part, at(node, slice))).collect();
        self.write(slices);
    }

    fn write(&mut self, slices: Vec<SliceToWrite>) {
        if !slices.is_empty() {
            self.index.write(&self.storage, &slices).expect("written");
        }
    }

    fn forget(&mut self, part: &str, node: u32, first: i64) {
        self.index.forget(part, node, first);
        let known = self.index.parts.get(part).and_then(|part| part.first_kept.get(&node).copied());
        let first = known.unwrap_or(i64::MIN);
        self.model.retain(|(of, key), _| of != part || key.node != node || key.slice >= first);
    }

    fn drop_part(&mut self, part: &str) {
        self.live.remove(part);
        self.index.retain(&self.live);
        self.model.retain(|(of, _), _| of != part);
    }

    /// As a manifest brings it back.
    fn restarted(&self) -> SliceIndex {
        let files = |name: &String| PartFiles { saved: Vec::new(), slices: self.index.kept(name) };
        let parts = self.live.iter().map(|name| (name.clone(), files(name))).collect();
        SliceIndex::load(&self.storage, &parts, &self.index.files(), false).expect("loaded")
    }

    fn check(&self) {
        for index in [&self.index, &self.restarted()] {
            assert_eq!(shown(index), self.model);
            let counted: usize = index.files.values().map(|file| file.slices).sum();
            assert_eq!(counted, self.model.len());
            assert!(index.files.values().all(|file| file.slices > 0));
        }
    }
}

fn shown(index: &SliceIndex) -> Model {
    let mut all = Model::new();
    for (name, part) in &index.parts {
        let nodes: BTreeSet<u32> = part.slices.keys().map(|key| key.node).collect();
        for node in nodes {
            let slices = index.entries(name, node).into_iter().map(|entry| (0, entry));
            let panes = index.panes(name, node).into_iter().map(|pane| (pane.level, pane.entry));
            for (level, entry) in slices.chain(panes) {
                let saved = entry.file.read().expect("read");
                let text = saved.notes.as_str().expect("a text").to_string();
                all.insert((name.clone(), SliceKey { node, level, slice: entry.slice }), text);
            }
        }
    }
    all
}

#[test]
fn what_a_part_had_before_it_began_anew_does_not_come_back() {
    let mut run = Run::new();
    run.anew("a", &[(0, 1), (0, 2)], &[(0, 1), (0, 2)], false);
    run.anew("b", &[(3, 1)], &[(3, 1)], false);
    run.check();
    run.drop_part("a");
    run.check();
    run.anew("a", &[], &[], false);
    run.check();
    let slices = vec![run.slice("a", at(0, 2)), run.slice("b", at(3, 2))];
    run.write(slices);
    run.check();
    assert_eq!(run.index.files().len(), 2, "the file with slice 1 of b, and the last");
}

#[test]
fn what_vanishes_leaves_the_others() {
    let mut run = Run::new();
    run.anew("a", &[(0, 1), (0, 2), (0, 3)], &[(0, 1), (0, 2), (0, 3)], false);
    run.anew("a", &[(0, 1), (0, 3)], &[(0, 3)], false);
    run.check();
}

#[test]
fn files_that_readers_hold_are_named() {
    let mut run = Run::new();
    run.anew("a", &[(0, 1)], &[(0, 1)], false);
    let reader = run.index.entries("a", 0).remove(0);
    run.forget("a", 0, 2);
    run.check();
    assert!(run.index.files().is_empty());
    assert_eq!(run.index.leaving_files().len(), 1);
    reader.file.read().expect("it is still there");
    drop(reader);
    assert!(run.index.leaving_files().is_empty());
}

#[test]
fn slices_move_under_their_readers() {
    let mut run = Run::new();
    run.anew("a", &[(0, 0)], &[(0, 0)], false);
    let reader = run.index.entries("a", 0).remove(0);
    for slice in 1..PACK_FILES as i64 {
        let slice = run.slice("a", at(0, slice));
        run.write(vec![slice]);
    }
    let before = reader.file.read().expect("read");
    run.index.pack(&run.storage).expect("packed");
    run.check();
    assert_eq!(run.index.files().len(), 1);
    assert_eq!(reader.file.read().expect("read"), before);
}

#[test]
fn a_list_that_does_not_fit_its_file_is_an_error() {
    let run = Run::new();
    let line = Line { key: at(0, 1), rows: 1, in_memory: 1, bytes: 1 << 40, checksum: 0 };
    let wrong = [
        list(&[("a", line)]).expect("encoded"),
        encode(&Saved {
            sections: vec![crate::exec::durable::Section {
                name: "a".into(),
                rows: RecordBatch::try_from_iter([("node", Arc::new(UInt32Array::from(vec![0])) as ArrayRef)])
                    .expect("a batch"),
            }],
            ..Saved::default()
        })
        .expect("encoded"),
    ];
    for list in wrong {
        let list = run.storage.write(&[list]).expect("written").remove(0);
        let files = PartFiles { saved: Vec::new(), slices: Some(KeptSlices::default()) };
        let parts = BTreeMap::from([("a".to_string(), files)]);
        let loaded = SliceIndex::load(&run.storage, &parts, &[SlicesFile { number: 0, list }], false);
        assert!(matches!(loaded, Err(StorageError::Corrupt { .. })));
    }
}

#[test]
fn after_any_changes_a_manifest_brings_the_same_back() {
    for seed in 0..40 {
        let mut random = StdRng::seed_from_u64(seed);
        let mut run = Run::new();
        for _ in 0..120 {
            let part = ["a", "b", "c"][random.random_range(0..3)];
            let node = random.random_range(0..2);
            let keys: Vec<SliceKey> = run.model.keys().filter(|(of, _)| of == part).map(|(_, key)| *key).collect();
            match random.random_range(0..20) {
                0 => run.drop_part(part),
                1 | 2 => {
                    let slices = keys.iter().filter(|key| key.level == 0).map(|key| (key.node, key.slice));
                    let some: Vec<(u32, i64)> = slices.filter(|_| random.random_bool(0.7)).collect();
                    let written: Vec<(u32, i64)> = some.iter().copied().filter(|_| random.random_bool(0.3)).collect();
                    run.anew(part, &some, &written, random.random_bool(0.5));
                }
                3 => {
                    let first = keys.iter().map(|key| key.slice).max().unwrap_or(0) - random.random_range(0..5);
                    run.forget(part, node, first);
                }
                4 => run.index.pack(&run.storage).expect("packed"),
                5 => run.index = run.restarted(),
                _ if run.live.contains(part) => {
                    let newest = keys.iter().map(|key| key.slice).max().unwrap_or(0);
                    let last = newest + random.random_range(1..4);
                    let level = if random.random_bool(0.3) { random.random_range(1..=LEVELS) } else { 0 };
                    let key = |slice| SliceKey { node, level, slice };
                    let slices = (newest + 1..=last).map(|slice| run.slice(part, key(slice))).collect();
                    run.write(slices);
                }
                _ => run.anew(part, &[], &[], false),
            }
            if random.random_bool(0.2) {
                run.check();
            }
        }
        run.check();
    }
}

#[test]
fn slices_of_a_former_format_get_into_lists() {
    let mut run = Run::new();
    run.anew("a", &[], &[], false);
    run.anew("b", &[(0, 9)], &[(0, 9)], false);
    let slices: Vec<SliceToWrite> = (0..5).map(|slice| run.slice("a", at(slice % 2, i64::from(slice)))).collect();
    let sections: Vec<Bytes> = slices.iter().map(|slice| slice.section.clone()).collect();
    let at = run.storage.write(&sections).expect("written");
    let entries = slices.iter().zip(at).map(|(slice, at)| {
        let SliceToWrite { key: SliceKey { node, slice, .. }, rows, in_memory: bytes, .. } = *slice;
        SliceEntry { node, slice, rows, bytes, at }
    });
    run.index.add_unlisted(&run.storage, &BTreeMap::from([("a".to_string(), entries.collect())]));
    assert_eq!(shown(&run.index), run.model, "they are read where they are");
    let reader = run.index.entries("a", 1).remove(0);
    run.forget("a", 0, 1);
    run.index.list_all(&run.storage, 2 * sections[0].len() as u64).expect("written");
    run.check();
    assert_eq!(run.index.files().len(), 3, "that of b, and two");
    reader.file.read().expect("read");
}
