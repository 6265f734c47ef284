//! For random changes of a view, updating gives what computing everything gives, and the plan for the changed entries leads
//! to the same contents as a plan for all.

use super::desired::desired_datapath;
use super::maglev::TableCache;
use super::plan_tests::{apply, changes};
use super::{Changed, DesiredState, Dirty, Inputs, SlotAllocator, plan};
use crate::datapath::ebpf::{EbpfState, HostDevices, Tables};
use crate::model::fixture::{cluster_part, mesh, network_part, node_view, peer, published_port, task_endpoint};
use crate::model::service::EndpointMode;
use crate::model::view::{Backend, ClusterPart, NetworkPart, Peer, PublishedPort, ServiceVip, TaskEndpoint};
use crate::model::{Listens, NodeId, NodeView, Protocol};
use crate::protocol::view_delta::share_entries;
use proptest::prelude::*;
use skep_ebpf::{Port, convert, packet};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

/// A compact description of a view.
#[derive(Clone, Debug)]
struct Scenario {
    tasks: BTreeMap<u8, ScenarioTask>,
    services: BTreeMap<u8, ScenarioService>,
    /// Whether each node has an eBPF datapath.
    ebpf: [bool; 2],
    /// The other node's host has a further address.
    further_address: bool,
    /// Tasks of this node whose containers have a device.
    devices: BTreeSet<u8>,
}

#[derive(Clone, Debug)]
struct ScenarioTask {
    service: u8,
    node: u8,
    backend: bool,
    listens: bool,
}

#[derive(Clone, Debug)]
struct ScenarioService {
    published: bool,
    udp: bool,
    /// Its port has an allow list.
    guarded: bool,
}

fn scenario_tasks() -> impl Strategy<Value = ScenarioTask> {
    let fields = (0_u8..5, 0_u8..2, any::<bool>(), any::<bool>());
    fields.prop_map(|(service, node, backend, listens)| ScenarioTask { service, node, backend, listens })
}

fn scenarios() -> impl Strategy<Value = Scenario> {
    let tasks = proptest::collection::btree_map(0_u8..24, scenario_tasks(), 0..24);
    let service = (any::<bool>(), any::<bool>(), proptest::bool::weighted(0.1))
        .prop_map(|(published, udp, guarded)| ScenarioService { published, udp, guarded });
    let services = proptest::collection::btree_map(0_u8..5, service, 1..5);
    let ebpf = proptest::array::uniform2(proptest::bool::weighted(0.9));
    let device = (0_u8..24, proptest::bool::weighted(0.9)).prop_map(|(task, exists)| exists.then_some(task));
    let all = (tasks, services, ebpf, any::<bool>(), proptest::collection::vec(device, 40));
    all.prop_map(|(tasks, services, ebpf, further_address, devices)| Scenario {
        tasks,
        services,
        ebpf,
        further_address,
        devices: devices.into_iter().flatten().collect(),
    })
}

/// A scenario, followed by changes of one thing each.
fn histories() -> impl Strategy<Value = Vec<Scenario>> {
    let change = (0_u8..24, proptest::option::of(scenario_tasks()), 0_u8..12, scenarios());
    (scenarios(), proptest::collection::vec(change, 1..12)).prop_map(|(first, changes)| {
        let mut all = vec![first];
        for (key, task, kind, other) in changes {
            let mut next = all[all.len() - 1].clone();
            match (kind, task) {
                (0, _) => next.services = other.services,
                (1, _) => next.ebpf = other.ebpf,
                (4, _) => next.further_address = other.further_address,
                (2, _) => next.devices = other.devices,
                // The address passes to another task.
                (3, _) => {
                    let removed = next.tasks.remove(&key);
                    next.tasks.extend(removed.map(|task| ((key + 24) % 48, task)));
                }
                (_, None) => drop(next.tasks.remove(&key)),
                (_, Some(task)) => {
                    // No two tasks have the same address.
                    next.tasks.remove(&(key + 24));
                    next.tasks.insert(key, task);
                }
            }
            all.push(next);
        }
        all
    })
}

