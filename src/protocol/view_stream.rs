//! A node's views as they travel in a session: entry by entry, in pieces. A change costs what changed, and a view has no largest
//! size. Both ends begin each session with nothing, so the first view is a difference to that. Pure.

use super::compression::compressed;
use super::entries::{KeyedEntry, differing};
use super::shared_documents::{Document, SharedDocuments};
use super::view_piece::{ViewChange, ViewEnd, ViewPiece};
use super::{BACKENDS, FORMAT, ToNode};
use crate::model::view::{Backend, ClusterPart, NetworkPart, Networks, Peer, PublishedPort, Tasks};
use crate::model::{NetworkId, NodeId, Protocol, TaskId};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

/// A piece ends with the entry that reaches this size, in bytes.
pub const PIECE: usize = 64 << 10;

/// A piece that does not fit what was received before: the session cannot go on.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a change of {0}, which this session did not name before")]
pub struct UnknownBase(String);

/// The parts of a view at one end of a session; `None`: none was sent yet.
#[derive(Default, Debug)]
struct Parts {
    tasks: Option<Arc<Tasks>>,
    networks: Option<Arc<Networks>>,
    cluster: Option<Arc<ClusterPart>>,
}

/// The sending end.
#[derive(Debug)]
pub struct ViewEncoder {
    parts: Parts,
    shared: Arc<SharedDocuments>,
    /// Of the session.
    format: u32,
}

impl Default for ViewEncoder {
    fn default() -> Self {
        Self::new(Arc::default(), FORMAT)
    }
}

/// The receiving end.
#[derive(Default, Debug)]
pub struct ViewDecoder(Parts);

/// Merges a view into one that was not sent yet; another message is returned.
///
/// # Errors
/// The message, if it is no view.
pub fn merge(waiting: &mut ToNode, next: ToNode) -> Result<(), ToNode> {
    let ToNode::View { revision, tasks, networks, cluster } = waiting else { return Err(next) };
    match next {
        ToNode::View { revision: newer, tasks: t, networks: n, cluster: c } => {
            *revision = newer;
            *tasks = t.or(tasks.take());
            *networks = n.or(networks.take());
            *cluster = c.or(cluster.take());
            Ok(())
        }
        other => Err(other),
    }
}

impl ViewEncoder {
    /// Of a session that shares its documents with others.
    pub fn new(shared: Arc<SharedDocuments>, format: u32) -> Self {
        Self { parts: Parts::default(), shared, format }
    }

    /// The message as it travels: a view in pieces, any other in one document.
    pub fn encode(&mut self, message: ToNode) -> Vec<Document> {
        let ToNode::View { revision, tasks, networks, cluster } = message else { return vec![plain(&message).into()] };
        let end = ViewEnd { revision, tasks: tasks.is_some(), networks: networks.is_some(), cluster: cluster.is_some() };
        let mut out = Vec::new();
        let is_newer = self.format >= BACKENDS;
        let document: fn(&ToNode) -> Document = if is_newer { packed } else { |message| plain(message).into() };
        if let Some(tasks) = tasks {
            out.extend(pieces(document, |out| task_changes(self.parts.tasks.as_deref(), &tasks, out)));
            self.parts.tasks = Some(tasks);
        }
        if let Some(now) = networks {
            let before = self.parts.networks.replace(now.clone());
            let encode = |before: Option<&Networks>, now: &Networks| pieces(document, |out| network_changes(before, now, out));
            let steps = if is_newer { &self.shared.networks } else { &self.shared.earlier_networks };
            out.extend(steps.documents(before.as_ref(), &now, encode));
        }
        if let Some(now) = cluster {
            let before = self.parts.cluster.replace(now.clone());
            let steps = if is_newer { &self.shared.cluster } else { &self.shared.earlier_cluster };
            let ports = if is_newer { port_changes } else { whole_ports };
            let encode = |before: Option<&ClusterPart>, now: &ClusterPart| {
                pieces(document, |out| {
                    cluster_changes(before, now, ports, out);
                    // An earlier build serves no HTTP and reads none of these.
                    if is_newer {
                        http_changes(before, now, out);
                    }
                })
            };
            out.extend(steps.documents(before.as_ref(), &now, encode));
        }
        out.push(plain(&ToNode::Piece(ViewPiece { changes: Vec::new(), end: Some(end) })).into());
        out
    }
}

