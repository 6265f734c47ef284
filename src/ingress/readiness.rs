//! Which of this node's containers listen on the ports that their services publish, and on which family. A port in the
//! kernel sends a client to a task blindly, so it may only take those that are seen to listen; the managers are told.
//!
//! A container that does not listen yet is looked at often while it is young, ever more seldom as it gets older; one that
//! does, now and then: a server may stop listening without ending.

use crate::datapath::{Sandbox, netns, sockdiag};
use crate::model::Listens;
use crate::model::{ListeningPort, NodeView, Protocol, TaskId, TaskState};
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

/// Shortest pause between two looks at a container.
const SOON: Duration = Duration::from_millis(50);
/// Longest one.
const LATE: Duration = Duration::from_secs(1);

/// What was seen of a task.
pub type Report = (TaskId, Vec<ListeningPort>);

/// A container to look into.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probe {
    /// The namespace.
    pub path: PathBuf,
    /// Its addresses on `ingress`.
    pub addresses: (Ipv4Addr, Ipv6Addr),
    /// Ports in the container that its service publishes.
    pub ports: BTreeSet<(Protocol, u16)>,
}

/// The containers of published ports on this node, by task. Pure.
#[must_use]
pub fn probes(view: &NodeView, sandboxes: &[Sandbox]) -> BTreeMap<TaskId, Probe> {
    let Some((ingress, part)) = view.networks.by_id.iter().find(|(_, part)| part.ingress) else { return BTreeMap::new() };
    let wanted = view.tasks.by_id.values().filter(|t| t.desired_state <= TaskState::Running && !t.status.state.is_final());
    let on_ingress = sandboxes.iter().filter(|s| s.subnet.trunc() == part.subnet.trunc());
    let paths: BTreeMap<Ipv4Addr, &PathBuf> = on_ingress.map(|s| (s.address, &s.path)).collect();
    let mut targets = BTreeMap::<_, BTreeSet<_>>::new();
    for port in &view.cluster.ports {
        targets.entry(&port.service_id).or_default().insert((port.protocol, port.target));
    }
    let question = |task: &crate::model::Task| {
        let address = task.address_on(ingress)?;
        let (path, ports) = (paths.get(&address)?, targets.get(&task.service_id)?);
        let addresses = (address, view.cluster.mesh.container(address));
        Some(Probe { path: (*path).clone(), addresses, ports: ports.clone() })
    };
    wanted.filter_map(|task| Some((task.id.clone(), question(task)?))).collect()
}

impl Probe {
    fn ask(&self) -> io::Result<Vec<ListeningPort>> {
        let namespace = netns::of_container(&self.path)?;
        let found = sockdiag::listening(namespace.as_fd(), self.addresses, self.ports.iter().copied())?;
        let listens = self.ports.iter().zip(found).filter(|(_, listens)| *listens != Listens::default());
        Ok(listens.map(|((protocol, port), listens)| ListeningPort { protocol: *protocol, port: *port, listens }).collect())
    }
}

/// A container that is being looked at.
struct Watched {
    question: Probe,
    since: Instant,
    next: Instant,
    /// It could not be looked into, and that was said.
    failed: bool,
}

/// Tells `reports` what is seen, and again whenever it is something else, until `shutdown`. `tick` is the longest pause
/// between two looks.
pub async fn run(
    mut view: watch::Receiver<Option<Arc<NodeView>>>,
    mut sandboxes: watch::Receiver<Vec<Sandbox>>,
    reports: mpsc::Sender<Report>,
    tick: Duration,
    shutdown: CancellationToken,
) {
    let tick = tick.min(LATE);
    let mut watched: BTreeMap<TaskId, Watched> = BTreeMap::new();
    let mut known: BTreeMap<TaskId, Vec<ListeningPort>> = BTreeMap::new();
    let mut changed = true;
    loop {
        if std::mem::take(&mut changed) {
            let (view, sandboxes) = (view.borrow_and_update().clone(), sandboxes.borrow_and_update().clone());
            let probes = view.as_ref().map(|view| probes(view, &sandboxes)).unwrap_or_default();
            known.retain(|id, _| view.as_ref().is_some_and(|view| view.tasks.by_id.contains_key(id)));
            follow(&mut watched, probes, Instant::now());
        }
        for (id, seen) in look(&mut watched, tick).await {
            if known.get(&id) != Some(&seen) {
                known.insert(id.clone(), seen.clone());
                if reports.send((id, seen)).await.is_err() {
                    return;
                }
            }
        }
        let next = watched.values().map(|w| w.next).min();
        tokio::select! {
            () = shutdown.cancelled() => return,
            there = view.changed() => if there.is_err() { return } else { changed = true },
            there = sandboxes.changed() => if there.is_err() { return } else { changed = true },
            () = async { match next { Some(next) => tokio::time::sleep_until(next).await, None => std::future::pending().await } } => {}
        }
    }
}

