//! A take-over by the leader's real loops: every node opens its session at once, over a channel in place of a connection.

use super::{fixture, large, row, scaled};
use crate::report::Report;
use skep::clock::SystemClock;
use skep::manager::{Leadership, ManagerSettings, start};
use skep::model::{NodeState, Revision};
use skep::protocol::view_stream::ViewEncoder;
use skep::protocol::{FORMAT, ToManager, ToNode};
use skep::store::LocalProposer;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Of the runtime: the processors of the machine that the goal names.
const THREADS: usize = 2;

pub fn take_over(report: &mut Report) {
    let nodes = scaled(300).max(2);
    let store = large::running(nodes, 100, scaled(150) as u64);
    let size = format!("{nodes} nodes, {} tasks", store.tasks().count());
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build().unwrap();
    let (welcomed, current, down) = runtime.block_on(async {
        let store = LocalProposer::with(store);
        let settings = ManagerSettings::default();
        let shutdown = CancellationToken::new();
        let (_leads, is_leader) = watch::channel(Leadership::Leads { lost_leader: None });
        let begin = Instant::now();
        let manager = start(store.clone(), is_leader, settings.clone(), Arc::new(SystemClock), 1, shutdown.clone());
        let shared = Arc::default();
        let (arrived, mut arrivals) = mpsc::unbounded_channel();
        for n in 1..=nodes {
            let (sessions, arrived) = (manager.sessions.clone(), arrived.clone());
            let (mut encoder, pause) = (ViewEncoder::new(Arc::clone(&shared), FORMAT), settings.heartbeat);
            tokio::spawn(async move {
                let (out, mut incoming) = mpsc::channel(4);
                let description = fixture::description(&format!("n{n}"));
                let (endpoints, have) = (Vec::new(), Revision::default());
                let hello = ToManager::Hello { format: FORMAT, formats: None, description, endpoints, have };
                let session = sessions.open(fixture::node(n), hello, out).await;
                let (mut welcomed, mut applied) = (None, Revision::default());
                let mut heartbeats = tokio::time::interval(pause);
                loop {
                    tokio::select! {
                        _ = heartbeats.tick() => sessions.message(session, ToManager::Heartbeat { applied }).await,
                        message = incoming.recv() => match message {
                            Some(ToNode::Welcome { .. }) => welcomed = Some(begin.elapsed()),
                            Some(message @ ToNode::View { .. }) => {
                                // As a session does before it writes.
                                let ToNode::View { revision, ref tasks, ref networks, .. } = message else { unreachable!() };
                                let is_whole = tasks.is_some() && networks.is_some();
                                encoder.encode(message);
                                if is_whole && applied == Revision::default() {
                                    let _ = arrived.send((welcomed.unwrap(), begin.elapsed()));
                                }
                                applied = revision;
                            }
                            Some(_) => {}
                            None => return,
                        },
                    }
                }
            });
        }
        let (mut welcomed, mut current) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..nodes {
            let (hello, view) = tokio::time::timeout(Duration::from_mins(1), arrivals.recv()).await.unwrap().unwrap();
            (welcomed, current) = (welcomed.max(hello), current.max(view));
        }
        // A node that was not heard in the meantime is down by then.
        tokio::time::sleep(2 * settings.down_after).await;
        let down = store.read().nodes().filter(|node| node.status.state != NodeState::Ready).count();
        shutdown.cancel();
        (welcomed, current, down)
    });
    let millis = |time: Duration| time.as_secs_f64() * 1e3;
    let now = format!("{down} down; hellos answered in {:.0} ms, all views in {:.0} ms", millis(welcomed), millis(current));
    row(report, "the same, by its loops", size, String::new(), "0 down, ≤ 5 s", now, String::new());
}
