//! Which payload a machine gets, or why none. Pure: no clock, no files, no network.

use std::cmp::Ordering;
use std::fmt;

use omaha_protocol::{Quoted, RequestApp, UpdateCheckRequest, Version, same_app_id};
use payload::Format;

use crate::catalogue::{Artifact, Catalogue, hex, moment};

/// What the operator wants of every answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Policy {
    /// Seconds that machines should wait before they check again. Clients ignore
    /// less than 2,700 and clamp at 14,400; they forget it with each answer.
    pub poll_interval: Option<u32>,
}

/// The answer to one update check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision<'a> {
    /// What the machine gets.
    pub verdict: Verdict<'a>,
    /// Seconds until it should ask again.
    pub poll_interval: Option<u32>,
}

/// What a machine gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// This payload.
    Offer(&'a Artifact),
    /// Nothing now.
    Hold(Reason),
    /// Nothing ever: the app is not served here.
    UnknownApp,
}

/// Why a machine gets nothing now. Displays in words, for log and response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// The machine said that it will not install.
    UpdatesDisabled,
    /// The machine's version cannot be compared.
    UnreadableVersion {
        /// What it sent.
        version: String,
    },
    /// No payload at all for this track and board.
    NothingForMachine {
        /// The machine's track.
        track: String,
        /// The machine's board.
        board: String,
    },
    /// The machine asked for versions that are not here.
    NothingUnderPrefix {
        /// What it asked for.
        prefix: String,
    },
    /// There are payloads, but each may only be installed over another version.
    NothingForVersion {
        /// The machine's version.
        version: Version,
    },
    /// There are payloads, but of a format that the machine does not say it reads.
    NothingReadable,
    /// A newer version is here, but machines as old as this one do not install it.
    SourceTooOld {
        /// The newer version.
        newest: Version,
        /// What it may be installed over, or newer.
        least: String,
    },
    /// A newer version is here, but its time is over.
    Expired {
        /// The newer version.
        newest: Version,
        /// When its time was over, in seconds since 1970.
        expires: u64,
    },
    /// The machine runs the newest or a newer version.
    UpToDate {
        /// The newest version that it could get.
        newest: Version,
    },
}

/// Answers the update check of `app` at `now`, in seconds since 1970.
///
/// The newest version for the machine's track and board is offered when it is
/// newer than the running one. Among payloads of that version one with an exact
/// label beats one for all, and the file changed last beats older ones, so that a
/// corrected payload takes over.
/// A delta is offered only to a machine that says it can take deltas, that has the
/// encoders for it, and that runs the image that it starts from: by the hash of the
/// image where the machine tells that, else by the version that the label names. A
/// fitting delta beats the full payload.
/// Clients of the original know the first version of the format alone. Only a machine
/// that names its encoders, which they never do, is offered another, and then prefers it.
/// What its manifest forbids to a machine is not offered to it, for the machine would
/// refuse it and never hear of an older version that it could take as a step.
pub fn decide<'a>(
    app: &RequestApp,
    catalogue: &'a Catalogue,
    policy: &Policy,
    now: u64,
) -> Decision<'a> {
    let verdict = if catalogue.knows_app(&app.id) {
        match choose(app, catalogue, now) {
            Ok(artifact) => Verdict::Offer(artifact),
            Err(reason) => Verdict::Hold(reason),
        }
    } else {
        Verdict::UnknownApp
    };
    Decision {
        verdict,
        poll_interval: policy.poll_interval,
    }
}

