//! Issues certificates, on a manager: of this manager itself, and of members that renew theirs. Every manager has the CA's
//! key in its store, so none of this waits for the leader. The decision is pure; see [`decide`].

use super::environment::Environment;
use super::recovery::RecoveryWindow;
use crate::clock::Clock;
use crate::manager::root_rotation;
use crate::model::cluster::CaSettings;
use crate::model::mesh::node_address;
use crate::model::{ClusterId, Node, NodeId, Role, Timestamp};
use crate::protocol::{RenewalRefused, RenewalRequest, RenewedCertificate};
use crate::rpc::{CertificateAuthority, CertificateHolder};
use crate::store::StoreHandle;
use crate::sync::lock;
use crate::trust::{self, NodeName, RootCa};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Shortest time between two certificates of a node.
const PAUSE: Duration = Duration::from_secs(1);

/// Signs for nodes in the store.
#[derive(Clone)]
pub(super) struct CertificateIssuer {
    store: StoreHandle,
    clock: Arc<dyn Clock>,
    life: CertificateLife,
}

/// Life of the certificates that are issued next.
#[derive(Clone, Copy)]
pub(super) struct CertificateLife(Option<Duration>);

impl CertificateLife {
    /// As the daemon's settings say, for tests; as the cluster's otherwise.
    pub(super) fn new(env: &Environment) -> Self {
        let seconds = env.settings.manager.certificate_life_s;
        Self((seconds > 0).then(|| Duration::from_secs(seconds)))
    }

    pub(super) fn of(self, settings: &CaSettings) -> Duration {
        self.0.unwrap_or_else(|| trust::node_life(settings))
    }
}

impl CertificateIssuer {
    pub(super) fn new(env: &Environment, store: StoreHandle) -> Self {
        Self { store, clock: env.clock.clone(), life: CertificateLife::new(env) }
    }

    /// Whether a certificate of the node would have this role.
    pub(super) fn has_role(&self, node: &NodeId, wanted: Role) -> bool {
        self.store.read().node(node).is_some_and(|node| role(node) == wanted)
    }

    /// Issues the certificate of a node that the store has, with the role that the store has.
    pub(super) fn issue(&self, node: &NodeId, csr: &str) -> Result<RenewedCertificate, RenewalRefused> {
        let other = |error: trust::TrustError| RenewalRefused::Other(error.to_string());
        let store = self.store.read();
        let cluster = store.cluster().ok_or_else(|| RenewalRefused::Unavailable("this manager has no cluster yet".to_owned()))?;
        let node = store.node(node).ok_or(RenewalRefused::NotAMember)?;
        let (ca_certificate, ca_key) = cluster.issuing_ca();
        let ca = RootCa::from_pem(ca_certificate, ca_key.expose()).map_err(other)?;
        let name = NodeName { node_id: node.id.clone(), role: role(node), cluster_id: cluster.id.clone() };
        let life = self.life.of(&cluster.spec.ca_config);
        let certificate = trust::issue(&ca, csr, &name, self.clock.now(), life, &mut rand::rng()).map_err(other)?;
        let unlock_key = cluster.unlock_key.clone().filter(|_| name.role == Role::Manager);
        let chain = cluster.trust_bundle().map(|bundle| bundle.chain).unwrap_or_default();
        Ok(RenewedCertificate { certificate, ca_certificate: ca.certificate().to_owned(), chain, unlock_key })
    }
}

/// The role that a node has, not the one that it is to have.
fn role(node: &Node) -> Role {
    if node.manager.is_some() { Role::Manager } else { Role::Worker }
}

/// Renews members' certificates.
pub(super) struct RenewalAuthority {
    issuer: CertificateIssuer,
    recovery: Arc<RecoveryWindow>,
    /// When each node of the store was given its last certificate.
    issued: Mutex<BTreeMap<NodeId, Timestamp>>,
}

impl RenewalAuthority {
    pub(super) fn new(issuer: CertificateIssuer, recovery: Arc<RecoveryWindow>) -> Self {
        Self { issuer, recovery, issued: Mutex::default() }
    }
}

/// What [`decide`] judges a request by.
struct RenewalFacts<'a> {
    cluster: &'a ClusterId,
    /// The node's mesh address; `None` if the store has no such node.
    address: Option<Ipv6Addr>,
    /// The node has had a session with a certificate of the root that issues now.
    has_new_root: bool,
    /// When the node was given its last certificate.
    last: Option<Timestamp>,
    /// An operator allows expired certificates.
    recovers: bool,
    now: Timestamp,
}

