//! The log: groups of records in one sequence through all generations.

use bytes::Bytes;

use super::blobs::{Place, take_place};
use super::frame::{self, Form};
use super::{Blob, Blobs, StorageError};

const FORM: Form = Form { magic: *b"rrlog\r\n\0", format: 1 };

const RECORDS: u64 = 0;
const SEAL: u64 = 1;

/// How often the log is read again because another process writes to it, before that is an error.
const MAX_READS: usize = 100;

/// How often a gap may be the work of a list that is no moment's picture.
const MAX_GAPS: usize = 3;

/// A blob of the log.
#[derive(Debug, PartialEq)]
pub(super) struct Group {
    pub writer: u64,
    pub entry: Entry,
}

#[derive(Debug, PartialEq)]
pub(super) enum Entry {
    Records(Vec<Bytes>),
    /// Nothing follows in this generation. `by` is the generation that sealed it.
    Seal {
        by: u64,
    },
}

impl Group {
    pub fn name(generation: u64, first: u64) -> String {
        format!("log/{generation:010}-{first:020}")
    }

    pub fn encode(&self, generation: u64, first: u64) -> Bytes {
        let records: &[Bytes] = match &self.entry {
            Entry::Records(records) => records,
            Entry::Seal { .. } => &[],
        };
        let mut body = Vec::with_capacity(records.iter().map(|record| record.len() + 4).sum());
        for record in records {
            let length = u32::try_from(record.len()).expect("a record is less than 4 GiB");
            body.extend_from_slice(&length.to_le_bytes());
            body.extend_from_slice(record);
        }
        let (kind, generation) = match self.entry {
            Entry::Records(_) => (RECORDS, generation),
            Entry::Seal { by } => (SEAL, by),
        };
        let words = [kind, self.writer, generation, first, records.len() as u64];
        [&frame::head(&FORM, &words, &[&body])[..], &body].concat().into()
    }

    /// Reads what lies at `at`.
    pub fn decode(at: &Spot, bytes: &Bytes) -> Result<Group, StorageError> {
        let corrupt = |reason: &str| StorageError::corrupt(&at.name, reason);
        let frame = frame::read_whole(&FORM, &at.name, bytes)?;
        let [kind, writer, generation, first, count] = frame.words[..] else {
            return Err(corrupt("its head is too short or too long"));
        };
        if first != at.first || (kind == RECORDS && generation != at.generation) {
            return Err(corrupt("it belongs to another place"));
        }
        let mut body = frame.body;
        let mut records = Vec::new();
        while !body.is_empty() {
            let length = body.split_to_checked(4).ok_or_else(|| corrupt("a record is cut short"))?;
            let length = u32::from_le_bytes(length[..].try_into().expect("four bytes")) as usize;
            records.push(body.split_to_checked(length).ok_or_else(|| corrupt("a record is cut short"))?);
        }
        if records.len() as u64 != count {
            return Err(corrupt("it has more or fewer records than it says"));
        }
        let entry = match kind {
            RECORDS if count > 0 => Entry::Records(records),
            SEAL if count == 0 => Entry::Seal { by: generation },
            _ => return Err(corrupt("it is neither records nor a seal")),
        };
        Ok(Group { writer, entry })
    }
}

trait SplitChecked {
    fn split_to_checked(&mut self, at: usize) -> Option<Bytes>;
}

impl SplitChecked for Bytes {
    fn split_to_checked(&mut self, at: usize) -> Option<Bytes> {
        (at <= self.len()).then(|| self.split_to(at))
    }
}

/// Where a group lies in the log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Spot {
    pub generation: u64,
    pub first: u64,
    pub name: String,
}

impl Spot {
    pub fn new(generation: u64, first: u64) -> Spot {
        Spot { generation, first, name: Group::name(generation, first) }
    }

    fn of(name: &str) -> Option<Spot> {
        let (generation, first) = name.strip_prefix("log/")?.split_once('-')?;
        let spot = Spot::new(generation.parse().ok()?, first.parse().ok()?);
        (spot.name == name).then_some(spot)
    }

    /// The groups in a list, in the order of the log. Each ends where the next begins.
    pub fn all(blobs: &[Blob]) -> Vec<Spot> {
        let mut spots: Vec<Spot> = blobs.iter().filter_map(|blob| Spot::of(&blob.name)).collect();
        spots.sort();
        spots
    }
}

