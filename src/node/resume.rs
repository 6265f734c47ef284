//! Starts the membership that is on disk.

use super::daemon::Daemon;
use super::environment::Environment;
use super::lifecycle::MembershipState;
use super::locked_node::LockedNode;
use super::manager_part::{FirstManager, OpeningManager};
use super::manager_role;
use super::member::Member;
use super::membership_writer::view_of_managers;
use super::network::MeshNetwork;
use super::state_dir::MembershipFile;
use crate::datapath::interfaces::host_addresses;
use crate::manager::dispatcher::view_of;
use crate::model::Role;
use anyhow::Context as _;
use std::sync::Arc;
use std::time::Duration;

/// Time for a manager's log to be opened before the node starts without it. A log of 50,000 tasks takes less.
const OPEN: Duration = Duration::from_secs(5);

/// Starts the membership on disk, if there is one: from the ledger, without any manager. What belongs to the manager part
/// alone is left to be tried again beside the node.
pub(super) async fn resume(daemon: &Arc<Daemon>) -> anyhow::Result<()> {
    let env = &daemon.env;
    let Some(membership) = MembershipFile::load(&env.state_dir)? else { return Ok(()) };
    let membership = with_current_addresses(env, membership).await?;
    if env.keyring.is_locked() && is_locked(env, &membership)? {
        let node = LockedNode::start(env, membership).await?;
        daemon.lifecycle.set(MembershipState::Locked(Arc::new(node)));
        return Ok(());
    }
    let identity = env.certificates.load(Some(&membership.cluster_id))?.with_context(|| {
        format!(
            "{} has a membership but no certificates: restore them from a backup; if other managers are up, run `skep leave --force` and join \
             again instead",
            env.state_dir.path().display()
        )
    })?;
    let managers = view_of_managers(&membership, env.tunnel_key()?);
    let ledger = match env.state_dir.ledger().load() {
        Ok(ledger) => ledger,
        Err(error) if managers.is_some() => {
            tracing::warn!(error = format!("{error:#}"), "the ledger cannot be read: the managers send its content again");
            None
        }
        Err(error) => return Err(error),
    };
    let manager = match membership.current_role() {
        Role::Manager => prepare_manager(env, &membership).await,
        Role::Worker => None,
    };
    let stored = match &manager {
        Some(FirstManager::Prepared(manager)) => view_of(&manager.store.store.read(), &membership.node_id),
        Some(FirstManager::Opening(_)) | None => None,
    };
    // A manager's store is newer than its ledger, but for one that no other manager has brought up to date yet.
    let view = [ledger, stored].into_iter().flatten().max_by_key(|view| view.revision);
    let network = MeshNetwork::open(env, &membership.addresses()).await?;
    network.start_overlay(env, &membership.node_id, view);
    if let Some(managers) = managers {
        network.reach_managers(managers);
    }
    let member = Member::start(env, membership, identity, network, manager).await?;
    daemon.lifecycle.set(MembershipState::Active(Arc::new(member)));
    Ok(())
}

/// Whether this node needs the swarm's unlock key. Not so a worker that was about to become a manager.
fn is_locked(env: &Environment, membership: &MembershipFile) -> anyhow::Result<bool> {
    if membership.role == Role::Manager || env.certificates.is_sealed()? {
        return Ok(true);
    }
    env.keyring.remove()?;
    Ok(false)
}

/// The manager's log and listener. What is not open within [`OPEN`] is awaited beside the node: a disk that hangs keeps neither
/// its network nor its tasks away. `None` if they cannot be opened, which is tried again once the node runs.
async fn prepare_manager(env: &Arc<Environment>, membership: &MembershipFile) -> Option<FirstManager> {
    let not_yet = |why: String| {
        tracing::warn!(why, "the node starts without its manager part");
        env.blockers.set(manager_role::NAME, why);
    };
    let Some(raft_id) = membership.raft_id else {
        not_yet("this node is a manager and has no raft id".to_owned());
        return None;
    };
    let mut opening = OpeningManager::start(env, raft_id, membership.listen);
    match tokio::time::timeout(OPEN, opening.opened()).await {
        Ok(Ok(prepared)) => Some(FirstManager::Prepared(prepared)),
        Ok(Err(error)) => {
            not_yet(format!("{error:#}"));
            None
        }
        Err(_) => {
            let (dir, seconds) = (env.state_dir.raft(), OPEN.as_secs());
            not_yet(format!("the log in {} is not open after {seconds} s: is its disk slow, or does it hang?", dir.display()));
            Some(FirstManager::Opening(opening))
        }
    }
}

/// The membership with the addresses that its interfaces have now.
async fn with_current_addresses(env: &Environment, membership: MembershipFile) -> anyhow::Result<MembershipFile> {
    let mut addresses = membership.addresses();
    for problem in addresses.resolve_again(&host_addresses().await?) {
        tracing::warn!(problem, "an interface that this node is to use has no single address now, its last one is used");
    }
    if let (Some(before), Some(now)) = (membership.advertise, addresses.advertise)
        && before != now
    {
        tracing::warn!(%before, %now, "this machine has another address: it is advertised from now on");
    }
    let current = membership.clone().with_addresses(&addresses);
    if current != membership {
        // What was not written is found again at the next start.
        if let Err(error) = current.store(&env.state_dir) {
            tracing::warn!(error = format!("{error:#}"), "the addresses of this node were not written");
        }
    }
    Ok(current)
}
