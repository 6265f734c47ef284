//! Conditions that every state of the store, and every step from one state to the next, must satisfy. Tests check them
//! after each step of a simulation.

use super::allocator::{ingress, overlap};
use crate::model::{NetworkId, Node, NodeState, Service, Task, TaskState};
use crate::store::Store;
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Violations in this state; empty if there are none.
pub fn check(store: &Store) -> Vec<String> {
    let mut wrong = Vec::new();
    networks(store, &mut wrong);
    addresses(store, &mut wrong);
    ports(store, &mut wrong);
    nodes(store, &mut wrong);
    tasks(store, &mut wrong);
    wrong
}

/// Violations in the step from one state to the next; empty if there are none.
pub fn check_step(before: &Store, after: &Store) -> Vec<String> {
    let mut wrong = Vec::new();
    for new in after.tasks() {
        let Some(old) = before.task(&new.id) else { continue };
        if new.status.state < old.status.state {
            wrong.push(format!("task {} moved back from {:?} to {:?}", new.id, old.status.state, new.status.state));
        }
        // A task that no node has yet may be made to wait for its predecessor, whose node was away.
        let is_unseen = old.status.state < TaskState::Assigned && new.desired_state >= TaskState::Ready && old.is_wanted();
        if new.desired_state < old.desired_state && !is_unseen {
            wrong.push(format!(
                "the desired state of task {} moved back from {:?} to {:?}",
                new.id, old.desired_state, new.desired_state
            ));
        }
        if old.node_id.is_some() && new.node_id != old.node_id {
            wrong.push(format!("task {} moved from {:?} to {:?}", new.id, old.node_id, new.node_id));
        }
        if !old.attachments.is_empty() && new.attachments != old.attachments {
            wrong.push(format!("task {} changed its addresses", new.id));
        }
    }
    finished_jobs(before, after, &mut wrong);
    for had in before.networks().filter(|network| network.subnet.is_some()) {
        if after.network(&had.id).is_some_and(|has| has.subnets() != had.subnets()) {
            wrong.push(format!("network {} lost its subnets {:?}", had.id, had.subnets()));
        }
    }
    wrong
}

/// A slot of a job that has completed gets no further task in the same run.
fn finished_jobs(before: &Store, after: &Store, wrong: &mut Vec<String>) {
    let key = |task: &Task| (task.service_id.clone(), task.slot_key(), task.job_iteration);
    let of_jobs = |store: &Store| -> Vec<Task> { store.tasks().filter(|t| t.job_iteration.is_some()).cloned().collect() };
    let completed = of_jobs(before).into_iter().filter(|t| t.status.state == TaskState::Complete);
    let completed: BTreeSet<_> = completed.map(|t| key(&t)).collect();
    for task in of_jobs(after).iter().filter(|t| before.task(&t.id).is_none() && completed.contains(&key(t))) {
        wrong.push(format!("task {} was made in slot {} of a job, which has completed", task.id, task.slot_key()));
    }
}

fn networks(store: &Store, wrong: &mut Vec<String>) {
    let subnets: Vec<_> = store.networks().flat_map(|n| n.subnets().into_iter().map(|subnet| (&n.spec.name, subnet))).collect();
    for (i, (name, subnet)) in subnets.iter().enumerate() {
        for (other, other_subnet) in &subnets[..i] {
            if overlap(subnet, other_subnet) {
                wrong.push(format!("networks {name} ({subnet}) and {other} ({other_subnet}) overlap"));
            }
        }
    }
    if store.networks().filter(|n| n.spec.ingress && !n.removing).count() > 1 {
        wrong.push("more than one ingress network".to_owned());
    }
}

/// Object that has an address.
enum AddressOwner<'a> {
    Task(&'a Task),
    Service(&'a Service),
    Node(&'a Node),
}

impl std::fmt::Display for AddressOwner<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Task(t) => write!(f, "task {}", t.id),
            Self::Service(s) => write!(f, "service {}", s.spec.name),
            Self::Node(n) => write!(f, "node {}", n.id),
        }
    }
}

fn addresses(store: &Store, wrong: &mut Vec<String>) {
    let mut owners = BTreeMap::<(Ipv4Addr, &NetworkId), AddressOwner>::new();
    let tasks =
        store.tasks().flat_map(|t| t.attachments.iter().map(move |a| (&a.network_id, a.address.addr(), AddressOwner::Task(t))));
    let vips = store
        .services()
        .flat_map(|s| s.endpoint.vips.iter().map(move |v| (&v.network_id, v.addr.addr(), AddressOwner::Service(s))));
    let ingress = ingress(store).into_iter();
    let nodes = ingress.flat_map(|net| store.nodes().map(move |n| (&net.id, n.mesh.ingress_addr, AddressOwner::Node(n))));
    for (network, address, owner) in tasks.chain(vips).chain(nodes) {
        if let Some(network) = store.network(network).filter(|n| n.subnet.is_some()) {
            let special = |net: &Ipv4Net| [net.network(), net.broadcast(), network.spec.gateway_in(*net)].contains(&address);
            if !network.subnets().iter().any(|subnet| subnet.contains(&address) && !special(subnet)) {
                wrong.push(format!("{owner} has {address}, which is not a host address of {:?}", network.subnets()));
            }
        }
        if let Some(other) = owners.get(&(address, network)) {
            wrong.push(format!("{owner} and {other} both have {address}"));
        }
        owners.insert((address, network), owner);
    }
}

