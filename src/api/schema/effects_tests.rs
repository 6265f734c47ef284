//! Every field that the schemas take has an effect or is refused by its name: none is ignored in silence. A field of a
//! container proves its effect by the body that the container is created from; the others name the file that carries them
//! out, and a field that is missing here fails.

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

/// Fields of a service that are carried out elsewhere than in its containers.
const ELSEWHERE: &[(&str, &str)] = &[
    ("TaskTemplate.ContainerSpec.Secrets[0].SecretID", "manager/dispatcher/payloads.rs"),
    ("TaskTemplate.ContainerSpec.Secrets[0].SecretName", "api/validate/payloads.rs"),
    ("TaskTemplate.ContainerSpec.Secrets[0].File.UID", "runtime/task_files.rs"),
    ("TaskTemplate.ContainerSpec.Secrets[0].File.GID", "runtime/task_files.rs"),
    ("TaskTemplate.ContainerSpec.Secrets[0].File.Mode", "runtime/task_files.rs"),
    ("TaskTemplate.ContainerSpec.Configs[0].ConfigID", "manager/dispatcher/payloads.rs"),
    ("TaskTemplate.ContainerSpec.Configs[0].ConfigName", "api/validate/payloads.rs"),
    ("TaskTemplate.ContainerSpec.Configs[0].File.UID", "runtime/task_files.rs"),
    ("TaskTemplate.ContainerSpec.Configs[0].File.GID", "runtime/task_files.rs"),
    ("TaskTemplate.ContainerSpec.Configs[0].File.Mode", "runtime/task_files.rs"),
    ("Labels", "model/port_labels.rs; shown and filtered by"),
    ("Mode.Replicated.Replicas", "manager/orchestrator/replicated.rs"),
    ("Mode.ReplicatedJob.MaxConcurrent", "manager/orchestrator/job.rs"),
    ("Mode.ReplicatedJob.TotalCompletions", "manager/orchestrator/job.rs"),
    ("UpdateConfig.Parallelism", "manager/orchestrator/update.rs"),
    ("UpdateConfig.Delay", "manager/orchestrator/update.rs"),
    ("UpdateConfig.FailureAction", "manager/orchestrator/update.rs"),
    ("UpdateConfig.Monitor", "manager/orchestrator/update.rs"),
    ("UpdateConfig.MaxFailureRatio", "manager/orchestrator/update.rs"),
    ("UpdateConfig.Order", "manager/orchestrator/slot_plan.rs"),
    ("RollbackConfig.Parallelism", "manager/orchestrator/update.rs"),
    ("RollbackConfig.Delay", "manager/orchestrator/update.rs"),
    ("RollbackConfig.FailureAction", "manager/orchestrator/update.rs"),
    ("RollbackConfig.Monitor", "manager/orchestrator/update.rs"),
    ("RollbackConfig.MaxFailureRatio", "manager/orchestrator/update.rs"),
    ("RollbackConfig.Order", "manager/orchestrator/slot_plan.rs"),
    ("Networks[0].Target", "as TaskTemplate.Networks, of old clients"),
    ("Networks[0].Aliases", "as TaskTemplate.Networks, of old clients"),
    ("TaskTemplate.Networks[0].Target", "manager/allocator.rs"),
    ("TaskTemplate.Networks[0].Aliases", "dns/records.rs"),
    ("TaskTemplate.RestartPolicy.Condition", "manager/orchestrator/restart.rs"),
    ("TaskTemplate.RestartPolicy.Delay", "manager/orchestrator/restart.rs"),
    ("TaskTemplate.RestartPolicy.MaxAttempts", "manager/orchestrator/restart.rs"),
    ("TaskTemplate.RestartPolicy.Window", "manager/orchestrator/restart.rs"),
    ("TaskTemplate.Placement.Platforms[0].Architecture", "manager/scheduler/filter.rs"),
    ("TaskTemplate.Placement.Platforms[0].OS", "manager/scheduler/filter.rs"),
    ("TaskTemplate.Placement.Constraints", "model/constraint.rs, manager/scheduler/enforcer.rs"),
    ("TaskTemplate.Placement.Preferences[0].Spread.SpreadDescriptor", "manager/scheduler/spread.rs"),
    ("TaskTemplate.Placement.MaxReplicas", "manager/scheduler/filter.rs"),
    ("TaskTemplate.Resources.Reservations.NanoCPUs", "manager/scheduler/filter.rs"),
    ("TaskTemplate.Resources.Reservations.MemoryBytes", "manager/scheduler/filter.rs"),
    ("TaskTemplate.Resources.Reservations.GenericResources[0].NamedResourceSpec.Kind", "refused: api/validate/resources.rs"),
    ("TaskTemplate.Resources.Reservations.GenericResources[0].NamedResourceSpec.Value", "refused: api/validate/resources.rs"),
    ("TaskTemplate.Resources.Reservations.GenericResources[0].DiscreteResourceSpec.Kind", "manager/scheduler/generic.rs"),
    ("TaskTemplate.Resources.Reservations.GenericResources[0].DiscreteResourceSpec.Value", "manager/scheduler/generic.rs"),
    ("TaskTemplate.ForceUpdate", "api/validate/change.rs"),
    ("TaskTemplate.Runtime", "only containers: anything else is refused"),
    ("EndpointSpec.Mode", "dns/records.rs, manager/allocator/endpoint.rs"),
    ("EndpointSpec.Ports[0].Name", "shown"),
    ("EndpointSpec.Ports[0].Protocol", "manager/allocator/endpoint.rs"),
    ("EndpointSpec.Ports[0].TargetPort", "manager/dispatcher/view.rs"),
    ("EndpointSpec.Ports[0].PublishedPort", "manager/allocator/endpoint.rs"),
    ("EndpointSpec.Ports[0].PublishMode", "runtime/container.rs for host, else manager/allocator/endpoint.rs"),
];

