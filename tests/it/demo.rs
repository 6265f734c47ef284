//! `skep demo`: each of its steps succeeds, its JSON document has the measured values, and it leaves nothing behind.

use super::lab::{engine_root, lab_dir};
use skep::lab::EngineRoot;
use std::collections::BTreeSet;
use tokio::process::Command;

const SKEP: &str = env!("CARGO_BIN_EXE_skep");

#[tokio::test]
async fn each_step_of_the_demo_succeeds_and_nothing_is_left_behind() {
    let dir = lab_dir("demo");
    let links = interfaces();
    let mut demo = Command::new(SKEP);
    demo.arg("demo");
    if let EngineRoot::Directory(root) = engine_root() {
        demo.arg("--engine-root").arg(root);
    }
    let out = demo.args(["--once", "--json", "--dir", &dir]).output().await.expect("demo runs");
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    let proof: serde_json::Value = serde_json::from_str(&text).expect("one JSON document");
    assert_eq!(proof["ok"], true);
    assert!(proof["steps"].as_array().is_some_and(|s| s.iter().all(|step| step["ok"] == true)), "{proof:#}");
    let proof = &proof["proof"];
    for host in proof["requests_after_drain"].as_array().expect("requests") {
        assert_eq!(host["failed"], 0);
        let answers = host["answers"].as_object().expect("answers");
        assert_eq!(answers.len(), 6, "all replicas answered through {}", host["host"]);
        assert_eq!(answers.values().filter_map(serde_json::Value::as_u64).sum::<u64>(), 24);
    }
    assert_eq!(proof["requests_after_drain"].as_array().map(Vec::len), Some(3), "on every host, also on the drained one");
    for name in proof["names"].as_array().expect("names") {
        let addresses: BTreeSet<&str> = name["addresses"].as_array().into_iter().flatten().filter_map(|a| a.as_str()).collect();
        // A service's name resolves to its virtual address.
        let expected = if name["name"] == "whoami" { 1 } else { 6 };
        assert_eq!(addresses.len(), expected, "{name}");
    }
    assert_eq!(
        proof["wire"]["other"], 0,
        "all packets between the hosts are those of the tunnel, of joins and of neighbour discovery"
    );
    assert_eq!(proof["site"]["failed"], 0, "{}", proof["site"]);
    assert!(proof["site"]["requests"].as_u64().is_some_and(|n| n >= 30), "on every host, during the update: {}", proof["site"]);
    assert!(proof["wire"]["tunnel"].as_u64().is_some_and(|n| n > 100));

    assert!(!std::path::Path::new(&dir).exists(), "its files are removed");
    assert_eq!(interfaces(), links, "its links are removed");
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(!mounts.contains(&dir), "a mount is left:\n{mounts}");
    let left: Vec<String> = processes().into_iter().filter(|line| line.contains(&dir)).collect();
    assert!(left.is_empty(), "processes are left: {left:#?}");
}

#[tokio::test]
async fn a_second_demo_in_the_same_directory_is_refused_with_advice() {
    let dir = lab_dir("demo2");
    std::fs::create_dir_all(&dir).expect("directory");
    let out = Command::new(SKEP).args(["demo", "--once", "--dir", &dir]).output().await.expect("demo runs");
    std::fs::remove_dir(&dir).expect("untouched");
    assert_eq!(out.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&out.stderr);
    assert!(stderr.contains("--dir") && stderr.contains(&dir), "{stderr}");
}

fn interfaces() -> BTreeSet<String> {
    let list = std::fs::read_dir("/sys/class/net").expect("interfaces");
    // The machine's containers and concurrent tests of the eBPF datapath create and remove these.
    list.filter_map(|e| e.ok()?.file_name().into_string().ok()).filter(|n| !n.starts_with("veth") && n != "skeph").collect()
}

fn processes() -> Vec<String> {
    let pids = std::fs::read_dir("/proc").expect("proc").filter_map(|e| e.ok()?.file_name().into_string().ok());
    let lines = pids.filter(|p| p.bytes().all(|b| b.is_ascii_digit()));
    lines
        .filter_map(|p| std::fs::read(format!("/proc/{p}/cmdline")).ok())
        .map(|c| String::from_utf8_lossy(&c).replace('\0', " "))
        .collect()
}
