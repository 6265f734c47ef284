//! Loads the built object: kernel version, bpf file system, maps, cgroup tree, programs. A hook that is unavailable is
//! reported with the reason; the others are used.

use super::hook::{Hook, HookSide, ProgramLink};
use super::netns_cookie::cookie_of;
use super::resized::{self, RESIZED};
use super::sizes::{Bounds, MapGroup, Rooms};
use super::takeover::Takeover;
use crate::datapath::netns;
use crate::durable::ignore_missing;
use anyhow::Context as _;
use aya::maps::{PerCpuHashMap, PerCpuValues};
use aya::programs::{CgroupSockAddr, ProgramError, ProgramType, SchedClassifier};
use aya::sys::is_program_supported;
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use sha2::{Digest as _, Sha256};
use skep_ebpf::{Counter, RefusalKey};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

#[cfg(not(feature = "changed-programs"))]
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/skep.o");
#[cfg(feature = "changed-programs")]
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!("../../../ebpf/skep-changed.o");
const LOCK: &str = include_str!("../../../ebpf/skep.lock");
/// How often a program is loaded again after an interruption.
const LOAD_TRIES: u32 = 16;
/// `statfs` type of a bpf file system.
const BPF_FS_MAGIC: i128 = 0xcafe_4a11;
/// Oldest kernel that has every helper of the programs.
const OLDEST: KernelVersion = KernelVersion::new(5, 15, 0);

/// First kernel with `bpf_set_retval`: a program at a socket call can choose the error.
const SET_RETVAL: KernelVersion = KernelVersion::new(5, 18, 0);

/// The object in the kernel.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    /// Root of the cgroup2 tree.
    pub(super) cgroup: Option<File>,
    /// Links that this run has created, with the program's id.
    pub(super) attached: BTreeMap<ProgramLink, u32>,
    /// Flows of an earlier run that are not all in these maps yet.
    pub(super) takeover: Option<Takeover>,
    pub(super) rooms: Rooms,
}

/// Folder of the pinned maps; maps of another layout are in another one.
pub(super) fn maps_dir(dir: &Path) -> PathBuf {
    dir.join(format!("maps{}", skep_ebpf::LAYOUT))
}

/// Folder of the pinned links.
pub(super) fn links_dir(dir: &Path) -> PathBuf {
    dir.join("links")
}

/// Folder of the pins of a trace's own maps, while they are created.
pub(super) fn trace_dir(dir: &Path) -> PathBuf {
    dir.join("trace")
}

/// Removes the pins of a trace's own maps. The maps live as long as its programs.
pub(super) fn remove_trace_pins(dir: &Path) -> anyhow::Result<()> {
    let pins = trace_dir(dir);
    ignore_missing(fs::remove_dir_all(&pins)).with_context(|| format!("cannot remove {}", pins.display()))
}

