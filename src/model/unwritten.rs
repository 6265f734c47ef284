//! A planned change of an object that cannot be written to the store.

use super::id::ServiceId;
use serde::{Deserialize, Serialize};
use std::fmt;

/// An object that the leader leaves out of its transactions, so that everything else goes on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct UnwrittenObject {
    /// `task`, `service`, `network`, `node` or `cluster`.
    pub kind: String,
    pub id: String,
    /// The service itself, or the one of the task.
    pub service_id: Option<ServiceId>,
    /// Empty without a service.
    pub service_name: String,
    /// Why it cannot be written, for people.
    pub reason: String,
}

impl fmt::Display for UnwrittenObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, id, service_name, reason, .. } = self;
        match service_name.as_str() {
            "" => write!(f, "{kind} {id}: {reason}"),
            name => write!(f, "{kind} {id} (service {name}): {reason}"),
        }
    }
}
