//! How a machine reboots into an update: the words of `REBOOT_STRATEGY`.
//!
//! What a strategy does is the coordinator's and the daemon's business; here is only which ones
//! there are.

use std::fmt;
use std::str::FromStr;

/// How a machine reboots once an update is applied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// With a place in the fleet's semaphore.
    EtcdLock,
    /// As soon as the window allows, asking nobody.
    #[default]
    Reboot,
    /// Never.
    Off,
    /// [`Strategy::EtcdLock`] where etcd runs on this machine, otherwise [`Strategy::Reboot`].
    BestEffort,
    /// With the leave of a FleetLock server.
    Fleetlock,
}

/// A word that names no strategy. The text begins as the original's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown strategy: {0} (known are {known})", known = known_words())]
pub struct UnknownStrategy(pub String);

impl Strategy {
    /// Every strategy, in the order of the documentation.
    pub const ALL: [Self; 5] = [
        Self::Reboot,
        Self::EtcdLock,
        Self::BestEffort,
        Self::Fleetlock,
        Self::Off,
    ];

    /// The word for it in configuration.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::EtcdLock => "etcd-lock",
            Self::Reboot => "reboot",
            Self::Off => "off",
            Self::BestEffort => "best-effort",
            Self::Fleetlock => "fleetlock",
        }
    }

    /// Whether a reboot may wait for a place in etcd.
    #[must_use]
    pub const fn needs_etcd(self) -> bool {
        matches!(self, Self::EtcdLock | Self::BestEffort)
    }
}

impl FromStr for Strategy {
    type Err = UnknownStrategy;

    fn from_str(word: &str) -> Result<Self, UnknownStrategy> {
        Self::ALL
            .into_iter()
            .find(|strategy| strategy.word() == word)
            .ok_or_else(|| UnknownStrategy(word.to_owned()))
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

fn known_words() -> String {
    Strategy::ALL.map(Strategy::word).join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_strategy_is_read_from_its_own_word() {
        for strategy in Strategy::ALL {
            assert_eq!(strategy.to_string().parse(), Ok(strategy));
        }
        assert_eq!(Strategy::default().to_string(), "reboot");
    }

    #[test]
    fn another_word_is_refused_in_the_originals_words_with_a_hint() {
        for word in ["x", "", "Reboot", "etcd_lock", " off"] {
            let error = word.parse::<Strategy>().unwrap_err().to_string();
            assert_eq!(
                error,
                format!(
                    "unknown strategy: {word} \
                     (known are reboot, etcd-lock, best-effort, fleetlock, off)"
                )
            );
        }
    }
}
