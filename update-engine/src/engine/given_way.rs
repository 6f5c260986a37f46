//! The last reboot out of a boot that was not healthy, and whether it was in vain.
//!
//! Each boot spends a try, so that another slot follows at the latest when none is left. A
//! boot loader that spends none comes back to the same slot, and so does one that cannot
//! start the other: without a memory of it the machine would reset for ever.

use std::fmt;

use crate::prefs::Key;

/// The pref with the last [`GivenWay`].
pub(super) const GIVEN_WAY: Key = Key::new("health-reboot");

/// One such reboot. As text: `BOOT-ID TRIES SYSTEM`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct GivenWay {
    /// The boot that it ended.
    pub(super) boot_id: String,
    /// Tries that the running slot had left in it.
    pub(super) tries: u8,
    /// What ran: the slot and the update in it.
    pub(super) system: String,
}

impl GivenWay {
    /// Whether this reboot would lead nowhere, since the one `before` did not: the same
    /// system is here again, with no try less. Repeated within one boot it is the same
    /// reboot, which has not happened yet.
    pub(super) fn is_in_vain_after(&self, before: &str) -> bool {
        let mut words = before.splitn(3, ' ');
        let (Some(boot_id), Some(tries), Some(system)) = (words.next(), words.next(), words.next())
        else {
            return false;
        };
        let is_no_less = tries.parse().is_ok_and(|tries: u8| tries <= self.tries);
        boot_id != self.boot_id && system == self.system && is_no_less
    }
}

impl fmt::Display for GivenWay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.boot_id, self.tries, self.system)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(boot_id: &str, tries: u8, system: &str) -> GivenWay {
        GivenWay {
            boot_id: boot_id.to_owned(),
            tries,
            system: system.to_owned(),
        }
    }

    #[test]
    fn a_reboot_that_led_to_the_same_system_with_no_try_less_is_not_repeated() {
        let now = given("second", 1, "b update");
        for (before, in_vain) in [
            (given("first", 1, "b update"), true),
            // Somebody gave it a try.
            (given("first", 0, "b update"), true),
            (given("first", 2, "b update"), false),
            (given("first", 1, "b newer"), false),
            (given("first", 1, "a update"), false),
            // Asked for a moment ago.
            (given("second", 1, "b update"), false),
        ] {
            assert_eq!(
                now.is_in_vain_after(&before.to_string()),
                in_vain,
                "{before}"
            );
        }
        for garbage in ["", "first", "first 1", "first many b update"] {
            assert!(!now.is_in_vain_after(garbage), "{garbage}");
        }
        // A machine that was never updated.
        let fresh = given("second", 0, "a ");
        assert!(fresh.is_in_vain_after(&given("first", 0, "a ").to_string()));
    }
}
