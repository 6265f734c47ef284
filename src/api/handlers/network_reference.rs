//! Which network a request means, of the swarm's and of the engine's together: the one with that id, else the one with that
//! name, else the only one whose id begins so.

use super::local_networks::parse_list;
use super::request::ApiRequest;
use crate::api::convert::network::swarm_network_of;
use crate::api::error::{ApiError, Result};
use crate::api::lookup;
use crate::model::Network;
use crate::store::Store;

/// The network that a request means.
#[derive(Debug)]
pub enum ReferencedNetwork<'a> {
    Swarm(&'a Network),
    /// One of the engine's own, by the engine's id.
    Local(String),
    Unknown,
}

/// Id and name of one of the engine's own networks.
type LocalName = (String, String);

/// Finds a network.
///
/// # Errors
/// 400 if several match, 503 if the engine does not answer and the swarm has no such network.
pub async fn find<'a>(request: &ApiRequest, store: &'a Store, reference: &str) -> Result<ReferencedNetwork<'a>> {
    if let Some(network) = lookup::networks(store).find(|n| n.id.as_str() == reference) {
        return Ok(ReferencedNetwork::Swarm(network));
    }
    match local_names(request).await {
        Ok(local) => resolve(reference, store, &local),
        // The swarm's networks are found without an engine too.
        Err(down) => lookup::network(store, reference)
            .map(ReferencedNetwork::Swarm)
            .map_err(|error| if error.status == hyper::StatusCode::NOT_FOUND { down } else { error }),
    }
}

/// The engine's own networks.
///
/// # Errors
/// 503 if the engine does not answer.
pub async fn local_names(request: &ApiRequest) -> Result<Vec<LocalName>> {
    let reply = request.api.engine.get(&request.engine_target("/networks")).await?;
    reply.ok().map_err(|e| ApiError::failed(format!("the engine did not list its networks: {e}")))?;
    let text = |network: &serde_json::Value, key: &str| network[key].as_str().unwrap_or_default().to_owned();
    let own = parse_list(&reply.body)?.into_iter().filter(|n| swarm_network_of(n).is_none());
    Ok(own.map(|n| (text(&n, "Id"), text(&n, "Name"))).collect())
}

fn resolve<'a>(reference: &str, store: &'a Store, local: &[LocalName]) -> Result<ReferencedNetwork<'a>> {
    let swarm = || lookup::networks(store);
    let is_prefix = |id: &str| !reference.is_empty() && id.starts_with(reference);
    for (swarm_matches, local_matches, how) in [
        (swarm().filter(|n| n.id.as_str() == reference).collect(), named(local, |(id, _)| id == reference), "ID"),
        (swarm().filter(|n| n.spec.name == reference).collect(), named(local, |(_, name)| name == reference), "name"),
        (swarm().filter(|n| is_prefix(n.id.as_str())).collect(), named(local, |(id, _)| is_prefix(id)), "ID prefix"),
    ] {
        let swarm_matches: Vec<&Network> = swarm_matches;
        match (swarm_matches.as_slice(), local_matches.as_slice()) {
            ([], []) => {}
            ([one], []) => return Ok(ReferencedNetwork::Swarm(one)),
            ([], [one]) => return Ok(ReferencedNetwork::Local(one.clone())),
            (some, others) => {
                let count = some.len() + others.len();
                return Err(ApiError::bad(format!("network {reference} is ambiguous ({count} matches found based on {how})")));
            }
        }
    }
    Ok(ReferencedNetwork::Unknown)
}

/// Ids of the networks that pass.
fn named(local: &[LocalName], passes: impl Fn(&LocalName) -> bool) -> Vec<String> {
    local.iter().filter(|network| passes(network)).map(|(id, _)| id.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{NetworkId, NetworkSpec, Timestamp};
    use crate::store::{Action, Transaction};

    /// A store with these networks, as (id, name).
    fn store(networks: &[(&str, &str)]) -> Store {
        let mut store = Store::default();
        let create = |(id, name): &(&str, &str)| {
            let spec = NetworkSpec { name: (*name).to_owned(), ..NetworkSpec::default() };
            Action::create(Network::new(NetworkId::from(*id), spec))
        };
        let transaction = Transaction::new(Timestamp::default(), networks.iter().map(create).collect());
        store.apply(1, &transaction).expect("valid");
        store
    }

    fn outcome(reference: &str, swarm: &[(&str, &str)], local: &[(&str, &str)]) -> String {
        let local: Vec<LocalName> = local.iter().map(|(id, name)| ((*id).to_owned(), (*name).to_owned())).collect();
        match resolve(reference, &store(swarm), &local) {
            Ok(ReferencedNetwork::Swarm(network)) => format!("swarm {}", network.id),
            Ok(ReferencedNetwork::Local(id)) => format!("local {id}"),
            Ok(ReferencedNetwork::Unknown) => "unknown".to_owned(),
            Err(error) => format!("{} {}", error.status.as_u16(), error.message),
        }
    }

    #[test]
    fn an_id_is_more_than_a_name_and_a_name_more_than_a_prefix() {
        let swarm = [("dbaaaaaaaaaaaaaaaaaaaaaaa", "front"), ("xyaaaaaaaaaaaaaaaaaaaaaaa", "both")];
        let local = [("0dfe", "db"), ("77aa", "both"), ("front0", "other"), ("dbff", "lan")];
        for (reference, expected) in [
            ("db", "local 0dfe"),
            ("front", "swarm dbaaaaaaaaaaaaaaaaaaaaaaa"),
            ("xy", "swarm xyaaaaaaaaaaaaaaaaaaaaaaa"),
            ("77", "local 77aa"),
            ("77aa", "local 77aa"),
            ("dba", "swarm dbaaaaaaaaaaaaaaaaaaaaaaa"),
            ("both", "400 network both is ambiguous (2 matches found based on name)"),
            ("d", "400 network d is ambiguous (2 matches found based on ID prefix)"),
            ("", "unknown"),
            ("nosuch", "unknown"),
        ] {
            assert_eq!(outcome(reference, &swarm, &local), expected, "{reference}");
        }
    }
}
