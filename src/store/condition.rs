//! Conditions of a transaction: what its proposer has checked on the state that it read, checked again when the transaction
//! is applied, because other writers may have been first.

use super::object::{Kind, Store, StoreError};
use crate::model::port_labels::{MOST_SOURCES, sources_of};
use crate::model::{NetworkId, PayloadId, Protocol, PublishMode, Service, ServiceId, WgKey};
use serde::{Deserialize, Serialize};

/// A condition.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Condition {
    /// The object exists, and was not written since.
    Version { kind: Kind, id: String, version: u64 },
    /// The object exists. A network that is being removed does not, as far as users see.
    Present { kind: Kind, id: String },
    /// The object does not exist.
    Absent { kind: Kind, id: String },
    /// No other object needs it: of a network, nothing is wanted to run on it; of a secret or a config, no service names it. Any
    /// other object is needed by none.
    Unreferenced { kind: Kind, id: String },
    /// No service besides `except` publishes the port in a way that excludes this one: two services may publish a port in
    /// host mode, on different nodes.
    FreePort { mode: PublishMode, protocol: Protocol, port: u16, except: Option<ServiceId> },
    /// No node has this WireGuard key, or is about to.
    FreeKey { key: WgKey },
    /// The allow-lists of all services but one leave room for so many entries.
    AllowListsFit { entries: u64, except: Option<ServiceId> },
}

impl Condition {
    /// The object exists.
    pub fn present(kind: Kind, id: &(impl ToString + ?Sized)) -> Self {
        Self::Present { kind, id: id.to_string() }
    }
    /// No other object needs it.
    pub fn unreferenced(kind: Kind, id: &(impl ToString + ?Sized)) -> Self {
        Self::Unreferenced { kind, id: id.to_string() }
    }
    /// The object is as the proposer has read it.
    pub fn version(kind: Kind, id: &(impl ToString + ?Sized), version: u64) -> Self {
        Self::Version { kind, id: id.to_string(), version }
    }

    /// Checks it.
    ///
    /// # Errors
    /// It does not hold; the error names what is in the way.
    pub fn check(&self, store: &Store) -> Result<(), StoreError> {
        let not_found = |kind: &Kind, id: &String| StoreError::NotFound { kind: *kind, id: id.clone() };
        match self {
            Self::Version { kind, id, version } => match kind.stored_meta(store, id) {
                Some(meta) if meta.version == *version => Ok(()),
                Some(_) => Err(StoreError::OutOfSequence),
                None => Err(not_found(kind, id)),
            },
            Self::Present { kind, id } if is_present(store, *kind, id) => Ok(()),
            Self::Present { kind, id } => Err(not_found(kind, id)),
            Self::Absent { kind, id } => match kind.stored_meta(store, id) {
                Some(_) => Err(StoreError::Exists { kind: *kind, id: id.clone() }),
                None => Ok(()),
            },
            Self::Unreferenced { kind, id } => match user_of(store, *kind, id) {
                Some((by, by_id)) => Err(StoreError::InUse { kind: *kind, id: id.clone(), by, by_id }),
                None => Ok(()),
            },
            Self::FreePort { mode, protocol, port, except } => {
                let user = store.port_conflict(*mode, *protocol, *port, except.as_ref());
                user.map_or(Ok(()), |(service, taken)| {
                    Err(StoreError::PortInUse {
                        port: *port,
                        mode: taken,
                        service: service.id.clone(),
                        name: service.spec.name.clone(),
                    })
                })
            }
            Self::AllowListsFit { entries, except } => {
                let others = store.services().filter(|service| Some(&service.id) != except.as_ref());
                let others: usize = others.map(|service| sources_of(&service.spec)).sum();
                if others as u64 + entries > MOST_SOURCES as u64 {
                    return Err(StoreError::AllowListsFull { entries: *entries, others: others as u64 });
                }
                Ok(())
            }
            Self::FreeKey { key } => {
                let node = store.nodes_with_key(key).next();
                node.map_or(Ok(()), |node| Err(StoreError::KeyInUse { node: node.id.clone() }))
            }
        }
    }
}

fn is_present(store: &Store, kind: Kind, id: &str) -> bool {
    match kind {
        Kind::Network => store.network(&NetworkId::from(id)).is_some_and(|network| !network.removing),
        _ => kind.stored_meta(store, id).is_some(),
    }
}

/// An object that needs this one, as kind and id.
fn user_of(store: &Store, kind: Kind, id: &str) -> Option<(Kind, String)> {
    let service = |user: Option<&Service>| user.map(|service| (Kind::Service, service.id.to_string()));
    match kind {
        Kind::Network => store.network(&NetworkId::from(id)).and_then(|network| store.network_user(network)),
        Kind::ClusterSecret => service(store.services_with(&PayloadId::Secret(id.into())).next()),
        Kind::ClusterConfig => service(store.services_with(&PayloadId::Config(id.into())).next()),
        Kind::Cluster
        | Kind::Node
        | Kind::Service
        | Kind::Task
        | Kind::PayloadKeys
        | Kind::AcmeAccount
        | Kind::AcmeCertificate => None,
    }
}
