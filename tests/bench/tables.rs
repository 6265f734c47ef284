//! Pure parts: Maglev tables and plans.

use crate::report::{Report, median, nanos};
use skep::ingress::ebpf::maglev;
use skep::model::Listens;
use skep::model::Protocol;
use skep::model::WgKey;
use skep::model::mesh::MeshPrefix;
use skep::model::service::EndpointMode;
use skep::model::view::{Backend, ClusterPart, NetworkPart, Networks, Peer, PublishedPort, ServiceVip, TaskEndpoint, Tasks};
use skep::model::{NodeId, NodeView, Revision};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

/// Tasks of each service.
pub const TASKS: u32 = 3;

pub fn me() -> NodeId {
    "n1".into()
}

fn peer(number: u16, mesh: MeshPrefix) -> Peer {
    Peer {
        node_id: format!("n{number}").as_str().into(),
        hostname: format!("n{number}"),
        manager: true,
        key: WgKey([7; 32]),
        subnet: mesh.node(number),
        ingress_addr: Ipv4Addr::from(0x0aff_0000 + u32::from(number)),
        endpoints: Vec::new(),
        containers: Vec::new(),
        ebpf: true,
        down: false,
    }
}

/// A swarm of ten nodes with so many services, each with a virtual address and a published TCP port. `gone`: the first
/// service lacks a task.
pub fn view(services: u32, gone: bool) -> NodeView {
    let mesh = MeshPrefix("fd12:3456:789a::/48".parse().unwrap());
    let (mut members, mut vips, mut ports) = (Vec::new(), Vec::new(), Vec::new());
    for service in 0..services {
        let (id, name) = (format!("service{service:05}"), format!("web-{service}"));
        let mut backends = Vec::new();
        for task in 0..TASKS {
            let address = Ipv4Addr::from(0x0a10_0000 + service * TASKS + task);
            let backend = !(gone && service == 0 && task == 0);
            let node: NodeId = format!("n{}", 2 + (service + task) % 9).as_str().into();
            let task_id: skep::model::TaskId = format!("task{service:05}x{task}").as_str().into();
            if backend {
                let listens = Listens { v4: true, v6: false };
                backends.push(Backend { task_id: task_id.clone(), node_id: node.clone(), address, listens });
            }
            members.push(Arc::new(TaskEndpoint {
                task_id,
                service_id: id.as_str().into(),
                service_name: name.clone(),
                endpoint_mode: EndpointMode::Vip,
                aliases: Vec::new(),
                slot: task.into(),
                container_name: format!("{name}.{task}"),
                node_id: node,
                address,
                backend,
            }));
        }
        let vip = Ipv4Addr::from(0x0a20_0000 + service);
        vips.push(Arc::new(ServiceVip { service_id: id.as_str().into(), name: name.clone(), vip }));
        ports.push(Arc::new(PublishedPort {
            protocol: Protocol::Tcp,
            published: u16::try_from(10_000 + service).unwrap(),
            target: 80,
            service_id: id.as_str().into(),
            service_name: name,
            backends,
            affinity: false,
            allow: Vec::new(),
        }));
    }
    let network = NetworkPart {
        name: "ingress".to_owned(),
        subnet: "10.0.0.0/8".parse().unwrap(),
        gateway: Ipv4Addr::new(10, 0, 0, 1),
        internal: false,
        ingress: true,
        members,
        services: vips,
    };
    NodeView {
        revision: Revision { incarnation: 1, index: 1 + u64::from(gone) },
        tasks: Arc::new(Tasks::default()),
        networks: Arc::new(Networks { by_id: BTreeMap::from([("net".into(), network)]) }),
        cluster: Arc::new(ClusterPart { mesh, pools: Vec::new(), nodes: (1..=10).map(|n| peer(n, mesh)).collect(), ports }),
    }
}

pub fn run(report: &mut Report) {
    report.section(
        "Maglev tables",
        "Median of 21 builds; backends are consecutive addresses. Moved: positions that belong to another backend after the one in the middle has gone.",
        &["backends", "slots", "build, ms", "goal", "imbalance (most ÷ mean − 1)", "goal", "moved beyond the removed share", "goal"],
    );
    for count in [2_u32, 3, 10, 100, 1_000] {
        let all: Vec<Ipv4Addr> = (0..count).map(|i| Ipv4Addr::from(0x0a00_0002 + i)).collect();
        let mut times = Vec::new();
        for _ in 0..21 {
            let start = Instant::now();
            std::hint::black_box(maglev::table(std::hint::black_box(&all)));
            times.push(nanos(start.elapsed()) / 1e6);
        }
        let before = maglev::table(&all);
        let mut share = vec![0_u32; all.len()];
        for at in &before {
            share[*at as usize] += 1;
        }
        let mean = before.len() as f64 / all.len() as f64;
        let imbalance = f64::from(*share.iter().max().unwrap()) / mean - 1.0;
        let mut fewer = all.clone();
        let gone = fewer.remove(all.len() / 2);
        let after = maglev::table(&fewer);
        let moved = if after.len() == before.len() {
            let moved = before.iter().zip(&after).filter(|(b, a)| all[**b as usize] != fewer[**a as usize]).count();
            let had_to = before.iter().filter(|at| all[**at as usize] == gone).count();
            format!("{:.2} points", (moved - had_to) as f64 / before.len() as f64 * 100.0)
        } else {
            "another size".to_owned()
        };
        let goal = if count == 1_000 { "≤ 2" } else { "" };
        report.row(&[
            count.to_string(),
            before.len().to_string(),
            format!("{:.4}", median(&times)),
            goal.to_owned(),
            format!("{:.2} %", imbalance * 100.0),
            "≤ 1 %".to_owned(),
            moved,
            "≤ 1 point".to_owned(),
        ]);
    }
}
