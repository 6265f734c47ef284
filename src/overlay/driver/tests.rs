//! The protocol over a real unix socket, with fake links.

use super::{Driver, router};
use crate::datapath::{LinkNetwork, Links};
use crate::http::{HttpReply, UnixClient, bind_unix, serve_unix};
use crate::model::docker::NETWORK_OPTION;
use async_trait::async_trait;
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
    /// MTU by address.
    attached: Mutex<BTreeMap<Ipv4Addr, u32>>,
    broken: Mutex<bool>,
}

#[async_trait]
impl Links for FakeLinks {
    async fn attach_to(&self, _network: LinkNetwork, address: Ipv4Addr, mtu: u32) -> anyhow::Result<String> {
        anyhow::ensure!(!*self.broken.lock().expect("lock"), "no mesh namespace");
        self.attached.lock().expect("lock").insert(address, mtu);
        Ok(format!("sk{}", address.octets()[3]))
    }
    async fn detach(&self, address: Ipv4Addr) -> anyhow::Result<()> {
        self.attached.lock().expect("lock").remove(&address);
        Ok(())
    }
}

/// A driver, served on a socket in a directory of the test.
struct Fixture {
    dir: PathBuf,
    links: Arc<FakeLinks>,
    mtu: watch::Sender<u32>,
    stop: CancellationToken,
    client: UnixClient,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop.cancel();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Fixture {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("driver-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let client = UnixClient::new(dir.join("skep.sock"));
        let mut fixture =
            Self { dir, links: Arc::default(), mtu: watch::channel(1420).0, stop: CancellationToken::new(), client };
        fixture.serve();
        fixture
    }

    /// Starts the driver (again), from what is on disk.
    fn serve(&mut self) {
        self.stop.cancel();
        self.stop = CancellationToken::new();
        let driver = Driver::new(self.links.clone(), Arc::new(crate::datapath::NoSandboxes), self.file(), self.mtu.subscribe());
        driver.load().expect("loads");
        let listener = bind_unix(&self.socket()).expect("binds");
        tokio::spawn(serve_unix(listener, router(Arc::new(driver)), self.stop.clone()));
    }

    fn socket(&self) -> PathBuf {
        self.dir.join("skep.sock")
    }

    fn file(&self) -> PathBuf {
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

    async fn endpoint_call(&self, call: &str, id: &str) -> Value {
        let body = json!({ "NetworkID": "n", "EndpointID": id, "SandboxKey": "/var/run/docker/netns/1", "Options": null });
        self.call(&format!("NetworkDriver.{call}"), body).await
    }

    fn links(&self) -> Vec<Ipv4Addr> {
        self.links.attached.lock().expect("lock").keys().copied().collect()
    }
}

#[tokio::test]
async fn a_container_joins_and_leaves_a_network() {
    let fixture = Fixture::new("life");
    assert_eq!(
        serde_json::from_slice::<Value>(&fixture.raw("Plugin.Activate", None).await.body).expect("JSON"),
        json!({ "Implements": ["NetworkDriver", "IpamDriver"] })
    );
    for call in ["NetworkDriver.GetCapabilities", "IpamDriver.GetCapabilities", "IpamDriver.GetDefaultAddressSpaces"] {
        assert_eq!(fixture.raw(call, None).await.status, 200, "{call}");
    }
    let pool = fixture
        .call(
            "IpamDriver.RequestPool",
            json!({ "AddressSpace": "skep", "Pool": "10.0.1.0/24", "SubPool": "", "Options": null, "V6": false }),
        )
        .await;
    assert_eq!(pool, json!({ "PoolID": "10.0.1.0/24", "Pool": "10.0.1.0/24", "Data": {} }));
    let gateway = json!({ "PoolID": "10.0.1.0/24", "Address": "10.0.1.1", "Options": { "RequestAddressType": "com.docker.network.gateway" } });
    assert_eq!(fixture.call("IpamDriver.RequestAddress", gateway).await["Address"], "10.0.1.1/32");
    let chosen =
        json!({ "PoolID": "10.0.1.0/24", "Address": "", "Options": { "RequestAddressType": "com.docker.network.gateway" } });
    assert_eq!(fixture.call("IpamDriver.RequestAddress", chosen).await["Address"], "10.0.1.1/32");
    let fixed = json!({ "PoolID": "10.0.1.0/24", "Address": "10.0.1.5", "Options": null });
    assert_eq!(fixture.call("IpamDriver.RequestAddress", fixed).await["Address"], "10.0.1.5/32");

    assert_eq!(fixture.network(false).await, json!({}));
    assert_eq!(fixture.endpoint("e1", "10.0.1.5/32").await, json!({ "Interface": {} }));
    assert!(fixture.links().is_empty(), "created at the join, not before");
    fixture.mtu.send_replace(1280);
    assert_eq!(
        fixture.endpoint_call("Join", "e1").await,
        json!({
            "InterfaceName": { "SrcName": "sk5", "DstPrefix": "eth" },
            "StaticRoutes": [
                { "Destination": "10.0.1.1/32", "RouteType": 1 },
                { "Destination": "10.0.1.0/24", "RouteType": 0, "NextHop": "10.0.1.1" },
            ],
            "DisableGatewayService": false,
        })
    );
    assert_eq!(fixture.links.attached.lock().expect("lock").get(&Ipv4Addr::new(10, 0, 1, 5)), Some(&1280));
    assert_eq!(fixture.endpoint_call("EndpointOperInfo", "e1").await, json!({ "Value": {} }));
    for call in ["DiscoverNew", "ProgramExternalConnectivity", "RevokeExternalConnectivity", "DiscoverDelete"] {
        assert_eq!(fixture.endpoint_call(call, "e1").await, json!({}), "{call}");
    }
    for call in ["Leave", "Leave", "DeleteEndpoint", "DeleteEndpoint", "DeleteNetwork", "DeleteNetwork"] {
        assert_eq!(fixture.endpoint_call(call, "e1").await, json!({}), "{call}");
        assert!(fixture.links().is_empty());
    }
    for call in ["IpamDriver.ReleaseAddress", "IpamDriver.ReleasePool"] {
        assert_eq!(fixture.call(call, json!({ "PoolID": "10.0.1.0/24", "Address": "10.0.1.5" })).await, json!({}), "{call}");
    }
}

#[tokio::test]
async fn an_internal_network_gets_no_default_route() {
    let fixture = Fixture::new("internal");
    fixture.network(true).await;
    fixture.endpoint("e1", "10.0.1.5/32").await;
    assert_eq!(fixture.endpoint_call("Join", "e1").await["DisableGatewayService"], json!(true));
}

#[tokio::test]
async fn a_container_is_in_one_of_several_subnets_and_reaches_all() {
    let mut fixture = Fixture::new("several");
    let network = json!({
        "NetworkID": "n", "IPv6Data": [{ "Gateway": "fd00:1::1/128", "Pool": "fd00:1::/64" }],
        "IPv4Data": [{ "Gateway": "10.0.1.1/32", "Pool": "10.0.1.0/24" }, { "Gateway": "172.20.9.9/32", "Pool": "172.20.0.0/16" }],
        "Options": { "com.docker.network.generic": { NETWORK_OPTION: "swarm1" } },
    });
    assert_eq!(fixture.call("NetworkDriver.CreateNetwork", network).await, json!({}));
    fixture.serve();
    let outside = fixture.endpoint("e0", "10.0.2.4/32").await;
    assert!(outside["Err"].as_str().is_some_and(|error| error.contains("10.0.2.4")), "{outside}");
    fixture.endpoint("e1", "172.20.3.4/32").await;
    let joined = fixture.endpoint_call("Join", "e1").await;
    let routes: Vec<String> = joined["StaticRoutes"]
        .as_array()
        .expect("routes")
        .iter()
        .map(|route| format!("{} {}", route["Destination"].as_str().unwrap_or("?"), route["NextHop"].as_str().unwrap_or("link")))
        .collect();
    let expected = [
        "172.20.9.9/32 link",
        "10.0.1.0/24 172.20.9.9",
        "172.20.0.0/16 172.20.9.9",
        "fd00:1::1/128 link",
        "fd00:1::/64 fd00:1::1",
    ];
    assert_eq!(routes, expected);
    assert_eq!(fixture.links(), [Ipv4Addr::new(172, 20, 3, 4)]);
}

#[tokio::test]
async fn endpoints_outlive_the_daemon() {
    let mut fixture = Fixture::new("restart");
    fixture.network(false).await;
    fixture.endpoint("e1", "10.0.1.5/32").await;
    fixture.endpoint_call("Join", "e1").await;
    fixture.serve();
    // An engine that was not restarted does not announce the container again; later it removes it.
    assert_eq!(fixture.endpoint_call("EndpointOperInfo", "e1").await, json!({ "Value": {} }));
    assert_eq!(fixture.links().len(), 1);
    fixture.endpoint_call("Leave", "e1").await;
    assert!(fixture.links().is_empty());
    // A network created before the restart accepts new endpoints.
    fixture.endpoint("e2", "10.0.1.6/32").await;
    assert_eq!(fixture.endpoint_call("Join", "e2").await["InterfaceName"]["SrcName"], "sk6");
}

#[tokio::test]
async fn a_late_leave_does_not_remove_the_link_of_the_next_endpoint() {
    let fixture = Fixture::new("late");
    fixture.network(false).await;
    fixture.endpoint("old", "10.0.1.5/32").await;
    fixture.endpoint_call("Join", "old").await;
    fixture.endpoint("new", "10.0.1.5/32").await;
    fixture.endpoint_call("Join", "new").await;
    fixture.endpoint_call("Leave", "old").await;
    fixture.endpoint_call("DeleteEndpoint", "old").await;
    assert_eq!(fixture.links(), vec![Ipv4Addr::new(10, 0, 1, 5)]);
}

#[tokio::test]
async fn removing_a_network_removes_its_links() {
    let fixture = Fixture::new("remove");
    fixture.network(false).await;
    fixture.endpoint("e1", "10.0.1.5/32").await;
    fixture.endpoint_call("Join", "e1").await;
    fixture.endpoint_call("DeleteNetwork", "e1").await;
    assert!(fixture.links().is_empty());
}

#[tokio::test]
async fn a_container_on_a_dual_stack_network_has_one_host_number() {
    let fixture = Fixture::new("dual");
    let pool = json!({ "AddressSpace": "skep", "Pool": "fd00:1::/64", "SubPool": "", "Options": null, "V6": true });
    assert_eq!(fixture.call("IpamDriver.RequestPool", pool).await["PoolID"], "fd00:1::/64");
    let gateway =
        json!({ "PoolID": "fd00:1::/64", "Address": "", "Options": { "RequestAddressType": "com.docker.network.gateway" } });
    assert_eq!(fixture.call("IpamDriver.RequestAddress", gateway).await["Address"], "fd00:1::1/128");
    let network = json!({
        "NetworkID": "n",
        "IPv4Data": [{ "AddressSpace": "skep", "Gateway": "172.16.9.1/32", "Pool": "172.16.9.0/24" }],
        "IPv6Data": [{ "AddressSpace": "skep", "Gateway": "fd00:1::1/128", "Pool": "fd00:1::/64" }],
        "Options": { "com.docker.network.generic": { NETWORK_OPTION: "swarm1" } },
    });
    assert_eq!(fixture.call("NetworkDriver.CreateNetwork", network.clone()).await, json!({}));

    // The engine asks for both addresses with the MAC address of the interface; another container asks in between.
    let request = |pool: &str, address: &str, mac: &str| json!({ "PoolID": pool, "Address": address, "Options": { "com.docker.network.endpoint.macaddress": mac } });
    for (mac, address) in [("02:42:AC:00:00:05", "172.16.9.5"), ("02:42:ac:00:00:06", "172.16.9.6")] {
        let reply = fixture.call("IpamDriver.RequestAddress", request("172.16.9.0/24", address, mac)).await;
        assert_eq!(reply["Address"], format!("{address}/32"));
    }
    let reply = fixture.call("IpamDriver.RequestAddress", request("fd00:1::/64", "", "02:42:ac:00:00:05")).await;
    assert_eq!(reply["Address"], "fd00:1::5/128");
    let unknown = fixture.call("IpamDriver.RequestAddress", request("fd00:1::/64", "", "02:42:ac:00:00:77")).await;
    assert!(unknown["Err"].as_str().unwrap_or_default().contains("start the container again"), "{unknown}");

    let endpoint = |v6: &str| json!({ "NetworkID": "n", "EndpointID": "e", "Interface": { "Address": "172.16.9.5/32", "AddressIPv6": v6, "MacAddress": "" } });
    let other = fixture.call("NetworkDriver.CreateEndpoint", endpoint("fd00:1::6/128")).await;
    assert!(other["Err"].as_str().unwrap_or_default().contains("fd00:1::5 belongs"), "{other}");
    assert_eq!(fixture.call("NetworkDriver.CreateEndpoint", endpoint("fd00:1::5/128")).await, json!({ "Interface": {} }));
    assert_eq!(
        fixture.endpoint_call("Join", "e").await["StaticRoutes"],
        json!([
            { "Destination": "172.16.9.1/32", "RouteType": 1 },
            { "Destination": "172.16.9.0/24", "RouteType": 0, "NextHop": "172.16.9.1" },
            { "Destination": "fd00:1::1/128", "RouteType": 1 },
            { "Destination": "fd00:1::/64", "RouteType": 0, "NextHop": "fd00:1::1" },
        ])
    );
    let mut small = network;
    small["IPv6Data"][0]["Pool"] = json!("fd00:1::/121");
    let small = fixture.call("NetworkDriver.CreateNetwork", small).await;
    assert!(small["Err"].as_str().unwrap_or_default().contains("fewer addresses"), "{small}");
}

#[tokio::test]
async fn refusals_tell_the_user_what_to_do() {
    let fixture = Fixture::new("refusals");
    fixture.network(false).await;
    let err = |value: Value| value["Err"].as_str().unwrap_or_default().to_owned();
    let plain = json!({ "PoolID": "10.0.1.0/24", "Address": "", "Options": null });
    assert!(err(fixture.call("IpamDriver.RequestAddress", plain).await).contains("remove the engine's network"));
    let outside = json!({ "PoolID": "10.0.1.0/24", "Address": "10.0.2.5", "Options": null });
    assert!(err(fixture.call("IpamDriver.RequestAddress", outside).await).contains("not in the subnet"));
    let any = json!({ "Pool": "", "SubPool": "", "Options": null, "V6": false });
    assert!(err(fixture.call("IpamDriver.RequestPool", any).await).contains("docker network create -d overlay"));
    assert!(
        err(fixture.call("IpamDriver.RequestPool", json!({ "Pool": "10.0.1.0/24", "V6": true })).await).contains("not a subnet")
    );
    assert!(err(fixture.endpoint_call("Join", "unknown").await).contains("not known"));
    let unknown_network = json!({ "NetworkID": "other", "EndpointID": "e", "Interface": { "Address": "10.0.1.9/32" } });
    assert!(err(fixture.call("NetworkDriver.CreateEndpoint", unknown_network).await).contains("docker network rm"));
    assert!(err(fixture.endpoint("e", "").await).contains("did not ask skep"));
    *fixture.links.broken.lock().expect("lock") = true;
    fixture.endpoint("e1", "10.0.1.5/32").await;
    assert!(err(fixture.endpoint_call("Join", "e1").await).contains("10.0.1.5: no mesh namespace"));
}

#[tokio::test]
async fn empty_bodies_garbage_and_floods_are_errors_and_change_nothing() {
    let fixture = Fixture::new("garbage");
    fixture.network(false).await;
    fixture.endpoint("e1", "10.0.1.5/32").await;
    fixture.endpoint_call("Join", "e1").await;
    let file = std::fs::read(fixture.file()).expect("a file");
    for call in ["Join", "Leave", "DeleteEndpoint", "CreateEndpoint", "CreateNetwork", "DeleteNetwork", "EndpointOperInfo"] {
        let reply = fixture.raw(&format!("NetworkDriver.{call}"), None).await;
        assert_eq!(reply.status, 400, "{call}");
        assert!(String::from_utf8_lossy(&reply.body).contains("without a body"));
        assert_eq!(fixture.raw(&format!("NetworkDriver.{call}"), Some(&json!(["x"]))).await.status, 400, "{call}");
    }
    for call in ["RequestAddress", "RequestPool", "ReleasePool", "ReleaseAddress"] {
        assert_eq!(fixture.raw(&format!("IpamDriver.{call}"), None).await.status, 400, "{call}");
    }
    assert_eq!(fixture.raw("NetworkDriver.Nonsense", None).await.status, 404);
    let mut flood = b"POST /NetworkDriver.Leave HTTP/1.1\r\nHost: x\r\nContent-Length: 999999999\r\n\r\n".to_vec();
    flood.resize(super::MAX_BODY + 1000, b' ');
    assert_eq!(send(&fixture.socket(), &flood).await, "413");
    // A truncated body.
    send(
        &fixture.socket(),
        b"POST /NetworkDriver.Leave HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{\"EndpointID\":\"e1\"}",
    )
    .await;
    assert_eq!(std::fs::read(fixture.file()).expect("a file"), file);
    assert_eq!(fixture.links().len(), 1);
}

/// Sends bytes, shuts the connection down for writing, and returns the status of the reply.
async fn send(socket: &Path, bytes: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket).await.expect("connects");
    // The server may close the connection before it has read all.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut reply = Vec::new();
    let _ = stream.read_to_end(&mut reply).await;
    String::from_utf8_lossy(&reply).split(' ').nth(1).unwrap_or_default().to_owned()
}

#[tokio::test]
async fn the_error_of_a_damaged_file_tells_what_to_do() {
    let fixture = Fixture::new("damaged");
    for (bytes, expected) in [("{", "damaged"), ("{\"format\":7,\"networks\":{},\"endpoints\":{}}", "format 7")] {
        std::fs::write(fixture.file(), bytes).expect("writes");
        let (links, mtu) = (fixture.links.clone(), fixture.mtu.subscribe());
        let driver = Driver::new(links, Arc::new(crate::datapath::NoSandboxes), fixture.file(), mtu);
        let error = format!("{:#}", driver.load().expect_err("refused"));
        assert!(error.contains(expected) && error.contains("endpoints.json"), "{error}");
        assert!(driver.file.update(|_| ()).await.is_err(), "it is not overwritten");
        assert_eq!(std::fs::read_to_string(fixture.file()).expect("reads"), bytes);
        std::fs::remove_file(fixture.file()).expect("moved away");
        driver.load().expect("without a restart");
    }
}
