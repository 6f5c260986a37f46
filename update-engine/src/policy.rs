//! Whether this machine takes an offer: a pure function with its reason.

use omaha_protocol::Version;

use crate::omaha::UpdateOffer;

/// What an operator has laid down for this machine.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Nothing is installed while set.
    pub paused: bool,
    /// Nothing older is installed.
    pub version_floor: Option<Version>,
    /// Only versions that begin with these components are installed.
    pub version_pin: Option<String>,
    /// Refuse whatever is older than the running version.
    pub refuse_downgrade: bool,
}

/// What happened on this machine before.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The running version.
    pub running: String,
    /// Versions that were installed, booted and rolled back.
    pub quarantined: Vec<String>,
    /// Until when the payload on offer must wait after failures.
    pub waiting_until: Option<i64>,
    /// Why the running system is not proven good, if it is not: then the other
    /// slot is the only way back and must not be overwritten.
    pub unproven: Option<String>,
}

/// The answer, with its reason in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Install.
    Allowed,
    /// Not now; the same offer may be taken later.
    Deferred(String),
    /// Not this version.
    Ignored(String),
    /// Failed before; not before this unix time.
    Backoff(i64),
}

/// Decides over one offer. The first rule that speaks wins, the hardest first.
pub fn decide(offer: &UpdateOffer, rules: &Rules, history: &History) -> Decision {
    let version = &offer.version;
    if history.quarantined.iter().any(|bad| bad == version) {
        return Decision::Ignored(
            "this version was installed before, did not come up and was rolled back".to_owned(),
        );
    }
    if let Some(floor) = &rules.version_floor
        && !at_least(version, floor)
    {
        return Decision::Ignored(format!("it is below the version floor {floor}"));
    }
    if let Some(pin) = &rules.version_pin
        && !pinned(version, pin)
    {
        return Decision::Ignored(format!("this machine is pinned to {pin}"));
    }
    // Nothing is known to be older than a running version that cannot be read.
    if rules.refuse_downgrade
        && let Ok(running) = history.running.parse::<Version>()
        && !at_least(version, &running)
    {
        return Decision::Ignored(format!(
            "it is older than the running {running} and ALLOW_DOWNGRADE is not set"
        ));
    }
    if rules.paused {
        return Decision::Deferred("updates are paused on this machine".to_owned());
    }
    if let Some(why) = &history.unproven {
        return Decision::Deferred(format!(
            "the running system is not proven good, so its fallback is kept: {why}"
        ));
    }
    if let Some(until) = history.waiting_until {
        return Decision::Backoff(until);
    }
    Decision::Allowed
}

/// A version that cannot be read is at least nothing: rules fail closed.
fn at_least(version: &str, least: &Version) -> bool {
    version
        .parse::<Version>()
        .is_ok_and(|version| !least.is_newer_than(&version))
}

fn pinned(version: &str, pin: &str) -> bool {
    version
        .parse::<Version>()
        .is_ok_and(|version| version.matches_prefix(pin))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(version: &str) -> UpdateOffer {
        UpdateOffer {
            version: version.to_owned(),
            urls: vec!["http://host/p".to_owned()],
            size: 1,
            sha256: [0; 32],
            is_delta: false,
            disable_backoff: true,
            max_failures_per_url: 10,
        }
    }

    fn verdict(version: &str, rules: &Rules, history: &History) -> &'static str {
        match decide(&offer(version), rules, history) {
            Decision::Allowed => "allowed",
            Decision::Deferred(_) => "deferred",
            Decision::Ignored(_) => "ignored",
            Decision::Backoff(_) => "backoff",
        }
    }

    #[test]
    fn without_rules_every_offer_is_taken_even_an_older_one() {
        let history = History {
            running: "2.0.0".to_owned(),
            ..History::default()
        };
        for version in ["", "1.0.0", "2.0.0", "3.0.0"] {
            assert_eq!(verdict(version, &Rules::default(), &history), "allowed");
        }
    }

    #[test]
    fn rules_hold_offers_back() {
        let floor = |text: &str| Rules {
            version_floor: Some(text.parse().unwrap()),
            ..Rules::default()
        };
        let pin = |text: &str| Rules {
            version_pin: Some(text.to_owned()),
            ..Rules::default()
        };
        let running = || History {
            running: "4152.10.0".to_owned(),
            ..History::default()
        };
        let unknown = || Rules {
            refuse_downgrade: true,
            ..Rules::default()
        };
        assert_eq!(verdict("1.0.0", &unknown(), &History::default()), "allowed");
        let table = [
            ("4152.2.0", floor("4152.10.0"), "ignored"),
            ("4152.10.0", floor("4152.2.0"), "allowed"),
            ("4152.2.1", pin("4152.2"), "allowed"),
            ("4152.20.0", pin("4152.2"), "ignored"),
            ("4152.2", pin("4152.2."), "allowed"),
            (
                "4152.2.0",
                Rules {
                    refuse_downgrade: true,
                    ..Rules::default()
                },
                "ignored",
            ),
            (
                "4152.11.0",
                Rules {
                    refuse_downgrade: true,
                    ..Rules::default()
                },
                "allowed",
            ),
            (
                "5000.0.0",
                Rules {
                    paused: true,
                    ..Rules::default()
                },
                "deferred",
            ),
        ];
        for (version, rules, expected) in table {
            assert_eq!(
                verdict(version, &rules, &running()),
                expected,
                "{version} {rules:?}"
            );
        }
    }

    #[test]
    fn a_rolled_back_version_is_refused_until_a_newer_one_comes() {
        let history = || History {
            quarantined: vec!["3.0.0".to_owned()],
            ..History::default()
        };
        assert_eq!(verdict("3.0.0", &Rules::default(), &history()), "ignored");
        assert_eq!(verdict("3.0.1", &Rules::default(), &history()), "allowed");
    }

    #[test]
    fn the_fallback_is_not_overwritten_while_the_running_system_is_unproven() {
        let history = History {
            unproven: Some("50-database failed".to_owned()),
            ..History::default()
        };
        assert_eq!(verdict("3.0.0", &Rules::default(), &history), "deferred");
    }

    #[test]
    fn a_payload_that_failed_waits() {
        let history = History {
            waiting_until: Some(5),
            ..History::default()
        };
        assert_eq!(verdict("3.0.0", &Rules::default(), &history), "backoff");
    }
}
