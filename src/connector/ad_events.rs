//! The demo's events: ad impressions and clicks, with what real streams have of late, repeated and broken ones.

use super::random::{Random, Zipf};
use super::text::{push_i64, push_u64};

/// How the events are spread.
#[derive(Debug, Clone, PartialEq)]
pub struct AdOptions {
    pub seed: u64,
    /// Distinct ads, chosen by Zipf's law with `exponent`.
    pub ads: u64,
    pub exponent: f64,
    pub users: u64,
    /// Of the events, by chance, from 0 to 1: clicks, events 10 to 120 s late, copies of an earlier event, and records that
    /// are no event.
    pub clicks: f64,
    pub late: f64,
    pub duplicates: f64,
    pub malformed: f64,
}

impl Default for AdOptions {
    fn default() -> Self {
        AdOptions {
            seed: 0,
            ads: 1_000_000,
            exponent: 1.0,
            users: 200_000,
            clicks: 0.05,
            late: 0.001,
            duplicates: 0.0005,
            malformed: 0.0001,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdEvent {
    /// On time, or at most 2 s old.
    Fresh,
    /// 10 to 120 s old.
    Late,
    /// Byte for byte an earlier event.
    Duplicate,
    Malformed,
}

/// Writes one event after the other as JSON of about 125 bytes:
/// `{"event_id":"1a2b","ad_id":7,"event_type":"click","user_id":9,"country":"DE","device":"mobile","ts":1700000000000}`,
/// `ts` in milliseconds. The same options and times give the same bytes.
///
/// Cost: no allocation, one draw from Zipf's law, some 100 ns.
pub struct AdGenerator {
    options: AdOptions,
    zipf: Zipf,
    random: Random,
    next_id: u64,
    /// Earlier events to be repeated, one in sixteen of them.
    earlier: Vec<Vec<u8>>,
}

const EARLIER: usize = 64;

/// Cumulative, of 256.
const COUNTRIES: [(&[u8], u64); 12] = [
    (b"US", 74),
    (b"IN", 110),
    (b"DE", 136),
    (b"BR", 158),
    (b"GB", 178),
    (b"JP", 196),
    (b"FR", 212),
    (b"MX", 224),
    (b"IT", 234),
    (b"ES", 243),
    (b"PL", 250),
    (b"NL", 256),
];
const DEVICES: [(&[u8], u64); 4] = [(b"mobile", 150), (b"desktop", 216), (b"tablet", 240), (b"tv", 256)];

impl AdGenerator {
    pub fn new(options: AdOptions) -> AdGenerator {
        AdGenerator {
            zipf: Zipf::new(options.ads, options.exponent),
            random: Random::at(options.seed, 0),
            next_id: 0,
            earlier: Vec::with_capacity(EARLIER),
            options,
        }
    }

    /// Writes the next event, as of `now_ms`, into `out`, which is cleared first.
    pub fn write(&mut self, now_ms: i64, out: &mut Vec<u8>) -> AdEvent {
        out.clear();
        let chance = self.random.unit();
        let (malformed, duplicates, late) = (self.options.malformed, self.options.duplicates, self.options.late);
        if chance < malformed {
            self.malformed(now_ms, out);
            return AdEvent::Malformed;
        }
        if chance < malformed + duplicates && !self.earlier.is_empty() {
            let index = self.random.below(self.earlier.len() as u64) as usize;
            out.extend_from_slice(&self.earlier[index]);
            return AdEvent::Duplicate;
        }
        if chance < malformed + duplicates + late {
            let age_ms = 10_000 + self.random.below(110_000) as i64;
            self.event(now_ms - age_ms, out);
            return AdEvent::Late;
        }
        let age_ms = (self.random.below(45) * self.random.below(45)) as i64;
        self.event(now_ms - age_ms, out);
        if self.next_id.is_multiple_of(16) {
            if self.earlier.len() < EARLIER {
                self.earlier.push(out.clone());
            } else {
                let index = (self.next_id / 16) as usize % EARLIER;
                self.earlier[index].clear();
                self.earlier[index].extend_from_slice(out);
            }
        }
        AdEvent::Fresh
    }

    fn event(&mut self, ts_ms: i64, out: &mut Vec<u8>) {
        let rank = self.zipf.rank(&mut self.random) - 1;
        // Neighbours in rank are no neighbours by number; a prime beyond the number of ads makes this one to one.
        let ad_id = (u128::from(rank) * 18_446_744_073_709_551_557 % u128::from(self.options.ads.max(1))) as u64 + 1;
        let click = self.random.unit() < self.options.clicks;
        let bits = self.random.next_u64();
        out.extend_from_slice(b"{\"event_id\":\"");
        push_hex(out, self.next_id);
        out.extend_from_slice(b"\",\"ad_id\":");
        push_u64(out, ad_id);
        out.extend_from_slice(if click { b",\"event_type\":\"click\"" } else { b",\"event_type\":\"impression\"" });
        out.extend_from_slice(b",\"user_id\":");
        push_u64(out, self.random.below(self.options.users) + 1);
        out.extend_from_slice(b",\"country\":\"");
        out.extend_from_slice(pick(&COUNTRIES, bits & 255));
        out.extend_from_slice(b"\",\"device\":\"");
        out.extend_from_slice(pick(&DEVICES, bits >> 8 & 255));
        out.extend_from_slice(b"\",\"ts\":");
        push_i64(out, ts_ms);
        out.push(b'}');
        self.next_id += 1;
    }

    fn malformed(&mut self, now_ms: i64, out: &mut Vec<u8>) {
        self.event(now_ms, out);
        match self.random.below(6) {
            0 => out.truncate(out.len() / 2),
            1 => out.clear(),
            2 => out.insert(0, b'['),
            3 => out.extend_from_slice(b" trailing"),
            4 => out[14] = 0xff,
            _ => {
                out.clear();
                out.extend_from_slice(b"{\"event_id\":\"x\",\"ad_id\":\"no number\",\"ts\":\"2024-02-30T00:00:00Z\"}");
            }
        }
    }
}

fn pick(table: &[(&'static [u8], u64)], draw: u64) -> &'static [u8] {
    table.iter().find(|(_, below)| draw < *below).map_or(&[], |(name, _)| name)
}

fn push_hex(out: &mut Vec<u8>, value: u64) {
    let digits = (16 - value.leading_zeros() as usize / 4).max(1);
    for place in (0..digits).rev() {
        out.push(b"0123456789abcdef"[(value >> (4 * place) & 15) as usize]);
    }
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, TimeUnit};

    use super::*;
    use crate::connector::{ColumnSpec, JsonDecoder, JsonOptions, RecordMeta, Records};

    #[test]
    fn only_the_malformed_are_dead() {
        let columns: Vec<ColumnSpec> = [
            ("event_id", DataType::Utf8),
            ("ad_id", DataType::Int64),
            ("event_type", DataType::Utf8),
            ("user_id", DataType::Int64),
            ("country", DataType::Utf8),
            ("device", DataType::Utf8),
            ("ts", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
        ]
        .map(|(name, data_type)| ColumnSpec { name: name.into(), data_type, not_null: true, include: None })
        .to_vec();
        let options =
            AdOptions { seed: 3, ads: 1000, late: 0.05, duplicates: 0.05, malformed: 0.05, ..AdOptions::default() };
        let (mut generator, mut again) = (AdGenerator::new(options.clone()), AdGenerator::new(options));
        let (mut out, mut same) = (Vec::new(), Vec::new());
        let mut records = Records::default();
        let mut malformed = Vec::new();
        for offset in 0..5000 {
            let now_ms = 1_700_000_000_000 + offset;
            let kind = generator.write(now_ms, &mut out);
            assert_eq!(again.write(now_ms, &mut same), kind);
            assert_eq!(out, same);
            if kind == AdEvent::Malformed {
                malformed.push(offset as u32);
            }
            let meta = RecordMeta { partition: 0, offset, timestamp_ms: now_ms, log_append_time: false };
            records.push(meta, None, Some(&out));
        }
        assert!((150..350).contains(&malformed.len()), "{}", malformed.len());
        let mut decoder = JsonDecoder::new(&columns, &[1], JsonOptions::default()).expect("types we read");
        let decoded = decoder.decode(&records, 0..records.len());
        assert_eq!(decoded.dead.iter().map(|d| d.record).collect::<Vec<_>>(), malformed);
        let mean = records.bytes.len() / records.len();
        assert!((100..=130).contains(&mean), "{mean}");
    }
}
