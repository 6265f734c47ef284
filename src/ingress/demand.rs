//! What this node sees of the clients of services that are scaled by load: what waits for a task on published ports and HTTP routes,
//! and how many requests there are. Reported to the leader, which decides.

use super::http::HttpStatus;
use crate::model::{Demand, NodeView, ServiceDemand, ServiceId};
use crate::sync::replace_if_changed;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A change of requests by less than one part in so many is not reported.
const COARSENESS: u64 = 16;

/// What is reported. `waiting`: connections on published ports. Pure.
#[must_use]
pub fn demand(reported: &Demand, counted: &BTreeSet<ServiceId>, waiting: &BTreeMap<ServiceId, u64>, http: &HttpStatus) -> Demand {
    let of_service = |id: &ServiceId| {
        let of_ports = ServiceDemand { waiting: waiting.get(id).copied().unwrap_or(0), request_tenths: 0 };
        let seen = of_ports.plus(http.demand.get(id).copied().unwrap_or_default());
        let request_tenths = coarse(reported.of(id).request_tenths, seen.request_tenths);
        let demand = ServiceDemand { request_tenths, ..seen };
        (demand != ServiceDemand::default()).then(|| (id.clone(), demand))
    };
    // Without the process's answer there may be requests that were not counted.
    Demand { services: counted.iter().filter_map(of_service).collect(), complete: http.error.is_empty() }
}

/// The number reported before, if it is near enough.
fn coarse(before: u64, now: u64) -> u64 {
    let is_near = before != 0 && now != 0 && before.abs_diff(now) < before.max(now).div_ceil(COARSENESS);
    if is_near { before } else { now }
}

/// Publishes the demand until `shutdown`.
pub async fn run(
    mut view: watch::Receiver<Option<Arc<NodeView>>>,
    mut waiting: watch::Receiver<BTreeMap<ServiceId, u64>>,
    mut http: watch::Receiver<HttpStatus>,
    published: watch::Sender<Demand>,
    shutdown: CancellationToken,
) {
    loop {
        let current = view.borrow_and_update().clone();
        if let Some(view) = current {
            let counted = &view.cluster.counted;
            let next = demand(&published.borrow(), counted, &waiting.borrow_and_update(), &http.borrow_and_update());
            replace_if_changed(&published, next);
        }
        let changed = async {
            tokio::select! {
                changed = view.changed() => changed,
                changed = waiting.changed() => changed,
                changed = http.changed() => changed,
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => return,
            changed = changed => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_on_ports_and_routes_is_one_sum_and_a_process_that_does_not_answer_leaves_it_incomplete() {
        let (web, db) = (ServiceId::from("web"), ServiceId::from("db"));
        let counted = BTreeSet::from([web.clone()]);
        let of = |waiting, request_tenths| ServiceDemand { waiting, request_tenths };
        let http = |tenths| HttpStatus {
            demand: [(web.clone(), of(2, tenths)), (db.clone(), of(9, 9))].into(),
            ..HttpStatus::default()
        };
        let ports = BTreeMap::from([(web.clone(), 3), (db.clone(), 1)]);
        let first = demand(&Demand::default(), &counted, &ports, &http(1000));
        assert_eq!(first, Demand { services: [(web.clone(), of(5, 1000))].into(), complete: true });
        let tenths = |now| demand(&first, &counted, &ports, &http(now)).of(&web).request_tenths;
        assert_eq!((tenths(1040), tenths(1200), tenths(0)), (1000, 1200, 0));
        let silent = HttpStatus { error: "no answer".to_owned(), ..HttpStatus::default() };
        let none = demand(&first, &counted, &BTreeMap::new(), &silent);
        assert_eq!(none, Demand::default());
    }
}
