//! Whether a network has an address for everything that its services want: the gateway, a virtual address for each service, and one
//! for each task. What is missing is said when a service is created or updated: its tasks would wait.

use crate::model::service::EndpointMode;
use crate::model::{Network, Service, ServiceId, ServiceSpec};
use crate::store::Store;

/// A warning for each network of the spec that is too small for its services. `own` is the id of the service on an update.
pub fn small_networks(spec: &ServiceSpec, own: Option<&ServiceId>, store: &Store) -> Vec<String> {
    let attached = spec.task_template.networks.iter().filter_map(|network| store.network(&network.target.as_str().into()));
    let ingress = store.networks().find(|network| network.spec.ingress).filter(|_| spec.wants_ingress());
    attached.chain(ingress).filter_map(|network| warning(network, spec, own, store)).collect()
}

fn warning(network: &Network, spec: &ServiceSpec, own: Option<&ServiceId>, store: &Store) -> Option<String> {
    let subnets = if network.subnet.is_some() { network.subnets() } else { network.spec.subnets.clone() };
    if subnets.is_empty() {
        return None;
    }
    // Without the address of each subnet, the broadcast address and the gateway; each node has one on ingress.
    let nodes = store.nodes().count() as u64;
    let all: u64 = subnets.iter().map(|subnet| (1_u64 << (32 - subnet.prefix_len())).saturating_sub(3)).sum();
    let room = all.saturating_sub(if network.spec.ingress { nodes } else { 0 });
    let shown = subnets.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let others = store.services().filter(|service| own != Some(&service.id)).map(|service: &Service| &service.spec);
    let wanted = others.chain([spec]).filter(|spec| is_on(spec, network)).map(|spec| wants(spec, nodes)).sum::<u64>();
    (wanted > room).then(|| {
        format!(
            "network {} ({shown}) has {room} addresses for its services, which want {wanted}: tasks beyond that wait without an \
             address until others end; use a network with a larger subnet",
            network.spec.name
        )
    })
}

fn is_on(spec: &ServiceSpec, network: &Network) -> bool {
    let is_attached = || spec.task_template.networks.iter().any(|attached| attached.target == network.id.as_str());
    if network.spec.ingress { spec.wants_ingress() } else { is_attached() }
}

/// Addresses: of its tasks, and its virtual one.
fn wants(spec: &ServiceSpec, nodes: u64) -> u64 {
    let mode = &spec.mode;
    let tasks = match mode.replicated_job {
        Some(job) => job.concurrent(),
        None if mode.is_global() => nodes,
        None => mode.replicas(),
    };
    tasks.saturating_add(u64::from(spec.endpoint_mode() == EndpointMode::Vip))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::service::{Replicated, ServiceMode};
    use crate::model::task::NetworkAttachmentConfig;
    use crate::model::{NetworkSpec, TaskSpec, Timestamp, fixture};
    use crate::store::{Action, Transaction};

    fn spec(replicas: u64) -> ServiceSpec {
        let attached = NetworkAttachmentConfig { target: "tiny".to_owned(), ..NetworkAttachmentConfig::default() };
        ServiceSpec {
            task_template: TaskSpec { networks: vec![attached], ..TaskSpec::default() },
            mode: ServiceMode { replicated: Some(Replicated { replicas: Some(replicas) }), ..ServiceMode::default() },
            ..ServiceSpec::default()
        }
    }

    #[test]
    fn a_network_that_is_too_small_is_named_with_what_is_missing() {
        let spec_of = NetworkSpec { name: "tiny".to_owned(), ..NetworkSpec::default() };
        let subnet = Some("192.168.9.0/29".parse().unwrap());
        let tiny = Network { subnet, ..Network::new("tiny".into(), spec_of) };
        let mut store = Store::default();
        let other = fixture::service("other", spec(1));
        store.apply(1, &Transaction::new(Timestamp(1), vec![Action::create(tiny), Action::create(other)])).unwrap();
        // Eight, of which three are taken: five, of which the other service has two.
        assert_eq!(small_networks(&spec(2), None, &store), [""; 0]);
        let warnings = small_networks(&spec(3), None, &store);
        assert!(
            warnings[0].starts_with("network tiny (192.168.9.0/29) has 5 addresses for its services, which want 6"),
            "{warnings:?}"
        );
        assert_eq!(small_networks(&spec(4), Some(&"other".into()), &store), [""; 0], "what it had itself is free");
    }
}
