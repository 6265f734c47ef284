//! Whether a node meets the constraints of a spec: what decides where a global service has a task, where a task may stay, and the
//! constraint filter of the scheduler.

use crate::model::{Constraint, Node, TaskSpec};

/// The parsed constraints of a spec, for many nodes.
pub struct Constraints {
    /// `None`: one cannot be parsed, so that no node meets it. The API does not take such a spec.
    parsed: Option<Vec<Constraint>>,
}

impl Constraints {
    /// Parses the constraints of a spec.
    #[must_use]
    pub fn of(spec: &TaskSpec) -> Self {
        let all = spec.placement.iter().flat_map(|placement| &placement.constraints);
        Self { parsed: all.map(|text| Constraint::parse(text).ok()).collect() }
    }

    /// Whether the node meets all of them.
    #[must_use]
    pub fn are_met_by(&self, node: &Node) -> bool {
        self.parsed.as_ref().is_some_and(|all| all.iter().all(|constraint| constraint.is_met_by(node)))
    }
}

/// Whether the node meets the constraints of the spec. Its state, availability and free resources are not looked at: a global
/// service has a task on an eligible node, and the task says what it waits for.
#[must_use]
pub fn eligible(node: &Node, spec: &TaskSpec) -> bool {
    Constraints::of(spec).are_met_by(node)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture;
    use crate::model::task::Placement;

    #[test]
    fn all_constraints_must_be_met() {
        let node = fixture::node("n1");
        let spec = |constraints: &[&str]| TaskSpec {
            placement: Some(Placement {
                constraints: constraints.iter().map(|c| (*c).to_owned()).collect(),
                ..Placement::default()
            }),
            ..TaskSpec::default()
        };
        assert!(eligible(&node, &TaskSpec::default()));
        assert!(eligible(&node, &spec(&["node.id==n1", "node.role==worker"])));
        assert!(!eligible(&node, &spec(&["node.id==n1", "node.role==manager"])));
        assert!(!eligible(&node, &spec(&["node.id"])), "what cannot be parsed is met by no node");
    }
}
