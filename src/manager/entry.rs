//! A transaction as it stands in the log.

use crate::store::{Store, StoreError, Transaction};
use serde::{Deserialize, Serialize};

/// A transaction as an entry of the log. The format is the feature level that it was written at.
#[derive(Serialize, Deserialize)]
pub(super) struct TransactionEntry {
    format: u32,
    pub transaction: Transaction,
    /// Of the proposal; absent in entries of builds with one manager.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
}

impl TransactionEntry {
    /// As the managers of the cluster read it.
    pub(super) fn new(id: u64, transaction: Transaction, store: &Store) -> Self {
        let format = store.feature_level();
        Self { format, transaction, id: (format >= PROPOSAL_IDS).then_some(id) }
    }
}

/// First feature level whose entries name their proposal.
const PROPOSAL_IDS: u32 = 2;

/// Outcome of applying a transaction.
pub type ApplyOutcome = Result<(), StoreError>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::durable::recorded::RecordedNames;
    use crate::store::decode_document;

    #[test]
    fn every_field_of_an_entry_is_in_the_recorded_one() {
        let recorded = include_bytes!("../../tests/it/formats/entry-2.json");
        let value: serde_json::Value = serde_json::from_slice(recorded).unwrap();
        let names = RecordedNames::default();
        names.read::<TransactionEntry>(&value).unwrap();
        let missing = names.missing().into_iter().filter(|name| name.starts_with("TransactionEntry."));
        assert_eq!(missing.collect::<Vec<_>>(), [""; 0]);
        let read: TransactionEntry = decode_document(recorded).unwrap();
        assert_eq!(serde_json::to_value(read).unwrap(), value);
    }
}
