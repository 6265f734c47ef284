//! What an update changes of a service's tasks. Two specs mean the same although one names defaults that the other leaves
//! out: clients read a service with them and post all of it back.

use crate::api::convert::service::with_defaults;
use crate::model::service::{EndpointMode, ServiceSpec};
use crate::model::task::{Reservations, ResourceAmounts};
use serde_json::Value;
use std::collections::BTreeMap;

/// Whether tasks of the old spec do not do for the new one. Labels, mode, the way of updating, placement and the order of
/// networks are no matter of a task's: a task whose node the new constraints exclude is found by the orchestrator.
pub fn replaces_tasks(old: &ServiceSpec, new: &ServiceSpec) -> bool {
    // A first HTTP route needs an address on `ingress`, which a task that runs does not get.
    old.wants_ingress() != new.wants_ingress() || comparable(old) != comparable(new)
}

fn comparable(spec: &ServiceSpec) -> Value {
    let mut spec = with_defaults(ServiceSpec { labels: BTreeMap::new(), mode: <_>::default(), ..spec.clone() });
    (spec.update_config, spec.rollback_config) = (None, None);
    spec.endpoint_spec.get_or_insert_default().mode.get_or_insert(EndpointMode::Vip);
    let task = &mut spec.task_template;
    task.placement = None;
    task.networks.sort_by(|a, b| a.target.cmp(&b.target));
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
            assert!(!replaces_tasks(&stored, &spec(shown.clone())), "{shown}");
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
        assert!(!replaces_tasks(&spec(minimal()), &spec(posted)));
    }

    #[test]
    fn what_a_task_has_or_where_it_may_run_decides_whether_it_is_replaced() {
        let container = |key: &str, value: Value| json!({"ContainerSpec": {"Image": "lab:1", "Env": ["A=b"], key: value}});
        let networks = |order: [&str; 2]| {
            let networks = order.map(|target| json!({"Target": target}));
            json!({"ContainerSpec": {"Image": "lab:1", "Env": ["A=b"]}, "Networks": networks})
        };
        let plain = json!({"ContainerSpec": {"Image": "lab:1", "Env": ["A=b"]}});
        let forced = |times: u64| json!({"ContainerSpec": {"Image": "lab:1", "Env": ["A=b"]}, "ForceUpdate": times});
        let platform =
            json!({"ContainerSpec": {"Image": "lab:1", "Env": ["A=b"]}, "Placement": {"Platforms": [{"OS": "linux"}]}});
        for (before, after, replaces) in [
            (plain.clone(), container("Image", json!("lab:2")), true),
            (plain.clone(), container("StopGracePeriod", json!(1)), true),
            (plain.clone(), container("StopGracePeriod", json!(10_000_000_000_u64)), false),
            (plain.clone(), container("Env", json!(["A=c"])), true),
            (plain.clone(), container("Init", json!(false)), true),
            (plain.clone(), forced(1), true),
            // Ansible posts the time, and leaves it out the next time.
            (plain.clone(), forced(17_324_985_023_948_571), true),
            (forced(17_324_985_023_948_571), forced(1), true),
            (forced(1), plain.clone(), true),
            (forced(1), forced(1), false),
            (plain.clone(), platform, false),
            (networks(["a", "b"]), networks(["b", "a"]), false),
            (networks(["a", "b"]), networks(["a", "c"]), true),
        ] {
            let spec = |task: &Value| spec(json!({"Name": "web", "TaskTemplate": task}));
            assert_eq!(replaces_tasks(&spec(&before), &spec(&after)), replaces, "{before} {after}");
        }
    }
}
