//! The eBPF datapath by itself, in a host of the lab: kernel memory, one change among many services, the price of the hooks
//! for datagrams that have nothing to do with it.

use crate::report::{Report, median, nanos, spread};
use crate::work::{Place, loose_datagrams};
use crate::{stats, tables};
use skep::datapath::ebpf::{EbpfDatapath, EbpfStep, Hook, HookSide, ProgramLink};
use skep::datapath::mesh::Mesh;
use skep::ingress::ebpf::table::{Changed, Desired, DesiredState, Inputs, SlotAllocator, plan};
use skep::lab::Lab;
use skep::model::NodeView;
use skep::protocol::view_delta::share_entries;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

pub fn run(report: &mut Report) {
    let outside = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let lab = outside.block_on(Lab::new(crate::lab::lab_dir("plane"))).unwrap();
    let host = outside.block_on(lab.host("n1", 1)).unwrap();
    let place = format!("/proc/{}/ns/net", host.pid());
    let namespace = std::sync::Arc::new(std::fs::File::open(&place).unwrap());
    // Threads in the host's namespace: where its daemon would be.
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
                "One backend of one service goes, among so many services",
                "Ten nodes; every service has a virtual address, a published TCP port and three tasks. From the view to the kernel's maps: look at devices \
                 and programs, follow the view to what shall be, the difference to what was left, carry it out. Beside it, not in the sum: what a view's \
                 arrival costs to tell its entries apart (views arrive whole), and what the slow tick does: read all maps and compute all anew. \
                 Milliseconds, median [least … most] of 10.",
                &["services", "look", "what shall be", "difference", "carry out", "all", "goal", "arrival", "read all maps", "compute all"],
            );
        }
        let m = &measured;
        let all: Vec<f64> = (0..m.plan.len()).map(|i| m.look[i] + m.shall[i] + m.plan[i] + m.apply[i]).collect();
        report.row(&[
            services.to_string(),
            spread(&m.look, 2),
            spread(&m.shall, 2),
            spread(&m.plan, 2),
            spread(&m.apply, 2),
            spread(&all, 2),
            "≤ 1".to_owned(),
            spread(&m.share, 2),
            spread(&m.read, 1),
            spread(&m.whole, 1),
        ]);
        if services == 10_000 {
            report.section(
                "Kernel memory of 10,000 services",
                "What the kernel says of each map (`memlock` in fdinfo), with 10,000 virtual addresses, 10,000 published ports, 30,000 tasks. Goal of all: ≤ 200 MB.",
                &["map", "MB", "entries at most"],
            );
            let mut all = 0;
            for (name, (bytes, most)) in &measured.maps {
                all += bytes;
                report.row(&[name.clone(), format!("{:.1}", *bytes as f64 / 1e6), most.to_string()]);
            }
            report.row(&["all".to_owned(), format!("{:.1}", all as f64 / 1e6), String::new()]);
        }
    }
    let folder = dir.join("hooks");
    let rows = inside.block_on(inside.spawn(async move { unrelated(&folder, &Place::at("/proc/self/ns/net")).await })).unwrap();
    report.section(
        "Datagrams that have nothing to do with skep",
        "sendto and recvfrom with an address on loopback, in a namespace on no network of ours, with the socket hooks attached and not. Nanoseconds per datagram (both calls).",
        &["", "without", "with", "difference", "own time of the hooks (bpf_stats)"],
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
    whole: Vec<f64>,
    look: Vec<f64>,
    shall: Vec<f64>,
    plan: Vec<f64>,
    apply: Vec<f64>,
    maps: std::collections::BTreeMap<String, (u64, u64)>,
}

