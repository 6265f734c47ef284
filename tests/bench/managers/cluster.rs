//! The clusters that are compared: hosts 1 to 3 have skep, 4 to 6 Docker Swarm and etcd.

use super::clients::{Load, Target};
use crate::swarm::kit::{self, Swarm, get, init, join, ok, within};
use serde_json::{Value, json};
use skep::http::UnixClient;
use skep::lab::{Host, output};
use std::path::PathBuf;
use std::process::Stdio;
use tokio::process::{Child, Command};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum System {
    Skep,
    Swarm,
    Etcd,
    /// With TLS between members.
    EtcdTls,
}

impl System {
    pub fn name(self) -> &'static str {
        match self {
            Self::Skep => "skep",
            Self::Swarm => "Docker Swarm",
            Self::Etcd => "etcd",
            Self::EtcdTls => "etcd, TLS",
        }
    }
    /// Clients' port of etcd; its peers' is the next.
    fn port(self) -> u16 {
        if self == Self::EtcdTls { 2479 } else { 2379 }
    }
}

pub const MEMBERS: usize = 3;

pub struct Clusters {
    pub swarm: Swarm,
    /// etcd's members, in the order of hosts, with and without TLS.
    pub etcd: Vec<(System, usize, Child)>,
    /// Where a tmpfs is mounted.
    tmpfs: Option<String>,
}

impl Clusters {
    pub async fn start(name: &str, on_tmpfs: bool) -> Self {
        let dir = crate::lab::lab_dir(name);
        if on_tmpfs {
            crate::process::sh(&format!("mkdir {dir}.mem; mount -t tmpfs none {dir}.mem; ln -s {dir}.mem {dir}"));
        }
        let swarm = kit::hosts(name, 2 * MEMBERS as u8, "").await;
        let mut clusters = Self { swarm, etcd: Vec::new(), tmpfs: on_tmpfs.then(|| format!("{dir}.mem")) };
        clusters.start_skep().await;
        clusters.start_swarm().await;
        if crate::process::is_installed("etcd") {
            for system in [System::Etcd, System::EtcdTls] {
                for member in 0..MEMBERS {
                    clusters.start_etcd(system, member, "new");
                }
                clusters.leader(system).await;
            }
        }
        clusters
    }

    async fn start_skep(&self) {
        let hosts = &self.swarm.hosts[..MEMBERS];
        init(&hosts[0]).await;
        let token = get(&hosts[0], "/swarm").await["JoinTokens"]["Manager"].as_str().unwrap().to_owned();
        for host in &hosts[1..] {
            ok(&join(host, hosts[0].address(), &token).await);
        }
        self.swarm.ready(MEMBERS).await;
    }

    async fn start_swarm(&self) {
        let hosts = &self.swarm.hosts[MEMBERS..];
        let first = UnixClient::new(hosts[0].engine_socket());
        let own = |host: &Host| json!({ "ListenAddr": "0.0.0.0:2377", "AdvertiseAddr": host.address().to_string(), "Spec": {} });
        first.request("POST", "/swarm/init", Some(&own(&hosts[0]))).await.unwrap().ok().unwrap();
        let swarm: Value = first.get("/swarm").await.unwrap().json().unwrap();
        for host in &hosts[1..] {
            let mut body = own(host);
            body["RemoteAddrs"] = json!([format!("{}:2377", hosts[0].address())]);
            body["JoinToken"] = swarm["JoinTokens"]["Manager"].clone();
            UnixClient::new(host.engine_socket()).request("POST", "/swarm/join", Some(&body)).await.unwrap().ok().unwrap();
        }
    }

