//! Memory that is freed goes back to the system. By default the allocator returns it later, while more is allocated: a daemon that is
//! idle after its start, which reads the kernel's types and the whole state, keeps four times what it uses. (Nor does the allocator ask
//! for huge pages, `no_thp` in `Cargo.toml`: each would be resident as a whole for its first byte.)

use libmimalloc_sys::mi_option_t;

/// `mi_option_purge_delay`, the milliseconds until then. The crate has no name for it; `mimalloc.h` keeps the numbers of its options.
const PURGE_DELAY: mi_option_t = 15;

/// For processes that allocate much at times and little in between; each return costs a system call.
pub fn return_what_is_freed_at_once() {
    // SAFETY: it writes one number, before other threads are started.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A mimalloc whose options are numbered otherwise fails here.
    #[test]
    fn the_option_is_the_delay_of_returns() {
        // SAFETY: it reads one number.
        #[allow(unsafe_code)]
        let default = unsafe { libmimalloc_sys::mi_option_get(PURGE_DELAY) };
        assert_eq!(default, 1000, "milliseconds");
    }
}
