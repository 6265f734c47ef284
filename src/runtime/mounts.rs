//! The mounts of a task's container as the engine takes them. Pure.

use super::ContainerPlan;
use super::task_files::FileMount;
use crate::model::Secret;
use crate::model::mount::{BindOptions, TmpfsOptions, VolumeOptions};
use crate::model::task::{ContainerSpec, Mount};
use crate::model::template::is_template;
use bollard::models::{
    MountBindOptions, MountBindOptionsPropagationEnum as Propagation, MountImageOptions, MountTmpfsOptions, MountType,
    MountVolumeOptions, MountVolumeOptionsDriverConfig,
};
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

/// The spec's mounts, then the files of its secrets and configs.
pub(super) fn mounts(plan: &ContainerPlan) -> Vec<bollard::models::Mount> {
    let of_spec = plan.task.spec.container_spec.mounts.iter().map(|m| mount(m, plan));
    of_spec.chain(plan.files.iter().map(file)).collect()
}

/// Why the mounts of a container are refused, with Docker's text; `None` if they are not. The engine is not asked: it would
/// take the name of a volume for a path, or the other way round.
#[must_use]
pub fn mount_error(spec: &ContainerSpec) -> Option<String> {
    // What a placeholder stands for is checked when it is expanded.
    let absolute = |path: &str| path.starts_with('/');
    let expanded = |mount: &&Mount| !is_template(&mount.target) && !is_template(&mount.source);
    spec.mounts.iter().filter(expanded).find_map(|mount| match mount.kind.as_str() {
        _ if !absolute(&mount.target) => Some(format!("invalid mount target, must be an absolute path: {}", mount.target)),
        "bind" if !absolute(&mount.source) => {
            Some(format!("invalid bind mount source, must be an absolute path: {}", mount.source))
        }
        "volume" if absolute(&mount.source) => {
            Some(format!("invalid volume mount source, must not be an absolute path: {}", mount.source))
        }
        "tmpfs" if !mount.source.is_empty() => Some("invalid tmpfs source, source must be empty".to_owned()),
        _ => None,
    })
}

fn mount(mount: &Mount, plan: &ContainerPlan) -> bollard::models::Mount {
    let mut source = mount.source.clone();
    if mount.kind == "bind"
        && let Some(skep_socket) = &plan.skep_socket
        && is_same_path(Path::new(&source), &plan.engine_socket)
    {
        source = skep_socket.display().to_string();
    }
    bollard::models::Mount {
        typ: Some(match mount.kind.as_str() {
            "bind" => MountType::BIND,
            "tmpfs" => MountType::TMPFS,
            "image" => MountType::IMAGE,
            _ => MountType::VOLUME,
        }),
        source: text(&source),
        target: Some(mount.target.clone()),
        read_only: set(mount.read_only),
        consistency: text(&mount.consistency),
        bind_options: mount.bind_options.as_ref().map(bind),
        volume_options: mount.volume_options.as_ref().map(volume),
        image_options: mount.image_options.as_ref().map(|image| MountImageOptions { subpath: text(&image.subpath) }),
        tmpfs_options: mount.tmpfs_options.as_ref().map(tmpfs),
    }
}

fn file(file: &FileMount) -> bollard::models::Mount {
    bollard::models::Mount {
        typ: Some(MountType::BIND),
        source: Some(file.source.display().to_string()),
        target: Some(file.target.clone()),
        read_only: Some(true),
        ..Default::default()
    }
}

fn bind(options: &BindOptions) -> MountBindOptions {
    MountBindOptions {
        propagation: match options.propagation.as_str() {
            "private" => Some(Propagation::PRIVATE),
            "rprivate" => Some(Propagation::RPRIVATE),
            "shared" => Some(Propagation::SHARED),
            "rshared" => Some(Propagation::RSHARED),
            "slave" => Some(Propagation::SLAVE),
            "rslave" => Some(Propagation::RSLAVE),
            _ => None,
        },
        non_recursive: set(options.non_recursive),
        create_mountpoint: set(options.create_mountpoint),
        read_only_non_recursive: set(options.read_only_non_recursive),
        read_only_force_recursive: set(options.read_only_force_recursive),
    }
}

fn volume(options: &VolumeOptions) -> MountVolumeOptions {
    MountVolumeOptions {
        no_copy: set(options.no_copy),
        labels: (!options.labels.is_empty()).then(|| options.labels.clone().into_iter().collect()),
        driver_config: options.driver_config.as_ref().map(|driver| MountVolumeOptionsDriverConfig {
            name: text(&driver.name),
            options: (!driver.options.is_empty()).then(|| exposed(&driver.options)),
        }),
        subpath: text(&options.subpath),
    }
}

/// A map as the engine takes it.
pub(super) fn exposed(map: &BTreeMap<String, Secret<String>>) -> HashMap<String, String> {
    map.iter().map(|(key, value)| (key.clone(), value.expose().clone())).collect()
}

fn tmpfs(options: &TmpfsOptions) -> MountTmpfsOptions {
    MountTmpfsOptions {
        size_bytes: (options.size_bytes != 0).then_some(options.size_bytes),
        mode: (options.mode != 0).then_some(options.mode.into()),
        options: (!options.options.is_empty()).then(|| options.options.clone()),
    }
}

/// Whether two paths are the same; `/var/run` is a link to `/run` on every system that Docker runs on.
fn is_same_path(a: &Path, b: &Path) -> bool {
    let normalize = |path: &Path| -> PathBuf {
        let path: PathBuf = path.components().collect();
        path.strip_prefix("/var/run").map_or(path.clone(), |rest| Path::new("/run").join(rest))
    };
    normalize(a) == normalize(b)
}

fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

fn set(value: bool) -> Option<bool> {
    value.then_some(true)
}
