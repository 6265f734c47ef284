//! Finds the process that has bound a UDP port, for the error message.

use std::net::SocketAddr;

/// The process, for instance `process 812 (dockerd)`; looked up in the namespace of the calling thread.
pub(super) fn of_udp_port(address: SocketAddr) -> String {
    let inodes: Vec<u64> = ["/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"]
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .flat_map(|table| inodes_on(&table, address.port()))
        .collect();
    if inodes.is_empty() {
        return "a socket that is not in /proc/net/udp".into();
    }
    inodes
        .iter()
        .find_map(|inode| process_with(*inode))
        // A socket of the kernel, for instance of another WireGuard device, has no process.
        .unwrap_or_else(|| "no process: the kernel (another WireGuard device?) or a process of another pid namespace".into())
}

/// Inodes of the sockets on `port` in a table of the form of `/proc/net/udp`.
fn inodes_on(table: &str, port: u16) -> Vec<u64> {
    let on_port = |line: &str| {
        let mut words = line.split_whitespace();
        let local = words.nth(1)?;
        let found = u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()?;
        // After the local address: remote address, state, queues, timer, retransmits, uid, timeout, inode.
        (found == port).then(|| words.nth(7)?.parse().ok()).flatten()
    };
    table.lines().skip(1).filter_map(on_port).collect()
}

fn process_with(inode: u64) -> Option<String> {
    let wanted = format!("socket:[{inode}]");
    for process in std::fs::read_dir("/proc").ok()?.flatten() {
        let name = process.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(files) = std::fs::read_dir(process.path().join("fd")) else { continue };
        if files.flatten().any(|file| std::fs::read_link(file.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str())) {
            let command = std::fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some(format!("process {pid} ({})", command.trim()));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_table_is_parsed() {
        let table = "   sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops\n\
            2017: 00000000:0949 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 41234 2 0000000000000000 0\n\
            malformed\n";
        assert_eq!(inodes_on(table, 2377), [41234]);
        assert_eq!(inodes_on(table, 2378), [] as [u64; 0]);
    }

    #[test]
    fn this_process_is_found() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let holder = of_udp_port(socket.local_addr().unwrap());
        assert!(holder.contains(&format!("process {}", std::process::id())), "{holder}");
    }
}
