//! Request bodies compared with those of a real swarm for the same specs (`docker inspect` of its tasks).

use super::container::{bound_ports, create_body, grace_seconds, network_body};
use super::{ContainerPlan, FileMount, NetworkPlan};
use crate::model::service::ServiceSpec;
use crate::model::{NetworkId, NetworkV6, NodeId, PredefinedNetwork, Task, fixture::task_with_resolvers, task::TaskSpec};
use serde_json::{Value, json};
use std::net::Ipv4Addr;
use std::time::Duration;

fn network(name: &str, index: u8, ingress: bool) -> (NetworkPlan, Ipv4Addr) {
    let plan = NetworkPlan {
        id: NetworkId::from(format!("id-{name}")),
        name: name.to_owned(),
        subnet: format!("10.0.{index}.0/24").parse().expect("a subnet"),
        gateway: Ipv4Addr::new(10, 0, index, 1),
        further: Vec::new(),
        v6: None,
        internal: false,
        ingress,
        mtu: 1420,
        most_mtu: None,
    };
    (plan, Ipv4Addr::new(10, 0, index, 7))
}

fn plan(template: Value, networks: Vec<(NetworkPlan, Ipv4Addr)>) -> ContainerPlan {
    let spec: TaskSpec = serde_json::from_value(template).expect("a task template");
    ContainerPlan {
        task: Task {
            spec: spec.into(),
            service_name: "opt".to_owned(),
            node_id: None,
            ..task_with_resolvers("pt3f6dlurx18idwrsal5zng8j", "service0000000000000000id", "", &[])
        },
        node_id: NodeId::from("ej9fe8a4i12wa7r06tdh2hha7"),
        networks,
        engine_socket: "/var/run/docker.sock".into(),
        skep_socket: Some("/run/skep/docker.sock".into()),
        files: Vec::new(),
    }
}

fn body(plan: &ContainerPlan) -> Value {
    serde_json::to_value(create_body(plan)).expect("JSON")
}

#[test]
fn every_option_is_sent_as_swarm_sends_it() {
    let body = body(&plan(
        json!({
            "ContainerSpec": {
                "Image": "lab:1", "Labels": { "a": "b", "com.docker.swarm.task.id": "forged" },
                "Command": ["/entry"], "Args": ["sleep", "1000"],
                "Hostname": "host", "Env": ["A=1"], "Dir": "/d", "User": "u", "Groups": ["44"],
                "TTY": true, "OpenStdin": true, "ReadOnly": true, "Init": true,
                "StopSignal": "SIGINT", "StopGracePeriod": 1_500_000_000_i64,
                "Mounts": [
                    { "Type": "volume", "Source": "v-1", "Target": "/v" },
                    { "Type": "volume", "Target": "/anon" },
                    { "Type": "bind", "Source": "/etc", "Target": "/b", "ReadOnly": true },
                    { "Type": "bind", "Source": "/run/docker.sock", "Target": "/var/run/docker.sock" },
                ],
                "Hosts": ["10.9.8.7 db db3", "fd00::1 db2"],
                "DNSConfig": { "Nameservers": ["10.123.0.100"], "Search": ["example.test"], "Options": ["timeout:1"] },
                "Healthcheck": { "Test": ["CMD-SHELL", "true"], "Interval": 1_000_000_000, "Timeout": 2, "StartPeriod": 3, "Retries": 4 },
                "Sysctls": { "net.core.somaxconn": "1024" },
                "CapabilityAdd": ["CAP_NET_ADMIN"], "CapabilityDrop": ["CAP_MKNOD"],
            },
            "Resources": { "Limits": { "NanoCPUs": 500_000_000, "MemoryBytes": 67_108_864, "Pids": 10 } },
        }),
        vec![],
    ));
    let expected = json!({
        "Image": "lab:1", "Entrypoint": ["/entry"], "Cmd": ["sleep", "1000"], "Env": ["A=1"], "Hostname": "host",
        "User": "u", "WorkingDir": "/d", "Tty": true, "OpenStdin": true, "StopSignal": "SIGINT", "StopTimeout": 2,
        "Healthcheck": { "Test": ["CMD-SHELL", "true"], "Interval": 1_000_000_000, "Timeout": 2, "StartPeriod": 3, "Retries": 4 },
        "Labels": {
            "a": "b",
            "com.docker.swarm.node.id": "ej9fe8a4i12wa7r06tdh2hha7",
            "com.docker.swarm.service.id": "service0000000000000000id",
            "com.docker.swarm.service.name": "opt",
            "com.docker.swarm.task": "",
            "com.docker.swarm.task.id": "pt3f6dlurx18idwrsal5zng8j",
            "com.docker.swarm.task.name": "opt.1.pt3f6dlurx18idwrsal5zng8j",
        },
        "HostConfig": {
            "NetworkMode": "default", "RestartPolicy": { "Name": "no", "MaximumRetryCount": 0 },
            "Mounts": [
                { "Type": "volume", "Source": "v-1", "Target": "/v" },
                { "Type": "volume", "Target": "/anon" },
                { "Type": "bind", "Source": "/etc", "Target": "/b", "ReadOnly": true },
                { "Type": "bind", "Source": "/run/skep/docker.sock", "Target": "/var/run/docker.sock" },
            ],
            "ExtraHosts": ["db:10.9.8.7", "db3:10.9.8.7", "db2:fd00::1"],
            "GroupAdd": ["44"], "ReadonlyRootfs": true, "Init": true,
            "Dns": ["10.123.0.100"], "DnsSearch": ["example.test"], "DnsOptions": ["timeout:1"],
            "Sysctls": { "net.core.somaxconn": "1024" },
            "CapAdd": ["CAP_NET_ADMIN"], "CapDrop": ["CAP_MKNOD"],
            "NanoCpus": 500_000_000, "Memory": 67_108_864, "PidsLimit": 10,
        },
    });
    assert_eq!(body, expected);
}

