//! What a round of the planners has to look at: what has changed since the one before. Planning a service again of which
//! nothing has changed results in nothing, so it can be left out. What time alone changes the orchestrator knows of; for the other
//! planners there is a full round at times ([`super::round`]).

use crate::model::{Network, Node, Service, ServiceId, Task};
use crate::store::{Store, changed};
use std::collections::BTreeSet;

/// The services that a round looks at. Data: planners ask it, [`super::round`] makes it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RoundScope {
    full: bool,
    specs: bool,
    endpoints: bool,
    services: BTreeSet<ServiceId>,
}

impl RoundScope {
    /// Everything.
    #[must_use]
    pub fn full() -> Self {
        Self { full: true, ..Self::default() }
    }

    /// Some services.
    #[must_use]
    pub fn of_services(ids: impl IntoIterator<Item = ServiceId>) -> Self {
        Self { services: ids.into_iter().collect(), ..Self::default() }
    }

    /// What differs between two states.
    #[must_use]
    pub fn between(before: &Store, after: &Store) -> Self {
        let mut scope = Self::default();
        scope.add_changes(before, after);
        scope
    }

    /// True if everything is to be looked at.
    pub fn is_full(&self) -> bool {
        self.full
    }

    /// True if something besides tasks and what nodes report has changed: a service, a network, or the number of nodes.
    pub fn has_specs(&self) -> bool {
        self.full || self.specs
    }

    /// True if the endpoint of a service may change although nothing of the service has: a network has changed, or a service has given
    /// up ports or addresses.
    pub fn has_endpoints(&self) -> bool {
        self.full || self.endpoints
    }

    /// Services of which something has changed, a task, or the node of a task; also removed ones that may have tasks; some twice.
    pub fn service_ids<'a>(&'a self, store: &'a Store) -> Box<dyn Iterator<Item = ServiceId> + 'a> {
        if !self.full {
            return Box::new(self.services.iter().cloned());
        }
        let without_service = store.tasks().map(|task| &task.service_id).filter(|id| store.service(id).is_none());
        Box::new(store.services().map(|service| &service.id).chain(without_service).cloned())
    }

    /// The tasks of those services, by id.
    pub fn tasks<'a>(&self, store: &'a Store) -> Vec<&'a Task> {
        if self.full {
            return store.tasks().collect();
        }
        let mut tasks: Vec<&Task> = self.services.iter().flat_map(|id| store.tasks_of_service(id)).collect();
        tasks.sort_by(|a, b| a.id.cmp(&b.id));
        tasks
    }

    /// Adds a service.
    pub fn add_service(&mut self, id: &ServiceId) {
        self.services.insert(id.clone());
    }

    /// Adds all of another scope.
    pub fn merge(&mut self, other: Self) {
        self.full |= other.full;
        self.specs |= other.specs;
        self.endpoints |= other.endpoints;
        self.services.extend(other.services);
    }

    /// Adds what differs between two states.
    pub fn add_changes(&mut self, before: &Store, after: &Store) {
        let cluster = |store: &Store| store.cluster().map(|cluster| cluster.meta.version);
        self.full |= cluster(before) != cluster(after);
        for (was, is) in changed::<Task>(before, after) {
            self.services.extend(was.or(is).map(|task| task.service_id.clone()));
        }
        for (was, is) in changed::<Service>(before, after) {
            self.specs = true;
            self.endpoints |= was.is_some_and(|was| is.is_none_or(|is| has_given_up(was, is)));
            self.services.extend(was.or(is).map(|service| service.id.clone()));
        }
        for (was, is) in changed::<Network>(before, after) {
            // The allocator writes a network as the guard of its addresses.
            let content = |network: Option<&'_ Network>| network.map(|n| (n.spec.clone(), n.subnet, n.removing));
            let differs = content(was) != content(is);
            self.specs |= differs;
            self.endpoints |= differs;
        }
        let mut node_for_tasks = false;
        for (was, is) in changed::<Node>(before, after) {
            let Some(id) = was.or(is).map(|node| &node.id) else { continue };
            self.specs |= was.is_none() || is.is_none();
            if concerns_tasks(was, is) {
                node_for_tasks = true;
                self.services.extend(after.tasks_of_node(id).map(|task| task.service_id.clone()));
            }
        }
        if node_for_tasks {
            // They are to have a task on every suitable node.
            let per_node = after.services().filter(|service| service.spec.mode.is_global());
            self.services.extend(per_node.map(|service| service.id.clone()));
        }
    }
}