/// How many of the groups, from the first on, hold only records up to `through`, as the group after each shows.
pub(super) fn wholly_before(spots: &[Spot], through: u64) -> usize {
    spots.windows(2).take_while(|pair| pair[1].first <= through.saturating_add(1)).count()
}

/// What the log holds after a number.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub records: Vec<(u64, Bytes)>,
    /// The number of the next record.
    pub next: u64,
    /// The groups read.
    pub spots: Vec<(Spot, Bytes)>,
    /// The last generation with a group or a seal, and who sealed it.
    last: Option<(u64, Option<u64>)>,
}

/// Why the log could not be read, or not yet.
#[derive(Debug)]
pub(super) enum ReadError {
    /// A group is missing, or was deleted meanwhile: perhaps the list shows no single moment.
    Gap(StorageError),
    Failed(StorageError),
}

impl From<StorageError> for ReadError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::NotFound { .. } => ReadError::Gap(error),
            error => ReadError::Failed(error),
        }
    }
}

/// All records after `through`, from groups in a row without a gap.
pub(super) fn read(blobs: &dyn Blobs, through: u64) -> Result<Read, ReadError> {
    let mut spots = Spot::all(&blobs.list("log")?);
    spots.drain(..wholly_before(&spots, through));
    let names: Vec<String> = spots.iter().map(|spot| spot.name.clone()).collect();
    let mut read = Read { next: through + 1, ..Read::default() };
    for (spot, bytes) in spots.into_iter().zip(blobs.get_all(&names)?) {
        let group = Group::decode(&spot, &bytes)?;
        // The first one may begin before, or be the last one of all and end before.
        let begins_before = read.spots.is_empty() && spot.first <= read.next;
        if spot.first != read.next && !begins_before {
            let reason = format!("the log goes on with record {}, and not with {}", spot.first, read.next);
            return Err(ReadError::Gap(StorageError::corrupt(&spot.name, reason)));
        }
        if matches!(read.last, Some((generation, Some(_))) if generation == spot.generation) {
            return Err(StorageError::corrupt(&spot.name, "it lies behind the seal of its generation").into());
        }
        match group.entry {
            Entry::Records(records) => {
                let numbered = (spot.first..).zip(records).filter(|(number, _)| *number > through);
                read.records.extend(numbered);
                read.next = read.records.last().map_or(read.next, |(number, _)| number + 1);
                read.last = Some((spot.generation, None));
            }
            Entry::Seal { by } => read.last = Some((spot.generation, Some(by))),
        }
        read.spots.push((spot, bytes));
    }
    Ok(read)
}

/// Reads the log after `through` and seals all generations before `generation`, of which those below `sealed_below` are sealed.
pub(super) fn take_over(
    blobs: &dyn Blobs,
    through: u64,
    sealed_below: u64,
    generation: u64,
    writer: u64,
) -> Result<Read, StorageError> {
    let fenced = |by: u64| StorageError::Fenced {
        location: blobs.location(),
        proof: format!("generation {by} has sealed the log, this is {generation}"),
    };
    let mut gaps = 0;
    'again: for _ in 0..MAX_READS {
        let read = match read(blobs, through) {
            Err(ReadError::Gap(error)) if gaps == MAX_GAPS => return Err(error),
            Err(ReadError::Gap(_)) => {
                gaps += 1;
                continue;
            }
            Err(ReadError::Failed(error)) => return Err(error),
            Ok(read) => read,
        };
        let unsealed = match read.last {
            Some((last, _)) if last >= generation => return Err(fenced(last)),
            Some((_, Some(by))) if by > generation => return Err(fenced(by)),
            Some((last, Some(_))) => last + 1,
            Some((last, None)) => last,
            None => 0,
        };
        // In this order: a blob of a generation says that those before it are sealed.
        for old in unsealed.max(sealed_below)..generation {
            let seal = Group { writer, entry: Entry::Seal { by: generation } }.encode(old, read.next);
            if let Place::Taken(_) = take_place(blobs, &Group::name(old, read.next), &seal)? {
                continue 'again;
            }
        }
        return Ok(read);
    }
    Err(StorageError::Unavailable {
        doing: "sealing the log".into(),
        reason: "another process goes on writing to it".into(),
    })
}
