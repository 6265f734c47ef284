//! A network namespace of a thread.
#![expect(unsafe_code, reason = "unshare has no safe form")]

use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::process::Command;

/// Runs a test on a thread of its own, in a network namespace of its own with loopback up. Programs that it starts are in there too.
pub fn alone<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let run = move || {
        // SAFETY: the thread has just begun, and nothing of it depends on its network namespace.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("root");
        assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().expect("ip").success());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(test());
    };
    if let Err(panic) = std::thread::Builder::new().spawn(run).expect("a thread").join() {
        std::panic::resume_unwind(panic);
    }
}
