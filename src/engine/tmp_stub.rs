#![allow(clippy::all, unused)]
use crate::exec::dedup::*;
use crate::exec::durable::*;
use crate::exec::flow::*;
use crate::exec::tail::*;
use crate::exec::*;
use std::sync::Arc;
pub struct TS {
    pub saved: Saved,
    pub closed: Vec<(usize, Arc<closed_slice::ClosedSlice>)>,
    pub first_kept: Vec<(u32, i64)>,
    pub slices: Option<std::collections::BTreeSet<(u32, i64)>>,
}
pub trait TmpTail: Sized {
    fn save(&mut self, w: bool) -> Result<TS, ExecError>;
    fn track_saves(&mut self);
    fn load(
        flow: &Flow,
        s: &[Saved],
        c: &[Vec<store_saved::ClosedEntry>],
        cache: Arc<slice_cache::SliceCache>,
        t: &dyn Times,
        n: i64,
        r: Option<i64>,
    ) -> Result<Self, ExecError>;
}
impl TmpTail for Tail {
    fn save(&mut self, w: bool) -> Result<TS, ExecError> {
        Ok(TS { saved: Saved { whole: true, ..Default::default() }, closed: vec![], first_kept: vec![], slices: None })
    }
    fn track_saves(&mut self) {}
    fn load(
        flow: &Flow,
        s: &[Saved],
        c: &[Vec<store_saved::ClosedEntry>],
        cache: Arc<slice_cache::SliceCache>,
        t: &dyn Times,
        n: i64,
        r: Option<i64>,
    ) -> Result<Self, ExecError> {
        Tail::new(flow)
    }
}
pub trait TmpW: Sized {
    fn save(&mut self, w: bool) -> Result<Saved, ExecError>;
    fn track_saves(&mut self);
    fn load(i: i64, s: &[Saved]) -> Result<Self, ExecError>;
}
impl TmpW for WithinPartition {
    fn save(&mut self, w: bool) -> Result<Saved, ExecError> {
        Ok(Saved { whole: true, ..Default::default() })
    }
    fn track_saves(&mut self) {}
    fn load(i: i64, s: &[Saved]) -> Result<Self, ExecError> {
        Ok(WithinPartition::new(i))
    }
}
pub trait TmpA {
    fn save(&mut self, w: bool) -> Result<Saved, ExecError>;
    fn load(&mut self, s: &[Vec<Saved>], b: &Buckets) -> Result<(), ExecError>;
}
impl TmpA for AcrossPartitions {
    fn save(&mut self, w: bool) -> Result<Saved, ExecError> {
        Ok(Saved { whole: true, ..Default::default() })
    }
    fn load(&mut self, s: &[Vec<Saved>], b: &Buckets) -> Result<(), ExecError> {
        Ok(())
    }
}
