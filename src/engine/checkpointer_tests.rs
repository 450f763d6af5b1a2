//! What manifests name between two checkpoints.

use serde_json::json;

use super::*;
use crate::catalog::Catalog;
use crate::engine::checkpoint::FORMAT;
use crate::engine::restore::checkpoint_of;
use crate::exec::law::SourceTime;
use crate::storage::sim::{Kind, SimDisk};

const PART: &str = "store/1/0";

struct Run {
    disk: SimDisk,
    writer: Writer,
}

impl Run {
    /// A part with one slice is in a checkpoint.
    fn new() -> Run {
        let disk = SimDisk::new(Kind::Local, 1);
        let storage = Storage::open_with(disk.process(), 1, 7, Default::default()).expect("it opens").storage;
        let writer = Writer::new(storage, LogEnd::default(), BTreeMap::new(), SliceIndex::default());
        let mut run = Run { disk, writer };
        let saved = Saved { whole: true, notes: json!("keys"), ..Saved::default() };
        let parts = vec![PartSave { slices: Some(BTreeSet::new()), ..PartSave::new(PART.into(), saved) }];
        let job = Holding { body: body(), parts, live: BTreeSet::from([PART.into()]), log_through: 0 };
        run.writer.write(&mut Attempt::new(job), 1).expect("written");
        run
    }

    /// The checkpoint that a crash now would leave.
    fn after_a_crash(&self) -> (Checkpoint, SliceIndex) {
        self.disk.crash();
        let opened = Storage::open_with(self.disk.process(), 2, 7, Default::default()).expect("it opens");
        let manifest = opened.manifest.expect("a manifest");
        let checkpoint = checkpoint_of(&manifest).expect("it is understood").expect("there is one");
        let slices = SliceIndex::load(&opened.storage, &checkpoint.parts, &checkpoint.slice_files, false);
        (checkpoint, slices.expect("they are listed"))
    }
}

fn body() -> Body {
    Body {
        format: FORMAT,
        tick: (1, 2),
        now_us: 3,
        catalog: Catalog::default().to_text(),
        workers: 1,
        next_id: 4,
        sources: vec![source(5, true)],
        stores: Vec::new(),
        views: Vec::new(),
        tables: Vec::new(),
    }
}

fn source(oid: u32, begun: bool) -> SourceBody {
    SourceBody {
        oid,
        starts: vec![(0, i64::from(oid))],
        topic_id: None,
        begun,
        partitions: Vec::new(),
        time: SourceTime::default(),
        gaps: Vec::new(),
        changes: Vec::new(),
        late_into_trouble: None,
    }
}

#[test]
fn panes_get_a_manifest_of_their_own_once_nothing_else_needs_one() {
    let mut run = Run::new();
    let section = encode(&Saved { notes: json!("a pane"), ..Saved::default() }).expect("encoded");
    let key = SliceKey { node: 0, level: 1, slice: 12 };
    let pane = SliceToWrite { part: PART.into(), key, rows: 3, in_memory: 8, section };
    run.writer.slices.write(&run.writer.storage, &[pane]).expect("written");
    run.writer.has_unnamed_panes = true;
    assert_eq!(run.writer.keep_panes(), IDLE, "it is not idle yet");
    assert!(run.writer.has_unnamed_panes);
    run.writer.idle = Duration::ZERO;
    run.writer.keep_panes();
    assert!(!run.writer.has_unnamed_panes);
    let (checkpoint, slices) = run.after_a_crash();
    assert_eq!(checkpoint.body.tick, (1, 2));
    let panes = slices.panes(PART, 0);
    let saved = panes[0].entry.file.read().expect("read");
    assert_eq!((panes.len(), panes[0].level, panes[0].entry.slice, saved.notes), (1, 1, 12, json!("a pane")));
}

#[test]
fn creations_are_added_to_what_the_last_manifest_says() {
    let mut run = Run::new();
    let mut catalog = body().catalog;
    catalog.next_oid += 7;
    let made = Creations { tick: (1, 9), catalog: catalog.clone(), sources: vec![source(5, false), source(6, false)] };
    run.writer.name(&made).expect("named");
    let (checkpoint, _) = run.after_a_crash();
    let Body { tick, catalog: kept, sources, .. } = &checkpoint.body;
    assert_eq!((*tick, kept), ((1, 2), &catalog), "what there is else is of the last checkpoint");
    assert_eq!(sources.iter().map(|source| (source.oid, source.begun)).collect::<Vec<_>>(), [(5, true), (6, false)]);
    assert_eq!(checkpoint.parts[PART].saved.len(), 1);
}

#[test]
fn nothing_can_be_added_before_the_first_checkpoint_of_a_process() {
    let disk = SimDisk::new(Kind::Local, 1);
    let storage = Storage::open_with(disk.process(), 1, 7, Default::default()).expect("it opens").storage;
    let mut writer = Writer::new(storage, LogEnd::default(), BTreeMap::new(), SliceIndex::default());
    let made = Creations { tick: (1, 9), catalog: body().catalog, sources: Vec::new() };
    assert!(matches!(writer.name(&made), Err(StorageError::Invariant(_))));
}