fn choose<'a>(
    app: &RequestApp,
    catalogue: &'a Catalogue,
    now: u64,
) -> Result<&'a Artifact, Reason> {
    let default_check = UpdateCheckRequest::default();
    let check = app.update_check.as_ref().unwrap_or(&default_check);
    if check.update_disabled {
        return Err(Reason::UpdatesDisabled);
    }
    let current = running_version(app)?;

    let for_machine: Vec<&Artifact> = catalogue
        .artifacts
        .iter()
        .filter(|artifact| is_for_machine(artifact, app))
        .collect();
    if for_machine.is_empty() {
        return Err(Reason::NothingForMachine {
            track: app.track.clone(),
            board: app.board.clone(),
        });
    }

    let prefix = check.target_version_prefix.as_deref().unwrap_or_default();
    let wanted: Vec<&Artifact> = for_machine
        .into_iter()
        .filter(|artifact| artifact.labels.version.matches_prefix(prefix))
        .collect();
    if wanted.is_empty() {
        return Err(Reason::NothingUnderPrefix {
            prefix: prefix.to_owned(),
        });
    }

    if !wanted.iter().any(|artifact| is_readable(artifact, app)) {
        return Err(Reason::NothingReadable);
    }
    let (newer, others): (Vec<_>, Vec<_>) = wanted
        .into_iter()
        .filter(|artifact| is_readable(artifact, app))
        .filter(|artifact| is_installable_over(artifact, &current, app))
        .partition(|artifact| artifact.labels.version.is_newer_than(&current));
    let best = |artifacts: &[&'a Artifact]| {
        let artifacts = artifacts.iter().copied();
        artifacts.max_by(|a, b| preference(a, b))
    };
    let forbidden = |artifact: &Artifact| forbidden(artifact, &app.version, now);
    let allowed: Vec<_> = newer
        .iter()
        .copied()
        .filter(|artifact| forbidden(artifact).is_none())
        .collect();
    if let Some(artifact) = best(&allowed) {
        return Ok(artifact);
    }
    // What is newer and forbidden tells more than what is not newer.
    Err(match (best(&newer).and_then(forbidden), best(&others)) {
        (Some(reason), _) => reason,
        (None, Some(artifact)) => Reason::UpToDate {
            newest: artifact.labels.version.clone(),
        },
        (None, None) => Reason::NothingForVersion { version: current },
    })
}

/// Why the facts in its manifest keep the payload from a machine that runs `running`.
/// As the machine judges: what cannot be read or compared is not new enough, and an
/// expiry is the last moment that is in time.
fn forbidden(artifact: &Artifact, running: &str, now: u64) -> Option<Reason> {
    let newest = || artifact.labels.version.clone();
    let is_new_enough = |least: &String| match (running.parse::<Version>(), least.parse()) {
        (Ok(running), Ok(least)) => !Version::is_newer_than(&least, &running),
        _ => false,
    };
    if let Some(least) = &artifact.min_source_version
        && !is_new_enough(least)
    {
        return Some(Reason::SourceTooOld {
            newest: newest(),
            least: least.clone(),
        });
    }
    let expires = artifact.expires.filter(|expires| now > *expires)?;
    Some(Reason::Expired {
        newest: newest(),
        expires,
    })
}

/// A machine that does not tell its version counts as older than everything.
fn running_version(app: &RequestApp) -> Result<Version, Reason> {
    let text = if app.version.is_empty() {
        "0"
    } else {
        &app.version
    };
    text.parse().map_err(|_| Reason::UnreadableVersion {
        version: app.version.clone(),
    })
}

fn is_for_machine(artifact: &Artifact, app: &RequestApp) -> bool {
    let labels = &artifact.labels;
    let matches = |label: &Option<String>, value: &str| match label {
        Some(label) => label.eq_ignore_ascii_case(value),
        None => true,
    };
    same_app_id(&labels.app_id, &app.id)
        && matches(&labels.track, &app.track)
        && matches(&labels.board, &app.board)
}

fn is_readable(artifact: &Artifact, app: &RequestApp) -> bool {
    artifact.format == Format::V1 || app.encoders.is_some()
}

fn is_installable_over(artifact: &Artifact, current: &Version, app: &RequestApp) -> bool {
    let by_label = artifact
        .labels
        .from_version
        .as_ref()
        .map(|from| from == current);
    if !artifact.is_delta {
        return by_label.unwrap_or(true);
    }
    let runs_its_source = match (&app.usr_sha256, &artifact.source_sha256) {
        // The version says less: two builds may have the same.
        (Some(running), Some(source)) => running.eq_ignore_ascii_case(&hex(source)),
        _ => by_label.unwrap_or(false),
    };
    app.delta_okay && runs_its_source && has_encoders(app, &artifact.encoders)
}

