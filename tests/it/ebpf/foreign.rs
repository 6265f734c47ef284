//! Somebody else's programs: they do nothing, and the kernel counts how often.
#![expect(unsafe_code, reason = "bpf(2) has no safe form")]

use super::super::bpf::{Attr, cgroup};
use std::ffi::CString;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// As long as it lives, the kernel counts how often programs run.
pub struct Counting {
    _fd: OwnedFd,
}

impl Counting {
    pub fn start() -> Self {
        // SAFETY: no pointers; the command gives a descriptor.
        Self { _fd: unsafe { Attr::new().open(32) }.expect("statistics (root needed)") }
    }
}

/// A program of two instructions.
pub struct Program {
    fd: OwnedFd,
}

impl Program {
    /// For a device: whatever comes goes on.
    pub fn of_device() -> Self {
        Self::load(3, 0, -1)
    }

    /// For `connect` over IPv4: every call is fine.
    pub fn of_connect() -> Self {
        Self::load(18, 10, 1)
    }

    fn load(kind: u32, place: u32, verdict: i32) -> Self {
        // r0 = verdict; exit
        let code: [u64; 2] = [u64::from(verdict.cast_unsigned()) << 32 | 0xb7, 0x95];
        let mut attr =
            Attr::new().word(0, kind).word(4, 2).word(68, place).pointer(8, code.as_ptr()).pointer(16, c"GPL".as_ptr());
        // SAFETY: two instructions and a text that ends with a zero; the command gives a descriptor.
        Self { fd: unsafe { attr.open(5) }.expect("loads") }
    }

    /// How often it ran while it was counted.
    pub fn runs(&self) -> u64 {
        let mut info = [0_u64; 30];
        let mut attr = Attr::new().fd(0, self.fd.as_raw_fd()).word(4, 240).pointer(8, info.as_mut_ptr());
        // SAFETY: the kernel writes 240 bytes at most, which `info` has.
        unsafe { attr.call(15) }.expect("info");
        info[25]
    }

    pub fn pin(&self, path: &Path) {
        let name = CString::new(path.as_os_str().as_bytes()).expect("no zero in a path");
        // SAFETY: the name ends with a zero.
        unsafe { Attr::new().fd(8, self.fd.as_raw_fd()).pointer(0, name.as_ptr()).call(6) }
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    /// Puts it at a place beside others for as long as the descriptor lives.
    pub fn at(&self, target: u32, place: u32) -> OwnedFd {
        // SAFETY: no pointers; the command gives a descriptor.
        unsafe { Attr::new().fd(0, self.fd.as_raw_fd()).word(4, target).word(8, place).open(28) }.expect("attaches")
    }

    /// Puts it at the root of the machine's cgroup2 tree.
    pub fn at_cgroup(&self) -> OwnedFd {
        self.at(u32::try_from(cgroup().as_raw_fd()).expect("an open descriptor"), 10)
    }
}
