//! The eBPF datapath alone, in a host of the lab: kernel memory, one change among many services, the cost of the hooks for
//! datagrams that are not sent to the swarm.

use crate::report::{Report, median, nanos, spread};
use crate::work::{Namespace, loopback_datagrams};
use crate::{stats, tables};
use skep::datapath::ebpf::{EbpfDatapath, EbpfStep, Hook, HookSide, ProgramLink, TableNeeds};
use skep::datapath::mesh::Mesh;
use skep::ingress::ebpf::{Changed, DesiredDatapath, DesiredState, Inputs, SlotAllocator, plan};
use skep::lab::Lab;
use skep::model::NodeView;
use skep::protocol::view_delta::share_entries;
use std::collections::BTreeMap;
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

pub fn run(report: &mut Report) {
    let outside = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let lab = outside.block_on(Lab::new(crate::lab::lab_dir("datapath"))).unwrap();
    let host = outside.block_on(lab.host("n1", 1)).unwrap();
    let namespace = std::sync::Arc::new(std::fs::File::open(format!("/proc/{}/ns/net", host.pid())).unwrap());
    // Its threads are in the host's namespace, as those of the host's daemon would be.
    let inside = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .on_thread_start(move || skep::datapath::netns::enter(namespace.as_fd()).unwrap())
        .build()
        .unwrap();
    let dir = host.dir().to_owned();
    for services in [1, 100, 10_000] {
        let folder = dir.join(format!("run{services}"));
        let measured = inside.block_on(inside.spawn(async move { change(&folder, services).await })).unwrap();
        if services == 1 {
            report.section(
                "One backend of one service is removed, among so many services",
                "Ten nodes; every service has a virtual address, a published TCP port and three tasks. From the view to the kernel's maps: observe devices \
                 and programs, update the desired contents, plan the difference to the last known contents, apply the steps. Not in the sum: sharing the \
                 entries of an arriving view that did not change (views arrive whole), and the slow tick, which reads all maps and computes everything. \
                 Milliseconds, median [least … most] of 10.",
                &["services", "observe", "update", "plan", "apply", "sum", "goal", "share entries", "read all maps", "compute everything"],
            );
        }
        let m = &measured;
        let all: Vec<f64> = (0..m.plan.len()).map(|i| m.observe[i] + m.update[i] + m.plan[i] + m.apply[i]).collect();
        report.row(&[
            services.to_string(),
            spread(&m.observe, 2),
            spread(&m.update, 2),
            spread(&m.plan, 2),
            spread(&m.apply, 2),
            spread(&all, 2),
            "≤ 1".to_owned(),
            spread(&m.share, 2),
            spread(&m.read, 1),
            spread(&m.recompute, 1),
        ]);
        if services == 10_000 {
            report.section(
                "Kernel memory of 10,000 services",
                "What the kernel reports for each map (`memlock` in fdinfo), with 10,000 virtual addresses, 10,000 published ports, 30,000 tasks. Goal for the sum: ≤ 200 MB.",
                &["map", "MB", "max_entries"],
            );
            let mut all = 0;
            for (name, (bytes, most)) in &measured.maps {
                all += bytes;
                report.row(&[name.clone(), format!("{:.1}", *bytes as f64 / 1e6), most.to_string()]);
            }
            report.row(&["sum".to_owned(), format!("{:.1}", all as f64 / 1e6), String::new()]);
        }
    }
    let folder = dir.join("hooks");
    let rows =
        inside.block_on(inside.spawn(async move { unrelated(&folder, &Namespace::open("/proc/self/ns/net")).await })).unwrap();
    report.section(
        "Datagrams that are not sent to the swarm",
        "sendto and recvfrom with an address on loopback, in a namespace on none of our networks, with and without the socket hooks attached. Nanoseconds per datagram (both calls).",
        &["", "without", "with", "difference", "run time of the hooks (bpf_stats)"],
    );
    report.row(&rows);
    outside.block_on(async {
        host.stop().await;
        lab.stop().await.unwrap();
    });
}

#[derive(Default)]
struct Measured {
    share: Vec<f64>,
    read: Vec<f64>,
    recompute: Vec<f64>,
    observe: Vec<f64>,
    update: Vec<f64>,
    plan: Vec<f64>,
    apply: Vec<f64>,
    maps: BTreeMap<String, (u64, u64)>,
}