fn has_encoders(app: &RequestApp, needed: &[String]) -> bool {
    let named = app.encoders.as_deref().unwrap_or_default();
    needed
        .iter()
        .all(|needed| named.split_whitespace().any(|name| name == needed))
}

fn preference(a: &Artifact, b: &Artifact) -> Ordering {
    let rank = |artifact: &Artifact| {
        (
            artifact.is_delta,
            artifact.labels.track.is_some(),
            artifact.labels.board.is_some(),
            artifact.format,
            artifact.modified,
            artifact.sha256,
        )
    };
    a.labels
        .version
        .precedence(&b.labels.version)
        .then_with(|| rank(a).cmp(&rank(b)))
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UpdatesDisabled => f.write_str("the machine has updates disabled"),
            Self::UnreadableVersion { version } => {
                write!(
                    f,
                    "the machine's version `{}` is not readable",
                    Quoted(version)
                )
            }
            Self::NothingForMachine { track, board } => write!(
                f,
                "no payload for track `{}` and board `{}`",
                Quoted(track),
                Quoted(board)
            ),
            Self::NothingUnderPrefix { prefix } => {
                write!(f, "no version under the wanted prefix `{}`", Quoted(prefix))
            }
            Self::NothingForVersion { version } => {
                write!(f, "no payload that goes over {}", Quoted(version.as_str()))
            }
            Self::NothingReadable => f.write_str(
                "the payloads here are of format version 2, which this machine does not say it reads",
            ),
            Self::SourceTooOld { newest, least } => {
                write!(f, "{newest} goes only over {} or newer", Quoted(least))
            }
            Self::Expired { newest, expires } => {
                write!(f, "{newest} may not be installed any more, it expired {}", moment(*expires))
            }
            Self::UpToDate { newest } => write!(f, "up to date, the newest is {newest}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use omaha_protocol::OS_APP_ID;

    use super::*;
    use crate::labels::Labels;

    const NOW: u64 = 1_800_000_000;

    /// A full payload for everybody; `number` tells it from others and is its age rank.
    fn full(version: &str, number: u8) -> Artifact {
        Artifact {
            labels: Labels {
                app_id: OS_APP_ID.to_owned(),
                version: version.parse().unwrap(),
                track: None,
                board: None,
                from_version: None,
            },
            is_delta: false,
            format: Format::V1,
            source_sha256: None,
            encoders: Vec::new(),
            min_source_version: None,
            expires: None,
            path: format!("/srv/{number}").into(),
            name: number.to_string(),
            sha1: [number; 20],
            sha256: [number; 32],
            chunks: [[number; 32]].into(),
            size: 1,
            modified: SystemTime::UNIX_EPOCH + Duration::from_secs(number.into()),
        }
    }

    fn on(track: &str, board: &str, artifact: Artifact) -> Artifact {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        Artifact {
            labels: Labels {
                track: some(track),
                board: some(board),
                ..artifact.labels
            },
            ..artifact
        }
    }

    fn delta(from: &str, artifact: Artifact) -> Artifact {
        Artifact {
            is_delta: true,
            labels: Labels {
                from_version: Some(from.parse().unwrap()),
                ..artifact.labels
            },
            ..artifact
        }
    }

    fn machine(version: &str) -> RequestApp {
        RequestApp {
            id: OS_APP_ID.to_owned(),
            version: version.to_owned(),
            track: "stable".to_owned(),
            board: "amd64-usr".to_owned(),
            update_check: Some(UpdateCheckRequest::default()),
            ..RequestApp::default()
        }
    }

    /// The number of the artifact that is offered, or the reason.
    fn verdict(app: &RequestApp, artifacts: Vec<Artifact>) -> Result<u8, String> {
        let catalogue = Catalogue {
            artifacts,
            ..Catalogue::default()
        };
        match decide(app, &catalogue, &Policy::default(), NOW).verdict {
            Verdict::Offer(artifact) => Ok(artifact.sha256[0]),
            Verdict::Hold(reason) => Err(reason.to_string()),
            Verdict::UnknownApp => Err("unknown app".to_owned()),
        }
    }

    fn held(reason: &str) -> Result<u8, String> {
        Err(reason.to_owned())
    }

    #[test]
    fn the_newest_version_in_numeric_order_is_offered() {
        let releases = vec![
            full("4152.2.0", 1),
            full("4152.10.0", 2),
            full("4152.9.0", 3),
        ];
        for (version, expected) in [
            ("4152.2.0", Ok(2)),
            ("4152.9.9", Ok(2)),
            ("", Ok(2)),
            ("0.0.0.0", Ok(2)),
            ("4152.10.0", held("up to date, the newest is 4152.10.0")),
            ("4152.10", held("up to date, the newest is 4152.10.0")),
            ("4152.10.0+dev", held("up to date, the newest is 4152.10.0")),
            ("4153.0.0", held("up to date, the newest is 4152.10.0")),
            (
                "my build",
                held("the machine's version `my build` is not readable"),
            ),
        ] {
            assert_eq!(
                verdict(&machine(version), releases.clone()),
                expected,
                "{version}"
            );
        }
    }

    #[test]
    fn track_and_board_must_match_unless_the_payload_is_for_all() {
        let nothing = || held("no payload for track `stable` and board `amd64-usr`");
        for (artifact, expected) in [
            (full("2.0.0", 1), Ok(1)),
            (on("stable", "", full("2.0.0", 1)), Ok(1)),
            (on("Stable", "AMD64-usr", full("2.0.0", 1)), Ok(1)),
            (on("", "amd64-usr", full("2.0.0", 1)), Ok(1)),
            (on("beta", "", full("2.0.0", 1)), nothing()),
            (on("", "arm64-usr", full("2.0.0", 1)), nothing()),
            (on("stable", "arm64-usr", full("2.0.0", 1)), nothing()),
        ] {
            let labels = artifact.labels.clone();
            assert_eq!(
                verdict(&machine("1.0.0"), vec![artifact]),
                expected,
                "{labels:?}"
            );
        }
        let nameless = RequestApp {
            board: String::new(),
            ..machine("1.0.0")
        };
        let for_one_board = on("", "amd64-usr", full("2.0.0", 1));
        assert!(verdict(&nameless, vec![for_one_board]).is_err());
    }

    #[test]
    fn among_equal_versions_the_closer_label_and_then_the_later_file_wins() {
        let exact = on("stable", "amd64-usr", full("2.0.0", 1));
        assert_eq!(
            verdict(&machine("1.0.0"), vec![full("2.0.0", 9), exact.clone()]),
            Ok(1)
        );
        let corrected = on("stable", "amd64-usr", full("2.0.0", 2));
        assert_eq!(verdict(&machine("1.0.0"), vec![corrected, exact]), Ok(2));
    }

    #[test]
    fn the_machine_can_refuse_and_choose() {
        let releases = vec![full("1.2.3", 1), full("1.2.34", 2), full("1.3.0", 3)];
        let with_check = |check| RequestApp {
            update_check: Some(check),
            ..machine("1.0.0")
        };
        let disabled = with_check(UpdateCheckRequest {
            update_disabled: true,
            target_version_prefix: None,
        });
        let reason = held("the machine has updates disabled");
        assert_eq!(verdict(&disabled, releases.clone()), reason);
        for (prefix, expected) in [
            ("", Ok(3)),
            ("1.2", Ok(2)),
            ("1.2.3", Ok(1)),
            ("1.2.3$", Ok(1)),
            ("1", Ok(3)),
            ("2", held("no version under the wanted prefix `2`")),
            ("x", held("no version under the wanted prefix `x`")),
        ] {
            let pinned = with_check(UpdateCheckRequest {
                update_disabled: false,
                target_version_prefix: Some(prefix.to_owned()),
            });
            assert_eq!(verdict(&pinned, releases.clone()), expected, "{prefix}");
        }
    }

    #[test]
    fn a_delta_goes_only_over_its_own_version_and_to_those_who_can() {
        let releases = vec![full("3.0.0", 1), delta("2.0.0+a", full("3.0.0", 2))];
        for (version, delta_okay, expected) in [
            ("2.0.0+a", true, Ok(2)),
            ("2.0.0+a", false, Ok(1)),
            ("2.0.0+b", true, Ok(1)),
            ("2.0.0", true, Ok(1)),
            ("1.0.0", true, Ok(1)),
        ] {
            let app = RequestApp {
                delta_okay,
                ..machine(version)
            };
            assert_eq!(
                verdict(&app, releases.clone()),
                expected,
                "{version} {delta_okay}"
            );
        }
        let only_delta = vec![delta("2.0.0", full("3.0.0", 2))];
        let reason = held("no payload that goes over 1.0.0");
        assert_eq!(verdict(&machine("1.0.0"), only_delta), reason);

        let unlabelled = Artifact {
            is_delta: true,
            ..full("3.0.0", 3)
        };
        assert!(verdict(&machine("1.0.0"), vec![unlabelled]).is_err());
    }

    /// A delta of version 2 from the image whose hash is all `source`.
    fn delta_v2(source: u8, encoders: &[&str], artifact: Artifact) -> Artifact {
        Artifact {
            is_delta: true,
            format: Format::V2,
            source_sha256: Some([source; 32]),
            encoders: encoders.iter().map(|&name| name.to_owned()).collect(),
            ..artifact
        }
    }

    #[test]
    fn a_delta_of_version_2_goes_to_machines_that_run_its_image_and_have_its_encoders() {
        let zstd = &["zstd/1.5.4", "zlib/1.3.1"];
        // Full ones for everybody and for our own clients, and a delta from image 7.
        let releases = |label: Option<&str>| {
            let full_v2 = Artifact {
                format: Format::V2,
                ..full("3.0.0", 2)
            };
            let unlabelled = delta_v2(7, zstd, full("3.0.0", 3));
            let delta = match label {
                Some(from) => delta(from, unlabelled),
                None => unlabelled,
            };
            vec![full("3.0.0", 1), full_v2, delta]
        };
        let (seven, eight) = ("07".repeat(32), "08".repeat(32));
        let all = "lz4/1.10.0 zlib/1.3.1 zstd/1.5.4 zstd/1.5.7";
        type Row<'a> = (Option<&'a str>, Option<&'a str>, Option<&'a str>, bool, u8);
        let table: [Row<'_>; 14] = [
            // label, hash told, encoders told, delta_okay, offered
            (None, Some(&seven), Some(all), true, 3),
            (Some("2.0.0"), Some(&seven), Some(all), true, 3),
            (Some("1.9.0"), Some(&seven), Some(all), true, 3),
            (Some("2.0.0"), None, Some(all), true, 3),
            // Not this image, or nobody knows.
            (Some("2.0.0"), Some(&eight), Some(all), true, 2),
            (Some("2.0.0"), Some("no hash"), Some(all), true, 2),
            (Some("1.9.0"), None, Some(all), true, 2),
            (None, None, Some(all), true, 2),
            // Asked for a full one, or cannot make it.
            (None, Some(&seven), Some(all), false, 2),
            (None, Some(&seven), Some("zlib/1.3.1 zstd/1.5.7"), true, 2),
            (None, Some(&seven), Some(""), true, 2),
            (None, Some(&seven), Some("xzstd/1.5.4 zlib/1.3.1"), true, 2),
            // Clients that never heard of version 2.
            (Some("2.0.0"), None, None, true, 1),
            (Some("2.0.0"), Some(&seven), None, true, 1),
        ];
        for (label, hash, encoders, delta_okay, expected) in table {
            let app = RequestApp {
                delta_okay,
                usr_sha256: hash.map(str::to_owned),
                encoders: encoders.map(str::to_owned),
                ..machine("2.0.0")
            };
            assert_eq!(
                verdict(&app, releases(label)),
                Ok(expected),
                "{label:?} {hash:?} {encoders:?} {delta_okay}"
            );
        }
    }

    #[test]
    fn clients_of_the_original_get_no_payload_that_they_cannot_read() {
        let v2 = |number| Artifact {
            format: Format::V2,
            ..full("3.0.0", number)
        };
        let reason = "the payloads here are of format version 2, which this machine does not \
                      say it reads";
        assert_eq!(verdict(&machine("1.0.0"), vec![v2(1)]), held(reason));
        // An older version that they can read is better than none.
        assert_eq!(
            verdict(&machine("1.0.0"), vec![v2(1), full("2.0.0", 2)]),
            Ok(2)
        );
        let ours = RequestApp {
            encoders: Some(String::new()),
            ..machine("1.0.0")
        };
        assert_eq!(verdict(&ours, vec![v2(1), full("2.0.0", 2)]), Ok(1));
    }

    #[test]
    fn a_newer_full_payload_beats_a_delta_to_an_older_version() {
        let app = RequestApp {
            delta_okay: true,
            ..machine("1.0.0")
        };
        let releases = vec![full("3.0.0", 1), delta("1.0.0", full("2.0.0", 2))];
        assert_eq!(verdict(&app, releases), Ok(1));
    }

    #[test]
    fn what_may_not_go_over_a_version_is_not_offered_and_the_step_before_it_is() {
        let over = |least: &str, artifact| Artifact {
            min_source_version: Some(least.to_owned()),
            ..artifact
        };
        let releases = vec![full("2.0.0", 1), over("2.0.0", full("3.0.0", 2))];
        for (version, expected) in [
            ("1.0.0", Ok(1)),
            ("", Ok(1)),
            ("2.0.0", Ok(2)),
            ("2.0.0+b", Ok(2)),
            ("2.1.0", Ok(2)),
            ("3.0.0", held("up to date, the newest is 3.0.0")),
        ] {
            let app = machine(version);
            assert_eq!(verdict(&app, releases.clone()), expected, "{version}");
        }
        for least in ["2.0.0", "two"] {
            let lone = vec![over(least, full("3.0.0", 2)), full("1.0.0", 1)];
            let reason = format!("3.0.0 goes only over {least} or newer");
            assert_eq!(verdict(&machine("1.0.0"), lone), held(&reason));
        }
    }

    #[test]
    fn what_has_expired_is_not_offered_and_does_not_stand_before_others() {
        let until = |expires, artifact| Artifact {
            expires: Some(expires),
            ..artifact
        };
        let releases = |expires| vec![full("2.0.0", 1), until(expires, full("3.0.0", 2))];
        for (expires, expected) in [(NOW - 1, Ok(1)), (NOW, Ok(2)), (u64::MAX, Ok(2))] {
            let app = machine("1.0.0");
            assert_eq!(verdict(&app, releases(expires)), expected, "{expires}");
        }
        let reason = "3.0.0 may not be installed any more, it expired 2027-01-15T07:59:59Z";
        assert_eq!(verdict(&machine("2.0.0"), releases(NOW - 1)), held(reason));
        let reason = "up to date, the newest is 3.0.0";
        assert_eq!(verdict(&machine("3.0.0"), releases(NOW - 1)), held(reason));
    }

    #[test]
    fn apps_are_kept_apart_and_the_system_is_always_known() {
        let mut other = full("9.0.0", 1);
        other.labels.app_id = "io.example.App".to_owned();
        let system = machine("1.0.0");
        let reason = held("no payload for track `stable` and board `amd64-usr`");
        assert_eq!(verdict(&system, vec![other.clone()]), reason);
        assert_eq!(verdict(&system, Vec::new()), reason);
        let app = |id: &str| RequestApp {
            id: id.to_owned(),
            ..machine("1.0.0")
        };
        assert_eq!(verdict(&app("IO.example.app"), vec![other.clone()]), Ok(1));
        assert_eq!(
            verdict(&app("io.example.Other"), vec![other]),
            held("unknown app")
        );
        let upper = app(&OS_APP_ID.to_uppercase());
        assert_eq!(verdict(&upper, vec![full("2.0.0", 7)]), Ok(7));
    }

    #[test]
    fn every_decision_carries_the_poll_interval() {
        let policy = Policy {
            poll_interval: Some(7200),
        };
        let nothing = Catalogue::default();
        let decision = decide(&machine("1.0.0"), &nothing, &policy, NOW);
        assert_eq!(decision.poll_interval, Some(7200));
    }
}
