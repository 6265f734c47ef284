//! The HTTP ingress beside HAProxy and nginx: processor time per request and requests per second with the same routes, the cost of
//! many routes, and how soon a change of a route is live on all nodes. Needs nginx (also the backend of all) and wrk; without
//! haproxy or h2load the rows that need them are left out by name. `SKEP_BENCH_SECONDS` is the length of a slice, `SKEP_BENCH_ROUNDS` the number
//! of rounds; `SKEP_BENCH_CASE` selects rows by a part of their name, and `SKEP_BENCH_BEFORE` is the path of another build of skep, which is
//! measured in turn with this one.

mod change;
mod clients;
mod config;
mod proxies;

use crate::report::{Report, median, spread};
use clients::{Client, Load};
use proxies::{BEFORE, Proxies, Proxy};
use std::process::{Command, Stdio};

const ROUNDS: usize = 5;

fn round_count() -> usize {
    std::env::var("SKEP_BENCH_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(ROUNDS)
}

/// Routes of the comparison with other proxies.
const FEW: usize = 10;
const MANY: usize = 10_000;

/// One measurement.
struct Case {
    what: &'static str,
    load: Load,
    /// Of the processor time per request, beside HAProxy's.
    goal: &'static str,
}

fn cases() -> Vec<Case> {
    let case = |what, load, goal| Case { what, load, goal };
    let small = Load { tls: false, new: false, path: "/", client: Client::Wrk };
    vec![
        case("kept connections, 60 B", small, "≤ 1.1"),
        case("kept connections, 1 kB", Load { path: "/1k", ..small }, ""),
        case("kept connections, 100 kB", Load { path: "/100k", ..small }, "≤ 0.9"),
        case("new connections, 60 B", Load { new: true, ..small }, "≤ 1.0"),
        case("TLS, kept connections, 60 B", Load { tls: true, ..small }, ""),
        case("TLS, kept connections, 100 kB", Load { tls: true, path: "/100k", ..small }, ""),
        case("TLS, new connections, 60 B", Load { tls: true, new: true, ..small }, "≤ 0.7"),
        case("HTTP/2 over TLS, 32 × 8 streams, 60 B", Load { tls: true, client: Client::H2load, ..small }, "≤ 1.2"),
    ]
}

/// Whether a program is installed.
fn have(program: &str) -> bool {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

pub fn run(report: &mut Report) {
    if let Some(missing) = ["nginx", "wrk"].into_iter().find(|program| !have(program)) {
        report.section("The HTTP ingress", "Beside HAProxy and nginx.", &[""]);
        report.row(&[format!("{missing} is not installed: not measured")]);
        return;
    }
    let selected = std::env::var("SKEP_BENCH_CASE").unwrap_or_default();
    let before = proxies::before().map(|_| (BEFORE, FEW));
    let peers = [("skep", FEW), ("haproxy", FEW), ("nginx", FEW)].into_iter().chain(before);
    let many = Some(("skep-many", MANY)).filter(|_| selected.is_empty());
    let proxies = Proxies::start(&peers.chain(many).collect::<Vec<_>>());
    beside_peers(report, &proxies, &selected);
    if selected.is_empty() {
        many_routes(report, &proxies);
        drop(proxies);
        crate::on_runtime(change::run(report));
    }
}

/// Microseconds of processor time per request, and requests per second, of each proxy in each round.
fn rounds(proxies: &[&Proxy], load: &Load) -> Vec<Vec<(f64, f64)>> {
    let count = proxies.len();
    let round = |number: usize| {
        let mut results = vec![(0.0, 0.0); count];
        for turn in 0..count {
            let at = (number + turn) % count;
            results[at] = clients::measure(proxies[at], load);
        }
        results
    };
    // Not counted: everything is warm then.
    for proxy in proxies {
        clients::warm(proxy, load);
    }
    (0..round_count()).map(round).collect()
}

fn column(rounds: &[Vec<(f64, f64)>], of: impl Fn(&[(f64, f64)]) -> f64) -> Vec<f64> {
    rounds.iter().map(|round| of(round)).collect()
}

/// `22.1 µs, 31,000/s`.
fn absolute(rounds: &[Vec<(f64, f64)>], at: usize) -> String {
    let (cpu, rate) = (column(rounds, |round| round[at].0), column(rounds, |round| round[at].1));
    format!("{:.1} µs, {:.0}/s", median(&cpu), median(&rate))
}

fn beside_peers(report: &mut Report, proxies: &Proxies, selected: &str) {
    let (skep, nginx) = (proxies.get("skep"), proxies.get("nginx"));
    let (haproxy, earlier) = (proxies.find("haproxy"), proxies.find(BEFORE));
    let columns = ["what", "skep ÷ HAProxy", "goal", "skep ÷ nginx", "requests/s, skep ÷ HAProxy", "HAProxy", "nginx", "skep"];
    report.section(
        "The HTTP ingress",
        &format!(
            "`skep http serve` beside HAProxy and nginx on loopback: {FEW} routes by host, the same backend (nginx), one worker \
             thread each, pinned to a processor that clients and backend do not use; each adds X-Forwarded-For, -Proto, -Host and a request id. \
             Processor time (user and system) of the proxy's process per request; wrk with 64 connections, or h2load. \
             {} rounds of {} s, the proxies in turn.",
            round_count(),
            clients::seconds()
        ),
        &columns.into_iter().chain(earlier.map(|_| "skep ÷ build before")).collect::<Vec<_>>(),
    );
    for case in cases().into_iter().filter(|case| case.what.contains(selected)) {
        if case.load.client == Client::H2load && !have("h2load") {
            report.row(&[case.what.to_owned(), "h2load is not installed: not measured".to_owned()]);
            continue;
        }
        let sides: Vec<&Proxy> = [skep, nginx].into_iter().chain(haproxy).chain(earlier).collect();
        // nginx has HTTP/2, and is in turn with the others in any case.
        let rounds = rounds(&sides, &case.load);
        let ratio = |at: usize| spread(&column(&rounds, |round| round[0].0 / round[at].0), 2);
        let of_haproxy = |text: &dyn Fn() -> String| haproxy.map_or_else(|| "haproxy is not installed".to_owned(), |_| text());
        let mut row = vec![
            case.what.to_owned(),
            of_haproxy(&|| ratio(2)),
            case.goal.to_owned(),
            ratio(1),
            of_haproxy(&|| spread(&column(&rounds, |round| round[0].1 / round[2].1), 2)),
            of_haproxy(&|| absolute(&rounds, 2)),
            absolute(&rounds, 1),
            absolute(&rounds, 0),
        ];
        row.extend(earlier.map(|_| ratio(sides.len() - 1)));
        report.row(&row);
    }
}

fn many_routes(report: &mut Report, proxies: &Proxies) {
    report.section(
        "Many HTTP routes",
        &format!("Two processes of skep in turn, one with {FEW} routes and one with {MANY}; processor time per request, kept connections, 60 B."),
        &["what", "ratio", "goal", &format!("{FEW} routes"), &format!("{MANY} routes")],
    );
    let load = Load { tls: false, new: false, path: "/", client: Client::Wrk };
    let rounds = rounds(&[proxies.get("skep"), proxies.get("skep-many")], &load);
    report.row(&[
        format!("{MANY} ÷ {FEW} routes"),
        spread(&column(&rounds, |round| round[1].0 / round[0].0), 3),
        "≤ 1.05".to_owned(),
        absolute(&rounds, 0),
        absolute(&rounds, 1),
    ]);
}
