//! What managers say of themselves at the begin of a connection.

use crate::model::NodeId;

/// Greets other managers, on connections in both directions.
pub trait ManagerGreeter: Send + Sync {
    /// This manager's greeting.
    fn greeting(&self) -> Vec<u8>;
    /// Another manager's greeting. It has a manager's certificate and its own mesh address; whether it is a manager of the cluster as
    /// this one knows it is not said.
    fn greeted(&self, node: &NodeId, greeting: &[u8]);
}
