//! Counts the established TCP connections of this node's tasks whose services are scaled by load, and publishes the counts when they
//! change by more than a sixteenth. What counts is what a task has accepted on ports on which it listens, whichever way it came: by
//! a published port, a virtual address, or the task's own. Connections over loopback, as health checks make them, are left out.
//!
//! A service that may be scaled to 0 must not lose its last task to clients that are there for less than the pause between two counts:
//! the kernel says of each of its connections when it has ended.

use crate::datapath::sockdiag::{AcceptedConnections, EndedConnections};
use crate::datapath::{Sandbox, netns};
use crate::model::{NodeView, ServiceId, Task, TaskId};
use crate::sync::replace_if_changed;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Pause between two counts.
const PAUSE: Duration = Duration::from_secs(2);
/// A change of less than one part in so many is not reported.
const COARSENESS: u32 = 16;
/// How long a task counts as in use after a connection has ended, so that the leader sees it, however short the connection was.
const IN_USE: Duration = Duration::from_secs(6);

/// A container whose connections are counted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CountedTask {
    /// Of its namespace.
    pub path: PathBuf,
    /// Its service may be scaled to 0.
    pub to_zero: bool,
}

/// The namespaces of the tasks that are counted. Pure.
#[must_use]
pub fn counted(view: &NodeView, sandboxes: &[Sandbox]) -> BTreeMap<TaskId, CountedTask> {
    if view.cluster.counted.is_empty() {
        return BTreeMap::new();
    }
    let subnets = |s: &Sandbox| std::iter::once(s.subnet).chain(s.further.clone());
    let places = |s| subnets(s).map(|subnet| ((subnet.trunc().addr(), s.address), &s.path)).collect::<Vec<_>>();
    let paths: BTreeMap<(Ipv4Addr, Ipv4Addr), &PathBuf> = sandboxes.iter().flat_map(places).collect();
    let is_counted =
        |task: &&Arc<Task>| task.is_wanted() && !task.status.state.is_final() && view.cluster.counted.contains(&task.service_id);
    let of_ports = view.cluster.ports.iter().filter(|port| port.holds).map(|port| &port.service_id);
    let of_routes = view.cluster.http.iter().filter(|service| service.holds).map(|service| &service.service_id);
    let to_zero: BTreeSet<&ServiceId> = of_ports.chain(of_routes).collect();
    let path = |task: &Arc<Task>| {
        let mut places = task.attachments.iter().map(|a| (a.address.trunc().addr(), a.address.addr()));
        let path = places.find_map(|place| paths.get(&place))?;
        Some((task.id.clone(), CountedTask { path: (*path).clone(), to_zero: to_zero.contains(&task.service_id) }))
    };
    view.tasks.by_id.values().filter(is_counted).filter_map(path).collect()
}

/// What is reported of new counts: those of earlier reports where they are near enough.
#[must_use]
pub fn coarse(reported: &BTreeMap<TaskId, u32>, counts: BTreeMap<TaskId, u32>) -> BTreeMap<TaskId, u32> {
    let near = |id: &TaskId, count: u32| {
        let before = *reported.get(id)?;
        let is_near = count != 0 && before != 0 && before.abs_diff(count) < before.max(count).div_ceil(COARSENESS);
        is_near.then_some(before)
    };
    counts.into_iter().map(|(id, count)| (near(&id, count).unwrap_or(count), id)).map(|(count, id)| (id, count)).collect()
}

/// Publishes the counts until `shutdown`. A task whose namespace cannot be read is left out: nothing is known of it.
pub async fn run(
    mut view: watch::Receiver<Option<Arc<NodeView>>>,
    sandboxes: watch::Receiver<Vec<Sandbox>>,
    loads: watch::Sender<BTreeMap<TaskId, u32>>,
    shutdown: CancellationToken,
) {
    let mut uses = BTreeMap::new();
    loop {
        let current = view.borrow_and_update().clone();
        let tasks = current.map(|view| counted(&view, &sandboxes.borrow())).unwrap_or_default();
        let is_idle = tasks.is_empty();
        if is_idle {
            // Each holds its task's namespace.
            uses.clear();
        }
        let counts = if is_idle { BTreeMap::new() } else { count(tasks, &mut uses).await };
        let next = coarse(&loads.borrow(), counts);
        replace_if_changed(&loads, next);
        tokio::select! {
            () = shutdown.cancelled() => return,
            // Without a task to count there is nothing to do until the view changes.
            changed = view.changed(), if is_idle => if changed.is_err() { return },
            () = tokio::time::sleep(PAUSE) => {}
        }
    }
}

/// When a task was in use, seen by the ends of its connections.
struct TaskUse {
    path: PathBuf,
    ended: EndedConnections,
    last: Instant,
}