/// # Panics
/// Never: messages are plain data.
fn plain(message: &ToNode) -> Vec<u8> {
    serde_json::to_vec(message).expect("messages are plain data")
}

fn packed(message: &ToNode) -> Document {
    compressed(plain(message))
}

fn task_changes(before: Option<&Tasks>, now: &Tasks, out: &mut Vec<ViewChange>) {
    let none = Tasks::default();
    let (has, wants) = (&before.unwrap_or(&none).payloads, &now.payloads);
    out.extend(has.keys().filter(|id| !wants.contains_key(*id)).cloned().map(ViewChange::NoPayload));
    let new = wants.iter().filter(|(id, _)| !has.contains_key(*id));
    out.extend(new.map(|(id, payload)| ViewChange::Payload(id.clone(), payload.clone())));
    let (before, now) = (&before.unwrap_or(&none).by_id, &now.by_id);
    out.extend(before.keys().filter(|id| !now.contains_key(*id)).cloned().map(ViewChange::NoTask));
    let changed = now.iter().filter(|(id, task)| before.get(*id) != Some(task));
    out.extend(changed.map(|(_, task)| ViewChange::Task(task.clone())));
}

fn network_changes(before: Option<&Networks>, now: &Networks, out: &mut Vec<ViewChange>) {
    let none = Networks::default();
    let (before, now) = (&before.unwrap_or(&none).by_id, &now.by_id);
    out.extend(before.keys().filter(|id| !now.contains_key(*id)).cloned().map(ViewChange::NoNetwork));
    for (id, part) in now {
        let was = before.get(id);
        let head = shallow_network(part);
        if was.is_none_or(|was| shallow_network(was) != head) {
            out.push(ViewChange::Network(id.clone(), head));
        }
        let (members, services, names) =
            was.map_or((&[][..], &[][..], &[][..]), |was| (&was.members[..], &was.services[..], &was.names[..]));
        list(
            members,
            &part.members,
            out,
            |m| ViewChange::Member(id.clone(), m),
            |m| ViewChange::NoMember(id.clone(), m.task_id.clone()),
        );
        list(
            services,
            &part.services,
            out,
            |s| ViewChange::Vip(id.clone(), s),
            |s| ViewChange::NoVip(id.clone(), s.service_id.clone()),
        );
        list(
            names,
            &part.names,
            out,
            |s| ViewChange::Names(id.clone(), s),
            |s| ViewChange::NoNames(id.clone(), s.service_id.clone()),
        );
    }
}

type Ports = [Arc<PublishedPort>];

fn cluster_changes(
    before: Option<&ClusterPart>,
    now: &ClusterPart,
    port_changes: impl FnOnce(&Ports, &Ports, &mut Vec<ViewChange>),
    out: &mut Vec<ViewChange>,
) {
    let head = shallow_cluster(now);
    if before.is_none_or(|before| shallow_cluster(before) != head) {
        out.push(ViewChange::Cluster(head));
    }
    let nodes: BTreeMap<&NodeId, &Peer> = before.iter().flat_map(|b| &b.nodes).map(|n| (&n.node_id, n)).collect();
    let gone = nodes.keys().filter(|id| now.nodes.binary_search_by(|n| n.node_id.cmp(id)).is_err());
    out.extend(gone.map(|id| ViewChange::NoNode((*id).clone())));
    let changed = now.nodes.iter().filter(|node| nodes.get(&node.node_id).is_none_or(|was| was != node));
    out.extend(changed.cloned().map(ViewChange::Node));
    let ports = before.map_or(&[][..], |before| &before.ports[..]);
    port_changes(ports, &now.ports, out);
}

