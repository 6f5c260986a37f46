//! What goes over the wire, as values: a request's header and body to a
//! [`Client`], a [`Refusal`] to a status and a body, and back. No HTTP library,
//! no semaphore.
//!
//! | | |
//! |---|---|
//! | requests | `POST <base>/v1/pre-reboot`, `POST <base>/v1/steady-state` |
//! | header | `fleet-lock-protocol: true` |
//! | body | `{"client_params":{"id":"…","group":"…"}}` |
//! | yes | any 2xx |
//! | no | anything else, with `{"kind":"…","value":"…"}` |

use serde::{Deserialize, Serialize};

use crate::machine_id::MachineId;

/// Name of the header that every request has.
pub const HEADER: &str = "fleet-lock-protocol";
/// And its value, exactly.
pub const HEADER_VALUE: &str = "true";
/// Longest body that is read, in bytes; a real one has about 120.
pub const MOST_BYTES: usize = 16 * 1024;
/// Longest id, in bytes; real ones have 32.
const MOST_ID_BYTES: usize = 1024;
/// Longest kind of a refusal that a client takes over, in bytes.
const MOST_KIND_BYTES: usize = 64;
/// Longest text of a refusal that a client takes over, in characters.
const MOST_VALUE_CHARS: usize = 500;

/// The two questions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Api {
    /// May I reboot? A yes is a place until [`Api::SteadyState`].
    PreReboot,
    /// I am up and well.
    SteadyState,
}

impl Api {
    /// Both.
    pub const ALL: [Self; 2] = [Self::PreReboot, Self::SteadyState];

    /// Path below the base URL, without slashes at its ends.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::PreReboot => "v1/pre-reboot",
            Self::SteadyState => "v1/steady-state",
        }
    }

    /// Last part of the path: the name in metrics and logs.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::PreReboot => "pre-reboot",
            Self::SteadyState => "steady-state",
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Client {
    /// Opaque, case-sensitive, not empty.
    pub id: MachineId,
    /// Letters, digits, dots and dashes; not empty.
    pub group: String,
}

#[derive(Serialize, Deserialize)]
struct Body {
    client_params: Params,
}

#[derive(Serialize, Deserialize)]
struct Params {
    id: String,
    group: String,
}

impl Client {
    /// Checks the values of [`HEADER`] and reads the body, in this order.
    ///
    /// # Errors
    ///
    /// [`Kind::InvalidClientIdentity`].
    pub fn read<'a>(
        headers: impl IntoIterator<Item = &'a [u8]>,
        body: &[u8],
    ) -> Result<Self, Refusal> {
        let no = |reason: &str| {
            Refusal::new(
                Kind::InvalidClientIdentity,
                format!("failed to validate client identity: {reason}"),
            )
        };
        let mut headers = headers.into_iter();
        if headers.next() != Some(HEADER_VALUE.as_bytes()) || headers.next().is_some() {
            return Err(no("the header \"fleet-lock-protocol: true\" is missing"));
        }
        if body.len() > MOST_BYTES {
            return Err(no("the body is too long"));
        }
        let body: Body = serde_json::from_slice(body)
            .map_err(|error| no(&format!("the body is not the expected JSON: {error}")))?;
        let Params { id, group } = body.client_params;
        if id.is_empty() || id.len() > MOST_ID_BYTES {
            return Err(no("the id is empty or longer than 1024 bytes"));
        }
        if !is_group(&group) {
            return Err(no(
                "the group is empty or has other characters than letters, digits, '.' and '-'",
            ));
        }
        let id = MachineId::new(&id);
        Ok(Self { id, group })
    }

    /// The body of a request.
    #[must_use]
    pub fn write(&self) -> String {
        let body = Body {
            client_params: Params {
                id: self.id.to_string(),
                group: self.group.clone(),
            },
        };
        serde_json::to_string(&body).expect("two texts are always JSON")
    }
}

/// Whether `text` may name a group: `^[a-zA-Z0-9.-]+$`.
#[must_use]
pub fn is_group(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    !text.is_empty() && text.bytes().all(allowed)
}

