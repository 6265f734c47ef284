//! Whatever changes in a view, following it gives what computing all of it gives, and the steps for what was touched lead
//! where the steps for all would.

use super::tests::carry_out;
use super::*;
use crate::datapath::ebpf::EbpfState;
use crate::model::Listens;
use crate::model::Revision;
use crate::model::WgKey;
use crate::model::mesh::MeshPrefix;
use crate::model::view::{Backend as PortBackend, ClusterPart, Networks, ServiceVip, Tasks};
use crate::protocol::view_delta::share_entries;
use proptest::prelude::*;
use std::sync::Arc;

/// What a view is made of, in few words.
#[derive(Clone, Debug)]
struct World {
    /// Tasks: service, node, takes connections, listens.
    tasks: BTreeMap<u8, (u8, u8, bool, bool)>,
    /// Services: published, UDP, guarded.
    services: BTreeMap<u8, (bool, bool, bool)>,
    /// The nodes' eBPF datapaths.
    ebpf: [bool; 2],
    /// Devices of containers of this node.
    devices: BTreeSet<u8>,
}

fn worlds() -> impl Strategy<Value = World> {
    let tasks = proptest::collection::btree_map(0_u8..24, (0_u8..5, 0_u8..2, any::<bool>(), any::<bool>()), 0..24);
    let published = (any::<bool>(), any::<bool>(), proptest::bool::weighted(0.1));
    let services = proptest::collection::btree_map(0_u8..5, published, 1..5);
    let ebpf = proptest::array::uniform2(proptest::bool::weighted(0.9));
    let device = (0_u8..24, proptest::bool::weighted(0.9)).prop_map(|(task, there)| there.then_some(task));
    (tasks, services, ebpf, proptest::collection::vec(device, 40)).prop_map(|(tasks, services, ebpf, devices)| World {
        tasks,
        services,
        ebpf,
        devices: devices.into_iter().flatten().collect(),
    })
}

/// A world, and changes of one thing each.
fn histories() -> impl Strategy<Value = Vec<World>> {
    let change = (0_u8..24, any::<Option<(u8, u8, bool, bool)>>(), 0_u8..12, worlds());
    (worlds(), proptest::collection::vec(change, 1..12)).prop_map(|(first, changes)| {
        let mut all = vec![first];
        for (key, task, kind, other) in changes {
            let mut next = all[all.len() - 1].clone();
            match (kind, task) {
                (0, _) => next.services = other.services,
                (1, _) => next.ebpf = other.ebpf,
                (2, _) => next.devices = other.devices,
                // Another task gets the address.
                (3, _) => {
                    let gone = next.tasks.remove(&key);
                    next.tasks.extend(gone.map(|task| ((key + 24) % 48, task)));
                }
                (_, None) => drop(next.tasks.remove(&key)),
                (_, Some((service, node, takes, listens))) => {
                    // No two tasks have one address.
                    next.tasks.remove(&(key + 24));
                    next.tasks.insert(key, (service % 5, node % 2, takes, listens));
                }
            }
            all.push(next);
        }
        all
    })
}

fn node(number: u8) -> NodeId {
    format!("n{number}").as_str().into()
}

fn address(task: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, 10 + task % 24)
}

