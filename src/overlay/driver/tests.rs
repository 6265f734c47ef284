//! The protocol over a real unix socket, with links that only remember.

use super::{Driver, router};
use crate::datapath::Links;
use crate::http::{HttpReply, UnixClient, bind_unix, serve_unix};
use crate::model::docker::NETWORK_OPTION;
use async_trait::async_trait;
use ipnet::Ipv4Net;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

#[derive(Default)]
struct FakeLinks {
    there: Mutex<BTreeMap<Ipv4Addr, u32>>,
    broken: Mutex<bool>,
}

#[async_trait]
impl Links for FakeLinks {
    async fn attach(&self, _subnet: Ipv4Net, address: Ipv4Addr, mtu: u32) -> anyhow::Result<String> {
        anyhow::ensure!(!*self.broken.lock().expect("lock"), "no mesh namespace");
        self.there.lock().expect("lock").insert(address, mtu);
        Ok(format!("sk{}", address.octets()[3]))
    }
    async fn detach(&self, address: Ipv4Addr) -> anyhow::Result<()> {
        self.there.lock().expect("lock").remove(&address);
        Ok(())
    }
}

struct Rig {
    dir: PathBuf,
    links: Arc<FakeLinks>,
    mtu: watch::Sender<u32>,
    stop: CancellationToken,
    client: UnixClient,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Rig {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("driver-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let client = UnixClient::new(dir.join("skep.sock"));
        let mut rig = Self { dir, links: Arc::default(), mtu: watch::channel(1420).0, stop: CancellationToken::new(), client };
        rig.serve();
        rig
    }

    /// Starts the driver (again), from what is on disk.
    fn serve(&mut self) {
        self.stop.cancel();
        self.stop = CancellationToken::new();
        let driver =
            Driver::open(self.links.clone(), Arc::new(crate::datapath::NoSandboxes), self.ledger(), self.mtu.subscribe())
                .expect("opens");
        let listener = bind_unix(&self.socket()).expect("binds");
        tokio::spawn(serve_unix(listener, router(Arc::new(driver)), self.stop.clone()));
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("skep.sock")
    }

    fn ledger(&self) -> PathBuf {
        self.dir.join("endpoints.json")
    }

    async fn raw(&self, call: &str, body: Option<&Value>) -> HttpReply {
        self.client.request("POST", &format!("/{call}"), body).await.expect("answers")
    }

    async fn call(&self, call: &str, body: Value) -> Value {
        let reply = self.raw(call, Some(&body)).await;
        assert_eq!(reply.status, 200);
        serde_json::from_slice(&reply.body).expect("JSON")
    }

    async fn network(&self, internal: bool) -> Value {
        self.call(
            "NetworkDriver.CreateNetwork",
            json!({
                "NetworkID": "n", "IPv6Data": null,
                "IPv4Data": [{ "AddressSpace": "skep", "Gateway": "10.0.1.1/32", "Pool": "10.0.1.0/24" }],
                "Options": { "com.docker.network.internal": internal, "com.docker.network.generic": { NETWORK_OPTION: "swarm1", "mtu": "1420" } },
            }),
        )
        .await
    }

    async fn endpoint(&self, id: &str, address: &str) -> Value {
        self.call(
            "NetworkDriver.CreateEndpoint",
            json!({ "NetworkID": "n", "EndpointID": id, "Options": null,
                    "Interface": { "Address": address, "AddressIPv6": "", "MacAddress": "" } }),
        )
        .await
    }

    async fn on(&self, call: &str, id: &str) -> Value {
        let body = json!({ "NetworkID": "n", "EndpointID": id, "SandboxKey": "/var/run/docker/netns/1", "Options": null });
        self.call(&format!("NetworkDriver.{call}"), body).await
    }

    fn links(&self) -> Vec<Ipv4Addr> {
        self.links.there.lock().expect("lock").keys().copied().collect()
    }
}

#[tokio::test]
async fn a_containers_life_on_a_network() {
    let rig = Rig::new("life");
    assert_eq!(
        serde_json::from_slice::<Value>(&rig.raw("Plugin.Activate", None).await.body).expect("JSON"),
        json!({ "Implements": ["NetworkDriver", "IpamDriver"] })
    );
    for call in ["NetworkDriver.GetCapabilities", "IpamDriver.GetCapabilities", "IpamDriver.GetDefaultAddressSpaces"] {
        assert_eq!(rig.raw(call, None).await.status, 200, "{call}");
    }
    let pool = rig
        .call(
            "IpamDriver.RequestPool",
            json!({ "AddressSpace": "skep", "Pool": "10.0.1.0/24", "SubPool": "", "Options": null, "V6": false }),
        )
        .await;
    assert_eq!(pool, json!({ "PoolID": "10.0.1.0/24", "Pool": "10.0.1.0/24", "Data": {} }));
    let gateway = json!({ "PoolID": "10.0.1.0/24", "Address": "10.0.1.1", "Options": { "RequestAddressType": "com.docker.network.gateway" } });
    assert_eq!(rig.call("IpamDriver.RequestAddress", gateway).await["Address"], "10.0.1.1/32");
    let drawn =
        json!({ "PoolID": "10.0.1.0/24", "Address": "", "Options": { "RequestAddressType": "com.docker.network.gateway" } });
    assert_eq!(rig.call("IpamDriver.RequestAddress", drawn).await["Address"], "10.0.1.1/32");
    let fixed = json!({ "PoolID": "10.0.1.0/24", "Address": "10.0.1.5", "Options": null });
    assert_eq!(rig.call("IpamDriver.RequestAddress", fixed).await["Address"], "10.0.1.5/32");

    assert_eq!(rig.network(false).await, json!({}));
    assert_eq!(rig.endpoint("e1", "10.0.1.5/32").await, json!({ "Interface": {} }));
    assert!(rig.links().is_empty(), "made at the join, not before");
    rig.mtu.send_replace(1280);
    assert_eq!(
        rig.on("Join", "e1").await,
        json!({
            "InterfaceName": { "SrcName": "sk5", "DstPrefix": "eth" },
            "StaticRoutes": [
                { "Destination": "10.0.1.1/32", "RouteType": 1 },
                { "Destination": "10.0.1.0/24", "RouteType": 0, "NextHop": "10.0.1.1" },
            ],
            "DisableGatewayService": false,
        })
    );
    assert_eq!(rig.links.there.lock().expect("lock").get(&Ipv4Addr::new(10, 0, 1, 5)), Some(&1280));
    assert_eq!(rig.on("EndpointOperInfo", "e1").await, json!({ "Value": {} }));
    for call in ["DiscoverNew", "ProgramExternalConnectivity", "RevokeExternalConnectivity", "DiscoverDelete"] {
        assert_eq!(rig.on(call, "e1").await, json!({}), "{call}");
    }
    for call in ["Leave", "Leave", "DeleteEndpoint", "DeleteEndpoint", "DeleteNetwork", "DeleteNetwork"] {
        assert_eq!(rig.on(call, "e1").await, json!({}), "{call}");
        assert!(rig.links().is_empty());
    }
    for call in ["IpamDriver.ReleaseAddress", "IpamDriver.ReleasePool"] {
        assert_eq!(rig.call(call, json!({ "PoolID": "10.0.1.0/24", "Address": "10.0.1.5" })).await, json!({}), "{call}");
    }
}

#[tokio::test]
async fn an_internal_network_gets_no_way_out() {
    let rig = Rig::new("internal");
    rig.network(true).await;
    rig.endpoint("e1", "10.0.1.5/32").await;
    assert_eq!(rig.on("Join", "e1").await["DisableGatewayService"], json!(true));
}

#[tokio::test]
async fn endpoints_outlive_the_daemon() {
    let mut rig = Rig::new("restart");
    rig.network(false).await;
    rig.endpoint("e1", "10.0.1.5/32").await;
    rig.on("Join", "e1").await;
    rig.serve();
    // An engine that was not restarted says nothing; later it takes the container down.
    assert_eq!(rig.on("EndpointOperInfo", "e1").await, json!({ "Value": {} }));
    assert_eq!(rig.links().len(), 1);
    rig.on("Leave", "e1").await;
    assert!(rig.links().is_empty());
    // And a network made before the restart takes new ones.
    rig.endpoint("e2", "10.0.1.6/32").await;
    assert_eq!(rig.on("Join", "e2").await["InterfaceName"]["SrcName"], "sk6");
}

#[tokio::test]
async fn a_late_farewell_does_not_take_the_successors_link() {
    let rig = Rig::new("late");
    rig.network(false).await;
    rig.endpoint("old", "10.0.1.5/32").await;
    rig.on("Join", "old").await;
    rig.endpoint("new", "10.0.1.5/32").await;
    rig.on("Join", "new").await;
    rig.on("Leave", "old").await;
    rig.on("DeleteEndpoint", "old").await;
    assert_eq!(rig.links(), vec![Ipv4Addr::new(10, 0, 1, 5)]);
}

#[tokio::test]
async fn a_removed_network_takes_its_links_along() {
    let rig = Rig::new("remove");
    rig.network(false).await;
    rig.endpoint("e1", "10.0.1.5/32").await;
    rig.on("Join", "e1").await;
    rig.on("DeleteNetwork", "e1").await;
    assert!(rig.links().is_empty());
}

#[tokio::test]
async fn refusals_are_sentences() {
    let rig = Rig::new("refusals");
    rig.network(false).await;
    let err = |value: Value| value["Err"].as_str().unwrap_or_default().to_owned();
    let plain = json!({ "PoolID": "10.0.1.0/24", "Address": "", "Options": null });
    assert!(err(rig.call("IpamDriver.RequestAddress", plain).await).contains("only tasks of the swarm get addresses"));
    let outside = json!({ "PoolID": "10.0.1.0/24", "Address": "10.0.2.5", "Options": null });
    assert!(err(rig.call("IpamDriver.RequestAddress", outside).await).contains("not in the subnet"));
    let any = json!({ "Pool": "", "SubPool": "", "Options": null, "V6": false });
    assert!(err(rig.call("IpamDriver.RequestPool", any).await).contains("docker network create -d overlay"));
    assert!(err(rig.call("IpamDriver.RequestPool", json!({ "Pool": "fd00::/64", "V6": true })).await).contains("IPv4"));
    assert!(err(rig.on("Join", "nobody").await).contains("not known"));
    let strange = json!({ "NetworkID": "other", "EndpointID": "e", "Interface": { "Address": "10.0.1.9/32" } });
    assert!(err(rig.call("NetworkDriver.CreateEndpoint", strange).await).contains("docker network rm"));
    assert!(err(rig.endpoint("e", "").await).contains("only tasks"));
    *rig.links.broken.lock().expect("lock") = true;
    rig.endpoint("e1", "10.0.1.5/32").await;
    assert!(err(rig.on("Join", "e1").await).contains("10.0.1.5: no mesh namespace"));
}

#[tokio::test]
async fn empty_bodies_garbage_and_floods_are_errors_and_change_nothing() {
    let rig = Rig::new("garbage");
    rig.network(false).await;
    rig.endpoint("e1", "10.0.1.5/32").await;
    rig.on("Join", "e1").await;
    let before = std::fs::read(rig.ledger()).expect("there");
    for call in ["Join", "Leave", "DeleteEndpoint", "CreateEndpoint", "CreateNetwork", "DeleteNetwork", "EndpointOperInfo"] {
        let reply = rig.raw(&format!("NetworkDriver.{call}"), None).await;
        assert_eq!(reply.status, 400, "{call}");
        assert!(String::from_utf8_lossy(&reply.body).contains("without a body"));
        assert_eq!(rig.raw(&format!("NetworkDriver.{call}"), Some(&json!(["x"]))).await.status, 400, "{call}");
    }
    for call in ["RequestAddress", "RequestPool", "ReleasePool", "ReleaseAddress"] {
        assert_eq!(rig.raw(&format!("IpamDriver.{call}"), None).await.status, 400, "{call}");
    }
    assert_eq!(rig.raw("NetworkDriver.Nonsense", None).await.status, 404);
    let mut flood = b"POST /NetworkDriver.Leave HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n".to_vec();
    flood.resize(super::MAX_BODY + 1000, b' ');
    assert_eq!(send(&rig.socket(), &flood).await, "413");
    // A body that breaks off.
    send(&rig.socket(), b"POST /NetworkDriver.Leave HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{\"EndpointID\":\"e1\"}")
        .await;
    assert_eq!(std::fs::read(rig.ledger()).expect("there"), before);
    assert_eq!(rig.links().len(), 1);
}

/// Sends bytes, closes its side, gives the status of the answer.
async fn send(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).await.expect("connects");
    // Whoever is told enough may hang up.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).split(' ').nth(1).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn a_damaged_file_says_what_to_do() {
    let rig = Rig::new("damaged");
    for (bytes, words) in [("{", "damaged"), ("{\"format\":7,\"networks\":{},\"endpoints\":{}}", "format 7")] {
        std::fs::write(rig.ledger(), bytes).expect("writes");
        let error = Driver::open(rig.links.clone(), Arc::new(crate::datapath::NoSandboxes), rig.ledger(), rig.mtu.subscribe())
            .err()
            .expect("refused");
        let error = format!("{error:#}");
        assert!(error.contains(words) && error.contains("endpoints.json"), "{error}");
    }
}
