//! How a node gets the image of a task.
//!
//! As in Swarm a tag is pulled also where the engine has it: it may be another image by now. The node's own image is used where that
//! fails. So that a node without a registry starts its tasks, and many tasks of a template do not ask the same, the outcome of a look
//! holds for a minute.

use crate::model::{PullAuth, ServiceId, Task};
use crate::sync::lock;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;
use tokio::time::Instant;

/// How long what a look at a registry has found holds for further tasks of the template.
const HOLDS: Duration = Duration::from_mins(1);
/// A registry that answers refuses at once. One that is silent for so long is left alone, whatever the image.
const SILENT: Duration = Duration::from_secs(5);

/// An image that a task needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageFetch {
    pub image: String,
    pub auth: Option<PullAuth>,
    /// A newer image under the tag is looked for.
    pub renews_tag: bool,
    /// Service and version of its spec: `docker service update --force` makes another one.
    pub template: (ServiceId, u64),
}

impl ImageFetch {
    pub(super) fn of(task: &Task) -> Self {
        Self {
            image: task.spec.container_spec.image.clone(),
            auth: task.pull_auth.clone(),
            // What follows a failure runs what the node has: a crash loop is no reason to ask the registry again and again.
            renews_tag: task.failures.is_none(),
            template: (task.service_id.clone(), task.spec_version),
        }
    }

    /// Whether an image that the engine has under this reference may be used without a look at the registry.
    fn takes_present(&self) -> bool {
        // A node that has started from its ledger has no credentials: the next session brings them.
        !self.renews_tag || self.is_by_digest() || self.auth.as_ref().is_some_and(PullAuth::is_withheld)
    }

    /// The reference means one image for ever.
    fn is_by_digest(&self) -> bool {
        self.image.contains('@') || self.image.starts_with("sha256:")
    }

    /// The host of the registry.
    fn registry(&self) -> &str {
        let host = self.image.split_once('/').map_or("", |(host, _)| host);
        if host.contains(['.', ':']) || host == "localhost" { host } else { "docker.io" }
    }
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Look {
    Template(String, (ServiceId, u64)),
    Registry(String),
}

/// The looks at registries of the last minute.
#[derive(Default)]
pub(super) struct TagLooks(Mutex<BTreeMap<Look, Instant>>);

impl TagLooks {
    /// Whether an image that the engine has may be used as it is.
    pub(super) fn takes_present(&self, fetch: &ImageFetch) -> bool {
        let known = lock(&self.0);
        let holds = |look: &Look| known.get(look).is_some_and(|at| at.elapsed() < HOLDS);
        fetch.takes_present()
            || holds(&Look::Template(fetch.image.clone(), fetch.template.clone()))
            || holds(&Look::Registry(fetch.registry().to_owned()))
    }

    /// A pull that began then has ended.
    pub(super) fn note(&self, fetch: &ImageFetch, began: Instant, failed: bool) {
        let (now, mut known) = (Instant::now(), lock(&self.0));
        known.retain(|_, at| at.elapsed() < HOLDS);
        known.insert(Look::Template(fetch.image.clone(), fetch.template.clone()), now);
        if failed && began.elapsed() >= SILENT {
            known.insert(Look::Registry(fetch.registry().to_owned()), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetch(image: &str, version: u64) -> ImageFetch {
        ImageFetch { image: image.to_owned(), auth: None, renews_tag: true, template: ("web".into(), version) }
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_found_holds_for_a_template_and_for_a_minute() {
        let looks = TagLooks::default();
        let app = fetch("shop.test/app:1", 1);
        assert!(!looks.takes_present(&app));
        looks.note(&app, Instant::now(), false);
        assert!(looks.takes_present(&app));
        assert!(!looks.takes_present(&fetch("shop.test/app:1", 2)), "another template: its user wants a look");
        assert!(!looks.takes_present(&fetch("shop.test/other:1", 1)));
        tokio::time::advance(HOLDS).await;
        assert!(!looks.takes_present(&app));
    }

    #[tokio::test(start_paused = true)]
    async fn a_registry_that_is_silent_is_left_alone_and_one_that_refuses_is_not() {
        for (image, other) in
            [("shop.test/app:1", "shop.test/other:1"), ("web:1", "company/other:1"), ("localhost/a", "localhost/b")]
        {
            let looks = TagLooks::default();
            looks.note(&fetch(image, 1), Instant::now(), true);
            assert!(!looks.takes_present(&fetch(other, 1)), "it was refused at once");
            let began = Instant::now();
            tokio::time::advance(SILENT).await;
            looks.note(&fetch(image, 1), began, true);
            assert!(looks.takes_present(&fetch(other, 1)));
            assert!(!looks.takes_present(&fetch("elsewhere.test:5000/app", 1)));
        }
    }
}