/// Why the server says no. The names are labels of metrics, here and in clients,
/// so there are only these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The header or the body is not the protocol's.
    InvalidClientIdentity,
    /// The server does not serve this group.
    UnknownGroup,
    /// All places are taken, or others are before this client.
    SemaphoreFull,
    /// The machine's place belongs to somebody else: an agent, an operator, an
    /// older tool.
    HeldOtherwise,
    /// Failures have halted the group.
    Halted,
    /// An operator has paused the group.
    Paused,
    /// There is nothing at this path.
    NotFound,
    /// Only POST does something here.
    MethodNotAllowed,
    /// The body is longer than [`MOST_BYTES`].
    BodyTooLong,
    /// The body did not arrive in time.
    BodyTooSlow,
    /// The store cannot be reached, or its answer did not come.
    StoreUnavailable,
    /// The store refuses this server.
    StoreRefused,
    /// The store has a value that cannot be read.
    StoreBadValue,
    /// Others changed the group all the time.
    StoreBusy,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 14] = [
        Self::InvalidClientIdentity,
        Self::UnknownGroup,
        Self::SemaphoreFull,
        Self::HeldOtherwise,
        Self::Halted,
        Self::Paused,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::BodyTooLong,
        Self::BodyTooSlow,
        Self::StoreUnavailable,
        Self::StoreRefused,
        Self::StoreBadValue,
        Self::StoreBusy,
    ];

    /// The name on the wire; those that airlock has are airlock's.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.entry().0
    }

    /// The HTTP status.
    #[must_use]
    pub fn status(self) -> u16 {
        self.entry().1
    }

    fn entry(self) -> (&'static str, u16) {
        match self {
            Self::InvalidClientIdentity => ("invalid_client_identity", 400),
            Self::UnknownGroup => ("unknown_group", 400),
            Self::SemaphoreFull => ("failed_lock_semaphore_full", 423),
            Self::HeldOtherwise => ("failed_lock_held_otherwise", 423),
            Self::Halted => ("fleet_halted", 423),
            Self::Paused => ("fleet_paused", 423),
            Self::NotFound => ("not_found", 404),
            Self::MethodNotAllowed => ("method_not_allowed", 405),
            Self::BodyTooLong => ("body_too_long", 413),
            Self::BodyTooSlow => ("body_too_slow", 408),
            Self::StoreUnavailable => ("store_unavailable", 503),
            Self::StoreRefused => ("store_refused", 503),
            Self::StoreBadValue => ("store_bad_value", 503),
            Self::StoreBusy => ("store_busy", 503),
        }
    }
}

/// A no, with its reason for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Why, for programs.
    pub kind: Kind,
    /// Why, for people; not empty.
    pub value: String,
}

impl Refusal {
    /// A no.
    #[must_use]
    pub fn new(kind: Kind, value: impl Into<String>) -> Self {
        Self {
            kind,
            value: value.into(),
        }
    }

    /// The body of the answer: one line.
    #[must_use]
    pub fn write(&self) -> String {
        let body = RefusalBody {
            kind: self.kind.name().to_owned(),
            value: self.value.clone(),
        };
        serde_json::to_string(&body).expect("two texts are always JSON") + "\n"
    }
}

#[derive(Serialize, Deserialize)]
struct RefusalBody {
    kind: String,
    value: String,
}

/// What a client makes of an answer that is no yes: the server's kind and text,
/// or `generic_http_<status>` where it gives none.
///
/// The server is not trusted: a kind that is no short word is dropped, since it
/// becomes a label of metrics, and control characters do not reach the log.
#[must_use]
pub fn read_refusal(status: u16, body: &[u8]) -> (String, String) {
    let clean = |text: &str| -> String {
        text.chars()
            .map(|letter| if letter.is_control() { ' ' } else { letter })
            .take(MOST_VALUE_CHARS)
            .collect()
    };
    match serde_json::from_slice(body) {
        Ok(RefusalBody { kind, value }) if is_kind(&kind) && !value.is_empty() => {
            (kind, clean(&value))
        }
        _ => (
            format!("generic_http_{status}"),
            clean(String::from_utf8_lossy(body).trim()),
        ),
    }
}

