//! Finds the object that a path refers to: by its full id, then its exact name (case matters), then a unique prefix of its id.

use super::error::{ApiError, Result};
use crate::model::{ClusterConfig, ClusterSecret, Network, Node, Service, Task};
use crate::store::Store;

/// The one of `matching` that `reference` names; `kind` is for the message.
fn only<'a, T>(kind: &str, reference: &str, matching: impl Iterator<Item = &'a T>) -> Result<&'a T> {
    let found: Vec<&T> = matching.collect();
    match found.as_slice() {
        [] => Err(ApiError::not_found(kind, reference)),
        [one] => Ok(one),
        many => Err(ApiError::bad(format!("{kind} {reference} is ambiguous ({} matches found)", many.len()))),
    }
}

/// The one whose id begins with `reference`.
fn by_prefix<'a, T>(
    kind: &str,
    reference: &str,
    all: impl Iterator<Item = &'a T>,
    id: impl Fn(&'a T) -> &'a str,
) -> Result<&'a T> {
    only(kind, reference, all.filter(|object| !reference.is_empty() && id(object).starts_with(reference)))
}

/// Finds a service. Clients ask for one again and again while it changes: neither its id nor its name is searched for.
///
/// # Errors
/// 404, or 400 if several match.
pub fn service<'a>(store: &'a Store, reference: &str) -> Result<&'a Service> {
    let named = || store.service_named(reference).filter(|service| service.spec.name == reference);
    let found = store.service(&reference.into()).or_else(named);
    found.map_or_else(|| by_prefix("service", reference, store.services(), |s| s.id.as_str()), Ok)
}

/// Finds a secret.
///
/// # Errors
/// 404, or 400 if several match.
pub fn secret<'a>(store: &'a Store, reference: &str) -> Result<&'a ClusterSecret> {
    let named = || store.secret_named(reference).filter(|secret| secret.spec.name == reference);
    let found = store.get::<ClusterSecret>(&reference.into()).or_else(named);
    found.map_or_else(|| by_prefix("secret", reference, store.all::<ClusterSecret>(), |s| s.id.as_str()), Ok)
}

/// Finds a config.
///
/// # Errors
/// 404, or 400 if several match.
pub fn config<'a>(store: &'a Store, reference: &str) -> Result<&'a ClusterConfig> {
    let named = || store.config_named(reference).filter(|config| config.spec.name == reference);
    let found = store.get::<ClusterConfig>(&reference.into()).or_else(named);
    found.map_or_else(|| by_prefix("config", reference, store.all::<ClusterConfig>(), |c| c.id.as_str()), Ok)
}

/// Finds a node; its name is its hostname, which several may have.
///
/// # Errors
/// 404, or 400 if several match.
pub fn node<'a>(store: &'a Store, reference: &str) -> Result<&'a Node> {
    if let Some(node) = store.node(&reference.into()) {
        return Ok(node);
    }
    if store.nodes().any(|node| node.description.hostname == reference) {
        return only("node", reference, store.nodes().filter(|node| node.description.hostname == reference));
    }
    by_prefix("node", reference, store.nodes(), |n| n.id.as_str())
}

/// Finds a task; tasks have no name.
///
/// # Errors
/// 404, or 400 if several match.
pub fn task<'a>(store: &'a Store, reference: &str) -> Result<&'a Task> {
    store.task(&reference.into()).map_or_else(|| by_prefix("task", reference, store.tasks(), |t| t.id.as_str()), Ok)
}

/// Finds a network.
///
/// # Errors
/// 404, or 400 if several match.
pub fn network<'a>(store: &'a Store, reference: &str) -> Result<&'a Network> {
    let by_id = store.network(&reference.into()).filter(|network| !network.removing);
    let named = || store.network_named(reference).filter(|network| network.spec.name == reference);
    by_id.or_else(named).map_or_else(|| by_prefix("network", reference, networks(store), |n| n.id.as_str()), Ok)
}

/// The networks that users see: not those that are removed and only wait for their last address to be free.
pub fn networks(store: &Store) -> impl Iterator<Item = &Network> {
    store.networks().filter(|network| !network.removing)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ServiceSpec, Timestamp, fixture};
    use crate::store::{Action, Transaction};

    #[test]
    fn an_id_is_more_than_a_name_and_a_name_more_than_a_prefix() {
        let named = |id: &str, name: &str| fixture::service(id, ServiceSpec { name: name.to_owned(), ..ServiceSpec::default() });
        let services = [named("abc1", "web"), named("abd2", "abc1"), named("web9", "db"), named("xyz3", "ab")];
        let mut nodes = [fixture::node("n1"), fixture::node("n2"), fixture::node("m3")];
        nodes[2].mesh.key = crate::model::WgKey([3; 32]);
        nodes[1].mesh.key = crate::model::WgKey([2; 32]);
        nodes[1].description.hostname = "n1host".to_owned();
        nodes[2].description.hostname = "n1host".to_owned();
        let actions = services.into_iter().map(Action::create).chain(nodes.into_iter().map(Action::create)).collect();
        let mut store = Store::default();
        store.apply(1, &Transaction::new(Timestamp(0), actions)).expect("applied");
        let found = |reference: &str| service(&store, reference).map(|s| s.id.to_string()).map_err(|e| e.message);
        for (reference, id) in
            [("abc1", "abc1"), ("web", "abc1"), ("ab", "xyz3"), ("abd", "abd2"), ("web9", "web9"), ("xy", "xyz3")]
        {
            assert_eq!(found(reference).as_deref(), Ok(id), "{reference}");
        }
        for (reference, refusal) in [
            ("WEB", "service WEB not found"),
            ("", "service  not found"),
            ("abc12", "service abc12 not found"),
            ("a", "service a is ambiguous (2 matches found)"),
        ] {
            assert_eq!(found(reference), Err(refusal.to_owned()));
        }
        assert_eq!(node(&store, "n1").map(|n| n.id.to_string()).ok().as_deref(), Some("n1"));
        assert_eq!(node(&store, "n1host").expect_err("two").message, "node n1host is ambiguous (2 matches found)");
    }
}
