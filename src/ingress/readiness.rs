//! Finds out which of this node's containers listen on the ports that their services publish or route HTTP to, and on which address family.
//! The eBPF datapath sends a client to a task without knowing whether it accepts, so it may use only tasks that were seen to
//! listen; the managers are informed and put that into every node's view.
//!
//! Which ports a service serves at its virtual addresses is known only if it publishes them. Of a service that publishes none
//! the first port that its container listens on shows that it serves. This is not looked at again: a process may close
//! listeners that never were for others.
//!
//! A container that does not listen yet is probed often while it is young and less often as it gets older. One that listens
//! is probed once a second: a server may stop listening without exiting.

use crate::datapath::{Sandbox, netns, sockdiag};
use crate::model::service::EndpointMode;
use crate::model::view::NetworkPart;
use crate::model::{ListeningPort, Listens, NodeView, Protocol, Task, TaskId};
use crate::sync::sleep_until;
use ipnet::Ipv4Net;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

/// Shortest pause between two probes of a container.
const SHORTEST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Longest pause if no port is known to look for: such a container may never listen.
const LONGEST_UNKNOWN_PAUSE: Duration = Duration::from_secs(10);
/// As good as never.
const NEVER: Duration = Duration::from_hours(24 * 365);

/// The published ports that a task was seen to listen on; of a service without any the first port at all.
pub type ListenReport = (TaskId, Vec<ListeningPort>);

/// How to find out on which published ports a container listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probe {
    /// Path of the container's network namespace.
    pub path: PathBuf,
    /// The container's addresses on the network `ingress`, or on another one if its service publishes no port.
    pub addresses: (Ipv4Addr, Ipv6Addr),
    /// Target ports of the task's service; if there are none, any port.
    pub ports: BTreeSet<(Protocol, u16)>,
}

/// The probes of this node's tasks whose services publish ports or have virtual addresses. Pure.
#[must_use]
pub fn probes(view: &NodeView, sandboxes: &[Sandbox]) -> BTreeMap<TaskId, Probe> {
    let wanted = view.tasks.by_id.values().filter(|t| t.is_wanted() && !t.status.state.is_final());
    let paths: BTreeMap<(Ipv4Net, Ipv4Addr), &PathBuf> =
        sandboxes.iter().map(|s| ((s.subnet.trunc(), s.address), &s.path)).collect();
    let mut targets = BTreeMap::<_, BTreeSet<_>>::new();
    for port in &view.cluster.ports {
        targets.entry(&port.service_id).or_default().insert((port.protocol, port.target));
    }
    for service in &view.cluster.http {
        let ports = service.routes.iter().map(|route| (Protocol::Tcp, route.port));
        targets.entry(&service.service_id).or_default().extend(ports);
    }
    let probe = |task: &Task| {
        let ports = targets.get(&task.service_id).cloned().unwrap_or_default();
        let mut networks = view.networks.by_id.iter();
        let (id, network) = networks.find(|(id, network)| {
            if ports.is_empty() { has_vip(network, task) } else { network.ingress && task.address_on(id).is_some() }
        })?;
        let address = task.address_on(id)?;
        let path = paths.get(&(network.subnet.trunc(), address))?;
        Some(Probe { path: (*path).clone(), addresses: (address, view.cluster.mesh.container(address)), ports })
    };
    wanted.filter_map(|task| Some((task.id.clone(), probe(task)?))).collect()
}

/// Whether the task's service has a virtual address on a network that leads to it.
fn has_vip(network: &NetworkPart, task: &Task) -> bool {
    let member = network.members.binary_search_by(|member| member.task_id.cmp(&task.id)).ok();
    let vip = network.services.binary_search_by(|service| service.service_id.cmp(&task.service_id));
    vip.is_ok() && member.is_some_and(|at| network.members[at].endpoint_mode == EndpointMode::Vip)
}

impl Probe {
    /// Reads the listening sockets in the container's namespace. Blocks.
    fn listening(&self) -> io::Result<Vec<ListeningPort>> {
        let namespace = netns::of_container(&self.path)?;
        if self.ports.is_empty() {
            let first = sockdiag::first_listener(namespace.as_fd(), self.addresses.0)?;
            let seen = |(protocol, port)| ListeningPort { protocol, port, listens: Listens { v4: true, v6: false } };
            return Ok(first.map(seen).into_iter().collect());
        }
        let found = sockdiag::listening(namespace.as_fd(), self.addresses, self.ports.iter().copied())?;
        let listens = self.ports.iter().zip(found).filter(|(_, listens)| *listens != Listens::default());
        Ok(listens.map(|((protocol, port), listens)| ListeningPort { protocol: *protocol, port: *port, listens }).collect())
    }
}

/// A container that is probed repeatedly.
struct ProbedContainer {
    probe: Probe,
    /// When it was probed first.
    since: Instant,
    next: Instant,
    /// The last probe failed, which was logged.
    failed: bool,
}

