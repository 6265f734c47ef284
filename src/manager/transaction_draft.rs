//! The actions that the planners of a round have made so far, and the state that results from them.

use super::transaction_limits::ObjectKey;
use crate::model::Timestamp;
use crate::store::{Action, Kind, Store, Transaction};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The draft of a round's transaction.
pub(super) struct TransactionDraft<'a> {
    scratch: Cow<'a, Store>,
    now: Timestamp,
    /// By object: when its first action was added, and its actions. There are several only of single fields.
    writes: BTreeMap<ObjectKey, (usize, Vec<Action>)>,
    added: usize,
}

impl<'a> TransactionDraft<'a> {
    /// Without actions.
    pub(super) fn new(base: &'a Store, now: Timestamp) -> Self {
        Self { scratch: Cow::Borrowed(base), now, writes: BTreeMap::new(), added: 0 }
    }

    /// The state with all actions so far.
    pub(super) fn state(&self) -> &Store {
        &self.scratch
    }

    /// Adds a planner's actions.
    pub(super) fn add(&mut self, planner: &'static str, actions: Vec<Action>) {
        if actions.is_empty() {
            return;
        }
        tracing::debug!(planner, actions = actions.len(), "planned");
        let transaction = Transaction::new(self.now, actions);
        let index = self.scratch.index() + 1;
        if let Err(error) = self.scratch.to_mut().apply(index, &transaction) {
            // A planner contradicts its own snapshot: a bug, which must stop neither the other planners nor the rest of this plan.
            tracing::error!(planner, %error, "plan does not fit its snapshot: only the part of it that does is carried out");
            return self.add_one_by_one(transaction.actions);
        }
        for action in transaction.actions {
            self.merge(action);
        }
    }

    fn add_one_by_one(&mut self, actions: Vec<Action>) {
        for action in actions {
            let (index, one) = (self.scratch.index() + 1, Transaction::new(self.now, vec![action]));
            let applied = self.scratch.to_mut().apply(index, &one).is_ok();
            one.actions.into_iter().filter(|_| applied).for_each(|action| self.merge(action));
        }
    }

    /// Writes each object once per transaction, or each of several fields of it: its last state, with the verb of its first
    /// action. Only what one planner writes as a whole and another as a field becomes a whole object.
    fn merge(&mut self, action: Action) {
        let key = action.target();
        self.added += 1;
        let (order, mut actions) = self.writes.remove(&key).unwrap_or((self.added, Vec::new()));
        let stored = || key.0.stored(&self.scratch, &key.1);
        let merged = match (actions.last(), action) {
            // The scratch state has the field.
            (Some(Action::Create(_)), Action::Set(_)) => stored().map(Action::Create).into_iter().collect(),
            (Some(Action::Update(_)), Action::Set(_)) => stored().map(Action::Update).into_iter().collect(),
            (Some(Action::Set(_)), field @ Action::Set(_)) => {
                actions.push(field);
                actions
            }
            (Some(Action::Create(_)), Action::Update(object)) => vec![Action::Create(object)],
            (Some(Action::Create(_)), Action::Remove(..)) => Vec::new(),
            (_, action) => vec![action],
        };
        if !merged.is_empty() {
            self.writes.insert(key, (order, merged));
        }
    }

    /// The actions on this state, in the order in which their objects were first written. None, if they change nothing.
    pub(super) fn finish(self, base: &Store) -> Vec<Action> {
        let mut writes: Vec<(usize, ObjectKey, Vec<Action>)> =
            self.writes.into_iter().map(|(key, (order, actions))| (order, key, actions)).collect();
        writes.sort_by_key(|(order, ..)| *order);
        let mut out = Vec::new();
        let mut any_change = false;
        for (_, key, actions) in writes {
            for mut action in actions {
                if let Action::Create(object) | Action::Update(object) = &mut action {
                    *object.meta_mut() = key.0.stored_meta(base, &key.1).unwrap_or_default();
                }
                let unchanged = match &action {
                    Action::Update(object) => object.is_stored(base),
                    // A write that has no effect leaves the version as it is.
                    Action::Set(_) => key.0.stored_meta(&self.scratch, &key.1) == key.0.stored_meta(base, &key.1),
                    Action::Create(_) | Action::Remove(..) => false,
                };
                // An unchanged network is the version guard of its addresses; any other unchanged object is left out.
                if unchanged && key.0 != Kind::Network {
                    continue;
                }
                any_change |= !unchanged;
                out.push(action);
            }
        }
        if any_change { out } else { Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Task, TaskState, TaskStatus, fixture};
    use crate::store::FieldUpdate;

    fn task(id: &str) -> Task {
        fixture::task_with_resolvers(id, "web", "n1", &[])
    }

    fn store() -> Store {
        let mut store = Store::default();
        store.apply(7, &Transaction::new(Timestamp(1), vec![Action::create(task("a"))])).expect("created");
        store
    }

    fn report(id: &str) -> Action {
        let status = Some(Box::new(TaskStatus { state: TaskState::Running, ..TaskStatus::default() }));
        Action::Set(FieldUpdate::TaskReport { id: id.into(), node: "n1".into(), status, listens: None })
    }

    fn stop(id: &str) -> Action {
        Action::Set(FieldUpdate::DesiredState { id: id.into(), state: TaskState::Shutdown })
    }

    /// What becomes of the actions of planners, one after the other; each is given the state that the ones before result in.
    fn finished(planners: &[&dyn Fn(&Store) -> Action]) -> Vec<Action> {
        let base = store();
        let mut draft = TransactionDraft::new(&base, Timestamp(2));
        for planner in planners {
            let action = planner(draft.state());
            draft.add("a planner", vec![action]);
        }
        let actions = draft.finish(&base);
        let mut next = base.clone();
        next.apply(8, &Transaction::new(Timestamp(2), actions.clone())).expect("the store takes it");
        actions
    }

    #[test]
    fn fields_of_one_object_stay_fields_and_a_whole_object_has_those_before() {
        let whole = |state: &Store| {
            let stored = state.task(&"a".into()).expect("stored").clone();
            Action::update(Task { slot: 9, ..stored })
        };
        assert_eq!(finished(&[&|_| report("a"), &|_| stop("a")]), [report("a"), stop("a")]);
        let is_all = |actions: &[Action]| match actions {
            [Action::Update(crate::store::Object::Task(task))] => {
                (task.status.state, task.desired_state, task.slot, task.meta.version)
                    == (TaskState::Running, TaskState::Shutdown, 9, 7)
            }
            _ => false,
        };
        for order in [
            [&whole as &dyn Fn(&Store) -> Action, &|_| report("a"), &|_| stop("a")],
            [&|_| report("a"), &whole, &|_| stop("a")],
            [&|_| report("a"), &|_| stop("a"), &whole],
        ] {
            let actions = finished(&order);
            assert!(is_all(&actions), "{actions:?}");
        }
    }

    #[test]
    fn what_changes_nothing_is_left_out_and_what_is_created_is_written_once() {
        assert_eq!(finished(&[&|_| stop("gone")]), []);
        assert_eq!(finished(&[&|_| stop("gone"), &|_| stop("a")]), [stop("a")]);
        let created = finished(&[&|_| Action::create(task("b")), &|_| report("b")]);
        let [Action::Create(crate::store::Object::Task(task_b))] = &created[..] else { panic!("{created:?}") };
        assert_eq!(task_b.status.state, TaskState::Running);
        let remove = |_: &Store| Action::Remove(Kind::Task, "b".to_owned());
        assert_eq!(finished(&[&|_| Action::create(task("b")), &remove]), []);
    }
}