/// Loads everything. `rooms`: of the maps; `None`: of those that an earlier run pinned, within the bounds. Also returns the
/// unavailable hooks, with the reason.
pub(super) fn load(dir: &Path, bounds: &Bounds, rooms: Option<Rooms>) -> anyhow::Result<(Loaded, BTreeMap<Hook, String>)> {
    let kernel = KernelVersion::current().context("cannot read the kernel's version")?;
    check_version(kernel)?;
    mount_bpffs(dir)?;
    for folder in [maps_dir(dir), links_dir(dir)] {
        fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    // Maps that an earlier run pinned are opened with the size that they have.
    let (maps, aside) = (maps_dir(dir), dir.join(RESIZED));
    let rooms = rooms.unwrap_or_else(|| bounds.at_start(&resized::pinned_rooms(&maps)));
    resized::set_aside(&maps, &aside, &rooms)?;
    let has_set_retval = u32::from(kernel >= SET_RETVAL);
    let mut loader = EbpfLoader::new();
    loader.override_global("HAS_SET_RETVAL", &has_set_retval, true);
    let host = cookie_of(netns::current()?.as_fd()).context("cannot read the cookie of the host's namespace")?;
    loader.override_global("HOST_NAMESPACE", &host, true);
    let per_source = rooms.get(&MapGroup::TcpFlows).map_or(u32::MAX, |room| room.div_ceil(2));
    loader.override_global("FLOWS_PER_SOURCE", &per_source, true);
    loader.map_max_entries("SLOTS", bounds.blocks).map_max_entries("FRAGMENTS", bounds.fragments);
    for (group, room) in &rooms {
        for map in group.maps() {
            loader.map_max_entries(map, *room);
        }
    }
    resized::read_earlier(&aside, &mut loader);
    let mut ebpf = loader
        .default_map_pin_directory(maps)
        .load(OBJECT)
        .map_err(|e| anyhow::anyhow!("cannot create the maps: {}", chain(&e)))?;
    remove_trace_pins(dir)?;
    if let Err(error) = resized::carry_tables(&aside, &mut ebpf) {
        tracing::warn!(error = format!("{error:#}"), "the tables of larger maps are written again");
    }
    make_refusals(&mut ebpf).context("cannot prepare the counters of drops")?;
    let takeover = Takeover::find(dir, &mut ebpf).context("cannot prepare the takeover of flows")?;
    remove_other_maps(dir, takeover.as_ref());
    let mut unavailable = BTreeMap::new();
    let cgroup = match cgroup_root().and_then(|root| Ok(File::open(root)?)) {
        Ok(root) => Some(root),
        Err(error) => {
            let all = Hook::ALL.into_iter().filter(|h| h.side() == HookSide::Cgroup);
            unavailable.extend(all.map(|hook| (hook, format!("{error:#}"))));
            None
        }
    };
    for hook in Hook::ALL {
        if unavailable.contains_key(&hook) {
            continue;
        }
        if let Err(error) = load_program(&mut ebpf, hook) {
            unavailable.insert(hook, format!("{error:#}"));
        }
    }
    anyhow::ensure!(
        unavailable.len() < Hook::ALL.len(),
        "the kernel accepts none of the programs; {}",
        unavailable.values().next().map(String::as_str).unwrap_or_default()
    );
    let mut loaded = Loaded { ebpf, cgroup, attached: BTreeMap::new(), takeover, rooms };
    // Members of an earlier run, which may have had no marks.
    loaded.mark_members().context("cannot mark the namespaces of containers")?;
    Ok((loaded, unavailable))
}

/// Creates the counters of each hook and reason without a service: what no entry is left for is counted there.
fn make_refusals(ebpf: &mut Ebpf) -> anyhow::Result<()> {
    let cpus = aya::util::nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
    let map = ebpf.map_mut("REFUSALS").context("the object has no map REFUSALS")?;
    let mut map: PerCpuHashMap<_, RefusalKey, u64> = PerCpuHashMap::try_from(map)?;
    let reasons = Counter::ALL.iter().filter(|counter| counter.drop_reason().or(counter.left_reason()).is_some());
    for (reason, hook) in reasons.flat_map(|reason| (0..).zip(skep_ebpf::HOOKS).map(|(hook, _)| (*reason, hook))) {
        let key = RefusalKey { owner: 0, reason: reason as u16, hook, zero: 0 };
        if map.get(&key, 0).is_err() {
            map.insert(key, PerCpuValues::try_from(vec![0; cpus])?, 0)?;
        }
    }
    Ok(())
}

/// Version guard: whether a kernel has what the eBPF datapath needs.
fn check_version(kernel: KernelVersion) -> anyhow::Result<()> {
    anyhow::ensure!(kernel >= OLDEST, "the kernel is {kernel}, the eBPF datapath needs 5.15 or newer");
    Ok(())
}

/// Removes the pins of maps of another layout that no flows are taken over from. Programs of another build that are still
/// attached keep theirs open until they are replaced.
fn remove_other_maps(dir: &Path, takeover: Option<&Takeover>) {
    let own = maps_dir(dir);
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        let maps = path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("maps"));
        // The kernel creates the file maps.debug in every bpf file system; it is not a folder.
        if maps
            && path != own
            && !takeover.is_some_and(|takeover| takeover.needs(&path))
            && path.is_dir()
            && let Err(error) = fs::remove_dir_all(&path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove the maps of another layout");
        }
    }
}

fn load_program(ebpf: &mut Ebpf, hook: Hook) -> anyhow::Result<()> {
    let program = ebpf.program_mut(hook.program()).context("the object has no such program")?;
    // The kernel gives up with EAGAIN where a signal arrives while it verifies the program.
    for _ in 0..LOAD_TRIES {
        let loaded = match hook.side() {
            HookSide::Cgroup => <&mut CgroupSockAddr>::try_from(&mut *program)?.load(),
            HookSide::Host | HookSide::Mesh => <&mut SchedClassifier>::try_from(&mut *program)?.load(),
        };
        match loaded {
            Err(ProgramError::LoadError { io_error, .. }) if io_error.kind() == io::ErrorKind::WouldBlock => {}
            done => return done.map_err(|e| anyhow::anyhow!("{}", chain(&e))),
        }
    }
    anyhow::bail!("the kernel was interrupted {LOAD_TRIES} times while it verified the program")
}

