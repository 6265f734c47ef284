//! Finds the object that a path refers to: by its full id, then its exact name, then a unique prefix of its id.

use super::error::{ApiError, Result};
use crate::model::{ClusterConfig, ClusterSecret, Network, Node, Service, Task};
use crate::store::Store;

/// The object of `all` that `reference` names; `kind` is for the message.
fn find<'a, T>(
    kind: &str,
    reference: &str,
    all: impl Iterator<Item = &'a T>,
    id: impl Fn(&T) -> &str,
    name: impl Fn(&T) -> Option<&str>,
) -> Result<&'a T> {
    let (mut by_name, mut by_prefix) = (Vec::new(), Vec::new());
    for object in all {
        if id(object) == reference {
            return Ok(object);
        }
        if name(object) == Some(reference) {
            by_name.push(object);
        }
        if !reference.is_empty() && id(object).starts_with(reference) {
            by_prefix.push(object);
        }
    }
    let found = if by_name.is_empty() { by_prefix } else { by_name };
    match found.as_slice() {
        [] => Err(ApiError::not_found(kind, reference)),
        [one] => Ok(one),
        many => Err(ApiError::bad(format!("{kind} {reference} is ambiguous ({} matches found)", many.len()))),
    }
}

/// Finds a service.
///
/// # Errors
/// 404, or 400 if several match.
pub fn service<'a>(store: &'a Store, reference: &str) -> Result<&'a Service> {
    find("service", reference, store.services(), |s| s.id.as_str(), |s| Some(&s.spec.name))
}

/// Finds a secret.
///
/// # Errors
/// 404, or 400 if several match.
pub fn secret<'a>(store: &'a Store, reference: &str) -> Result<&'a ClusterSecret> {
    find("secret", reference, store.all::<ClusterSecret>(), |s| s.id.as_str(), |s| Some(&s.spec.name))
}

/// Finds a config.
///
/// # Errors
/// 404, or 400 if several match.
pub fn config<'a>(store: &'a Store, reference: &str) -> Result<&'a ClusterConfig> {
    find("config", reference, store.all::<ClusterConfig>(), |c| c.id.as_str(), |c| Some(&c.spec.name))
}

/// Finds a node; its name is its hostname.
///
/// # Errors
/// 404, or 400 if several match.
pub fn node<'a>(store: &'a Store, reference: &str) -> Result<&'a Node> {
    find("node", reference, store.nodes(), |n| n.id.as_str(), |n| Some(&n.description.hostname))
}

/// Finds a task; tasks have no name.
///
/// # Errors
/// 404, or 400 if several match.
pub fn task<'a>(store: &'a Store, reference: &str) -> Result<&'a Task> {
    find("task", reference, store.tasks(), |t| t.id.as_str(), |_| None)
}

/// Finds a network.
///
/// # Errors
/// 404, or 400 if several match.
pub fn network<'a>(store: &'a Store, reference: &str) -> Result<&'a Network> {
    find("network", reference, networks(store), |n| n.id.as_str(), |n| Some(&n.spec.name))
}

/// The networks that users see: not those that are removed and only wait for their last address to be free.
pub fn networks(store: &Store) -> impl Iterator<Item = &Network> {
    store.networks().filter(|network| !network.removing)
}