#[test]
fn mounts_are_sent_with_all_of_their_options() {
    let bind = json!({ "Propagation": "rslave", "NonRecursive": true, "CreateMountpoint": true, "ReadOnlyForceRecursive": true });
    let driver = json!({ "Name": "local", "Options": { "type": "tmpfs" } });
    let volume = json!({ "NoCopy": true, "Labels": { "a": "b" }, "DriverConfig": driver, "Subpath": "x" });
    let tmpfs = json!({ "SizeBytes": 1_048_576, "Mode": 1016, "Options": [["noexec"], ["uid", "7"]] });
    let mounts = json!([
        { "Type": "volume", "Source": "vol1", "Target": "/v", "VolumeOptions": volume },
        { "Type": "bind", "Source": "/tmp", "Target": "/b", "ReadOnly": true, "Consistency": "cached", "BindOptions": bind },
        { "Type": "tmpfs", "Target": "/t", "TmpfsOptions": tmpfs },
        { "Type": "image", "Source": "lab:1", "Target": "/i", "ImageOptions": { "Subpath": "etc" } },
    ]);
    let mut plan = plan(json!({ "ContainerSpec": { "Image": "lab:1", "Mounts": mounts } }), vec![]);
    assert_eq!(body(&plan)["HostConfig"]["Mounts"], mounts, "as they were posted");
    plan.files = vec![FileMount { source: "/run/skep/files/t1/0".into(), target: "/run/secrets/s".to_owned() }];
    let file = json!({ "Type": "bind", "Source": "/run/skep/files/t1/0", "Target": "/run/secrets/s", "ReadOnly": true });
    assert_eq!(body(&plan)["HostConfig"]["Mounts"][4], file);
}

