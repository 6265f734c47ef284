//! Hosts of the lab, which other tests use: they reach each other, their engines run containers, nothing is left behind.

use skep::lab::{EngineRoot, Lab, WHOAMI_IMAGE, output, whoami_image};

/// The engine of every test: the machine's, or another one in a root directory (`make test-engine`).
pub fn engine_root() -> EngineRoot {
    std::env::var_os("SKEP_TEST_ENGINE_ROOT").map_or(EngineRoot::Machine, |dir| EngineRoot::Directory(dir.into()))
}

/// A directory for one test, with a path short enough for the sockets below it.
pub fn lab_dir(name: &str) -> String {
    format!("/tmp/sk-{}-{name}", std::process::id())
}

#[tokio::test]
async fn a_host_runs_a_container_on_its_engine_and_leaves_nothing_behind() {
    let dir = lab_dir("lab");
    let lab = Lab::new(&dir).await.expect("lab");
    let mut one = lab.host("one", 1).await.expect("host");
    let two = lab.host("two", 2).await.expect("host");
    two.run("busybox ping -c1 -W2 192.0.2.1").await.expect("hosts reach each other");

    one.start_engine(&engine_root()).await.expect("engine");
    whoami_image(&one).await.expect("image");
    let printed =
        output(one.engine_cli().args(["run", "--rm", "--network", "none", WHOAMI_IMAGE, "echo", "hello"])).await.expect("run");
    assert_eq!(printed.trim(), "hello");
    output(one.engine_cli().args(["run", "-d", WHOAMI_IMAGE])).await.expect("run in the background");

    let pid = one.pid();
    one.stop().await;
    two.stop().await;
    lab.stop().await.expect("everything is removed");
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the host's process 1 has ended");
    assert!(!std::path::Path::new(&dir).exists(), "its files are removed");
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(!mounts.contains(&dir), "a mount is left:\n{mounts}");
}
