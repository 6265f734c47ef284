//! bpf(2) with a `union bpf_attr` that the caller fills: for commands that no crate offers.
#![expect(unsafe_code, reason = "bpf(2) has no safe form")]

use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd, RawFd};

/// A zeroed `union bpf_attr` that is filled in 32-bit words.
#[repr(C, align(8))]
pub struct Attr(pub [u32; 36]);

impl Attr {
    pub fn new() -> Self {
        Self([0; 36])
    }
    pub fn word(mut self, at: usize, value: u32) -> Self {
        self.0[at / 4] = value;
        self
    }
    pub fn fd(self, at: usize, fd: RawFd) -> Self {
        self.word(at, u32::try_from(fd).expect("an open descriptor"))
    }
    pub fn pointer<T: ?Sized>(mut self, at: usize, to: *const T) -> Self {
        let bytes = (to.cast::<u8>() as u64).to_ne_bytes();
        self.0[at / 4] = u32::from_ne_bytes(bytes[..4].try_into().expect("4"));
        self.0[at / 4 + 1] = u32::from_ne_bytes(bytes[4..].try_into().expect("4"));
        self
    }
    /// # Safety
    /// Pointers in it are valid for as many bytes as the command reads or writes.
    pub unsafe fn call(&mut self, command: i64) -> io::Result<RawFd> {
        // SAFETY: the caller's; the kernel reads no more than the size that is passed.
        let done = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), size_of::<Self>()) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(RawFd::try_from(done).expect("a descriptor")) }
    }
    /// # Safety
    /// As [`Attr::call`], and the command returns a descriptor.
    pub unsafe fn open(&mut self, command: i64) -> io::Result<OwnedFd> {
        // SAFETY: the caller's; the descriptor is new.
        unsafe { Ok(OwnedFd::from_raw_fd(self.call(command)?)) }
    }
}

/// The machine's cgroup2 tree.
pub fn cgroup() -> File {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
    let point = mounts.lines().find_map(|line| line.split(' ').nth(1).filter(|_| line.split(' ').nth(2) == Some("cgroup2")));
    File::open(point.expect("a cgroup2 tree")).expect("open")
}