/// Fields of the other bodies that are not refused, with what carries them out.
const OTHERS: &[(&str, &str)] = &[
    ("NodeSpec.Name", "shown"),
    ("NodeSpec.Labels", "shown and filtered by"),
    ("NodeSpec.Role", "a change is refused"),
    ("NodeSpec.Availability", "manager/scheduler/filter.rs, manager/orchestrator.rs"),
    ("Spec.Name", "must be default"),
    ("Spec.Labels", "shown"),
    ("Spec.Orchestration.TaskHistoryRetentionLimit", "manager/reaper.rs"),
    ("Spec.Raft.SnapshotInterval", "manager/replica.rs"),
    ("Spec.Raft.KeepOldSnapshots", "shown: one snapshot is kept"),
    ("Spec.Raft.LogEntriesForSlowFollowers", "shown: a setting of the daemon"),
    ("Spec.Raft.ElectionTick", "shown, as in a real swarm"),
    ("Spec.Raft.HeartbeatTick", "shown, as in a real swarm"),
    ("Spec.Dispatcher.HeartbeatPeriod", "manager/liveness/core.rs"),
    ("Spec.CAConfig.NodeCertExpiry", "node/certificate_authority.rs"),
    ("Spec.CAConfig.SigningCACert", "api/handlers/root_ca.rs"),
    ("Spec.CAConfig.SigningCAKey", "api/handlers/root_ca.rs"),
    ("Spec.CAConfig.ForceRotate", "api/handlers/root_ca.rs"),
    ("Spec.EncryptionConfig.AutoLockManagers", "node/lock.rs"),
    ("InitRequest.ListenAddr", "node/address.rs"),
    ("InitRequest.AdvertiseAddr", "node/address.rs"),
    ("InitRequest.DataPathAddr", "node/address.rs"),
    ("InitRequest.DataPathPort", "node/address.rs"),
    ("InitRequest.ForceNewCluster", "api/handlers/swarm.rs"),
    ("InitRequest.Spec.Name", "must be default"),
    ("InitRequest.Spec.Labels", "shown"),
    ("InitRequest.Spec.Orchestration.TaskHistoryRetentionLimit", "manager/reaper.rs"),
    ("InitRequest.Spec.Raft.SnapshotInterval", "manager/replica.rs"),
    ("InitRequest.Spec.Raft.KeepOldSnapshots", "shown: one snapshot is kept"),
    ("InitRequest.Spec.Raft.LogEntriesForSlowFollowers", "shown: a setting of the daemon"),
    ("InitRequest.Spec.Raft.ElectionTick", "shown, as in a real swarm"),
    ("InitRequest.Spec.Raft.HeartbeatTick", "shown, as in a real swarm"),
    ("InitRequest.Spec.Dispatcher.HeartbeatPeriod", "manager/liveness/core.rs"),
    ("InitRequest.Spec.CAConfig.NodeCertExpiry", "node/certificate_authority.rs"),
    ("InitRequest.Spec.CAConfig.SigningCACert", "refused: api/handlers/root_ca.rs"),
    ("InitRequest.Spec.CAConfig.SigningCAKey", "refused: api/handlers/root_ca.rs"),
    ("InitRequest.Spec.CAConfig.ForceRotate", "counted on from there: api/handlers/root_ca.rs"),
    ("InitRequest.Spec.EncryptionConfig.AutoLockManagers", "node/init.rs"),
    ("InitRequest.AutoLockManagers", "node/init.rs"),
    ("InitRequest.Availability", "node/init.rs"),
    ("InitRequest.DefaultAddrPool", "manager/allocator/pools.rs"),
    ("InitRequest.SubnetSize", "manager/allocator/subnets.rs"),
    ("JoinRequest.ListenAddr", "node/address.rs"),
    ("JoinRequest.AdvertiseAddr", "node/address.rs"),
    ("JoinRequest.DataPathAddr", "node/address.rs"),
    ("JoinRequest.RemoteAddrs", "node/join.rs"),
    ("JoinRequest.JoinToken", "node/join.rs"),
    ("JoinRequest.Availability", "node/join.rs"),
    ("CreateRequest.Name", "api/handlers/networks.rs"),
    ("CreateRequest.Driver", "overlay, or the engine's"),
    ("CreateRequest.Scope", "swarm, or the engine's"),
    ("CreateRequest.CheckDuplicate", "names are always unique"),
    ("CreateRequest.EnableIPv4", "false is refused"),
    ("CreateRequest.EnableIPv6", "manager/allocator/subnets.rs"),
    ("CreateRequest.IPAM.Driver", "another one than default is refused"),
    ("CreateRequest.IPAM.Config[0].Subnet", "manager/allocator/subnets.rs"),
    ("CreateRequest.IPAM.Config[0].Gateway", "manager/dispatcher/view.rs"),
    ("CreateRequest.IPAM.Config[0].IPRange", "manager/allocator/addresses.rs"),
    ("CreateRequest.IPAM.Config[0].AuxiliaryAddresses", "manager/allocator/addresses.rs"),
    ("CreateRequest.Internal", "overlay/desired.rs"),
    ("CreateRequest.Attachable", "manager/allocator/attached.rs"),
    ("CreateRequest.Ingress", "manager/allocator/networks.rs"),
    ("CreateRequest.Options", "known ones, others are refused"),
    ("CreateRequest.Labels", "shown and filtered by"),
    ("SecretSpec.Name", "api/handlers/payloads.rs"),
    ("SecretSpec.Labels", "shown and filtered by"),
    ("SecretSpec.Data", "runtime/task_files.rs"),
    ("SecretSpec.Driver.Name", "there are no such plugins: refused"),
    ("SecretSpec.Driver.Options", "of no effect without a driver"),
    ("SecretSpec.Templating.Name", "runtime/task_files.rs"),
    ("SecretSpec.Templating.Options", "shown; golang has none"),
    ("ConfigSpec.Name", "api/handlers/payloads.rs"),
    ("ConfigSpec.Labels", "shown and filtered by"),
    ("ConfigSpec.Data", "runtime/task_files.rs"),
    ("ConfigSpec.Templating.Name", "runtime/task_files.rs"),
    ("ConfigSpec.Templating.Options", "shown; golang has none"),
];

