//! Nodes that a container cannot go to.

use super::{CandidateNode, ContainerRequest, PlacedContainer};

/// A reason that excludes nodes, for the message.
pub type Reason = String;

/// Label of an engine: so many containers at most.
const SLOTS: &str = "containerslots";

/// The nodes that pass every filter; `wishes` counts soft conditions as hard ones.
///
/// # Errors
/// What the nodes that were left did not satisfy.
pub fn passing<'a>(
    nodes: Vec<&'a CandidateNode>,
    request: &ContainerRequest,
    wishes: bool,
) -> Result<Vec<&'a CandidateNode>, Reason> {
    if nodes.is_empty() {
        return Err("No nodes available in the cluster".to_owned());
    }
    let mut left =
        keep(nodes, |node| node.node.unreachable().is_none(), || "No healthy node available in the cluster".to_owned())?;
    for port in &request.ports {
        left = keep(left, |node| is_free(node, port), || format!("(port {}/{} in use)", port.port, port.protocol))?;
    }
    left = keep(left, has_slot, || "No node with enough open slots available in the cluster".to_owned())?;
    for dependency in &request.dependencies {
        left = keep(
            left,
            |node| node.containers.iter().any(|c| is_named(c, dependency)),
            || format!("(dependency: container {dependency})"),
        )?;
    }
    for affinity in request.affinities.iter().filter(|affinity| wishes || !affinity.soft) {
        left = keep(left, |node| affinity.fits(affinity_values(node, &affinity.key)), || format!("(affinity {affinity})"))?;
    }
    for constraint in request.constraints.iter().filter(|constraint| wishes || !constraint.soft) {
        left = keep(
            left,
            |node| constraint.fits(constraint_values(node, &constraint.key)),
            || format!("(constraint {constraint})"),
        )?;
    }
    for whitelist in &request.whitelists {
        left = keep(
            left,
            |node| whitelist.iter().any(|name| node.node.is_named(name)),
            || format!("(whitelist node=={})", whitelist.iter().cloned().collect::<Vec<_>>().join("|")),
        )?;
    }
    Ok(left)
}

fn keep(
    nodes: Vec<&CandidateNode>,
    fits: impl Fn(&CandidateNode) -> bool,
    reason: impl Fn() -> Reason,
) -> Result<Vec<&CandidateNode>, Reason> {
    let left: Vec<_> = nodes.into_iter().filter(|node| fits(node)).collect();
    if left.is_empty() { Err(reason()) } else { Ok(left) }
}

fn is_free(node: &CandidateNode, port: &super::BoundPort) -> bool {
    !node.containers.iter().flat_map(|container| &container.ports).any(|taken| taken.conflicts(port))
}

fn has_slot(node: &CandidateNode) -> bool {
    let slots = node.labels.get(SLOTS).and_then(|text| text.parse::<usize>().ok());
    slots.is_none_or(|slots| node.containers.len() < slots)
}

fn is_named(container: &PlacedContainer, reference: &str) -> bool {
    container.name == reference || (!reference.is_empty() && container.id.starts_with(reference))
}

fn affinity_values<'a>(node: &'a CandidateNode, key: &str) -> Vec<&'a str> {
    match key {
        "container" => node.containers.iter().flat_map(|c| [c.id.as_str(), c.name.as_str()]).filter(|v| !v.is_empty()).collect(),
        "image" => node.images.iter().map(String::as_str).collect(),
        label => node.containers.iter().filter_map(|c| c.labels.get(label)).map(String::as_str).collect(),
    }
}

fn constraint_values<'a>(node: &'a CandidateNode, key: &str) -> Vec<&'a str> {
    match key {
        "node" => vec![node.node.id.as_str(), node.node.name.as_str()],
        // A label that the node does not have is an empty text, as it was.
        label => vec![node.labels.get(label).map_or("", String::as_str)],
    }
}
