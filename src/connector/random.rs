//! Random numbers that depend on a seed and a position alone, and skewed choice.

/// SplitMix64 (Steele, Lea, Flood 2014): one multiplication chain per number, and any position can be had without the ones
/// before it.
#[derive(Debug, Clone)]
pub(super) struct Random {
    state: u64,
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Random {
    /// The stream of `position` under `seed`.
    pub fn at(seed: u64, position: u64) -> Random {
        Random { state: mix(seed ^ mix(position.wrapping_mul(GOLDEN))) }
    }

    #[inline]
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(GOLDEN);
        mix(self.state)
    }

    /// Uniform in `0..n`; 0 for `n` of 0.
    #[inline]
    pub fn below(&mut self, n: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(n)) >> 64) as u64
    }

    /// Uniform in `0.0..1.0`.
    #[inline]
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[inline]
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Zipf's distribution over the ranks `1..=n`: rank k has weight k^-s. Rejection-inversion (Hörmann, Derflinger 1996): no
/// table, about one trial per number.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Zipf {
    n: f64,
    s: f64,
    from: f64,
    to: f64,
    accept: f64,
}

impl Zipf {
    /// `n` at least 1, `s` above 0.
    pub fn new(n: u64, s: f64) -> Zipf {
        let mut zipf = Zipf { n: n.max(1) as f64, s, from: 0.0, to: 0.0, accept: 0.0 };
        zipf.from = zipf.integral(1.5) - 1.0;
        zipf.to = zipf.integral(zipf.n + 0.5);
        zipf.accept = 2.0 - zipf.inverse(zipf.integral(2.5) - 2f64.powf(-s));
        zipf
    }

    #[inline]
    pub fn rank(&self, random: &mut Random) -> u64 {
        loop {
            let u = self.to + random.unit() * (self.from - self.to);
            let x = self.inverse(u);
            let k = x.round().clamp(1.0, self.n);
            if k - x <= self.accept || u >= self.integral(k + 0.5) - k.powf(-self.s) {
                return k as u64;
            }
        }
    }

    /// The integral of x^-s from 1.
    #[inline]
    fn integral(&self, x: f64) -> f64 {
        match 1.0 - self.s {
            0.0 => x.ln(),
            e => (x.powf(e) - 1.0) / e,
        }
    }

    #[inline]
    fn inverse(&self, u: f64) -> f64 {
        match 1.0 - self.s {
            0.0 => u.exp(),
            e => (1.0 + u * e).max(f64::MIN_POSITIVE).powf(1.0 / e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zipf_has_its_weights() {
        for s in [0.5, 1.0, 1.3] {
            let (n, draws) = (50u64, 200_000u64);
            let zipf = Zipf::new(n, s);
            let mut counts = vec![0u64; n as usize + 1];
            let mut random = Random::at(1, 2);
            for _ in 0..draws {
                counts[zipf.rank(&mut random) as usize] += 1;
            }
            let total: f64 = (1..=n).map(|k| (k as f64).powf(-s)).sum();
            for k in [1, 2, 10, 50] {
                let expected = draws as f64 * (k as f64).powf(-s) / total;
                let error = (counts[k as usize] as f64 - expected).abs();
                assert!(error < 5.0 * expected.sqrt(), "s {s}, rank {k}: {} for {expected}", counts[k as usize]);
            }
        }
    }

    #[test]
    fn one_rank_is_no_choice() {
        let mut random = Random::at(7, 0);
        assert_eq!(Zipf::new(1, 1.0).rank(&mut random), 1);
        assert_eq!(random.below(1), 0);
    }
}