/// Every field without supported fields of its own, with its path.
fn leaves<'a>(fields: &'a [Field], path: &str, out: &mut Vec<(String, &'a Field)>) {
    for field in fields {
        let path = if path.is_empty() { field.name.to_owned() } else { format!("{path}.{}", field.name) };
        match (&field.ty, field.support) {
            (FieldType::Object(_, fields), Support::Full) => leaves(fields, &path, out),
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
    let (mut wrong, mut elsewhere) = (Vec::new(), BTreeSet::new());
    let mut all = Vec::new();
    leaves(SERVICE_SPEC.fields, "", &mut all);
    for (path, field) in &all {
        let mut posted = base();
        set(&mut posted, path, sample(path, &field.ty));
        match read(posted.clone()) {
            Err(error) if error.status.as_u16() == 501 && error.message.contains(path.as_str()) => {}
            Err(error) => wrong.push(format!("{path} is refused otherwise: {error}")),
            Ok(spec) if body(&spec) != unchanged => {}
            Ok(_) if ELSEWHERE.iter().any(|(known, _)| known == path) => drop(elsewhere.insert(path.clone())),
            Ok(_) => wrong.push(format!("{path} is accepted, and changes nothing: {posted}")),
        }
    }
    for (path, _) in ELSEWHERE.iter().filter(|(path, _)| !elsewhere.contains(*path)) {
        wrong.push(format!("{path} is in the table, but is refused, shown by the container, or no field"));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn every_field_of_the_other_bodies_is_in_the_table_or_refused() {
    let mut taken = BTreeSet::new();
    for Struct { name, fields, .. } in [&NODE_SPEC, &CLUSTER_SPEC, &INIT, &JOIN, &NETWORK, &SECRET_SPEC, &CONFIG_SPEC] {
        let mut all = Vec::new();
        leaves(fields, name, &mut all);
        taken.extend(all.into_iter().filter(|(_, field)| field.support == Support::Full).map(|(path, _)| path));
    }
    let table: BTreeSet<String> = OTHERS.iter().map(|(path, _)| (*path).to_owned()).collect();
    let missing: Vec<_> = taken.difference(&table).collect();
    let surplus: Vec<_> = table.difference(&taken).collect();
    assert!(missing.is_empty() && surplus.is_empty(), "not in the table: {missing:?}; no such field: {surplus:?}");
}
