//! From a task to the body of `POST /containers/create`, with the same result as in Swarm; likewise for networks. Pure.

use super::mounts::{exposed, mounts};
use super::security::security_options;
use super::{
    ContainerPlan, LABEL_NODE, LABEL_SERVICE, LABEL_SERVICE_NAME, LABEL_TASK, LABEL_TASK_ID, LABEL_TASK_NAME, NetworkPlan,
    generic_env,
};
use crate::model::container_spec::Ulimit;
use crate::model::docker::{DRIVER, MOST_MTU_OPTION, MTU_OPTION, NETWORK_OPTION};
use crate::model::task::{ContainerSpec, Healthcheck, LogDriver};
use crate::model::{PortConfig, Protocol, PublishMode, resolv_options};
use bollard::models::{
    ContainerCreateBody, EndpointIpamConfig, EndpointSettings, HealthConfig, HostConfig, HostConfigLogConfig, Ipam, IpamConfig,
    NetworkCreateRequest, NetworkingConfig, PortBinding, PortMap, ResourcesUlimits, RestartPolicy, RestartPolicyNameEnum,
};
use std::collections::HashMap;
use std::net::Ipv4Addr;

/// The body that creates a task's container on the first of its networks: engines before API 1.44 accept only one, so the
/// others are connected before the start.
#[must_use]
pub fn create_body(plan: &ContainerPlan) -> ContainerCreateBody {
    let spec = &plan.task.spec.container_spec;
    ContainerCreateBody {
        image: Some(spec.image.clone()),
        entrypoint: list(&spec.command),
        cmd: list(&spec.args),
        env: list(&[&spec.env[..], &generic_env::environment(&plan.task.generic_resources)].concat()),
        hostname: text(&spec.hostname),
        user: text(&spec.user),
        working_dir: text(&spec.dir),
        tty: Some(spec.tty),
        open_stdin: Some(spec.open_stdin),
        stop_signal: text(&spec.stop_signal),
        stop_timeout: Some(grace_seconds(spec.stop_grace())),
        healthcheck: spec.healthcheck.as_ref().map(healthcheck),
        labels: Some(labels(plan)),
        exposed_ports: list(&port_bindings(plan).into_keys().collect::<Vec<_>>()),
        host_config: Some(host_config(plan)),
        networking_config: plan.networks.first().map(|(network, address)| NetworkingConfig {
            endpoints_config: Some(HashMap::from([(network.name.clone(), endpoint(network, *address))])),
        }),
        ..Default::default()
    }
}