fn view(world: &World) -> NodeView {
    let mesh = MeshPrefix("fd12:3456:789a::/48".parse().unwrap());
    let id = |service: u8| format!("service{service}");
    let task_id = |task: u8| format!("task{task:03}").as_str().into();
    let members = world.tasks.iter().map(|(task, (service, on, takes, _))| {
        Arc::new(TaskEndpoint {
            task_id: task_id(*task),
            service_id: id(*service).as_str().into(),
            service_name: id(*service),
            endpoint_mode: if *service == 4 { EndpointMode::Dnsrr } else { EndpointMode::Vip },
            aliases: Vec::new(),
            slot: 1,
            container_name: String::new(),
            node_id: node(*on),
            address: address(*task),
            backend: *takes,
        })
    });
    let vip = |service: &u8| {
        let vip = Ipv4Addr::new(10, 0, 0, 100 + service);
        Arc::new(ServiceVip { service_id: id(*service).as_str().into(), name: id(*service), vip })
    };
    let port = |(service, (_, udp, guarded)): (&u8, &(bool, bool, bool))| {
        let own = world.tasks.iter().filter(|(_, task)| task.0 == *service && task.2);
        let backend = |(task, (_, on, _, listens)): (&u8, &(u8, u8, bool, bool))| PortBackend {
            task_id: task_id(*task),
            node_id: node(*on),
            address: address(*task),
            listens: Listens { v4: *listens, v6: *listens && *service == 1 },
        };
        Arc::new(PublishedPort {
            protocol: if *udp { Protocol::Udp } else { Protocol::Tcp },
            published: 8000 + u16::from(*service),
            target: 80,
            service_id: id(*service).as_str().into(),
            service_name: id(*service),
            backends: own.map(backend).collect(),
            affinity: *service == 2,
            allow: if *guarded { vec!["192.0.2.0/24".parse().unwrap()] } else { Vec::new() },
        })
    };
    let mut ports: Vec<_> = world.services.iter().filter(|(_, service)| service.0).map(port).collect();
    ports.sort_by_key(|port| (port.protocol, port.published));
    let peer = |number: u8| Peer {
        node_id: node(number),
        hostname: format!("n{number}"),
        manager: true,
        key: WgKey([7; 32]),
        subnet: mesh.node(u16::from(number) + 1),
        ingress_addr: Ipv4Addr::new(10, 0, 0, 2 + number),
        endpoints: Vec::new(),
        containers: Vec::new(),
        ebpf: world.ebpf[usize::from(number)],
        down: false,
    };
    let network = NetworkPart {
        name: "ingress".to_owned(),
        subnet: "10.0.0.0/24".parse().unwrap(),
        gateway: Ipv4Addr::new(10, 0, 0, 1),
        internal: false,
        ingress: true,
        members: members.collect(),
        services: world.services.keys().map(vip).collect(),
    };
    NodeView {
        revision: Revision { incarnation: 1, index: 1 },
        tasks: Arc::new(Tasks::default()),
        networks: Arc::new(Networks { by_id: BTreeMap::from([("net".into(), network)]) }),
        cluster: Arc::new(ClusterPart { mesh, pools: Vec::new(), nodes: vec![peer(0), peer(1)], ports }),
    }
}

#[test]
fn a_task_that_stops_touches_its_service_and_nothing_else() {
    let tasks = (0..6).map(|task| (task, (task % 2, task % 2, true, true))).collect();
    let services = (0..5).map(|service| (service, (true, false, false))).collect();
    let world = World { tasks, services, ebpf: [true; 2], devices: (0..24).collect() };
    let mut other = world.clone();
    other.tasks.insert(3, (1, 1, false, true));
    let (me, around, none, members) = (node(0), HostDevices::default(), BTreeMap::new(), BTreeSet::new());
    let given = Inputs { me: &me, around: &around, members: &members, unavailable: &none };
    let mut followed = DesiredState::default();
    assert_eq!(followed.follow(&view(&world), &given), Changed::All, "the first one");
    assert_eq!(followed.follow(&view(&world), &given), Changed::Only(Dirty::default()));
    let port = |family| Port { protocol: packet::TCP, family, port: convert::port(8001) };
    let touched = Dirty {
        vips: [convert::v4(Ipv4Addr::new(10, 0, 0, 101))].into(),
        ports: [port(4), port(6)].into(),
        backends: [convert::v4(address(3))].into(),
    };
    assert_eq!(followed.follow(&view(&other), &given), Changed::Only(touched));
    assert_eq!(followed.desired(), &desired(&mut Built::default(), &view(&other), &given));
}

proptest! {
    #[test]
    fn following_a_view_gives_what_computing_it_gives(history in histories(), shared in any::<bool>()) {
        let (me, none, members) = (node(0), BTreeMap::new(), BTreeSet::new());
        let mut followed = DesiredState::default();
        let mut state = EbpfState { tables: Tables { room: 1 << 16, ..Tables::default() }, ..EbpfState::default() };
        let (mut space, mut memory) = (SlotAllocator::of(&state.tables), BTreeMap::new());
        let mut before: Option<NodeView> = None;
        for world in &history {
            let mut next = view(world);
            if let Some(before) = before.as_ref().filter(|_| shared) {
                share_entries(before, &mut next);
                prop_assert_eq!(&next, &view(world));
            }
            let veths = world.devices.iter().map(|task| (address(*task), (format!("v{task}"), u32::from(*task) + 1)));
            let around = HostDevices { veths: veths.collect(), ..HostDevices::default() };
            let given = Inputs { me: &me, around: &around, members: &members, unavailable: &none };
            let changed = followed.follow(&next, &given);
            let whole = desired(&mut Built::default(), &next, &given);
            prop_assert_eq!(followed.desired(), &whole);

            let mut links = followed.desired().clone();
            links.links.clear();
            let steps = plan(&links, &state, &mut space, &changed);
            carry_out(&mut state, &mut memory, &steps);
            let left = plan(&links, &state, &mut SlotAllocator::of(&state.tables), &Changed::All);
            prop_assert_eq!(left, vec![], "after {:?}", steps);
            before = Some(next);
        }
    }
}
