//! Finding an object by what stands in a path: its full id, then its exact name, then a unique beginning of its id.

use super::error::{ApiError, Result};
use crate::model::{Network, Node, Service, Task};
use crate::store::Store;

/// One of `all` that the reference means.
fn find<'a, T>(
    kind: &str,
    reference: &str,
    all: impl Iterator<Item = &'a T>,
    id: impl Fn(&T) -> &str,
    name: impl Fn(&T) -> Option<&str>,
) -> Result<&'a T> {
    let (mut named, mut begins) = (Vec::new(), Vec::new());
    for object in all {
        if id(object) == reference {
            return Ok(object);
        }
        if name(object) == Some(reference) {
            named.push(object);
        }
        if !reference.is_empty() && id(object).starts_with(reference) {
            begins.push(object);
        }
    }
    let found = if named.is_empty() { begins } else { named };
    match found.as_slice() {
        [] => Err(ApiError::not_found(kind, reference)),
        [one] => Ok(one),
        many => Err(ApiError::bad(format!("{kind} {reference} is ambiguous ({} matches found)", many.len()))),
    }
}

/// A service.
///
/// # Errors
/// 404, or 400 if several match.
pub fn service<'a>(store: &'a Store, reference: &str) -> Result<&'a Service> {
    find("service", reference, store.services(), |s| s.id.as_str(), |s| Some(&s.spec.name))
}

/// A node; its name is the host's.
///
/// # Errors
/// 404, or 400 if several match.
pub fn node<'a>(store: &'a Store, reference: &str) -> Result<&'a Node> {
    find("node", reference, store.nodes(), |n| n.id.as_str(), |n| Some(&n.description.hostname))
}

/// A task; it has no name.
///
/// # Errors
/// 404, or 400 if several match.
pub fn task<'a>(store: &'a Store, reference: &str) -> Result<&'a Task> {
    find("task", reference, store.tasks(), |t| t.id.as_str(), |_| None)
}

/// A network.
///
/// # Errors
/// 404, or 400 if several match.
pub fn network<'a>(store: &'a Store, reference: &str) -> Result<&'a Network> {
    find("network", reference, store.networks(), |n| n.id.as_str(), |n| Some(&n.spec.name))
}
