//! eBPF programs that are not skep's: they accept everything, and the kernel counts their runs.
#![expect(unsafe_code, reason = "bpf(2) has no safe form")]

use super::super::bpf::{Attr, cgroup};
use std::ffi::CString;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// The kernel counts the runs of programs while it exists.
pub struct RunCounting {
    _fd: OwnedFd,
}

impl RunCounting {
    pub fn start() -> Self {
        // SAFETY: no pointers; the command returns a descriptor.
        Self { _fd: unsafe { Attr::new().open(32) }.expect("statistics (root needed)") }
    }
}

/// A program of two instructions.
pub struct Program {
    fd: OwnedFd,
}

impl Program {
    /// For a device: passes every packet.
    pub fn for_device() -> Self {
        Self::load(3, 0, -1)
    }

    /// For `connect` over IPv4: allows every call.
    pub fn for_connect() -> Self {
        Self::load(18, 10, 1)
    }

    fn load(kind: u32, attach_type: u32, verdict: i32) -> Self {
        // r0 = verdict; exit
        let code: [u64; 2] = [u64::from(verdict.cast_unsigned()) << 32 | 0xb7, 0x95];
        let mut attr =
            Attr::new().word(0, kind).word(4, 2).word(68, attach_type).pointer(8, code.as_ptr()).pointer(16, c"GPL".as_ptr());
        // SAFETY: two instructions and a text that ends with a zero byte; the command returns a descriptor.
        Self { fd: unsafe { attr.open(5) }.expect("loads") }
    }

    /// Number of runs while they were counted.
    pub fn runs(&self) -> u64 {
        let mut info = [0_u64; 30];
        let mut attr = Attr::new().fd(0, self.fd.as_raw_fd()).word(4, 240).pointer(8, info.as_mut_ptr());
        // SAFETY: the kernel writes 240 bytes at most, the size of `info`.
        unsafe { attr.call(15) }.expect("info");
        info[25]
    }

    pub fn pin(&self, path: &Path) {
        let name = CString::new(path.as_os_str().as_bytes()).expect("no zero in a path");
        // SAFETY: the name ends with a zero byte.
        unsafe { Attr::new().fd(8, self.fd.as_raw_fd()).pointer(0, name.as_ptr()).call(6) }
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    /// Attaches it beside others until the descriptor is closed. `target` is a device or a cgroup, by `attach_type`.
    pub fn attach(&self, target: u32, attach_type: u32) -> OwnedFd {
        // SAFETY: no pointers; the command returns a descriptor.
        unsafe { Attr::new().fd(0, self.fd.as_raw_fd()).word(4, target).word(8, attach_type).open(28) }.expect("attaches")
    }

    /// Attaches it to the root of the machine's cgroup2 tree.
    pub fn attach_to_cgroup(&self) -> OwnedFd {
        self.attach(u32::try_from(cgroup().as_raw_fd()).expect("an open descriptor"), 10)
    }
}
