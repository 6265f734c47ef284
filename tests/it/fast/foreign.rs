//! Somebody else's programs: they do nothing, and the kernel counts how often.
#![expect(unsafe_code, reason = "bpf(2) has no safe form")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

/// A zeroed `union bpf_attr`, filled in 32-bit words.
#[repr(C, align(8))]
struct Attr([u32; 36]);

impl Attr {
    fn new(words: &[(usize, u32)]) -> Self {
        let mut attr = Self([0; 36]);
        for (at, value) in words {
            attr.0[at / 4] = *value;
        }
        attr
    }
    fn pointer<T>(mut self, at: usize, to: *const T) -> Self {
        let bytes = (to as u64).to_ne_bytes();
        self.0[at / 4] = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        self.0[at / 4 + 1] = u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]);
        self
    }
    /// # Safety
    /// Pointers in it lead to as many bytes as the command reads or writes.
    unsafe fn call(&mut self, command: i64) -> io::Result<RawFd> {
        // SAFETY: the caller's word; the kernel reads no more than the size given.
        let done = unsafe { libc::syscall(libc::SYS_bpf, command, self.0.as_mut_ptr(), size_of::<Self>()) };
        if done < 0 { Err(io::Error::last_os_error()) } else { Ok(RawFd::try_from(done).expect("a descriptor")) }
    }
    /// # Safety
    /// As [`Attr::call`], and the command gives a descriptor.
    unsafe fn open(&mut self, command: i64) -> io::Result<OwnedFd> {
        // SAFETY: the caller's word; the descriptor is new.
        unsafe { Ok(OwnedFd::from_raw_fd(self.call(command)?)) }
    }
}

fn number(fd: &impl AsRawFd) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("an open descriptor")
}

/// As long as it lives, the kernel counts how often programs run.
pub struct Counting {
    _fd: OwnedFd,
}

impl Counting {
    pub fn start() -> Self {
        // SAFETY: no pointers; the command gives a descriptor.
        Self { _fd: unsafe { Attr::new(&[]).open(32) }.expect("statistics (root needed)") }
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
        let mut attr = Attr::new(&[(0, kind), (4, 2), (68, place)]).pointer(8, code.as_ptr()).pointer(16, c"GPL".as_ptr());
        // SAFETY: two instructions and a text that ends with a zero; the command gives a descriptor.
        Self { fd: unsafe { attr.open(5) }.expect("loads") }
    }

    /// How often it ran while it was counted.
    pub fn runs(&self) -> u64 {
        let mut info = [0_u64; 30];
        let mut attr = Attr::new(&[(0, number(&self.fd)), (4, 240)]).pointer(8, info.as_mut_ptr());
        // SAFETY: the kernel writes 240 bytes at most, which `info` has.
        unsafe { attr.call(15) }.expect("info");
        info[25]
    }

    pub fn pin(&self, path: &Path) {
        let name = CString::new(path.as_os_str().as_bytes()).expect("no zero in a path");
        // SAFETY: the name ends with a zero.
        unsafe { Attr::new(&[(8, number(&self.fd))]).pointer(0, name.as_ptr()).call(6) }
            .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    /// Puts it at a place beside others for as long as the descriptor lives.
    pub fn at(&self, target: u32, place: u32) -> OwnedFd {
        // SAFETY: no pointers; the command gives a descriptor.
        unsafe { Attr::new(&[(0, number(&self.fd)), (4, target), (8, place)]).open(28) }.expect("attaches")
    }

    /// Puts it at the root of the machine's cgroup2 tree.
    pub fn at_cgroup(&self) -> OwnedFd {
        let mounts = std::fs::read_to_string("/proc/self/mounts").expect("mounts");
        let point = mounts.lines().find_map(|line| {
            let mut words = line.split(' ').skip(1);
            let point = words.next()?;
            (words.next()? == "cgroup2").then_some(point)
        });
        let root = std::fs::File::open(point.expect("a cgroup2 tree")).expect("opens");
        self.at(number(&root), 10)
    }
}
