//! The container of a service's tasks as posted.

use super::image;
use super::json::{items, lowercase};
use crate::api::error::{ApiError, Result};
use crate::api::query::quote;
use crate::model::Nanos;
use crate::model::container_privileges::Privileges;
use crate::model::service::ServiceSpec;
use crate::model::task::{ContainerSpec, Healthcheck, Mount};
use crate::model::template::TemplateContext;
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Shortest time in a health check that is not zero: 1 ms.
const MIN_HEALTH: Nanos = Nanos(1_000_000);

/// Brings the values of a posted container into the spelling of the model, and refuses those that skep does not support.
///
/// # Errors
/// 501 with the path of the field.
pub(super) fn normalize(container: &mut Value) -> Result<()> {
    let isolation = container["Isolation"].as_str().unwrap_or_default().to_ascii_lowercase();
    if isolation == "process" || isolation == "hyperv" {
        return Err(ApiError::unsupported_field("TaskTemplate.ContainerSpec.Isolation", &isolation));
    }
    if let Some(privileges) = container.get_mut("Privileges").and_then(Value::as_object_mut) {
        // Nothing but zero values, which clients spell in several ways.
        privileges.remove("CredentialSpec");
        if privileges.get("SELinuxContext").is_some_and(is_zero_object) {
            privileges.remove("SELinuxContext");
        }
        for key in ["Seccomp", "AppArmor"] {
            if let Some(options) = privileges.get_mut(key) {
                lowercase(options, "Mode");
            }
        }
    }
    for (i, mount) in items(container, "Mounts").enumerate() {
        lowercase(mount, "Type");
        match mount["Type"].as_str() {
            // The zero value of the real server's enum.
            None => mount["Type"] = json!("bind"),
            Some("bind" | "volume" | "tmpfs" | "image") => {}
            Some(kind) => return Err(ApiError::unsupported_field(&format!("TaskTemplate.ContainerSpec.Mounts[{i}].Type"), kind)),
        }
        if let Some(bind) = mount.get_mut("BindOptions") {
            lowercase(bind, "Propagation");
        }
        for key in ["BindOptions", "VolumeOptions", "ImageOptions", "TmpfsOptions"] {
            if mount.get(key).is_some_and(is_zero_object) {
                mount.as_object_mut().map(|mount| mount.remove(key));
            }
        }
    }
    Ok(())
}

/// An object of nothing but zero values.
pub(super) fn is_zero_object(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(is_zero_object),
        Value::Bool(true) => false,
    }
}

/// Refuses a container as SwarmKit does before it stores the service.
///
/// # Errors
/// 400 with `InvalidArgument`.
pub(super) fn check(spec: &ContainerSpec) -> Result<()> {
    let refuse = |what: String| Err(ApiError::invalid_argument(format!("ContainerSpec: {what}")));
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
    if let Some(why) = spec.mounts.iter().find_map(mount_refusal) {
        return refuse(why);
    }
    if let Some(health) = &spec.healthcheck {
        check_healthcheck(health).or_else(refuse)?;
    }
    if !(-1000..=1000).contains(&spec.oom_score_adj) {
        return refuse(format!("invalid OomScoreAdj {}: must be from -1000 to 1000", spec.oom_score_adj));
    }
    if let Some(limit) = spec.ulimits.iter().find(|l| l.name.is_empty() || (l.hard >= 0 && (l.soft > l.hard || l.soft < 0))) {
        let (name, soft, hard) = (&limit.name, limit.soft, limit.hard);
        return refuse(format!("invalid ulimit {}: soft limit {soft} must not be above the hard one, {hard}", quote(name)));
    }
    spec.privileges.as_ref().and_then(privileges_refusal).map_or(Ok(()), refuse)
}

/// What no engine takes: refused here, not by each node in turn.
fn mount_refusal(mount: &Mount) -> Option<String> {
    let of = |set: bool, options: &str, kind: &str| {
        (set && mount.kind != kind).then(|| format!("mount {} of type {} has {options}", mount.target, mount.kind))
    };
    if mount.kind == "tmpfs" && !mount.source.is_empty() {
        return Some(format!("mount {} of type tmpfs has a source", mount.target));
    }
    if mount.tmpfs_options.as_ref().is_some_and(|tmpfs| tmpfs.size_bytes < 0) {
        return Some(format!("invalid tmpfs size of mount {}: it is negative", mount.target));
    }
    of(mount.bind_options.is_some(), "BindOptions", "bind")
        .or_else(|| of(mount.volume_options.is_some(), "VolumeOptions", "volume"))
        .or_else(|| of(mount.image_options.is_some(), "ImageOptions", "image"))
        .or_else(|| of(mount.tmpfs_options.is_some(), "TmpfsOptions", "tmpfs"))
}

