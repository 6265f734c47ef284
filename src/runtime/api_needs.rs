//! Which version of the engine's API a spec needs: an older engine would drop what it does not know in silence. Pure.

use crate::model::docker::ApiVersion;
use crate::model::task::{ContainerSpec, Mount};

/// Why an engine with this version of the API cannot carry out the spec; `None` if it can.
pub(super) fn unsupported(spec: &ContainerSpec, api: ApiVersion) -> Option<String> {
    let needs = spec.mounts.iter().flat_map(mount_needs);
    let start_interval = spec.healthcheck.as_ref().is_some_and(|h| h.start_interval.is_some_and(|time| time.0 != 0));
    let needs = needs.chain(start_interval.then_some(("Healthcheck.StartInterval", 44)));
    let (field, needed) = needs.filter(|(_, minor)| ApiVersion::v1(*minor) > api).max_by_key(|(_, minor)| *minor)?;
    let needed = ApiVersion::v1(needed);
    Some(format!("{field} needs version {needed} of the Docker Engine API, this node's engine has {api}: upgrade the engine"))
}

/// Fields of a mount with the minor version that brought them.
fn mount_needs(mount: &Mount) -> impl Iterator<Item = (&'static str, u32)> {
    let bind = mount.bind_options.clone().unwrap_or_default();
    let has_subpath = mount.volume_options.as_ref().is_some_and(|volume| !volume.subpath.is_empty());
    let has_tmpfs_options = mount.tmpfs_options.as_ref().is_some_and(|tmpfs| !tmpfs.options.is_empty());
    [
        (bind.non_recursive, "Mounts.BindOptions.NonRecursive", 40),
        (bind.create_mountpoint, "Mounts.BindOptions.CreateMountpoint", 42),
        (bind.read_only_non_recursive, "Mounts.BindOptions.ReadOnlyNonRecursive", 44),
        (bind.read_only_force_recursive, "Mounts.BindOptions.ReadOnlyForceRecursive", 44),
        (has_subpath, "Mounts.VolumeOptions.Subpath", 45),
        (has_tmpfs_options, "Mounts.TmpfsOptions.Options", 46),
        (mount.kind == "image", "Mounts.Type image", 48),
    ]
    .into_iter()
    .filter_map(|(is_set, field, minor)| is_set.then_some((field, minor)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_an_engine_would_drop_is_refused_by_name() {
        let mounts = json!([{"Type": "image", "Source": "a", "Target": "/a"},
            {"Type": "volume", "Source": "v", "Target": "/v", "VolumeOptions": {"Subpath": "x"}}]);
        let spec: ContainerSpec = serde_json::from_value(json!({"Mounts": mounts})).expect("a spec");
        assert_eq!(unsupported(&spec, ApiVersion::v1(51)), None);
        let why = unsupported(&spec, ApiVersion::v1(47)).expect("refused");
        assert!(why.starts_with("Mounts.Type image needs version 1.48") && why.contains("has 1.47"), "{why}");
        let health = json!({"Healthcheck": {"StartInterval": 1_000_000_000}, "Mounts": [{"Type": "bind", "Source": "/a", "Target": "/b"}]});
        let spec: ContainerSpec = serde_json::from_value(health).expect("a spec");
        assert!(unsupported(&spec, ApiVersion::v1(43)).expect("refused").starts_with("Healthcheck.StartInterval"));
        assert_eq!(unsupported(&spec, ApiVersion::v1(44)), None);
    }
}
