//! The eBPF datapath as another process with root can read and damage it: maps by their pins, in bytes, links, programs at a
//! cgroup.
#![expect(unsafe_code, reason = "bpf(2) has no safe form for keys and values of any size")]

use super::super::bpf::Attr;
pub use super::super::bpf::cgroup;
use skep::lab::Host;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Hooks of socket calls, with the kernel's number of the attach type.
pub const CALLS: [(&str, u32); 8] = [
    ("connect4", 10),
    ("connect6", 11),
    ("sendmsg4", 14),
    ("sendmsg6", 15),
    ("recvmsg4", 19),
    ("recvmsg6", 20),
    ("getpeername4", 29),
    ("getpeername6", 30),
];

/// Directory of a host's pins, by a path of this process.
pub fn pins(host: &Host) -> PathBuf {
    let below = host.run_dir().strip_prefix("/").expect("absolute").join("bpf");
    PathBuf::from(format!("/proc/{}/root", host.pid())).join(below)
}

/// Directory of its maps.
pub fn maps(host: &Host) -> PathBuf {
    pins(host).join(format!("maps{}", skep_ebpf::LAYOUT))
}

/// Names of the pinned links.
pub fn links(host: &Host) -> BTreeSet<String> {
    let list = std::fs::read_dir(pins(host).join("links"));
    list.into_iter().flatten().filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect()
}

fn get(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes()).expect("no zero in a path");
    // SAFETY: the name ends with a zero byte; the descriptor is new.
    unsafe { Attr::new().pointer(0, name.as_ptr()).open(7) }
}

fn info(fd: &OwnedFd) -> io::Result<[u32; 64]> {
    let mut info = [0_u32; 64];
    let mut attr = Attr::new().fd(0, fd.as_raw_fd()).word(4, 256).pointer(8, info.as_mut_ptr());
    // SAFETY: the kernel writes 256 bytes at most, the size of `info`.
    unsafe { attr.call(15)? };
    Ok(info)
}

/// A pinned map.
pub struct Map {
    fd: OwnedFd,
    key: usize,
    value: usize,
    /// The kernel's number of its type.
    pub kind: u32,
}

pub const HASH: u32 = 1;
pub const ARRAY: u32 = 2;
/// Prefixes: a key begins with its length in bits.
pub const TRIE: u32 = 11;

impl Map {
    pub fn open(host: &Host, name: &str) -> Self {
        let fd = get(&maps(host).join(name)).unwrap_or_else(|e| panic!("map {name}: {e}"));
        let info = info(&fd).expect("info");
        Self { fd, key: info[2] as usize, value: info[3] as usize, kind: info[0] }
    }

    fn attr(&self, key: &[u8], value: *const u8) -> Attr {
        assert_eq!(key.len(), self.key, "the size of a key");
        Attr::new().fd(0, self.fd.as_raw_fd()).pointer(8, key.as_ptr()).pointer(16, value)
    }

    pub fn get(&self, key: &[u8]) -> io::Result<Vec<u8>> {
        let mut value = vec![0; self.value];
        // SAFETY: key and value are of the map's sizes.
        unsafe { self.attr(key, value.as_mut_ptr()).call(1)? };
        Ok(value)
    }

    pub fn set(&self, key: &[u8], value: &[u8]) {
        assert_eq!(value.len(), self.value, "the size of a value");
        // SAFETY: key and value are of the map's sizes.
        unsafe { self.attr(key, value.as_ptr()).call(2) }.expect("set");
    }

    pub fn delete(&self, key: &[u8]) {
        // SAFETY: the key is of the map's size.
        unsafe { self.attr(key, std::ptr::null()).call(3) }.expect("delete");
    }

    pub fn entries(&self) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut all = BTreeMap::new();
        let mut last: Option<Vec<u8>> = None;
        loop {
            let mut next = vec![0; self.key];
            let from = last.as_ref().map_or(std::ptr::null(), Vec::as_ptr);
            let mut attr = Attr::new().fd(0, self.fd.as_raw_fd()).pointer(8, from).pointer(16, next.as_mut_ptr());
            // SAFETY: both keys are of the map's sizes; none is the first.
            if unsafe { attr.call(4) }.is_err() {
                return all;
            }
            // A key may be removed between two calls.
            if let Ok(value) = self.get(&next) {
                all.insert(next.clone(), value);
            }
            last = Some(next);
        }
    }

    /// A key and a value that no daemon writes.
    pub fn garbage(&self) -> (Vec<u8>, Vec<u8>) {
        let mut key = vec![0xee; self.key];
        if self.kind == TRIE {
            let bits = u32::try_from(self.key - 4).expect("short") * 8;
            key[..4].copy_from_slice(&bits.to_ne_bytes());
        }
        (key, vec![0; self.value])
    }
}

