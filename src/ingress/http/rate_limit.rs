//! How often each client asks a route. The time is passed in.
//!
//! Of a client one number is kept: when the requests that it has made would all have been made if it had kept to the rate (the
//! generic cell rate algorithm). One that is in the past says the same as none.

use crate::accept::client_key;
use crate::model::http::HttpRate;
use crate::sync::lock;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::Duration;

/// Clients that are kept before those that did not ask lately are forgotten: they may ask again as if for the first time.
const MOST_CLIENTS: usize = 32_768;

/// The clients of a route.
#[derive(Default, Debug)]
pub(super) struct RateLimit(Mutex<RateBook>);

#[derive(Default, Debug)]
struct RateBook {
    recent: HashMap<IpAddr, u64>,
    /// Those of before.
    older: HashMap<IpAddr, u64>,
}

impl RateLimit {
    /// One more request of a client, at a time in nanoseconds.
    ///
    /// # Errors
    /// How long the client has to wait.
    pub fn admit(&self, client: IpAddr, rate: HttpRate, now: u64) -> Result<(), Duration> {
        let client = client_key(client);
        let mut book = lock(&self.0);
        let before = book.recent.get(&client).or_else(|| book.older.get(&client)).copied();
        let after = next(before.unwrap_or(0), rate, now)?;
        if book.recent.len() >= MOST_CLIENTS && !book.recent.contains_key(&client) {
            book.older = std::mem::take(&mut book.recent);
        }
        book.recent.insert(client, after);
        Ok(())
    }
}

/// When the requests of a client would have been made at the rate, with one more.
fn next(before: u64, rate: HttpRate, now: u64) -> Result<u64, Duration> {
    let each = (rate.period_ms.saturating_mul(1_000_000) / u64::from(rate.requests.max(1))).max(1);
    let ahead = each.saturating_mul(u64::from(rate.burst.saturating_sub(1)));
    // The rate may have been another one before.
    let before = before.clamp(now, now.saturating_add(ahead).saturating_add(each));
    match (before - now).checked_sub(ahead) {
        Some(wait @ 1..) => Err(Duration::from_nanos(wait)),
        _ => Ok(before.saturating_add(each)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn client(number: u32) -> IpAddr {
        IpAddr::from((0x0a00_0000 + number).to_be_bytes())
    }

    /// Requests of a client that are admitted at this moment.
    fn admitted(limit: &RateLimit, number: u32, rate: HttpRate, now: u64) -> usize {
        (0..100).take_while(|_| limit.admit(client(number), rate, now).is_ok()).count()
    }

    #[test]
    fn a_client_has_its_burst_and_then_its_rate_and_others_have_their_own() {
        let rate = HttpRate { requests: 10, period_ms: 1000, burst: 5 };
        let limit = RateLimit::default();
        assert_eq!((admitted(&limit, 1, rate, SECOND), admitted(&limit, 2, rate, SECOND)), (5, 5));
        assert_eq!(limit.admit(client(1), rate, SECOND), Err(Duration::from_millis(100)));
        assert_eq!(admitted(&limit, 1, rate, SECOND + SECOND / 10), 1);
        assert_eq!(admitted(&limit, 1, rate, SECOND + SECOND * 2 / 10), 1);
        assert_eq!(admitted(&limit, 1, rate, 60 * SECOND), 5, "not more after a pause");
        let all: usize = (0..1000).map(|tenth| admitted(&limit, 3, rate, 100 * SECOND + tenth * SECOND / 100)).sum();
        assert!((100..=105).contains(&all), "ten seconds: {all}");
        let minute = HttpRate { requests: 1, period_ms: 60_000, burst: 1 };
        assert_eq!(admitted(&limit, 4, minute, SECOND), 1);
        assert_eq!(limit.admit(client(4), minute, 31 * SECOND), Err(Duration::from_secs(30)));
        assert_eq!(limit.admit(client(4), rate, 31 * SECOND), Err(Duration::from_millis(100)), "the label was changed");
    }

    #[test]
    fn what_is_kept_is_bounded_and_who_asks_is_not_forgotten() {
        let rate = HttpRate { requests: 1, period_ms: 86_400_000, burst: 1 };
        let limit = RateLimit::default();
        for number in 0..200_000 {
            assert!(limit.admit(client(number), rate, SECOND).is_ok());
            let book = lock(&limit.0);
            assert!(book.recent.len() + book.older.len() <= 2 * MOST_CLIENTS);
        }
        assert!(limit.admit(client(199_999), rate, SECOND).is_err());
    }
}
