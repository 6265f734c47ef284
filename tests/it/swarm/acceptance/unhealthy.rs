//! A task that becomes unhealthy under load: out of the tables of every node first, then stopped.

use super::super::super::load::{ByName, Load, Target, of_host, server};
use super::*;
use serde_json::json;
use std::time::Duration;

/// A server that on SIGTERM stops listening at once: a node that still sent to it would lose the request.
#[test]
fn an_unhealthy_task_is_replaced_under_load_and_no_request_is_lost() {
    ACCEPTANCE.concurrent_case(async |at| {
        let mut template = server::template(&json!([{ "Target": "back" }]));
        template["ContainerSpec"]["Image"] = json!(WHOAMI_IMAGE);
        let probe = "test ! -e /tmp/sick && wget -q -O /dev/null http://127.0.0.1/";
        let health = &mut template["ContainerSpec"]["Healthcheck"];
        (health["Test"], health["Interval"]) = (json!(["CMD-SHELL", probe]), json!(300_000_000));
        let spec = json!({
            "Name": "sick", "Mode": { "Replicated": { "Replicas": 3 } }, "TaskTemplate": template,
            "EndpointSpec": { "Ports": [{ "Protocol": "tcp", "TargetPort": 80, "PublishedPort": 8090 }] },
        });
        ok(&post(at.manager(), "/services/create", &spec).await);
        let before = at.swarm.running("sick", 3).await;
        wait_for_backends(&at.swarm.hosts, "8090/tcp", 3).await;

        let client = of_host(&at.client);
        let targets = |what: &str| -> Vec<Target> {
            let target = |host: &Host| Target::new(&client, (host.address(), 8090).into(), format!("{what}, {}", host.name()));
            at.swarm.hosts.iter().map(target).collect()
        };
        let pause = Duration::from_millis(20);
        let loads = [Load::http(targets("new"), pause, false), Load::http(targets("kept"), pause, true)];
        let by_name = ByName::start(at.manager(), "caller-n1", "sick");
        let sick = &before[0];
        let host = super::super::super::load::host_of(&at.swarm, sick).await;
        let exec = ["exec", &container(sick), "sh", "-c", "echo > /tmp/sick"];
        output(host.docker().args(exec)).await.expect("exec");
        let failed = within(60, "the task to be replaced", || async {
            let now = at.swarm.running("sick", 3).await;
            anyhow::ensure!(now.iter().all(|task| task["ID"] != sick["ID"]), "{now:#?}");
            let listed = at.ps("sick").await;
            listed.into_iter().find(|task| sick["ID"] == task.id.as_str()).ok_or_else(|| anyhow::anyhow!("it is not listed"))
        })
        .await;
        assert!(failed.current.starts_with("Failed") && failed.error.contains("unhealthy container"), "{failed:?}");
        wait_for_backends(&at.swarm.hosts, "8090/tcp", 3).await;
        // The clients reach the new task too.
        let answers = loads[0].answers();
        within(20, "further answers", || async {
            let now = loads[0].answers();
            anyhow::ensure!(now.iter().zip(&answers).all(|(now, before)| *now > before + 20), "{now:?}");
            Ok(())
        })
        .await;
        for load in loads {
            let tallies = load.stop().await;
            assert!(tallies.iter().all(|tally| tally.failed.is_empty() && tally.answers() > 20), "requests by port");
        }
        let (answered, lost) = by_name.stop().await;
        assert!(lost == 0 && answered > 10, "by name: {answered} answers, {lost} lost");
        at.remove("sick").await;
    });
}
