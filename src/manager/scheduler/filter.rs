//! Conditions that a node must meet to run a task. Each has a text for users, so that a pending task says why it is pending.

use super::load::NodeLoad;
use super::needs::TaskNeeds;
use crate::model::Node;
use crate::model::eligibility::{runs_on_platform, takes_tasks};
use crate::model::node::NodeDescription;

struct Filter {
    /// How many more tasks of the group the node can run, as far as this condition goes; 0 excludes it. A task that the node gets
    /// takes one.
    room: fn(&TaskNeeds, &Node, &NodeLoad) -> usize,
    /// Text for the number of nodes that this filter excluded.
    explain: fn(usize) -> String,
}

/// First feature level whose builds carry out the newer fields of a spec.
const NEWER_LEVEL: u32 = 2;

/// Excludes a node or not, whatever the number of tasks.
fn any_number(passes: bool) -> usize {
    if passes { usize::MAX } else { 0 }
}

/// Checked in this order, which is SwarmKit's; a node counts for the first filter that excludes it.
const FILTERS: [Filter; 11] = [
    Filter { room: |_, node, _| any_number(takes_tasks(node)), explain: |n| format!("{} not available for new tasks", nodes(n)) },
    Filter {
        room: |_, node, _| any_number(!node.description.engine_version.is_empty()),
        explain: |n| format!("no container engine on {}", nodes(n)),
    },
    Filter { room: resources, explain: |n| format!("insufficient resources on {}", nodes(n)) },
    Filter {
        room: |needs, node, _| any_number(has_plugins(needs, &node.description)),
        explain: |n| format!("missing plugin on {}", nodes(n)),
    },
    Filter {
        room: |needs, node, _| any_number(needs.constraints.are_met_by(node)),
        explain: |n| format!("scheduling constraints not satisfied on {}", nodes(n)),
    },
    Filter {
        room: |needs, node, _| any_number(runs_on_platform(&node.description, needs.platforms)),
        explain: |n| format!("unsupported platform on {}", nodes(n)),
    },
    Filter {
        room: |needs, _, load| match &needs.host_ports[..] {
            [] => usize::MAX,
            ports => usize::from(!ports.iter().any(|port| load.has_host_port(*port))),
        },
        explain: |n| format!("host-mode port already in use on {}", nodes(n)),
    },
    Filter {
        room: |needs, _, load| needs.max_replicas.map_or(usize::MAX, |most| most.saturating_sub(load.of_service(needs.service))),
        explain: |_| "max replicas per node limit exceed".to_owned(),
    },
    Filter {
        room: |needs, _, load| {
            let runs = |service: &Option<_>| service.as_ref().is_some_and(|service| load.of_service(service) > 0);
            any_number(needs.near.iter().all(runs))
        },
        explain: |n| format!("service affinity not satisfied on {}", nodes(n)),
    },
    Filter { room: anti_affinity, explain: |n| format!("service anti-affinity not satisfied on {}", nodes(n)) },
    Filter {
        room: |needs, node, _| any_number(!needs.newer || node.description.feature_levels().contains(NEWER_LEVEL)),
        explain: |n| format!("an older skep on {}", nodes(n)),
    },
];

fn resources(needs: &TaskNeeds, node: &Node, load: &NodeLoad) -> usize {
    let fits = |total: i64, used: i128, wanted: i64| match wanted {
        0 => usize::MAX,
        wanted => {
            let free = (i128::from(total) - used).max(0);
            usize::try_from(free / i128::from(wanted).max(1)).unwrap_or(usize::MAX)
        }
    };
    let description = &node.description;
    let cpus = fits(description.nano_cpus, load.nano_cpus, needs.nano_cpus);
    let memory = fits(description.memory_bytes, load.memory_bytes, needs.memory_bytes);
    cpus.min(memory).min(load.generic.room(description, needs.generic))
}

fn anti_affinity(needs: &TaskNeeds, _: &Node, load: &NodeLoad) -> usize {
    let room = |other| match load.of_service(other) {
        0 if other == needs.service => 1,
        0 => usize::MAX,
        _ => 0,
    };
    needs.apart.iter().map(room).min().unwrap_or(usize::MAX)
}

/// As in Swarm, a node that lists no plugins of a type at all is assumed to have those that it needs.
fn has_plugins(needs: &TaskNeeds, node: &NodeDescription) -> bool {
    let has = |(kind, name): &(&str, &str)| {
        let same = |found: &str| found == *name || found.strip_suffix(":latest") == Some(name);
        plugins_of_type(node, kind).next().is_none() || plugins_of_type(node, kind).any(same)
    };
    let overlay = |name: &str| name == "overlay" || name == "skep";
    let on_network = !needs.on_network || node.plugins.is_empty() || plugins_of_type(node, "Network").any(overlay);
    on_network && needs.plugins.iter().all(has)
}

fn plugins_of_type<'a>(node: &'a NodeDescription, wanted: &'a str) -> impl Iterator<Item = &'a str> {
    node.plugins.iter().filter(move |(kind, _)| kind == wanted).map(|(_, name)| name.as_str())
}

fn nodes(n: usize) -> String {
    if n == 1 { "1 node".to_owned() } else { format!("{n} nodes") }
}

/// How many more tasks of the group the node can run; if none, the number of the first filter that excludes it.
fn room(needs: &TaskNeeds, node: &Node, load: Option<&NodeLoad>) -> Result<usize, usize> {
    let idle = NodeLoad::default();
    let load = load.unwrap_or(&idle);
    let mut least = usize::MAX;
    for (number, filter) in FILTERS.iter().enumerate() {
        match (filter.room)(needs, node, load) {
            0 => return Err(number),
            room => least = least.min(room),
        }
    }
    Ok(least)
}

/// How many nodes each filter excluded for one group.
#[derive(Clone, Default)]
pub(super) struct Exclusions([usize; FILTERS.len()]);

impl Exclusions {
    /// How many more tasks of the group the node can run; if none, it counts for the first filter that excludes it.
    pub(super) fn room(&mut self, needs: &TaskNeeds, node: &Node, load: Option<&NodeLoad>) -> usize {
        room(needs, node, load).unwrap_or_else(|filter| {
            self.0[filter] += 1;
            0
        })
    }

    /// Takes back what [`Self::room`] has counted of a node with this load.
    pub(super) fn forget(&mut self, needs: &TaskNeeds, node: &Node, load: Option<&NodeLoad>) {
        if let Err(filter) = room(needs, node, load) {
            self.0[filter] -= 1;
        }
    }

    /// Why no node is suitable: the reason of most nodes first, of equals in the order of the filters.
    pub(super) fn explain(&self) -> String {
        let reasons = self.reasons();
        if reasons.is_empty() { "no suitable node".to_owned() } else { format!("no suitable node ({reasons})") }
    }

    /// The bare reasons, for a task whose node is given.
    pub(super) fn reasons(&self) -> String {
        let mut reasons: Vec<(usize, &Filter)> = self.0.iter().copied().zip(&FILTERS).filter(|(n, _)| *n > 0).collect();
        reasons.sort_by_key(|(n, _)| std::cmp::Reverse(*n));
        let texts: Vec<String> = reasons.iter().map(|(n, filter)| (filter.explain)(*n)).collect();
        texts.join("; ")
    }
}
