//! Which nodes may run a task at all, whatever else runs on them. The scheduler, the orchestrator (a task per such node) and the
//! API (how many there are) ask the same question.

use super::constraint::Constraints;
use super::node::{Availability, Node, NodeDescription, NodeState};
use super::task::{Platform, TaskSpec};

/// The node is one that a global service should run on: it is not drained, nor excluded by constraints or platform.
#[must_use]
pub fn is_eligible(node: &Node, spec: &TaskSpec) -> bool {
    let is_member = node.status.state != NodeState::Disconnected && node.spec.availability != Availability::Drain;
    let platforms = spec.placement.as_ref().map_or(&[][..], |placement| &placement.platforms);
    is_member && Constraints::of(spec).are_met_by(node) && runs_on_platform(&node.description, platforms)
}

/// The node takes new tasks.
#[must_use]
pub fn takes_tasks(node: &Node) -> bool {
    node.status.state == NodeState::Ready && node.spec.availability == Availability::Active
}

/// Whether the node has one of the platforms that the image was made for. Clients put them into the spec; what they or the
/// node leave open fits.
#[must_use]
pub fn runs_on_platform(node: &NodeDescription, platforms: &[Platform]) -> bool {
    let fits = |wanted: &str, has: &str| wanted.is_empty() || has.is_empty() || docker_name(wanted) == docker_name(has);
    platforms.is_empty() || platforms.iter().any(|p| fits(&p.architecture, &node.architecture) && fits(&p.os, &node.os))
}

/// Docker's name of an architecture that the kernel names differently. Case matters, as in Swarm.
fn docker_name(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_not_sent_to_a_node_of_another_architecture() {
        for (architecture, platforms, expected) in [
            ("x86_64", &[("linux", "amd64")][..], true),
            ("x86_64", &[("linux", "arm64")], false),
            ("aarch64", &[("linux", "amd64"), ("linux", "arm64")], true),
            ("aarch64", &[("windows", "arm64")], false),
            ("aarch64", &[], true),
            ("aarch64", &[("linux", "")], true),
            ("", &[("linux", "amd64")], true),
        ] {
            let node =
                NodeDescription { architecture: architecture.to_owned(), os: "linux".to_owned(), ..NodeDescription::default() };
            let platform = |(os, arch): &(&str, &str)| Platform { architecture: (*arch).to_owned(), os: (*os).to_owned() };
            let wanted: Vec<Platform> = platforms.iter().map(platform).collect();
            assert_eq!(runs_on_platform(&node, &wanted), expected, "{architecture} {platforms:?}");
        }
    }
}