fn is_kind(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    !text.is_empty() && text.len() <= MOST_KIND_BYTES && text.bytes().all(allowed)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const GOOD: &str = r#"{"client_params":{"id":"a1","group":"default"}}"#;

    fn read(headers: &[&str], body: &str) -> Result<Client, Refusal> {
        let headers = headers.iter().map(|value| value.as_bytes());
        Client::read(headers, body.as_bytes())
    }

    #[test]
    fn requests_of_known_clients_are_read() {
        // Zincati's is pretty-printed; nobody promises the order of members, and
        // a later client may send more of them.
        for body in [
            GOOD,
            "{\n  \"client_params\": {\n    \"id\": \"a1\",\n    \"group\": \"default\"\n  }\n}",
            r#"{"v":2,"client_params":{"group":"default","rack":7,"id":"a1"}}"#,
        ] {
            let client = read(&["true"], body).unwrap();
            assert_eq!(client.id.as_str(), "a1");
            assert_eq!(client.group, "default");
            assert_eq!(read(&["true"], &client.write()).unwrap(), client);
        }
        // Opaque and case-sensitive.
        let body = r#"{"client_params":{"id":" A/é\u0000 ","group":"x"}}"#;
        assert_eq!(
            read(&["true"], body).unwrap().id.as_str(),
            " A/\u{e9}\u{0} "
        );
    }

    #[test]
    fn anything_else_is_no_client() {
        let long_id = format!(
            r#"{{"client_params":{{"id":"{}","group":"x"}}}}"#,
            "a".repeat(1025)
        );
        let long = format!("{GOOD}{}", " ".repeat(MOST_BYTES));
        let deep = "[".repeat(10_000);
        for headers in [&[][..], &["True"], &["1"], &["true "], &["true", "true"]] {
            assert_invalid(read(headers, GOOD));
        }
        for body in [
            "",
            "{}",
            "null",
            "[]",
            "true",
            r#"{"client_params":null}"#,
            r#"{"client_params":{"id":"a"}}"#,
            r#"{"client_params":{"group":"x"}}"#,
            r#"{"client_params":{"id":"","group":"x"}}"#,
            r#"{"client_params":{"id":"a","group":""}}"#,
            r#"{"client_params":{"id":7,"group":"x"}}"#,
            r#"{"client_params":{"id":"a","id":"b","group":"x"}}"#,
            r#"{"client_params":{"id":"a","group":"x/y"}}"#,
            r#"{"client_params":{"id":"a","group":"x y"}}"#,
            r#"{"client_params":{"id":"a","group":"x_y"}}"#,
            r#"{"client_params":{"id":"a","group":"é"}}"#,
            r#"{"client_params":{"id":"a","group":"x\n"}}"#,
            r#"{"client_params":{"id":"a","group":"x"}} and more"#,
            r#"{"client_params":{"id":"\ud800","group":"x"}}"#,
            &long_id,
            &long,
            &deep,
        ] {
            assert_invalid(read(&["true"], body));
        }
        let not_utf8 = [GOOD.as_bytes(), b"\xff"].concat();
        assert_invalid(Client::read([&b"true"[..]], &not_utf8));
    }

    fn assert_invalid(answer: Result<Client, Refusal>) {
        let refusal = answer.unwrap_err();
        assert_eq!(refusal.kind, Kind::InvalidClientIdentity);
        // As airlock's.
        let start = "failed to validate client identity: ";
        assert!(refusal.value.starts_with(start), "{refusal:?}");
    }

    #[test]
    fn kinds_are_words_of_their_own_and_never_a_yes() {
        let names: BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), Kind::ALL.len());
        for kind in Kind::ALL {
            assert!(is_kind(kind.name()), "{kind:?}");
            assert!(kind.status() >= 400, "{kind:?}");
        }
    }

    #[test]
    fn refusals_are_read_as_they_are_written() {
        let refusal = Refusal::new(Kind::SemaphoreFull, "all 1 semaphore slots are locked");
        assert_eq!(
            refusal.write(),
            "{\"kind\":\"failed_lock_semaphore_full\",\"value\":\"all 1 semaphore slots are locked\"}\n"
        );
        assert_eq!(
            read_refusal(423, refusal.write().as_bytes()),
            (
                "failed_lock_semaphore_full".to_owned(),
                "all 1 semaphore slots are locked".to_owned()
            )
        );
        assert_eq!(
            read_refusal(500, br#"{"kind":"generic_kind","value":"generic value"}"#).0,
            "generic_kind"
        );
    }

    #[test]
    fn a_server_cannot_make_up_labels_or_lines_of_the_log() {
        let long_kind = format!(r#"{{"kind":"{}","value":"x"}}"#, "k".repeat(65));
        for body in [
            &b""[..],
            b"<html>Bad gateway</html>",
            b"\xff\xfe",
            br#"{"kind":"","value":"x"}"#,
            br#"{"kind":"full","value":""}"#,
            br#"{"kind":"a b","value":"x"}"#,
            br#"{"kind":"full"}"#,
            long_kind.as_bytes(),
        ] {
            assert_eq!(read_refusal(502, body).0, "generic_http_502");
        }
        let (_, value) = read_refusal(500, br#"{"kind":"k","value":"a\nb\u001b[31m"}"#);
        assert_eq!(value, "a b [31m");
        let flood = "x".repeat(100_000);
        assert_eq!(read_refusal(500, flood.as_bytes()).1.len(), 500);
    }

    #[test]
    fn kinds_are_in_the_documentation() {
        let documentation = include_str!("../../../docs/fleetlock.md");
        for kind in Kind::ALL {
            let row = |line: &str| {
                line.starts_with(&format!("| {} ", kind.status()))
                    && line.contains(&format!("`{}`", kind.name()))
            };
            assert!(documentation.lines().any(row), "{kind:?}");
        }
    }
}