#[test]
fn limits_logs_and_security_are_sent_as_swarm_sends_them() {
    let privileges = json!({
        "SELinuxContext": { "Disable": false, "User": "u", "Role": "r", "Type": "t", "Level": "l" },
        "Seccomp": { "Mode": "custom", "Profile": "eyJhIjoxfQ==" }, "AppArmor": { "Mode": "disabled" }, "NoNewPrivileges": true,
    });
    let host_config = |container: Value, resources: Value| {
        let driver = json!({ "Name": "json-file", "Options": { "max-size": "1m" } });
        let mut template = json!({ "ContainerSpec": container, "Resources": resources, "LogDriver": driver });
        template["ContainerSpec"]["Image"] = json!("lab:1");
        body(&plan(template, vec![]))
    };
    let limits = json!([{ "Name": "core", "Hard": 0, "Soft": 0 }, { "Name": "nofile", "Hard": 2048, "Soft": 1024 }]);
    let memory = json!({ "MemoryBytes": 67_108_864 });
    let shown = host_config(
        json!({ "Privileges": privileges, "Ulimits": limits, "OomScoreAdj": -100, "Healthcheck": { "StartInterval": 5 } }),
        json!({ "Limits": memory, "SwapBytes": 1_000_000, "MemorySwappiness": 10 }),
    );
    assert_eq!(shown["Healthcheck"], json!({ "StartInterval": 5 }));
    let shown = &shown["HostConfig"];
    let labels = ["label=user:u", "label=role:r", "label=level:l", "label=type:t"];
    let options: Vec<&str> =
        ["no-new-privileges=true"].into_iter().chain(labels).chain(["seccomp={\"a\":1}", "apparmor=unconfined"]).collect();
    assert_eq!(shown["SecurityOpt"], json!(options));
    assert_eq!(shown["LogConfig"], json!({ "Type": "json-file", "Config": { "max-size": "1m" } }));
    assert_eq!((&shown["Ulimits"], &shown["OomScoreAdj"]), (&limits, &json!(-100)));
    assert_eq!((&shown["MemorySwap"], &shown["MemorySwappiness"]), (&json!(68_108_864), &json!(10)));

    let privileges =
        json!({ "SELinuxContext": { "Disable": true }, "Seccomp": { "Mode": "unconfined" }, "AppArmor": { "Mode": "default" } });
    let shown =
        host_config(json!({ "Privileges": privileges }), json!({ "Limits": memory, "SwapBytes": -1, "MemorySwappiness": -1 }));
    assert_eq!(shown["HostConfig"]["SecurityOpt"], json!(["label=disable", "seccomp=unconfined"]));
    assert_eq!(shown["HostConfig"]["MemorySwap"], -1);
    assert_eq!(shown["HostConfig"].get("MemorySwappiness"), None);
}

#[test]
fn a_minimal_task_leaves_the_defaults_to_the_image() {
    let body = body(&plan(json!({ "ContainerSpec": { "Image": "lab:1" } }), vec![]));
    for field in [
        "Entrypoint",
        "Cmd",
        "Env",
        "User",
        "WorkingDir",
        "Hostname",
        "StopSignal",
        "Healthcheck",
        "NetworkingConfig",
        "ExposedPorts",
    ] {
        assert_eq!(body.get(field), None, "{field}");
    }
    assert_eq!(body["StopTimeout"], 10);
}

#[test]
fn networks_determine_address_and_name_server() {
    let body_with = |networks| {
        body(&plan(
            json!({ "ContainerSpec": { "Image": "x", "DNSConfig": { "Nameservers": ["8.8.8.8"], "Search": ["a"] } } }),
            networks,
        ))
    };
    let both = body_with(vec![network("ingress", 0, true), network("back", 1, false), network("front", 2, false)]);
    assert_eq!(
        both["NetworkingConfig"],
        json!({ "EndpointsConfig": { "ingress": { "IPAMConfig": { "IPv4Address": "10.0.0.7" } } } })
    );
    assert_eq!(both["HostConfig"]["NetworkMode"], "ingress");
    assert_eq!(both["HostConfig"]["Dns"], json!(["10.0.1.1"]), "skep's, on the first user network; it forwards to the spec's");
    assert_eq!(both["HostConfig"]["DnsSearch"], json!(["a"]));
    assert_eq!(both["HostConfig"]["DnsOptions"], json!(["edns0"]), "not the host's, which may be ndots");
    assert_eq!(body_with(vec![network("ingress", 0, true)])["HostConfig"]["Dns"], json!(["10.0.0.1"]));
}

