//! Times and durations as the Docker API writes them. Reads no clock: the time is always passed in.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use std::time::Duration;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Nanoseconds since 1970-01-01 UTC. Serialized as RFC 3339 in UTC with up to nine fractional digits, without trailing zeros.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct Timestamp(pub i64);

impl Timestamp {
    /// Saturating sum.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)))
    }
    /// Time from `earlier` to this; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(0))
    }
    /// As RFC 3339 text.
    #[must_use]
    pub fn to_rfc3339(self) -> String {
        OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0))
            .ok()
            .and_then(|t| t.format(&Rfc3339).ok())
            .unwrap_or_else(|| "0001-01-01T00:00:00Z".to_owned())
    }
    /// Parses RFC 3339 text; `None` if it is none.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let t = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        i64::try_from(t.unix_timestamp_nanos()).ok().map(Self)
    }
    /// Parses seconds since 1970 with up to nine decimals; `None` if the text is empty or something else.
    #[must_use]
    pub fn of_seconds(text: &str) -> Option<Self> {
        let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
        let nanos: i64 = format!("{fraction:0<9}").get(..9)?.parse().ok()?;
        Some(Self(seconds.parse::<i64>().ok()?.checked_mul(1_000_000_000)?.checked_add(nanos)?))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.to_rfc3339())
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom(format!("not an RFC 3339 time: {text:?}")))
    }
}

/// A duration in integer nanoseconds, as in the Docker API.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Nanos(pub i64);

impl Nanos {
    /// As a [`Duration`]; zero if negative.
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_nanos(u64::try_from(self.0).unwrap_or(0))
    }
}

impl From<Duration> for Nanos {
    fn from(duration: Duration) -> Self {
        Self(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_formatted_as_docker_formats_them() {
        let t = Timestamp::parse("2026-11-23T20:33:18.22142Z").expect("parses");
        assert_eq!(t.to_rfc3339(), "2026-11-23T20:33:18.22142Z");
        assert_eq!(t.plus(Duration::from_secs(2)).since(t), Duration::from_secs(2));
        assert_eq!(t.since(t.plus(Duration::from_secs(2))), Duration::ZERO);
    }
}