/// Sends what is seen of each task to `reports`, again whenever it changes, until `shutdown`. `tick` bounds the pause
/// between two probes of a container.
pub async fn run(
    mut view: watch::Receiver<Option<Arc<NodeView>>>,
    mut sandboxes: watch::Receiver<Vec<Sandbox>>,
    reports: mpsc::Sender<ListenReport>,
    tick: Duration,
    shutdown: CancellationToken,
) {
    let tick = tick.min(LONGEST_PAUSE);
    let mut containers: BTreeMap<TaskId, ProbedContainer> = BTreeMap::new();
    let mut reported: BTreeMap<TaskId, Vec<ListeningPort>> = BTreeMap::new();
    let mut changed = true;
    loop {
        if std::mem::take(&mut changed) {
            let (view, sandboxes) = (view.borrow_and_update().clone(), sandboxes.borrow_and_update().clone());
            let probes = view.as_ref().map(|view| probes(view, &sandboxes)).unwrap_or_default();
            reported.retain(|id, _| view.as_ref().is_some_and(|view| view.tasks.by_id.contains_key(id)));
            update_containers(&mut containers, probes, Instant::now());
        }
        for (id, listening) in run_due_probes(&mut containers, tick).await {
            if reported.get(&id) != Some(&listening) {
                reported.insert(id.clone(), listening.clone());
                if reports.send((id, listening)).await.is_err() {
                    return;
                }
            }
        }
        let next = containers.values().map(|container| container.next).min();
        tokio::select! {
            () = shutdown.cancelled() => return,
            result = view.changed() => if result.is_err() { return } else { changed = true },
            result = sandboxes.changed() => if result.is_err() { return } else { changed = true },
            () = sleep_until(next) => {}
        }
    }
}

/// A new container, or one whose probe changed, is probed at once.
fn update_containers(containers: &mut BTreeMap<TaskId, ProbedContainer>, probes: BTreeMap<TaskId, Probe>, now: Instant) {
    containers.retain(|id, container| probes.get(id) == Some(&container.probe));
    for (id, probe) in probes {
        containers.entry(id).or_insert(ProbedContainer { probe, since: now, next: now, failed: false });
    }
}

/// Runs the probes that are due, and those due within half the shortest pause, so that probes stay batched.
async fn run_due_probes(containers: &mut BTreeMap<TaskId, ProbedContainer>, tick: Duration) -> Vec<ListenReport> {
    let latest = Instant::now() + SHORTEST_PAUSE / 2;
    let due: Vec<(TaskId, Probe)> =
        containers.iter().filter(|(_, c)| c.next <= latest).map(|(id, c)| (id.clone(), c.probe.clone())).collect();
    if due.is_empty() {
        return Vec::new();
    }
    let results = tokio::task::spawn_blocking(move || {
        due.into_iter().map(|(id, probe)| (id, probe.listening(), probe)).collect::<Vec<_>>()
    });
    let mut reports = Vec::new();
    for (id, result, probe) in results.await.unwrap_or_default() {
        let Some(container) = containers.get_mut(&id) else { continue };
        let expected = probe.ports.len().max(1);
        let all_listen = result.as_ref().is_ok_and(|ports| ports.len() == expected);
        let now = Instant::now();
        container.next = now + pause(all_listen, !probe.ports.is_empty(), now - container.since, tick);
        match result {
            Ok(ports) => {
                container.failed = false;
                reports.push((id, ports));
            }
            // The last report stays valid. The namespace of a container that exits is gone before the view changes.
            Err(error) if error.kind() == io::ErrorKind::NotFound || std::mem::replace(&mut container.failed, true) => {
                debug!(task = %id, %error, "cannot read the container's listening sockets");
            }
            Err(error) => {
                let path = probe.path.display();
                warn!(
                    task = %id, %path, %error,
                    "cannot read the container's listening sockets: its published ports are served in user space"
                );
            }
        }
    }
    reports
}

