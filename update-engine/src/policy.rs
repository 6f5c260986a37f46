//! Whether this machine takes an offer, and later the release behind it: pure functions
//! with their reasons.

use omaha_protocol::{Version, same_app_id, same_version};
use payload::Release;
use serde::{Deserialize, Serialize};

use crate::omaha::UpdateOffer;

const ALLOW_DOWNGRADE_HINT: &str =
    "ALLOW_DOWNGRADE=yes in /etc/update-engine/update.conf would allow it";

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
    /// What was installed, booted and rolled back, by [`UpdateOffer::label`].
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
    let label = offer.label();
    if history.quarantined.contains(&label) {
        return Decision::Ignored(
            "this version was installed before, did not come up and was rolled back".to_owned(),
        );
    }
    if let Some(floor) = &rules.version_floor
        && !at_least(version, floor)
    {
        let is_comparable = version.parse::<Version>().is_ok();
        return Decision::Ignored(match is_comparable {
            true => format!("it is below the version floor {floor}"),
            false => format!("it cannot be compared with the version floor {floor}"),
        });
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
        let why = match version.parse::<Version>() {
            Ok(_) => format!("it is older than the running {running}"),
            Err(_) => format!("it cannot be compared with the running {running}"),
        };
        return Decision::Ignored(format!("{why}; {ALLOW_DOWNGRADE_HINT}"));
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

/// What the makers of a release say of it in its signed manifest, as far as it decides
/// whether a machine may take it. Serializable, so that a refusal can be remembered by
/// its grounds and ends when they do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ReleaseFacts {
    /// The application that it updates.
    pub app_id: Option<String>,
    /// The board that it runs on.
    pub board: Option<String>,
    /// Its version.
    pub version: Option<String>,
    /// The oldest version that may be updated to it.
    pub min_source_version: Option<String>,
    /// Counts up when older releases must not be installed any more; 0 when not told.
    pub security_epoch: u64,
    /// After which moment it must not be installed, in seconds since 1970.
    pub expires: Option<u64>,
}

/// The machine that a release is held against, and the moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Circumstances {
    /// Its application.
    pub app_id: String,
    /// Its board, empty when unknown.
    pub board: String,
    /// The running version, empty when unknown.
    pub running: String,
    /// The version that the server offered, empty when it named none.
    pub offered: String,
    /// The highest security epoch that was ever installed here.
    pub security_epoch: u64,
    /// Unix seconds by the wall clock.
    pub now: i64,
}

impl ReleaseFacts {
    /// The facts of a manifest; a release without any says nothing.
    pub fn of(release: Option<&Release>) -> Self {
        let Some(release) = release else {
            return Self::default();
        };
        Self {
            app_id: release.app_id.clone(),
            board: release.board.clone(),
            version: release.version.clone(),
            min_source_version: release.min_source_version.clone(),
            security_epoch: release.security_epoch.unwrap_or(0),
            expires: release.expires,
        }
    }
}

