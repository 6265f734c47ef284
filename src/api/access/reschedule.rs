//! Containers with `reschedule:on-node-failure` whose node is lost are made again elsewhere; when the node is back, one of the two is
//! removed. [`steps`] decides and is pure. A node is believed only that a container is there and in which state: what it is, and
//! which of two is newer, is sealed by the managers.

use super::context::AccessContext;
use super::create::{self, Placed};
use super::engine_node::EngineNode;
use super::lineage::{self, SealedContainer};
use super::nodes::{NodeRequest, WORK};
use super::objects::content;
use super::seen::SeenNode;
use crate::api::query::encode;
use crate::model::NodeId;
use crate::sync::lock;
use crate::trust::RescheduleKey;
use futures_util::future::join_all;
use hyper::Method;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// What is to be done for containers of lost nodes.
#[derive(Clone, PartialEq, Debug)]
pub enum RescheduleStep {
    /// Make it elsewhere: its successor.
    Recreate { lost: String, next: SealedContainer },
    /// It was made again, and not started.
    Start { node: NodeId, id: String },
    /// Another one of the same lineage stays.
    Remove { node: NodeId, id: String },
}

impl RescheduleStep {
    /// What is named in logs.
    fn subject(&self) -> &str {
        match self {
            Self::Recreate { next, .. } => &next.name,
            Self::Start { id, .. } | Self::Remove { id, .. } => id,
        }
    }
}

/// One container of a lineage on a node.
#[derive(Clone)]
struct ContainerCopy {
    node: NodeId,
    id: String,
    state: String,
    sealed: SealedContainer,
}

impl ContainerCopy {
    fn runs(&self) -> bool {
        matches!(self.state.as_str(), "running" | "restarting" | "paused")
    }
    fn has_run(&self) -> bool {
        self.state != "created"
    }
}

/// What was seen of the nodes.
pub struct SeenNodes<'a> {
    pub nodes: &'a [EngineNode],
    pub seen: &'a BTreeMap<NodeId, SeenNode>,
    /// Those that were read in this round.
    pub read: &'a BTreeSet<NodeId>,
    pub keys: &'a [RescheduleKey],
}

impl SeenNodes<'_> {
    /// The copies by lineage; the flag: their node is lost.
    fn copies(&self) -> BTreeMap<String, Vec<(bool, ContainerCopy)>> {
        let mut copies: BTreeMap<String, Vec<(bool, ContainerCopy)>> = BTreeMap::new();
        for node in self.nodes {
            let listed = self.seen.get(&node.id).map(|seen| seen.containers.as_slice()).unwrap_or_default();
            for container in listed {
                let sealed = SealedContainer::of_listed(container, &node.id, self.keys);
                let (Some(sealed), Some(id)) = (sealed, container["Id"].as_str()) else { continue };
                let state = container["State"].as_str().unwrap_or_default().to_owned();
                let lineage = sealed.lineage.clone();
                let copy = ContainerCopy { node: node.id.clone(), id: id.to_owned(), state, sealed };
                copies.entry(lineage).or_default().push((node.unreachable().is_some(), copy));
            }
        }
        copies
    }

    /// The newest generation of each lineage that is known: of a container that was made again and then removed by its user, the one
    /// that the lost node had does not come back.
    fn note_generations(copies: &BTreeMap<String, Vec<(bool, ContainerCopy)>>, newest: &mut BTreeMap<String, u64>) {
        newest.retain(|lineage, _| copies.contains_key(lineage));
        for (lineage, copies) in copies {
            let generation = copies.iter().map(|(_, copy)| copy.sealed.generation).max().unwrap_or_default();
            let known = newest.entry(lineage.clone()).or_default();
            *known = generation.max(*known);
        }
    }
}