/// Nodes of a scenario are numbered from 0, those of the fixtures from 1.
fn node_id(number: u8) -> NodeId {
    format!("node{}", number + 1).into()
}

fn address(task: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, 10 + task % 24)
}

fn service_id(service: u8) -> String {
    format!("service{service}")
}

fn task_id(task: u8) -> String {
    format!("task{task:03}")
}

fn published(scenario: &Scenario, number: u8, service: &ScenarioService) -> PublishedPort {
    let tasks = scenario.tasks.iter().filter(|(_, task)| task.service == number && task.backend);
    let backends = tasks.map(|(id, task)| Backend {
        task_id: task_id(*id).into(),
        node_id: node_id(task.node),
        address: address(*id),
        listens: Listens { v4: task.listens, v6: task.listens && number == 1 },
    });
    PublishedPort {
        protocol: if service.udp { Protocol::Udp } else { Protocol::Tcp },
        service_id: service_id(number).into(),
        service_name: service_id(number),
        backends: backends.collect(),
        affinity: number == 2,
        allow: if service.guarded { vec!["192.0.2.0/24".parse().unwrap()] } else { Vec::new() },
        ..published_port(8000 + u16::from(number), 80, &[])
    }
}

fn view(scenario: &Scenario) -> NodeView {
    let endpoint = |(id, task): (&u8, &ScenarioTask)| TaskEndpoint {
        task_id: task_id(*id).into(),
        endpoint_mode: if task.service == 4 { EndpointMode::Dnsrr } else { EndpointMode::Vip },
        backend: task.backend,
        starting: !task.listens,
        ..task_endpoint(&service_id(task.service), 1, node_id(task.node).as_str(), address(*id))
    };
    let vip = |service: &u8| {
        let vip = Ipv4Addr::new(10, 0, 0, 100 + service);
        Arc::new(ServiceVip { service_id: service_id(*service).into(), name: service_id(*service), vip })
    };
    let services = scenario.services.iter().filter(|(_, service)| service.published);
    let mut ports: Vec<_> = services.map(|(number, service)| Arc::new(published(scenario, *number, service))).collect();
    ports.sort_by_key(|port| (port.protocol, port.published));
    let node = |number: u8| Peer {
        subnet: mesh().node(u16::from(number) + 1),
        ebpf: scenario.ebpf[usize::from(number)],
        addresses: if number == 1 && scenario.further_address { vec![[198, 51, 100, 7].into()] } else { Vec::new() },
        ..peer(number + 1)
    };
    let network = NetworkPart {
        services: scenario.services.keys().map(vip).collect(),
        ..network_part("ingress", "10.0.0.0/24".parse().unwrap(), scenario.tasks.iter().map(endpoint).collect())
    };
    node_view(1, vec![network], ClusterPart { ports, ..cluster_part(vec![node(0), node(1)]) })
}

#[test]
fn a_task_that_stops_changes_the_entries_of_its_service_only() {
    let task = |task: u8| ScenarioTask { service: task % 2, node: task % 2, backend: true, listens: true };
    let service = ScenarioService { published: true, udp: false, guarded: false };
    let before = Scenario {
        tasks: (0..6).map(|number| (number, task(number))).collect(),
        services: (0..5).map(|number| (number, service.clone())).collect(),
        ebpf: [true; 2],
        further_address: false,
        devices: (0..24).collect(),
    };
    let mut after = before.clone();
    after.tasks.insert(3, ScenarioTask { backend: false, ..task(3) });
    let (me, host_devices, none, members) = (node_id(0), HostDevices::default(), BTreeMap::new(), BTreeMap::new());
    let inputs = Inputs {
        me: &me,
        host_devices: &host_devices,
        members: &members,
        unavailable: &none,
        held: None,
        lost: None,
        left: None,
        udp_idle: Duration::from_mins(1),
    };
    let mut state = DesiredState::default();
    assert_eq!(state.update(&view(&before), &inputs), Changed::All, "the first view");
    assert_eq!(state.update(&view(&before), &inputs), Changed::Only(Dirty::default()));
    let port = |family| Port { protocol: packet::TCP, family, port: convert::port(8001) };
    let dirty = Dirty {
        own_containers: false,
        vips: [convert::v4(Ipv4Addr::new(10, 0, 0, 101))].into(),
        ports: [port(4), port(6)].into(),
        backends: [convert::v4(address(3))].into(),
    };
    assert_eq!(state.update(&view(&after), &inputs), Changed::Only(dirty));
    assert_eq!(state.desired(), &desired_datapath(&mut TableCache::default(), &view(&after), &inputs));
}

