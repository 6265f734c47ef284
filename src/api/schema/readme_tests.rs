//! The README's row of what is refused by name has every field that the tables refuse.

use super::types::{Field, FieldType, Struct, Support};
use super::{CLUSTER_SPEC, CONFIG_SPEC, INIT, JOIN, NETWORK, NODE_SPEC, SECRET_SPEC, SERVICE_SPEC};
use std::collections::BTreeSet;

/// Fields that are refused, by the end of their paths, and what users call them. Parts of one that is refused are left out.
const REFUSED: &[(&str, &str)] = &[
    ("CreateRequest.ConfigOnly", "`--config-only`"),
    ("CreateRequest.ConfigFrom", "`--config-from`"),
    ("CreateRequest.IPAM.Options", "`--ipam-opt`"),
    ("Networks.DriverOpts", "`driver-opt`"),
    ("TaskDefaults.LogDriver", "`TaskDefaults`"),
    ("CAConfig.ExternalCAs", "external CAs"),
    ("Privileges.CredentialSpec", "credential specs"),
    // A config for the runtime is a credential spec.
    ("Configs.Runtime", "credential specs"),
    ("Mounts.ClusterOptions", "mounts of types cluster and npipe"),
    ("TaskTemplate.PluginSpec", "runtimes other than containers"),
    ("TaskTemplate.NetworkAttachmentSpec", "runtimes other than containers"),
];

/// Paths of the fields that are refused.
fn refused(fields: &[Field], path: &str, out: &mut BTreeSet<String>) {
    for field in fields {
        let path = format!("{path}.{}", field.name);
        match (&field.ty, field.support) {
            (FieldType::Object(_, fields) | FieldType::Objects(_, fields), Support::Full) => refused(fields, &path, out),
            (_, Support::Full) => {}
            _ => drop(out.insert(path)),
        }
    }
}

#[test]
fn the_readme_names_every_field_that_is_refused() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("the README");
    let row = readme.lines().find(|line| line.starts_with("| refused by name (501) |")).expect("its row");
    let mut all = BTreeSet::new();
    for Struct { name, fields, .. } in
        [&SERVICE_SPEC, &NODE_SPEC, &CLUSTER_SPEC, &INIT, &JOIN, &NETWORK, &SECRET_SPEC, &CONFIG_SPEC]
    {
        refused(fields, name, &mut all);
    }
    let mut wrong = Vec::new();
    for path in &all {
        match REFUSED.iter().find(|(end, _)| path.ends_with(end)) {
            Some((_, words)) if row.contains(words) => {}
            Some((_, words)) => wrong.push(format!("{path} is refused, and the row has no {words}")),
            None => wrong.push(format!("{path} is refused, and has no words here")),
        }
    }
    for (end, _) in REFUSED.iter().filter(|(end, _)| !all.iter().any(|path| path.ends_with(end))) {
        wrong.push(format!("{end} is not refused (any more)"));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