/// An endpoint with a fixed address on a network, of each family that it has.
#[must_use]
pub fn endpoint(network: &NetworkPlan, address: Ipv4Addr) -> EndpointSettings {
    EndpointSettings {
        ipam_config: Some(EndpointIpamConfig {
            ipv4_address: Some(address.to_string()),
            ipv6_address: network.v6_of(address).map(|address| address.to_string()),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// The body of `POST /networks/create`.
#[must_use]
pub fn network_body(network: &NetworkPlan) -> NetworkCreateRequest {
    NetworkCreateRequest {
        name: network.name.clone(),
        driver: Some(DRIVER.to_owned()),
        internal: Some(network.internal),
        enable_ipv6: network.v6.map(|_| true),
        ipam: Some(Ipam {
            driver: Some(DRIVER.to_owned()),
            config: Some(
                [Some((network.subnet.to_string(), network.gateway.to_string()))]
                    .into_iter()
                    .chain(network.further.iter().map(|net| Some((net.subnet.to_string(), net.gateway.to_string()))))
                    .chain([network.v6.map(|v6| (v6.subnet.to_string(), v6.gateway.to_string()))])
                    .flatten()
                    .map(|(subnet, gateway)| IpamConfig { subnet: Some(subnet), gateway: Some(gateway), ..Default::default() })
                    .collect(),
            ),
            options: None,
        }),
        options: Some(
            [(NETWORK_OPTION, Some(network.id.to_string())), (MTU_OPTION, Some(network.mtu.to_string()))]
                .into_iter()
                .chain([(MOST_MTU_OPTION, network.most_mtu.map(|mtu| mtu.to_string()))])
                .filter_map(|(name, value)| Some((name.to_owned(), value?)))
                .collect(),
        ),
        ..Default::default()
    }
}

/// Whole seconds, rounded up: the engine takes no fractions, and a short grace period must not become zero.
#[must_use]
pub fn grace_seconds(grace: std::time::Duration) -> i64 {
    let seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

fn host_config(plan: &ContainerPlan) -> HostConfig {
    let spec = &plan.task.spec.container_spec;
    let resources = plan.task.spec.resources.as_ref();
    let limits = resources.and_then(|r| r.limits).unwrap_or_default();
    let dns = spec.dns_config.clone().unwrap_or_default();
    // skep's name server forwards to the spec's; without an overlay network it cannot be reached, so the spec's are used.
    let (servers, options) = match name_server(plan) {
        Some(gateway) => (vec![gateway.to_string()], resolv_options::of_task(&dns)),
        None => (dns.nameservers, dns.options),
    };
    HostConfig {
        network_mode: Some(network_mode(plan)),
        restart_policy: Some(RestartPolicy { name: Some(RestartPolicyNameEnum::NO), maximum_retry_count: Some(0) }),
        mounts: list(&mounts(plan)),
        port_bindings: Some(port_bindings(plan)).filter(|ports| !ports.is_empty()),
        extra_hosts: list(&extra_hosts(spec)),
        group_add: list(&spec.groups),
        readonly_rootfs: Some(spec.read_only),
        init: spec.init,
        dns: list(&servers),
        dns_search: list(&dns.search),
        dns_options: list(&options),
        sysctls: (!spec.sysctls.is_empty()).then(|| spec.sysctls.clone().into_iter().collect()),
        cap_add: list(&spec.capability_add),
        cap_drop: list(&spec.capability_drop),
        nano_cpus: amount(limits.nano_cpus),
        memory: amount(limits.memory_bytes),
        pids_limit: amount(limits.pids),
        memory_swap: resources.and_then(|r| r.swap_bytes).and_then(|swap| memory_and_swap(limits.memory_bytes, swap)),
        memory_swappiness: resources.and_then(|r| r.memory_swappiness).filter(|swappiness| *swappiness >= 0),
        ulimits: list(&spec.ulimits.iter().map(ulimit).collect::<Vec<_>>()),
        oom_score_adj: (spec.oom_score_adj != 0).then_some(spec.oom_score_adj),
        security_opt: list(&spec.privileges.as_ref().map(security_options).unwrap_or_default()),
        log_config: plan.task.spec.log_driver.as_ref().map(log_config),
        ..Default::default()
    }
}

/// The network that the container is made on.
fn network_mode(plan: &ContainerPlan) -> String {
    if let Some(predefined) = plan.task.spec.predefined_networks().next() {
        return predefined.name().to_owned();
    }
    plan.networks.first().map_or_else(|| "default".to_owned(), |(network, _)| network.name.clone())
}

/// The container's name server: the gateway of its first user network, else of `ingress`. (All gateways of a node lead to
/// the same name server, but a container can only reach those of its own networks.)
fn name_server(plan: &ContainerPlan) -> Option<Ipv4Addr> {
    let user = plan.networks.iter().find(|(network, _)| !network.ingress);
    user.or(plan.networks.first()).map(|(network, _)| network.gateway)
}

fn labels(plan: &ContainerPlan) -> HashMap<String, String> {
    let task = &plan.task;
    let mut labels: HashMap<String, String> = task.spec.container_spec.labels.clone().into_iter().collect();
    // Last, so that a spec cannot override them and detach a container from its task.
    labels.extend([
        (LABEL_NODE.to_owned(), plan.node_id.to_string()),
        (LABEL_SERVICE.to_owned(), task.service_id.to_string()),
        (LABEL_SERVICE_NAME.to_owned(), task.service_name.clone()),
        (LABEL_TASK.to_owned(), String::new()),
        (LABEL_TASK_ID.to_owned(), task.id.to_string()),
        (LABEL_TASK_NAME.to_owned(), task.container_name()),
    ]);
    labels
}

/// Ports of the host that the container is published on. With an empty number the engine chooses one.
fn port_bindings(plan: &ContainerPlan) -> PortMap {
    let mut bindings = PortMap::new();
    for port in &plan.task.ports {
        let number = if port.published_port == 0 { String::new() } else { port.published_port.to_string() };
        let binding = PortBinding { host_ip: None, host_port: Some(number) };
        let key = format!("{}/{}", port.target_port, port.protocol.as_str());
        bindings.entry(key).or_default().get_or_insert_default().push(binding);
    }
    bindings
}

/// The engine's port bindings in the form of a task's status. Keys that are not like `80/tcp` are skipped.
#[expect(clippy::iter_over_hash_type, reason = "sorted at the end")]
pub(super) fn bound_ports(ports: PortMap) -> Vec<PortConfig> {
    let mut bound = Vec::new();
    for (key, bindings) in ports {
        let Some((target, protocol)) = key.split_once('/') else { continue };
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => continue,
        };
        for binding in bindings.unwrap_or_default() {
            let published = binding.host_port.and_then(|p| p.parse().ok());
            let (Ok(target_port), Some(published_port)) = (target.parse(), published) else { continue };
            bound.push(PortConfig {
                name: String::new(),
                protocol,
                target_port,
                published_port,
                publish_mode: PublishMode::Host,
            });
        }
    }
    bound.sort();
    bound
}

/// The spec has lines of /etc/hosts (`address name …`), the engine takes `name:address`.
fn extra_hosts(spec: &ContainerSpec) -> Vec<String> {
    spec.hosts
        .iter()
        .flat_map(|line| {
            let mut words = line.split_whitespace();
            let address = words.next().unwrap_or_default().to_owned();
            words.map(move |name| format!("{name}:{address}")).collect::<Vec<_>>()
        })
        .collect()
}

fn healthcheck(check: &Healthcheck) -> HealthConfig {
    HealthConfig {
        test: list(&check.test),
        interval: check.interval.map(|n| n.0),
        timeout: check.timeout.map(|n| n.0),
        start_period: check.start_period.map(|n| n.0),
        retries: check.retries,
        start_interval: check.start_interval.map(|n| n.0),
    }
}

/// The engine takes memory and swap together; `None` without a limit of memory, which a limit of swap needs.
fn memory_and_swap(memory: i64, swap: i64) -> Option<i64> {
    match (memory, swap) {
        (_, -1) => Some(-1),
        (1.., 0..) => Some(memory.saturating_add(swap)),
        _ => None,
    }
}

fn ulimit(limit: &Ulimit) -> ResourcesUlimits {
    ResourcesUlimits { name: Some(limit.name.clone()), soft: Some(limit.soft), hard: Some(limit.hard) }
}

fn log_config(driver: &LogDriver) -> HostConfigLogConfig {
    let options = &driver.options;
    HostConfigLogConfig { typ: text(&driver.name), config: (!options.is_empty()).then(|| exposed(options)) }
}

fn text(value: &str) -> Option<String> {
    (!value.is_empty()).then(|| value.to_owned())
}

fn list<T: Clone>(values: &[T]) -> Option<Vec<T>> {
    (!values.is_empty()).then(|| values.to_vec())
}

fn amount(value: i64) -> Option<i64> {
    (value > 0).then_some(value)
}
