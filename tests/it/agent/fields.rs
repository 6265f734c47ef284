//! Every field of a task's container, as the engine shows the container that was made of it.

use super::fixture::{AgentFixture, POLITE, task};
use serde_json::{Value, json};
use skep::model::{Task, TaskState};

/// A task with these fields of the template, beside its image.
fn task_of(slot: u64, template: Value) -> Task {
    let mut task = task(slot, POLITE);
    let mut spec = serde_json::to_value(&*task.spec).expect("JSON");
    merge(&mut spec, template);
    task.spec = std::sync::Arc::new(serde_json::from_value(spec).expect("a task template"));
    task
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

async fn inspect(agent: &AgentFixture, task: &Task) -> Value {
    let text = agent.docker(&["inspect", &task.container_name()]).await.expect("it exists");
    serde_json::from_str::<Value>(&text).expect("JSON")[0].take()
}

/// Each value of `expected` is in `shown`, at the same place; an object may have more there.
fn differences(path: &str, expected: &Value, shown: &Value, out: &mut Vec<String>) {
    match (expected, shown) {
        (Value::Object(expected), Value::Object(_)) => {
            for (key, value) in expected {
                differences(&format!("{path}.{key}"), value, &shown[key], out);
            }
        }
        _ if expected == shown => {}
        _ => out.push(format!("{path}: {shown}, not {expected}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_a_container_is_seen_in_its_inspection() {
    let mut agent = AgentFixture::new("fields").await;
    let shared = agent.host.dir().join("shared");
    std::fs::create_dir_all(&shared).expect("a directory");
    let mounts = json!([
        { "Type": "volume", "Source": "honey", "Target": "/v", "VolumeOptions": {
            "NoCopy": true, "Labels": { "a": "b" },
            "DriverConfig": { "Name": "local", "Options": { "type": "tmpfs", "device": "tmpfs", "o": "size=1m" } } } },
        { "Type": "bind", "Source": shared, "Target": "/b", "ReadOnly": true,
            "BindOptions": { "Propagation": "private", "NonRecursive": true } },
        { "Type": "tmpfs", "Target": "/t", "TmpfsOptions": { "SizeBytes": 1_048_576, "Mode": 1016 } },
    ]);
    let health = json!({ "Test": ["CMD", "/bin/ls", "/www"], "Interval": 1_000_000_000, "Timeout": 5_000_000_000_i64,
        "StartPeriod": 2_000_000_000, "Retries": 4 });
    // A profile that allows everything.
    let seccomp = json!({ "Mode": "custom", "Profile": "eyJkZWZhdWx0QWN0aW9uIjoiU0NNUF9BQ1RfQUxMT1cifQ==" });
    let ulimits = json!([{ "Name": "nofile", "Hard": 2048, "Soft": 1024 }]);
    let all = task_of(
        1,
        json!({
            "ContainerSpec": {
                "Labels": { "colour": "blue" }, "Hostname": "beehive", "Env": ["COLOUR=blue"], "Dir": "/www", "User": "1000:1000",
                "Groups": ["44"], "TTY": true, "OpenStdin": true, "ReadOnly": true, "Init": true,
                "StopSignal": "SIGINT", "StopGracePeriod": 3_000_000_000_i64, "Mounts": mounts, "Hosts": ["10.9.8.7 db db3"],
                "DNSConfig": { "Nameservers": ["192.0.2.53"], "Search": ["example.test"], "Options": ["timeout:1"] },
                "Healthcheck": health, "Sysctls": { "net.core.somaxconn": "1000" },
                "CapabilityAdd": ["CAP_NET_ADMIN"], "CapabilityDrop": ["CAP_MKNOD"], "Ulimits": ulimits, "OomScoreAdj": 100,
                "Privileges": { "SELinuxContext": { "Disable": true }, "Seccomp": seccomp, "AppArmor": { "Mode": "disabled" },
                    "NoNewPrivileges": true },
            },
            "Resources": {
                "Limits": { "NanoCPUs": 500_000_000, "MemoryBytes": 67_108_864, "Pids": 50 }, "SwapBytes": 1_048_576, "MemorySwappiness": 10,
            },
            "LogDriver": { "Name": "json-file", "Options": { "max-size": "1m" } },
        }),
    );
    agent.want(std::slice::from_ref(&all));
    agent.until(&all, TaskState::Running).await;
    let shown = inspect(&agent, &all).await;
    let command = &all.spec.container_spec;
    let expected = json!({
        "Config": {
            "Image": command.image, "Entrypoint": command.command, "Cmd": command.args, "Labels": { "colour": "blue" },
            "Hostname": "beehive", "WorkingDir": "/www", "User": "1000:1000", "Tty": true, "OpenStdin": true,
            "StopSignal": "SIGINT", "StopTimeout": 3, "Healthcheck": health,
        },
        "HostConfig": {
            "RestartPolicy": { "Name": "no", "MaximumRetryCount": 0 }, "GroupAdd": ["44"], "ReadonlyRootfs": true, "Init": true,
            "Mounts": mounts, "ExtraHosts": ["db:10.9.8.7", "db3:10.9.8.7"],
            "Dns": ["192.0.2.53"], "DnsSearch": ["example.test"], "DnsOptions": ["timeout:1"],
            "Sysctls": { "net.core.somaxconn": "1000" }, "CapAdd": ["CAP_NET_ADMIN"], "CapDrop": ["CAP_MKNOD"],
            "Ulimits": ulimits, "OomScoreAdj": 100,
            "SecurityOpt": ["no-new-privileges=true", "label=disable", "seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}", "apparmor=unconfined"],
            "NanoCpus": 500_000_000, "Memory": 67_108_864, "MemorySwap": 68_157_440, "MemorySwappiness": 10, "PidsLimit": 50,
            "LogConfig": { "Type": "json-file", "Config": { "max-size": "1m" } },
        },
    });
    let mut wrong = Vec::new();
    differences("", &expected, &shown, &mut wrong);
    assert!(wrong.is_empty(), "\n{}\n{shown:#}", wrong.join("\n"));
    assert!(shown["Config"]["Env"].as_array().is_some_and(|env| env.contains(&json!("COLOUR=blue"))), "{shown:#}");

    // Inside: what the kernel holds against the processes.
    let status = agent.exec(&all, "cat /proc/self/status").await.expect("runs");
    for line in ["NoNewPrivs:\t1", "Groups:\t44 1000", "Uid:\t1000\t1000\t1000\t1000"] {
        assert!(status.contains(line), "{line}: {status}");
    }
    assert_eq!(agent.exec(&all, "cat /proc/sys/net/core/somaxconn").await.expect("runs"), "1000");
    assert_eq!(agent.exec(&all, "cat /proc/1/oom_score_adj").await.expect("runs"), "100");
    assert!(agent.exec(&all, "cat /proc/1/limits").await.expect("runs").contains("1024                 2048"));
    let in_mounts = agent.exec(&all, "cat /proc/mounts").await.expect("runs");
    for (target, words) in [("/", "ro,"), ("/v", "size=1024k"), ("/b", "ro,"), ("/t", "size=1024k,mode=1770")] {
        let line = in_mounts.lines().find(|line| line.split(' ').nth(1) == Some(target)).unwrap_or_default();
        assert!(line.contains(words), "{target}: {line:?}");
    }
    let volume = agent.docker(&["volume", "inspect", "--format={{json .Labels}} {{.Driver}} {{.Options.type}}", "honey"]).await;
    assert_eq!(volume.expect("exists"), "{\"a\":\"b\"} local tmpfs");
    newer_fields(&mut agent).await;
    agent.stop().await;
}

/// What not every engine knows is seen in the container, or refused by the name of the field.
async fn newer_fields(agent: &mut AgentFixture) {
    let version = agent.docker(&["version", "--format={{.Server.APIVersion}}"]).await.expect("a version");
    let minor: u32 = version.strip_prefix("1.").and_then(|minor| minor.parse().ok()).unwrap_or_else(|| panic!("{version}"));
    let dir = agent.host.dir().join("made").display().to_string();
    let image = skep::lab::WHOAMI_IMAGE;
    let bind =
        |options: Value| json!({ "Type": "bind", "Source": dir, "Target": "/n", "ReadOnly": true, "BindOptions": options });
    std::fs::create_dir_all(agent.host.dir().join("made")).expect("a directory");
    let mounts = [
        ("Mounts.BindOptions.CreateMountpoint", 42, bind(json!({ "CreateMountpoint": true }))),
        ("Mounts.BindOptions.ReadOnlyNonRecursive", 44, bind(json!({ "ReadOnlyNonRecursive": true }))),
        (
            "Mounts.BindOptions.ReadOnlyForceRecursive",
            44,
            bind(json!({ "ReadOnlyForceRecursive": true, "Propagation": "rprivate" })),
        ),
        (
            "Mounts.TmpfsOptions.Options",
            46,
            json!({ "Type": "tmpfs", "Target": "/n", "TmpfsOptions": { "Options": [["noexec"]] } }),
        ),
        ("Mounts.Type image", 48, json!({ "Type": "image", "Source": image, "Target": "/n" })),
    ];
    let mut tasks: Vec<(&str, u32, &str, Value, Task)> = (10..)
        .zip(mounts)
        .map(|(slot, (field, needed, mount))| {
            let task = task_of(slot, json!({ "ContainerSpec": { "Mounts": [mount] } }));
            (field, needed, "/HostConfig/Mounts/0", mount, task)
        })
        .collect();
    let health = json!({ "Test": ["CMD", "/bin/ls"], "Interval": 1_000_000_000, "StartInterval": 1_000_000_000 });
    let checked = task_of(20, json!({ "ContainerSpec": { "Healthcheck": health } }));
    tasks.push(("Healthcheck.StartInterval", 44, "/Config/Healthcheck", health, checked));
    agent.want(&tasks.iter().map(|(.., task)| task.clone()).collect::<Vec<_>>());
    for (field, needed, place, expected, task) in &tasks {
        if minor < *needed {
            let rejected = agent.until(task, TaskState::Rejected).await;
            assert!(rejected.err.starts_with(&format!("{field} needs version 1.{needed}")), "{field}: {rejected:?}");
            continue;
        }
        agent.until(task, TaskState::Running).await;
        let shown = inspect(agent, task).await;
        let mut wrong = Vec::new();
        differences(field, expected, shown.pointer(place).unwrap_or(&Value::Null), &mut wrong);
        assert!(wrong.is_empty(), "{}\n{:#}", wrong.join("\n"), shown["HostConfig"]);
    }
}
