//! How full the maps are. The kernel has no count of a map's entries, so they are read in batches.
#![allow(unsafe_code, reason = "aya has no way to count")]

use super::batch::Batches;
use super::load::chain;
use anyhow::Context as _;
use aya::maps::{MapData, MapType};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use std::path::Path;

/// `BPF_MAP_GET_NEXT_KEY`: prefix trees have no batches.
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;

/// Entries of a map, and how many it has room for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Occupancy {
    pub entries: u64,
    pub room: u64,
    /// Kernel memory that it takes now, in bytes; 0: not known.
    #[serde(default)]
    pub bytes: u64,
    /// A full map forgets the least recently used entry, and is full most of the time; others take no new entry then.
    pub forgets: bool,
}

impl Occupancy {
    /// Whether more than four fifths of a map that forgets nothing are used.
    #[must_use]
    pub fn is_nearly_full(&self) -> bool {
        !self.forgets && self.entries * 5 > self.room * 4
    }
}

/// The part of `union bpf_attr` for a single key.
#[repr(C)]
#[derive(Default)]
struct KeyAttr {
    map_fd: u32,
    zero: u32,
    key: u64,
    next_key: u64,
}

/// The maps in a folder of pins that have entries of their own: hash tables and prefix trees.
pub(super) fn read(folder: &Path) -> anyhow::Result<BTreeMap<String, Occupancy>> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        let map = MapData::from_pin(folder.join(&name)).map_err(|e| anyhow::anyhow!("map {name}: {}", chain(&e)))?;
        let info = map.info()?;
        let (key, fd) = (info.key_size(), map.fd().as_fd());
        let kind = info.map_type()?;
        let entries = match kind {
            MapType::Hash | MapType::LruHash => count_batches(fd, key, info.value_size()),
            MapType::LpmTrie => count_keys(fd, key),
            _ => continue,
        };
        let entries = entries.with_context(|| format!("map {name} cannot be counted"))?;
        let forgets = matches!(kind, MapType::LruHash);
        all.insert(name, Occupancy { entries, room: info.max_entries().into(), bytes: bytes(fd), forgets });
    }
    Ok(all)
}

/// Kernel memory of a map; 0 if the kernel does not say.
fn bytes(map: BorrowedFd<'_>) -> u64 {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd())).unwrap_or_default();
    text.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok()).unwrap_or_default()
}

fn raw(fd: BorrowedFd<'_>) -> io::Result<u32> {
    u32::try_from(fd.as_raw_fd()).map_err(io::Error::other)
}

/// Entries of a hash table.
fn count_batches(fd: BorrowedFd<'_>, key_size: u32, value_size: u32) -> io::Result<u64> {
    let mut batches = Batches::new(key_size as usize, value_size as usize);
    let mut entries = 0;
    loop {
        let batch = batches.read(fd)?;
        entries += batch.entries as u64;
        if batch.last {
            return Ok(entries);
        }
    }
}

/// Entries of a prefix tree.
fn count_keys(fd: BorrowedFd<'_>, key_size: u32) -> io::Result<u64> {
    let (mut key, mut next) = (vec![0_u8; key_size as usize], vec![0_u8; key_size as usize]);
    let mut entries = 0;
    loop {
        let before = if entries == 0 { 0 } else { key.as_ptr() as u64 };
        let mut attr = KeyAttr { map_fd: raw(fd)?, zero: 0, key: before, next_key: next.as_mut_ptr() as u64 };
        // SAFETY: the kernel reads and writes one key of the map's size.
        let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_GET_NEXT_KEY, &raw mut attr, size_of::<KeyAttr>()) };
        if done < 0 {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ENOENT) { Ok(entries) } else { Err(error) };
        }
        entries += 1;
        std::mem::swap(&mut key, &mut next);
    }
}