impl TaskUse {
    /// What was before is not known: it may have been in use.
    fn watch(path: &Path, now: Instant) -> io::Result<Self> {
        let ended = EndedConnections::watch(netns::of_container(path)?.as_fd())?;
        Ok(Self { path: path.to_owned(), ended, last: now })
    }

    /// What is counted if there are so many connections now.
    fn count(&mut self, accepted: &AcceptedConnections, now: Instant) -> io::Result<u32> {
        if self.ended.any(&accepted.ports)? {
            self.last = now;
        }
        let in_use = now.duration_since(self.last) < IN_USE;
        Ok(accepted.established.max(in_use.into()))
    }
}

async fn count(tasks: BTreeMap<TaskId, CountedTask>, uses: &mut BTreeMap<TaskId, TaskUse>) -> BTreeMap<TaskId, u32> {
    let mut watched = std::mem::take(uses);
    let counting = tokio::task::spawn_blocking(move || {
        let now = Instant::now();
        watched.retain(|id, of_task| tasks.get(id).is_some_and(|task| task.to_zero && task.path == of_task.path));
        let mut count = |id: &TaskId, task: &CountedTask| {
            let accepted = AcceptedConnections::read(netns::of_container(&task.path)?.as_fd())?;
            if !task.to_zero {
                return Ok(accepted.established);
            }
            if !watched.contains_key(id) {
                watched.insert(id.clone(), TaskUse::watch(&task.path, now)?);
            }
            watched.get_mut(id).map_or(Ok(accepted.established), |of_task| of_task.count(&accepted, now))
        };
        let counted = tasks.iter().filter_map(|(id, task)| match count(id, task) {
            Ok(count) => Some((id.clone(), count)),
            // A container that exits has none any more.
            Err(error) => {
                let error: io::Error = error;
                tracing::debug!(task = %id, %error, "cannot count the container's connections");
                None
            }
        });
        (counted.collect(), watched)
    });
    let (counts, watched) = counting.await.unwrap_or_default();
    *uses = watched;
    counts
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;
    use crate::model::task::Attachment;
    use crate::model::view::{ClusterPart, PublishedPort, Tasks};
    use ipnet::Ipv4Net;

    #[test]
    fn only_tasks_of_scaled_services_are_counted_on_whatever_network_they_are() {
        let task = |id: &str, service: &str, address: [u8; 4]| {
            let mut task = fixture::task_with_resolvers(id, service, "node1", &[]);
            task.attachments = vec![Attachment { network_id: "back".into(), address: Ipv4Net::new_assert(address.into(), 24) }];
            (task.id.clone(), Arc::new(task))
        };
        let tasks = [task("t1", "web", [172, 20, 1, 5]), task("t2", "db", [172, 20, 1, 6]), task("t3", "web", [172, 20, 1, 7])];
        let counted_services = ClusterPart { counted: ["web".into()].into(), ..fixture::cluster_part(vec![fixture::peer(1)]) };
        let mut view = fixture::node_view(1, Vec::new(), counted_services);
        view.tasks = Arc::new(Tasks { by_id: tasks.into_iter().collect(), ..Tasks::default() });
        let sandbox = |path: &str, address: [u8; 4]| Sandbox {
            path: path.into(),
            subnet: "172.20.1.0/24".parse().unwrap(),
            further: Vec::new(),
            gateway: [172, 20, 1, 1].into(),
            address: address.into(),
        };
        let sandboxes = [sandbox("/one", [172, 20, 1, 5]), sandbox("/two", [172, 20, 1, 6])];
        let one = CountedTask { path: "/one".into(), to_zero: false };
        assert_eq!(counted(&view, &sandboxes), [("t1".into(), one.clone())].into());
        let port = PublishedPort { holds: true, ..fixture::published_port(8080, 80, &[]) };
        Arc::make_mut(&mut view.cluster).ports = vec![Arc::new(port)];
        assert_eq!(counted(&view, &sandboxes), [("t1".into(), CountedTask { to_zero: true, ..one })].into());
        view.cluster = Arc::new(fixture::cluster_part(vec![fixture::peer(1)]));
        assert!(counted(&view, &sandboxes).is_empty());
    }

    #[test]
    fn a_small_change_of_a_large_count_is_not_reported_and_the_end_of_the_last_connection_is() {
        let one = |count: u32| BTreeMap::from([(TaskId::from("t"), count)]);
        for (before, now, reported) in
            [(100, 105, 100), (100, 120, 120), (100, 80, 80), (3, 4, 4), (1, 0, 0), (0, 1, 1), (40_000, 41_000, 40_000)]
        {
            assert_eq!(coarse(&one(before), one(now)), one(reported), "{before} to {now}");
        }
        assert_eq!(coarse(&one(5), BTreeMap::new()), BTreeMap::new());
    }
}