/// The HTTP services that changed.
fn http_changes(before: Option<&ClusterPart>, now: &ClusterPart, out: &mut Vec<ViewChange>) {
    let before = before.map_or(&[][..], |before| &before.http[..]);
    list(before, &now.http, out, ViewChange::Http, |service| ViewChange::NoHttp(service.service_id.clone()));
}

fn whole_ports(before: &Ports, now: &Ports, out: &mut Vec<ViewChange>) {
    list(before, now, out, ViewChange::Port, |p| ViewChange::NoPort(p.protocol, p.published));
}

/// The heads of ports that changed, and the backends that did.
fn port_changes(before: &Ports, now: &Ports, out: &mut Vec<ViewChange>) {
    for pair in differing(before, now) {
        let (was, port) = match pair {
            (was, Some(port)) => (was, port),
            (Some(was), None) => {
                out.push(ViewChange::NoPort(was.protocol, was.published));
                continue;
            }
            (None, None) => continue,
        };
        let head = shallow_port(port);
        if was.is_none_or(|was| shallow_port(was) != head) {
            out.push(ViewChange::PortHead(head));
        }
        let (protocol, published) = (port.protocol, port.published);
        let had: BTreeMap<&TaskId, &Backend> = was.iter().flat_map(|was| &was.backends).map(|b| (&b.task_id, b)).collect();
        let has: BTreeSet<&TaskId> = port.backends.iter().map(|b| &b.task_id).collect();
        let gone = had.keys().filter(|id| !has.contains(*id));
        out.extend(gone.map(|id| ViewChange::NoBackend(protocol, published, (*id).clone())));
        let changed = port.backends.iter().filter(|backend| had.get(&backend.task_id) != Some(backend));
        out.extend(changed.map(|backend| ViewChange::Backend(protocol, published, backend.clone())));
    }
}

/// A published port without its backends.
fn shallow_port(port: &PublishedPort) -> PublishedPort {
    PublishedPort {
        protocol: port.protocol,
        published: port.published,
        target: port.target,
        service_id: port.service_id.clone(),
        service_name: port.service_name.clone(),
        backends: Vec::new(),
        affinity: port.affinity,
        allow: port.allow.clone(),
        holds: port.holds,
    }
}

/// A network without its lists.
fn shallow_network(part: &NetworkPart) -> NetworkPart {
    NetworkPart {
        name: part.name.clone(),
        subnet: part.subnet,
        gateway: part.gateway,
        further: part.further.clone(),
        v6: part.v6,
        internal: part.internal,
        ingress: part.ingress,
        attachable: part.attachable,
        labels: part.labels.clone(),
        options: part.options.clone(),
        mtu: part.mtu,
        members: Vec::new(),
        services: Vec::new(),
        names: Vec::new(),
    }
}

/// A cluster part without its lists of nodes, ports and HTTP services. (Builds before HTTP routes leave out what they do not know.)
fn shallow_cluster(part: &ClusterPart) -> ClusterPart {
    ClusterPart {
        mesh: part.mesh,
        pools: part.pools.clone(),
        subnets: part.subnets.clone(),
        pairs: part.pairs.clone(),
        network_digests: part.network_digests.clone(),
        nodes: Vec::new(),
        ports: Vec::new(),
        counted: part.counted.clone(),
        trust: part.trust.clone(),
        http: Vec::new(),
        acme: part.acme.clone(),
    }
}

fn list<T: KeyedEntry>(
    before: &[Arc<T>],
    now: &[Arc<T>],
    out: &mut Vec<ViewChange>,
    is: impl Fn(Arc<T>) -> ViewChange,
    was: impl Fn(&T) -> ViewChange,
) {
    for pair in differing(before, now) {
        match pair {
            (_, Some(now)) => out.push(is(now.clone())),
            (Some(before), None) => out.push(was(before)),
            (None, None) => {}
        }
    }
}