/// Whether a holder gets its next certificate. It must still be a member and ask through its own tunnel: by the address, of
/// which WireGuard has checked the key that the store has for the node, a certificate and its key alone renew nothing.
fn decide(holder: &CertificateHolder, facts: &RenewalFacts<'_>) -> Result<(), RenewalRefused> {
    if holder.name.cluster_id != *facts.cluster {
        return Err(RenewalRefused::NotAMember);
    }
    let address = facts.address.ok_or(RenewalRefused::NotAMember)?;
    if holder.from.ip() != IpAddr::V6(address) {
        return Err(RenewalRefused::ForeignAddress);
    }
    if holder.is_of_retired_root && facts.has_new_root {
        return Err(RenewalRefused::Other(
            "this node has had a certificate of the root CA that took the place of this one's: run `skep leave --force` here, then join again"
                .to_owned(),
        ));
    }
    if holder.validity.is_over(facts.now) && !facts.recovers {
        return Err(RenewalRefused::Expired);
    }
    match facts.last {
        // A time in the future: the clock was set back.
        Some(last) if last <= facts.now && facts.now.since(last) < PAUSE => Err(RenewalRefused::TooSoon),
        _ => Ok(()),
    }
}

#[async_trait]
impl CertificateAuthority for RenewalAuthority {
    async fn renew(&self, holder: &CertificateHolder, request: &RenewalRequest) -> Result<RenewedCertificate, RenewalRefused> {
        let id = &holder.name.node_id;
        let now = self.issuer.clock.now();
        {
            let store = self.issuer.store.read();
            let cluster =
                store.cluster().ok_or_else(|| RenewalRefused::Unavailable("this manager has no cluster yet".to_owned()))?;
            let mut issued = lock(&self.issued);
            let facts = RenewalFacts {
                cluster: &cluster.id,
                address: store.node(id).map(|node| node_address(node.mesh.subnet)),
                has_new_root: store.node(id).is_some_and(|node| !root_rotation::is_without_new_root(cluster, node)),
                last: issued.get(id).copied(),
                recovers: self.recovery.is_open(),
                now,
            };
            decide(holder, &facts)?;
            issued.retain(|node, _| store.node(node).is_some());
            issued.insert(id.clone(), now);
        }
        let renewed = self.issuer.issue(id, &request.csr)?;
        if holder.validity.is_over(now) {
            tracing::warn!(node = %id, from = %holder.from, "renewed a certificate that had expired, as an operator allowed");
        } else {
            tracing::info!(node = %id, "renewed a node's certificate");
        }
        Ok(renewed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::Validity;

    const NOW: Timestamp = Timestamp(1_795_000_000_000_000_000);
    const OVER: Timestamp = Timestamp(NOW.0 - 1_000_000_000);
    const HOUR: Duration = Duration::from_hours(1);

    fn holder(from: &str, not_after: Timestamp) -> CertificateHolder {
        CertificateHolder {
            name: NodeName { node_id: "node1".into(), role: Role::Worker, cluster_id: "c1".into() },
            validity: Validity { not_before: Timestamp(0), not_after },
            is_of_retired_root: false,
            from: from.parse().unwrap(),
        }
    }

    #[test]
    fn only_a_member_at_its_own_address_with_a_certificate_that_is_valid_or_allowed_renews() {
        use RenewalRefused::{Expired, ForeignAddress, NotAMember, TooSoon};
        let own = "[fd00:1:2:3::1]:4000";
        let (cluster, other) = (ClusterId::from("c1"), ClusterId::from("c2"));
        let facts = |recovers, last| RenewalFacts {
            cluster: &cluster,
            address: Some("fd00:1:2:3::1".parse().unwrap()),
            has_new_root: false,
            last,
            recovers,
            now: NOW,
        };
        let (member, expired) = (holder(own, NOW.plus(HOUR)), holder(own, OVER));
        assert_eq!(decide(&member, &facts(false, None)), Ok(()));
        assert_eq!(decide(&member, &RenewalFacts { address: None, ..facts(false, None) }), Err(NotAMember));
        assert_eq!(decide(&member, &RenewalFacts { cluster: &other, ..facts(false, None) }), Err(NotAMember));
        for from in ["[fd00:1:2:4::1]:4000", "10.0.0.1:4000", "192.168.1.7:4000"] {
            assert_eq!(decide(&holder(from, NOW.plus(HOUR)), &facts(false, None)), Err(ForeignAddress), "{from}");
            assert_eq!(decide(&holder(from, OVER), &facts(true, None)), Err(ForeignAddress), "{from}, expired");
        }
        assert_eq!(decide(&expired, &facts(false, None)), Err(Expired));
        assert_eq!(decide(&expired, &facts(true, None)), Ok(()));
        assert_eq!(decide(&expired, &RenewalFacts { address: None, ..facts(true, None) }), Err(NotAMember));
        // A certificate of a root that was replaced: until the node has had one of the next.
        let away = CertificateHolder { is_of_retired_root: true, ..member.clone() };
        assert_eq!(decide(&away, &facts(false, None)), Ok(()));
        let renewed = RenewalFacts { has_new_root: true, ..facts(false, None) };
        assert!(matches!(decide(&away, &renewed), Err(RenewalRefused::Other(why)) if why.contains("skep leave --force")));
        assert_eq!(decide(&member, &renewed), Ok(()));
        assert_eq!(decide(&member, &facts(false, Some(NOW))), Err(TooSoon));
        assert_eq!(decide(&member, &facts(false, Some(Timestamp(NOW.0 - 1_000_000_000)))), Ok(()));
        assert_eq!(decide(&member, &facts(false, Some(NOW.plus(HOUR)))), Ok(()), "the clock was set back");
    }
}
