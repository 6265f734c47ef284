//! Bounds on what a node and a client may make the store keep: a node's reports are cut, and say so; what a client posts is refused.
//! Pure.

use super::transaction_limits::{OBJECT, encoded_size};
use crate::model::id::ID_LEN;
use crate::model::mesh::DEFAULT_PORT;
use crate::model::node::NodeDescription;
use crate::model::service::ServiceMode;
use crate::model::{ContainerAttachment, Demand, ListeningPort, NodeId, ServiceId, ServiceSpec, TaskStatus, autoscale};
use crate::store::{NODE_ADDRESSES, Store};
use serde::Serialize;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// Longest text of a task's status, in bytes.
pub const STATUS_TEXT: usize = 4 << 10;
/// Largest description of a node, in bytes of its texts.
pub const DESCRIPTION: usize = 64 << 10;
/// Most endpoints of a node's tunnel.
pub const ENDPOINTS: usize = 8;
/// Most further addresses of a node.
pub const ADDRESSES: usize = 16;
/// Most ports of a task, of either kind.
const PORTS: usize = 256;
/// Longest host name, version or similar name, in bytes.
const NAME: usize = 255;
/// Most plain containers of a node on networks, counted once for each network, and bytes of all of their names.
pub const ATTACHMENTS: usize = 4096;
pub const ATTACHMENT_NAMES: usize = 512 << 10;
/// Most names of a plain container on a network.
const ALIASES: usize = 16;
const TROUBLES: usize = 8;
const TROUBLE_TEXT: usize = 400;
/// Ends a text that was cut.
const CUT: &str = "… (cut)";
/// Label of a description that was cut.
const CUT_LABEL: &str = "skep.cut";

