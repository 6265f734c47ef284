//! What the tasks of a group need of a node, read once for all nodes.

use super::load::{HostPort, fixed_host_ports};
use crate::model::constraint::Constraints;
use crate::model::placement_labels::PlacementLabels;
use crate::model::task::{GenericResource, Placement, Platform};
use crate::model::{Service, ServiceId, Task, TaskSpec};
use crate::store::Store;
use std::collections::BTreeMap;

/// Needs of tasks that have the service, the version of its spec and the host-mode ports in common.
#[expect(clippy::struct_excessive_bools, reason = "independent needs")]
pub(super) struct TaskNeeds<'a> {
    pub service: &'a ServiceId,
    pub image: &'a str,
    pub constraints: Constraints,
    pub platforms: &'a [Platform],
    pub nano_cpus: i64,
    pub memory_bytes: i64,
    pub generic: &'a [GenericResource],
    pub host_ports: Vec<HostPort>,
    /// It has an address on a swarm network.
    pub on_network: bool,
    /// Kind and name of engine plugins.
    pub plugins: Vec<(&'static str, &'a str)>,
    /// Only builds from feature level 2 on carry it out.
    pub newer: bool,
    /// Most tasks of the service on a node.
    pub max_replicas: Option<usize>,
    /// What tasks are spread over, from the first preference on.
    pub spread: Vec<&'a str>,
    pub binpack: bool,
    pub prefer_image: bool,
    /// A node must run a task of each.
    pub near: Vec<Option<ServiceId>>,
    /// A node must run no task of any; the service itself: no other one.
    pub apart: Vec<ServiceId>,
}

impl<'a> TaskNeeds<'a> {
    pub(super) fn of(task: &'a Task, store: &'a Store, services: &LabelledServices) -> Self {
        let spec = &task.spec;
        let template = template_of(task, store);
        let reserved = spec.resources.as_ref().and_then(|resources| resources.reservations.as_ref());
        let placement = template.placement.as_ref();
        let max_replicas = placement.map_or(0, |placement| placement.max_replicas);
        let (labels, apart) = services.of(&task.service_id);
        let networks = || task.attachments.iter().filter_map(|attachment| store.network(&attachment.network_id));
        let id_of = |name: &String| store.service_named(name).map(|service| service.id.clone());
        Self {
            service: &task.service_id,
            image: &spec.container_spec.image,
            constraints: Constraints::of(template),
            platforms: placement.map_or(&[], |placement| &placement.platforms),
            nano_cpus: reserved.map_or(0, |reserved| reserved.nano_cpus),
            memory_bytes: reserved.map_or(0, |reserved| reserved.memory_bytes),
            generic: reserved.map_or(&[], |reserved| &reserved.generic_resources),
            host_ports: fixed_host_ports(task).collect(),
            on_network: !task.attachments.is_empty(),
            plugins: plugins_of(spec),
            newer: spec.newer_field_of_nodes().is_some() || networks().any(|network| network.spec.newer_field().is_some()),
            max_replicas: (max_replicas > 0).then(|| usize::try_from(max_replicas).unwrap_or(usize::MAX)),
            spread: placement.map(spread_over).unwrap_or_default(),
            binpack: labels.binpack,
            prefer_image: labels.prefer_image,
            near: labels.affinity.iter().map(id_of).collect(),
            apart,
        }
    }
}

/// The template whose placement counts for the task: a change of the placement alone makes no new version of the spec, and replaces
/// no task.
pub(super) fn template_of<'a>(task: &'a Task, store: &'a Store) -> &'a TaskSpec {
    let service = store.service(&task.service_id).filter(|service| service.spec_version == task.spec_version);
    service.map_or(&task.spec, |service| &service.spec.task_template)
}

fn spread_over(placement: &Placement) -> Vec<&str> {
    let spread = placement.preferences.iter().filter_map(|preference| preference.spread.as_ref());
    spread.map(|spread| spread.spread_descriptor.as_str()).collect()
}

/// Drivers of volumes and of the log that the engine must have.
fn plugins_of(spec: &TaskSpec) -> Vec<(&'static str, &str)> {
    let drivers = spec.container_spec.mounts.iter().filter_map(|mount| mount.volume_options.as_ref()?.driver_config.as_ref());
    let volumes = drivers.map(|driver| ("Volume", driver.name.as_str())).filter(|(_, name)| *name != "local");
    let log = spec.log_driver.iter().map(|driver| ("Log", driver.name.as_str())).filter(|(_, name)| *name != "none");
    volumes.chain(log).filter(|(_, name)| !name.is_empty()).collect()
}

/// Services with labels on placement; most clusters have none.
#[derive(Default)]
pub(super) struct LabelledServices {
    labels: BTreeMap<ServiceId, PlacementLabels>,
    /// Each pair in both directions.
    apart: BTreeMap<ServiceId, Vec<ServiceId>>,
}

impl LabelledServices {
    pub(super) fn read(store: &Store) -> Self {
        let mut out = Self::default();
        for service in store.services() {
            let labels = of_service(service);
            if labels == PlacementLabels::default() {
                continue;
            }
            for other in labels.anti_affinity.iter().filter_map(|name| store.service_named(name)) {
                out.apart.entry(service.id.clone()).or_default().push(other.id.clone());
                if other.id != service.id {
                    out.apart.entry(other.id.clone()).or_default().push(service.id.clone());
                }
            }
            out.labels.insert(service.id.clone(), labels);
        }
        out
    }

    fn of(&self, service: &ServiceId) -> (PlacementLabels, Vec<ServiceId>) {
        let labels = self.labels.get(service).cloned().unwrap_or_default();
        (labels, self.apart.get(service).cloned().unwrap_or_default())
    }
}

fn of_service(service: &Service) -> PlacementLabels {
    // Those of a service that the API has taken are valid.
    PlacementLabels::read(&service.spec.labels).unwrap_or_default()
}
