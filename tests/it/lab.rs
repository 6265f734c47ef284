//! The ground that the other tests stand on: hosts reach each other, engines run containers, nothing stays behind.

use skep::lab::{EngineRoot, Lab, WHOAMI_IMAGE, output, whoami_image};

/// A folder of its own per test, short enough for the sockets below it.
pub fn lab_dir(name: &str) -> String {
    format!("/tmp/sk-{}-{name}", std::process::id())
}

#[tokio::test]
async fn a_host_runs_a_container_on_an_engine_of_its_own_and_leaves_nothing() {
    let dir = lab_dir("lab");
    let lab = Lab::new(&dir).await.expect("lab");
    let mut one = lab.host("one", 1).await.expect("host");
    let two = lab.host("two", 2).await.expect("host");
    two.run("busybox ping -c1 -W2 192.0.2.1").await.expect("hosts reach each other");

    one.start_engine(&EngineRoot::Machine).await.expect("engine");
    whoami_image(&one).await.expect("image");
    let said =
        output(one.engine_cli().args(["run", "--rm", "--network", "none", WHOAMI_IMAGE, "echo", "hello"])).await.expect("run");
    assert_eq!(said.trim(), "hello");
    output(one.engine_cli().args(["run", "-d", WHOAMI_IMAGE])).await.expect("run in the background");

    let pid = one.pid();
    one.stop().await;
    two.stop().await;
    lab.stop().await.expect("everything goes");
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the host's process 1 is gone");
    assert!(!std::path::Path::new(&dir).exists(), "its files are gone");
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    assert!(!mounts.contains(&dir), "a mount stayed behind:\n{mounts}");
}