/// Cuts a text to so many bytes, the mark included.
fn cut(text: &mut String, most: usize) {
    if text.len() > most {
        let end = (0..=most.saturating_sub(CUT.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        text.truncate(end);
        text.push_str(CUT);
    }
}

/// A task's status, bounded.
#[must_use]
pub fn status(mut status: TaskStatus) -> TaskStatus {
    cut(&mut status.message, STATUS_TEXT);
    cut(&mut status.err, STATUS_TEXT);
    if let Some(container) = &mut status.container {
        cut(&mut container.container_id, NAME);
    }
    status.ports.truncate(PORTS);
    for port in &mut status.ports {
        cut(&mut port.name, NAME);
    }
    status
}

/// Clients of one service that wait on one node: as many connections as its waiting room has, and as many requests.
const WAITING: u64 = 1024;

/// Demand for services that are scaled by load: of others it is of no use.
#[must_use]
pub fn demand(store: &Store, mut demand: Demand) -> Demand {
    let is_scaled = |id: &ServiceId| store.service(id).is_some_and(|service| service.spec.labels.contains_key(autoscale::RANGE));
    demand.services.retain(|id, _| is_scaled(id));
    for service in demand.services.values_mut() {
        service.waiting = service.waiting.min(WAITING);
    }
    demand
}

/// Largest spec of a network, a node, the swarm, a secret, a config or the like, in bytes as it is stored. Those of networks and of the
/// swarm are in the view of many nodes.
pub const SPEC: usize = 256 << 10;

/// Checks that what a client posts is not larger than [`SPEC`]. What is `stored` already may stay as large as it is: a node that has
/// larger labels of an earlier build can still be drained.
///
/// # Errors
/// How large it is and may be, for users.
pub fn spec<T: Serialize>(what: &str, posted: &T, stored: Option<&T>) -> Result<(), String> {
    let size = encoded_size(posted);
    if size <= SPEC || stored.is_some_and(|stored| size <= encoded_size(stored)) {
        return Ok(());
    }
    Err(format!("{what} of {size} bytes, as it is stored, is too large: {SPEC} are the most"))
}

/// Room in a service's object for all but its specs and its ports: credentials, addresses, the state of an update, in bytes.
const SERVICE_REST: usize = 128 << 10;

/// Checks that a service with this spec can be written, and that its tasks are not too many.
///
/// # Errors
/// What is too large, for users.
pub fn service(spec: &ServiceSpec) -> Result<(), String> {
    service_tasks(&spec.mode)?;
    service_size(spec)
}

/// Checks that a service with this spec can be written whole, also after an update, when it has the one before as well. The ports
/// count twice: those that are published are in its endpoint too.
///
/// # Errors
/// How large the spec may be.
fn service_size(spec: &ServiceSpec) -> Result<(), String> {
    let ports = spec.endpoint_spec.as_ref().map_or(0, |endpoint| encoded_size(&endpoint.ports));
    let (size, most) = (encoded_size(spec), ((OBJECT - SERVICE_REST) / 2).saturating_sub(ports));
    if size <= most {
        return Ok(());
    }
    Err(format!(
        "the spec of the service has {size} bytes as it is stored, {most} are the most, so that it can be updated and rolled back: \
         put large texts into configs"
    ))
}

/// Tasks of one service: as many as the control plane is measured with.
const TASKS: u64 = 100_000;

/// Checks that the tasks of a service are not more than managers keep in memory: one digit too many in a scale is no reason to lose
/// them all.
///
/// # Errors
/// Which number is too large, for users.
fn service_tasks(mode: &ServiceMode) -> Result<(), String> {
    let job = mode.replicated_job.unwrap_or_default();
    let numbers = [
        ("Mode.Replicated.Replicas", mode.replicated.and_then(|replicated| replicated.replicas)),
        ("Mode.ReplicatedJob.MaxConcurrent", job.max_concurrent),
        ("Mode.ReplicatedJob.TotalCompletions", job.total_completions),
    ];
    let too_many = numbers.iter().find_map(|(name, number)| number.filter(|number| *number > TASKS).map(|number| (name, number)));
    too_many.map_or(Ok(()), |(name, number)| Err(format!("{name}: {number} tasks of one service, {TASKS} are the most")))
}

/// A task's listening ports, bounded.
#[must_use]
pub fn listening(mut ports: Vec<ListeningPort>) -> Vec<ListeningPort> {
    ports.truncate(PORTS);
    ports
}

/// Checks that other nodes may send to this address: not to themselves, to many, or into the mesh.
///
/// # Errors
/// What is wrong with it, for users; it names the address.
pub fn endpoint_check(store: &Store, endpoint: SocketAddr) -> Result<(), String> {
    let ip = endpoint.ip().to_canonical();
    let in_mesh = match ip {
        IpAddr::V4(ip) => store.networks().any(|network| network.subnets().iter().any(|subnet| subnet.contains(&ip))),
        IpAddr::V6(ip) => store.cluster().is_some_and(|cluster| cluster.mesh.0.contains(&ip)),
    };
    let fault = match ip {
        _ if endpoint.port() == 0 => "it has no port",
        ip if ip.is_unspecified() => "it is the unspecified address",
        ip if ip.is_loopback() => "it is a loopback address",
        ip if ip.is_multicast() => "it is a multicast address",
        IpAddr::V4(ip) if ip.is_broadcast() => "it is the broadcast address",
        _ if in_mesh => "it is an address of the swarm's own networks",
        _ => return Ok(()),
    };
    Err(format!("{endpoint} is no endpoint of a node: {fault}"))
}

/// The endpoints of a node's tunnel, bounded; those that do not pass [`endpoint_check`] are left out.
#[must_use]
pub fn endpoints(store: &Store, node: &NodeId, mut endpoints: Vec<SocketAddr>) -> Vec<SocketAddr> {
    endpoints.truncate(ENDPOINTS);
    endpoints.retain(|endpoint| may_be_at(store, node, *endpoint));
    endpoints
}

fn may_be_at(store: &Store, node: &NodeId, endpoint: SocketAddr) -> bool {
    let checked = endpoint_check(store, endpoint);
    if let Err(error) = &checked {
        tracing::warn!(%node, error, "left out");
    }
    checked.is_ok()
}

/// What of a description may be written at the cluster's level: addresses of the host not before all managers know them.
#[must_use]
pub fn at_level(store: &Store, mut description: NodeDescription) -> NodeDescription {
    if store.feature_level() < NODE_ADDRESSES {
        description.addresses.clear();
    }
    description
}

/// Addresses of a node's host, bounded. One on a network of the swarm is another machine's to the other nodes.
fn addresses(store: &Store, mut addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    addresses.retain(|ip| endpoint_check(store, SocketAddr::new(*ip, DEFAULT_PORT)).is_ok());
    addresses.truncate(ADDRESSES);
    addresses
}

/// A node's description, bounded: engine labels, plugins and generic resources that do not fit are left out, and a label names their number.
#[must_use]
pub fn description(store: &Store, node: &NodeId, mut description: NodeDescription) -> NodeDescription {
    description.advertised = description.advertised.filter(|ip| may_be_at(store, node, SocketAddr::new(*ip, DEFAULT_PORT)));
    description.addresses = addresses(store, std::mem::take(&mut description.addresses));
    let NodeDescription { hostname, architecture, os, engine_version, issuer, .. } = &mut description;
    for name in [hostname, architecture, os, engine_version, issuer] {
        cut(name, NAME);
    }
    let mut left = DESCRIPTION;
    let mut fits = |size: usize| {
        let fits = size <= left;
        left = if fits { left - size } else { left };
        fits
    };
    let count = |d: &NodeDescription| d.engine_labels.len() + d.plugins.len() + d.generic_resources.len();
    let before = count(&description);
    // Plugins first: the scheduler looks at them.
    description.plugins.retain(|(kind, name)| fits(kind.len() + name.len()));
    description.generic_resources.retain(|resource| fits(resource.size()));
    description.engine_labels.retain(|key, value| fits(key.len() + value.len()));
    let out = before - count(&description);
    if out > 0 {
        description.engine_labels.insert(CUT_LABEL.to_owned(), format!("{out} labels, plugins or generic resources did not fit"));
    }
    description
}

/// What does not work on a node, bounded.
#[must_use]
pub fn troubles(mut troubles: BTreeMap<String, String>) -> BTreeMap<String, String> {
    troubles.retain(|name, _| name.len() <= NAME);
    while troubles.len() > TROUBLES {
        troubles.pop_last();
    }
    for text in troubles.values_mut() {
        cut(text, TROUBLE_TEXT);
    }
    troubles
}

/// What a node needs for its plain containers, bounded.
#[must_use]
pub fn attachments(mut attachments: Vec<ContainerAttachment>) -> Vec<ContainerAttachment> {
    // Ids are drawn by skep.
    attachments.retain(|attachment| attachment.id.as_str().len() <= ID_LEN);
    attachments.truncate(ATTACHMENTS);
    let mut left = ATTACHMENT_NAMES;
    attachments.retain_mut(|ContainerAttachment { network, container, .. }| {
        container.aliases.truncate(ALIASES);
        let mut bytes = 0;
        for name in [network, &mut container.id, &mut container.name].into_iter().chain(&mut container.aliases) {
            cut(name, NAME);
            bytes += name.len();
        }
        let fits = bytes <= left;
        left = if fits { left - bytes } else { 0 };
        fits
    });
    attachments
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_at_a_character_and_marked() {
        let long = TaskStatus { err: "\u{e4}".repeat(9000), message: "short".to_owned(), ..TaskStatus::default() };
        let bounded = status(long);
        assert!(bounded.err.len() <= STATUS_TEXT && bounded.err.ends_with(CUT), "{}", bounded.err.len());
        assert_eq!(bounded.message, "short");
    }

    #[test]
    fn what_a_node_reports_of_plain_containers_is_bounded() {
        let one = |id: String, aliases: usize, length: usize| {
            let container = crate::model::AttachedContainer { aliases: vec!["a".repeat(length); aliases], ..Default::default() };
            ContainerAttachment { id: id.as_str().into(), network: "back".to_owned(), container }
        };
        let bounded = attachments(vec![one("x".repeat(26), 0, 0), one("t1".to_owned(), 99, 9000)]);
        assert_eq!(bounded.len(), 1, "an id that skep did not draw");
        let aliases = &bounded[0].container.aliases;
        assert!(aliases.len() == ALIASES && aliases.iter().all(|alias| alias.len() <= NAME));
        let many = attachments((0..=ATTACHMENTS).map(|number| one(number.to_string(), 0, 0)).collect());
        assert_eq!(many.len(), ATTACHMENTS);
        let large: Vec<_> = (0..ATTACHMENTS).map(|number| one(number.to_string(), ALIASES, NAME)).collect();
        assert!(attachments(large).len() < 150, "their names are bounded together");
    }

    #[test]
    fn an_endpoint_to_which_no_node_can_send_is_refused_by_its_name() {
        let mut store = Store::default();
        let network = crate::model::Network {
            subnet: Some("10.0.1.0/24".parse().unwrap()),
            ..crate::model::Network::new(
                "n1".into(),
                crate::model::NetworkSpec { name: "back".to_owned(), ..crate::model::NetworkSpec::default() },
            )
        };
        let created = vec![crate::store::Action::create(network)];
        store.apply(1, &crate::store::Transaction::new(crate::model::Timestamp(1), created)).unwrap();
        let given = [
            "192.0.2.1:2377",
            "[2001:db8::1]:2377",
            "10.0.2.9:2377",
            "0.0.0.0:2377",
            "[::]:2377",
            "127.0.0.1:2377",
            "[::1]:2377",
            "[::ffff:127.0.0.1]:2377",
            "224.0.0.1:2377",
            "[ff02::1]:2377",
            "255.255.255.255:2377",
            "10.0.1.9:2377",
            "192.0.2.1:0",
        ];
        for (number, endpoint) in given.into_iter().enumerate() {
            let check = endpoint_check(&store, endpoint.parse().unwrap());
            assert_eq!(check.is_ok(), number < 3, "{check:?}");
            assert!(number < 3 || check.unwrap_err().starts_with(endpoint));
        }
        let kept = endpoints(&store, &"n1".into(), given.map(|e| e.parse().unwrap()).into());
        assert_eq!(kept.len(), 3, "the others are left out: {kept:?}");
    }

    #[test]
    fn addresses_of_a_host_are_bounded_and_wait_until_every_manager_knows_them() {
        let many = (1..=99).map(|last| IpAddr::from([192, 0, 2, last]));
        let given: Vec<IpAddr> =
            [[127, 0, 0, 1], [0; 4], [224, 0, 0, 1]].map(IpAddr::from).into_iter().chain(many.clone()).collect();
        for (level, kept) in [(NODE_ADDRESSES - 1, 0), (NODE_ADDRESSES, ADDRESSES)] {
            let mut store = Store::default();
            let cluster = crate::model::Cluster { feature_level: level, ..crate::model::fixture::cluster() };
            let created = vec![crate::store::Action::create(cluster)];
            store.apply(1, &crate::store::Transaction::new(crate::model::Timestamp(1), created)).unwrap();
            let reported = NodeDescription { addresses: given.clone(), ..NodeDescription::default() };
            let bounded = description(&store, &"n1".into(), reported);
            // Kept with the session, so that they are written as soon as the level allows it.
            assert_eq!(bounded.addresses, many.clone().take(ADDRESSES).collect::<Vec<_>>(), "level {level}");
            assert_eq!(at_level(&store, bounded).addresses.len(), kept, "level {level}");
        }
    }

    #[test]
    fn a_large_description_keeps_what_fits_and_names_the_rest() {
        let mut large = NodeDescription { hostname: "n".repeat(9_000_000), ..NodeDescription::default() };
        large.plugins = vec![("Network".to_owned(), "skep".to_owned())];
        large.engine_labels = [("big".to_owned(), "x".repeat(9_000_000)), ("zone".to_owned(), "a".to_owned())].into();
        let bounded = description(&Store::default(), &"n1".into(), large);
        assert!(bounded.hostname.len() <= NAME);
        assert_eq!(bounded.plugins.len(), 1);
        assert_eq!(bounded.engine_labels["zone"], "a");
        assert!(bounded.engine_labels[CUT_LABEL].starts_with("1 labels"), "{:?}", bounded.engine_labels);
        let small = NodeDescription { hostname: "w1".to_owned(), ..NodeDescription::default() };
        assert_eq!(description(&Store::default(), &"n1".into(), small.clone()), small);
    }
}