/// The changes, in documents of about [`PIECE`] bytes before they are compressed.
fn pieces(document: fn(&ToNode) -> Document, make: impl FnOnce(&mut Vec<ViewChange>)) -> Vec<Document> {
    let mut changes = Vec::new();
    make(&mut changes);
    let (mut all, mut piece, mut size) = (Vec::new(), ViewPiece::default(), 0);
    for change in changes {
        size += encoded_size(&change);
        piece.changes.push(change);
        if size >= PIECE {
            all.push(document(&ToNode::Piece(std::mem::take(&mut piece))));
            size = 0;
        }
    }
    if !piece.changes.is_empty() {
        all.push(document(&ToNode::Piece(piece)));
    }
    all
}

/// Bytes of the entry's document.
fn encoded_size(change: &ViewChange) -> usize {
    struct Count(usize);
    impl io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    // Writing to a counter cannot fail; what cannot be encoded fails when it is sent.
    let _ = serde_json::to_writer(&mut count, change);
    count.0
}

impl ViewDecoder {
    /// Makes the changes of a piece. Returns the view that it completes, if it does.
    ///
    /// # Errors
    /// The piece changes an entry of something that was not received.
    pub fn take(&mut self, piece: ViewPiece) -> Result<Option<ToNode>, UnknownBase> {
        for change in piece.changes {
            self.0.change(change)?;
        }
        let Some(end) = piece.end else { return Ok(None) };
        if end.cluster && self.0.cluster.is_none() {
            return Err(UnknownBase("the cluster".to_owned()));
        }
        let tasks = end.tasks.then(|| self.0.tasks.get_or_insert_default().clone());
        let networks = end.networks.then(|| self.0.networks.get_or_insert_default().clone());
        let cluster = self.0.cluster.clone().filter(|_| end.cluster);
        Ok(Some(ToNode::View { revision: end.revision, tasks, networks, cluster }))
    }
}

impl Parts {
    fn change(&mut self, change: ViewChange) -> Result<(), UnknownBase> {
        match change {
            ViewChange::Task(task) => drop(self.tasks().by_id.insert(task.id.clone(), task)),
            ViewChange::NoTask(id) => drop(self.tasks().by_id.remove(&id)),
            ViewChange::Payload(id, payload) => drop(self.tasks().payloads.insert(id, payload)),
            ViewChange::NoPayload(id) => drop(self.tasks().payloads.remove(&id)),
            ViewChange::Network(id, head) => {
                let networks = &mut self.networks().by_id;
                let lists = networks.remove(&id).map(|was| (was.members, was.services, was.names));
                let (members, services, names) = lists.unwrap_or_default();
                networks.insert(id, NetworkPart { members, services, names, ..head });
            }
            ViewChange::NoNetwork(id) => drop(self.networks().by_id.remove(&id)),
            ViewChange::Member(id, member) => set(&mut self.network(&id)?.members, member),
            ViewChange::NoMember(id, task) => self.network(&id)?.members.retain(|m| m.task_id != task),
            ViewChange::Vip(id, vip) => set(&mut self.network(&id)?.services, vip),
            ViewChange::NoVip(id, service) => self.network(&id)?.services.retain(|s| s.service_id != service),
            ViewChange::Names(id, names) => set(&mut self.network(&id)?.names, names),
            ViewChange::NoNames(id, service) => self.network(&id)?.names.retain(|s| s.service_id != service),
            ViewChange::Cluster(head) => match &mut self.cluster {
                Some(cluster) => {
                    let cluster = Arc::make_mut(cluster);
                    let ClusterPart { nodes, ports, http, .. } = std::mem::replace(cluster, head);
                    *cluster = ClusterPart { nodes, ports, http, ..cluster.clone() };
                }
                None => self.cluster = Some(Arc::new(head)),
            },
            ViewChange::Node(node) => {
                let nodes = &mut self.cluster()?.nodes;
                match nodes.binary_search_by(|n| n.node_id.cmp(&node.node_id)) {
                    Ok(at) => nodes[at] = node,
                    Err(at) => nodes.insert(at, node),
                }
            }
            ViewChange::NoNode(id) => self.cluster()?.nodes.retain(|n| n.node_id != id),
            ViewChange::Port(port) => set(&mut self.cluster()?.ports, port),
            ViewChange::PortHead(head) => {
                let ports = &mut self.cluster()?.ports;
                match ports.binary_search_by(|port| (**port).order(&head)) {
                    Ok(at) => {
                        let backends = std::mem::take(&mut Arc::make_mut(&mut ports[at]).backends);
                        ports[at] = Arc::new(PublishedPort { backends, ..head });
                    }
                    Err(at) => ports.insert(at, Arc::new(head)),
                }
            }
            ViewChange::Backend(protocol, published, backend) => {
                let backends = &mut self.port(protocol, published)?.backends;
                match backends.binary_search_by(|other| other.task_id.cmp(&backend.task_id)) {
                    Ok(at) => backends[at] = backend,
                    Err(at) => backends.insert(at, backend),
                }
            }
            ViewChange::NoBackend(protocol, published, task) => {
                self.port(protocol, published)?.backends.retain(|backend| backend.task_id != task);
            }
            ViewChange::NoPort(protocol, published) => {
                self.cluster()?.ports.retain(|p| (p.protocol, p.published) != (protocol, published));
            }
            ViewChange::Http(service) => set(&mut self.cluster()?.http, service),
            ViewChange::NoHttp(id) => self.cluster()?.http.retain(|service| service.service_id != id),
        }
        Ok(())
    }

