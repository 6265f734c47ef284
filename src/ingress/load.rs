//! Counts the established TCP connections of this node's tasks whose services are scaled by load, and publishes the counts when they
//! change by more than a sixteenth. What counts is what a task has accepted on ports on which it listens, whichever way it came: by
//! a published port, a virtual address, or the task's own. Connections over loopback, as health checks make them, are left out.

use crate::datapath::{Sandbox, netns, sockdiag};
use crate::model::{NodeView, Task, TaskId};
use crate::sync::replace_if_changed;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Pause between two counts.
const PAUSE: Duration = Duration::from_secs(2);
/// A change of less than one part in so many is not reported.
const COARSENESS: u32 = 16;

/// The namespaces of the tasks that are counted. Pure.
#[must_use]
pub fn counted(view: &NodeView, sandboxes: &[Sandbox]) -> BTreeMap<TaskId, PathBuf> {
    if view.cluster.counted.is_empty() {
        return BTreeMap::new();
    }
    let subnets = |s: &Sandbox| std::iter::once(s.subnet).chain(s.further.clone());
    let places = |s| subnets(s).map(|subnet| ((subnet.trunc().addr(), s.address), &s.path)).collect::<Vec<_>>();
    let paths: BTreeMap<(Ipv4Addr, Ipv4Addr), &PathBuf> = sandboxes.iter().flat_map(places).collect();
    let is_counted =
        |task: &&Arc<Task>| task.is_wanted() && !task.status.state.is_final() && view.cluster.counted.contains(&task.service_id);
    let path = |task: &Arc<Task>| {
        let mut places = task.attachments.iter().map(|a| (a.address.trunc().addr(), a.address.addr()));
        places.find_map(|place| paths.get(&place)).map(|path| (task.id.clone(), (*path).clone()))
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
    loop {
        let current = view.borrow_and_update().clone();
        let tasks = current.map(|view| counted(&view, &sandboxes.borrow())).unwrap_or_default();
        let is_idle = tasks.is_empty();
        let counts = if is_idle { BTreeMap::new() } else { count(tasks).await };
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

async fn count(tasks: BTreeMap<TaskId, PathBuf>) -> BTreeMap<TaskId, u32> {
    let counting = tokio::task::spawn_blocking(move || {
        let count = |path: &PathBuf| {
            let namespace = netns::of_container(path)?;
            sockdiag::accepted(namespace.as_fd())
        };
        let counted = tasks.into_iter().filter_map(|(id, path)| match count(&path) {
            Ok(count) => Some((id, count)),
            // A container that exits has none any more.
            Err(error) => {
                tracing::debug!(task = %id, %error, "cannot count the container's connections");
                None
            }
        });
        counted.collect()
    });
    counting.await.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;
    use crate::model::task::Attachment;
    use crate::model::view::{ClusterPart, Tasks};
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
        assert_eq!(counted(&view, &sandboxes), [("t1".into(), "/one".into())].into());
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
