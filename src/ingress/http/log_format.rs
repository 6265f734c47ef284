//! Formats of the access log.

use serde::{Deserialize, Serialize};

/// Whether each request is a line of the log, and in which format.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HttpAccessLog {
    #[default]
    Off,
    Json,
    /// As Apache and nginx write it.
    Combined,
}
