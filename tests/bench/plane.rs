//! The fast plane by itself, in a host of the lab: kernel memory, one change among many services, the price of the hooks
//! for datagrams that have nothing to do with it.

use crate::report::{Report, median, nanos, spread};
use crate::work::{Place, loose_datagrams, rounds};
use crate::{stats, tables};
use skep::balance::table::plan;
use skep::datapath::fast::{Fast, Hook, Link, Side, Step};
use skep::datapath::mesh::Mesh;
use skep::lab::Lab;
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
                "One backend of one service goes: the maps",
                "As above, with the kernel's maps. Every map is read, the difference computed and carried out. Median [least … most] of 5.",
                &["services", "read all, ms", "plan, ms", "carry out, ms", "goal of plan and carrying out, ms"],
            );
        }
        report.row(&[
            services.to_string(),
            spread(&measured.read, 2),
            spread(&measured.plan, 2),
            spread(&measured.apply, 3),
            "≤ 1".to_owned(),
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
    read: Vec<f64>,
    plan: Vec<f64>,
    apply: Vec<f64>,
    maps: std::collections::BTreeMap<String, (u64, u64)>,
}

async fn change(dir: &std::path::Path, services: u32) -> Measured {
    let mesh = Mesh::open(&dir.join("mesh")).await.unwrap();
    let fast = Fast::open(dir, mesh.clone()).await.unwrap();
    let views = [tables::view(services, false), tables::view(services, true)];
    let mut measured = Measured::default();
    for round in 0..6 {
        let start = Instant::now();
        let state = fast.observe().await.unwrap();
        let read = nanos(start.elapsed()) / 1e6;
        let mut wanted = tables::wanted(&views[round % 2], &state.surroundings);
        // Only the maps: the hooks of other hosts on this machine are not disturbed.
        wanted.links.clear();
        let start = Instant::now();
        let steps = plan(&wanted, &state);
        let planned = nanos(start.elapsed()) / 1e6;
        let start = Instant::now();
        fast.apply(&steps).await.unwrap();
        if round > 0 {
            measured.read.push(read);
            measured.plan.push(planned);
            measured.apply.push(nanos(start.elapsed()) / 1e6);
        }
    }
    measured.maps = stats::maps(std::process::id());
    fast.remove().await.unwrap();
    drop(fast);
    mesh.remove().unwrap();
    measured
}

async fn unrelated(dir: &std::path::Path, place: &Place) -> Vec<String> {
    let mesh = Mesh::open(&dir.join("mesh")).await.unwrap();
    let fast = Fast::open(dir, mesh.clone()).await.unwrap();
    let hooks = Hook::ALL.into_iter().filter(|hook| hook.side() == Side::Cgroup);
    let links: Vec<Link> = hooks.map(|hook| Link { hook, device: String::new(), index: 0 }).collect();
    let on: Vec<Step> = links.iter().cloned().map(Step::Attach).collect();
    let off: Vec<Step> = links.into_iter().map(Step::Detach).collect();
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        for (steps, all) in [(&off, &mut without), (&on, &mut with)] {
            fast.apply(steps).await.unwrap();
            let done = rounds(4, Duration::from_millis(150), &mut [loose_datagrams(place)]);
            all.extend(done.iter().map(|round| 1e9 / round[0]));
        }
    }
    let counting = aya::sys::enable_stats(aya::sys::Stats::RunTime).unwrap();
    let before = stats::runs(std::process::id());
    rounds(1, Duration::from_millis(300), &mut [loose_datagrams(place)]);
    let ran = stats::between(&before, &stats::runs(std::process::id()));
    drop(counting);
    fast.apply(&off).await.unwrap();
    fast.remove().await.unwrap();
    drop(fast);
    mesh.remove().unwrap();
    let own: Vec<String> = ran.iter().map(|(name, (_, time))| format!("{name} {time:.0} ns")).collect();
    let more = median(&with) - median(&without);
    vec!["one datagram".to_owned(), spread(&without, 0), spread(&with, 0), format!("{more:.0}"), own.join(", ")]
}
