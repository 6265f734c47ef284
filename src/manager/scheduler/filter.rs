//! Conditions that a node must meet to run a task. Each has a text for users, so that a pending task tells why it is
//! pending.

use super::load::{Load, fixed_host_ports};
use crate::model::eligibility::{runs_on_platform, takes_tasks};
use crate::model::{Node, Task};

struct Filter {
    passes: fn(&Node, &Task, &Load) -> bool,
    /// Text for the number of nodes that this filter excluded.
    explain: fn(usize) -> String,
}

/// Checked in this order; a node counts for the first filter that excludes it.
const FILTERS: [Filter; 5] = [
    Filter { passes: |node, _, _| takes_tasks(node), explain: |n| format!("{} not available for new tasks", nodes(n)) },
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
        passes: |node, task, load| !fixed_host_ports(task).any(|port| load.has_host_port(&node.id, port, task)),
        explain: |n| format!("host-mode port already in use on {}", nodes(n)),
    },
];

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

    /// Why no node is suitable, the most frequent reason first. `bare`: without the words around it, as for a task that has only
    /// one node to run on.
    pub(super) fn explain(&self, bare: bool) -> String {
        let mut reasons: Vec<(usize, &Filter)> = self.0.iter().copied().zip(&FILTERS).filter(|(n, _)| *n > 0).collect();
        reasons.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
        let texts: Vec<String> = reasons.iter().map(|(n, filter)| (filter.explain)(*n)).collect();
        match texts.is_empty() {
            true => "no suitable node".to_owned(),
            false if bare => texts.join("; "),
            false => format!("no suitable node ({})", texts.join("; ")),
        }
    }
}
