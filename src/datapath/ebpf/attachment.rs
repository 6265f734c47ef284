//! Attachment points of a cgroup: asks the kernel which programs are attached.
#![allow(unsafe_code, reason = "aya offers this query for programs on devices only")]

use super::hook::Hook;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

/// `BPF_PROG_QUERY` of `enum bpf_cmd`.
const BPF_PROG_QUERY: libc::c_long = 16;
/// Flag of an attachment point that takes several programs.
const BPF_F_ALLOW_MULTI: u32 = 2;
/// The kernel's limit of programs at one attachment point of a cgroup.
const MAX_PROGRAMS: u32 = 64;

/// The part of `union bpf_attr` for a query.
#[repr(C)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    zero: u32,
    prog_attach_flags: u64,
}

/// `enum bpf_attach_type` of a hook; `None` for those on devices.
fn attach_type(hook: Hook) -> Option<u32> {
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

/// What is attached at one attachment point.
#[derive(Default)]
pub(super) struct AttachmentPoint {
    /// Ids of the programs.
    pub(super) programs: Vec<u32>,
    /// The program was attached without the flag for several ones: the kernel refuses further ones.
    pub(super) exclusive: bool,
}

/// Reads the attachment point of a hook in a cgroup.
pub(super) fn query(cgroup: &File, hook: Hook) -> io::Result<AttachmentPoint> {
    let Some(attach_type) = attach_type(hook) else { return Ok(AttachmentPoint::default()) };
    let target_fd = u32::try_from(cgroup.as_raw_fd()).map_err(io::Error::other)?;
    let mut programs = vec![0_u32; MAX_PROGRAMS as usize];
    let mut attr = QueryAttr {
        target_fd,
        attach_type,
        query_flags: 0,
        attach_flags: 0,
        prog_ids: programs.as_mut_ptr() as u64,
        prog_cnt: MAX_PROGRAMS,
        zero: 0,
        prog_attach_flags: 0,
    };
    // SAFETY: the kernel reads and writes no more of `attr` than its size, and writes at most `prog_cnt` ids.
    let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut attr, size_of::<QueryAttr>()) };
    if done < 0 {
        return Err(io::Error::last_os_error());
    }
    programs.truncate(attr.prog_cnt as usize);
    Ok(AttachmentPoint { exclusive: !programs.is_empty() && attr.attach_flags & BPF_F_ALLOW_MULTI == 0, programs })
}