/// An error with its sources. The verifier's log is shortened to its last lines.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text = format!("{text}: {inner}");
        source = inner.source();
    }
    let lines: Vec<&str> = text.lines().collect();
    if lines.len() <= 12 {
        return text;
    }
    format!("{} … {}", lines[0], lines[lines.len() - 10..].join(" | "))
}

fn mount_bpffs(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    if is_bpffs(dir)? {
        return Ok(());
    }
    mount("skep", dir, "bpf", MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, Some(c"mode=0700"))
        .with_context(|| format!("cannot mount a bpf file system at {}", dir.display()))
}

fn is_bpffs(dir: &Path) -> anyhow::Result<bool> {
    let stat = rustix::fs::statfs(dir).with_context(|| format!("cannot read the file system type of {}", dir.display()))?;
    Ok(i128::from(stat.f_type) == BPF_FS_MAGIC)
}

/// Whether the kernel takes programs of the types that are loaded. Loads a trivial one of each.
///
/// # Errors
/// What the kernel lacks, or what this process may not.
pub fn is_supported() -> anyhow::Result<()> {
    check_version(KernelVersion::current().context("cannot read the kernel's version")?)?;
    for (kind, name) in
        [(ProgramType::SchedClassifier, "programs on devices"), (ProgramType::CgroupSockAddr, "programs on sockets")]
    {
        anyhow::ensure!(
            is_program_supported(kind).map_err(|e| anyhow::anyhow!("{}", chain(&e)))?,
            "the kernel has no eBPF {name}"
        );
    }
    Ok(())
}

/// Mount point of the cgroup2 tree; on hybrid machines it is not /sys/fs/cgroup.
///
/// # Errors
/// None is mounted from its root.
pub fn cgroup_root() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let found = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        (after.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(point))
    });
    found.context("no cgroup2 tree is mounted from its root: mount one (mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified)")
}

/// Unmounts the bpf file system at `dir`, which removes the pinned maps, and removes the folder.
pub(super) fn remove(dir: &Path) -> anyhow::Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    loop {
        match unmount(dir, UnmountFlags::DETACH) {
            Ok(()) => {}
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(error) => return Err(io::Error::from(error).into()),
        }
    }
    Ok(ignore_missing(fs::remove_dir(dir))?)
}

/// Whether the built object matches the sources in `folder`.
///
/// # Errors
/// The first file that was changed after the object was built.
pub fn object_is_current(folder: &Path) -> Result<(), String> {
    let lines = LOCK.lines().filter_map(|line| line.split_once("  "));
    let mut seen = 0;
    for (hash, name) in lines {
        let bytes = fs::read(folder.join(name)).map_err(|e| format!("ebpf/{name}: {e}: run `make ebpf`"))?;
        if format!("{:x}", Sha256::digest(&bytes)) != hash {
            return Err(format!("ebpf/{name} was changed after ebpf/skep.o was built: run `make ebpf`"));
        }
        seen += usize::from(name.starts_with("src/"));
    }
    let files = fs::read_dir(folder.join("src")).map_err(|e| e.to_string())?.count();
    if seen == files {
        Ok(())
    } else {
        Err(format!("ebpf/src has {files} files, the object was built from {seen}: run `make ebpf`"))
    }
}

#[cfg(test)]
mod tests {
    use super::{KernelVersion, check_version};

    #[test]
    fn an_old_kernel_is_refused_by_name() {
        for old in [KernelVersion::new(5, 14, 255), KernelVersion::new(5, 10, 0), KernelVersion::new(4, 19, 0)] {
            let why = check_version(old).map_err(|e| e.to_string());
            assert_eq!(why, Err(format!("the kernel is {old}, the eBPF datapath needs 5.15 or newer")));
        }
        assert!(check_version(KernelVersion::new(5, 14, 2)).is_err_and(|e| e.to_string().starts_with("the kernel is 5.14.2,")));
        for supported in [KernelVersion::new(5, 15, 0), KernelVersion::new(6, 1, 0), KernelVersion::new(6, 18, 44)] {
            assert!(check_version(supported).is_ok(), "{supported}");
        }
    }
}
