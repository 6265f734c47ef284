//! Verdicts of the programs that a trace runs by `BPF_PROG_TEST_RUN`: the kernel returns that a program redirects, not where
//! to, so programs that are loaded for a trace write their verdict to the packet's context.

macro_rules! verdict_kinds {
    ($($(#[doc = $meaning:literal])+ $kind:ident = $number:literal;)*) => {
        /// What a program decided on a packet. The number is the first word of `cb` in the context, the interface index of the
        /// device is the second one; 0 where the verdict names none.
        #[repr(u32)]
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum VerdictKind { $($(#[doc = $meaning])+ $kind = $number,)* }

        impl VerdictKind {
            /// The kind with this number; `None` if there is none, as where no program has written one.
            #[must_use]
            pub const fn of_number(number: u32) -> Option<Self> {
                match number { $($number => Some(Self::$kind),)* _ => None }
            }
        }
    };
}

verdict_kinds! {
    /// The next program, or the kernel's stack, decides.
    Pass = 1;
    /// To the peer of a veth end, in the peer's network namespace.
    RedirectPeer = 2;
    /// Out of a device, with the link header that it has.
    Redirect = 3;
    /// Out of a device, to the neighbour that the host's routes name.
    RedirectNeighbour = 4;
    /// Dropped.
    Drop = 5;
}

#[cfg(test)]
mod tests {
    use super::VerdictKind;

    #[test]
    fn a_kind_is_read_by_its_number() {
        for number in 1..=5 {
            assert_eq!(VerdictKind::of_number(number).map(|kind| kind as u32), Some(number));
        }
        assert_eq!((VerdictKind::of_number(0), VerdictKind::of_number(6)), (None, None));
    }
}