/// A service has ports or addresses no more, which others may wait for.
fn has_given_up(was: &Service, is: &Service) -> bool {
    let (was, is) = (&was.endpoint, &is.endpoint);
    was.ports.iter().any(|port| !is.ports.contains(port)) || was.vips.iter().any(|vip| !is.vips.contains(vip))
}

/// The node is suitable for other tasks than before, or does not run those that it has.
fn concerns_tasks(was: Option<&Node>, is: Option<&Node>) -> bool {
    let (Some(was), Some(is)) = (was, is) else { return true };
    was.spec != is.spec
        || was.description != is.description
        || (was.status.state, was.status.down_since, was.status.behind_since)
            != (is.status.state, is.status.down_since, is.status.behind_since)
}

/// Makes the scope of each round.
#[derive(Default)]
pub(super) struct ScopeTracker {
    /// The state of the last round.
    seen: Option<Store>,
    /// Scope of the last round that has planned something, until that is written: it is planned again if it is not.
    unwritten: RoundScope,
    /// What that round did not come to.
    rest: RoundScope,
}

impl ScopeTracker {
    /// The scope of a round over this state.
    pub(super) fn begin(&mut self, store: &Store, full: bool) -> RoundScope {
        let mut scope = std::mem::take(&mut self.unwritten);
        scope.merge(std::mem::take(&mut self.rest));
        match self.seen.replace(store.clone()) {
            Some(seen) => scope.add_changes(&seen, store),
            None => scope.full = true,
        }
        scope.full |= full;
        scope
    }

    /// The round has planned something for this scope; `rest` is what it did not come to.
    pub(super) fn planned(&mut self, scope: RoundScope, rest: RoundScope) {
        (self.unwritten, self.rest) = (scope, rest);
    }

    /// What it planned is written.
    pub(super) fn written(&mut self) {
        self.unwritten = RoundScope::default();
    }

    /// The last round did not come to everything.
    pub(super) fn has_rest(&self) -> bool {
        self.rest != RoundScope::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Timestamp, fixture};
    use crate::store::{Action, Kind, Transaction};

    fn write(store: &mut Store, actions: Vec<Action>) {
        store.apply(store.index() + 1, &Transaction::new(Timestamp(1), actions)).expect("applied");
    }

    fn task(id: &str, service: &str, node: &str) -> Action {
        Action::create(fixture::task_with_resolvers(id, service, node, &[]))
    }

    fn names(tasks: &[&Task]) -> Vec<String> {
        tasks.iter().map(|task| task.id.to_string()).collect()
    }

    #[test]
    fn the_scope_is_what_changed_until_it_is_written() {
        let (mut store, mut tracker) = (Store::default(), ScopeTracker::default());
        write(&mut store, vec![task("a", "web", "n1"), task("b", "db", "n1"), task("c", "web", "n2")]);
        assert!(tracker.begin(&store, false).is_full(), "nothing was seen before");
        assert_eq!(tracker.begin(&store, false), RoundScope::default());

        write(&mut store, vec![Action::Remove(Kind::Task, "a".to_owned())]);
        let scope = tracker.begin(&store, false);
        assert_eq!(scope.service_ids(&store).collect::<Vec<_>>(), ["web".into()]);
        assert!(!scope.has_specs());
        assert_eq!(names(&scope.tasks(&store)), ["c"]);
        tracker.planned(scope.clone(), RoundScope::default());
        assert_eq!(tracker.begin(&store, false), scope, "the plan was not written");
        let mut rest = RoundScope::default();
        rest.add_service(&"db".into());
        tracker.planned(scope.clone(), rest.clone());
        tracker.written();
        assert!(tracker.has_rest());
        assert_eq!(tracker.begin(&store, false), rest, "it was not all of it");
        tracker.planned(scope.clone(), rest.clone());
        rest.merge(scope.clone());
        assert_eq!(tracker.begin(&store, false), rest, "neither written nor all of it");
        tracker.planned(scope, RoundScope::default());
        tracker.written();
        assert!(!tracker.has_rest());
        assert_eq!(tracker.begin(&store, false), RoundScope::default());
        assert_eq!(names(&tracker.begin(&store, true).tasks(&store)), ["b", "c"]);
    }
}
