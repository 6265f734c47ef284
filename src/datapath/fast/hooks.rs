//! Programs at their places: attached, pinned, looked at, taken away. A device's number is part of a pin's name, so a
//! pin whose device was made anew is recognised as nobody's.

use super::load::{self, links_dir};
use super::{Fast, Hook, Link, Side, places};
use anyhow::Context as _;
use aya::programs::links::{CgroupAttachMode, FdLink};
use aya::programs::{CgroupSockAddr, SchedClassifier, TcAttachType, tc};
use aya::util::KernelVersion;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};

use crate::datapath::netns;

impl Fast {
    fn namespace(&self, side: Side) -> BorrowedFd<'_> {
        if side == Side::Mesh { self.mesh.fd() } else { self.mesh.host.as_fd() }
    }

    /// This run's links that are still there, and pins of others.
    pub(super) fn look_at_links(&self) -> anyhow::Result<(BTreeSet<Link>, BTreeSet<String>)> {
        let mut pins = BTreeSet::new();
        for entry in fs::read_dir(links_dir(&self.dir))? {
            pins.insert(entry?.file_name().to_string_lossy().into_owned());
        }
        let mut loaded = self.loaded();
        let mut gone = Vec::new();
        for (link, id) in &loaded.attached {
            if !pins.contains(&link.pin()) || !self.runs(link, *id, loaded.cgroup.as_ref()) {
                gone.push(link.clone());
            }
        }
        for link in &gone {
            loaded.attached.remove(link);
        }
        let links: BTreeSet<Link> = loaded.attached.keys().cloned().collect();
        for link in &links {
            pins.remove(&link.pin());
        }
        Ok((links, pins))
    }

    /// Whether the program with this id is at its place.
    fn runs(&self, link: &Link, id: u32, cgroup: Option<&fs::File>) -> bool {
        let side = link.hook.side();
        if side == Side::Cgroup {
            let there = cgroup.map(|cgroup| places::look(cgroup, link.hook));
            return matches!(there, Some(Ok(there)) if there.programs.contains(&id));
        }
        if !tcx() {
            return true;
        }
        let there = netns::run(self.namespace(side), || SchedClassifier::query_tcx(&link.device, direction(link.hook)));
        matches!(there, Ok(Ok((_, programs))) if programs.iter().any(|p| p.id() == id))
    }

    /// Hooks of socket calls whose place another program has for itself, and what to tell people. It may go at any time.
    pub(super) fn look_for_hermits(&self) -> BTreeMap<Hook, String> {
        let loaded = self.loaded();
        let Some(cgroup) = loaded.cgroup.as_ref() else { return BTreeMap::new() };
        let calls = Hook::ALL.into_iter().filter(|hook| hook.side() == Side::Cgroup);
        let alone = |hook: &Hook| places::look(cgroup, *hook).is_ok_and(|there| there.alone);
        calls.filter(alone).map(|hook| (hook, ALONE.to_owned())).collect()
    }

    /// Puts a program at its place. A device that went away in the meantime is no matter: the next look knows.
    pub(super) fn attach(&self, link: &Link) -> anyhow::Result<()> {
        let attached = self.attach_to(link);
        if attached.is_err() && link.hook.side() != Side::Cgroup && !self.exists(link) { Ok(()) } else { attached }
    }

    fn exists(&self, link: &Link) -> bool {
        let index = netns::run(self.namespace(link.hook.side()), || {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
            Ok::<u32, io::Error>(rustix::net::netdevice::name_to_index(&socket, &link.device)?)
        });
        matches!(index, Ok(Ok(index)) if index == link.index)
    }

    fn attach_to(&self, link: &Link) -> anyhow::Result<()> {
        let mut loaded = self.loaded();
        let side = link.hook.side();
        // The kernel takes one program once per place.
        let pinned = links_dir(&self.dir).join(link.pin()).exists();
        if pinned && loaded.attached.get(link).is_some_and(|id| self.runs(link, *id, loaded.cgroup.as_ref())) {
            return Ok(());
        }
        let cgroup = loaded.cgroup.as_ref().map(fs::File::try_clone).transpose()?;
        let program = loaded.ebpf.program_mut(link.hook.program()).context("the object has no such program")?;
        let (fd, id) = if side == Side::Cgroup {
            let program = <&mut CgroupSockAddr>::try_from(program)?;
            let cgroup = cgroup.context("there is no cgroup2 tree")?;
            // By a link: several of them can be at one place, whatever the mode says.
            let attached = program.attach(cgroup, CgroupAttachMode::Single).map_err(|e| refused(&e))?;
            let owned = program.take_link(attached)?;
            (Some(FdLink::try_from(owned)?), program.info()?.id())
        } else {
            let program = <&mut SchedClassifier>::try_from(program)?;
            let device = &link.device;
            let attached = netns::run(self.namespace(side), || {
                if !tcx() {
                    // The qdisc may be there; a filter of an earlier run is replaced.
                    let _ = tc::qdisc_add_clsact(device);
                    let _ = tc::qdisc_detach_program(device, direction(link.hook), link.hook.program());
                }
                program.attach(device, direction(link.hook))
            })?;
            let owned = program.take_link(attached.map_err(|e| anyhow::anyhow!("{}", load::chain(&e)))?)?;
            let id = program.info()?.id();
            if tcx() {
                (Some(FdLink::try_from(owned)?), id)
            } else {
                // A filter stays where it is without anybody holding it.
                std::mem::forget(owned);
                (None, id)
            }
        };
        let pin = links_dir(&self.dir).join(link.pin());
        match fd {
            Some(fd) => {
                // Beside the old one, then in its place: there is never none.
                let new = pin.with_file_name(format!("{}!", link.pin()));
                let _ = fs::remove_file(&new);
                fd.pin(&new).map_err(|e| anyhow::anyhow!("{}", load::chain(&e)))?;
                fs::rename(&new, &pin).with_context(|| format!("cannot pin {}", pin.display()))?;
            }
            None => fs::create_dir_all(&pin)?,
        }
        loaded.attached.insert(link.clone(), id);
        Ok(())
    }

    pub(super) fn detach(&self, link: &Link) -> anyhow::Result<()> {
        if !tcx() && link.hook.side() != Side::Cgroup {
            let _ = netns::run(self.namespace(link.hook.side()), || {
                tc::qdisc_detach_program(&link.device, direction(link.hook), link.hook.program())
            })?;
        }
        self.loaded().attached.remove(link);
        self.unpin(&link.pin())
    }

    pub(super) fn unpin(&self, pin: &str) -> anyhow::Result<()> {
        let path = links_dir(&self.dir).join(pin);
        let removed = if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) };
        match removed {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

const ALONE: &str = "another program has the root of the cgroup tree for itself (see `bpftool cgroup tree`)";

fn direction(hook: Hook) -> TcAttachType {
    if hook.egress() { TcAttachType::Egress } else { TcAttachType::Ingress }
}

/// Whether the kernel has tcx links; before 6.6 there are filters only.
fn tcx() -> bool {
    KernelVersion::current().is_ok_and(|kernel| kernel >= KernelVersion::new(6, 6, 0))
}

fn refused(error: &aya::programs::ProgramError) -> anyhow::Error {
    let text = load::chain(error);
    if text.contains("Operation not permitted") {
        return anyhow::anyhow!("{text}: {ALONE}");
    }
    anyhow::anyhow!("{text}")
}
