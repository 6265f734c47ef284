//! The schemas have every field of Docker's API (`fields.tsv`), and each has an effect or is refused by its name: none is ignored in
//! silence. A field of a container proves its effect by the body that the container is created from; the others name a test.

use super::types::{Field, FieldType, Struct, Support};
use super::{CLUSTER_SPEC, CONFIG_SPEC, INIT, JOIN, NETWORK, NODE_SPEC, SECRET_SPEC, SERVICE_SPEC, decode};
use crate::api::validate::service_spec;
use crate::model::ServiceSpec;
use crate::model::fixture::task_with_resolvers;
use crate::runtime::ContainerPlan;
use crate::runtime::container::create_body;
use crate::runtime::task_files::file_mounts;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::Path;

/// Values for fields that do not take any value of their type.
const SAMPLES: &[(&str, &str)] = &[
    ("TaskTemplate.ContainerSpec.Mounts[0].Type", r#""volume""#),
    ("TaskTemplate.ContainerSpec.Hosts", r#"["10.0.0.1 a"]"#),
    ("TaskTemplate.ContainerSpec.Isolation", r#""hyperv""#),
    ("TaskTemplate.ContainerSpec.Privileges.Seccomp.Mode", r#""unconfined""#),
    ("TaskTemplate.ContainerSpec.Privileges.AppArmor.Mode", r#""disabled""#),
    ("TaskTemplate.ContainerSpec.Mounts[0].BindOptions.Propagation", r#""rslave""#),
    ("TaskTemplate.ContainerSpec.Mounts[0].TmpfsOptions.Options", r#"[["noexec"]]"#),
    ("TaskTemplate.RestartPolicy.Condition", r#""none""#),
    ("TaskTemplate.Placement.Constraints", r#"["node.role==worker"]"#),
    ("TaskTemplate.Runtime", r#""container""#),
    ("EndpointSpec.Mode", r#""dnsrr""#),
    ("UpdateConfig.FailureAction", r#""continue""#),
    ("UpdateConfig.Order", r#""start-first""#),
    ("RollbackConfig.FailureAction", r#""continue""#),
    ("RollbackConfig.Order", r#""start-first""#),
];

/// Docker's API, a field a line: its path, the version of the API in whose description it stands (`Go`: only in the types that the real
/// server decodes), and what shows that it is carried out: `container` (the body that its container is created from), `refused` (501 with its
/// name), or a test, which `tests/it/compatibility.rs` looks up.
const FIELDS: &str = include_str!("fields.tsv");

/// Path and proof of every field of Docker's API.
fn docker() -> Vec<(&'static str, &'static str)> {
    let line = |line: &'static str| match line.split('\t').collect::<Vec<_>>()[..] {
        [path, _, proof] => (path, proof),
        _ => panic!("three fields are expected: {line:?}"),
    };
    FIELDS.lines().map(line).collect()
}

/// What shows each leaf of a schema, by Docker's fields at or below it.
fn proofs(path: &str) -> BTreeSet<&'static str> {
    let is_within = |field: &str| {
        field.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || rest.starts_with('['))
    };
    docker().into_iter().filter(|(field, _)| is_within(field)).map(|(_, proof)| proof).collect()
}

/// Every field without supported fields of its own, with its path.
fn leaves<'a>(fields: &'a [Field], path: &str, out: &mut Vec<(String, &'a Field)>) {
    for field in fields {
        let path = if path.is_empty() { field.name.to_owned() } else { format!("{path}.{}", field.name) };
        match (&field.ty, field.support) {
            (FieldType::Object(_, fields), Support::Full) if !fields.is_empty() => leaves(fields, &path, out),
            (FieldType::Objects(_, fields), Support::Full) => leaves(fields, &format!("{path}[0]"), out),
            _ => out.push((path, field)),
        }
    }
}

/// A value that is not the zero value.
fn sample(path: &str, ty: &FieldType) -> Value {
    if let Some((_, text)) = SAMPLES.iter().find(|(known, _)| *known == path) {
        return serde_json::from_str(text).expect("JSON");
    }
    match ty {
        FieldType::Str => json!("x"),
        FieldType::Bool => json!(true),
        FieldType::Int(..) => json!(7),
        FieldType::Float => json!(1.0),
        FieldType::Strings => json!(["x"]),
        FieldType::StringLists => json!([["x"]]),
        FieldType::Bytes => json!("eA=="),
        FieldType::Labels => json!({"x": "y"}),
        FieldType::Object(_, []) => json!({}),
        FieldType::Object(_, fields) => json!({ fields[0].name: sample("", &fields[0].ty) }),
        FieldType::Objects(_, fields) => json!([{ fields[0].name: sample("", &fields[0].ty) }]),
        FieldType::Any => json!({"x": 1}),
    }
}

fn set(at: &mut Value, path: &str, value: Value) {
    let (key, rest) = path.split_once('.').unwrap_or((path, ""));
    let at = match key.strip_suffix("[0]") {
        Some(list) => {
            if at[list].is_null() {
                at[list] = json!([{}]);
            }
            &mut at[list][0]
        }
        None => &mut at[key],
    };
    if rest.is_empty() { *at = value } else { set(at, rest, value) }
}

fn base() -> Value {
    let mount = json!({"Type": "bind", "Source": "/a", "Target": "/b"});
    let seccomp = json!({"Mode": "custom", "Profile": "e30x"});
    let file = json!({"Name": "f"});
    let (secret, config) = (json!({"SecretID": "s", "File": file}), json!({"ConfigID": "c", "File": file}));
    let container = json!({"Image": "lab:1", "Mounts": [mount], "Privileges": {"Seccomp": seccomp}, "Secrets": [secret], "Configs": [config]});
    let template = json!({"ContainerSpec": container, "Resources": {"Limits": {"MemoryBytes": 4096}}});
    json!({"Name": "web", "TaskTemplate": template, "EndpointSpec": {"Ports": [{"TargetPort": 80}]}})
}

/// What a task's container is created from.
fn body(spec: &ServiceSpec) -> impl PartialEq + use<> {
    let mut task = task_with_resolvers("t1", &spec.name, "n1", &[]);
    task.spec = spec.task_template.clone().into();
    task.ports = spec.host_ports();
    let (engine_socket, skep_socket) = ("/run/engine.sock".into(), None);
    let files = file_mounts(Path::new("/run/skep/files"), &task);
    create_body(&ContainerPlan { task, node_id: "n1".into(), networks: Vec::new(), engine_socket, skep_socket, files })
}

#[test]
fn every_field_of_a_service_has_an_effect_or_is_refused_by_its_name() {
    let read = |posted: Value| service_spec(decode(posted, &SERVICE_SPEC)?);
    let unchanged = body(&read(base()).expect("accepted"));
    let mut wrong = Vec::new();
    let mut all = Vec::new();
    leaves(SERVICE_SPEC.fields, "", &mut all);
    for (path, field) in &all {
        let mut posted = base();
        set(&mut posted, path, sample(path, &field.ty));
        let seen = match read(posted.clone()) {
            Err(error) if error.status.as_u16() == 501 && error.message.contains(path.as_str()) => "refused",
            Err(error) => {
                wrong.push(format!("{path} is refused otherwise: {error}"));
                continue;
            }
            Ok(spec) if body(&spec) != unchanged => "container",
            Ok(_) => "a test",
        };
        for proof in proofs(&format!("{}.{path}", SERVICE_SPEC.name)) {
            let named = if proof.contains("::") { "a test" } else { proof };
            if named != seen {
                wrong.push(format!("{path}: fields.tsv says {proof}, and it is seen by {seen}: {posted}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

const ALL: [&Struct; 8] = [&SERVICE_SPEC, &NODE_SPEC, &CLUSTER_SPEC, &INIT, &JOIN, &NETWORK, &SECRET_SPEC, &CONFIG_SPEC];

#[test]
fn the_schemas_have_the_fields_of_dockers_api_and_no_others() {
    let mut wrong = Vec::new();
    let mut all = Vec::new();
    for Struct { name, fields, .. } in ALL {
        leaves(fields, name, &mut all);
    }
    for (path, field) in &all {
        let proofs = proofs(path);
        if proofs.is_empty() {
            wrong.push(format!("{path} is no field of Docker's API"));
        }
        if (field.support != Support::Full) && proofs.iter().any(|proof| *proof != "refused") {
            wrong.push(format!("{path} is refused, and fields.tsv says {proofs:?}"));
        }
    }
    let docker = docker();
    for (path, _) in &docker {
        let is_at = |leaf: &str| {
            path.strip_prefix(leaf).is_some_and(|rest| rest.is_empty() || rest.starts_with('.') || rest.starts_with('['))
        };
        if !all.iter().any(|(leaf, _)| is_at(leaf)) {
            wrong.push(format!("{path}: a field that would be dropped in silence"));
        }
    }
    let paths: BTreeSet<_> = docker.iter().map(|(path, _)| path).collect();
    assert_eq!(paths.len(), docker.len(), "each field has one line");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
