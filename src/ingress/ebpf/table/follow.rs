//! What shall be there, followed from view to view: of a change only what it touches is computed anew. Gives what
//! [`desired`] gives; the loop computes that all the same whenever it reads the maps.

use super::{Desired, Inputs, Nodes, Planes, backend, desired, frontend, nodes, port_key, takes_connections};
use crate::datapath::ebpf::{Hook, HostDevices, ports_unavailable};
use crate::ingress::ebpf::maglev::Built;
use crate::model::IpFamily;
use crate::model::mesh::MeshPrefix;
use crate::model::view::{NetworkPart, TaskEndpoint};
use crate::model::{NetworkId, NodeId, NodeView, Protocol};
use crate::protocol::entries::differing;
use ipnet::{Ipv4Net, Ipv6Net};
use skep_ebpf::{NetnsMembership, Port, V4, convert};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

/// Keys of entries that may be others than they were.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Dirty {
    /// Virtual addresses.
    pub vips: BTreeSet<V4>,
    /// Published ports.
    pub ports: BTreeSet<Port>,
    /// Containers.
    pub backends: BTreeSet<V4>,
}

/// What a change touches.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Changed {
    /// Anything.
    All,
    /// Nothing but these.
    Only(Dirty),
}

impl Changed {
    /// What is touched, if not anything.
    pub(super) fn touched(&self) -> Option<&Dirty> {
        match self {
            Self::All => None,
            Self::Only(touched) => Some(touched),
        }
    }
}

/// What shall be there, and the view that it is from.
#[derive(Default)]
pub struct DesiredState {
    desired: Desired,
    last: Option<(NodeView, Dependencies)>,
    built: Built,
}

impl DesiredState {
    /// What shall be there.
    #[must_use]
    pub fn desired(&self) -> &Desired {
        &self.desired
    }

    /// Computes all of it. Whether it is what it was.
    pub fn whole(&mut self, view: &NodeView, given: &Inputs) -> bool {
        let desired = desired(&mut self.built, view, given);
        let (before, now) = (self.last.take(), (view.clone(), Dependencies::of(view, given)));
        let same = self.desired == desired;
        debug_assert!(same || before.as_ref() != Some(&now), "the same view was followed to something else");
        self.desired = desired;
        self.last = Some(now);
        same
    }

    /// Goes on to a view.
    pub fn follow(&mut self, view: &NodeView, given: &Inputs) -> Changed {
        let ground = Dependencies::of(view, given);
        if let Some((before, at)) = self.last.take()
            && at == ground
            && let Some(touched) = self.touch(&before, view, given)
        {
            self.last = Some((view.clone(), ground));
            return Changed::Only(touched);
        }
        self.whole(view, given);
        Changed::All
    }

    /// The next view is computed as a whole.
    pub fn forget(&mut self) {
        self.last = None;
    }

    /// `None`: what changed is not of one entry alone.
    fn touch(&mut self, before: &NodeView, view: &NodeView, given: &Inputs) -> Option<Dirty> {
        let mut touched = Dirty::default();
        let nodes = nodes(view);
        for (id, now) in &view.networks.by_id {
            self.touch_network(before.networks.by_id.get(id)?, now, &nodes, given, &mut touched)?;
        }
        self.touch_ports(before, view, given, &mut touched)?;
        Some(touched)
    }

    fn touch_network(
        &mut self,
        before: &NetworkPart,
        now: &NetworkPart,
        nodes: &Nodes,
        given: &Inputs,
        touched: &mut Dirty,
    ) -> Option<()> {
        if differing(&before.services, &now.services).next().is_some() {
            return None;
        }
        let tasks: Vec<_> = differing(&before.members, &now.members).collect();
        let mut vips: BTreeMap<V4, BTreeSet<Ipv4Addr>> = BTreeMap::new();
        let mut leads = |task: &TaskEndpoint, to: bool| {
            let Ok(at) = now.services.binary_search_by(|service| service.service_id.cmp(&task.service_id)) else { return };
            let vip = convert::v4(now.services[at].vip);
            let there =
                || self.desired.vips.get(&vip).into_iter().flat_map(|(.., slots)| slots.iter().copied().map(convert::to_v4));
            let backends = vips.entry(vip).or_insert_with(|| there().collect());
            if to {
                backends.insert(task.address)
            } else {
                backends.remove(&task.address)
            };
        };
        // Those that go before those that come: an address may pass from one to the other.
        for task in tasks.iter().filter_map(|(was, _)| *was) {
            touched.backends.insert(convert::v4(task.address));
            self.desired.backends.remove(&convert::v4(task.address));
            if takes_connections(task) {
                leads(task, false);
            }
        }
        for task in tasks.iter().filter_map(|(_, is)| *is) {
            touched.backends.insert(convert::v4(task.address));
            self.desired.backends.extend(backend(nodes, given.me, given.around, task));
            if takes_connections(task) {
                leads(task, true);
            }
        }
        for (vip, backends) in vips {
            let entry = self.desired.vips.get_mut(&vip)?;
            entry.2 = backends.into_iter().map(convert::v4).collect();
            touched.vips.insert(vip);
        }
        Some(())
    }

    fn touch_ports(&mut self, before: &NodeView, view: &NodeView, given: &Inputs, touched: &mut Dirty) -> Option<()> {
        let planes = Planes::of(view, given.unavailable);
        let ports: Vec<_> = differing(&before.cluster.ports, &view.cluster.ports).collect();
        let sides = || ports.iter().flat_map(|(was, is)| [*was, *is]).flatten();
        // Whom else they name is in tables that other ports share.
        if sides().any(|port| !port.allow.is_empty()) {
            return None;
        }
        for key in sides().flat_map(|port| IpFamily::ALL.map(|family| port_key(port, family))) {
            touched.ports.insert(key);
            self.desired.ports.remove(&key);
        }
        if ports_unavailable(given.unavailable).is_some() {
            return Some(());
        }
        for port in ports.iter().filter_map(|(_, is)| *is).filter(|port| port.protocol != Protocol::Sctp) {
            for family in IpFamily::ALL {
                frontend(&mut self.built, &planes, port, family, &mut self.desired);
            }
        }
        Some(())
    }
}

/// What every entry stands on besides its own words in the view.
#[derive(PartialEq)]
struct Dependencies {
    mesh: MeshPrefix,
    pools: Vec<Ipv4Net>,
    nodes: Vec<(NodeId, String, Ipv6Net, bool)>,
    networks: Vec<(NetworkId, Ipv4Net)>,
    around: HostDevices,
    members: BTreeSet<NetnsMembership>,
    unavailable: BTreeMap<Hook, String>,
}

impl Dependencies {
    fn of(view: &NodeView, given: &Inputs) -> Self {
        let cluster = &view.cluster;
        Self {
            mesh: cluster.mesh,
            pools: cluster.pools.clone(),
            nodes: cluster.nodes.iter().map(|n| (n.node_id.clone(), n.hostname.clone(), n.subnet, n.ebpf)).collect(),
            networks: view.networks.by_id.iter().map(|(id, network)| (id.clone(), network.subnet)).collect(),
            around: given.around.clone(),
            members: given.members.clone(),
            unavailable: given.unavailable.clone(),
        }
    }
}