async fn change(dir: &std::path::Path, services: u32) -> Measured {
    let mesh = Mesh::open(&dir.join("mesh")).await.unwrap();
    let ebpf = EbpfDatapath::open(dir, mesh.clone()).await.unwrap();
    let none = (BTreeSet::new(), BTreeMap::new());
    let me = tables::me();
    let (mut measured, mut followed) = (Measured::default(), DesiredState::default());
    let mut state = ebpf.observe().await.unwrap();
    let mut space = SlotAllocator::of(&state.tables);
    let mut view: Option<NodeView> = None;
    for round in 0..11 {
        let mut next = tables::view(services, round % 2 == 1);
        let arrived = Instant::now();
        if let Some(before) = &view {
            share_entries(before, &mut next);
        }
        let start = Instant::now();
        state = ebpf.observe_around(Some(state.tables)).await.unwrap();
        let looked = Instant::now();
        let given = Inputs { me: &me, around: &state.host_devices, members: &none.0, unavailable: &none.1 };
        let changed = followed.follow(&next, &given);
        let computed = Instant::now();
        assert_eq!(changed == Changed::All, round == 0);
        let steps = plan(followed.desired(), &state, &mut space, &changed);
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
            add(|m| &mut m.look, start, looked);
            add(|m| &mut m.shall, looked, computed);
            add(|m| &mut m.plan, computed, planned);
            add(|m| &mut m.apply, planned, done);
        }
        view = Some(next);
    }
    for _ in 0..3 {
        let start = Instant::now();
        let read = ebpf.observe().await.unwrap();
        let there = Instant::now();
        let given = Inputs { me: &me, around: &read.host_devices, members: &none.0, unavailable: &none.1 };
        assert!(followed.whole(view.as_ref().unwrap(), &given), "what was followed is what is computed");
        let mut maps = Desired::clone(followed.desired());
        maps.links.clear();
        assert_eq!(
            plan(&maps, &read, &mut SlotAllocator::of(&read.tables), &Changed::All),
            [],
            "what is remembered is what is there"
        );
        measured.read.push(nanos(there - start) / 1e6);
        measured.whole.push(nanos(there.elapsed()) / 1e6);
    }
    measured.maps = stats::maps(std::process::id());
    ebpf.remove().await.unwrap();
    drop(ebpf);
    mesh.remove().unwrap();
    measured
}

async fn unrelated(dir: &std::path::Path, place: &Place) -> Vec<String> {
    let mesh = Mesh::open(&dir.join("mesh")).await.unwrap();
    let ebpf = EbpfDatapath::open(dir, mesh.clone()).await.unwrap();
    let hooks = Hook::ALL.into_iter().filter(|hook| hook.side() == HookSide::Cgroup);
    let links: Vec<ProgramLink> = hooks.map(|hook| ProgramLink { hook, device: String::new(), index: 0 }).collect();
    let on: Vec<EbpfStep> = links.iter().cloned().map(EbpfStep::Attach).collect();
    let off: Vec<EbpfStep> = links.into_iter().map(EbpfStep::Detach).collect();
    let (mut without, mut with) = (Vec::new(), Vec::new());
    // Many short turns: others work on the machine too.
    for _ in 0..24 {
        for (steps, all) in [(&off, &mut without), (&on, &mut with)] {
            ebpf.apply(steps).await.unwrap();
            let (count, time) = loose_datagrams(place)(Duration::from_millis(60));
            all.push(nanos(time) / count);
        }
    }
    let counting = aya::sys::enable_stats(aya::sys::Stats::RunTime).unwrap();
    let before = stats::runs(std::process::id());
    loose_datagrams(place)(Duration::from_millis(300));
    let ran = stats::between(&before, &stats::runs(std::process::id()));
    drop(counting);
    ebpf.apply(&off).await.unwrap();
    ebpf.remove().await.unwrap();
    drop(ebpf);
    mesh.remove().unwrap();
    let own: Vec<String> = ran.iter().map(|(name, (_, time))| format!("{name} {time:.0} ns")).collect();
    let more: Vec<f64> = with.iter().zip(&without).map(|(with, without)| with - without).collect();
    let more = median(&more);
    vec!["one datagram".to_owned(), spread(&without, 0), spread(&with, 0), format!("{more:.0}"), own.join(", ")]
}
