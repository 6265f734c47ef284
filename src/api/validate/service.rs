//! Services as posted: from JSON to a spec, and what is refused on the way.

use super::json::{items, list, lowercase};
use super::name::object_name;
use super::{autoscale, container, placement, ports, resources};
use crate::api::error::{ApiError, Result};
use crate::api::query::quote;
use crate::api::schema::{self, SERVICE_SPEC};
use crate::model::Nanos;
use crate::model::port_labels::{ALLOW, MOST_SOURCES_OF_SERVICE, PortLabels};
use crate::model::service::{EndpointMode, ServiceMode, ServiceSpec, UpdateConfig};
use crate::model::task::TaskSpec;
use serde_json::{Value, json};

/// The spec of a posted service (already decoded by its schema), with the server's defaults. Targets of networks are left
/// as posted.
///
/// # Errors
/// 400 for an invalid value, 501 for what skep does not support.
pub fn service_spec(mut posted: Value) -> Result<ServiceSpec> {
    convert(&posted)?;
    if let Some(path) = schema::unsupported_field(&posted, &SERVICE_SPEC) {
        return Err(ApiError::unsupported_field(&path, ""));
    }
    normalize(&mut posted)?;
    let mut spec: ServiceSpec =
        serde_json::from_value(posted).map_err(|e| ApiError::bad(format!("invalid service spec: {e}")))?;
    let task = &mut spec.task_template;
    task.runtime = Some("container".to_owned());
    "default".clone_into(&mut task.container_spec.isolation);
    if let Some(restart) = &mut task.restart_policy {
        restart.condition.get_or_insert_default();
        restart.max_attempts.get_or_insert(0);
    }
    complete_mode(&mut spec.mode);
    if let Some(endpoint) = &mut spec.endpoint_spec {
        endpoint.mode.get_or_insert(EndpointMode::Vip);
    }
    Ok(spec)
}

/// Fills in the numbers that the real server would.
fn complete_mode(mode: &mut ServiceMode) {
    if let Some(job) = &mut mode.replicated_job {
        let concurrent = *job.max_concurrent.get_or_insert(1);
        job.total_completions.get_or_insert(concurrent);
    } else if !mode.is_global() {
        mode.replicated.get_or_insert_default().replicas.get_or_insert(1);
    }
}

/// What the real server refuses first, while it converts the posted spec.
fn convert(posted: &Value) -> Result<()> {
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
    placement::refuse_limit_of_global(posted)?;
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
        let propagation = &mount["BindOptions"]["Propagation"];
        one_of(propagation, &["private", "rprivate", "shared", "rshared", "slave", "rslave"], "invalid MountPropagation: ")?;
    }
    Ok(())
}

/// Brings values into the spelling of the model, and refuses those that skep does not support.
fn normalize(posted: &mut Value) -> Result<()> {
    if let Some(endpoint) = posted.get_mut("EndpointSpec") {
        lowercase(endpoint, "Mode");
        for (i, port) in items(endpoint, "Ports").enumerate() {
            ports::normalize(i, port)?;
        }
    }
    for config in ["UpdateConfig", "RollbackConfig"] {
        if let Some(config) = posted.get_mut(config) {
            complete_update_config(config);
        }
    }
    let networks = posted.as_object_mut().and_then(|spec| spec.remove("Networks"));
    let Some(task) = posted.get_mut("TaskTemplate") else { return Ok(()) };
    // Old clients post the networks beside the template.
    if let Some(networks) = networks
        && items(task, "Networks").next().is_none()
    {
        task["Networks"] = networks;
    }
    if let Some(restart) = task.get_mut("RestartPolicy") {
        lowercase(restart, "Condition");
    }
    placement::normalize(task);
    // No name and no options: as if it were left out.
    if task.get("LogDriver").is_some_and(container::is_zero_object) {
        task.as_object_mut().map(|task| task.remove("LogDriver"));
    }
    let Some(container) = task.get_mut("ContainerSpec") else { return Ok(()) };
    container::normalize(container)
}

/// Fills in the zero values of the real server's enums and number; what is left out of its durations stays so.
fn complete_update_config(config: &mut Value) {
    for (key, default) in [("FailureAction", "pause"), ("Order", "stop-first")] {
        lowercase(config, key);
        if config[key].is_null() {
            config[key] = json!(default);
        }
    }
    for key in ["Parallelism", "MaxFailureRatio"] {
        if config[key].is_null() {
            config[key] = json!(0);
        }
    }
    let Some(map) = config.as_object_mut() else { return };
    map.retain(|key, value| !(["Delay", "Monitor"].contains(&key.as_str()) && (value.is_null() || *value == json!(0))));
}

