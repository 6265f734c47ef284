//! Many entries of an array in one call: a table has hundreds of slots, ten thousand services have millions.
#![allow(unsafe_code, reason = "aya has no batches")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};

/// `BPF_MAP_LOOKUP_BATCH` and `BPF_MAP_UPDATE_BATCH` of `enum bpf_cmd`.
const LOOKUP: libc::c_long = 24;
const UPDATE: libc::c_long = 26;
/// Entries of one call.
const MOST: usize = 16_384;

/// What `union bpf_attr` is for a batch.
#[repr(C)]
#[derive(Default)]
struct Batch {
    after: u64,
    last: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    entry_flags: u64,
    flags: u64,
}

impl Batch {
    fn of(map: BorrowedFd<'_>, count: usize) -> io::Result<Self> {
        let map = u32::try_from(map.as_raw_fd()).map_err(io::Error::other)?;
        Ok(Self { map, count: u32::try_from(count).map_err(io::Error::other)?, ..Self::default() })
    }

    /// # Safety
    /// Keys and values are as long as `count` says, after and last are keys or nothing.
    unsafe fn call(&mut self, command: libc::c_long) -> io::Result<()> {
        // SAFETY: the caller's word; the kernel reads and writes no more of `self` than its size.
        let done = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *self, size_of::<Self>()) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

/// Reads so many entries of an array of words from `first` on.
pub(super) fn read(map: BorrowedFd<'_>, first: u32, size: u32) -> io::Result<Vec<u32>> {
    let mut words = vec![0_u32; size as usize];
    let mut keys = vec![0_u32; MOST.min(words.len())];
    let mut from = first;
    for part in words.chunks_mut(MOST) {
        let mut last = 0_u32;
        let mut batch = Batch::of(map, part.len())?;
        let before = from.checked_sub(1);
        batch.after = before.as_ref().map_or(0, |key| std::ptr::from_ref(key) as u64);
        batch.last = &raw mut last as u64;
        batch.keys = keys.as_mut_ptr() as u64;
        batch.values = part.as_mut_ptr() as u64;
        // SAFETY: `keys` and `part` have room for as many words as are asked for, `before` and `last` for one.
        let done = unsafe { batch.call(LOOKUP) };
        // The kernel says so when it meets the array's end, with what it has given.
        match done {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ if batch.count as usize != part.len() => return Err(io::ErrorKind::UnexpectedEof.into()),
            _ => from += batch.count,
        }
    }
    Ok(words)
}

/// Writes entries of an array of words from `first` on.
pub(super) fn write(map: BorrowedFd<'_>, first: u32, words: &[u32]) -> io::Result<()> {
    let mut from = first;
    for part in words.chunks(MOST) {
        let keys: Vec<u32> = (from..).take(part.len()).collect();
        let mut batch = Batch::of(map, part.len())?;
        batch.keys = keys.as_ptr() as u64;
        batch.values = part.as_ptr() as u64;
        // SAFETY: there are as many keys and words as the call is told.
        unsafe { batch.call(UPDATE)? };
        from += batch.count;
    }
    Ok(())
}
