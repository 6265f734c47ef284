//! Specs and labels that the tasks of a service have in common: kept in memory once, and written to a snapshot once.

use crate::model::{ServiceId, Task, TaskId, TaskSpec};
use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

type Labels = BTreeMap<String, String>;
type TaskTable = OrdMap<TaskId, Arc<Task>>;

/// By service and version of its spec, what the task that was created last has. Which allocations tasks share is no part of
/// the state, so all of these are equal.
#[derive(Clone, Default, Debug)]
pub(super) struct SharedSpecs(OrdMap<(ServiceId, u64), SharedSpec>);

#[derive(Clone, Debug)]
struct SharedSpec {
    spec: Arc<TaskSpec>,
    labels: Arc<Labels>,
    /// Tasks of this service and version.
    tasks: u64,
}

impl PartialEq for SharedSpecs {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for SharedSpecs {}

fn key(task: &Task) -> (ServiceId, u64) {
    (task.service_id.clone(), task.spec_version)
}

impl SharedSpecs {
    /// Replaces the spec and the labels of a task that is written by equal ones that the store has: those of the task before, or
    /// of another task of its service.
    pub(super) fn share(&self, before: Option<&Task>, task: &mut Task) {
        let other = self.0.get(&key(task));
        let specs = before.map(|b| &b.spec).into_iter().chain(other.map(|o| &o.spec));
        share(&mut task.spec, specs);
        let labels = before.map(|b| &b.service_labels).into_iter().chain(other.map(|o| &o.labels));
        share(&mut task.service_labels, labels);
    }

    /// A task was written or removed.
    pub(super) fn replace(&mut self, before: Option<&Task>, after: Option<&Task>) {
        if before.map(key) == after.map(key) {
            return;
        }
        if let Some(task) = after {
            let tasks = self.0.get(&key(task)).map_or(0, |shared| shared.tasks) + 1;
            self.0.insert(key(task), SharedSpec { spec: task.spec.clone(), labels: task.service_labels.clone(), tasks });
        }
        if let Some(key) = before.map(key)
            && let Some(shared) = self.0.get_mut(&key)
        {
            shared.tasks -= 1;
            if shared.tasks == 0 {
                self.0.remove(&key);
            }
        }
    }
}

fn share<'a, T: PartialEq + 'a>(value: &mut Arc<T>, mut stored: impl Iterator<Item = &'a Arc<T>>) {
    if let Some(equal) = stored.find(|stored| Arc::ptr_eq(stored, value) || **stored == *value) {
        value.clone_from(equal);
    }
}

/// In a snapshot: what tasks of a service have in common. Those of them are written with an empty spec, which no task has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct SpecInSnapshot {
    service_id: ServiceId,
    spec_version: u64,
    spec: Arc<TaskSpec>,
    service_labels: Arc<Labels>,
}

/// The tasks without what they have in common, and that. Depends on the tasks alone, not on what they share in memory.
pub(super) fn take_out(tasks: &TaskTable) -> (TaskTable, Vec<SpecInSnapshot>) {
    let mut common = BTreeMap::<(ServiceId, u64), Option<&Arc<Task>>>::new();
    let empty = Arc::new(TaskSpec::default());
    for task in tasks.values() {
        let first = common.entry(key(task)).or_insert(Some(task));
        // A task that has an empty spec after all must be found with it again.
        if task.spec == empty {
            *first = None;
        }
    }
    let is_same = |a: &Task, b: &Task| {
        (Arc::ptr_eq(&a.spec, &b.spec) || a.spec == b.spec)
            && (Arc::ptr_eq(&a.service_labels, &b.service_labels) || a.service_labels == b.service_labels)
    };
    let labels = Arc::<Labels>::default();
    let without = |task: &Arc<Task>| match common.get(&key(task)) {
        Some(Some(first)) if is_same(task, first) => {
            Arc::new(Task { spec: empty.clone(), service_labels: labels.clone(), ..(**task).clone() })
        }
        _ => task.clone(),
    };
    let rest = tasks.iter().map(|(id, task)| (id.clone(), without(task))).collect();
    let listed = common.into_iter().filter_map(|((service_id, spec_version), first)| {
        let first = first?;
        let (spec, service_labels) = (first.spec.clone(), first.service_labels.clone());
        Some(SpecInSnapshot { service_id, spec_version, spec, service_labels })
    });
    (rest, listed.collect())
}

