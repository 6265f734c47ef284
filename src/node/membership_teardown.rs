//! Ends everything of a membership on this node.

use super::environment::Environment;
use super::error_list::ErrorList;
use super::network::MeshNetwork;
use crate::agent;
use crate::model::NodeId;
use anyhow::Context as _;

/// Removes the containers, the network and the addresses of plain containers, but no file of the membership. A step that fails does not
/// prevent the next one; neither does a network that cannot be opened. The loops have ended.
///
/// # Errors
/// An [`ErrorList`] of every step that failed.
pub(super) async fn take_down(env: &Environment, node: &NodeId, network: anyhow::Result<&MeshNetwork>) -> anyhow::Result<()> {
    let mut errors = ErrorList::default();
    errors.check(agent::remove_all(node, &*env.engine, &env.settings.task_files()).await);
    errors.check(match network {
        Ok(network) => network.take_down(env).await,
        Err(error) => Err(error.context("cannot remove the node's network")),
    });
    errors.check(env.attachments.forget().await);
    errors.into_result()
}

/// As [`take_down`], and removes the files, whatever failed before.
///
/// # Errors
/// An [`ErrorList`] of every step that failed.
pub(super) async fn take_down_and_forget(env: &Environment, node: &NodeId, network: &MeshNetwork) -> anyhow::Result<()> {
    let mut errors = ErrorList::default();
    errors.check(take_down(env, node, Ok(network)).await);
    errors.check(env.forget().context("cannot remove the membership's files"));
    errors.into_result()
}
