//! `skep trace` of real daemons: the programs, tables and names of a swarm.

use super::*;
use tokio::process::Command;

const LOCAL: u16 = 8070;
const REMOTE: u16 = 8071;
const GUARDED: u16 = 8072;

/// What `skep trace --json` prints on a node; its exit code; what it says on standard error.
async fn trace(host: &Host, words: &str) -> (Value, i32, String) {
    let mut command = Command::new(SKEP);
    command.args(["trace", "--json", "--run-dir"]).arg(host.run_dir()).args(words.split(' '));
    let out = command.output().await.expect("skep trace runs");
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    let document = serde_json::from_slice(&out.stdout).unwrap_or_default();
    (document, out.status.code().expect("ends"), said)
}

/// Hooks of a trace, in order.
fn hooks(trace: &Value) -> Vec<&str> {
    trace["steps"].as_array().expect("steps").iter().filter_map(|step| step["hook"].as_str()).collect()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("a text: {value}"))
}

/// The live tables of a node and its metrics of the eBPF datapath.
async fn live(host: &Host) -> (Value, BTreeSet<String>) {
    let ebpf = dump(host).await.expect("dumps")["ebpf"].take();
    let metrics = skep::http::UnixClient::new(host.run_dir().join("admin.sock")).get("/metrics").await.expect("metrics");
    let metrics = String::from_utf8_lossy(&metrics.body).into_owned();
    let ours = metrics.lines().filter(|line| line.starts_with("skep_ebpf_")).map(str::to_owned).collect();
    (ebpf, ours)
}

/// Maps and programs that a node's daemon has open.
fn open_in_daemon(host: &Host) -> usize {
    let folder = host.dir().display().to_string();
    let is_daemon = |pid: &std::path::Path| {
        let words = std::fs::read(pid.join("cmdline")).unwrap_or_default();
        let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
        let file = format!("{folder}/skep.toml");
        words.get(1) == Some(&b"daemon".as_slice()) && words.contains(&file.as_bytes())
    };
    let processes = std::fs::read_dir("/proc").expect("processes").filter_map(|entry| Some(entry.ok()?.path()));
    let daemon = processes.filter(|pid| is_daemon(pid)).min().expect("the daemon");
    let open =
        std::fs::read_dir(daemon.join("fd")).expect("descriptors").filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    open.filter(|to| to.to_string_lossy().starts_with("anon_inode:bpf-")).count()
}

#[test]
fn a_trace_says_what_hooks_do_and_changes_nothing() {
    VIRTUAL_ADDRESSES.exclusive_case(async |fixture| {
        let here = fixture.publish("near", &[0], &[(LOCAL, TARGET)], json!({})).await;
        let there = fixture.publish("far", &[1], &[(REMOTE, TARGET)], json!({})).await;
        let list = json!({ "skep.allow": "203.0.113.0/24" });
        let guarded = fixture.publish("guarded", &[0], &[(GUARDED, TARGET)], list).await;
        for container in here.iter().chain(&there).chain(&guarded) {
            serve(container, TARGET, Ipv6Addr::UNSPECIFIED.into());
        }
        fixture.wait_for_ports(&[LOCAL, REMOTE, GUARDED]).await;
        let connections = fixture.counter("port_new").await;
        // What goes on beside, as probes, may change a table meanwhile; a trace that changed one would do so each time.
        within(30, "tables that a trace leaves as they are", || async {
            let hosts = &fixture.swarm.hosts;
            let before = (live(&hosts[0]).await, live(&hosts[1]).await, open_in_daemon(&hosts[0]));
            trace_all(fixture).await;
            let after = (live(&hosts[0]).await, live(&hosts[1]).await, open_in_daemon(&hosts[0]));
            ensure!(before == after, "a trace changed {before:#?} to {after:#?}");
            Ok(())
        })
        .await;
        // Counters are read at the tick: one after the traces shows no connection but this one.
        let mut connection = Connection::open(&fixture.client(0), at(0, false, LOCAL)).expect("connects");
        connection.identify().expect("an answer");
        assert!(open_in_daemon(&fixture.swarm.hosts[0]) > 20, "the daemon's own maps and programs");
        fixture.wait_for_counter("port_new", connections + 1).await;
        assert_eq!(fixture.counter("port_new").await, connections + 1);
    });
}

