//! `--force-new-cluster`: re-creates the cluster from this manager's copy of the state, with this node as its only manager. The managers
//! that are lost come back as workers, if they do.

use super::address;
use super::control::failed;
use super::daemon::Daemon;
use super::lifecycle::MembershipState;
use super::resume::resume;
use super::state_dir::{MembershipFile, StateDir};
use crate::api::control::{ControlError, NOT_MANAGER};
use crate::datapath::interfaces::host_addresses;
use crate::manager::new_cluster::{Survivor, next_incarnation, plan};
use crate::manager::{replica, roles};
use crate::model::{NodeId, Role, Timestamp};
use crate::raft::{self, LogCipher};
use crate::store::{Store, Transaction};
use anyhow::Context as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Time for the new cluster to serve its store.
const SERVES: Duration = Duration::from_secs(20);

impl Daemon {
    /// Stops the node, rewrites its log, starts it again. Its tasks go on meanwhile. An address takes the place of the one that the node
    /// advertises; empty: that stays. The caller holds the lock.
    pub(super) async fn make_new_cluster(self: &Arc<Self>, advertise: &str) -> Result<NodeId, ControlError> {
        let stored = MembershipFile::load(&self.env.state_dir).map_err(|e| failed(&e))?;
        let membership = stored.filter(|m| m.role == Role::Manager).ok_or_else(|| ControlError::unavailable(NOT_MANAGER))?;
        let membership = self.with_advertise(membership, advertise).await?;
        let id = membership.node_id.clone();
        tracing::warn!(node = %id, "the cluster is re-created from this manager's state");
        if let MembershipState::Active(member) = self.lifecycle.state() {
            member.pause().await;
        }
        self.env.blockers.clear_membership();
        self.lifecycle.set(MembershipState::Pending { remotes: Vec::new(), error: String::new() });
        let (dir, now) = (self.env.state_dir.clone(), self.env.clock.now());
        let cipher: Arc<dyn LogCipher> = self.env.keyring.clone();
        let rewritten = tokio::task::spawn_blocking(move || rewrite(&dir, membership, &cipher, now)).await;
        let rewritten = rewritten.map_err(anyhow::Error::from).flatten();
        // Whether that worked or not: the node runs on.
        if let Err(error) = resume(self).await {
            self.lifecycle.set(MembershipState::Pending { remotes: Vec::new(), error: format!("{error:#}") });
            self.env.failed.notify_one();
            rewritten.map_err(|e| failed(&e))?;
            return Err(failed(&error.context("the cluster was re-created, but this node does not start; it is tried again")));
        }
        rewritten.map_err(|e| failed(&e.context("the cluster was not re-created")))?;
        self.serves_new_cluster().await.map_err(|e| failed(&e))?;
        Ok(id)
    }

    async fn with_advertise(&self, membership: MembershipFile, advertise: &str) -> Result<MembershipFile, ControlError> {
        if advertise.is_empty() {
            return Ok(membership);
        }
        let host = host_addresses().await.map_err(|e| failed(&e))?;
        let listen = membership.listen.to_string();
        let given = address::for_join(&listen, advertise, &host).map_err(ControlError::invalid)?;
        Ok(membership.advertising(given.advertise, given.advertise_interface))
    }

    async fn serves_new_cluster(&self) -> anyhow::Result<()> {
        let MembershipState::Active(member) = self.lifecycle.state() else { anyhow::bail!("this node has left meanwhile") };
        let serves = tokio::time::timeout(SERVES, member.has_store()).await;
        serves.context("the cluster was re-created, but its store is not served yet: see `skep status`")
    }
}

/// The begin of a new cluster.
pub(super) struct NewCluster {
    pub store: Store,
    pub raft_id: u64,
    /// Index and term of its first snapshot.
    pub at: (u64, u64),
    pub incarnation: u64,
}

/// The begin of a cluster with this member as its only manager, from a state after the entry `index` of `term`. `seen` is the latest
/// incarnation that is known beside that of the state.
///
/// # Errors
/// The state has no cluster, or not this node.
pub(super) fn begin(
    mut store: Store,
    membership: &MembershipFile,
    seen: u64,
    (index, term): (u64, u64),
    now: Timestamp,
) -> anyhow::Result<NewCluster> {
    let incarnation = next_incarnation(seen.max(store.revision().incarnation), now);
    let raft_id = roles::draw_raft_id(&mut rand::rng());
    let addr = membership.advertise.map(|ip| SocketAddr::new(ip, membership.listen.port()));
    let endpoints = membership.addresses().endpoints();
    let survivor = Survivor { node: membership.node_id.clone(), raft_id, addr, endpoints };
    let actions = plan(&store, &survivor, incarnation, now)?;
    let at = (index + 1, term + 1);
    store.apply(at.0, &Transaction::new(now, actions)).context("the state cannot be that of a new cluster")?;
    Ok(NewCluster { store, raft_id, at, incarnation })
}

/// Makes the log that of a cluster with this node as the only manager, then the membership that of this manager. A crash in between is
/// repaired by doing it again. Blocks.
fn rewrite(dir: &StateDir, membership: MembershipFile, cipher: &Arc<dyn LogCipher>, now: Timestamp) -> anyhow::Result<()> {
    let (store, log) = replica::replayed(&dir.raft(), cipher)?;
    // The nodes may follow a later incarnation than this log has: that of a log of which this one is an old copy.
    let seen = dir.ledger().load().ok().flatten().map_or(0, |view| view.revision.incarnation);
    let NewCluster { store, raft_id, at, incarnation } = begin(store, &membership, seen, (log.last, log.term), now)?;
    raft::rebuild(&dir.raft(), raft_id, at, store.snapshot(), cipher)?;
    let uncommitted = log.last - log.committed;
    tracing::warn!(incarnation, index = at.0, uncommitted, "a new incarnation of the cluster begins");
    membership.with_role(Role::Manager, Some(raft_id)).removed(None).store(dir)
}
