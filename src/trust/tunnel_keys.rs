//! The keys of this node's tunnel that may still be needed to open something: one, or two while the node changes its key.

use super::key_possession::TunnelKey;
use crate::model::WgKey;
use crate::sync::lock;
use std::sync::{Arc, Mutex};

/// Shared: all clones see the keys of this moment.
#[derive(Clone, Default, Debug)]
pub struct TunnelKeys(Arc<Mutex<Vec<Arc<TunnelKey>>>>);

impl TunnelKeys {
    /// Replaces all of them; the first is the one that the tunnel uses.
    pub fn set(&self, keys: Vec<TunnelKey>) {
        *lock(&self.0) = keys.into_iter().map(Arc::new).collect();
    }

    /// The one that the tunnel uses.
    #[must_use]
    pub fn current(&self) -> Option<Arc<TunnelKey>> {
        lock(&self.0).first().cloned()
    }

    /// The one with this public half.
    #[must_use]
    pub fn of(&self, public: WgKey) -> Option<Arc<TunnelKey>> {
        lock(&self.0).iter().find(|key| key.public() == public).cloned()
    }
}

impl From<TunnelKey> for TunnelKeys {
    fn from(key: TunnelKey) -> Self {
        let keys = Self::default();
        keys.set(vec![key]);
        keys
    }
}
