//! Programs at a place of a cgroup, as the kernel names them.
#![allow(unsafe_code, reason = "aya asks this of device programs only")]

use super::Hook;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// `BPF_PROG_QUERY` of `enum bpf_cmd`.
const QUERY: libc::c_long = 16;
/// Flag of a place that takes several programs.
const MULTI: u32 = 2;
/// Programs that the kernel takes at one place of a cgroup.
const MOST: u32 = 64;

/// What `union bpf_attr` is for a query.
#[repr(C)]
struct Query {
    target: u32,
    place: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    zero: u32,
    each: u64,
}

/// The kernel's number of a hook's place; `None` for those at devices.
fn place(hook: Hook) -> Option<u32> {
    Some(match hook {
        Hook::Connect4 => 10,
        Hook::Connect6 => 11,
        Hook::Sendmsg4 => 14,
        Hook::Sendmsg6 => 15,
        Hook::Recvmsg4 => 19,
        Hook::Recvmsg6 => 20,
        Hook::Getpeername4 => 29,
        Hook::Getpeername6 => 30,
        _ => return None,
    })
}

/// What is at a place.
#[derive(Default)]
pub(super) struct AttachmentPoint {
    /// Ids of the programs.
    pub(super) programs: Vec<u32>,
    /// One of them has the place for itself: the kernel lets nobody beside it.
    pub(super) alone: bool,
}

/// What is at a hook's place of a cgroup.
pub(super) fn look(cgroup: &File, hook: Hook) -> io::Result<AttachmentPoint> {
    let Some(place) = place(hook) else { return Ok(AttachmentPoint::default()) };
    let target = u32::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?;
    let mut programs = vec![0_u32; MOST as usize];
    let mut query =
        Query { target, place, flags: 0, attach_flags: 0, ids: programs.as_mut_ptr() as u64, count: MOST, zero: 0, each: 0 };
    // SAFETY: the kernel reads and writes no more of `query` than its size, and no more ids than `count` says there is room.
    let done = unsafe { libc::syscall(libc::SYS_bpf, QUERY, &raw mut query, size_of::<Query>()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    programs.truncate(query.count as usize);
    Ok(AttachmentPoint { alone: !programs.is_empty() && query.attach_flags & MULTI == 0, programs })
}
