//! The slots of all tables as mapped memory: the kernel shares the map's pages, so tables are read and written without a
//! system call for each slot. Ten thousand services have millions of slots.
#![allow(unsafe_code, reason = "memory that is shared with the kernel")]

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};

/// The kernel aligns each value of an array to eight bytes.
#[repr(C)]
struct Slot(AtomicU32, AtomicU32);

/// The mapped slots.
pub(super) struct SlotMemory {
    start: *mut c_void,
    length: usize,
}

// SAFETY: the mapping is not bound to a thread, and is accessed by atomic operations only.
unsafe impl Send for SlotMemory {}
// SAFETY: as above.
unsafe impl Sync for SlotMemory {}

impl SlotMemory {
    /// Maps an array of `length` slots.
    pub(super) fn map(map: BorrowedFd<'_>, length: u32) -> io::Result<Self> {
        let length = length as usize;
        let (flags, bytes) = (MapFlags::SHARED, length * size_of::<Slot>());
        // SAFETY: a new mapping at an address of the kernel's choice.
        let start = unsafe { mmap(std::ptr::null_mut(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags, map, 0)? };
        Ok(Self { start, length })
    }

    /// Number of slots.
    pub(super) fn length(&self) -> u32 {
        u32::try_from(self.length).unwrap_or(u32::MAX)
    }

    fn slots(&self) -> &[Slot] {
        // SAFETY: the mapping has `length` slots and lives as long as `self`; any bytes are valid words.
        unsafe { std::slice::from_raw_parts(self.start.cast::<Slot>(), self.length) }
    }

    /// Reads `size` slots from `first` on; `None` if the map ends before.
    pub(super) fn read(&self, first: u32, size: u32) -> Option<Vec<u32>> {
        let slots = self.slots().get(first as usize..)?.get(..size as usize)?;
        Some(slots.iter().map(|slot| slot.0.load(Ordering::Relaxed)).collect())
    }

    /// Writes slots from `first` on; `None` if the map ends before. A frontend that is changed to them afterwards becomes
    /// visible after them.
    pub(super) fn write(&self, first: u32, words: &[u32]) -> Option<()> {
        let slots = self.slots().get(first as usize..)?.get(..words.len())?;
        for (slot, word) in slots.iter().zip(words) {
            slot.0.store(*word, Ordering::Release);
        }
        Some(())
    }
}

impl Drop for SlotMemory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and no reference into the mapping outlives `self`.
        let _ = unsafe { munmap(self.start, self.length * size_of::<Slot>()) };
    }
}
