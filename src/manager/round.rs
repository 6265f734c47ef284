//! One round of the leader: every planner in order over one snapshot, each one seeing what those before it decided, and
//! all of it as one transaction. So a service of thirty tasks goes from wish to assigned in one commit.

use super::allocator::{self, QuarantinedAddresses};
use super::{ManagerSettings, orchestrator, reaper, scheduler};
use crate::model::{Meta, Revision, TaskState, Timestamp};
use crate::store::{Action, Kind, Object, Store, Transaction};
use rand::SeedableRng;
use rand::rngs::StdRng;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

/// A planner stops at the next object once it has this many writes; the rest comes with the next round. Keeps raft
/// entries small.
pub const BATCH: usize = 200;

/// Planned anew after this long even if nothing happens.
const IDLE: Duration = Duration::from_secs(1);

/// What the leader keeps from round to round.
pub struct Planner {
    settings: ManagerSettings,
    rng: StdRng,
    reserve: QuarantinedAddresses,
    /// Not before this time does waiting alone change anything.
    wake: Timestamp,
}

impl Planner {
    /// A planner that draws ids from the seed.
    pub fn new(settings: ManagerSettings, seed: u64) -> Self {
        Self { settings, rng: StdRng::seed_from_u64(seed), reserve: QuarantinedAddresses::default(), wake: Timestamp::default() }
    }

    /// What is to be written now; empty if there is nothing to do. `reports` are the dispatcher's writes on the same
    /// snapshot; `applied` is the lowest revision that live nodes have applied.
    pub fn round(&mut self, store: &Store, reports: Vec<Action>, applied: Revision, now: Timestamp) -> Vec<Action> {
        self.reserve.observe(store, applied);
        let mut draft = Draft { scratch: Cow::Borrowed(store), now, writes: BTreeMap::new(), order: Vec::new() };
        draft.add("dispatcher", reports);
        draft.add("orchestrator", orchestrator::plan(&draft.scratch, now, &mut self.rng, &self.settings));
        draft.add("allocator", allocator::plan(&draft.scratch, now, &mut self.reserve));
        draft.add("scheduler", scheduler::plan(&draft.scratch, now));
        draft.add("reaper", reaper::plan(&draft.scratch, now, &self.settings));
        let actions = draft.finish(store);
        if actions.is_empty() {
            self.wake = next_start(store, now).map_or(now.plus(IDLE), |start| start.min(now.plus(IDLE)));
        }
        actions
    }

    /// True if a round may have something to do though nothing changed: a restart delay is over, nodes caught up, or it
    /// is simply long ago.
    pub fn is_due(&self, now: Timestamp) -> bool {
        now >= self.wake || self.wake.since(now) > IDLE || self.reserve.is_waiting()
    }
}

/// When the next task that is held back may start.
fn next_start(store: &Store, now: Timestamp) -> Option<Timestamp> {
    store.tasks().filter(|t| t.desired_state <= TaskState::Running).filter_map(|t| t.not_before).filter(|t| *t > now).min()
}

type Key = (Kind, String);

/// Writes so far, and the state that they lead to.
struct Draft<'a> {
    scratch: Cow<'a, Store>,
    now: Timestamp,
    writes: BTreeMap<Key, Action>,
    order: Vec<Key>,
}

impl Draft<'_> {
    fn add(&mut self, planner: &'static str, actions: Vec<Action>) {
        if actions.is_empty() {
            return;
        }
        tracing::debug!(planner, actions = actions.len(), "planned");
        let transaction = Transaction { at: self.now, actions };
        let index = self.scratch.index() + 1;
        if let Err(error) = self.scratch.to_mut().apply(index, &transaction) {
            // A planner contradicts its own snapshot: a bug, but one that must not stop the other planners.
            tracing::error!(planner, %error, "plan does not fit its snapshot, dropped");
            return;
        }
        for action in transaction.actions {
            self.merge(action);
        }
    }

    /// One object is written once per transaction: its last state counts, under the kind of its first write.
    fn merge(&mut self, action: Action) {
        let key = key(&action);
        let merged = match (self.writes.remove(&key), action) {
            (Some(Action::Create(_)), Action::Update(object)) => Some(Action::Create(object)),
            (Some(Action::Create(_)), Action::Remove(..)) => None,
            (_, action) => Some(action),
        };
        if let Some(merged) = merged {
            if !self.order.contains(&key) {
                self.order.push(key.clone());
            }
            self.writes.insert(key, merged);
        }
    }

    fn finish(mut self, base: &Store) -> Vec<Action> {
        let mut out = Vec::new();
        let mut real = false;
        for key in &self.order {
            let Some(mut action) = self.writes.remove(key) else { continue };
            let stored = meta(base, key);
            if let Action::Create(object) | Action::Update(object) = &mut action {
                set_meta(object, stored.unwrap_or_default());
            }
            let same = matches!(&action, Action::Update(object) if is_stored(base, object));
            // An unchanged network is a lock on its addresses; anything else unchanged is nothing.
            if same && key.0 != Kind::Network {
                continue;
            }
            real |= !same;
            out.push(action);
        }
        if real { out } else { Vec::new() }
    }
}

fn key(action: &Action) -> Key {
    match action {
        Action::Create(object) | Action::Update(object) => match object {
            Object::Cluster(o) => (Kind::Cluster, o.id.to_string()),
            Object::Node(o) => (Kind::Node, o.id.to_string()),
            Object::Network(o) => (Kind::Network, o.id.to_string()),
            Object::Service(o) => (Kind::Service, o.id.to_string()),
            Object::Task(o) => (Kind::Task, o.id.to_string()),
        },
        Action::Remove(kind, id) => (*kind, id.clone()),
    }
}

fn meta(store: &Store, (kind, id): &Key) -> Option<Meta> {
    match kind {
        Kind::Cluster => store.cluster().map(|o| o.meta),
        Kind::Node => store.node(&id.as_str().into()).map(|o| o.meta),
        Kind::Network => store.network(&id.as_str().into()).map(|o| o.meta),
        Kind::Service => store.service(&id.as_str().into()).map(|o| o.meta),
        Kind::Task => store.task(&id.as_str().into()).map(|o| o.meta),
    }
}

fn set_meta(object: &mut Object, meta: Meta) {
    match object {
        Object::Cluster(o) => o.meta = meta,
        Object::Node(o) => o.meta = meta,
        Object::Network(o) => o.meta = meta,
        Object::Service(o) => o.meta = meta,
        Object::Task(o) => o.meta = meta,
    }
}

fn is_stored(store: &Store, object: &Object) -> bool {
    match object {
        Object::Cluster(o) => store.cluster() == Some(o),
        Object::Node(o) => store.node(&o.id) == Some(o),
        Object::Network(o) => store.network(&o.id) == Some(o),
        Object::Service(o) => store.service(&o.id) == Some(o),
        Object::Task(o) => store.task(&o.id) == Some(o),
    }
}
