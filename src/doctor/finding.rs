//! A finding: what was looked at, what was found, what to do.

use serde::{Deserialize, Serialize};

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    Ok,
    /// It works, but not as well as it could, or a failure will hurt more than it must.
    Warning,
    /// It does not work.
    Error,
}

/// One finding.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    /// What was looked at.
    pub check: String,
    pub level: Level,
    /// What was found.
    pub found: String,
    /// What to do, a command where there is one. Empty: nothing.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub help: String,
}

impl Finding {
    pub(super) fn ok(check: &str, found: impl Into<String>) -> Self {
        Self { check: check.to_owned(), level: Level::Ok, found: found.into(), help: String::new() }
    }
    pub(super) fn warning(check: &str, found: impl Into<String>, help: impl Into<String>) -> Self {
        Self { check: check.to_owned(), level: Level::Warning, found: found.into(), help: help.into() }
    }
    pub(super) fn error(check: &str, found: impl Into<String>, help: impl Into<String>) -> Self {
        Self { check: check.to_owned(), level: Level::Error, found: found.into(), help: help.into() }
    }
}
