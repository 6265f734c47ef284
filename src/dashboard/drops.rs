//! Drops by reason. Pure.

use super::shown::ShownDrop;
use crate::ingress::ebpf::EbpfStatus;
use std::collections::BTreeMap;

/// What a reason means, for people.
fn meaning(reason: &str) -> &'static str {
    match reason {
        "unknown_flow" => "an answer of a connection that is over",
        "unknown_backend" => "the container that it is for is gone",
        "forged_source" => "a container used an address that is not its own",
        "unexpected_packet" => "a packet that no path has",
        "rewrite_failed" => "the kernel did not translate the packet",
        "datagram_loop" => "two published UDP ports would answer each other",
        "vip_without_backend" => "the service has no running task",
        "vip_from_foreign_address" => "the container asked for a virtual address by an address that is not the network's",
        "source_not_allowed" => "the client is not in the port's allow-list",
        "source_on_cluster_network" => "the source is of a network of the cluster",
        "no_backend" => "no task listens on the port",
        "header_options" => "the packet has IPv4 options or an IPv6 extension header: the userspace datapath serves it",
        _ => "",
    }
}

/// Sums over hooks, largest first; what is left to the host comes last.
pub(super) fn drops(ebpf: &EbpfStatus) -> Vec<ShownDrop> {
    let mut by_reason: BTreeMap<&str, ShownDrop> = BTreeMap::new();
    for refusal in &ebpf.refusals {
        let drop = by_reason.entry(&refusal.reason).or_insert_with(|| ShownDrop {
            reason: refusal.reason.clone(),
            meaning: meaning(&refusal.reason),
            left: refusal.left,
            ..ShownDrop::default()
        });
        drop.count += refusal.count;
        *drop.services.entry(refusal.service.clone()).or_default() += refusal.count;
    }
    for refusal in &ebpf.rising {
        if let Some(drop) = by_reason.get_mut(refusal.reason.as_str()) {
            drop.rising += refusal.count;
        }
    }
    let mut all: Vec<ShownDrop> = by_reason.into_values().collect();
    all.sort_by_key(|drop| (drop.left, std::cmp::Reverse(drop.count)));
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ingress::ebpf::{RefusalCount, refusal_reasons};

    #[test]
    fn drops_are_summed_over_hooks_and_every_reason_is_explained() {
        let refusal = |left, reason: &str, hook: &str, service: &str, count| RefusalCount {
            left,
            reason: reason.to_owned(),
            hook: hook.to_owned(),
            service: service.to_owned(),
            count,
        };
        let refusals = vec![
            refusal(true, "no_backend", "from_uplink", "web", 90),
            refusal(false, "unknown_flow", "from_mesh", "", 2),
            refusal(false, "unknown_flow", "from_host", "web", 3),
            refusal(false, "forged_source", "from_container", "web", 4),
        ];
        let rising = vec![refusal(false, "unknown_flow", "from_host", "web", 1)];
        let all = drops(&EbpfStatus { refusals, rising, ..EbpfStatus::default() });
        let shown: Vec<_> = all.iter().map(|drop| (drop.reason.as_str(), drop.count, drop.rising)).collect();
        assert_eq!(shown, [("unknown_flow", 5, 1), ("forged_source", 4, 0), ("no_backend", 90, 0)]);
        assert_eq!(all[0].services, [(String::new(), 2), ("web".to_owned(), 3)].into());
        for reason in refusal_reasons() {
            assert_ne!(meaning(reason), "", "{reason}");
        }
    }
}
