//! Placement of a posted service.

use crate::api::error::{ApiError, GrpcCode, Result};
use crate::model::Constraint;
use crate::model::placement_labels::PlacementLabels;
use crate::model::service::ServiceSpec;
use serde_json::Value;

/// Drops preferences of a kind that Docker does not know, as the real server does.
pub(super) fn normalize(task: &mut Value) {
    if let Some(preferences) = task.get_mut("Placement").and_then(|placement| placement.get_mut("Preferences"))
        && let Some(list) = preferences.as_array_mut()
    {
        list.retain(|preference| preference["Spread"].is_object());
    }
}

/// Refuses a limit per node where every node has one task: the CLI's words. (The real server ignores it.)
///
/// # Errors
/// 400 with `InvalidArgument`.
pub(super) fn refuse_limit_of_global(posted: &Value) -> Result<()> {
    let limited = posted["TaskTemplate"]["Placement"]["MaxReplicas"].as_u64().is_some_and(|most| most > 0);
    let is_global = ["Global", "GlobalJob"].iter().any(|mode| posted["Mode"][mode].is_object());
    if limited && is_global {
        return Err(ApiError::invalid_argument(
            "TaskTemplate.Placement.MaxReplicas: replicas-max-per-node can only be used with replicated or replicated-job mode",
        ));
    }
    Ok(())
}

/// Refuses a placement as SwarmKit does, and constraints that no node can ever meet.
///
/// # Errors
/// 500 for a constraint that cannot be parsed, as SwarmKit; 400 for what skep adds.
pub(super) fn check(spec: &ServiceSpec) -> Result<()> {
    let placement = spec.task_template.placement.as_ref();
    for (i, text) in placement.iter().flat_map(|placement| &placement.constraints).enumerate() {
        let constraint = Constraint::parse(text).map_err(|error| ApiError::rpc(GrpcCode::Unknown, error))?;
        if let Some(why) = constraint.impossible() {
            return Err(ApiError::invalid_argument(format!("TaskTemplate.Placement.Constraints[{i}] {text}: {why}")));
        }
    }
    PlacementLabels::check(&spec.labels, &spec.name).map_err(ApiError::invalid_argument)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::schema::{SERVICE_SPEC, decode};
    use crate::api::validate::{service, service_spec};
    use serde_json::json;

    #[expect(clippy::needless_pass_by_value, reason = "called with what `json!` makes")]
    fn read(placement: Value) -> ServiceSpec {
        let task = json!({"ContainerSpec": {"Image": "lab:1"}, "Placement": placement});
        service_spec(decode(json!({"Name": "web", "TaskTemplate": task}), &SERVICE_SPEC).unwrap()).unwrap()
    }

    #[test]
    fn a_placement_is_shown_as_it_was_posted() {
        let placement = json!({"Constraints": ["node.role==worker", "node.labels.zone != c"],
            "Preferences": [{"Spread": {"SpreadDescriptor": "node.labels.zone"}}, {"Spread": {"SpreadDescriptor": "rack"}}],
            "MaxReplicas": 1, "Platforms": [{"Architecture": "amd64", "OS": "linux"}, {"OS": "linux"}]});
        let spec = read(placement.clone());
        service(&spec).unwrap();
        assert_eq!(serde_json::to_value(&spec.task_template.placement).unwrap(), placement);
        assert_eq!(serde_json::to_value(read(json!({})).task_template.placement).unwrap(), json!({}));
        assert_eq!(read(json!({"Preferences": [{}, {"Spread": null}]})).task_template.placement.unwrap().preferences, []);
    }

    #[test]
    fn constraints_are_refused_with_swarms_status_and_impossible_ones_with_their_field() {
        for (constraint, status, expected) in [
            ("a=1", 500, "rpc error: code = Unknown desc = constraint expected one operator from ==, !="),
            ("", 500, "rpc error: code = Unknown desc = constraint expected one operator from ==, !="),
            ("node.role == ", 500, "rpc error: code = Unknown desc = value '' is invalid"),
            ("bad name==1", 500, "rpc error: code = Unknown desc = key 'bad name' is invalid"),
            (
                "node.foo==1",
                400,
                "rpc error: code = InvalidArgument desc = TaskTemplate.Placement.Constraints[1] node.foo==1: key",
            ),
            ("node.ip==10.0", 400, "TaskTemplate.Placement.Constraints[1] node.ip==10.0: value"),
        ] {
            let error = service(&read(json!({"Constraints": ["node.role==worker", constraint]}))).unwrap_err();
            assert_eq!(error.status.as_u16(), status, "{constraint}");
            assert!(error.message.contains(expected), "{error}");
        }
    }

    #[test]
    fn wrong_types_are_refused_in_gos_words() {
        for (placement, field, ty, found) in [
            (json!({"MaxReplicas": -1}), "MaxReplicas", "uint64", "number -1"),
            (json!({"Constraints": "a==b"}), "Constraints", "[]string", "string"),
            (json!({"Preferences": [{"Spread": 1}]}), "Preferences.Spread", "swarm.SpreadOver", "number"),
        ] {
            let task = json!({"Placement": placement});
            let message = decode(json!({"TaskTemplate": task}), &SERVICE_SPEC).unwrap_err().message;
            let path = format!("Go struct field ServiceSpec.TaskTemplate.Placement.{field} of type {ty}");
            assert_eq!(message, format!("invalid JSON: json: cannot unmarshal {found} into {path}"));
        }
    }

    #[test]
    fn a_limit_per_node_needs_a_number_of_replicas() {
        for (mode, most, refused) in [("Global", 1, true), ("GlobalJob", 2, true), ("Replicated", 1, false)] {
            let task = json!({"ContainerSpec": {"Image": "lab:1"}, "Placement": {"MaxReplicas": most}});
            let posted = json!({"Name": "web", "TaskTemplate": task, "Mode": {mode: {}}});
            let result = service_spec(decode(posted, &SERVICE_SPEC).unwrap());
            let why = result.err().filter(|error| error.status.as_u16() == 400).map(|error| error.message).unwrap_or_default();
            assert_eq!(why.ends_with("can only be used with replicated or replicated-job mode"), refused, "{mode}: {why}");
        }
    }

    #[test]
    fn labels_on_placement_are_validated() {
        let mut spec = read(json!({}));
        spec.labels = [("skep.placement.strategy".to_owned(), "random".to_owned())].into();
        let error = service(&spec).unwrap_err();
        assert!(error.status.as_u16() == 400 && error.message.contains("skep.placement.strategy"), "{error}");
    }
}
