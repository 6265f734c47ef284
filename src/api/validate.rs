//! What is refused of a posted service, and what the server fills in. Pure; the sentences are the real server's, except
//! where a field is refused because it is not carried out yet.

mod image;
mod name;
mod ports;

pub use name::{network_name, object_name, random_name};
pub use ports::free_ports;

use super::error::{ApiError, Code, Result};
use super::query::quote;
use super::schema::{self, SERVICE_SPEC};
use crate::model::Nanos;
use crate::model::port_labels::PortLabels;
use crate::model::service::{EndpointMode, ServiceSpec};
use crate::model::task::{ContainerSpec, Healthcheck, ResourceAmounts, TaskSpec};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Least CPU share that may be asked for, in 1e-9.
const MIN_CPU: i64 = 1_000_000;
/// Least memory that may be asked for, in bytes.
const MIN_MEMORY: i64 = 4 << 20;
/// Least time of a health check.
const MIN_HEALTH: Nanos = Nanos(1_000_000);

/// Reads a posted spec (already normalised by its table) as ours, with what the server fills in. Network targets are as
/// posted.
///
/// # Errors
/// 400 for what makes no sense, 501 for a field that is not carried out.
pub fn spec(mut posted: Value) -> Result<ServiceSpec> {
    conversion(&posted)?;
    if let Some(path) = schema::not_built(&posted, &SERVICE_SPEC) {
        return Err(not_carried_out(&path, ""));
    }
    values(&mut posted)?;
    let mut spec: ServiceSpec =
        serde_json::from_value(posted).map_err(|e| ApiError::bad(format!("invalid service spec: {e}")))?;
    let task = &mut spec.task_template;
    task.runtime = Some("container".to_owned());
    "default".clone_into(&mut task.container_spec.isolation);
    if let Some(restart) = &mut task.restart_policy {
        restart.condition.get_or_insert_default();
        restart.max_attempts.get_or_insert(0);
    }
    spec.mode.replicated.get_or_insert_default().replicas.get_or_insert(1);
    if let Some(endpoint) = &mut spec.endpoint_spec {
        endpoint.mode.get_or_insert(EndpointMode::Vip);
    }
    Ok(spec)
}

/// The refusal of a field.
pub fn not_carried_out(path: &str, value: &str) -> ApiError {
    let value = if value.is_empty() { String::new() } else { format!(" {value}") };
    ApiError::not_built(format!("{path}{value} is not carried out by skep yet: leave it out (nothing was changed)"))
}

/// What the real server refuses while it converts, before it looks at anything else.
fn conversion(posted: &Value) -> Result<()> {
    let task = &posted["TaskTemplate"];
    match task["Runtime"].as_str().unwrap_or_default() {
        "" | "container" => {}
        "plugin" => return Err(ApiError::bad("runtime type \"plugin\" only supported in experimental")),
        _ => return Err(ApiError::bad("unsupported runtime")),
    }
    if task["ContainerSpec"].is_null() {
        return Err(ApiError::bad("mismatched Runtime and *Spec fields"));
    }
    if posted["Mode"].as_object().is_some_and(|mode| mode.len() > 1) {
        return Err(ApiError::bad("must specify only one service mode"));
    }
    let one_of = |value: &Value, known: &[&str], what: &str| match value.as_str() {
        Some(text) if !text.is_empty() && !known.contains(&text.to_ascii_lowercase().as_str()) => {
            Err(ApiError::bad(format!("{what}{}", if what.ends_with(": ") { quote(text) } else { text.to_owned() })))
        }
        _ => Ok(()),
    };
    one_of(&task["RestartPolicy"]["Condition"], &["none", "on-failure", "any"], "invalid RestartCondition: ")?;
    for config in ["UpdateConfig", "RollbackConfig"] {
        one_of(&posted[config]["FailureAction"], &["pause", "continue", "rollback"], "unrecognized update failure action ")?;
        one_of(&posted[config]["Order"], &["stop-first", "start-first"], "unrecognized update order ")?;
    }
    one_of(&posted["EndpointSpec"]["Mode"], &["vip", "dnsrr"], "invalid resolution mode: ")?;
    for mount in list(&task["ContainerSpec"]["Mounts"]) {
        one_of(&mount["Type"], &["bind", "volume", "tmpfs", "npipe", "cluster", "image"], "invalid MountType: ")?;
    }
    Ok(())
}

