//! The attribute bits that steer booting.

use core::fmt;

/// The 64 attribute bits of a partition entry.
///
/// ```text
///  63          57 56 55    52 51    48 47        3 2 1 0
/// ┌──────────────┬──┬────────┬────────┬───────────┬─────┐
/// │ other owners │S │ tries  │priority│ reserved  │UEFI │
/// └──────────────┴──┴────────┴────────┴───────────┴─────┘
/// ```
///
/// The places are those of ChromiumOS, CoreOS and Flatcar, so their boot loaders read
/// what is written here. All other bits are carried along untouched.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Attributes(u64);

const PRIORITY_SHIFT: u32 = 48;
const TRIES_SHIFT: u32 = 52;
const NIBBLE: u64 = 0xf;
const SUCCESSFUL: u64 = 1 << 56;

impl Attributes {
    /// The highest priority.
    pub const MAX_PRIORITY: u8 = 15;
    /// The largest number of tries.
    pub const MAX_TRIES: u8 = 15;

    /// The attributes from the entry's field.
    pub const fn from_raw(raw: u64) -> Attributes {
        Attributes(raw)
    }

    /// The entry's field.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// 0–15. The highest boots first; 0 never boots.
    pub fn priority(self) -> u8 {
        self.nibble(PRIORITY_SHIFT)
    }

    /// 0–15. How many more boots may be tried while the slot is not yet successful.
    pub fn tries(self) -> u8 {
        self.nibble(TRIES_SHIFT)
    }

    /// Whether the slot has booted and was found healthy.
    pub fn successful(self) -> bool {
        self.0 & SUCCESSFUL != 0
    }

    /// Whether a boot loader may pick the slot: its priority is not zero, and it has
    /// tries left or was successful.
    pub fn bootable(self) -> bool {
        self.priority() > 0 && (self.tries() > 0 || self.successful())
    }

    /// The same with another priority; above [`Attributes::MAX_PRIORITY`] counts as that.
    #[must_use]
    pub fn with_priority(self, priority: u8) -> Attributes {
        self.with_nibble(PRIORITY_SHIFT, priority.min(Self::MAX_PRIORITY))
    }

    /// The same with another number of tries; above [`Attributes::MAX_TRIES`] counts as
    /// that.
    #[must_use]
    pub fn with_tries(self, tries: u8) -> Attributes {
        self.with_nibble(TRIES_SHIFT, tries.min(Self::MAX_TRIES))
    }

    /// The same, successful or not.
    #[must_use]
    pub fn with_successful(self, successful: bool) -> Attributes {
        match successful {
            true => Attributes(self.0 | SUCCESSFUL),
            false => Attributes(self.0 & !SUCCESSFUL),
        }
    }

    fn nibble(self, shift: u32) -> u8 {
        u8::try_from((self.0 >> shift) & NIBBLE).expect("four bits fit")
    }

    fn with_nibble(self, shift: u32, value: u8) -> Attributes {
        Attributes((self.0 & !(NIBBLE << shift)) | (u64::from(value) << shift))
    }
}

/// `priority 2, tries 1, successful 0`
impl fmt::Display for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "priority {}, tries {}, successful {}",
            self.priority(),
            self.tries(),
            u8::from(self.successful())
        )
    }
}

impl fmt::Debug for Attributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Attributes({:#018x}: {self})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_lie_where_chromium_os_puts_them() {
        let attributes = Attributes::default()
            .with_priority(1)
            .with_tries(2)
            .with_successful(true);
        assert_eq!(attributes.raw(), 0x0121_0000_0000_0000);
    }

    #[test]
    fn changing_one_field_keeps_every_other_bit() {
        for raw in [0, u64::MAX, 0xa5a5_a5a5_a5a5_a5a5, 0x1000_0000_0000_0007] {
            let before = Attributes::from_raw(raw);
            for value in 0..=15 {
                let after = before.with_priority(value);
                assert_eq!(after.priority(), value);
                assert_eq!((after.raw() ^ raw) & !(0xf << 48), 0);

                let after = before.with_tries(value);
                assert_eq!(after.tries(), value);
                assert_eq!((after.raw() ^ raw) & !(0xf << 52), 0);
            }
            for value in [false, true] {
                let after = before.with_successful(value);
                assert_eq!(after.successful(), value);
                assert_eq!((after.raw() ^ raw) & !(1 << 56), 0);
            }
        }
    }

    #[test]
    fn values_out_of_range_count_as_the_highest() {
        let attributes = Attributes::default().with_priority(16).with_tries(255);
        assert_eq!((attributes.priority(), attributes.tries()), (15, 15));
        assert!(!attributes.successful());
    }
}
