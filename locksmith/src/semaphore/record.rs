//! What the keys beside the document hold, and their JSON.
//!
//! Unknown members are kept out, missing ones have defaults and unknown words a
//! meaning, so that agents of neighbouring versions read each other: a machine that
//! has fallen back still sees from which version it came and to which it went.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::document::{BadDocument, Document};
use super::key::Key;
use super::snapshot::LeaseId;
use crate::machine_id::MachineId;

/// Longest record that is read, in bytes.
const MOST_BYTES: usize = 1_572_864;

/// A value in the store.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Record {
    /// Under [`Key::Document`].
    Document(Document),
    /// Under [`Key::Policy`].
    Policy(Policy),
    /// Under [`Key::Halt`].
    Halt(Halt),
    /// Under [`Key::Failures`].
    Failures(Failures),
    /// Under [`Key::Holder`].
    Holder(Holder),
    /// Under [`Key::Ticket`].
    Ticket(Ticket),
    /// Under [`Key::History`].
    History(Vec<Outcome>),
    /// Under [`Key::Deadline`] and [`Key::Member`]: presence is all.
    Present,
}

/// Why a value cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum BadRecord {
    /// The original's document.
    #[error(transparent)]
    Document(#[from] BadDocument),
    /// One of ours.
    #[error("not the expected JSON: {0}")]
    Json(String),
    /// Longer than any store takes.
    #[error("it has {0} bytes")]
    TooLong(usize),
}

/// How the group behaves. Set by an operator; absent means the default.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Policy {
    /// Places as a share of the members, instead of the number in the document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_percent: Option<u8>,
    /// Failures that halt the group: it halts when there are this many. 0 never
    /// halts.
    pub budget: u32,
    /// Nobody gets a place while this stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub paused: Option<Paused>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            max_percent: None,
            budget: 2,
            paused: None,
        }
    }
}

/// The number of places as an operator writes it: `2` or `10%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Max {
    /// So many.
    Count(i64),
    /// Share of the members, 1 to 100; at least one place.
    Percent(u8),
}

/// An operator's pause.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Paused {
    /// Who paused it.
    pub by: String,
    /// Why.
    pub why: String,
    /// Unix seconds.
    pub at: i64,
}

impl Paused {
    /// Who paused it while a group moves from etcd's v2 API.
    pub const BY_MIGRATE: &'static str = "locksmithctl migrate";
}

/// Why nobody may take a place until an operator says otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Halt {
    /// The machine whose failure spent the budget, or an operator.
    pub by: String,
    /// In words.
    pub why: String,
    /// Unix seconds.
    pub at: i64,
}

/// What went wrong since an operator last cleared it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(default)]
pub struct Failures {
    /// In the order in which they were noticed.
    pub failures: Vec<Failure>,
}

/// One machine that burned a part of the budget.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Failure {
    /// Who.
    pub id: MachineId,
    /// How.
    pub kind: FailureKind,
    /// The version that it was to run; empty when not known.
    #[serde(default)]
    pub version: String,
    /// In words.
    #[serde(default)]
    pub reason: String,
    /// Unix seconds.
    pub at: i64,
    /// Nonce of the place: a place burns the budget once.
    #[serde(default)]
    pub nonce: String,
}

/// How a machine failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// It did not come back in time.
    Overdue,
    /// It came back on the old version, or was not healthy.
    Failed,
    /// An operator gave it up.
    Lost,
}

/// Who holds a place. The create revision of its key is the fencing token: it
/// is another one for each place.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// How far it is.
    #[serde(default)]
    pub phase: Phase,
    /// What the place is for.
    #[serde(default)]
    pub kind: Kind,
    /// Unix seconds at which the place was given, by the giver's clock.
    #[serde(default)]
    pub since: i64,
    /// Kernel's boot id when the place was asked for; empty where not known.
    #[serde(default)]
    pub boot_id: String,
    /// Version that ran then.
    #[serde(default)]
    pub from: String,
    /// Version that is to run.
    #[serde(default)]
    pub to: String,
    /// How it reboots.
    #[serde(default)]
    pub mode: Mode,
    /// Why it failed or waits, in words.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// It rebooted with this place and has not been well since, even if it is on
    /// its way into another version by now. Such a place is not given back.
    #[serde(default, skip_serializing_if = "is_false")]
    pub unproven: bool,
    /// Chosen by who asked, to recognise its own request again.
    #[serde(default)]
    pub nonce: String,
    /// Until it is confirmed: the ticket that the place was given for, by name.
    /// While that ticket stands its owner lives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}

impl Holder {
    /// A record that says no more than what the place is for and whose request
    /// it is.
    #[must_use]
    pub fn new(kind: Kind, nonce: impl Into<String>) -> Self {
        Self {
            phase: Phase::Draining,
            kind,
            since: 0,
            boot_id: String::new(),
            from: String::new(),
            to: String::new(),
            mode: Mode::default(),
            reason: String::new(),
            unproven: false,
            nonce: nonce.into(),
            ticket: None,
        }
    }
}