/// The steps that what was seen asks for. `newest` is carried from round to round.
pub fn steps(seen: &SeenNodes<'_>, newest: &mut BTreeMap<String, u64>) -> Vec<RescheduleStep> {
    let copies = seen.copies();
    SeenNodes::note_generations(&copies, newest);
    let mut steps = Vec::new();
    for (lineage, copies) in copies {
        let (lost, live): (Vec<_>, Vec<_>) = copies.into_iter().partition(|(lost, _)| *lost);
        let live: Vec<ContainerCopy> = live.into_iter().map(|(_, copy)| copy).collect();
        if live.is_empty() {
            let last = lost.into_iter().map(|(_, copy)| copy).max_by_key(|copy| (copy.sealed.generation, copy.runs()));
            let last = last.filter(|copy| newest.get(&lineage) == Some(&copy.sealed.generation));
            steps.extend(last.map(|copy| recreate(seen.nodes, &copy)));
        } else if live.iter().all(|copy| seen.read.contains(&copy.node)) {
            steps.extend(settle(&live));
        }
    }
    steps
}

fn recreate(nodes: &[EngineNode], copy: &ContainerCopy) -> RescheduleStep {
    let lost = nodes.iter().find(|node| node.id == copy.node).map(|node| node.name.clone()).unwrap_or_default();
    let run = copy.runs() || !copy.has_run() && copy.sealed.run;
    RescheduleStep::Recreate { lost, next: copy.sealed.successor(run) }
}

/// Which of the copies on nodes that answer stays: the newest, once it has run. One that has not takes nothing from one that runs.
fn settle(live: &[ContainerCopy]) -> Vec<RescheduleStep> {
    let order = |copy: &ContainerCopy| (copy.sealed.generation, copy.has_run(), copy.node.clone(), copy.id.clone());
    let Some(newest) = live.iter().max_by_key(|copy| order(copy)) else { return Vec::new() };
    let others = || live.iter().filter(|copy| copy.id != newest.id || copy.node != newest.node);
    let remove = |copy: &ContainerCopy| RescheduleStep::Remove { node: copy.node.clone(), id: copy.id.clone() };
    if newest.has_run() {
        others().map(remove).collect()
    } else if others().any(ContainerCopy::runs) {
        vec![remove(newest)]
    } else if newest.sealed.run {
        vec![RescheduleStep::Start { node: newest.node.clone(), id: newest.id.clone() }]
    } else {
        others().next().map(|_| remove(newest)).into_iter().collect()
    }
}

/// What is carried from round to round.
#[derive(Default)]
pub struct RescheduleRounds {
    newest: BTreeMap<String, u64>,
    failures: BTreeMap<String, u32>,
}

impl RescheduleRounds {
    /// Carries out the steps of this moment, as the leader; what fails is tried again in the next round.
    pub async fn round(&mut self, access: &AccessContext, nodes: &[EngineNode], read: &BTreeSet<NodeId>) {
        let Ok(keys) = access.store().map(|store| lineage::keys(&store)) else { return };
        let seen = lock(&access.seen).clone();
        let steps = steps(&SeenNodes { nodes, seen: &seen, read, keys: &keys }, &mut self.newest);
        if !access.leads() {
            return self.failures.clear();
        }
        let subjects: BTreeSet<String> = steps.iter().map(|step| step.subject().to_owned()).collect();
        self.failures.retain(|subject, _| subjects.contains(subject));
        // At the same time, and each within a time: a node that hangs does not keep the containers of others.
        let results = join_all(steps.into_iter().map(async |step| {
            let subject = step.subject().to_owned();
            let result = tokio::time::timeout(WORK, execute(access, nodes, step)).await;
            (subject, result.unwrap_or_else(|_| Err(format!("it was not done within {} s", WORK.as_secs()))))
        }));
        for (subject, result) in results.await {
            let Err(error) = result else {
                self.failures.remove(&subject);
                continue;
            };
            let count = self.failures.entry(subject.clone()).or_default();
            *count += 1;
            if count.is_power_of_two() {
                tracing::warn!(container = subject, error, "a container could not be rescheduled, it is tried again");
            }
        }
    }
}

