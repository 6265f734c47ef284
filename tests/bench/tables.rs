//! Pure parts: Maglev tables and plans.

use crate::report::{Report, median, nanos};
use skep::ingress::ebpf::maglev;
use skep::model::fixture::{cluster_part, mesh, network_part, node_view, peer, published_port, task_endpoint};
use skep::model::view::{Backend, ClusterPart, NetworkPart, Peer, PublishedPort, ServiceVip, TaskEndpoint};
use skep::model::{Listens, NodeId, NodeView};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

/// Tasks of each service.
pub const TASKS: u32 = 3;

pub fn me() -> NodeId {
    "node1".into()
}

fn node(number: u8) -> Peer {
    let ingress_addr = Ipv4Addr::from(0x0aff_0000 + u32::from(number));
    Peer { subnet: mesh().node(number.into()), ingress_addr, ebpf: true, ..peer(number) }
}

/// A swarm of ten nodes with so many services, each with a virtual address and a published TCP port. With `removed` the
/// first task of the first service is no backend.
pub fn view(services: u32, removed: bool) -> NodeView {
    let (mut members, mut vips, mut ports) = (Vec::new(), Vec::new(), Vec::new());
    for service in 0..services {
        let (id, name) = (format!("service{service:05}"), format!("web-{service}"));
        let mut backends = Vec::new();
        for task in 0..TASKS {
            let address = Ipv4Addr::from(0x0a10_0000 + service * TASKS + task);
            let backend = !(removed && service == 0 && task == 0);
            let node_id: NodeId = format!("node{}", 2 + (service + task) % 9).into();
            let task_id: skep::model::TaskId = format!("task{service:05}x{task}").into();
            if backend {
                let listens = Listens { v4: true, v6: false };
                backends.push(Backend { task_id: task_id.clone(), node_id: node_id.clone(), address, listens });
            }
            let endpoint = task_endpoint(&id, task.into(), node_id.as_str(), address);
            members.push(TaskEndpoint { task_id, service_name: name.clone(), backend, ..endpoint });
        }
        let vip = Ipv4Addr::from(0x0a20_0000 + service);
        vips.push(Arc::new(ServiceVip { service_id: id.as_str().into(), name: name.clone(), vip }));
        let published = u16::try_from(10_000 + service).unwrap();
        ports.push(Arc::new(PublishedPort {
            service_id: id.into(),
            service_name: name,
            backends,
            ..published_port(published, 80, &[])
        }));
    }
    let network = NetworkPart { services: vips, ..network_part("ingress", "10.0.0.0/8".parse().unwrap(), members) };
    let cluster = ClusterPart { ports, ..cluster_part((1..=10).map(node).collect()) };
    node_view(1 + u64::from(removed), vec![network], cluster)
}

pub fn run(report: &mut Report) {
    report.section(
        "Maglev tables",
        "Median of 21 builds; backends are consecutive addresses. Moved: slots that belong to another backend after the one in the middle was removed.",
        &["backends", "slots", "build, ms", "goal", "imbalance (most ÷ mean − 1)", "goal", "moved beyond the removed share", "goal"],
    );
    for count in [2_u32, 3, 10, 100, 1_000] {
        let all: Vec<Ipv4Addr> = (0..count).map(|i| Ipv4Addr::from(0x0a00_0002 + i)).collect();
        let mut times = Vec::new();
        for _ in 0..21 {
            let start = Instant::now();
            std::hint::black_box(maglev::table(7, std::hint::black_box(&all)));
            times.push(nanos(start.elapsed()) / 1e6);
        }
        let before = maglev::table(7, &all);
        let mut share = vec![0_u32; all.len()];
        for backend in &before {
            share[*backend as usize] += 1;
        }
        let mean = before.len() as f64 / all.len() as f64;
        let imbalance = f64::from(*share.iter().max().unwrap()) / mean - 1.0;
        let mut fewer = all.clone();
        let removed = fewer.remove(all.len() / 2);
        let after = maglev::table(7, &fewer);
        let moved = if after.len() == before.len() {
            let moved = before.iter().zip(&after).filter(|(b, a)| all[**b as usize] != fewer[**a as usize]).count();
            let required = before.iter().filter(|b| all[**b as usize] == removed).count();
            format!("{:.2} points", (moved - required) as f64 / before.len() as f64 * 100.0)
        } else {
            "other size".to_owned()
        };
        let goal = if count == 1_000 { "≤ 2" } else { "" };
        report.row(&[
            count.to_string(),
            before.len().to_string(),
            format!("{:.4}", median(&times)),
            goal.to_owned(),
            format!("{:.2} %", imbalance * 100.0),
            "≤ 2.5 %".to_owned(),
            moved,
            "≤ 1 point".to_owned(),
        ]);
    }
}
