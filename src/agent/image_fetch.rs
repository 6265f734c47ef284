//! How a node gets the image of a task.

use crate::model::{PullAuth, Task};

/// An image that a task needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageFetch {
    pub image: String,
    pub auth: Option<PullAuth>,
    /// A tag is pulled also where the engine has it: it may be another image by now.
    pub renews_tag: bool,
}

impl ImageFetch {
    pub(super) fn of(task: &Task) -> Self {
        // What follows a failure runs what the node has: a crash loop is no reason to ask the registry again and again.
        let (image, auth) = (task.spec.container_spec.image.clone(), task.pull_auth.clone());
        Self { image, auth, renews_tag: task.failures.is_none() }
    }

    /// Whether an image that the engine has under this reference may be used without a look at the registry.
    #[must_use]
    pub(super) fn takes_present(&self) -> bool {
        // A node that has started from its ledger has no credentials: the next session brings them.
        !self.renews_tag || self.is_by_digest() || self.auth.as_ref().is_some_and(PullAuth::is_withheld)
    }

    /// The reference means one image for ever.
    fn is_by_digest(&self) -> bool {
        self.image.contains('@') || self.image.starts_with("sha256:")
    }
}
