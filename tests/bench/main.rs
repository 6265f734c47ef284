//! `make bench`: what the mesh costs, as ratios within one run, written as a table to `tests/bench/RESULTS.md`. Not a test:
//! asserts nothing about time. Needs root and a Docker Engine on the machine. `SKEP_BENCH=control,api,tables,datapath,tunnel,names,http,traffic,failover,managers`
//! selects parts (`swarm-api` is a part of `api`; `managers-writes`, `-losses`, `-memory` are parts of `managers`), whose sections of the file are replaced; `control` needs neither.
#![allow(
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::wildcard_imports,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a bench"
)]

mod api;
mod control;
mod datapath;
mod failover;
mod http;
mod managers;
mod names;
mod process;
mod report;
mod stats;
mod swarm;
mod tables;
mod traffic;
mod tunnel;
mod work;

mod lab {
    pub fn lab_dir(name: &str) -> String {
        format!("/tmp/sk-{}-{name}", std::process::id())
    }
    pub fn engine_root() -> skep::lab::EngineRoot {
        skep::lab::EngineRoot::Machine
    }
}

const PARTS: &str = "control,api,tables,datapath,tunnel,names,http,traffic,failover,managers";

fn main() {
    if std::env::args().any(|arg| arg == names::SERVE) {
        return names::serve();
    }
    // `cargo test --all-targets` and `cargo bench --no-run` must not start it by accident.
    if !std::env::args().any(|arg| arg == "--bench") {
        println!("run `make bench`");
        return;
    }
    let chosen = std::env::var("SKEP_BENCH").ok().filter(|parts| !parts.is_empty());
    let parts = chosen.as_deref().unwrap_or(PARTS);
    let mut report = report::Report::default();
    for part in parts.split(',') {
        match part {
            "control" => control::run(&mut report),
            "tables" => tables::run(&mut report),
            "datapath" => datapath::run(&mut report),
            "tunnel" => tunnel::run(&mut report),
            "http" => http::run(&mut report),
            "names" => on_runtime(names::run_all(&mut report)),
            "api" => on_runtime(api::run(&mut report, false)),
            "swarm-api" => on_runtime(api::run(&mut report, true)),
            "traffic" => on_runtime(traffic::run(&mut report)),
            "failover" => on_runtime(failover::run(&mut report)),
            "managers" => on_runtime(managers::run(&mut report, "all")),
            "managers-writes" => on_runtime(managers::run(&mut report, "writes")),
            "managers-losses" => on_runtime(managers::run(&mut report, "losses")),
            "managers-memory" => on_runtime(managers::run(&mut report, "memory")),
            other => panic!("no part {other}: {PARTS}"),
        }
    }
    report.write(chosen.is_none());
}

fn on_runtime(part: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(part);
}
