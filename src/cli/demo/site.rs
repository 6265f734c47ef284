//! A site of the demo: HTTP by host name on every host, kept up through an update.

use super::cluster::DemoCluster;
use super::report::DemoReport;
use super::requests::{get, post, send_requests};
use super::wait::wait;
use crate::lab::WHOAMI_IMAGE;
use anyhow::Context as _;
use serde_json::json;
use std::time::Duration;

const SITE: &str = "site.example";
const PORT: u16 = 80;
/// Requests to each host between two looks at the update.
const BURST: usize = 10;

pub(super) async fn serve(cluster: &DemoCluster, report: &mut DemoReport) -> anyhow::Result<()> {
    report.begin("a site by a service's label, http://site.example on every host, updated meanwhile");
    let manager = &cluster.nodes[0];
    let spec = json!({
        "Name": "site",
        "Labels": { "skep.http": SITE, "skep.http.port": "80" },
        "TaskTemplate": { "ContainerSpec": { "Image": WHOAMI_IMAGE, "StopGracePeriod": 1_000_000_000u64 } },
        "Mode": { "Replicated": { "Replicas": 2 } },
        "UpdateConfig": { "Parallelism": 1, "Order": "start-first", "Monitor": 500_000_000u64 },
    });
    post(manager, "/services/create", &spec).await?;
    wait("the site to answer on every host", Duration::from_secs(30), report, async || {
        let (_, failed) = ask_every_host(cluster, 1).await?;
        anyhow::ensure!(failed == 0, "{failed} of {} hosts do not answer yet", cluster.nodes.len());
        Ok(())
    })
    .await?;
    force_update(cluster).await?;
    let (mut sent, mut failed) = (0, 0);
    wait("the update to complete", Duration::from_mins(1), report, async || {
        let (requests, unanswered) = ask_every_host(cluster, BURST).await?;
        (sent, failed) = (sent + requests, failed + unanswered);
        let service = get(manager, "/services/site").await?;
        let state = service["UpdateStatus"]["State"].as_str().unwrap_or("requested");
        anyhow::ensure!(state == "completed", "update {state}: {sent} requests, {failed} failed");
        Ok(())
    })
    .await?;
    report.measured("site", json!({ "requests": sent, "failed": failed }));
    anyhow::ensure!(failed == 0, "{failed} of {sent} requests failed while the service was updated");
    report.done(format!("{sent} requests while both tasks were replaced, none failed"));
    Ok(())
}

/// Requests, and how many of them were not answered with 200.
async fn ask_every_host(cluster: &DemoCluster, times: usize) -> anyhow::Result<(usize, usize)> {
    let mut failed = 0;
    for node in &cluster.nodes {
        failed += send_requests(&cluster.client, node.address(), PORT, SITE, times).await?.failed;
    }
    Ok((times * cluster.nodes.len(), failed))
}

/// `docker service update --force site`.
async fn force_update(cluster: &DemoCluster) -> anyhow::Result<()> {
    let manager = &cluster.nodes[0];
    let service = get(manager, "/services/site").await?;
    let mut spec = service["Spec"].clone();
    spec["TaskTemplate"]["ForceUpdate"] = json!(1);
    let version = service["Version"]["Index"].as_u64().context("the service has no version")?;
    post(manager, &format!("/services/site/update?version={version}"), &spec).await?;
    Ok(())
}