/// Whoever is new, or is asked for something else, is looked at now.
fn follow(watched: &mut BTreeMap<TaskId, Watched>, probes: BTreeMap<TaskId, Probe>, now: Instant) {
    watched.retain(|id, w| probes.get(id) == Some(&w.question));
    for (id, question) in probes {
        watched.entry(id).or_insert(Watched { question, since: now, next: now, failed: false });
    }
}

/// Looks into those whose time has come, or comes soon: so they keep together.
async fn look(watched: &mut BTreeMap<TaskId, Watched>, tick: Duration) -> Vec<Report> {
    let now = Instant::now();
    let due: Vec<(TaskId, Probe)> =
        watched.iter().filter(|(_, w)| w.next <= now + SOON / 2).map(|(id, w)| (id.clone(), w.question.clone())).collect();
    if due.is_empty() {
        return Vec::new();
    }
    let asked = tokio::task::spawn_blocking(move || {
        due.into_iter().map(|(id, question)| (id, question.ask(), question)).collect::<Vec<_>>()
    });
    let mut seen = Vec::new();
    for (id, answer, question) in asked.await.unwrap_or_default() {
        let Some(one) = watched.get_mut(&id) else { continue };
        let all = answer.as_ref().is_ok_and(|ports| ports.len() == question.ports.len());
        let now = Instant::now();
        one.next = now + pause(all, now - one.since, tick);
        match answer {
            Ok(ports) => {
                one.failed = false;
                seen.push((id, ports));
            }
            // Nothing is known of it then; what was known stays. A container that ends is gone before we know.
            Err(error) if error.kind() == io::ErrorKind::NotFound || std::mem::replace(&mut one.failed, true) => {
                debug!(task = %id, %error, "cannot look who listens");
            }
            Err(error) => {
                let path = question.path.display();
                warn!(task = %id, %path, %error, "cannot look who listens: its published ports are served in user space");
            }
        }
    }
    seen
}

/// Time until the next look: what listens late is seen late by a twentieth at most.
fn pause(listens: bool, age: Duration, tick: Duration) -> Duration {
    if listens { tick } else { (age / 20).max(SOON).min(tick) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_listen_yet_is_looked_at_often_while_young() {
        let tick = Duration::from_secs(1);
        assert_eq!(pause(false, Duration::ZERO, tick), SOON);
        assert_eq!(pause(false, Duration::from_secs(1), tick), SOON);
        assert_eq!(pause(false, Duration::from_secs(10), tick), Duration::from_millis(500));
        assert_eq!(pause(false, Duration::from_hours(1), tick), tick);
        assert_eq!(pause(true, Duration::ZERO, tick), tick);
    }

    #[test]
    fn a_task_that_is_asked_for_another_port_is_looked_at_anew() {
        let now = Instant::now();
        let question = |port: u16| Probe {
            path: "/ns".into(),
            addresses: ([10, 0, 0, 7].into(), Ipv6Addr::UNSPECIFIED),
            ports: [(Protocol::Tcp, port)].into(),
        };
        let one = |port| BTreeMap::from([(TaskId::from("t"), question(port))]);
        let mut watched = BTreeMap::new();
        follow(&mut watched, one(80), now);
        let later = now + Duration::from_secs(9);
        for w in watched.values_mut() {
            w.next = later;
        }
        follow(&mut watched, one(80), now);
        assert_eq!(watched.values().next().map(|w| w.next), Some(later));
        follow(&mut watched, one(81), now);
        assert_eq!(watched.values().next().map(|w| w.next), Some(now));
        follow(&mut watched, BTreeMap::new(), now);
        assert!(watched.is_empty());
    }
}