/// Brings values into the spelling of our types, and refuses the ones that are not carried out.
fn values(posted: &mut Value) -> Result<()> {
    if let Some(endpoint) = posted.get_mut("EndpointSpec") {
        lower(endpoint, "Mode");
        for (i, port) in items(endpoint, "Ports").enumerate() {
            ports::values(i, port)?;
        }
    }
    let networks = posted.as_object_mut().and_then(|spec| spec.remove("Networks"));
    let Some(task) = posted.get_mut("TaskTemplate") else { return Ok(()) };
    // Posted beside the template by old clients: the same thing.
    if let Some(networks) = networks
        && items(task, "Networks").next().is_none()
    {
        task["Networks"] = networks;
    }
    if let Some(restart) = task.get_mut("RestartPolicy") {
        lower(restart, "Condition");
    }
    let Some(container) = task.get_mut("ContainerSpec") else { return Ok(()) };
    let isolation = container["Isolation"].as_str().unwrap_or_default().to_ascii_lowercase();
    if isolation == "process" || isolation == "hyperv" {
        return Err(not_carried_out("TaskTemplate.ContainerSpec.Isolation", &isolation));
    }
    for (i, mount) in items(container, "Mounts").enumerate() {
        lower(mount, "Type");
        match mount["Type"].as_str() {
            // The real server's zero value.
            None => mount["Type"] = json!("bind"),
            Some("bind" | "volume") => {}
            Some(kind) => return Err(not_carried_out(&format!("TaskTemplate.ContainerSpec.Mounts[{i}].Type"), kind)),
        }
    }
    templates(container)
}

fn items<'a>(value: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    value.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

fn lower(value: &mut Value, key: &str) {
    if let Some(map) = value.as_object_mut()
        && let Some(Value::String(text)) = map.get_mut(key)
    {
        text.make_ascii_lowercase();
        if text.is_empty() {
            map.remove(key);
        }
    }
}

