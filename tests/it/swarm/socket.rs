//! Sockets that systemd holds, and daemons that come and go behind them: the API's, mounted into tasks, and the driver's, which
//! the engine calls.

use super::kit::SKEP;
use skep::http::{UnixClient, bind_unix};
use skep::lab::eventually;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Ended and removed with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Files(PathBuf);

impl Drop for Files {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A daemon to which the socket is passed as systemd does.
fn daemon(dir: &Path, name: &str, socket: &OwnedFd) -> Ended {
    let script = "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=$1; shift; exec \"$@\"";
    let mut command = Command::new("/bin/sh");
    command.args(["-c", script, "sh", name, SKEP, "daemon", "--config", "/dev/null"]);
    for (flag, name) in [("--data-dir", "data"), ("--run-dir", "run"), ("--plugin-dir", "plugins")] {
        command.arg(flag).arg(dir.join(name));
    }
    command.args(["--engine", "unix:///no/such/engine.sock"]).stdin(Stdio::from(socket.try_clone().expect("a copy")));
    Ended(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("starts"))
}

/// A request through the file is answered by a daemon, which says that it is in no swarm.
async fn answers(path: PathBuf) {
    eventually("an answer through the mount", Duration::from_secs(20), || async {
        let reply = tokio::time::timeout(Duration::from_secs(2), UnixClient::new(&path).get("/swarm")).await??;
        anyhow::ensure!(reply.status == 503, "{}", reply.status);
        Ok(())
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}"));
}

#[tokio::test]
async fn a_task_that_has_the_socket_mounted_reaches_the_next_daemon() {
    let dir = std::env::temp_dir().join(format!("skep-socket-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let files = Files(dir.clone());
    let path = dir.join("run/docker.sock");
    let socket = OwnedFd::from(bind_unix(&path).expect("binds").into_std().expect("a socket"));
    // As an engine mounts it into a container: the file, not its directory.
    let mounted = dir.join("mounted");
    std::fs::write(&mounted, "").expect("a file");
    let script = "mount --bind \"$1\" \"$2\" && exec sleep 600";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(&path).arg(&mounted);
    let task = Ended(command.spawn().expect("starts"));
    let inside = PathBuf::from(format!("/proc/{}/root{}", task.0.id(), mounted.display()));

    for _ in 0..2 {
        let daemon = daemon(&dir, "docker.sock", &socket);
        answers(inside.clone()).await;
        // Killed: nothing can be handed over on the way out.
        drop(daemon);
    }
    drop((task, files));
}

/// Without an answer the engine tries each call for 15 s: removing a container takes as long, three times per network.
#[tokio::test]
async fn a_call_of_the_engine_while_no_daemon_runs_is_answered_by_the_next_one_through_the_same_file() {
    let dir = std::env::temp_dir().join(format!("skep-driver-{}", std::process::id()));
    std::fs::create_dir_all(&dir).expect("a directory");
    let files = Files(dir.clone());
    let path = dir.join("plugins/skep.sock");
    let socket = OwnedFd::from(bind_unix(&path).expect("binds").into_std().expect("a socket"));
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(&path).expect("the file"));
    let before = inode();
    for _ in 0..2 {
        let client = UnixClient::new(&path);
        let call = tokio::spawn(async move { client.request("POST", "/Plugin.Activate", Some(&serde_json::json!({}))).await });
        let daemon = daemon(&dir, "driver.sock", &socket);
        let reply =
            tokio::time::timeout(Duration::from_secs(20), call).await.expect("in time").expect("asked").expect("answered");
        let drivers: serde_json::Value = reply.json().expect("the driver answers");
        assert_eq!(drivers["Implements"][0], "NetworkDriver", "{drivers}");
        assert_eq!(inode(), before, "no daemon replaces the file");
        drop(daemon);
    }
    drop(files);
}