async fn change(dir: &std::path::Path, services: u32) -> Measured {
    let mesh = Mesh::open(&dir.join("mesh")).await.unwrap();
    let ebpf = EbpfDatapath::open(dir, mesh.clone(), 0).await.unwrap();
    let count = services as usize;
    ebpf.make_room(TableNeeds { backends: count * tables::TASKS as usize, ports: 2 * count, vips: count }, None).await.unwrap();
    let (members, unavailable) = (BTreeMap::new(), BTreeMap::new());
    let me = tables::me();
    let (mut measured, mut desired) = (Measured::default(), DesiredState::default());
    let mut state = ebpf.observe().await.unwrap();
    let mut allocator = SlotAllocator::from_tables(&state.tables);
    let mut view: Option<NodeView> = None;
    for round in 0..11 {
        let mut next = tables::view(services, round % 2 == 1);
        let arrived = Instant::now();
        if let Some(before) = &view {
            share_entries(before, &mut next);
        }
        let start = Instant::now();
        state = ebpf.observe_around(Some(state.tables)).await.unwrap();
        let observed = Instant::now();
        let inputs = Inputs {
            me: &me,
            host_devices: &state.host_devices,
            members: &members,
            unavailable: &unavailable,
            held: None,
            lost: None,
            left: None,
            udp_idle: Duration::from_mins(1),
        };
        let changed = desired.update(&next, &inputs);
        let updated = Instant::now();
        assert_eq!(changed == Changed::All, round == 0);
        let steps = plan(desired.desired(), &state, &mut allocator, &changed);
        // Only the maps: the hooks of other hosts on this machine are not disturbed.
        let steps: Vec<EbpfStep> =
            steps.into_iter().filter(|step| !matches!(step, EbpfStep::Attach(_) | EbpfStep::Detach(_))).collect();
        let planned = Instant::now();
        ebpf.apply(&steps).await.unwrap();
        for step in &steps {
            state.tables.carry_out(step);
        }
        let done = Instant::now();
        if round > 0 {
            let mut add = |all: fn(&mut Measured) -> &mut Vec<f64>, from: Instant, to: Instant| {
                all(&mut measured).push(nanos(to - from) / 1e6);
            };
            add(|m| &mut m.share, arrived, start);
            add(|m| &mut m.observe, start, observed);
            add(|m| &mut m.update, observed, updated);
            add(|m| &mut m.plan, updated, planned);
            add(|m| &mut m.apply, planned, done);
        }
        view = Some(next);
    }
    for _ in 0..3 {
        let start = Instant::now();
        let read = ebpf.observe().await.unwrap();
        let read_at = Instant::now();
        let inputs = Inputs {
            me: &me,
            host_devices: &read.host_devices,
            members: &members,
            unavailable: &unavailable,
            held: None,
            lost: None,
            left: None,
            udp_idle: Duration::from_mins(1),
        };
        assert!(desired.recompute(view.as_ref().unwrap(), &inputs), "updates give what computing everything gives");
        let mut maps = DesiredDatapath::clone(desired.desired());
        maps.links.clear();
        let mut steps = plan(&maps, &read, &mut SlotAllocator::from_tables(&read.tables), &Changed::All);
        steps.retain(|step| !matches!(step, EbpfStep::FreeBlock(_)));
        assert_eq!(steps, [], "the remembered contents are those of the maps");
        measured.read.push(nanos(read_at - start) / 1e6);
        measured.recompute.push(nanos(read_at.elapsed()) / 1e6);
    }
    measured.maps = stats::maps(std::process::id());
    ebpf.remove().await.unwrap();
    drop(ebpf);
    mesh.remove().unwrap();
    measured
}

async fn unrelated(dir: &std::path::Path, namespace: &Namespace) -> Vec<String> {
    let mesh = Mesh::open(&dir.join("mesh")).await.unwrap();
    let ebpf = EbpfDatapath::open(dir, mesh.clone(), 0).await.unwrap();
    let hooks = Hook::ALL.into_iter().filter(|hook| hook.side() == HookSide::Cgroup);
    let links: Vec<ProgramLink> = hooks.map(|hook| ProgramLink { hook, device: String::new(), index: 0 }).collect();
    let on: Vec<EbpfStep> = links.iter().cloned().map(EbpfStep::Attach).collect();
    let off: Vec<EbpfStep> = links.into_iter().map(EbpfStep::Detach).collect();
    let (mut without, mut with) = (Vec::new(), Vec::new());
    // Many short slices, because other processes use the machine too.
    for _ in 0..24 {
        for (steps, all) in [(&off, &mut without), (&on, &mut with)] {
            ebpf.apply(steps).await.unwrap();
            let (count, time) = loopback_datagrams(namespace)(Duration::from_millis(60));
            all.push(nanos(time) / count);
        }
    }
    let counting = aya::sys::enable_stats(aya::sys::Stats::RunTime).unwrap();
    let before = stats::runs(std::process::id());
    loopback_datagrams(namespace)(Duration::from_millis(300));
    let ran = stats::between(&before, &stats::runs(std::process::id()));
    drop(counting);
    ebpf.apply(&off).await.unwrap();
    ebpf.remove().await.unwrap();
    drop(ebpf);
    mesh.remove().unwrap();
    let hooks: Vec<String> = ran.iter().map(|(name, (_, time))| format!("{name} {time:.0} ns")).collect();
    let differences: Vec<f64> = with.iter().zip(&without).map(|(with, without)| with - without).collect();
    let difference = median(&differences);
    vec!["one datagram".to_owned(), spread(&without, 0), spread(&with, 0), format!("{difference:.0}"), hooks.join(", ")]
}