async fn trace_all(fixture: &EbpfFixture<NetworkServices>) {
    let hosts = &fixture.swarm.hosts;
    let client = address(11, false);
    let node = address(1, false);
    for six in [false, true] {
        let (local, code, said) = trace(&hosts[0], &format!("--reply tcp {} {}", address(11, six), at(0, six, LOCAL))).await;
        assert_eq!(
            (code, hooks(&local)),
            (0, vec!["from_uplink", "from_host", "from_container", "to_uplink"]),
            "{said}{local:#}"
        );
        assert!(text(&local["steps"][1]["next"]).contains("of service near"), "{local:#}");
        assert_eq!((text(&local["steps"][0]["device"]), text(&local["outcome"]["result"])), ("eth0", "sent"));
    }

    let (remote, code, said) = trace(&hosts[0], &format!("n1 udp {client} {node}:{REMOTE} --reply")).await;
    assert_eq!((code, hooks(&remote)), (0, vec!["from_uplink", "from_host", "from_mesh", "to_uplink"]), "{said}{remote:#}");
    assert_eq!(text(&remote["steps"][1]["next"]), "through the tunnel to node n2");
    // The same packet as the other node has it.
    let task = text(&remote["steps"][1]["packet"]).split(' ').nth(3).expect("a destination").to_owned();
    let (arrived, code, said) = trace(&hosts[1], &format!("--from-node n1 --reply udp {client} {task}")).await;
    assert_eq!((code, hooks(&arrived)), (0, vec!["from_mesh", "from_container"]), "{said}{arrived:#}");
    assert!(text(&arrived["steps"][0]["next"]).contains("of service far"), "{arrived:#}");
    assert_eq!(text(&arrived["steps"][1]["next"]), "through the tunnel to node n1");

    let (refused, code, said) = trace(&hosts[0], &format!("tcp {client} {node}:{GUARDED}")).await;
    assert_eq!((code, text(&refused["outcome"]["result"])), (1, "refused"), "{said}{refused:#}");
    assert_eq!(text(&refused["steps"][0]["reason"]), "source_not_allowed");
    assert!(said.contains("of service guarded is refused"), "{said}");
    let (unknown, code, _) = trace(&hosts[0], &format!("tcp {client} {node}:9999")).await;
    assert_eq!((code, text(&unknown["outcome"]["text"])), (0, "the packet is left to the host: no service publishes 9999/tcp"));

    let caller = fixture.services.callers.iter().find(|one| one.namespace.name == "n1").expect("one on each node").address;
    let (vip, code, said) = trace(&hosts[0], &format!("tcp {caller} {}", fixture.services.target())).await;
    let backends = vip["table"]["backends"].as_array().unwrap_or_else(|| panic!("a table: {said}{vip:#}"));
    let nodes: BTreeSet<&str> = backends.iter().map(|one| text(&one["node"])).collect();
    assert_eq!((code, nodes, text(&vip["table"]["service"])), (0, BTreeSet::from(["n1", "n2"]), "web"));
    assert_eq!(hooks(&vip), ["from_container"]);
    let (empty, code, _) = trace(&hosts[0], &format!("tcp {caller} {}:80", fixture.services.empty)).await;
    assert_eq!((code, text(&empty["steps"][0]["reason"])), (1, "vip_without_backend"), "{empty:#}");

    for (words, expected) in [
        (format!("n2 tcp {client} {node}:{LOCAL}"), "run `skep trace …` on n2"),
        (format!("n9 tcp {client} {node}:{LOCAL}"), "there is no node n9; the nodes are n1, n2"),
        (format!("tcp {client} near:{LOCAL}"), "names are not looked up"),
        (format!("tcp {client} {node}:{LOCAL} --in eth9"), "no program is attached to a device eth9"),
    ] {
        let (_, code, said) = trace(&hosts[0], &words).await;
        assert_eq!(code, 1, "{words}");
        assert!(said.contains(expected), "{said}");
    }
}