    fn tasks(&mut self) -> &mut Tasks {
        Arc::make_mut(self.tasks.get_or_insert_default())
    }
    fn networks(&mut self) -> &mut Networks {
        Arc::make_mut(self.networks.get_or_insert_default())
    }
    fn network(&mut self, id: &NetworkId) -> Result<&mut NetworkPart, UnknownBase> {
        self.networks().by_id.get_mut(id).ok_or_else(|| UnknownBase(format!("network {id}")))
    }
    fn port(&mut self, protocol: Protocol, published: u16) -> Result<&mut PublishedPort, UnknownBase> {
        let ports = &mut self.cluster()?.ports;
        let at = ports.binary_search_by(|port| (port.protocol, port.published).cmp(&(protocol, published)));
        let unknown = || UnknownBase(format!("port {published}/{}", protocol.as_str()));
        at.ok().and_then(|at| ports.get_mut(at)).map(Arc::make_mut).ok_or_else(unknown)
    }
    fn cluster(&mut self) -> Result<&mut ClusterPart, UnknownBase> {
        self.cluster.as_mut().map(Arc::make_mut).ok_or_else(|| UnknownBase("the cluster".to_owned()))
    }
}

/// Adds or replaces an entry of a sorted list.
fn set<T: KeyedEntry>(list: &mut Vec<Arc<T>>, entry: Arc<T>) {
    match list.binary_search_by(|other| other.order(&entry)) {
        Ok(at) => list[at] = entry,
        Err(at) => list.insert(at, entry),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::http::{HttpBackend, HttpRoute, HttpService};
    use crate::model::view::TaskEndpoint;
    use crate::model::{NodeView, Revision, fixture};
    use crate::protocol::compression::expanded;
    use crate::protocol::{KEY_PROOF, MAX_FRAME};
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    fn message(view: &NodeView) -> ToNode {
        let (tasks, networks, cluster) = (view.tasks.clone(), view.networks.clone(), view.cluster.clone());
        ToNode::View { revision: view.revision, tasks: Some(tasks), networks: Some(networks), cluster: Some(cluster) }
    }

    /// Sends a message through JSON; returns what arrives, the size of the largest piece and of all, before they are compressed.
    fn travel(encoder: &mut ViewEncoder, decoder: &mut ViewDecoder, message: ToNode) -> (Option<ToNode>, usize, usize) {
        let (mut arrived, mut largest, mut total) = (None, 0, 0);
        for document in encoder.encode(message) {
            assert!(arrived.is_none(), "nothing follows the end of a view");
            let document = expanded(&document, MAX_FRAME).unwrap();
            largest = largest.max(document.len());
            total += document.len();
            let Ok(ToNode::Piece(piece)) = serde_json::from_slice(&document) else { panic!("no piece") };
            arrived = decoder.take(piece).unwrap();
        }
        (arrived, largest, total)
    }

    fn debug(message: Option<&ToNode>) -> String {
        format!("{message:?}")
    }

    fn address(n: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(0x0a01_0000 + n)
    }

    /// A view made of small numbers, so that views have much in common.
    fn view(index: u64, members: &[(u8, u8)], ports: &[(u8, u8)], nodes: &[u8], networks: u8) -> NodeView {
        let mut parts = Vec::new();
        for n in 0..networks {
            let mine = members.iter().filter(|(m, _)| m % networks == n);
            let mut list: Vec<TaskEndpoint> =
                mine.map(|(m, to)| fixture::task_endpoint("web", u64::from(*m), "node1", address(u32::from(*to)))).collect();
            list.sort_by(|a, b| a.task_id.cmp(&b.task_id));
            list.dedup_by(|a, b| a.task_id == b.task_id);
            parts.push(fixture::network_part(&format!("net{n}"), format!("172.16.{n}.0/24").parse().unwrap(), list));
        }
        let mut cluster = fixture::cluster_part(nodes.iter().map(|n| fixture::peer(*n)).collect());
        cluster.nodes.sort_by(|a, b| a.node_id.cmp(&b.node_id));
        cluster.nodes.dedup_by(|a, b| a.node_id == b.node_id);
        // What several entries say of one port are its backends.
        let mut backends = BTreeMap::<u16, Vec<Ipv4Addr>>::new();
        for (port, to) in ports {
            backends.entry(u16::from(port % 5)).or_default().push(address(u32::from(*to)));
        }
        cluster.ports = backends.iter().map(|(port, to)| Arc::new(fixture::published_port(*port, 80 + *port % 2, to))).collect();
        for port in &mut cluster.ports {
            let port = Arc::make_mut(port);
            port.affinity = nodes.len().is_multiple_of(2);
            port.backends.sort_by(|a, b| a.task_id.cmp(&b.task_id));
            port.backends.dedup_by(|a, b| a.task_id == b.task_id);
        }
        let mut view = fixture::node_view(index, parts, cluster);
        let tasks =
            members.iter().map(|(m, to)| fixture::task_with_resolvers(&format!("t{m}"), "web", &format!("node{to}"), &[]));
        Arc::make_mut(&mut view.tasks).by_id = tasks.map(|t| (t.id.clone(), Arc::new(t))).collect();
        view
    }

    proptest! {
        #[test]
        fn what_arrives_is_what_was_sent(views in prop::collection::vec((
            prop::collection::vec((0_u8..12, 0_u8..3), 0..12),
            prop::collection::vec((1_u8..9, 0_u8..3), 0..8),
            prop::collection::vec(1_u8..5, 0..5),
            1_u8..4,
        ), 1..6)) {
            let shared = Arc::default();
            let mut sessions = [FORMAT, KEY_PROOF, FORMAT].map(|format| (ViewEncoder::new(Arc::clone(&shared), format), ViewDecoder::default()));
            for (index, (members, ports, nodes, networks)) in views.iter().enumerate() {
                let sent = message(&view(index as u64, members, ports, nodes, *networks));
                for (encoder, decoder) in &mut sessions {
                    let (arrived, ..) = travel(encoder, decoder, sent.clone());
                    prop_assert_eq!(debug(arrived.as_ref()), debug(Some(&sent)));
                }
            }
        }
    }

    #[test]
    fn a_part_that_is_not_sent_does_not_arrive_and_an_empty_one_does() {
        let (mut encoder, mut decoder) = (ViewEncoder::default(), ViewDecoder::default());
        let revision = Revision { incarnation: 1, index: 3 };
        let sent = ToNode::View { revision, tasks: Some(Arc::default()), networks: None, cluster: None };
        assert_eq!(debug(travel(&mut encoder, &mut decoder, sent.clone()).0.as_ref()), debug(Some(&sent)));
    }

    #[test]
    fn a_view_larger_than_a_frame_travels_in_small_pieces_and_a_change_of_it_costs_what_changed() {
        let members: Vec<TaskEndpoint> = (0..70_000)
            .map(|n| fixture::task_endpoint("web", 100_000 + n, "node1", address(u32::try_from(n).unwrap())))
            .collect();
        let network = fixture::network_part("ingress", "10.0.0.0/15".parse().unwrap(), members);
        let mut whole = fixture::node_view(1, vec![network], fixture::cluster_part(vec![fixture::peer(1)]));
        let (mut encoder, mut decoder) = (ViewEncoder::default(), ViewDecoder::default());
        let begin = std::time::Instant::now();
        let (arrived, largest, total) = travel(&mut encoder, &mut decoder, message(&whole));
        assert!(begin.elapsed().as_secs() < 60, "linear in the entries");
        assert_eq!(debug(arrived.as_ref()), debug(Some(&message(&whole))));
        assert!(total > MAX_FRAME && largest < PIECE + 4096, "{total} bytes, the largest piece {largest}");

        whole.revision.index += 1;
        let part = Arc::make_mut(&mut whole.networks).by_id.values_mut().next().unwrap();
        Arc::make_mut(&mut part.members[20_000]).backend = false;
        let (arrived, _, total) = travel(&mut encoder, &mut decoder, message(&whole));
        assert_eq!(debug(arrived.as_ref()), debug(Some(&message(&whole))));
        assert!(total < 1024, "{total} bytes for one entry");
    }

    #[test]
    fn a_first_view_is_compressed_for_nodes_that_read_that() {
        let members: Vec<TaskEndpoint> = (0..2000)
            .map(|n| fixture::task_endpoint("web", n, &format!("node{}", n % 50), address(u32::try_from(n).unwrap())))
            .collect();
        let network = fixture::network_part("ingress", "10.0.0.0/15".parse().unwrap(), members);
        let whole = fixture::node_view(1, vec![network], fixture::cluster_part(vec![fixture::peer(1)]));
        let shared = Arc::default();
        let [newer, earlier] = [FORMAT, KEY_PROOF].map(|format| {
            let documents = ViewEncoder::new(Arc::clone(&shared), format).encode(message(&whole));
            let json = documents.iter().all(|document| serde_json::from_slice::<ToNode>(document).is_ok());
            (json, documents.iter().map(|document| document.len()).sum::<usize>())
        });
        assert!(earlier.0 && !newer.0, "earlier builds are sent JSON");
        assert!(newer.1 * 6 < earlier.1, "{} bytes, {} before they are compressed", newer.1, earlier.1);
    }

    #[test]
    fn a_backend_of_many_costs_what_it_is() {
        let all: Vec<Ipv4Addr> = (0..5000).map(address).collect();
        let mut whole = fixture::node_view(1, Vec::new(), fixture::cluster_part(vec![fixture::peer(1)]));
        let mut port = fixture::published_port(8080, 80, &all);
        port.backends.sort_by(|a, b| a.task_id.cmp(&b.task_id));
        Arc::make_mut(&mut whole.cluster).ports = vec![Arc::new(port)];
        let (mut encoder, mut decoder) = (ViewEncoder::default(), ViewDecoder::default());
        let (arrived, largest, _) = travel(&mut encoder, &mut decoder, message(&whole));
        assert_eq!(debug(arrived.as_ref()), debug(Some(&message(&whole))));
        assert!(largest < PIECE + 4096, "{largest}");
        whole.revision.index += 1;
        Arc::make_mut(&mut Arc::make_mut(&mut whole.cluster).ports[0]).backends.remove(2500);
        let (arrived, _, total) = travel(&mut encoder, &mut decoder, message(&whole));
        assert_eq!(debug(arrived.as_ref()), debug(Some(&message(&whole))));
        assert!(total < 512, "{total} bytes for one backend");
    }

    #[test]
    fn services_with_http_routes_travel_to_builds_that_serve_them() {
        let service = |name: &str, backends: u8| {
            let backend = |n| HttpBackend {
                task_id: format!("t{n}").into(),
                node_id: "node1".into(),
                address: address(n),
                ports: vec![80],
            };
            let route = HttpRoute { hosts: vec![format!("{name}.example.com")], ..HttpRoute::default() };
            Arc::new(HttpService {
                service_id: name.into(),
                service_name: name.to_owned(),
                created_at: <_>::default(),
                routes: vec![route],
                certificate: None,
                problems: Vec::new(),
                holds: true,
                backends: (0..u32::from(backends)).map(backend).collect(),
            })
        };
        let shared = Arc::default();
        let mut sessions =
            [FORMAT, KEY_PROOF].map(|format| (ViewEncoder::new(Arc::clone(&shared), format), ViewDecoder::default()));
        for (index, http) in
            [vec![service("a", 1)], vec![service("a", 2), service("b", 0)], vec![service("b", 0)]].into_iter().enumerate()
        {
            let cluster = ClusterPart { http: http.clone(), ..fixture::cluster_part(vec![fixture::peer(1)]) };
            let sent = message(&fixture::node_view(index as u64, Vec::new(), cluster));
            let [newer, earlier] = sessions.each_mut().map(|(encoder, decoder)| match travel(encoder, decoder, sent.clone()).0 {
                Some(ToNode::View { cluster: Some(cluster), .. }) => cluster.http.clone(),
                other => panic!("{other:?}"),
            });
            assert_eq!((newer, earlier), (http, Vec::new()));
        }
    }

    #[test]
    fn a_piece_without_its_base_is_an_error() {
        for change in [
            ViewChange::NoMember("n1".into(), "t1".into()),
            ViewChange::NoVip("n1".into(), "s1".into()),
            ViewChange::NoNames("n1".into(), "s1".into()),
            ViewChange::NoNode("node1".into()),
            ViewChange::NoPort(Protocol::Tcp, 80),
            ViewChange::NoBackend(Protocol::Tcp, 80, "t1".into()),
        ] {
            let piece = ViewPiece { changes: vec![change.clone()], end: None };
            assert!(ViewDecoder::default().take(piece).is_err(), "{change:?}");
        }
        let end = Some(ViewEnd { cluster: true, ..ViewEnd::default() });
        assert!(ViewDecoder::default().take(ViewPiece { changes: Vec::new(), end }).is_err());
    }

    #[test]
    fn views_that_wait_are_merged() {
        let (first, second) = (view(1, &[(1, 1)], &[], &[1], 1), view(2, &[(2, 1)], &[(8, 1)], &[1], 1));
        let mut waiting = message(&first);
        let next = ToNode::View { revision: second.revision, tasks: Some(second.tasks.clone()), networks: None, cluster: None };
        merge(&mut waiting, next).unwrap();
        let merged = NodeView { tasks: second.tasks.clone(), revision: second.revision, ..first };
        assert_eq!(debug(Some(&waiting)), debug(Some(&message(&merged))));
        assert!(matches!(merge(&mut waiting, ToNode::Alive), Err(ToNode::Alive)));
    }
}
