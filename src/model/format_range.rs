//! The formats that a build reads and speaks: a range, so that neighbouring releases understand each other.

use serde::{Deserialize, Serialize};
use std::fmt;

/// All formats from the oldest to the newest, both included. A range from a peer may be empty (oldest above newest): it has
/// no format in common with any other.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FormatRange {
    pub oldest: u32,
    pub newest: u32,
}

impl FormatRange {
    /// From the oldest to the newest format.
    #[must_use]
    pub const fn new(oldest: u32, newest: u32) -> Self {
        Self { oldest, newest }
    }
    /// One format: what a build that names a single number understands.
    #[must_use]
    pub const fn only(format: u32) -> Self {
        Self { oldest: format, newest: format }
    }
    #[must_use]
    pub const fn contains(self, format: u32) -> bool {
        self.oldest <= format && format <= self.newest
    }
    /// The newest format that both ranges have.
    #[must_use]
    pub fn common(self, other: Self) -> Option<u32> {
        let newest = self.newest.min(other.newest);
        (self.contains(newest) && other.contains(newest)).then_some(newest)
    }
}

impl fmt::Display for FormatRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.oldest == self.newest { write!(f, "{}", self.newest) } else { write!(f, "{} to {}", self.oldest, self.newest) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lower_newest_is_common_if_both_have_it() {
        for (a, b, common) in [
            ((3, 3), (3, 3), Some(3)),
            ((2, 3), (2, 3), Some(3)),
            ((2, 3), (2, 2), Some(2)),
            ((2, 3), (3, 9), Some(3)),
            ((2, 5), (1, 4), Some(4)),
            ((2, 3), (4, 9), None),
            ((2, 3), (1, 1), None),
            ((2, 3), (3, 2), None),
            ((0, u32::MAX), (7, 7), Some(7)),
        ] {
            let range = |(oldest, newest)| FormatRange { oldest, newest };
            assert_eq!(range(a).common(range(b)), common, "{a:?} {b:?}");
            assert_eq!(range(b).common(range(a)), common, "{b:?} {a:?}");
        }
        assert_eq!(FormatRange::new(2, 3).to_string(), "2 to 3");
        assert_eq!(FormatRange::only(2).to_string(), "2");
    }
}
