//! Reads hash tables in batches: one system call for thousands of entries.
#![allow(unsafe_code, reason = "aya has no batch lookup")]

use aya::Pod;
use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// `BPF_MAP_LOOKUP_BATCH` of `enum bpf_cmd`.
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
/// Entries per batch: more than a bucket of a hash table has.
const BATCH: u32 = 4_096;

/// The part of `union bpf_attr` for batches.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A position in a hash table, with the entries of the last batch.
pub(super) struct Batches {
    key_size: usize,
    value_size: usize,
    keys: Vec<u8>,
    values: Vec<u8>,
    /// The number of a bucket; the kernel copies no more than that or a key.
    position: Vec<u8>,
    begun: bool,
}

/// What a read found.
pub(super) struct BatchRead {
    pub(super) entries: usize,
    /// The end was reached; the next read begins again.
    pub(super) last: bool,
}

impl Batches {
    /// Sizes in bytes, as the map has them.
    pub(super) fn new(key_size: usize, value_size: usize) -> Self {
        Self {
            key_size,
            value_size,
            keys: vec![0; BATCH as usize * key_size],
            values: vec![0; BATCH as usize * value_size.next_multiple_of(8)],
            position: vec![0; key_size.max(8)],
            begun: false,
        }
    }

    /// Reads the next entries.
    ///
    /// # Errors
    /// The kernel's; the next read begins again then.
    pub(super) fn read(&mut self, map: BorrowedFd<'_>) -> io::Result<BatchRead> {
        let mut attr = BatchAttr {
            in_batch: if self.begun { self.position.as_ptr() as u64 } else { 0 },
            out_batch: self.position.as_mut_ptr() as u64,
            keys: self.keys.as_mut_ptr() as u64,
            values: self.values.as_mut_ptr() as u64,
            count: BATCH,
            map_fd: u32::try_from(map.as_raw_fd()).map_err(io::Error::other)?,
            ..BatchAttr::default()
        };
        // SAFETY: the kernel writes at most `count` keys and values of the map's sizes, and one position.
        let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attr, size_of::<BatchAttr>()) };
        let error = (done < 0).then(io::Error::last_os_error);
        self.begun = error.is_none();
        match error {
            None => Ok(BatchRead { entries: attr.count as usize, last: false }),
            Some(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                Ok(BatchRead { entries: attr.count as usize, last: true })
            }
            Some(error) => Err(error),
        }
    }

    /// The entries of the last batch that was read, as bytes.
    pub(super) fn entries(&self, batch: &BatchRead) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.keys.chunks_exact(self.key_size).zip(self.values.chunks_exact(self.value_size)).take(batch.entries)
    }
}

/// A key or a value of an entry. Panics if it has another size than its type.
pub(super) fn value<T: Pod>(bytes: &[u8]) -> T {
    assert_eq!(bytes.len(), size_of::<T>(), "entries are read with the sizes of their types");
    // SAFETY: as many bytes as the type has, and every value of them is one of the type.
    unsafe { bytes.as_ptr().cast::<T>().read_unaligned() }
}

/// Calls `visit` with each entry of a table.
pub(super) fn each<K: Pod, V: Pod>(map: BorrowedFd<'_>, mut visit: impl FnMut(&K, &V)) -> io::Result<()> {
    let mut batches = Batches::new(size_of::<K>(), size_of::<V>());
    loop {
        let batch = batches.read(map)?;
        for (key, entry) in batches.entries(&batch) {
            visit(&value(key), &value(entry));
        }
        if batch.last {
            return Ok(());
        }
    }
}