/// Refuses a spec as SwarmKit does before it stores it.
///
/// # Errors
/// 400 with `InvalidArgument`.
pub fn service(spec: &ServiceSpec) -> Result<()> {
    object_name(&spec.name)?;
    check_task(&spec.task_template)?;
    placement::check(spec)?;
    container::check_templates(spec)?;
    if spec.mode.is_job() && spec.update_config.is_some() {
        return Err(ApiError::invalid_argument("Jobs may not have an update config"));
    }
    for config in [&spec.update_config, &spec.rollback_config].into_iter().flatten() {
        check_update_config(config)?;
    }
    autoscale::check(spec)?;
    let labels = PortLabels::read(&spec.labels).map_err(ApiError::invalid_argument)?;
    allow_list(&labels, ports::ingress_count(spec))?;
    ports::endpoint(spec)
}

/// Refuses an allow-list that one service may not have.
fn allow_list(labels: &PortLabels, ports: usize) -> Result<()> {
    let (prefixes, entries) = (labels.allow.len(), labels.sources(ports.max(1)));
    if entries <= MOST_SOURCES_OF_SERVICE {
        return Ok(());
    }
    Err(ApiError::invalid_argument(format!(
        "label {ALLOW}: {prefixes} prefixes for {ports} published ports are {entries} entries, and a service may have \
         {MOST_SOURCES_OF_SERVICE}: list shorter prefixes that cover several of these, or publish fewer ports"
    )))
}

fn check_update_config(config: &UpdateConfig) -> Result<()> {
    let refuse = |what: &str| Err(ApiError::invalid_argument(format!("TaskSpec: update-{what}")));
    let is_negative = |time: Option<Nanos>| time.is_some_and(|time| time.0 < 0);
    if is_negative(config.delay) {
        return refuse("delay cannot be negative");
    }
    if is_negative(config.monitor) {
        return refuse("monitor cannot be negative");
    }
    match config.max_failure_ratio.as_f64() {
        Some(ratio) if (0.0..=1.0).contains(&ratio) => Ok(()),
        _ => refuse("maxfailureratio cannot be less than 0 or bigger than 1"),
    }
}

fn check_task(task: &TaskSpec) -> Result<()> {
    task.resources.as_ref().map_or(Ok(()), resources::check)?;
    if let Some(restart) = &task.restart_policy {
        if restart.delay.is_some_and(|d| d.0 < 0) {
            return Err(ApiError::invalid_argument("TaskSpec: restart-delay cannot be negative"));
        }
        if restart.window.is_some_and(|w| w.0 < 0) {
            return Err(ApiError::invalid_argument("TaskSpec: restart-window cannot be negative"));
        }
    }
    container::check(&task.container_spec)
}

