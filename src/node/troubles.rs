//! What does not work on this node, for its managers and for `skep status`: a loop that does not apply the newest view, and
//! objects that the kernel did not take.

use super::loops::AppliedRevisions;
use super::supervisor::Blockers;
use crate::ingress::ebpf::EbpfStatus;
use crate::model::{NodeView, Revision};
use crate::sync::replace_if_changed;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// By the name of the loop.
pub(super) type Troubles = BTreeMap<String, String>;

/// A loop that has not applied a view for this long is in trouble. Shorter than a manager waits for the node, longer than any
/// loop's pause after a failure.
const GRACE: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_secs(1);
/// Objects that are named; of the others the number.
const NAMED: usize = 3;

/// Where troubles are read from.
#[derive(Clone)]
pub(super) struct TroubleSources {
    pub loops: AppliedRevisions,
    pub view: watch::Receiver<Option<Arc<NodeView>>>,
    pub ebpf: watch::Receiver<EbpfStatus>,
    /// Empty while the engine answers.
    pub engine: watch::Receiver<String>,
    pub blockers: Blockers,
}

/// Publishes the troubles until `stop`.
pub(super) async fn run(sources: TroubleSources, troubles: watch::Sender<Troubles>, stop: CancellationToken) {
    let TroubleSources { loops, view, ebpf, engine, blockers } = sources;
    let mut behind = BehindSince::default();
    loop {
        let newest = view.borrow().as_ref().map(|view| view.revision).unwrap_or_default();
        let late = behind.update(&loops.by_name(), newest, Instant::now());
        let mut now = collect(&late, &ebpf.borrow(), &engine.borrow());
        now.extend(blockers.now());
        replace_if_changed(&troubles, now);
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(TICK) => {}
        }
    }
}

/// Since when each loop has not applied a view that it should have.
#[derive(Default)]
struct BehindSince(BTreeMap<String, (Revision, Instant)>);

impl BehindSince {
    /// The loops that are late.
    fn update(&mut self, applied: &BTreeMap<String, Revision>, newest: Revision, now: Instant) -> Vec<String> {
        self.0.retain(|name, (wanted, _)| applied.get(name).is_some_and(|applied| applied < wanted));
        for (name, applied) in applied {
            if *applied < newest {
                self.0.entry(name.clone()).or_insert((newest, now));
            }
        }
        let late = self.0.iter().filter(|(_, (_, since))| now.duration_since(*since) >= GRACE);
        late.map(|(name, _)| name.clone()).collect()
    }
}

fn collect(late: &[String], ebpf: &EbpfStatus, engine: &str) -> Troubles {
    let mut troubles = Troubles::new();
    if !engine.is_empty() {
        troubles.insert("engine".to_owned(), engine.to_owned());
    }
    // The agent applies nothing without an engine.
    for name in late.iter().filter(|name| engine.is_empty() || *name != "agent") {
        let reason = match name.as_str() {
            "ebpf" if !ebpf.reason.is_empty() => ebpf.reason.clone(),
            _ => "does not apply the newest view; the log of skep has the reason".to_owned(),
        };
        troubles.insert(name.clone(), reason);
    }
    if !ebpf.failed.is_empty() {
        let named = ebpf.failed.iter().take(NAMED).map(|(object, reason)| format!("{object}: {reason}"));
        let mut texts: Vec<String> = troubles.remove("ebpf").into_iter().chain(named).collect();
        if ebpf.failed.len() > NAMED {
            texts.push(format!("{} more", ebpf.failed.len() - NAMED));
        }
        troubles.insert("ebpf".to_owned(), texts.join("; "));
    }
    troubles
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(overlay: u64, ebpf: u64) -> BTreeMap<String, Revision> {
        [("ebpf".to_owned(), at(ebpf)), ("overlay".to_owned(), at(overlay))].into()
    }
    fn at(index: u64) -> Revision {
        Revision { incarnation: 1, index }
    }

    #[test]
    fn a_loop_is_late_if_it_lacks_one_view_for_long_and_not_if_it_lags_a_little() {
        let (mut behind, begin) = (BehindSince::default(), Instant::now());
        for second in 0..60 {
            let now = begin + Duration::from_secs(second);
            // The overlay is always one view behind, the eBPF datapath has stopped at 3.
            let late = behind.update(&applied(second, 3.min(second)), at(second + 1), now);
            let wanted: &[&str] = if second >= 13 { &["ebpf"] } else { &[] };
            assert_eq!(late, wanted, "second {second}");
        }
        assert!(behind.update(&applied(99, 99), at(99), begin + Duration::from_mins(2)).is_empty());
    }

    #[test]
    fn troubles_name_the_reason_and_a_few_objects() {
        let mut status = EbpfStatus::default();
        assert_eq!(collect(&[], &status, ""), Troubles::new());
        let lost = collect(&["agent".to_owned()], &status, "it does not answer");
        assert_eq!(lost, [("engine".to_owned(), "it does not answer".to_owned())].into());
        for number in 0..5 {
            status.failed.insert(format!("port 808{number}/tcp"), "map SOURCES: no space".to_owned());
        }
        let text = collect(&["dns".to_owned()], &status, "");
        assert!(text["ebpf"].contains("port 8080/tcp: map SOURCES: no space") && text["ebpf"].contains("2 more"), "{text:?}");
        assert!(text["dns"].contains("newest view"), "{text:?}");
    }
}
