//! Generic resources of a node: what is in use of each kind, and what a task gets. As in SwarmKit a task asks for a number of a kind;
//! on a node that has names of the kind it gets that many of them.

use crate::model::node::NodeDescription;
use crate::model::task::GenericResource;
use std::collections::{BTreeMap, BTreeSet};

/// What the tasks of a node have of its generic resources.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct GenericUse {
    /// Tasks by kind and name. More than one only if a task was assigned by a leader that did not know of the other.
    names: BTreeMap<(String, String), usize>,
    numbers: BTreeMap<String, i128>,
}

impl GenericUse {
    /// A task gets or gives back what it has.
    pub(super) fn count(&mut self, resources: &[GenericResource], gets: bool) {
        for resource in resources {
            if let Some(named) = &resource.named_resource_spec {
                let key = (named.kind.clone(), named.value.clone());
                let tasks = self.names.entry(key.clone()).or_default();
                *tasks = if gets { *tasks + 1 } else { tasks.saturating_sub(1) };
                if *tasks == 0 {
                    self.names.remove(&key);
                }
            }
            if let Some(discrete) = &resource.discrete_resource_spec {
                let number = self.numbers.entry(discrete.kind.clone()).or_default();
                *number += if gets { i128::from(discrete.value) } else { -i128::from(discrete.value) };
                if *number == 0 {
                    self.numbers.remove(&discrete.kind);
                }
            }
        }
    }

    /// How many tasks that each want this fit on the node.
    pub(super) fn room(&self, node: &NodeDescription, wanted: &[GenericResource]) -> usize {
        let fits = |resource: &GenericResource| {
            let Some(wanted) = resource.discrete_resource_spec.as_ref().filter(|wanted| wanted.value > 0) else { return 0 };
            let free = match self.free(node, &wanted.kind) {
                FreeOfKind::Names(names) => names.len() as i128,
                FreeOfKind::Number(number) => number.max(0),
            };
            usize::try_from(free / i128::from(wanted.value)).unwrap_or(usize::MAX)
        };
        wanted.iter().map(fits).min().unwrap_or(usize::MAX)
    }

    /// Whether the node has what a task has of it, beside what is counted.
    pub(super) fn has(&self, node: &NodeDescription, resources: &[GenericResource]) -> bool {
        resources.iter().all(|resource| match (self.free(node, resource.kind()), &resource.named_resource_spec) {
            (FreeOfKind::Names(names), Some(named)) => names.contains(&named.value.as_str()),
            (FreeOfKind::Number(number), None) => {
                let value = resource.discrete_resource_spec.as_ref().map_or(0, |discrete| discrete.value);
                i128::from(value) <= number
            }
            // The node has names now where it had a number, or the other way round.
            _ => false,
        })
    }

    /// What a task gets that wants this, sorted; `None` if the node does not have so much left.
    pub(super) fn claim(&self, node: &NodeDescription, wanted: &[GenericResource]) -> Option<Vec<GenericResource>> {
        if self.room(node, wanted) == 0 {
            return None;
        }
        let mut out = Vec::new();
        for wanted in wanted.iter().filter_map(|resource| resource.discrete_resource_spec.as_ref()) {
            match self.free(node, &wanted.kind) {
                FreeOfKind::Number(_) => out.push(GenericResource::discrete(&wanted.kind, wanted.value)),
                FreeOfKind::Names(names) => {
                    let count = usize::try_from(wanted.value).unwrap_or(usize::MAX);
                    out.extend(names.into_iter().take(count).map(|name| GenericResource::named(&wanted.kind, name)));
                }
            }
        }
        out.sort();
        Some(out)
    }

    fn free<'a>(&self, node: &'a NodeDescription, kind: &str) -> FreeOfKind<'a> {
        let of_kind = || node.generic_resources.iter().filter(|resource| resource.kind() == kind);
        let names: BTreeSet<&str> =
            of_kind().filter_map(|resource| Some(resource.named_resource_spec.as_ref()?.value.as_str())).collect();
        if names.is_empty() {
            let has: i128 = of_kind().filter_map(|r| Some(i128::from(r.discrete_resource_spec.as_ref()?.value))).sum();
            return FreeOfKind::Number(has - self.numbers.get(kind).copied().unwrap_or(0));
        }
        let is_free = |name: &&str| !self.names.contains_key(&(kind.to_owned(), (*name).to_owned()));
        FreeOfKind::Names(names.into_iter().filter(is_free).collect())
    }
}

/// What is left of a kind.
enum FreeOfKind<'a> {
    Names(Vec<&'a str>),
    Number(i128),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> NodeDescription {
        NodeDescription {
            generic_resources: vec![
                GenericResource::discrete("ssd", 3),
                GenericResource::named("gpu", "G2"),
                GenericResource::named("gpu", "G1"),
                GenericResource::named("gpu", "G3"),
            ],
            ..NodeDescription::default()
        }
    }

    #[test]
    fn names_are_given_in_order_and_come_back() {
        let (node, mut in_use) = (node(), GenericUse::default());
        let wanted = [GenericResource::discrete("gpu", 2), GenericResource::discrete("ssd", 1)];
        assert_eq!(in_use.room(&node, &wanted), 1);
        let first = in_use.claim(&node, &wanted).unwrap();
        let expected =
            [GenericResource::discrete("ssd", 1), GenericResource::named("gpu", "G1"), GenericResource::named("gpu", "G2")];
        assert_eq!(BTreeSet::from_iter(&first), BTreeSet::from_iter(&expected));
        in_use.count(&first, true);
        assert_eq!(in_use.claim(&node, &wanted), None, "one is left of three");
        assert_eq!(in_use.claim(&node, &wanted[1..]), Some(vec![GenericResource::discrete("ssd", 1)]));
        let third = in_use.claim(&node, &[GenericResource::discrete("gpu", 1)]).unwrap();
        assert_eq!(third, [GenericResource::named("gpu", "G3")]);
        in_use.count(&first, false);
        assert_eq!(in_use, GenericUse::default());
    }

    #[test]
    fn what_the_node_does_not_have_or_no_task_can_have_does_not_fit() {
        let in_use = GenericUse::default();
        for (kind, number, room) in [
            ("ssd", 1, 3),
            ("ssd", 2, 1),
            ("ssd", 4, 0),
            ("ssd", i64::MAX, 0),
            ("gpu", 1, 3),
            ("fpga", 1, 0),
            ("ssd", 0, 0),
            ("gpu", -1, 0),
            ("", 1, 0),
        ] {
            assert_eq!(in_use.room(&node(), &[GenericResource::discrete(kind, number)]), room, "{kind}={number}");
        }
        assert_eq!(in_use.room(&node(), &[GenericResource::named("gpu", "G1")]), 0, "a name cannot be asked for");
        assert_eq!(in_use.room(&node(), &[]), usize::MAX);
    }
}
