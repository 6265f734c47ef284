#!/usr/bin/env bash
# Linux 6.18.44, BPF sock_addr hooks of a cgroup: they also run in calls that nobody would look for.
# Expected: getpeername4 runs in getpeername(); sendmsg4 runs for datagrams of sockets that are not connected.
# Instead, beside that:
# 1. accept() with an address buffer runs getpeername4 at the server, and what the program writes is what accept() returns.
# 2. send() on a connected UDP socket runs sendmsg4 if the message has control data (IP_TOS here). The program is given
#    family 0 and address 0.0.0.0 and no destination. Without control data it does not run.
# 3. send() on an AF_INET6 UDP socket that is connected to a mapped IPv4 address runs sendmsg4 for every datagram.
# Why it matters: service addresses are translated in these hooks. A getpeername program must not take a server's client
# for a translated backend. A sendmsg program must let a message without a destination pass, and is on the path of more sockets.
# Needs cargo, root and a mounted cgroup2. Makes a cgroup for itself and removes it. Run time: 10 seconds.
set -euo pipefail
[ "$(id -u)" = 0 ] || { echo "needs root: it attaches BPF programs to a cgroup of its own" >&2; exit 1; }
root=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/self/mounts)
[ -n "$root" ] || { echo "needs a mounted cgroup2" >&2; exit 1; }
tmp=$(mktemp -d)
group=
clean() {
  rm -rf "$tmp"
  if [ -n "$group" ]; then
    for _ in 1 2 3 4 5; do
      if rmdir "$group" 2>/dev/null; then break; fi
      sleep 0.2
    done
  fi
}
trap clean EXIT
cd "$tmp"
export CARGO_TARGET_DIR="$tmp/target" RUST_BACKTRACE=0
mkdir src
cat >Cargo.toml <<'E'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[dependencies]
libc = "=0.2.178"
E
cat >src/main.rs <<'E'
use std::{
    fs::File,
    io,
    mem::{size_of_val, zeroed},
    net::{TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

const SENDMSG4: u32 = 14; // enum bpf_attach_type
const GETPEERNAME4: u32 = 29;
const R0: u8 = 0;
const CTX: u8 = 1;
const R2: u8 = 2;

#[repr(C)]
struct Insn(u8, u8, i16, i32); // opcode, registers (target, source << 4), offset, constant
fn mov(reg: u8, value: i32) -> Insn {
    Insn(0xb7, reg, 0, value)
}
fn load(reg: u8, field: i16) -> Insn {
    Insn(0x61, reg | CTX << 4, field, 0)
}
fn store(field: i16, reg: u8) -> Insn {
    Insn(0x63, CTX | reg << 4, field, 0)
}
fn skip_unless_zero(reg: u8, n: i16) -> Insn {
    Insn(0x55, reg, n, 0)
}
const EXIT: Insn = Insn(0x95, 0, 0, 0);
const FAMILY: i16 = 0; // fields of struct bpf_sock_addr
const ADDRESS: i16 = 4;

fn bpf<T>(command: i32, attr: &T) -> OwnedFd {
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of_val(attr)) };
    assert!(fd >= 0, "bpf command {command}: {}", io::Error::last_os_error());
    unsafe { OwnedFd::from_raw_fd(fd as i32) }
}

// Loads a program and attaches it to the cgroup for as long as the result lives.
fn attach(group: &File, hook: u32, program: &[Insn]) -> OwnedFd {
    let mut load = [0u64; 9]; // union bpf_attr of BPF_PROG_LOAD
    load[0] = 18 | (program.len() as u64) << 32; // BPF_PROG_TYPE_CGROUP_SOCK_ADDR
    load[1] = program.as_ptr() as u64;
    load[2] = c"GPL".as_ptr() as u64;
    load[8] = (hook as u64) << 32;
    let program = bpf(5, &load);
    bpf(28, &[program.as_raw_fd() as u32, group.as_raw_fd() as u32, hook, 0]) // BPF_LINK_CREATE
}

fn send_with_tos(socket: &UdpSocket) -> io::Result<()> {
    let tos = 0x28i32;
    let mut control = [0u64; 4];
    let mut data = *b"x";
    let mut iov = libc::iovec { iov_base: data.as_mut_ptr().cast(), iov_len: 1 };
    let sent = unsafe {
        let mut msg: libc::msghdr = zeroed();
        msg.msg_iov = &mut iov;
        msg.msg_iovlen = 1;
        msg.msg_control = control.as_mut_ptr().cast();
        msg.msg_controllen = libc::CMSG_SPACE(4) as _;
        let head = libc::CMSG_FIRSTHDR(&msg);
        (*head).cmsg_level = libc::IPPROTO_IP;
        (*head).cmsg_type = libc::IP_TOS;
        (*head).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(head).cast::<i32>().write_unaligned(tos);
        libc::sendmsg(socket.as_raw_fd(), &msg, 0)
    };
    if sent == 1 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn connected(local: &str, to: &str) -> UdpSocket {
    let socket = UdpSocket::bind(local).unwrap();
    socket.connect(to).unwrap();
    socket
}

fn main() {
    let group = File::open(std::env::args().nth(1).unwrap()).unwrap();

    let hook = attach(&group, GETPEERNAME4, &[mov(R2, i32::from_ne_bytes([192, 0, 2, 1])), store(ADDRESS, R2), mov(R0, 1), EXIT]);
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
    let told = server.accept().unwrap().1.ip().to_string();
    let real = client.local_addr().unwrap().ip().to_string();
    assert_eq!(told, "192.0.2.1", "CHANGED: accept() does not run getpeername4");
    drop(hook);

    let sink = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = sink.local_addr().unwrap().port();
    let four = connected("127.0.0.1:0", &format!("127.0.0.1:{port}"));
    let mapped = connected("[::]:0", &format!("[::ffff:127.0.0.1]:{port}"));

    // Refuses what has family 0 and address 0, and nothing else.
    let program = [mov(R0, 1), load(R2, FAMILY), skip_unless_zero(R2, 3), load(R2, ADDRESS), skip_unless_zero(R2, 1), mov(R0, 0), EXIT];
    let hook = attach(&group, SENDMSG4, &program);
    four.send(b"x").expect("a plain send() passes");
    sink.send_to(b"x", four.local_addr().unwrap()).expect("sendto() has a family and an address");
    let refused = send_with_tos(&four).err().map(|e| e.raw_os_error());
    assert_eq!(refused, Some(Some(libc::EPERM)), "CHANGED: no sendmsg4 with zeros for a send() with IP_TOS");
    drop(hook);

    let hook = attach(&group, SENDMSG4, &[mov(R0, 0), EXIT]); // refuses everything
    four.send(b"x").expect("a plain send() does not run the hook");
    for _ in 0..2 {
        let refused = mapped.send(b"x").err().map(|e| e.raw_os_error());
        assert_eq!(refused, Some(Some(libc::EPERM)), "CHANGED: no sendmsg4 for a send() to a connected mapped address");
    }
    drop(hook);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let kernel = kernel.split('-').next().unwrap().trim();
    println!("Linux {kernel}: accept() says {told} for a client at {real}; send() with IP_TOS on a connected socket: sendmsg4 \
        with family 0, address 0.0.0.0; send() to a connected mapped address: sendmsg4 each time; plain send(): no hook");
}
E
cargo build --quiet
group=$(mktemp -d "$root/finding.XXXXXX")
bash -c 'echo $$ >"$1/cgroup.procs" && exec target/debug/finding "$1"' _ "$group"
