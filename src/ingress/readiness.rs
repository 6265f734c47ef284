//! Finds out which of this node's containers listen on the ports that their services publish, and on which address family.
//! The eBPF datapath sends a client to a task without knowing whether it accepts, so it may use only tasks that were seen to
//! listen; the managers are informed and put that into every node's view.
//!
//! A container that does not listen yet is probed often while it is young and less often as it gets older. One that listens
//! is probed once a second: a server may stop listening without exiting.

use crate::datapath::{Sandbox, netns, sockdiag};
use crate::model::{ListeningPort, Listens, NodeView, Protocol, Task, TaskId};
use crate::sync::sleep_until;
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

/// The published ports that a task was seen to listen on.
pub type ListenReport = (TaskId, Vec<ListeningPort>);

/// How to find out on which published ports a container listens.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probe {
    /// Path of the container's network namespace.
    pub path: PathBuf,
    /// The container's addresses on the network `ingress`.
    pub addresses: (Ipv4Addr, Ipv6Addr),
    /// Target ports of the task's service.
    pub ports: BTreeSet<(Protocol, u16)>,
}

/// The probes of this node's tasks whose services publish ports. Pure.
#[must_use]
pub fn probes(view: &NodeView, sandboxes: &[Sandbox]) -> BTreeMap<TaskId, Probe> {
    let Some((ingress, part)) = view.networks.by_id.iter().find(|(_, part)| part.ingress) else { return BTreeMap::new() };
    let wanted = view.tasks.by_id.values().filter(|t| t.is_wanted() && !t.status.state.is_final());
    let on_ingress = sandboxes.iter().filter(|s| s.subnet.trunc() == part.subnet.trunc());
    let paths: BTreeMap<Ipv4Addr, &PathBuf> = on_ingress.map(|s| (s.address, &s.path)).collect();
    let mut targets = BTreeMap::<_, BTreeSet<_>>::new();
    for port in &view.cluster.ports {
        targets.entry(&port.service_id).or_default().insert((port.protocol, port.target));
    }
    let probe = |task: &Task| {
        let address = task.address_on(ingress)?;
        let (path, ports) = (paths.get(&address)?, targets.get(&task.service_id)?);
        let addresses = (address, view.cluster.mesh.container(address));
        Some(Probe { path: (*path).clone(), addresses, ports: ports.clone() })
    };
    wanted.filter_map(|task| Some((task.id.clone(), probe(task)?))).collect()
}

impl Probe {
    /// Reads the listening sockets in the container's namespace. Blocks.
    fn listening(&self) -> io::Result<Vec<ListeningPort>> {
        let namespace = netns::of_container(&self.path)?;
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
        let all_listen = result.as_ref().is_ok_and(|ports| ports.len() == probe.ports.len());
        let now = Instant::now();
        container.next = now + pause(all_listen, now - container.since, tick);
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
fn pause(listens: bool, age: Duration, tick: Duration) -> Duration {
    if listens { tick } else { (age / 20).max(SHORTEST_PAUSE).min(tick) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_does_not_listen_yet_is_probed_often_while_young() {
        let tick = Duration::from_secs(1);
        assert_eq!(pause(false, Duration::ZERO, tick), SHORTEST_PAUSE);
        assert_eq!(pause(false, Duration::from_secs(1), tick), SHORTEST_PAUSE);
        assert_eq!(pause(false, Duration::from_secs(10), tick), Duration::from_millis(500));
        assert_eq!(pause(false, Duration::from_hours(1), tick), tick);
        assert_eq!(pause(true, Duration::ZERO, tick), tick);
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
