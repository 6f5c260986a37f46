//! The three kinds of request, each with one app: this machine.

use omaha_protocol::{Event, InstallSource, Os, Ping, Request, RequestApp, UpdateCheckRequest};

use crate::config::Identity;
use crate::machine::Trigger;

/// What this program calls itself on the wire.
const UPDATER: &str = concat!("update_engine-", env!("CARGO_PKG_VERSION"));

/// What this machine can take and does not tell with every request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Abilities {
    /// It can take a delta to what it runs.
    pub delta_okay: bool,
    /// SHA-256 of the running image in lower-case hex, where known.
    pub usr_sha256: Option<String>,
    /// Library and version of each encoder at hand; `None` sends nothing of them, like
    /// the original.
    pub encoders: Option<Vec<String>>,
}

/// "May I update?" with the ping and the event about the version before.
pub fn check(
    identity: &Identity,
    aleph_version: &str,
    trigger: Trigger,
    abilities: &Abilities,
    running: Event,
) -> Request {
    let app = RequestApp {
        usr_sha256: abilities.usr_sha256.clone(),
        encoders: abilities.encoders.as_ref().map(|names| names.join(" ")),
        ping: Some(Ping { active: true }),
        update_check: Some(UpdateCheckRequest::default()),
        events: vec![running],
        ..app(identity, aleph_version, abilities.delta_okay)
    };
    request(identity, trigger, app)
}

/// "I am alive", while an applied update waits for the reboot.
pub fn ping_only(identity: &Identity, aleph_version: &str, delta_okay: bool) -> Request {
    let app = RequestApp {
        ping: Some(Ping { active: true }),
        ..app(identity, aleph_version, delta_okay)
    };
    request(identity, Trigger::Scheduler, app)
}

/// One event and nothing else.
pub fn event_only(
    identity: &Identity,
    aleph_version: &str,
    trigger: Trigger,
    delta_okay: bool,
    event: Event,
) -> Request {
    let app = RequestApp {
        events: vec![event],
        ..app(identity, aleph_version, delta_okay)
    };
    request(identity, trigger, app)
}

fn request(identity: &Identity, trigger: Trigger, app: RequestApp) -> Request {
    Request {
        protocol: "3.0".to_owned(),
        version: UPDATER.to_owned(),
        updater_version: UPDATER.to_owned(),
        install_source: match trigger {
            Trigger::Scheduler => InstallSource::Scheduler,
            Trigger::OnDemand => InstallSource::OnDemandUpdate,
        },
        is_machine: true,
        request_id: None,
        session_id: None,
        test_source: None,
        os: Os {
            platform: "CoreOS".to_owned(),
            version: "Chateau".to_owned(),
            service_pack: format!("{}_{}", identity.version, identity.arch),
            arch: None,
        },
        apps: vec![app],
    }
}

fn app(identity: &Identity, aleph_version: &str, delta_okay: bool) -> RequestApp {
    RequestApp {
        id: identity.app_id.clone(),
        version: identity.version.clone(),
        track: identity.track.clone(),
        boot_id: identity.boot_id.clone(),
        oem: identity.oem.clone(),
        oem_version: identity.oem_version.clone(),
        aleph_version: aleph_version.to_owned(),
        machine_id: identity.machine_id.clone(),
        machine_alias: identity.machine_alias.clone(),
        lang: "en-US".to_owned(),
        board: identity.board.clone(),
        hardware_class: String::new(),
        delta_okay,
        ..RequestApp::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::omaha;

    /// The identity that the original's recordings were made with.
    fn recorded_identity() -> Identity {
        Identity {
            app_id: omaha_protocol::OS_APP_ID.to_owned(),
            version: "3815.2.0".to_owned(),
            track: "stable".to_owned(),
            board: "amd64-usr".to_owned(),
            machine_id: "0123456789abcdef0123456789abcdef".to_owned(),
            boot_id: "{11111111-2222-4333-8444-555555555555}".to_owned(),
            arch: "x86_64".to_owned(),
            ..Identity::default()
        }
    }

    /// Body of a recording, with what is ours in place of the original's version.
    fn recorded(name: &str) -> String {
        let path = format!("{}/../fixtures/omaha/{name}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let (_, body) = text
            .replace("\r\n", "\n")
            .split_once("\n\n")
            .map(|(head, body)| (head.to_owned(), body.to_owned()))
            .unwrap();
        body.replace("update_engine-0.4.10", UPDATER)
    }

    #[test]
    fn requests_are_byte_for_byte_those_of_the_original() {
        let identity = recorded_identity();
        let aleph = "3815.2.0";
        let nothing = Abilities::default();
        let check = |running| check(&identity, aleph, Trigger::OnDemand, &nothing, running);
        let private = omaha::Flags {
            private_server: true,
            ..omaha::Flags::default()
        };
        let table = [
            ("request-ordinary-check-1.http", check(omaha::running(""))),
            (
                "request-check-after-successful-update-1.http",
                check(omaha::running("3760.0.0")),
            ),
            (
                "request-check-after-rollback-1.http",
                check(omaha::rolled_back()),
            ),
            (
                "request-check-refused-by-server-1.http",
                check(omaha::running("")),
            ),
            (
                "request-check-refused-by-server-2.http",
                event_only(
                    &identity,
                    aleph,
                    Trigger::OnDemand,
                    false,
                    omaha::failure(34, private),
                ),
            ),
        ];
        for (name, request) in table {
            assert_eq!(request.to_xml(), recorded(name), "{name}");
        }
    }

    /// The recordings are of a machine that takes no deltas and knows no attributes of
    /// ours, so what differs from them in a real check is exactly this.
    #[test]
    fn a_real_check_differs_from_the_original_in_the_delta_flag_and_attributes_at_the_end() {
        let request = |abilities: &Abilities| {
            check(
                &recorded_identity(),
                "3815.2.0",
                Trigger::OnDemand,
                abilities,
                omaha::running(""),
            )
            .to_xml()
        };
        let abilities = Abilities {
            delta_okay: true,
            usr_sha256: Some("ab12".to_owned()),
            encoders: Some(vec!["lz4/1.10.0".to_owned(), "zstd/1.5.7".to_owned()]),
        };
        let original = recorded("request-ordinary-check-1.http");
        let changed = original.replace(
            "delta_okay=\"false\"",
            "delta_okay=\"true\" usr_sha256=\"ab12\" encoders=\"lz4/1.10.0 zstd/1.5.7\"",
        );
        assert_ne!(changed, original);
        assert_eq!(request(&abilities), changed);
        let unknown = Abilities {
            usr_sha256: None,
            ..abilities
        };
        assert_eq!(
            request(&unknown),
            changed.replace(" usr_sha256=\"ab12\"", "")
        );
    }
}
