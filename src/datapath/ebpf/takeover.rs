//! Takes the flows of programs with other maps over while these programs are replaced, so that an upgrade loses none. A flow that
//! begins at a hook which is not replaced yet is in the earlier maps. Those of this build's layout are read by the new programs too
//! (hooks that answers come by are replaced first). In those of other layouts they cannot look: so the maps are copied again and
//! again until the earlier programs are gone, and meanwhile the new ones drop segments of TCP connections that they have no entry
//! for: TCP sends them again, and the entry is there by then.

use super::clock::monotonic;
use super::migration::{EarlierMaps, Existing};
use super::resized::forget_earlier;
use anyhow::Context as _;
use aya::Ebpf;
use aya::maps::{Array, MapData};
use skep_ebpf::TAKEOVER_SECONDS;
use std::path::Path;
use std::time::Duration;

/// Least time from one copy to the next while programs are attached; and a copy takes no more than a tenth of the time.
const PACE: Duration = Duration::from_millis(20);

/// Time after which a takeover ends although a program of an earlier run is still attached: it cannot be replaced.
const OVERDUE: Duration = Duration::from_secs(10);

/// A takeover that is not complete.
#[derive(Debug)]
pub(super) struct Takeover {
    earlier: Vec<EarlierMaps>,
    /// When the first program was replaced, monotonic clock; `None`: only programs of the earlier maps have run.
    began: Option<Duration>,
    /// End of the last copy, monotonic clock.
    copied_at: Duration,
    took: Duration,
    entries: usize,
}

impl Takeover {
    /// What is to be taken over below `dir`; most of it is copied now, while the earlier programs run on.
    pub(super) fn find(dir: &Path, ebpf: &mut Ebpf) -> anyhow::Result<Option<Self>> {
        let earlier = EarlierMaps::find(dir);
        if earlier.is_empty() {
            set_end(ebpf, 0)?;
            return Ok(None);
        }
        // A run that ended in the middle has left the time.
        let began = (end_of(ebpf)? != 0).then(monotonic);
        let mut takeover = Self { earlier, began, copied_at: Duration::ZERO, took: Duration::ZERO, entries: 0 };
        takeover.copy(ebpf);
        Ok(Some(takeover))
    }

    /// Whether the maps in the folder are still needed.
    pub(super) fn needs(&self, folder: &Path) -> bool {
        self.earlier.iter().any(|earlier| earlier.folder() == folder)
    }

    fn copy(&mut self, ebpf: &mut Ebpf) {
        let begin = monotonic();
        let seconds = u32::try_from(begin.as_secs()).unwrap_or(u32::MAX);
        let existing = if self.began.is_some() { Existing::Kept } else { Existing::Replaced };
        for earlier in &self.earlier {
            let folder = earlier.folder().display();
            match earlier.copy(ebpf, seconds, existing) {
                Ok(entries) => self.entries += entries,
                Err(error) => {
                    tracing::warn!(%folder, error = format!("{error:#}"), "cannot take the flows of an earlier run over");
                }
            }
        }
        self.copied_at = monotonic();
        self.took = self.copied_at.saturating_sub(begin);
    }

    /// To be called before a program is attached that reads or writes flows.
    pub(super) fn before_attach(&mut self, ebpf: &mut Ebpf) {
        if self.began.is_none() {
            self.follow(ebpf);
            self.began = Some(monotonic());
        }
    }

    /// To be called after each program that was attached.
    pub(super) fn after_attach(&mut self, ebpf: &mut Ebpf) {
        let pause = monotonic().saturating_sub(self.copied_at);
        if self.began.is_some() && pause >= PACE.max(self.took * 10) {
            self.follow(ebpf);
        }
    }

    /// Whether it has to end although a program of an earlier run is still attached.
    pub(super) fn is_overdue(&self) -> bool {
        self.began.is_some_and(|began| monotonic().saturating_sub(began) > OVERDUE)
    }

    /// To be called once no program of an earlier run is attached, or the takeover is overdue.
    pub(super) fn end(mut self, ebpf: &mut Ebpf) -> anyhow::Result<()> {
        self.began = self.began.or_else(|| Some(monotonic()));
        self.copy(ebpf);
        set_end(ebpf, 0)?;
        forget_earlier(ebpf)?;
        tracing::info!(entries = self.entries, "took the flows of an earlier run over");
        self.earlier.iter().try_for_each(EarlierMaps::remove)
    }

    /// Copies while the programs are replaced.
    fn follow(&mut self, ebpf: &mut Ebpf) {
        let seconds = u32::try_from(monotonic().as_secs()).unwrap_or(u32::MAX);
        if let Err(error) = set_end(ebpf, seconds.saturating_add(TAKEOVER_SECONDS)) {
            tracing::warn!(error = format!("{error:#}"), "connections that begin now may be lost");
        }
        self.copy(ebpf);
    }
}

fn end_of(ebpf: &Ebpf) -> anyhow::Result<u32> {
    let map = ebpf.map("TAKEOVER").context("the object has no map TAKEOVER")?;
    Ok(Array::<&MapData, u32>::try_from(map)?.get(&0, 0)?)
}

fn set_end(ebpf: &mut Ebpf, second: u32) -> anyhow::Result<()> {
    let map = ebpf.map_mut("TAKEOVER").context("the object has no map TAKEOVER")?;
    Ok(Array::<&mut MapData, u32>::try_from(map)?.set(0, second, 0)?)
}