/// Refuses what an engine cannot carry out on one of its own networks: a container there is on no other one, so that it has neither
/// names nor ports of the swarm. (Swarm takes such a spec, and its tasks are rejected with these words.)
///
/// # Errors
/// 400 with `InvalidArgument`.
pub fn predefined_networks(spec: &ServiceSpec) -> Result<()> {
    let Some(network) = spec.task_template.predefined_networks().next() else { return Ok(()) };
    let name = network.name();
    let refused = |why: &str| {
        Err(ApiError::invalid_argument(format!(
            "container cannot be disconnected from {name} network or connected to {name} network: {why}"
        )))
    };
    if spec.task_template.networks.len() > 1 {
        return refused("a service on it can have no other network");
    }
    if spec.wants_ingress() {
        return refused("a service on it publishes its ports in mode host, or has them open on its nodes");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(posted: Value) -> Result<ServiceSpec> {
        service_spec(schema::decode(posted, &SERVICE_SPEC)?)
    }
    #[expect(clippy::needless_pass_by_value, reason = "called with what `json!` makes")]
    fn with_container(container: Value) -> Value {
        json!({"Name": "web", "TaskTemplate": {"ContainerSpec": container}})
    }

    /// A service with so many allowed prefixes and so many published ports.
    fn guarded(prefixes: u32, ports: u16) -> ServiceSpec {
        let list: Vec<String> = (0..prefixes).map(|n| std::net::Ipv4Addr::from_bits(0xc0a8_0000 + n).to_string()).collect();
        let ports: Vec<Value> = (0..ports).map(|n| json!({"TargetPort": 80, "PublishedPort": 8000 + n})).collect();
        let container = json!({"Image": "lab:1"});
        read(json!({"Name": "web", "Labels": {"skep.allow": list.join(",")}, "TaskTemplate": {"ContainerSpec": container},
            "EndpointSpec": {"Ports": ports}}))
        .unwrap()
    }

    #[test]
    fn allow_lists_are_bounded_by_service() {
        let message = |result: Result<()>| result.expect_err("refused").message;
        assert!(service(&guarded(8192, 2)).is_ok());
        let why = message(service(&guarded(8193, 2)));
        assert!(why.contains("skep.allow") && why.contains("16386 entries") && why.contains("16384"), "{why}");
        // Without a port the list takes no room, but travels to every node.
        assert!(service(&guarded(16_385, 0)).is_err());

        assert_eq!(crate::model::port_labels::sources_of(&guarded(8192, 2)), 16_384);
    }

    #[test]
    fn a_minimal_spec_gets_the_servers_defaults() {
        let spec = read(with_container(json!({"Image": "lab:1"}))).unwrap();
        assert_eq!(
            serde_json::to_value(&spec).unwrap(),
            json!({"Name": "web", "Labels": {}, "TaskTemplate": {"ContainerSpec": {"Image": "lab:1", "Isolation": "default"},
                "ForceUpdate": 0, "Runtime": "container"}, "Mode": {"Replicated": {"Replicas": 1}}})
        );
    }

    #[test]
    fn unsupported_values_are_refused_by_name() {
        for (container, path) in [
            (
                json!({"Image": "lab", "Configs": [{"ConfigID": "x", "Runtime": {}}]}),
                "TaskTemplate.ContainerSpec.Configs[0].Runtime",
            ),
            (
                json!({"Image": "lab", "Mounts": [{"Type": "npipe", "Target": "/t"}]}),
                "TaskTemplate.ContainerSpec.Mounts[0].Type npipe",
            ),
            (
                json!({"Image": "lab", "Mounts": [{"Type": "cluster", "Target": "/t"}]}),
                "TaskTemplate.ContainerSpec.Mounts[0].Type cluster",
            ),
            (
                json!({"Image": "lab", "Privileges": {"CredentialSpec": {"File": "x.json"}}}),
                "TaskTemplate.ContainerSpec.Privileges.CredentialSpec",
            ),
            (json!({"Image": "lab", "Isolation": "hyperv"}), "TaskTemplate.ContainerSpec.Isolation hyperv"),
        ] {
            let error = read(with_container(container)).unwrap_err();
            assert_eq!(error.status.as_u16(), 501);
            assert!(error.message.contains(path), "{error}");
        }
    }

    /// The real server has one function for both; its words speak of the update.
    #[test]
    fn ways_of_updating_and_of_rolling_back_are_refused_in_the_same_words() {
        for of in ["UpdateConfig", "RollbackConfig"] {
            let refused = |config: Value| {
                let mut posted = with_container(json!({"Image": "lab:1"}));
                posted[of] = config;
                read(posted).and_then(|spec| service(&spec)).expect_err("refused").message
            };
            let invalid = "rpc error: code = InvalidArgument desc = TaskSpec: update-";
            assert_eq!(refused(json!({"FailureAction": "foo"})), "unrecognized update failure action foo", "{of}");
            assert_eq!(refused(json!({"Order": "foo"})), "unrecognized update order foo", "{of}");
            assert_eq!(refused(json!({"Delay": -1})), format!("{invalid}delay cannot be negative"), "{of}");
            assert_eq!(refused(json!({"Monitor": -1})), format!("{invalid}monitor cannot be negative"), "{of}");
            for ratio in [-0.5, 1.5] {
                let ratio = refused(json!({ "MaxFailureRatio": ratio }));
                assert_eq!(ratio, format!("{invalid}maxfailureratio cannot be less than 0 or bigger than 1"), "{of}");
            }
            let why = refused(json!({"Parallelism": -1}));
            let field = format!("ServiceSpec.{of}.Parallelism of type uint64");
            assert_eq!(why, format!("invalid JSON: json: cannot unmarshal number -1 into Go struct field {field}"));
        }
    }

    #[test]
    fn labels_of_skep_are_validated() {
        let with_label = |key: &str, value: &str| {
            let mut posted = with_container(json!({"Image": "lab"}));
            posted["Labels"] = json!({ key: value });
            service(&read(posted).unwrap())
        };
        with_label("skep.allow", "192.0.2.0/24, 2001:db8::1").unwrap();
        with_label("skep.affinity", "source").unwrap();
        for (key, value, expected) in [("skep.allow", "192.0.2.0-9", "192.0.2.0/24"), ("skep.affinity", "on", "\"source\"")] {
            let error = with_label(key, value).unwrap_err();
            assert_eq!(error.status.as_u16(), 400);
            assert!(error.message.contains(key) && error.message.contains(expected), "{error}");
        }
    }

    #[test]
    fn networks_beside_the_template_are_accepted() {
        let mut posted = with_container(json!({"Image": "lab"}));
        posted["Networks"] = json!([{"Target": "net1"}]);
        assert_eq!(read(posted).unwrap().task_template.networks[0].target, "net1");
    }

    fn arbitrary_json() -> impl Strategy<Value = Value> {
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
        fn arbitrary_input_is_accepted_or_refused(container in arbitrary_json(), beside in arbitrary_json(), endpoint in arbitrary_json()) {
            let posted = json!({"TaskTemplate": {"ContainerSpec": container, "Networks": beside}, "EndpointSpec": endpoint, "Mode": beside});
            if let Ok(spec) = read(posted) {
                let _ = service(&spec);
                let echoed = serde_json::to_value(&spec).unwrap();
                prop_assert_eq!(read(echoed).unwrap(), spec, "what is stored can be posted again");
            }
        }
    }
}