async fn execute(access: &AccessContext, nodes: &[EngineNode], step: RescheduleStep) -> Result<(), String> {
    match step {
        RescheduleStep::Recreate { lost, next } => {
            let Placed { node, reply } = create::place(access, &next).await.map_err(|error| error.message)?;
            let created: Value = content(&reply)?;
            let id = created["Id"].as_str().ok_or("the node names no container")?;
            tracing::info!(container = next.name, id, lost, node = node.name, "a container of a lost node was made again");
            if next.run { start(access, &node, id).await } else { Ok(()) }
        }
        RescheduleStep::Start { node, id } => {
            let Some(node) = nodes.iter().find(|candidate| candidate.id == node) else { return Ok(()) };
            start(access, node, &id).await?;
            tracing::info!(id, node = node.name, "a container of a lost node that was made again is started");
            Ok(())
        }
        RescheduleStep::Remove { node, id } => {
            let Some(node) = nodes.iter().find(|candidate| candidate.id == node) else { return Ok(()) };
            let remove = NodeRequest::new(Method::DELETE, format!("/containers/{}?force=1", encode(&id)));
            let removed = access.ask(node, remove, WORK).await.map_err(|error| error.message)?;
            if removed.status != hyper::StatusCode::NOT_FOUND {
                removed.ok().map_err(|error| format!("{error:#}"))?;
            }
            tracing::info!(id, node = node.name, "a lost node is back: one of two copies of a container is removed");
            Ok(())
        }
    }
}

async fn start(access: &AccessContext, node: &EngineNode, id: &str) -> Result<(), String> {
    let start = NodeRequest::new(Method::POST, format!("/containers/{}/start", encode(id)));
    let started = access.ask(node, start, WORK).await.map_err(|error| error.message)?;
    started.ok().map_err(|error| format!("{error:#}"))
}

#[cfg(test)]
mod tests {
    use super::super::planner::fixture::engine_node;
    use super::*;
    use crate::model::NodeState;
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;
    use serde_json::json;

    /// Three nodes, whose lists are given; the first is lost where a test says so.
    struct Swarm {
        nodes: Vec<EngineNode>,
        keys: Vec<RescheduleKey>,
        read: BTreeSet<NodeId>,
        newest: BTreeMap<String, u64>,
    }

    impl Swarm {
        fn new() -> Self {
            let nodes: Vec<EngineNode> = ["n1", "n2", "n3"].map(engine_node).into();
            let read = nodes.iter().map(|node| node.id.clone()).collect();
            Self { nodes, keys: vec![RescheduleKey::derived_from(&"ca".into()).unwrap()], read, newest: BTreeMap::new() }
        }

        fn lose_first(&mut self) {
            self.nodes[0].state = NodeState::Down;
        }

        fn id(&self, node: usize) -> NodeId {
            self.nodes[node].id.clone()
        }

        /// Container `c` with the generation, as its node lists it.
        fn listed(&self, node: usize, generation: u64, state: &str) -> Value {
            self.listed_with(node, generation, state, &self.keys[0])
        }

        fn listed_with(&self, node: usize, generation: u64, state: &str, key: &RescheduleKey) -> Value {
            let sealed = web(generation, generation > 0);
            let body = sealed.body_for(&self.id(node), key, &mut StdRng::seed_from_u64(generation)).unwrap();
            json!({ "Id": format!("c{generation}"), "Names": ["/web"], "State": state, "Labels": body["Labels"] })
        }

        fn steps(&mut self, lists: &[(usize, &Value)]) -> Vec<RescheduleStep> {
            let mut seen: BTreeMap<NodeId, SeenNode> = BTreeMap::new();
            for (node, container) in lists {
                seen.entry(self.id(*node)).or_default().containers.push((*container).clone());
            }
            let seen = SeenNodes { nodes: &self.nodes, seen: &seen, read: &self.read, keys: &self.keys };
            steps(&seen, &mut self.newest)
        }

        fn remove(&self, node: usize, id: &str) -> RescheduleStep {
            RescheduleStep::Remove { node: self.id(node), id: id.to_owned() }
        }
    }

    fn web(generation: u64, run: bool) -> SealedContainer {
        SealedContainer { lineage: "l".to_owned(), name: "web".to_owned(), generation, run, body: json!({ "Image": "x" }) }
    }

    fn recreated(generation: u64, run: bool) -> RescheduleStep {
        RescheduleStep::Recreate { lost: "n1".to_owned(), next: web(generation, run) }
    }