/// Whether a release may be installed on this machine now. What is not said is no
/// ground to refuse it, with one exception: a release without a security epoch has the
/// lowest one, or an old release of before there were epochs would get around them.
///
/// # Errors
/// Why not, in words.
pub fn admit(release: &ReleaseFacts, machine: &Circumstances) -> Result<(), String> {
    if let Some(app_id) = &release.app_id
        && !same_app_id(app_id, &machine.app_id)
    {
        let own = &machine.app_id;
        return Err(format!(
            "it is for the application {app_id}, this one is {own}"
        ));
    }
    if let Some(board) = &release.board
        && !board.eq_ignore_ascii_case(&machine.board)
    {
        return Err(if machine.board.is_empty() {
            format!(
                "it is for the board {board}, and this machine's is not known; set \
                 FLATCAR_RELEASE_BOARD"
            )
        } else {
            let own = &machine.board;
            format!("it is for the board {board}, this machine is {own}")
        });
    }
    if let Some(version) = &release.version
        && !machine.offered.is_empty()
        && !same_version(version, &machine.offered)
    {
        let offered = &machine.offered;
        return Err(format!(
            "it is version {version}, but the server offered it as {offered}"
        ));
    }
    if let Some(least) = &release.min_source_version {
        // What cannot be read or compared is not old enough to be refused for sure, and
        // not new enough to be taken: rules fail closed.
        let new_enough = least
            .parse::<Version>()
            .is_ok_and(|least| at_least(&machine.running, &least));
        if !new_enough {
            let running = &machine.running;
            return Err(format!(
                "it may be installed over {least} or newer, and this machine runs {running:?}"
            ));
        }
    }
    if release.security_epoch < machine.security_epoch {
        let (epoch, own) = (release.security_epoch, machine.security_epoch);
        return Err(format!(
            "its security epoch is {epoch}, and one of epoch {own} was installed here"
        ));
    }
    if let Some(expires) = release.expires
        && u64::try_from(machine.now).unwrap_or(0) > expires
    {
        let now = machine.now;
        return Err(format!(
            "it expired at unix time {expires}, and it is {now} by this machine's clock"
        ));
    }
    Ok(())
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
    fn a_version_without_a_name_is_known_by_its_payload() {
        let history = History {
            quarantined: vec![format!("sha256:{}", "00".repeat(32))],
            ..History::default()
        };
        assert_eq!(verdict("", &Rules::default(), &history), "ignored");
        assert_eq!(verdict("3.0.0", &Rules::default(), &history), "allowed");
        let mut other = offer("");
        other.sha256 = [1; 32];
        let decision = decide(&other, &Rules::default(), &history);
        assert_eq!(decision, Decision::Allowed);
    }

    #[test]
    fn a_version_that_cannot_be_compared_is_not_called_older() {
        let reason = |version: &str, floor: Option<&str>| {
            let rules = Rules {
                refuse_downgrade: true,
                version_floor: floor.map(|floor| floor.parse().unwrap()),
                ..Rules::default()
            };
            let history = History {
                running: "2.0.0".to_owned(),
                ..History::default()
            };
            match decide(&offer(version), &rules, &history) {
                Decision::Ignored(reason) => reason,
                other => panic!("{other:?}"),
            }
        };
        for (version, floor, expected) in [
            (
                "1.0.0",
                None,
                "it is older than the running 2.0.0; ALLOW_DOWNGRADE=yes in /etc/",
            ),
            (
                "nightly",
                None,
                "it cannot be compared with the running 2.0.0; ALLOW_DOWNGRADE",
            ),
            (
                "",
                None,
                "it cannot be compared with the running 2.0.0; ALLOW_DOWNGRADE",
            ),
            (
                "1.0.0",
                Some("1.5.0"),
                "it is below the version floor 1.5.0",
            ),
            (
                "nightly",
                Some("1.5.0"),
                "it cannot be compared with the version floor 1.5.0",
            ),
        ] {
            let reason = reason(version, floor);
            assert!(reason.starts_with(expected), "{version}: {reason}");
        }
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
    fn signed_facts_of_a_release_refuse_it() {
        let text = |text: &str| Some(text.to_owned());
        let machine = || Circumstances {
            app_id: "{E96281A6-D1AF-4BDE-9A0A-97B76E56DC57}".to_owned(),
            board: "amd64-usr".to_owned(),
            running: "4152.2.0".to_owned(),
            offered: "4230.1.0".to_owned(),
            security_epoch: 3,
            now: 1_700_000_000,
        };
        let fitting = || ReleaseFacts {
            app_id: text("{e96281a6-d1af-4bde-9a0a-97b76e56dc57}"),
            board: text("AMD64-usr"),
            version: text("4230.1.0"),
            min_source_version: text("4152.2.0"),
            security_epoch: 3,
            expires: Some(1_700_000_000),
        };
        type Change = fn(&mut ReleaseFacts, &mut Circumstances);
        let table: [(Change, &str); 15] = [
            (|_, _| {}, ""),
            (|_, machine| machine.offered.clear(), ""),
            (|release, _| release.security_epoch = 4, ""),
            (
                |release, _| {
                    *release = ReleaseFacts {
                        security_epoch: 3,
                        ..ReleaseFacts::default()
                    }
                },
                "",
            ),
            (
                |release, _| release.app_id = Some("io.example.App".to_owned()),
                "application io.example.App",
            ),
            (
                |release, _| release.board = Some("arm64-usr".to_owned()),
                "board arm64-usr",
            ),
            (|_, machine| machine.board.clear(), "FLATCAR_RELEASE_BOARD"),
            (
                |release, _| release.version = Some("4230.0.0".to_owned()),
                "offered it as 4230.1.0",
            ),
            (
                |_, machine| machine.running = "4152.1.9".to_owned(),
                "over 4152.2.0 or newer",
            ),
            (
                |_, machine| machine.running.clear(),
                "over 4152.2.0 or newer",
            ),
            (
                |release, _| release.min_source_version = Some("soon".to_owned()),
                "over soon",
            ),
            (|release, _| release.security_epoch = 2, "epoch is 2"),
            (|release, _| *release = ReleaseFacts::of(None), "epoch is 0"),
            (
                |release, _| release.expires = Some(1_699_999_999),
                "expired",
            ),
            // A clock that was never set refuses nothing.
            (|_, machine| machine.now = -1, ""),
        ];
        for (number, (change, reason)) in table.into_iter().enumerate() {
            let (mut release, mut machine) = (fitting(), machine());
            change(&mut release, &mut machine);
            match admit(&release, &machine) {
                Ok(()) => assert_eq!(reason, "", "row {number}"),
                Err(words) => {
                    assert!(!reason.is_empty() && words.contains(reason), "{words}");
                }
            }
        }
        let json = serde_json::to_string(&fitting()).unwrap();
        assert_eq!(
            serde_json::from_str::<ReleaseFacts>(&json).unwrap(),
            fitting()
        );
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
