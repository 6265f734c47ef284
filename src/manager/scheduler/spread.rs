//! Which of the suitable nodes a task gets: the best by rank, within the branches of the spread preferences.
//!
//! A branch per value of the outermost preference's label, within it one per value of the next, and so on; nodes without a label
//! form a branch of their own. A task goes to the branch with the fewest tasks of its service, then to the best node of that
//! branch. Each decision costs a few heap operations, however many nodes there are.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Rank of a node for the tasks of a group; lower is better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct NodeRank {
    /// Recent failures are so many, or it applies nothing, that any other node is better.
    pub avoid: bool,
    /// Spread: tasks of the service. Bin packing: the fuller node is better.
    pub main: i64,
    /// Weight of recent failures.
    pub failures: u32,
    /// A node that has the image is preferred, and this one does not.
    pub image_absent: bool,
    /// All tasks.
    pub tasks: i64,
}

/// Nodes with the same values for the preferences so far.
#[derive(Default)]
pub(super) struct SpreadBranch {
    /// Tasks of the service on all of its nodes, suitable or not.
    tasks: usize,
    branches: Vec<SpreadBranch>,
    by_value: BTreeMap<String, usize>,
    /// Branches with room: fewest tasks first, of equals the one with the best node.
    order: BinaryHeap<Reverse<(usize, NodeRank, usize)>>,
    /// Nodes with room, by rank. The number is the caller's.
    nodes: BinaryHeap<Reverse<(NodeRank, usize)>>,
}

impl SpreadBranch {
    /// Adds a node with its values for the preferences. `rank` is `None` if it has no room for a task.
    pub(super) fn add(&mut self, values: &[&str], tasks: usize, rank: Option<NodeRank>, node: usize) {
        self.tasks += tasks;
        let Some((value, rest)) = values.split_first() else {
            self.nodes.extend(rank.map(|rank| Reverse((rank, node))));
            return;
        };
        let next = self.branches.len();
        let at = *self.by_value.entry((*value).to_owned()).or_insert(next);
        if at == next {
            self.branches.push(Self::default());
        }
        self.branches[at].add(rest, tasks, rank, node);
    }

    /// Puts the branches in order, once all nodes are added.
    pub(super) fn sort(&mut self) {
        for branch in &mut self.branches {
            branch.sort();
        }
        self.put_in_order();
    }

    fn put_in_order(&mut self) {
        let with_room = self.branches.iter().enumerate();
        let with_room = with_room.filter_map(|(at, branch)| Some(Reverse((branch.tasks, branch.best()?, at))));
        self.order = with_room.collect();
    }

    /// Gives a node that has no room for others a place for the next task, which is taken by [`Self::take`] or withdrawn again. The
    /// branches are in order, before and after.
    pub(super) fn offer(&mut self, values: &[&str], rank: NodeRank, node: usize) {
        self.change(values, &mut |nodes| nodes.push(Reverse((rank, node))));
    }

    /// Takes back what was offered and not taken.
    pub(super) fn withdraw(&mut self, values: &[&str], node: usize) {
        self.change(values, &mut |nodes| nodes.retain(|Reverse((_, other))| *other != node));
    }

    fn change(&mut self, values: &[&str], change: &mut impl FnMut(&mut BinaryHeap<Reverse<(NodeRank, usize)>>)) {
        let Some((value, rest)) = values.split_first() else { return change(&mut self.nodes) };
        if let Some(at) = self.by_value.get(*value) {
            self.branches[*at].change(rest, change);
        }
        self.put_in_order();
    }

    fn best(&self) -> Option<NodeRank> {
        let of_branches = self.order.peek().map(|Reverse((_, rank, _))| *rank);
        of_branches.or_else(|| self.nodes.peek().map(|Reverse((rank, _))| *rank))
    }

    /// Gives a task to the best node: `assign` is called with its number, and returns its next rank, or `None` if it has no room for
    /// another task. False if no node has room.
    pub(super) fn take(&mut self, assign: &mut impl FnMut(usize) -> Option<NodeRank>) -> bool {
        if let Some(Reverse((_, _, at))) = self.order.pop() {
            let branch = &mut self.branches[at];
            let took = branch.take(assign);
            self.order.extend(branch.best().map(|best| Reverse((branch.tasks, best, at))));
            self.tasks += usize::from(took);
            return took;
        }
        let Some(Reverse((_, node))) = self.nodes.pop() else { return false };
        self.nodes.extend(assign(node).map(|rank| Reverse((rank, node))));
        self.tasks += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(main: i64) -> NodeRank {
        NodeRank { avoid: false, main, failures: 0, image_absent: false, tasks: 0 }
    }

    /// Tasks that each node gets of so many; a node is its values, the tasks that it has, and its room.
    fn spread(nodes: &[(&[&str], i64, usize)], tasks: usize) -> Vec<i64> {
        let mut has: Vec<(i64, usize)> = nodes.iter().map(|(_, tasks, room)| (*tasks, *room)).collect();
        let mut root = SpreadBranch::default();
        for (number, (values, tasks, room)) in nodes.iter().enumerate() {
            root.add(values, usize::try_from(*tasks).unwrap(), (*room > 0).then(|| rank(*tasks)), number);
        }
        root.sort();
        for _ in 0..tasks {
            root.take(&mut |node| {
                has[node] = (has[node].0 + 1, has[node].1 - 1);
                (has[node].1 > 0).then(|| rank(has[node].0))
            });
        }
        has.into_iter().map(|(tasks, _)| tasks).collect()
    }

    const MANY: usize = usize::MAX;

    #[test]
    fn without_preferences_the_best_node_gets_each_task() {
        assert_eq!(spread(&[(&[], 0, MANY), (&[], 3, MANY), (&[], 1, MANY)], 5), [3, 3, 3]);
        assert_eq!(spread(&[(&[], 0, 2), (&[], 3, 0), (&[], 1, 1)], 9), [2, 3, 2], "as far as there is room");
        assert_eq!(spread(&[], 3), Vec::<i64>::new());
    }

    /// As a real swarm did.
    #[test]
    fn branches_are_filled_evenly_and_nodes_without_the_label_are_one() {
        assert_eq!(spread(&[(&["a"], 0, MANY), (&["b"], 0, MANY), (&[""], 0, MANY)], 10), [4, 3, 3]);
        assert_eq!(spread(&[(&["a"], 0, MANY), (&["b"], 0, MANY), (&["b"], 0, MANY)], 10), [5, 3, 2]);
        let two: [(&[&str], i64, usize); 3] = [(&["a", "x"], 0, MANY), (&["b", "y"], 0, MANY), (&["b", "z"], 0, MANY)];
        assert_eq!(spread(&two, 8), [4, 2, 2]);
    }

    #[test]
    fn existing_tasks_count_where_no_more_fit_and_a_full_branch_is_left_out() {
        assert_eq!(spread(&[(&["a"], 0, MANY), (&["a"], 4, 0), (&["b"], 0, MANY)], 6), [1, 4, 5]);
        assert_eq!(spread(&[(&["a"], 0, 1), (&["b"], 0, MANY), (&["c"], 0, 2)], 9), [1, 6, 2]);
    }
}
