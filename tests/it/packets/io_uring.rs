//! A ring of `io_uring` that carries out one operation at a time.
#![expect(unsafe_code, clippy::cast_ptr_alignment, reason = "no crate here has io_uring; the kernel aligns its rings")]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

const ENTRIES: u32 = 4;
/// Size of `struct io_uring_params`, and where the offsets of both rings are in it.
const PARAMS: usize = 120;
const SQ_OFF: usize = 40;
const CQ_OFF: usize = 80;
/// Offset at which the entries for operations are mapped, and the size of one.
const SQES: libc::off_t = 0x1000_0000;
const SQE: usize = 64;
const ENTER_GETEVENTS: u32 = 1;

pub const SENDMSG: u8 = 9;
pub const CONNECT: u8 = 16;
/// Flag of an operation: a thread of the kernel carries it out.
pub const ASYNC: u8 = 1 << 4;

/// The fields of an operation that these tests need.
pub struct Operation {
    pub code: u8,
    pub flags: u8,
    /// Of a socket address or a message.
    pub pointer: u64,
    /// Length of a socket address.
    pub offset: u64,
    pub length: u32,
}

pub struct Ring {
    fd: OwnedFd,
    params: [u32; PARAMS / 4],
    rings: *mut u8,
    rings_size: usize,
    entries: *mut u8,
}

impl Ring {
    /// `None`: this kernel has no rings, or does not allow them.
    pub fn new() -> Option<Self> {
        let mut params = [0_u32; PARAMS / 4];
        // SAFETY: the kernel writes the parameters; the descriptor is new.
        let fd = unsafe {
            let fd = libc::syscall(libc::SYS_io_uring_setup, ENTRIES, params.as_mut_ptr());
            (fd >= 0).then(|| OwnedFd::from_raw_fd(i32::try_from(fd).unwrap()))?
        };
        let word = |at: usize| params[at / 4] as usize;
        let mapped = (word(SQ_OFF + 24) + word(0) * 4).max(word(CQ_OFF + 20) + word(4) * 16);
        let map = |size: usize, offset: libc::off_t| {
            let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
            // SAFETY: a new mapping of the ring's descriptor.
            let mapped = unsafe { libc::mmap(std::ptr::null_mut(), size, access, kind, fd.as_raw_fd(), offset) };
            assert_ne!(mapped, libc::MAP_FAILED, "{}", io::Error::last_os_error());
            mapped.cast::<u8>()
        };
        let (rings, entries) = (map(mapped, 0), map(word(0) * SQE, SQES));
        Some(Self { fd, params, rings, rings_size: mapped, entries })
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        let offset = self.params[at / 4] as usize;
        // SAFETY: the kernel's offset of an aligned word in the mapping, which lives as long as this.
        unsafe { &*self.rings.add(offset).cast() }
    }

    /// Carries an operation on a socket out; its result as the call's.
    pub fn run(&mut self, socket: BorrowedFd<'_>, operation: &Operation) -> io::Result<u32> {
        let tail = self.word(SQ_OFF + 4).load(Ordering::Relaxed);
        let index = tail & self.word(SQ_OFF + 8).load(Ordering::Relaxed);
        let mut entry = [0_u8; SQE];
        (entry[0], entry[1]) = (operation.code, operation.flags);
        entry[4..8].copy_from_slice(&socket.as_raw_fd().to_ne_bytes());
        entry[8..16].copy_from_slice(&operation.offset.to_ne_bytes());
        entry[16..24].copy_from_slice(&operation.pointer.to_ne_bytes());
        entry[24..28].copy_from_slice(&operation.length.to_ne_bytes());
        // SAFETY: the index is within the entries and the array, both mapped; the kernel reads them after the tail is written.
        unsafe {
            self.entries.add(index as usize * SQE).copy_from(entry.as_ptr(), SQE);
            let array = self.params[(SQ_OFF + 24) / 4] as usize;
            self.rings.add(array + index as usize * 4).cast::<u32>().write(index);
        }
        self.word(SQ_OFF + 4).store(tail.wrapping_add(1), Ordering::Release);
        let none = std::ptr::null::<u8>();
        // SAFETY: submits the entry and waits for its completion; what it points to lives until then.
        let done = unsafe { libc::syscall(libc::SYS_io_uring_enter, self.fd.as_raw_fd(), 1, 1, ENTER_GETEVENTS, none, 0) };
        assert_eq!(done, 1, "{}", io::Error::last_os_error());
        let head = self.word(CQ_OFF).load(Ordering::Relaxed);
        assert_ne!(head, self.word(CQ_OFF + 4).load(Ordering::Acquire), "a completion");
        let at = self.params[(CQ_OFF + 20) / 4] as usize + (head & self.word(CQ_OFF + 8).load(Ordering::Relaxed)) as usize * 16;
        // SAFETY: within the mapping; the kernel has written it before the tail.
        let result = unsafe { self.rings.add(at + 8).cast::<i32>().read() };
        self.word(CQ_OFF).store(head.wrapping_add(1), Ordering::Release);
        u32::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result))
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mappings of `new`, which nothing uses any more.
        unsafe {
            libc::munmap(self.rings.cast(), self.rings_size);
            libc::munmap(self.entries.cast(), self.params[0] as usize * SQE);
        }
    }
}