fn privileges_refusal(privileges: &Privileges) -> Option<String> {
    if let Some(seccomp) = &privileges.seccomp {
        match (seccomp.mode.as_str(), seccomp.profile.is_empty()) {
            ("" | "default" | "unconfined", true) | ("custom", false) => {}
            ("custom", true) => return Some("seccomp mode custom needs a profile".to_owned()),
            ("" | "default" | "unconfined", false) => return Some("a seccomp profile needs mode custom".to_owned()),
            (mode, _) => return Some(format!("invalid seccomp mode {}", quote(mode))),
        }
    }
    let apparmor = privileges.app_armor.as_ref().map_or("", |options| &options.mode);
    (!["", "default", "disabled"].contains(&apparmor)).then(|| format!("invalid AppArmor mode {}", quote(apparmor)))
}

fn check_healthcheck(health: &Healthcheck) -> Result<(), String> {
    let times = [
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ];
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

/// Expands the placeholders with values of no node and no task, so that what cannot be expanded is refused at once.
///
/// # Errors
/// 400 with `InvalidArgument`.
pub(super) fn check_templates(spec: &ServiceSpec) -> Result<()> {
    let context = TemplateContext {
        service_name: spec.name.clone(),
        service_labels: spec.labels.clone(),
        task_slot: "1".to_owned(),
        ..TemplateContext::default()
    };
    spec.task_template.container_spec.expanded(&context).map(drop).map_err(ApiError::invalid_argument)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[expect(clippy::needless_pass_by_value, reason = "called with what `json!` makes")]
    fn refusal(container: Value) -> String {
        let mut posted = json!({"Image": "lab:1"});
        posted.as_object_mut().expect("object").extend(container.as_object().expect("object").clone());
        normalize(&mut posted).expect("supported");
        let spec: ContainerSpec = serde_json::from_value(posted).expect("a spec");
        check(&spec).err().map(|e| e.message).unwrap_or_default()
    }

    #[test]
    fn what_no_engine_takes_is_refused_by_name() {
        let mount = |mount: Value| json!({ "Mounts": [mount] });
        for (container, words) in [
            (mount(json!({"Type": "tmpfs", "Target": "/t", "VolumeOptions": {"NoCopy": true}})), "VolumeOptions"),
            (mount(json!({"Type": "volume", "Target": "/t", "TmpfsOptions": {"Mode": 1}})), "TmpfsOptions"),
            (mount(json!({"Type": "volume", "Target": "/t", "BindOptions": {"Propagation": "rslave"}})), "BindOptions"),
            (mount(json!({"Type": "tmpfs", "Source": "/a", "Target": "/t"})), "has a source"),
            (mount(json!({"Type": "tmpfs", "Target": "/t", "TmpfsOptions": {"SizeBytes": -1}})), "negative"),
            (json!({"OomScoreAdj": 1001}), "OomScoreAdj 1001"),
            (json!({"Ulimits": [{"Name": "nofile", "Soft": 2, "Hard": 1}]}), "ulimit \"nofile\""),
            (json!({"Ulimits": [{"Name": "nofile", "Soft": -1, "Hard": 1}]}), "ulimit \"nofile\""),
            (json!({"Privileges": {"Seccomp": {"Mode": "custom"}}}), "needs a profile"),
            (json!({"Privileges": {"Seccomp": {"Profile": "e30="}}}), "needs mode custom"),
            (json!({"Privileges": {"Seccomp": {"Mode": "x"}}}), "seccomp mode \"x\""),
            (json!({"Privileges": {"AppArmor": {"Mode": "x"}}}), "AppArmor mode \"x\""),
            (json!({"Healthcheck": {"StartInterval": 5}}), "StartInterval in HealthConfig cannot be less than 1ms"),
            (json!({"Healthcheck": {"Retries": -1}}), "Retries in HealthConfig cannot be negative"),
        ] {
            let said = refusal(container.clone());
            assert!(said.starts_with("rpc error: code = InvalidArgument desc = ContainerSpec: "), "{container}: {said}");
            assert!(said.contains(words), "{container}: {said}");
        }
    }

    #[test]
    fn zero_values_of_any_spelling_are_accepted() {
        let privileges =
            json!({"CredentialSpec": {"Config": ""}, "SELinuxContext": {"Disable": false}, "NoNewPrivileges": false});
        let mount = json!({"Type": "volume", "Target": "/t", "BindOptions": {}, "TmpfsOptions": {"SizeBytes": 0}});
        let limits = json!([{"Name": "core", "Soft": 0, "Hard": 0}, {"Name": "nofile", "Soft": -1, "Hard": -1}]);
        assert_eq!(refusal(json!({"Privileges": privileges, "Mounts": [mount], "Ulimits": limits, "OomScoreAdj": -1000})), "");
    }
}
