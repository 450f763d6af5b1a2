//! The demo's page views: who looked at which page when.

use super::random::{Random, Zipf};
use super::text::{push_i64, push_u64};

const PAGES: u64 = 500;
const USERS: u64 = 50_000;

/// Writes one page view after the other as JSON of about 80 bytes:
/// `{"page":"/products/7","user_id":9,"referrer":"search","ts":1700000000000}`, `ts` in milliseconds. The same seed and
/// times give the same bytes.
pub struct PageViews {
    pages: Zipf,
    users: Zipf,
    random: Random,
}

const REFERRERS: [&[u8]; 4] = [b"search", b"direct", b"social", b"mail"];

impl PageViews {
    pub fn new(seed: u64) -> PageViews {
        PageViews { pages: Zipf::new(PAGES, 1.0), users: Zipf::new(USERS, 0.5), random: Random::at(seed, 1) }
    }

    /// Writes the next page view, as of `now_ms`, into `out`, which is cleared first.
    pub fn write(&mut self, now_ms: i64, out: &mut Vec<u8>) {
        out.clear();
        out.extend_from_slice(b"{\"page\":\"");
        match self.pages.rank(&mut self.random) - 1 {
            0 => out.extend_from_slice(b"/"),
            page => {
                out.extend_from_slice(b"/products/");
                push_u64(out, page);
            }
        }
        out.extend_from_slice(b"\",\"user_id\":");
        push_u64(out, self.users.rank(&mut self.random));
        out.extend_from_slice(b",\"referrer\":\"");
        out.extend_from_slice(REFERRERS[self.random.below(REFERRERS.len() as u64) as usize]);
        out.extend_from_slice(b"\",\"ts\":");
        push_i64(out, now_ms - self.random.below(1000) as i64);
        out.push(b'}');
    }
}
