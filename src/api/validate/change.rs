//! What an update changes of a service's tasks. Two specs mean the same although one names defaults that the other leaves
//! out: clients read a service with them and post all of it back.

use crate::api::convert::service::with_defaults;
use crate::model::service::{EndpointMode, ServiceSpec};
use crate::model::task::{Reservations, ResourceAmounts};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

/// The path of the first difference that is not in labels, mode or the way of updating; `None` if the tasks can stay.
pub fn first_change_of_tasks(old: &ServiceSpec, new: &ServiceSpec) -> Option<String> {
    first_difference(&comparable(old), &comparable(new), String::new())
}

fn comparable(spec: &ServiceSpec) -> Value {
    let mut spec = with_defaults(ServiceSpec { labels: BTreeMap::new(), mode: <_>::default(), ..spec.clone() });
    (spec.update_config, spec.rollback_config) = (None, None);
    spec.endpoint_spec.get_or_insert_default().mode.get_or_insert(EndpointMode::Vip);
    let task = &mut spec.task_template;
    task.container_spec.privileges.get_or_insert_default();
    task.container_spec.healthcheck.get_or_insert_default();
    if let Some(resources) = &mut task.resources {
        let is_set = |amounts: &ResourceAmounts| *amounts != ResourceAmounts::default();
        resources.limits = resources.limits.filter(is_set);
        resources.reservations = resources.reservations.take().filter(|amounts| *amounts != Reservations::default());
    }
    if let Some(restart) = &mut task.restart_policy {
        restart.window = restart.window.filter(|window| window.0 != 0);
    }
    serde_json::to_value(spec).unwrap_or_default()
}

/// The path of the first difference between two values, keys in alphabetical order.
fn first_difference(old: &Value, new: &Value, path: String) -> Option<String> {
    if old == new {
        return None;
    }
    let (Value::Object(a), Value::Object(b)) = (old, new) else { return Some(path) };
    let keys: BTreeSet<_> = a.keys().chain(b.keys()).collect();
    keys.into_iter().find_map(|key| {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        first_difference(a.get(key).unwrap_or(&Value::Null), b.get(key).unwrap_or(&Value::Null), path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::schema::{SERVICE_SPEC, decode};
    use crate::api::validate::service_spec;
    use serde_json::json;

    fn spec(posted: Value) -> ServiceSpec {
        service_spec(decode(posted, &SERVICE_SPEC).expect("decodes")).expect("accepted")
    }

    fn minimal() -> Value {
        json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "lab:1", "Env": ["A=b"]}}})
    }

    #[test]
    fn a_spec_that_was_shown_with_its_defaults_is_accepted_and_changes_no_task() {
        for posted in [
            minimal(),
            json!({"Name": "web", "TaskTemplate": {"ContainerSpec": {"Image": "lab:1"}, "RestartPolicy": {"Condition": "on-failure"},
                "Resources": {"Limits": {"NanoCPUs": 1_000_000_000}}}, "EndpointSpec": {"Ports": [{"TargetPort": 80}]},
                "UpdateConfig": {"Parallelism": 1, "MaxFailureRatio": 0, "Order": ""}}),
        ] {
            let stored = spec(posted);
            let shown = serde_json::to_value(with_defaults(stored.clone())).expect("JSON");
            assert_eq!(first_change_of_tasks(&stored, &spec(shown.clone())), None, "{shown}");
            assert_eq!(serde_json::to_value(with_defaults(spec(shown.clone()))).expect("JSON"), shown, "and is shown the same");
        }
    }

    /// Ansible posts what its playbook names, and zero for much of the rest.
    #[test]
    fn zero_values_are_the_defaults() {
        let mut posted = minimal();
        let container = json!({"Image": "lab:1", "Env": ["A=b"], "ReadOnly": false, "TTY": false, "OpenStdin": false, "Mounts": [],
            "Secrets": [], "Configs": null, "Hosts": [], "Groups": null, "DNSConfig": {"Nameservers": null, "Search": [], "Options": []},
            "Privileges": {"CredentialSpec": null, "SELinuxContext": null, "NoNewPrivileges": false}, "CapabilityAdd": []});
        posted["TaskTemplate"] = json!({"ContainerSpec": container, "LogDriver": {"Name": "", "Options": {}}, "ForceUpdate": 0,
            "Placement": {"Constraints": [], "Preferences": [], "MaxReplicas": 0},
            "Resources": {"Limits": {"NanoCPUs": 0, "MemoryBytes": 0}, "Reservations": {"NanoCPUs": 0, "MemoryBytes": 0}},
            "RestartPolicy": {"Condition": "", "Delay": 5_000_000_000_u64, "MaxAttempts": 0, "Window": 0}});
        posted["UpdateConfig"] =
            json!({"Parallelism": 1, "Delay": 0, "FailureAction": "pause", "Monitor": 0, "MaxFailureRatio": 0.0});
        posted["EndpointSpec"] = json!({"Mode": "", "Ports": []});
        assert_eq!(first_change_of_tasks(&spec(minimal()), &spec(posted)), None);
    }

    #[test]
    fn what_changes_a_task_is_named() {
        let change = |key: &str, value: Value| {
            let mut posted = minimal();
            posted["TaskTemplate"]["ContainerSpec"][key] = value;
            first_change_of_tasks(&spec(minimal()), &spec(posted))
        };
        for (key, value) in
            [("Image", json!("lab:2")), ("StopGracePeriod", json!(1)), ("Env", json!(["A=c"])), ("Init", json!(false))]
        {
            assert_eq!(change(key, value), Some(format!("TaskTemplate.ContainerSpec.{key}")));
        }
        assert_eq!(change("StopGracePeriod", json!(10_000_000_000_u64)), None);
    }
}