#[test]
fn host_ports_are_bound_as_swarm_binds_them_and_reported_per_address() {
    let mut plan = plan(json!({ "ContainerSpec": { "Image": "lab:1" } }), vec![]);
    plan.task.ports = serde_json::from_value(json!([
        { "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8083, "PublishMode": "host" },
        { "Protocol": "udp", "TargetPort": 81, "PublishMode": "host" },
        { "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8084, "PublishMode": "host" },
    ]))
    .expect("ports");
    let body = body(&plan);
    assert_eq!(
        body["HostConfig"]["PortBindings"],
        json!({ "80/tcp": [{ "HostPort": "8083" }, { "HostPort": "8084" }], "81/udp": [{ "HostPort": "" }] })
    );
    assert_eq!(body["ExposedPorts"], json!({ "80/tcp": {}, "81/udp": {} }));
    let reported = json!({
        "80/tcp": [{ "HostIp": "0.0.0.0", "HostPort": "8083" }, { "HostIp": "::", "HostPort": "8083" }],
        "81/udp": [{ "HostIp": "0.0.0.0", "HostPort": "32768" }, { "HostIp": "::", "HostPort": "32768" }],
        "90/tcp": null,
    });
    let bound = bound_ports(serde_json::from_value(reported).expect("a port map"));
    let tcp = json!({ "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8083, "PublishMode": "host" });
    let udp = json!({ "Protocol": "udp", "TargetPort": 81, "PublishedPort": 32768, "PublishMode": "host" });
    assert_eq!(serde_json::to_value(bound).expect("JSON"), json!([tcp, tcp, udp, udp]));
}

#[test]
fn a_network_has_its_subnet_and_the_id_of_its_swarm_network() {
    let (mut plan, _) = network("back", 1, false);
    plan.internal = true;
    assert_eq!(
        serde_json::to_value(network_body(&plan)).expect("JSON"),
        json!({
            "Name": "back", "Driver": "skep", "Internal": true,
            "IPAM": { "Driver": "skep", "Config": [{ "Subnet": "10.0.1.0/24", "Gateway": "10.0.1.1" }] },
            "Options": { "skep.network": "id-back", "mtu": "1420" },
        })
    );
}

#[test]
fn a_dual_stack_network_and_its_containers_have_both_addresses() {
    let (mut network, address) = network("back", 1, false);
    network.v6 = Some(NetworkV6 { subnet: "fd00:1::/64".parse().expect("net"), gateway: "fd00:1::fe".parse().expect("address") });
    let posted = serde_json::to_value(network_body(&network)).expect("JSON");
    assert_eq!(posted["EnableIPv6"], true);
    assert_eq!(posted["IPAM"]["Config"][1], json!({ "Subnet": "fd00:1::/64", "Gateway": "fd00:1::fe" }));
    let last = address.octets()[3];
    let body = body(&plan(json!({ "ContainerSpec": { "Image": "lab:1" } }), vec![(network, address)]));
    let config = &body["NetworkingConfig"]["EndpointsConfig"]["back"]["IPAMConfig"];
    assert_eq!(*config, json!({ "IPv4Address": address, "IPv6Address": format!("fd00:1::{last:x}") }));
}

#[test]
fn a_container_on_a_network_of_the_engine_is_made_there() {
    for network in PredefinedNetwork::ALL {
        let template = json!({ "ContainerSpec": { "Image": "lab:1" }, "Networks": [{ "Target": network.id() }] });
        let body = body(&plan(template, vec![]));
        assert_eq!(body["HostConfig"]["NetworkMode"], network.name());
        assert_eq!(body["NetworkingConfig"], Value::Null);
    }
}

#[test]
fn a_grace_period_is_rounded_up() {
    assert_eq!(grace_seconds(Duration::from_millis(1)), 1);
    assert_eq!(grace_seconds(Duration::ZERO), 0);
    assert_eq!(grace_seconds(Duration::from_secs(3)), 3);
}

#[test]
fn a_posted_service_becomes_the_recorded_container() {
    let posted = json!({ "Name": "opt", "TaskTemplate": { "ContainerSpec": { "Image": "lab:1", "Args": ["sleep", "1000"], "Init": false } },
                         "Mode": { "Replicated": {} } });
    let spec: ServiceSpec = serde_json::from_value(posted).expect("a service");
    let template = serde_json::to_value(&spec.task_template).expect("JSON");
    let body = body(&plan(template, vec![]));
    assert_eq!(body["Cmd"], json!(["sleep", "1000"]));
    assert_eq!(body["HostConfig"]["Init"], json!(false));
}
