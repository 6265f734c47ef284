//! The ports of a service that tell whether its tasks serve, as the service's object and those of its tasks have them.

use crate::model::{ListeningPort, Protocol, Service, Task, TaskCause, TaskEnd, TaskState, Timestamp};
use crate::store::Store;
use std::collections::BTreeSet;
use std::time::Duration;

/// Ports from here on are those that kernels choose for clients: an unconnected UDP socket on one is no sign of a server.
const FIRST_EPHEMERAL: u16 = 32_768;

/// How long a task that runs is waited for until it listens on a port on which none of its service was seen to listen.
pub(super) const LISTEN_WAIT: Duration = Duration::from_secs(10);

pub(super) type Port = (Protocol, u16);

/// The ports that tell whether a task of a service serves.
pub(super) struct ServicePorts {
    /// Those that the service publishes on every node or routes HTTP to.
    pub reached: BTreeSet<Port>,
    /// Those on which all tasks of the present spec, or of earlier ones, listen sooner or later. (Of later ones there are tasks after a
    /// rollback: what they did is no measure. Where one of several listens, as of a service that elects a leader, silence says nothing.)
    pub known: BTreeSet<Port>,
}

impl ServicePorts {
    pub(super) fn of(store: &Store, service: &Service, now: Timestamp) -> Self {
        let published = service.ingress_ports().map(|port| (port.protocol, port.target_port));
        let routed = service.spec.http_ports().into_iter().map(|port| (Protocol::Tcp, port));
        let reached: BTreeSet<Port> = published.chain(routed).collect();
        let is_server = |port: &&ListeningPort| {
            let key = (port.protocol, port.port);
            if reached.is_empty() {
                port.protocol == Protocol::Tcp || port.port < FIRST_EPHEMERAL
            } else {
                reached.contains(&key)
            }
        };
        let tasks = || store.tasks_of_service(&service.id).filter(|task| task.spec_version <= service.spec_version);
        let seen = tasks().flat_map(|task| &task.listens).filter(is_server).map(|port| (port.protocol, port.port));
        let mut known: BTreeSet<Port> = seen.collect();
        if !known.is_empty() {
            for silent in tasks().filter(|task| is_measure(service, task, now)) {
                // Without published ports one port is looked for: the first of them.
                let is_silent =
                    |port: &Port| if reached.is_empty() { silent.listens.is_empty() } else { !listens(silent, *port) };
                known.retain(|port| !is_silent(port));
            }
        }
        Self { reached, known }
    }
}

pub(super) fn listens(task: &Task, (protocol, port): Port) -> bool {
    task.listens_on(protocol, port).is_any()
}

/// How long a task that runs has done so.
pub(super) fn running_for(task: &Task, now: Timestamp) -> Duration {
    now.since(task.started_at.unwrap_or(task.status.timestamp))
}

/// The task had its time to listen, and is not one whose taking over is judged now, or that has failed.
fn is_measure(service: &Service, task: &Task, now: Timestamp) -> bool {
    let is_judged = task.spec_version == service.spec_version && task.cause.is_some_and(TaskCause::takes_over);
    let has_failed = matches!(task.end, Some(TaskEnd::Itself | TaskEnd::FailedUpdate | TaskEnd::Unplaced | TaskEnd::Withdrawn));
    let ran = match task.status.state {
        TaskState::Running => running_for(task, now),
        // What was stopped may have waited all the time.
        state if state.is_final() && task.end.is_some() => {
            task.started_at.map_or(Duration::ZERO, |start| task.status.timestamp.since(start))
        }
        _ => Duration::ZERO,
    };
    ran >= LISTEN_WAIT && !is_judged && !has_failed
}