    #[test]
    fn what_a_lost_node_had_is_made_again_once_and_the_older_one_goes_when_it_is_back() {
        let mut swarm = Swarm::new();
        let (old, new) = (swarm.listed(0, 0, "running"), swarm.listed(1, 1, "running"));
        assert_eq!(swarm.steps(&[(0, &old)]), []);
        assert_eq!(swarm.steps(&[(0, &old), (1, &new)]), [swarm.remove(0, "c0")]);
        swarm.lose_first();
        assert_eq!(swarm.steps(&[(0, &old), (1, &new)]), []);
        assert_eq!(Swarm { newest: BTreeMap::new(), ..swarm }.steps(&[(0, &old)]), [recreated(1, true)]);
    }

    #[test]
    fn a_stopped_one_is_made_and_not_started() {
        let mut swarm = Swarm::new();
        let (stopped, made) = (swarm.listed(0, 0, "exited"), swarm.listed(0, 0, "created"));
        swarm.lose_first();
        assert_eq!(swarm.steps(&[(0, &stopped)]), [recreated(1, false)]);
        assert_eq!(swarm.steps(&[(0, &made)]), [recreated(1, false)]);
    }

    #[test]
    fn a_container_without_a_valid_seal_is_never_made_again_and_is_no_copy() {
        let mut swarm = Swarm::new();
        let other_key = RescheduleKey::derived_from(&"of the attacker".into()).unwrap();
        let forged = swarm.listed_with(0, 9, "running", &other_key);
        let of_other_node = swarm.listed(1, 9, "running");
        let mut unsealed = json!({ "Id": "c8", "Names": ["/web"], "State": "running", "Labels": {
            "com.docker.swarm.reschedule-policies": "[\"on-node-failure\"]", "com.docker.swarm.id": "l" } });
        let real = swarm.listed(1, 0, "running");
        for shown in [&forged, &of_other_node, &unsealed] {
            assert_eq!(swarm.steps(&[(0, shown), (1, &real)]), [], "nothing is removed for it");
        }
        swarm.lose_first();
        unsealed["Created"] = json!(i64::MAX);
        for shown in [&forged, &of_other_node, &unsealed] {
            assert_eq!(swarm.steps(&[(0, shown)]), [], "nothing is made of it");
        }
    }

    #[test]
    fn a_copy_that_was_not_started_is_started_and_replaces_nothing_that_runs() {
        let mut swarm = Swarm::new();
        let made = swarm.listed(1, 1, "created");
        let (runs, exited) = (swarm.listed(0, 0, "running"), swarm.listed(0, 0, "exited"));
        let start = RescheduleStep::Start { node: swarm.id(1), id: "c1".to_owned() };
        assert_eq!(swarm.steps(&[(0, &runs), (1, &made)]), [swarm.remove(1, "c1")]);
        assert_eq!(swarm.steps(&[(0, &exited), (1, &made)]), std::slice::from_ref(&start));
        swarm.read.remove(&swarm.id(0));
        assert_eq!(swarm.steps(&[(0, &runs), (1, &made)]), [], "what a node had before is no reason to remove");
        swarm.lose_first();
        assert_eq!(swarm.steps(&[(0, &runs), (1, &made)]), [start]);
    }

    #[test]
    fn copies_are_ordered_by_generation_and_not_by_clocks() {
        let mut swarm = Swarm::new();
        let (mut old, mut new) = (swarm.listed(0, 1, "running"), swarm.listed(2, 2, "exited"));
        (old["Created"], new["Created"]) = (json!(9_000_000_000_i64), json!(5));
        assert_eq!(swarm.steps(&[(0, &old), (2, &new)]), [swarm.remove(0, "c1")]);
    }

    #[test]
    fn what_its_user_removed_after_it_was_made_again_does_not_come_back() {
        let mut swarm = Swarm::new();
        let (old, new) = (swarm.listed(0, 0, "running"), swarm.listed(1, 1, "running"));
        swarm.lose_first();
        assert_eq!(swarm.steps(&[(0, &old), (1, &new)]), []);
        assert_eq!(swarm.steps(&[(0, &old)]), []);
    }
}