    /// `state` is `new`, or `existing` for a member that was killed.
    pub fn start_etcd(&mut self, system: System, member: usize, state: &str) {
        let (port, peers) = (system.port(), system.port() + 1);
        let scheme = if system == System::EtcdTls { "https" } else { "http" };
        let all: Vec<String> =
            (0..MEMBERS).map(|m| format!("m{m}={scheme}://{}:{peers}", self.swarm.hosts[MEMBERS + m].address())).collect();
        let host = &self.swarm.hosts[MEMBERS + member];
        let (address, dir) = (host.address(), host.dir().join(format!("etcd-{port}")));
        let mut command = host.command("etcd");
        command
            .args(["--name", &format!("m{member}"), "--data-dir", dir.to_str().unwrap(), "--initial-cluster-state", state])
            .args(["--listen-client-urls", &format!("http://{address}:{port}")])
            .args(["--advertise-client-urls", &format!("http://{address}:{port}")])
            .args(["--listen-peer-urls", &format!("{scheme}://{address}:{peers}")])
            .args(["--initial-advertise-peer-urls", &format!("{scheme}://{address}:{peers}")])
            .args(["--initial-cluster", &all.join(","), "--log-level", "error"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        if system == System::EtcdTls {
            command.arg("--peer-auto-tls");
        }
        self.etcd.retain(|(of, number, _)| (*of, *number) != (system, member));
        self.etcd.push((system, member, command.spawn().unwrap()));
    }

    pub fn systems(&self) -> Vec<System> {
        let etcd = [System::Etcd, System::EtcdTls].into_iter().filter(|s| self.etcd.iter().any(|(of, ..)| of == s));
        [System::Skep, System::Swarm].into_iter().chain(etcd).collect()
    }

    pub fn host(&self, system: System, member: usize) -> &Host {
        &self.swarm.hosts[if system == System::Skep { member } else { MEMBERS + member }]
    }

    /// The API of a member of skep or Docker Swarm.
    pub fn socket(&self, system: System, member: usize) -> PathBuf {
        let host = self.host(system, member);
        if system == System::Skep { host.skep_socket() } else { host.engine_socket() }
    }

    pub fn target(&self, system: System, member: usize) -> Target {
        match system {
            System::Skep | System::Swarm => Target::Api(self.socket(system, member)),
            System::Etcd | System::EtcdTls => {
                let host = self.host(system, member);
                Target::Etcd {
                    namespace: format!("/proc/{}/ns/net", host.pid()),
                    address: (host.address(), system.port()).into(),
                }
            }
        }
    }

    /// Clients of the leader.
    pub async fn load(&self, system: System, clients: usize) -> Load {
        Load { system, target: self.target(system, self.leader(system).await), clients }
    }

    /// The member that leads, once all three are up.
    pub async fn leader(&self, system: System) -> usize {
        within(90, "a leader", || async {
            match system {
                System::Skep | System::Swarm => self.api_leader(system).await,
                System::Etcd | System::EtcdTls => self.etcd_leader(system).await,
            }
        })
        .await
    }

    async fn api_leader(&self, system: System) -> anyhow::Result<usize> {
        let mut leaders = Vec::new();
        for member in 0..MEMBERS {
            let nodes: Value = UnixClient::new(self.socket(system, member)).get("/nodes").await?.json()?;
            let nodes = nodes.as_array().cloned().unwrap_or_default();
            let up =
                nodes.iter().filter(|n| n["ManagerStatus"]["Reachability"] == "reachable" && n["Status"]["State"] == "ready");
            anyhow::ensure!(up.count() == MEMBERS, "{nodes:#?}");
            let leader = nodes.iter().find(|n| n["ManagerStatus"]["Leader"] == true);
            leaders.push(leader.and_then(|n| n["Description"]["Hostname"].as_str()).unwrap_or_default().to_owned());
        }
        leaders.dedup();
        anyhow::ensure!(leaders.len() == 1, "{leaders:?}");
        let at = (0..MEMBERS).find(|member| self.host(system, *member).name() == leaders[0]);
        at.ok_or_else(|| anyhow::anyhow!("{leaders:?}"))
    }

    async fn etcd_leader(&self, system: System) -> anyhow::Result<usize> {
        let mut leader = None;
        for member in 0..MEMBERS {
            let host = self.host(system, member);
            let url = format!("http://{}:{}/v3/maintenance/status", host.address(), system.port());
            let status = output(host.command("curl").args(["-s", "-m", "1", "-X", "POST", "-d", "{}", &url])).await?;
            let status: Value = serde_json::from_str(&status)?;
            anyhow::ensure!(status["leader"].as_str().is_some_and(|leader| leader != "0"), "{status}");
            if status["leader"] == status["header"]["member_id"] {
                leader = Some(member);
            }
        }
        leader.ok_or_else(|| anyhow::anyhow!("no leader"))
    }

    /// The processes of all members.
    pub fn pids(&self, system: System) -> Vec<u32> {
        (0..MEMBERS).flat_map(|member| self.member_pids(system, member)).collect()
    }

    /// The engine of a member of skep.
    pub fn engine_beside(&self, member: usize) -> u32 {
        engine(self.host(System::Skep, member))
    }

    pub fn member_pids(&self, system: System, member: usize) -> Vec<u32> {
        processes(self.host(system, member), system)
    }

    /// SIGKILL.
    pub async fn kill(&self, system: System, member: usize) {
        let mut pids = self.member_pids(system, member);
        if system == System::Skep {
            // Its tunnel outlives the daemon.
            pids = vec![crate::traffic::daemon(self.host(system, member))];
        } else if system == System::Swarm {
            // The engine's containerd, as when the machine loses power.
            pids.extend(pids.clone().into_iter().flat_map(crate::process::children));
        }
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        output(Command::new("kill").arg("-9").args(pids)).await.unwrap();
    }

    pub async fn start_again(&mut self, system: System, member: usize) {
        match system {
            System::Skep => {
                let host = &mut self.swarm.hosts[member];
                host.stop_daemon(true).await.unwrap();
                kit::start(host).await;
            }
            System::Swarm => {
                let host = &mut self.swarm.hosts[MEMBERS + member];
                host.stop_engine().await.unwrap();
                // Of processes that were killed: their numbers may be others' by now.
                let left = ["-f", "/run/engine.pid", "/run/engine/containerd/containerd.pid"];
                output(host.command("rm").args(left)).await.unwrap();
                host.start_engine(&skep::lab::EngineRoot::Machine).await.unwrap();
            }
            System::Etcd | System::EtcdTls => self.start_etcd(system, member, "existing"),
        }
    }

    pub async fn stop(mut self) {
        for (_, _, child) in &mut self.etcd {
            let inside =
                child.id().map(|pid| std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default());
            for pid in inside.unwrap_or_default().split_whitespace() {
                let _ = output(Command::new("kill").args(["-9", pid])).await;
            }
            let _ = child.wait().await;
        }
        self.swarm.stop().await;
        if let Some(dir) = self.tmpfs {
            crate::process::sh(&format!("umount {dir}; rmdir {dir}"));
        }
    }
}

/// Process id of a host's Docker Engine.
pub fn engine(host: &Host) -> u32 {
    processes(host, System::Swarm)[0]
}

/// A host's processes of a system.
fn processes(host: &Host, system: System) -> Vec<u32> {
    let dir = format!("{}/", host.dir().display());
    let is_it = |pid: &u32| {
        let read = |file: &str| std::fs::read(format!("/proc/{pid}/{file}")).map(|b| String::from_utf8_lossy(&b).into_owned());
        let (Ok(comm), Ok(line)) = (read("comm"), read("cmdline")) else { return false };
        let is = match system {
            System::Skep => comm.trim() == "skep" && (line.contains("\0daemon\0") || line.contains("\0tunnel\0")),
            System::Swarm => comm.trim() == "dockerd",
            System::Etcd | System::EtcdTls => comm.trim() == "etcd" && line.contains(&format!("etcd-{}\0", system.port())),
        };
        is && line.contains(&dir)
    };
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).filter(is_it).collect()
}