/// How far a holder is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// The place was given to one who waited; it has not answered yet and may
    /// lose it again.
    Granted,
    /// Confirmed; programs before the reboot run.
    Draining,
    /// The reboot is asked for.
    Rebooting,
    /// The machine is back and proves itself.
    Verifying,
    /// It did not come back in time.
    Overdue,
    /// It is back, and not well.
    Failed,
    /// A word of a later version, or none.
    #[default]
    #[serde(other)]
    Unknown,
}

/// What a place is for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// An agent's reboot into an update.
    #[default]
    Reboot,
    /// An operator's `locksmithctl lock`; agents leave it alone.
    Manual,
    /// A client of the FleetLock protocol.
    Fleetlock,
    /// A word of a later version. Its own agent takes it for a reboot; nobody else
    /// judges it.
    #[serde(other)]
    Unknown,
}

/// How a machine reboots.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Straight into the new kernel.
    Kexec,
    /// User space alone.
    Soft,
    /// Through the firmware; also what a word of a later version is taken for.
    #[default]
    #[serde(other)]
    Firmware,
}

/// One who waits. Its key is under a lease: it goes when its owner does.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Ticket {
    /// The holder record to write for it, but for `phase`, `since` and `ticket`.
    pub holder: Holder,
    /// The owner answers a grant before it counts; otherwise the grant is final.
    #[serde(default)]
    pub confirm: bool,
    /// Unix seconds at which it began to wait, by its own clock.
    #[serde(default)]
    pub since: i64,
    /// Lease of the key.
    #[serde(default)]
    pub lease: LeaseId,
}

/// How a place ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Outcome {
    /// `released`, `unlocked`, `lost`, `given-back`.
    pub how: String,
    /// Unix seconds.
    pub at: i64,
    /// Seconds for which the place was held.
    #[serde(default)]
    pub held: i64,
    /// Version that ran before.
    #[serde(default)]
    pub from: String,
    /// Version that was to run.
    #[serde(default)]
    pub to: String,
}

impl Record {
    /// Reads the value of `key`.
    ///
    /// # Errors
    ///
    /// Not the JSON that belongs there, or too long.
    pub fn read(key: &Key, bytes: &[u8]) -> Result<Self, BadRecord> {
        if bytes.len() > MOST_BYTES {
            return Err(BadRecord::TooLong(bytes.len()));
        }
        Ok(match key {
            Key::Document => Self::Document(Document::read(bytes)?),
            Key::Policy => Self::Policy(json(bytes)?),
            Key::Halt => Self::Halt(json(bytes)?),
            Key::Failures => Self::Failures(json(bytes)?),
            Key::Holder(_) => Self::Holder(object(bytes)?),
            Key::Ticket(_) => Self::Ticket(json(bytes)?),
            Key::History(_) => Self::History(json(bytes)?),
            Key::Deadline(_) | Key::Member(_) => Self::Present,
        })
    }

    /// The bytes to store.
    #[must_use]
    pub fn write(&self) -> String {
        match self {
            Self::Document(document) => document.write(),
            Self::Policy(policy) => text(policy),
            Self::Halt(halt) => text(halt),
            Self::Failures(failures) => text(failures),
            Self::Holder(holder) => text(holder),
            Self::Ticket(ticket) => text(ticket),
            Self::History(outcomes) => text(outcomes),
            Self::Present => String::new(),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Where no member is needed, a list would do as well.
fn object<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BadRecord> {
    if bytes.trim_ascii_start().first() == Some(&b'{') {
        json(bytes)
    } else {
        Err(BadRecord::Json("not an object".to_owned()))
    }
}

fn json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, BadRecord> {
    serde_json::from_slice(bytes).map_err(|error| BadRecord::Json(error.to_string()))
}

fn text<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("records have text keys and finite numbers only")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_a_later_version_do_not_hide_the_rest_of_a_record() {
        let key = Key::Holder("a".into());
        let read = |text: &str| match Record::read(&key, text.as_bytes()) {
            Ok(Record::Holder(holder)) => Some(holder),
            _ => None,
        };
        let later =
            r#"{"phase":"settling","kind":"drill","mode":"warp","from":"1","to":"2","x":[]}"#;
        for text in [later, &later.replace(r#""phase":"settling","#, "")] {
            let holder = read(text).unwrap();
            assert_eq!((&*holder.from, &*holder.to), ("1", "2"));
            assert_eq!(
                (holder.phase, holder.kind, holder.mode),
                (Phase::Unknown, Kind::Unknown, Mode::Firmware)
            );
            assert_eq!(read(&Record::Holder(holder.clone()).write()), Some(holder));
        }
        for mode in [Mode::Firmware, Mode::Kexec, Mode::Soft] {
            let mut holder = Holder::new(Kind::Reboot, "n");
            holder.mode = mode;
            assert_eq!(read(&Record::Holder(holder.clone()).write()), Some(holder));
        }
        assert_eq!(read("[]"), None);
    }
}
