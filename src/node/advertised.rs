//! Whether the host still has the address that this node advertises. One that it has no more is followed at the next start; until
//! then it is named, as nothing else shows why others do not find this node.

use super::address::ListenAddresses;
use super::supervisor::Blockers;
use crate::datapath::interfaces::host_addresses;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How often the host's addresses are looked at.
const TICK: Duration = Duration::from_secs(10);
/// Its name among the blockers.
const NAME: &str = "address";

/// Names an address that is gone, until `stop`.
pub(super) async fn run(addresses: ListenAddresses, blockers: Blockers, stop: CancellationToken) {
    loop {
        match host_addresses().await {
            Ok(host) => match addresses.astray(&host) {
                None => blockers.clear(NAME),
                Some(reason) if blockers.now().get(NAME) == Some(&reason) => {}
                Some(reason) => {
                    tracing::warn!(reason, "other nodes do not find this one");
                    blockers.set(NAME, reason);
                }
            },
            Err(error) => tracing::debug!(error = format!("{error:#}"), "the host's addresses were not read"),
        }
        tokio::select! {
            () = stop.cancelled() => return blockers.clear(NAME),
            () = tokio::time::sleep(TICK) => {}
        }
    }
}
