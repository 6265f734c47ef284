//! `/trace`: reads the packet that a user asks for, lets the eBPF datapath trace it, and names what it met.

mod names;
mod report;
mod request;

use crate::admin::{TraceQuery, TraceReport};
use crate::datapath::ebpf::EbpfDatapath;
use crate::model::{NodeId, NodeView};
use names::TraceNames;
use std::sync::Arc;

/// What the programs of this node would do with a packet.
///
/// # Errors
/// What is wrong with the query, that it is about another node, or the kernel's.
pub(super) async fn trace(
    ebpf: &Result<Arc<EbpfDatapath>, String>,
    view: &NodeView,
    me: &NodeId,
    query: &TraceQuery,
) -> anyhow::Result<TraceReport> {
    request::check_node(view, me, &query.node)?;
    let request = request::read(view, me, query)?;
    let ebpf = ebpf.as_ref().map_err(|why| {
        anyhow::anyhow!(
            "this node runs the userspace datapath ({why}): no program handles packets here, so there is nothing to trace. \
             Listeners of the daemon serve its published ports, and containers see the node's address as the client's: \
             `skep status` shows them"
        )
    })?;
    let traced = ebpf.trace(request.clone()).await?;
    Ok(report::report(&TraceNames::new(view, me, &traced.devices), &request, &traced))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixture::{cluster_part, node_view, peer};

    #[tokio::test]
    async fn a_node_without_the_datapath_says_what_serves_its_ports() {
        let view = node_view(1, Vec::new(), cluster_part(vec![peer(1)]));
        let words = ["tcp", "192.0.2.9", "172.16.0.1:8080"].map(str::to_owned);
        let [protocol, source, destination] = words;
        let query = TraceQuery { protocol, source, destination, ..TraceQuery::default() };
        let off = Err("disabled by the setting ebpf_datapath = \"off\"".to_owned());
        let error = trace(&off, &view, &"node1".into(), &query).await.expect_err("no programs").to_string();
        assert!(error.starts_with("this node runs the userspace datapath (disabled by the setting"), "{error}");
        let bad = TraceQuery { destination: "web".to_owned(), ..query };
        let error = trace(&off, &view, &"node1".into(), &bad).await.expect_err("no address");
        assert!(format!("{error:#}").contains("names are not looked up"), "what is wrong with the packet comes first: {error:#}");
    }
}