fn ports(store: &Store, wrong: &mut Vec<String>) {
    let mut owners = BTreeMap::new();
    for service in store.services() {
        for port in service.ingress_ports() {
            if let Some(other) = owners.insert((port.protocol, port.published_port), &service.spec.name) {
                let (protocol, number) = (port.protocol.as_str(), port.published_port);
                wrong.push(format!("services {other} and {} both publish {number}/{protocol}", service.spec.name));
            }
        }
    }
}

fn nodes(store: &Store, wrong: &mut Vec<String>) {
    let mut subnets = BTreeSet::new();
    for node in store.nodes() {
        if !subnets.insert(node.mesh.subnet) {
            wrong.push(format!("node {} shares its mesh subnet {}", node.id, node.mesh.subnet));
        }
    }
}

fn tasks(store: &Store, wrong: &mut Vec<String>) {
    let mut live = BTreeMap::<_, Vec<&Task>>::new();
    for task in store.tasks() {
        let state = task.status.state;
        if state == TaskState::Remove {
            wrong.push(format!("task {} is observed as Remove, which can only be desired", task.id));
        }
        if (TaskState::Assigned..=TaskState::Running).contains(&state) && task.node_id.is_none() {
            wrong.push(format!("task {} is {state:?} without a node", task.id));
        }
        if task.attached.is_some() {
            continue;
        }
        if state < TaskState::Assigned && task.node_id.is_some() {
            wrong.push(format!("task {} has a node but is {state:?}", task.id));
        }
        if task.slot == 0 && task.slot_node.is_none() && task.job_iteration.is_none() {
            wrong.push(format!("task {} has slot 0", task.id));
        }
        let in_slot_of_another = task.slot_node.as_ref().is_some_and(|of| task.node_id.as_ref().is_some_and(|at| at != of));
        if in_slot_of_another {
            wrong.push(format!("task {} is on {:?}, and in the slot of {:?}", task.id, task.node_id, task.slot_node));
        }
        if task.is_wanted() && !task.status.state.is_final() && !is_lost(store, task) {
            live.entry((&task.service_id, task.slot_key())).or_default().push(task);
        }
    }
    // One that serves, and the one that is to take its place.
    for ((_, slot), tasks) in live.iter().filter(|(_, tasks)| tasks.len() > 2) {
        wrong.push(format!("slot {}.{slot} has {} live tasks", tasks[0].service_name, tasks.len()));
    }
}

/// The task's node is down, or removed since: the task may be kept beside its replacement until that runs.
fn is_lost(store: &Store, task: &Task) -> bool {
    let is_up = |id| store.node(id).is_some_and(|node| node.status.state != NodeState::Down);
    task.node_id.as_ref().is_some_and(|id| !is_up(id))
}

/// Violations in a state in which nothing is left to plan and every agent has carried out its tasks; empty if there are
/// none.
pub fn check_settled(store: &Store) -> Vec<String> {
    let mut wrong = check(store);
    for task in store.tasks() {
        let has_service = task.attached.is_some() || store.service(&task.service_id).is_some();
        if !has_service && task.desired_state != TaskState::Remove {
            wrong.push(format!("task {} of a removed service is not marked for removal", task.id));
        }
        let node_removed = task.node_id.as_ref().is_some_and(|id| store.node(id).is_none());
        if node_removed && !task.status.state.is_final() {
            wrong.push(format!("task {} is {:?} on a removed node", task.id, task.status.state));
        }
    }
    for service in store.services() {
        let is_live = |t: &&Task| t.is_wanted() && !t.status.state.is_final() && !is_lost(store, t);
        let mut slots = BTreeMap::<_, usize>::new();
        for task in store.tasks_of_service(&service.id).filter(is_live) {
            *slots.entry(task.slot_key()).or_default() += 1;
        }
        let (live, name) = (slots.len() as u64, &service.spec.name);
        if let Some((slot, count)) = slots.iter().find(|(_, count)| **count > 1) {
            wrong.push(format!("slot {slot} of service {name} has {count} live tasks"));
        }
        let mode = &service.spec.mode;
        let most = match mode.replicated_job {
            Some(job) => job.concurrent(),
            None if mode.is_global() => store.nodes().count() as u64,
            None => mode.replicas(),
        };
        if live > most {
            wrong.push(format!("service {name} has {live} live tasks, desired are {most}"));
        }
    }
    wrong
}
