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
