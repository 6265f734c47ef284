//! Conditions that a node must meet to run a task. Each has a text for users, so that a pending task tells why it is
//! pending.

use super::load::{Load, fixed_host_ports};
use crate::model::{Availability, Node, NodeState, Task, TaskSpec, node::NodeDescription};

struct Filter {
    passes: fn(&Node, &Task, &Load) -> bool,
    /// Text for the number of nodes that this filter excluded.
    explain: fn(usize) -> String,
}

/// Checked in this order; a node counts for the first filter that excludes it.
const FILTERS: [Filter; 5] = [
    Filter {
        passes: |node, _, _| node.status.state == NodeState::Ready && node.spec.availability == Availability::Active,
        explain: |n| format!("{} not available for new tasks", nodes(n)),
    },
    Filter {
        passes: |node, _, _| !node.description.engine_version.is_empty(),
        explain: |n| format!("no container engine on {}", nodes(n)),
    },
    Filter {
        // As in Swarm, a node that lists no plugins at all is assumed to have the plugins that it needs.
        passes: |node, task, _| {
            let plugins = &node.description.plugins;
            let overlay = |(kind, name): &(String, String)| kind == "Network" && (name == "overlay" || name == "skep");
            task.attachments.is_empty() || plugins.is_empty() || plugins.iter().any(overlay)
        },
        explain: |n| format!("missing plugin on {}", nodes(n)),
    },
    Filter {
        passes: |node, task, _| runs_on_platform(&node.description, &task.spec),
        explain: |n| format!("unsupported platform on {}", nodes(n)),
    },
    Filter {
        passes: |node, task, load| !fixed_host_ports(task).any(|port| load.has_host_port(&node.id, port)),
        explain: |n| format!("host-mode port already in use on {}", nodes(n)),
    },
];

/// Whether the node has one of the platforms that the image was made for. Clients put them into the spec; what they or the
/// node leave open fits.
fn runs_on_platform(description: &NodeDescription, spec: &TaskSpec) -> bool {
    let fits = |wanted: &str, has: &str| wanted.is_empty() || has.is_empty() || docker_name(wanted) == docker_name(has);
    let mut wanted = spec.placement.iter().flat_map(|p| &p.platforms).peekable();
    wanted.peek().is_none() || wanted.any(|p| fits(&p.architecture, &description.architecture) && fits(&p.os, &description.os))
}

/// Docker's name of an architecture that the kernel names differently.
fn docker_name(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn nodes(n: usize) -> String {
    if n == 1 { "1 node".to_owned() } else { format!("{n} nodes") }
}

/// How many nodes each filter excluded for one task.
#[derive(Default)]
pub(super) struct Exclusions([usize; FILTERS.len()]);

impl Exclusions {
    /// Whether the node passes all filters; counts it if not.
    pub(super) fn passes(&mut self, node: &Node, task: &Task, load: &Load) -> bool {
        let failed = FILTERS.iter().position(|filter| !(filter.passes)(node, task, load));
        if let Some(filter) = failed {
            self.0[filter] += 1;
        }
        failed.is_none()
    }

    /// Why no node is suitable, the most frequent reason first.
    pub(super) fn explain(&self) -> String {
        let mut reasons: Vec<(usize, &Filter)> = self.0.iter().copied().zip(&FILTERS).filter(|(n, _)| *n > 0).collect();
        reasons.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
        let texts: Vec<String> = reasons.iter().map(|(n, filter)| (filter.explain)(*n)).collect();
        if texts.is_empty() { "no suitable node".to_owned() } else { format!("no suitable node ({})", texts.join("; ")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::task::{Placement, Platform};

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
            let placement = Some(Placement { platforms: platforms.iter().map(platform).collect(), ..Placement::default() });
            let spec = TaskSpec { placement, ..TaskSpec::default() };
            assert_eq!(runs_on_platform(&node, &spec), expected, "{architecture} {platforms:?}");
        }
    }
}
