//! Times of objects have the order of the log, whatever the clocks of the proposers say.

use super::{Op, Verb, object};
use proptest::prelude::*;
use skep::model::{Meta, Timestamp};
use skep::store::{Action, Kind, Store, Transaction};

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_later_transaction_has_a_later_time(clocks in proptest::collection::vec(-50..50_i64, 1..30), restart in 0..30_usize) {
        let mut store = Store::default();
        let mut last = None;
        for (number, clock) in clocks.iter().enumerate() {
            if number == restart {
                store = Store::restore(&store.snapshot()).expect("restores");
            }
            let op = Op { verb: Verb::Create, kind: Kind::Task, id: 0, name: 0, number: 1 };
            let create = Action::Create(object(op, Meta::default()));
            let actions = vec![Action::Remove(Kind::Task, "a".to_owned()), create];
            store.apply(store.index() + 1, &Transaction::new(Timestamp(*clock), actions)).expect("applied");
            let created = store.task(&"a".into()).expect("stored").meta.created_at;
            prop_assert!(created >= Timestamp(*clock));
            let is_later = last.is_none_or(|last| last < created || (last, created) == (Timestamp(*clock), Timestamp(*clock)));
            prop_assert!(is_later, "{created:?} after {last:?} at {clock}");
            last = Some(created);
        }
    }
}
