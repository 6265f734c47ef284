//! Loops run under the node's supervisor, or under a loop that it runs: a panic of one that is spawned bare vanishes, and what it did is
//! done no more, without a word. What is spawned elsewhere is named here with the reason why it is no such loop.

use super::source::{code, files, is_test_file, root};
use std::collections::BTreeMap;
use std::fs;

/// Reason; files, and how often each spawns something for it.
const NO_LOOPS: &[(&str, &[(&str, usize)])] = &[
    ("the supervisor itself", &[("node/supervisor.rs", 2)]),
    (
        "one connection of a client, a node or a task: its panic ends that connection",
        &[
            ("http.rs", 3),
            ("http/https.rs", 1),
            ("rpc/listener.rs", 1),
            ("rpc/logs/server.rs", 1),
            ("api/server.rs", 1),
            ("api/tls.rs", 1),
            ("api/access/server.rs", 1),
            ("api/access/context.rs", 1),
            ("dashboard/server.rs", 1),
            ("ingress/http/http2.rs", 2),
            ("ingress/http/stream.rs", 1),
            ("ingress/userspace/datagrams.rs", 1),
            ("manager/outboxes.rs", 1),
        ],
    ),
    (
        "one request or query, or what it streams: its panic is that of its answer",
        &[
            ("rpc/managers/server.rs", 1),
            ("rpc/logs/collect.rs", 1),
            ("api/handlers/swarm.rs", 1),
            ("api/access/create.rs", 1),
            ("api/access/events.rs", 3),
            ("api/access/everywhere.rs", 1),
            ("api/access/progress.rs", 1),
            ("api/logs/feed.rs", 2),
            ("node/control.rs", 2),
            ("dns/forward.rs", 1),
            ("ingress/http/mirror.rs", 1),
        ],
    ),
    (
        "one piece of work, whose panic is that of who waits for it, or whose result may be missing",
        &[
            ("acme/worker.rs", 1),
            ("overlay/connection_reset.rs", 1),
            ("node/network.rs", 1),
            ("node/manager_part.rs", 1),
            ("raft/snapshot_thread.rs", 1),
            ("doctor/observe/bounds.rs", 1),
            ("datapath/netns.rs", 2),
            ("datapath/tunnel/namespace.rs", 2),
            ("ingress/http/checks.rs", 1),
            ("cli/demo/cluster.rs", 1),
        ],
    ),
    (
        "a socket of the netlink crate: without it each request fails",
        &[("datapath/netlink.rs", 1), ("datapath/tunnel/link.rs", 1), ("datapath/ebpf/device_changes.rs", 1)],
    ),
    (
        "a loop that a supervised one waits for, beside all else: it ends or panics with it",
        &[("manager/leader.rs", 1), ("agent/shell.rs", 7)],
    ),
    (
        "loops of servers and listeners, whose panics `sync::panic_of` passes on, and what they spawn for one connection or query",
        &[("dns/server.rs", 5), ("ingress/userspace/listener.rs", 3)],
    ),
    ("a link, which its next message replaces if it has ended", &[("rpc/managers/client.rs", 1)]),
    ("the thread of raft, which catches its panics and opens the log again", &[("raft/shell.rs", 1)]),
    ("reads for who watches, and is started by the next watcher if it has panicked", &[("datapath/ebpf/watch.rs", 1)]),
    (
        "processes of their own, `skep tunnel` and `skep http serve`, or of the command line, which have no supervisor",
        &[
            ("datapath/tunnel/device.rs", 2),
            ("datapath/tunnel/process.rs", 1),
            ("datapath/tunnel/uapi.rs", 2),
            ("ingress/http/listeners.rs", 2),
            ("ingress/http/log_lines.rs", 1),
            ("ingress/http/process.rs", 1),
            ("ingress/http/server.rs", 1),
            ("cli/daemon.rs", 1),
        ],
    ),
];

#[test]
fn loops_are_supervised() {
    let source = root().join("src");
    let mut found = BTreeMap::<String, Vec<String>>::new();
    for file in files(&source, &["rs"]).into_iter().filter(|file| !is_test_file(file)) {
        let path = file.strip_prefix(&source).unwrap().display().to_string();
        let text = code(&fs::read_to_string(&file).unwrap());
        let lines = text.lines().enumerate().filter(|(_, line)| spawns(line));
        for (number, line) in lines {
            found.entry(path.clone()).or_default().push(format!("  {path}:{}: {}", number + 1, line.trim()));
        }
    }
    let mut wrong = Vec::new();
    for (path, known) in NO_LOOPS.iter().flat_map(|(_, files)| *files) {
        let lines = found.remove(*path).unwrap_or_default();
        if lines.len() != *known {
            wrong.push(format!("{path} spawns {} times, {known} are known:\n{}", lines.len(), lines.join("\n")));
        }
    }
    wrong.extend(found.into_values().map(|lines| format!("use Supervisor::keep or once:\n{}", lines.join("\n"))));
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// Whether the line spawns something on the runtime, or a thread; not a process.
fn spawns(line: &str) -> bool {
    let calls = [".spawn(", "::spawn(", "spawn_local("];
    calls.iter().any(|call| line.contains(call)) && !line.contains(".spawn()")
}

#[test]
fn the_check_sees_what_is_spawned() {
    for line in ["tasks.spawn(links.run());", "drop(tokio::spawn(async move {", "    set.spawn(one)", "thread::spawn(move || {"] {
        assert!(spawns(line), "{line}");
    }
    for line in ["tokio::task::spawn_blocking(work)", "supervisor.keep(\"\", run)", "let child = command.spawn()?;"] {
        assert!(!spawns(line), "{line}");
    }
}
