//! Whether something synchronises the kernel's clock. Reads only.

use std::io;

/// Whether an NTP client, or the hypervisor, has set the clock recently, as `adjtimex` says.
///
/// # Errors
/// The kernel's.
#[expect(unsafe_code, reason = "rustix has no adjtimex")]
pub fn is_synchronised() -> io::Result<bool> {
    let mut timex = std::mem::MaybeUninit::<libc::timex>::zeroed();
    // SAFETY: all fields are integers, zero is valid; without a mode the kernel only writes to it.
    let (state, timex) = unsafe { (libc::adjtimex(timex.as_mut_ptr()), timex.assume_init()) };
    if state < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0)
}