/// Time until the next probe. A container that starts to listen after some time is seen at most a twentieth of that later.
/// `known`: which ports are looked for.
fn pause(listens: bool, known: bool, age: Duration, tick: Duration) -> Duration {
    match (listens, known) {
        (true, true) => tick,
        (true, false) => NEVER,
        (false, _) => (age / 20).max(SHORTEST_PAUSE).min(if known { tick } else { LONGEST_UNKNOWN_PAUSE }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;
    use crate::model::task::Attachment;
    use crate::model::view::{ClusterPart, PublishedPort, ServiceVip, TaskEndpoint, Tasks};

    #[test]
    fn a_container_that_does_not_listen_yet_is_probed_often_while_young() {
        let tick = Duration::from_secs(1);
        assert_eq!(pause(false, true, Duration::ZERO, tick), SHORTEST_PAUSE);
        assert_eq!(pause(false, true, Duration::from_secs(1), tick), SHORTEST_PAUSE);
        assert_eq!(pause(false, true, Duration::from_secs(10), tick), Duration::from_millis(500));
        assert_eq!(pause(false, true, Duration::from_hours(1), tick), tick);
        assert_eq!(pause(true, true, Duration::ZERO, tick), tick);
        assert_eq!(pause(false, false, Duration::ZERO, tick), SHORTEST_PAUSE);
        assert_eq!(pause(false, false, Duration::from_hours(1), tick), LONGEST_UNKNOWN_PAUSE);
        assert_eq!(pause(true, false, Duration::ZERO, tick), NEVER, "it is not looked at again");
    }

    #[test]
    fn a_service_without_published_ports_is_looked_at_on_the_network_of_its_virtual_address() {
        let (ingress, back): (Ipv4Net, Ipv4Net) = ("10.0.0.0/24".parse().unwrap(), "10.0.1.0/24".parse().unwrap());
        let task = |id: &str, service: &str, networks: &[(&str, [u8; 4])]| {
            let mut task = fixture::task_with_resolvers(id, service, "node1", &[]);
            let attachment = |(network, address): &(&str, [u8; 4])| Attachment {
                network_id: (*network).into(),
                address: Ipv4Net::new_assert((*address).into(), 24),
            };
            task.attachments = networks.iter().map(attachment).collect();
            task
        };
        let endpoint = |id: &str, service: &str, address: [u8; 4], endpoint_mode| TaskEndpoint {
            task_id: id.into(),
            endpoint_mode,
            ..fixture::task_endpoint(service, 1, "node1", address.into())
        };
        let tasks = [
            task("t1", "web", &[("ingress", [10, 0, 0, 5]), ("back", [10, 0, 1, 5])]),
            task("t2", "db", &[("back", [10, 0, 1, 6])]),
            task("t3", "rr", &[("back", [10, 0, 1, 7])]),
        ];
        let members = vec![
            endpoint("t1", "web", [10, 0, 1, 5], EndpointMode::Vip),
            endpoint("t2", "db", [10, 0, 1, 6], EndpointMode::Vip),
            endpoint("t3", "rr", [10, 0, 1, 7], EndpointMode::Dnsrr),
        ];
        let vip = |service: &str, last| {
            Arc::new(ServiceVip { service_id: service.into(), name: service.to_owned(), vip: [10, 0, 1, last].into() })
        };
        let back_part =
            NetworkPart { services: vec![vip("db", 2), vip("web", 3)], ..fixture::network_part("back", back, members) };
        let ports = vec![Arc::new(PublishedPort { service_id: "web".into(), ..fixture::published_port(8080, 80, &[]) })];
        let cluster = ClusterPart { ports, ..fixture::cluster_part(vec![fixture::peer(1)]) };
        let mut view = fixture::node_view(1, vec![fixture::network_part("ingress", ingress, Vec::new()), back_part], cluster);
        view.tasks = Arc::new(Tasks {
            by_id: tasks.into_iter().map(|task| (task.id.clone(), Arc::new(task))).collect(),
            ..Tasks::default()
        });
        let sandbox = |path: &str, subnet: Ipv4Net, address: [u8; 4]| Sandbox {
            path: path.into(),
            subnet,
            further: Vec::new(),
            gateway: subnet.hosts().next().unwrap(),
            address: address.into(),
        };
        let sandboxes = [
            sandbox("/one", ingress, [10, 0, 0, 5]),
            sandbox("/one", back, [10, 0, 1, 5]),
            sandbox("/two", back, [10, 0, 1, 6]),
            sandbox("/three", back, [10, 0, 1, 7]),
        ];
        let found = probes(&view, &sandboxes);
        let shown: Vec<_> = found.iter().map(|(id, probe)| (id.as_str(), probe.addresses.0, probe.ports.len())).collect();
        assert_eq!(shown, [("t1", [10, 0, 0, 5].into(), 1), ("t2", [10, 0, 1, 6].into(), 0)]);
        assert_eq!(found[&TaskId::from("t2")].path, PathBuf::from("/two"));
        let none = sandboxes[..2].to_vec();
        assert_eq!(probes(&view, &none).len(), 1, "its namespace is not known yet");
    }

    #[test]
    fn a_task_whose_probe_changes_is_probed_at_once() {
        let now = Instant::now();
        let probe = |port: u16| Probe {
            path: "/ns".into(),
            addresses: ([10, 0, 0, 7].into(), Ipv6Addr::UNSPECIFIED),
            ports: [(Protocol::Tcp, port)].into(),
        };
        let probes = |port| BTreeMap::from([(TaskId::from("t"), probe(port))]);
        let mut containers = BTreeMap::new();
        update_containers(&mut containers, probes(80), now);
        let later = now + Duration::from_secs(9);
        for container in containers.values_mut() {
            container.next = later;
        }
        update_containers(&mut containers, probes(80), now);
        assert_eq!(containers.values().next().map(|c| c.next), Some(later));
        update_containers(&mut containers, probes(81), now);
        assert_eq!(containers.values().next().map(|c| c.next), Some(now));
        update_containers(&mut containers, BTreeMap::new(), now);
        assert!(containers.is_empty());
    }
}
