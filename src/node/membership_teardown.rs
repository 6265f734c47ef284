//! Ends everything of a membership on this node.

use super::environment::Environment;
use super::error_list::ErrorList;
use super::network::MeshNetwork;
use crate::agent;
use crate::model::NodeId;
use anyhow::Context as _;

/// Removes the containers, the network, the addresses of plain containers and the files. A step that fails does not prevent the next
/// one. The loops have ended.
///
/// # Errors
/// An [`ErrorList`] of every step that failed.
pub(super) async fn take_down(env: &Environment, node: &NodeId, network: &MeshNetwork) -> anyhow::Result<()> {
    let mut errors = ErrorList::default();
    errors.check(agent::remove_all(node, &*env.engine, &env.settings.task_files()).await);
    errors.check(network.take_down(env).await);
    errors.check(env.attachments.forget().await);
    errors.check(env.forget().context("cannot remove the membership's files"));
    errors.into_result()
}