/// `{{…}}` is expanded by the real server on the node.
fn templates(container: &Value) -> Result<()> {
    let template = |value: &Value| value.as_str().is_some_and(|text| text.contains("{{"));
    let path = if template(&container["Hostname"]) {
        "Hostname"
    } else if list(&container["Env"]).any(template) {
        "Env"
    } else if list(&container["Mounts"]).any(|m| template(&m["Source"]) || template(&m["Target"])) {
        "Mounts"
    } else {
        return Ok(());
    };
    Err(not_carried_out(&format!("a template ({{{{…}}}}) in TaskTemplate.ContainerSpec.{path}"), ""))
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// Refuses a spec as the cluster's store does.
///
/// # Errors
/// 400 with `InvalidArgument`.
pub fn service(spec: &ServiceSpec) -> Result<()> {
    object_name(&spec.name)?;
    task(&spec.task_template)?;
    PortLabels::read(&spec.labels).map_err(invalid)?;
    ports::endpoint(spec)
}

fn task(task: &TaskSpec) -> Result<()> {
    if let Some(resources) = &task.resources {
        for amounts in [&resources.limits, &resources.reservations].into_iter().flatten() {
            amount(amounts)?;
        }
    }
    if let Some(restart) = &task.restart_policy {
        if restart.delay.is_some_and(|d| d.0 < 0) {
            return Err(invalid("TaskSpec: restart-delay cannot be negative"));
        }
        if restart.window.is_some_and(|w| w.0 < 0) {
            return Err(invalid("TaskSpec: restart-window cannot be negative"));
        }
    }
    container(&task.container_spec)
}

fn amount(amounts: &ResourceAmounts) -> Result<()> {
    if amounts.nano_cpus != 0 && amounts.nano_cpus < MIN_CPU {
        #[expect(clippy::cast_precision_loss, reason = "shown to people")]
        let cpus = amounts.nano_cpus as f64 / 1e9;
        return Err(invalid(format!("invalid cpu value {cpus}: Must be at least 0.001")));
    }
    if amounts.memory_bytes != 0 && amounts.memory_bytes < MIN_MEMORY {
        return Err(invalid(format!("invalid memory value {}: Must be at least 4MiB", amounts.memory_bytes)));
    }
    Ok(())
}

fn container(spec: &ContainerSpec) -> Result<()> {
    let refuse = |what: String| Err(invalid(format!("ContainerSpec: {what}")));
    if spec.image.is_empty() {
        return refuse("image reference must be provided".to_owned());
    }
    if !image::is_reference(&spec.image) {
        return refuse(format!("{} is not a valid repository/tag", quote(&spec.image)));
    }
    let mut targets = BTreeSet::new();
    if let Some(twice) = spec.mounts.iter().find(|m| !targets.insert(m.target.as_str())) {
        return refuse(format!("duplicate mount point: {}", twice.target));
    }
    if let Some(health) = &spec.healthcheck {
        return healthcheck(health).or_else(refuse);
    }
    Ok(())
}

fn healthcheck(health: &Healthcheck) -> Result<(), String> {
    let times = [("Interval", health.interval), ("Timeout", health.timeout), ("StartPeriod", health.start_period)];
    for (name, time) in times {
        if time.is_some_and(|t| t.0 != 0 && t < MIN_HEALTH) {
            return Err(format!("{name} in HealthConfig cannot be less than 1ms"));
        }
    }
    if health.retries.is_some_and(|r| r < 0) {
        return Err("Retries in HealthConfig cannot be negative".to_owned());
    }
    Ok(())
}

fn invalid(description: impl std::fmt::Display) -> ApiError {
    ApiError::rpc(Code::InvalidArgument, description)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(posted: Value) -> Result<ServiceSpec> {
        spec(schema::normalise(posted, &SERVICE_SPEC)?)
    }
    #[expect(clippy::needless_pass_by_value, reason = "called with what `json!` makes")]
    fn with(container: Value) -> Value {
        json!({"Name": "web", "TaskTemplate": {"ContainerSpec": container}})
    }

    #[test]
    fn the_server_fills_in_little() {
        let spec = read(with(json!({"Image": "lab:1"}))).unwrap();
        assert_eq!(
            serde_json::to_value(&spec).unwrap(),
            json!({"Name": "web", "Labels": {}, "TaskTemplate": {"ContainerSpec": {"Image": "lab:1", "Isolation": "default"},
                "ForceUpdate": 0, "Runtime": "container"}, "Mode": {"Replicated": {"Replicas": 1}}})
        );
    }

    #[test]
    fn what_is_not_carried_out_is_named() {
        for (container, path) in [
            (json!({"Image": "lab", "Configs": [{"ConfigID": "x"}]}), "TaskTemplate.ContainerSpec.Configs"),
            (
                json!({"Image": "lab", "Mounts": [{"Type": "tmpfs", "Target": "/t"}]}),
                "TaskTemplate.ContainerSpec.Mounts[0].Type tmpfs",
            ),
            (json!({"Image": "lab", "Hostname": "{{.Node.ID}}"}), "TaskTemplate.ContainerSpec.Hostname"),
            (json!({"Image": "lab", "Isolation": "hyperv"}), "TaskTemplate.ContainerSpec.Isolation hyperv"),
        ] {
            let error = read(with(container)).unwrap_err();
            assert_eq!(error.status.as_u16(), 501);
            assert!(error.message.contains(path), "{error}");
        }
    }

    #[test]
    fn a_label_of_ours_must_make_sense() {
        let labelled = |key: &str, value: &str| {
            let mut posted = with(json!({"Image": "lab"}));
            posted["Labels"] = json!({ key: value });
            service(&read(posted).unwrap())
        };
        labelled("skep.allow", "192.0.2.0/24, 2001:db8::1").unwrap();
        labelled("skep.affinity", "source").unwrap();
        for (key, value, right) in [("skep.allow", "192.0.2.0-9", "192.0.2.0/24"), ("skep.affinity", "on", "\"source\"")] {
            let error = labelled(key, value).unwrap_err();
            assert_eq!(error.status.as_u16(), 400);
            assert!(error.message.contains(key) && error.message.contains(right), "{error}");
        }
    }

    #[test]
    fn networks_beside_the_template_count() {
        let mut posted = with(json!({"Image": "lab"}));
        posted["Networks"] = json!([{"Target": "net1"}]);
        assert_eq!(read(posted).unwrap().task_template.networks[0].target, "net1");
    }

    fn anything() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[a-z{}:/@.-]{0,12}".prop_map(Value::from),
        ];
        let keys = [
            "Name",
            "Labels",
            "TaskTemplate",
            "ContainerSpec",
            "Image",
            "Mounts",
            "Type",
            "Networks",
            "Target",
            "Mode",
            "Replicated",
            "Replicas",
            "EndpointSpec",
            "Ports",
            "Protocol",
            "PublishedPort",
            "RestartPolicy",
            "Condition",
            "Resources",
            "Limits",
        ];
        leaf.prop_recursive(6, 64, 6, move |inner| {
            let entry = (proptest::sample::select(keys.to_vec()), inner.clone());
            prop_oneof![
                proptest::collection::vec(inner, 0..4).prop_map(Value::from),
                proptest::collection::vec(entry, 0..6)
                    .prop_map(|entries| Value::Object(entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn whatever_is_posted_is_read_or_refused(container in anything(), beside in anything(), endpoint in anything()) {
            let posted = json!({"TaskTemplate": {"ContainerSpec": container, "Networks": beside}, "EndpointSpec": endpoint, "Mode": beside});
            if let Ok(spec) = read(posted) {
                let _ = service(&spec);
                let echoed = serde_json::to_value(&spec).unwrap();
                prop_assert_eq!(read(echoed).unwrap(), spec, "what is stored can be posted again");
            }
        }
    }
}
