//! The filters of a prune: `label`, `label!` and `until`, with the engine's meaning.

use super::error::{ApiError, Result};
use super::query::{Filters, RequestQuery};
use crate::model::Timestamp;
use std::collections::BTreeMap;
use std::time::Duration;

/// What a prune may remove.
pub struct PruneFilter {
    filters: Filters,
    /// What was made later stays.
    until: Option<Timestamp>,
}

impl PruneFilter {
    /// Of a request that arrives at `now`.
    ///
    /// # Errors
    /// 400 for another filter, and for a time that cannot be read.
    pub fn of(query: &RequestQuery, now: Timestamp) -> Result<Self> {
        let filters = query.filters(&["until", "label", "label!"])?;
        let times: Vec<&str> = filters.values("until").collect();
        let until = match times.as_slice() {
            [] => None,
            [time] => Some(read_time(time, now)?),
            _ => return Err(ApiError::bad("more than one until filter specified")),
        };
        Ok(Self { filters, until })
    }

    /// Whether what has these labels and was made then may be removed. A label that is spared counts only with all
    /// others that are.
    pub fn removes(&self, labels: &BTreeMap<String, String>, made: Timestamp) -> bool {
        let is_spared = self.filters.has("label!") && self.filters.labels("label!", labels);
        self.filters.labels("label", labels) && !is_spared && self.until.is_none_or(|until| made <= until)
    }
}

/// A time as clients give it: a duration of Go before `now`, a date with what is known of its time and its zone, or seconds since 1970.
fn read_time(text: &str, now: Timestamp) -> Result<Timestamp> {
    if let Some(nanos) = duration(text) {
        // Whole seconds, as in the engine.
        let then = now.0.saturating_sub(nanos);
        return Ok(Timestamp(then - then.rem_euclid(1_000_000_000)));
    }
    let unreadable = || ApiError::bad(format!("failed to parse value as time or duration: {text:?}"));
    if text.trim_start_matches('-').contains('-') {
        return date(text).ok_or_else(|| {
            ApiError::bad(format!(
                "{text:?} is not a date with a time zone, such as 2026-01-31T10:00:00Z or 2026-01-31T10:00:00+02:00"
            ))
        });
    }
    Timestamp::of_seconds(text).ok_or_else(unreadable)
}

/// A date of RFC 3339, of which minutes, seconds or the whole time may be missing. Not its zone: this process does not know the engine's.
fn date(text: &str) -> Option<Timestamp> {
    let (day, rest) = text.split_at_checked("2026-01-31".len())?;
    let (time, zone) = match rest.strip_prefix('T') {
        Some(rest) => rest.split_at(rest.find(['Z', 'z', '+', '-'])?),
        None => ("00:00:00", rest),
    };
    let missing = match time.matches(':').count() {
        0 => ":00:00",
        1 => ":00",
        _ => "",
    };
    Timestamp::parse(&format!("{day}T{time}{missing}{zone}"))
}

/// Nanoseconds of a duration as Go writes it (`1h30m`, `-2.5s`); `None` if the text is none, or out of range. `0` alone is a time.
fn duration(text: &str) -> Option<i64> {
    let negative = text.starts_with('-');
    let mut rest = text.strip_prefix(['-', '+']).unwrap_or(text);
    let mut sum = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let (unit, after) = after.split_at(after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len()));
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        sum = sum.checked_add(part)?;
        rest = after;
    }
    let nanos = i64::try_from(sum.as_nanos()).ok()?;
    Some(if negative { -nanos } else { nanos })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::query::encode;

    const NOW: Timestamp = Timestamp(1_767_225_600_500_000_000); // 2026-01-01T00:00:00.5Z

    fn filter(text: &str) -> Result<PruneFilter> {
        PruneFilter::of(&RequestQuery::parse(&format!("filters={}", encode(text))), NOW)
    }

    #[test]
    fn times_are_durations_dates_or_seconds() {
        for (text, time) in [
            ("24h", "2025-12-31T00:00:00Z"),
            ("1h30m", "2025-12-31T22:30:00Z"),
            ("1.5h", "2025-12-31T22:30:00Z"),
            ("10ms", "2026-01-01T00:00:00Z"),
            ("-1m", "2026-01-01T00:01:00Z"),
            ("2025-12-01T10:20:30Z", "2025-12-01T10:20:30Z"),
            ("2025-12-01T10:20:30.5+02:00", "2025-12-01T08:20:30.5Z"),
            ("2025-12-01T10:20Z", "2025-12-01T10:20:00Z"),
            ("2025-12-01T10-02:00", "2025-12-01T12:00:00Z"),
            ("2025-12-01Z", "2025-12-01T00:00:00Z"),
            ("1767225600", "2026-01-01T00:00:00Z"),
            ("1767225600.25", "2026-01-01T00:00:00.25Z"),
            ("0", "1970-01-01T00:00:00Z"),
        ] {
            assert_eq!(read_time(text, NOW).unwrap().to_rfc3339(), time, "{text}");
        }
        for text in
            ["yesterday", "2025-12-01T10:20:30", "2025-12-01", "2025-13-01Z", "1d", "h", "9999999999h", "", "-", "1.2.3h", "²h"]
        {
            assert!(read_time(text, NOW).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_spared_has_all_labels_that_spare() {
        let labels = |text: &str| text.split(' ').map(|key| (key.to_owned(), String::new())).collect::<BTreeMap<_, _>>();
        let both = filter(r#"{"label!":["keep","data"]}"#).unwrap();
        assert!(!both.removes(&labels("keep data"), NOW) && both.removes(&labels("keep"), NOW));
        let wanted = filter(r#"{"label":["old","ci"],"label!":["keep"],"until":["1h"]}"#).unwrap();
        let (earlier, later) =
            (Timestamp::parse("2025-12-31T23:00:00Z").unwrap(), Timestamp::parse("2025-12-31T23:00:01Z").unwrap());
        assert!(wanted.removes(&labels("old ci"), earlier) && !wanted.removes(&labels("old ci"), later));
        assert!(!wanted.removes(&labels("old"), earlier) && !wanted.removes(&labels("old ci keep"), earlier));
        assert!(filter(r#"{"until":["1h","2h"]}"#).is_err() && filter(r#"{"name":["x"]}"#).is_err());
    }
}
