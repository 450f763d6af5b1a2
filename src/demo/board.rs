//! The figures on a terminal, drawn anew each second; a line each five seconds where there is none.

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::net::SocketAddr;
use std::time::Duration;

use chrono::DateTime;

use super::{Demo, Figures, Meter};

const REDRAW: Duration = Duration::from_secs(1);
const LINE: Duration = Duration::from_secs(5);

/// What is shown besides the figures.
#[derive(Debug, Clone)]
pub struct Board {
    /// Where psql finds the server.
    pub address: SocketAddr,
    /// How the events are made.
    pub about: String,
}

/// Draws until `end` comes. Errors are those of standard output.
pub async fn show(demo: &Demo, meter: &mut Meter, board: &Board, end: impl Future<Output = ()>) -> io::Result<()> {
    let terminal = io::stdout().is_terminal();
    let mut due = tokio::time::interval(if terminal { REDRAW } else { LINE });
    due.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    if !terminal {
        print(&format!("{}\n", board.head()))?;
    } else {
        print("\x1b[2J")?;
    }
    let mut end = std::pin::pin!(end);
    loop {
        tokio::select! {
            () = &mut end => return Ok(()),
            _ = due.tick() => {}
        }
        let figures = tokio::select! {
            () = &mut end => return Ok(()),
            figures = demo.look(meter) => figures,
        };
        // Home, each line cleared to its end, then what is below.
        let text = match terminal {
            true => format!("\x1b[H{}\x1b[J", board.draw(&figures).replace('\n', "\x1b[K\n")),
            false => format!("{}\n", line(&figures)),
        };
        print(&text)?;
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

impl Board {
    fn head(&self) -> String {
        format!("riverrun demo: {}\n\n    psql -h {} -p {}\n", self.about, self.address.ip(), self.address.port())
    }

    /// The whole screen, at most 24 lines of 80 columns but for troubles.
    pub fn draw(&self, figures: &Figures) -> String {
        let mut out = self.head();
        let window = match figures.window_us {
            Some((start, end)) => format!(", {} to {} UTC", clock(start), clock(end)),
            None => String::new(),
        };
        let Figures { counts, .. } = figures;
        // Writing to a String does not fail.
        let _ = writeln!(out, "\nTop 10 ads of the last minute{window}\n");
        let _ = writeln!(out, "{:>4}  {:>12}  {:>10}  {:>12}  {:>7}", "", "ad_id", "clicks", "impressions", "CTR");
        for place in 0..10 {
            match figures.top.get(place) {
                None => out.push('\n'),
                Some(ad) => {
                    let rate = match ad.impressions {
                        0 => "-".to_string(),
                        impressions => format!("{:.2}%", 100.0 * ad.clicks as f64 / impressions as f64),
                    };
                    let (place, clicks) = (place + 1, grouped(ad.clicks as u64));
                    let impressions = grouped(ad.impressions as u64);
                    let _ = writeln!(out, "{place:>4}  {:>12}  {clicks:>10}  {impressions:>12}  {rate:>7}", ad.ad_id);
                }
            }
        }
        let _ = writeln!(
            out,
            "\naccepted {} events/s, {} in all   late {}   dead {}",
            grouped(figures.accepted_per_second.round() as u64),
            grouped(counts.accepted),
            grouped(counts.late),
            grouped(counts.dead),
        );
        let _ = writeln!(
            out,
            "lag {} records   freshness {}   tick {:.1} ms   this query {:.1} ms",
            grouped(figures.lag),
            freshness(figures.freshness_us),
            figures.tick_ms,
            figures.query_ms,
        );
        let _ = writeln!(out, "{} of {} views current   Ctrl-C ends the demo", figures.views.0, figures.views.1);
        for trouble in &figures.troubles {
            let _ = writeln!(out, "{trouble}");
        }
        out
    }
}

/// The figures in one line.
fn line(figures: &Figures) -> String {
    let Figures { counts, .. } = figures;
    let top = match figures.top.first() {
        Some(ad) => format!("ad {} with {} clicks", ad.ad_id, ad.clicks),
        None => "none yet".into(),
    };
    let mut line = format!(
        "accepted={:.0}/s total={} late={} dead={} lag={} freshness={} tick={:.1}ms query={:.1}ms top={top}",
        figures.accepted_per_second,
        counts.accepted,
        counts.late,
        counts.dead,
        figures.lag,
        freshness(figures.freshness_us),
        figures.tick_ms,
        figures.query_ms,
    );
    for trouble in &figures.troubles {
        let _ = write!(line, "\n  {trouble}");
    }
    line
}

fn freshness(us: Option<i64>) -> String {
    us.map_or("none".into(), |us| format!("{:.2}s", us as f64 / 1e6))
}

fn clock(us: i64) -> String {
    DateTime::from_timestamp_micros(us).map_or_else(|| us.to_string(), |time| time.format("%H:%M:%S").to_string())
}

/// 1234567 as `1 234 567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::TopAd;
    use crate::engine::Counts;

    #[test]
    fn draws() {
        let board = Board { address: SocketAddr::from(([127, 0, 0, 1], 5454)), about: "20 000 events/s".into() };
        let figures = Figures {
            top: vec![
                TopAd { ad_id: 7, clicks: 1234, impressions: 20_000 },
                TopAd { ad_id: 9, clicks: 3, impressions: 0 },
            ],
            window_us: Some((1_767_225_600_000_000, 1_767_225_660_000_000)),
            query_ms: 4.25,
            accepted_per_second: 19_999.6,
            counts: Counts { read: 1_000_003, accepted: 1_000_000, late: 2, duplicate: 0, dead: 1, skipped: 0 },
            lag: 12,
            freshness_us: Some(210_000),
            tick_ms: 3.0,
            views: (9, 10),
            troubles: vec!["ad_events: the broker is away".into()],
        };
        let lines: Vec<String> = board.draw(&figures).lines().map(|l| l.trim_end().to_string()).collect();
        insta::assert_snapshot!(lines.join("\n"), @"
        riverrun demo: 20 000 events/s

            psql -h 127.0.0.1 -p 5454

        Top 10 ads of the last minute, 00:00:00 to 00:01:00 UTC

                     ad_id      clicks   impressions      CTR
           1             7       1 234        20 000    6.17%
           2             9           3             0        -









        accepted 20 000 events/s, 1 000 000 in all   late 2   dead 1
        lag 12 records   freshness 0.21s   tick 3.0 ms   this query 4.2 ms
        9 of 10 views current   Ctrl-C ends the demo
        ad_events: the broker is away
        ");
        insta::assert_snapshot!(line(&figures), @"
        accepted=20000/s total=1000000 late=2 dead=1 lag=12 freshness=0.21s tick=3.0ms query=4.2ms top=ad 7 with 1234 clicks
          ad_events: the broker is away
        ");
        assert_eq!(grouped(0), "0");
    }
}