/// The opposite of [`take_out`]; equal specs share one allocation, also those of a snapshot that has each in its task.
///
/// # Errors
/// A task has labels of its own although what it has in common with others is listed: one of the two would be lost.
pub(super) fn put_back(tasks: TaskTable, listed: Vec<SpecInSnapshot>) -> anyhow::Result<TaskTable> {
    let listed: BTreeMap<_, _> =
        listed.into_iter().map(|entry| ((entry.service_id.clone(), entry.spec_version), entry)).collect();
    let (mut shared, empty) = (SharedSpecs::default(), Arc::new(TaskSpec::default()));
    let complete = |(id, task): (TaskId, Arc<Task>)| {
        let mut task = Arc::unwrap_or_clone(task);
        if task.spec == empty
            && let Some(entry) = listed.get(&key(&task))
        {
            anyhow::ensure!(task.service_labels.is_empty(), "task {id} has labels beside those of its service");
            (task.spec, task.service_labels) = (entry.spec.clone(), entry.service_labels.clone());
        } else {
            shared.share(None, &mut task);
        }
        shared.replace(None, Some(&task));
        Ok((id, Arc::new(task)))
    };
    tasks.into_iter().map(complete).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Timestamp, fixture};
    use crate::store::{Action, Store, Transaction};

    /// A task with a spec of this content, not shared with any other.
    fn task(id: &str, version: u64, image: &str, label: &str) -> Task {
        let mut task = fixture::task_with_resolvers(id, "web", "n1", &[]);
        image.clone_into(&mut Arc::make_mut(&mut task.spec).container_spec.image);
        task.service_labels = Labels::from([("colour".to_owned(), label.to_owned())]).into();
        Task { spec_version: version, ..task }
    }

    fn write(store: &mut Store, actions: Vec<Action>) {
        store.apply(store.index() + 1, &Transaction::new(Timestamp(1), actions)).expect("applied");
    }

    fn shares(store: &Store, a: &str, b: &str) -> bool {
        let (a, b) = (store.task(&a.into()).expect("a task"), store.task(&b.into()).expect("a task"));
        Arc::ptr_eq(&a.spec, &b.spec) && Arc::ptr_eq(&a.service_labels, &b.service_labels)
    }

    #[test]
    fn tasks_with_one_spec_share_it_also_when_one_is_written_whole_or_the_store_was_restored() {
        let mut store = Store::default();
        let tasks =
            [task("a", 1, "one", "red"), task("b", 1, "one", "red"), task("c", 2, "two", "red"), task("d", 2, "two", "blue")];
        write(&mut store, tasks.clone().map(Action::create).into());
        assert!(shares(&store, "a", "b"));
        assert!(!shares(&store, "a", "c"));
        let (c, d) = (store.task(&"c".into()).expect("c"), store.task(&"d".into()).expect("d"));
        assert!(Arc::ptr_eq(&c.spec, &d.spec) && c.service_labels != d.service_labels);

        let mut again = task("a", 1, "one", "red");
        again.meta = store.task(&"a".into()).expect("a").meta;
        again.slot = 7;
        write(&mut store, vec![Action::update(again)]);
        assert!(shares(&store, "a", "b"));
        let restored = Store::restore(&store.snapshot()).expect("restores");
        assert!(shares(&restored, "a", "b"));
        assert_eq!(restored, store);
    }

    #[test]
    fn what_is_taken_out_is_put_back() {
        let all = [
            task("a", 1, "one", "red"),
            task("b", 1, "one", "red"),
            task("c", 1, "one", "blue"),
            task("d", 2, "two", "red"),
            Task { spec: Arc::default(), ..task("e", 2, "two", "red") },
            Task { service_id: "db".into(), ..task("f", 1, "three", "red") },
        ];
        let tasks: TaskTable = all.map(|task| (task.id.clone(), Arc::new(task))).into_iter().collect();
        let (rest, listed) = take_out(&tasks);
        assert_eq!(listed.len(), 2, "those of d and e would not be distinguished");
        let empty = rest.values().filter(|task| *task.spec == TaskSpec::default()).count();
        assert_eq!(empty, 4, "a, b and f, and e that is so itself");
        assert_eq!(put_back(rest, listed).expect("whole"), tasks);
    }
}