/// A container that starts here changes its own entry, however many others there are.
#[test]
fn a_container_that_starts_here_changes_its_own_entry_only() {
    let task = |node: u8| ScenarioTask { service: 0, node, backend: true, listens: false };
    let scenario = Scenario {
        tasks: (0..6).map(|number| (number, task(number % 2))).collect(),
        services: [(0, ScenarioService { published: true, udp: false, guarded: false })].into(),
        ebpf: [true; 2],
        further_address: false,
        devices: BTreeSet::new(),
    };
    let (me, none, view) = (node_id(0), BTreeMap::new(), view(&scenario));
    let devices = |tasks: &[u8]| HostDevices {
        veths: tasks.iter().map(|task| (address(*task), (format!("v{task}"), u32::from(*task) + 1))).collect(),
        ..HostDevices::default()
    };
    let (first, second) = (devices(&[0]), devices(&[0, 2]));
    let members = [BTreeMap::new(), BTreeMap::from([(skep_ebpf::NetnsMembership { cookie: 7, network: 1, zero: 0 }, 1)])];
    let inputs = |host_devices, members| Inputs {
        lost: None,
        left: None,
        me: &me,
        host_devices,
        members,
        unavailable: &none,
        held: None,
        udp_idle: Duration::from_mins(1),
    };
    let mut state = DesiredState::default();
    state.update(&view, &inputs(&first, &members[0]));
    for (devices, members) in [(&second, &members[0]), (&second, &members[1]), (&first, &members[0])] {
        let inputs = inputs(devices, members);
        let changed = state.update(&view, &inputs);
        assert!(matches!(&changed, Changed::Only(dirty) if dirty.backends.len() <= 1 && dirty.vips.is_empty()), "{changed:?}");
        assert_eq!(state.desired(), &desired_datapath(&mut TableCache::default(), &view, &inputs));
    }
}

proptest! {
    #[test]
    fn updating_gives_what_computing_everything_gives(history in histories(), shared in any::<bool>()) {
        let (me, none, members) = (node_id(0), BTreeMap::new(), BTreeMap::new());
        let mut desired = DesiredState::default();
        let mut state = EbpfState { tables: Tables { room: 1 << 16, ..Tables::default() }, ..EbpfState::default() };
        let (mut allocator, mut memory) = (SlotAllocator::from_tables(&state.tables), BTreeMap::new());
        let mut before: Option<NodeView> = None;
        for scenario in &history {
            let mut next = view(scenario);
            if let Some(before) = before.as_ref().filter(|_| shared) {
                share_entries(before, &mut next);
                prop_assert_eq!(&next, &view(scenario));
            }
            let veths = scenario.devices.iter().map(|task| (address(*task), (format!("v{task}"), u32::from(*task) + 1)));
            let host_devices = HostDevices { veths: veths.collect(), ..HostDevices::default() };
            let inputs = Inputs { me: &me, host_devices: &host_devices, members: &members, unavailable: &none, held: None, lost: None,
            left: None, udp_idle: Duration::from_mins(1) };
            let changed = desired.update(&next, &inputs);
            let computed = desired_datapath(&mut TableCache::default(), &next, &inputs);
            prop_assert_eq!(desired.desired(), &computed);

            let mut maps = desired.desired().clone();
            maps.links.clear();
            let steps = plan(&maps, &state, &mut allocator, &changed);
            apply(&mut state, &mut memory, &steps);
            let remaining = plan(&maps, &state, &mut SlotAllocator::from_tables(&state.tables), &Changed::All);
            prop_assert_eq!(changes(remaining), vec![], "after {:?}", steps);
            before = Some(next);
        }
    }
}