/// Detaches a pinned link's program; the pin stays.
pub fn detach(host: &Host, pin: &str) {
    let link = get(&pins(host).join("links").join(pin)).unwrap_or_else(|e| panic!("link {pin}: {e}"));
    // SAFETY: no pointers.
    unsafe { Attr::new().fd(0, link.as_raw_fd()).call(34) }.unwrap_or_else(|e| panic!("detach {pin}: {e}"));
}

/// Whether a pinned link is still attached: only then does the kernel report its cgroup or device.
pub fn attached(host: &Host, pin: &str) -> bool {
    get(&pins(host).join("links").join(pin)).and_then(|link| info(&link)).is_ok_and(|info| info[4] != 0)
}

/// Pins the object at `from` a second time.
pub fn pin_again(from: &Path, to: &Path) {
    let fd = get(from).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    let name = CString::new(to.as_os_str().as_bytes()).expect("no zero in a path");
    // SAFETY: the name ends with a zero byte.
    unsafe { Attr::new().pointer(0, name.as_ptr()).fd(8, fd.as_raw_fd()).call(6) }.expect("pinned");
}

/// Whether a program is still in the kernel.
pub fn alive(program: u32) -> bool {
    // SAFETY: no pointers; the descriptor is new.
    unsafe { Attr::new().word(0, program).call(13).map(|fd| drop(OwnedFd::from_raw_fd(fd))) }.is_ok()
}

/// Program of a pinned link.
pub fn program_of(host: &Host, pin: &str) -> u32 {
    let link = get(&pins(host).join("links").join(pin)).unwrap_or_else(|e| panic!("link {pin}: {e}"));
    info(&link).expect("info")[2]
}

/// The kernel's hash of its instructions: programs with the same tag are the same.
pub fn tag(program: u32) -> [u32; 2] {
    // SAFETY: no pointers; the descriptor is new.
    let fd = unsafe { Attr::new().word(0, program).open(13) }.unwrap_or_else(|e| panic!("program {program}: {e}"));
    let info = info(&fd).expect("info");
    [info[2], info[3]]
}

/// Ids of the programs that are attached to a cgroup.
pub fn programs_at(cgroup: impl AsFd, attach_type: u32) -> Vec<u32> {
    let mut ids = vec![0_u32; 256];
    let mut attr = Attr::new().fd(0, cgroup.as_fd().as_raw_fd()).word(4, attach_type).pointer(16, ids.as_mut_ptr()).word(24, 256);
    // SAFETY: the kernel writes no more ids than `ids` has room for.
    unsafe { attr.call(16) }.expect("query");
    ids.truncate(attr.0[6] as usize);
    ids
}

/// A program that allows every `connect` over IPv4, attached exclusively: the kernel accepts no other beside it.
pub struct Exclusive {
    cgroup: File,
    program: OwnedFd,
}

impl Exclusive {
    pub fn attach(cgroup: File) -> io::Result<Self> {
        // r0 = 1; exit
        let code: [u64; 2] = [0x0000_0001_0000_00b7, 0x95];
        let mut load = Attr::new().word(0, 18).word(4, 2).pointer(8, code.as_ptr()).pointer(16, c"GPL".as_ptr()).word(68, 10);
        // SAFETY: two instructions and a name that ends with a zero byte; the descriptor is new.
        let program = unsafe { OwnedFd::from_raw_fd(load.call(5)?) };
        let mut attach = Attr::new().fd(0, cgroup.as_raw_fd()).fd(4, program.as_raw_fd()).word(8, 10);
        // SAFETY: no pointers.
        unsafe { attach.call(8)? };
        Ok(Self { cgroup, program })
    }
}

impl Drop for Exclusive {
    fn drop(&mut self) {
        let mut detach = Attr::new().fd(0, self.cgroup.as_raw_fd()).fd(4, self.program.as_raw_fd()).word(8, 10);
        // SAFETY: no pointers.
        let _ = unsafe { detach.call(9) };
    }
}

/// Refuses bpf(2) to a command and its child processes, as the default seccomp profile of a container does.
pub fn refuse(command: &mut tokio::process::Command) {
    let filter = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    let call = u32::try_from(libc::SYS_bpf).expect("small");
    // Load the number of the call; bpf returns EPERM, all others are allowed.
    let filters =
        [filter(0x20, 0, 0, 0), filter(0x15, 0, 1, call), filter(0x06, 0, 0, 0x0005_0001), filter(0x06, 0, 0, 0x7fff_0000)];
    let install = move || {
        let mut filters = filters;
        let program = libc::sock_fprog { len: 4, filter: filters.as_mut_ptr() };
        // SAFETY: the program points to four filters, which the kernel copies.
        let done = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
        if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    };
    // SAFETY: one system call between fork and exec, no allocation.
    unsafe { command.pre_exec(install) };
}
