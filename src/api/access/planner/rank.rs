//! The order of the nodes that fit.

use super::filter::passing;
use super::{CandidateNode, ContainerRequest, PlacementRules, Reservation};
use crate::settings::PlacementStrategy;
use rand::Rng;

/// The node for a container.
///
/// # Errors
/// Why there is none, for the client.
pub fn choose<'a>(
    nodes: &'a [CandidateNode],
    request: &ContainerRequest,
    rules: PlacementRules,
    rng: &mut impl Rng,
) -> Result<&'a CandidateNode, String> {
    // First with every wish, then without.
    let with_wishes = passing(nodes.iter().collect(), request, true).and_then(|left| pick(left, request, rules, rng));
    with_wishes.or_else(|_| {
        let left = passing(nodes.iter().collect(), request, false).map_err(explained)?;
        pick(left, request, rules, rng)
    })
}

/// A condition in parentheses, as the stand-alone Swarm reported it.
fn explained(reason: String) -> String {
    match reason.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
        Some(condition) => format!("Unable to find a node that satisfies the following conditions \n[{condition}]"),
        None => reason,
    }
}

fn pick<'a>(
    nodes: Vec<&'a CandidateNode>,
    request: &ContainerRequest,
    rules: PlacementRules,
    rng: &mut impl Rng,
) -> Result<&'a CandidateNode, String> {
    let weighed: Vec<(i64, &CandidateNode)> =
        nodes.into_iter().filter_map(|node| Some((weight(node, request, rules.overcommit)?, node))).collect();
    let chosen = match rules.strategy {
        PlacementStrategy::Random if !weighed.is_empty() => weighed.get(rng.random_range(0..weighed.len())),
        PlacementStrategy::Spread | PlacementStrategy::Random => {
            weighed.iter().min_by_key(|(weight, node)| (*weight, node.containers.len(), node.node.name.clone()))
        }
        PlacementStrategy::Binpack => weighed
            .iter()
            .max_by_key(|(weight, node)| (*weight, node.containers.len(), std::cmp::Reverse(node.node.name.clone()))),
    };
    chosen.map(|(_, node)| *node).ok_or_else(|| "no resources available to schedule container".to_owned())
}

/// Percents of CPUs and memory that would be reserved; `None` if that is more than there is.
fn weight(node: &CandidateNode, request: &ContainerRequest, overcommit: f64) -> Option<i64> {
    let Reservation { nano_cpus, memory } = node.reserved();
    let cpus = percent(nano_cpus, request.reserved.nano_cpus, node.node.nano_cpus, overcommit);
    let memory = percent(memory, request.reserved.memory, node.node.memory, overcommit);
    (cpus <= 100 && memory <= 100).then_some(cpus + memory)
}

/// What asks for nothing counts as everything, so that only what is asked for orders the nodes.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "a part of a machine, in percent")]
fn percent(used: i64, asked: i64, total: i64, overcommit: f64) -> i64 {
    if asked == 0 {
        return 100;
    }
    let total = (total as f64 * (1.0 + overcommit)).max(1.0);
    ((used as f64 + asked as f64) * 100.0 / total).ceil() as i64
}
