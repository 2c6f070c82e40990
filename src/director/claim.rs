//! Optimistic ordering of reservations: who decided on old counters decides again.
//!
//! A version counter, even while nobody reserves and odd while somebody does. A decision notes the
//! version before it reads the counters ([`Claims::seen`]) and claims it when it has chosen
//! ([`Claims::claim`]); the claim fails if any reservation was made in between. After
//! [`MAX_ATTEMPTS`] decisions it goes through regardless, so that progress is never in doubt: under
//! such contention the difference of one reservation no longer matters.

use std::sync::atomic::{AtomicU64, Ordering};

/// Decisions after which a request reserves whatever happened meanwhile.
pub const MAX_ATTEMPTS: u32 = 4;

/// Spins while another thread is between claim and release (tens of nanoseconds), at most.
const MAX_SPINS: u32 = 200;

/// The version counter.
#[derive(Debug, Default)]
pub struct Claims {
    version: AtomicU64,
}

/// The result of a claim.
pub struct Claim<'a> {
    held: Option<&'a Claims>,
    granted: bool,
}

impl Claims {
    /// The version to decide on. Waits briefly for a reservation in progress.
    pub fn seen(&self) -> u64 {
        let mut version = self.version.load(Ordering::Acquire);
        for _ in 0..MAX_SPINS {
            if version.is_multiple_of(2) {
                break;
            }
            std::hint::spin_loop();
            version = self.version.load(Ordering::Acquire);
        }
        version
    }

    /// Tries to reserve as the next one after `seen`; the `attempt`-th decision of this request.
    pub fn claim(&self, seen: u64, attempt: u32) -> Claim<'_> {
        let even = seen & !1;
        if self.version.compare_exchange(even, even + 1, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            return Claim { held: Some(self), granted: true };
        }
        Claim { held: None, granted: attempt >= MAX_ATTEMPTS }
    }
}

impl Claim<'_> {
    /// A claim that needs no order.
    pub fn free() -> Self {
        Self { held: None, granted: true }
    }

    /// The claim if it may be acted on, or `None` to decide again.
    pub fn granted(self) -> Option<Self> {
        self.granted.then_some(self)
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if let Some(claims) = self.held {
            claims.version.fetch_add(1, Ordering::AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn a_claim_fails_after_another_reservation_until_the_last_attempt() {
        let claims = Claims::default();
        let (first, second) = (claims.seen(), claims.seen());
        assert!(claims.claim(first, 1).granted().is_some());
        assert!(claims.claim(second, 1).granted().is_none());
        assert!(claims.claim(second, MAX_ATTEMPTS).granted().is_some());
        assert!(claims.claim(claims.seen(), 1).granted().is_some());
        assert!(claims.seen().is_multiple_of(2));
    }

    #[test]
    fn concurrent_pick_and_reserve_spreads_a_burst_evenly() {
        // Four threads pick the least loaded of eight endpoints, 400 picks each. With claims the
        // final loads differ by at most what may go through after the last attempt.
        let claims = Arc::new(Claims::default());
        let loads: Arc<[AtomicU64; 8]> = Arc::default();
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (claims, loads) = (Arc::clone(&claims), Arc::clone(&loads));
                std::thread::spawn(move || {
                    for _ in 0..400 {
                        let mut attempt = 0;
                        loop {
                            let seen = claims.seen();
                            let least = (0..8).min_by_key(|i| loads[*i].load(Ordering::Acquire)).unwrap();
                            attempt += 1;
                            // No attempt goes through unordered here: the bound is another test's.
                            if let Some(_claim) = claims.claim(seen, attempt.min(1)).granted() {
                                loads[least].fetch_add(1, Ordering::AcqRel);
                                break;
                            }
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let mut counts: Vec<_> = loads.iter().map(|l| l.load(Ordering::Acquire)).collect();
        counts.sort_unstable();
        assert_eq!(counts.iter().sum::<u64>(), 1600);
        assert!(counts[7] - counts[0] <= 1, "{counts:?}");
    }
}
