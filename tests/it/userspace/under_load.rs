//! Many concurrent connections, also while backends change.

use super::*;
use std::sync::atomic::{AtomicBool, AtomicUsize};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changing_set_of_backends_loses_no_connection() {
    let net = Net::new();
    let published = free_port();
    let _backends = Backends::start(net, &[11, 12, 13, 14]);
    let mut userspace = UserspaceLoop::start(net, |_| {});
    userspace.publish(vec![port(net, published, &[11])]).await;
    let mut long_lived = connect(published).await;
    assert_eq!(long_lived.read_u8().await.unwrap(), 11);
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let visitors: Vec<_> = (0..16)
        .map(|_| {
            let (stop, done) = (Arc::clone(&stop), Arc::clone(&done));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    assert_eq!(visit(published, b"hello").await.unwrap().1, b"hello");
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let sets: [&[u8]; 5] = [&[12, 13], &[14], &[11, 12, 13, 14], &[13], &[12, 14]];
    for n in 0..100 {
        userspace.publish(vec![port(net, published, sets[n % sets.len()])]).await;
        // Each set serves some visits.
        let before = done.load(Ordering::Relaxed);
        while done.load(Ordering::Relaxed) < before + 5 {
            tokio::task::yield_now().await;
            assert!(visitors.iter().all(|v| !v.is_finished()), "a visit failed in round {n}");
        }
    }
    stop.store(true, Ordering::Relaxed);
    for visitor in visitors {
        visitor.await.unwrap();
    }
    long_lived.write_all(b"w").await.unwrap();
    assert_eq!(long_lived.read_u8().await.unwrap(), b'w', "its backend was removed from the set long ago");
    assert_eq!(userspace.status(published, "only the long-lived one is open", |s| s.connections == 1).await.errors, 0);
    userspace.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn thousands_of_short_connections_are_all_served_within_the_bounds() {
    let net = Net::new();
    let (first, second) = (free_port(), free_port());
    let backends = Backends::start(net, &[11, 12, 13]);
    let mut userspace = UserspaceLoop::start(net, |settings| {
        settings.max_connections = 24;
        settings.max_connections_per_port = 16;
    });
    userspace.publish(vec![port(net, first, &[11, 12, 13]), port(net, second, &[11, 12, 13])]).await;
    let remaining = Arc::new(AtomicUsize::new(4000));
    let visitors: Vec<_> = (0..100)
        .map(|n| {
            let (remaining, port) = (Arc::clone(&remaining), if n % 4 == 0 { second } else { first });
            tokio::spawn(async move {
                while remaining.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
                    assert_eq!(visit(port, b"quick").await.unwrap().1, b"quick");
                }
            })
        })
        .collect();
    for visitor in visitors {
        visitor.await.unwrap();
    }
    assert_eq!(backends.visits().values().sum::<usize>(), 4000);
    let most = backends.most.load(Ordering::SeqCst);
    assert!((2..=24).contains(&most), "{most} connections at one time");
    for port in [first, second] {
        let status = userspace.status(port, "all are closed", |s| s.connections == 0).await;
        assert_eq!(status.errors, 0);
    }
    userspace.stop().await;
}

#[tokio::test]
async fn clients_of_a_full_port_wait_and_other_ports_are_not_affected() {
    let net = Net::new();
    let (full, other) = (free_port(), free_port());
    let _backends = Backends::start(net, &[11]);
    let mut userspace = UserspaceLoop::start(net, |settings| settings.max_connections_per_port = 3);
    userspace.publish(vec![port(net, full, &[11]), port(net, other, &[11])]).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut client = connect(full).await;
        assert_eq!(client.read_u8().await.unwrap(), 11);
        held.push(client);
    }
    let mut waiting = connect(full).await;
    assert!(tokio::time::timeout(Duration::from_millis(200), waiting.read_u8()).await.is_err(), "the port is full");
    visit(other, b"x").await.unwrap();
    userspace.status(full, "three are open", |s| s.connections == 3).await;
    drop(held.pop());
    assert_eq!(tokio::time::timeout(5 * SECOND, waiting.read_u8()).await.expect("served once there is room").unwrap(), 11);
    userspace.stop().await;
}

#[tokio::test]
async fn a_backend_that_dies_under_load_breaks_its_own_connections_only() {
    let net = Net::new();
    let published = free_port();
    let mut backends = Backends::start(net, &[11, 12]);
    let mut userspace = UserspaceLoop::start(net, |_| {});
    userspace.publish(vec![port(net, published, &[11, 12])]).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let mut client = connect(published).await;
        let backend = client.read_u8().await.unwrap();
        clients.push((backend, client));
    }
    backends.kill(11).await;
    for (backend, client) in &mut clients {
        if *backend == 11 {
            assert!(client.read_u8().await.is_err(), "closed with its backend");
        } else {
            client.write_all(b"y").await.unwrap();
            assert_eq!(client.read_u8().await.unwrap(), b'y');
        }
    }
    // The view still contains both: the remaining one serves all new clients.
    for _ in 0..20 {
        assert_eq!(visit(published, b"x").await.unwrap().0, 12);
    }
    userspace.stop().await;
}
