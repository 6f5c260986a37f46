//! What is printed about a group: the original's lines for scripts, a table and
//! sentences for people, JSON for programs. Pure: snapshots and a time go in,
//! text comes out.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use jiff::Timestamp;
use serde::Serialize;

use crate::machine_id::MachineId;
use crate::semaphore::{
    Document, Failure, Halt, Holder, Kind, Mode, Paused, Phase, Policy, Snapshot, failures,
    steering,
};

/// The original's `status`, byte for byte. Everything after `MACHINE ID` is one
/// id per line, so nothing may follow.
pub(super) fn status(places: &Document) -> String {
    let mut out = format!("Available: {}\nMax: {}\n", places.semaphore, places.max);
    if !places.holders.is_empty() {
        out += "\nMACHINE ID\n";
        for id in &places.holders {
            let _ = writeln!(out, "{id}");
        }
    }
    out
}

/// What `status` has no line for, as sentences; empty if all is quiet.
pub(super) fn remarks(snapshot: &Snapshot, now: i64) -> String {
    let mut out = String::new();
    let mut say = |text: String| {
        let _ = writeln!(out, "{text}");
    };
    if snapshot.document_only {
        say("On etcd's v2 API: no queue, no halt, no budget".to_owned());
        say("  to have them: locksmithctl migrate".to_owned());
    }
    if let Some(halt) = &snapshot.halt.value {
        say(format!(
            "HALTED {} ago by {}: {}",
            age(now, halt.at),
            halt.by,
            halt.why
        ));
        say("  to go on: locksmithctl halt -clear -why REASON".to_owned());
    }
    if let Some(paused) = policy(snapshot).paused {
        say(format!(
            "Paused {} ago by {}{}",
            age(now, paused.at),
            paused.by,
            because(&paused.why)
        ));
        say("  to go on: locksmithctl resume".to_owned());
    }
    for (id, holder) in troubled(snapshot) {
        say(format!("{id} {}", sentence(holder, now)));
    }
    if let Some(left) = failures::budget_left(snapshot) {
        let count = snapshot
            .failures
            .value
            .as_ref()
            .map_or(0, |failures| failures.failures.len());
        if count > 0 {
            say(format!("{count} failed, {left} more would halt the group"));
        }
    }
    if snapshot.queue_length > 0 {
        let next = snapshot.queue.first();
        let next = next.map_or(String::new(), |(key, _)| format!(", next is {}", key.id));
        say(format!("{} waiting{next}", snapshot.queue_length));
    }
    if let Some(percent) = policy(snapshot).max_percent {
        say(format!(
            "The maximum is {percent}% of {} machines",
            snapshot.members
        ));
    }
    if !steering::check(snapshot).0.is_empty() {
        say("Something is wrong with what is stored; see: locksmithctl fsck".to_owned());
    }
    out
}

/// The table of `holders`.
pub(super) fn holders(snapshot: &Snapshot, now: i64) -> String {
    let places = snapshot.places();
    let mut rows = vec![
        [
            "MACHINE ID",
            "PHASE",
            "KIND",
            "AGE",
            "VERSION",
            "MODE",
            "REASON",
        ]
        .map(str::to_owned),
    ];
    for id in &places.holders {
        rows.push(match record(snapshot, id) {
            Some(holder) => [
                printable(id.as_str()),
                match holder.kind {
                    Kind::Manual => "held".to_owned(),
                    Kind::Reboot | Kind::Fleetlock | Kind::Unknown => word(&holder.phase),
                },
                word(&holder.kind),
                age(now, holder.since),
                printable(&versions(holder)),
                match holder.kind {
                    Kind::Reboot | Kind::Unknown => word(&holder.mode),
                    Kind::Manual | Kind::Fleetlock => "-".to_owned(),
                },
                printable(&holder.reason),
            ],
            None => [
                printable(id.as_str()),
                "-".to_owned(),
                "-".to_owned(),
                "-".to_owned(),
                "-".to_owned(),
                "-".to_owned(),
                if snapshot.holders.contains_key(id) {
                    "its record cannot be read".to_owned()
                } else {
                    "no record: an older tool, or a hand".to_owned()
                },
            ],
        });
    }
    table(&rows)
}

/// Everything about a group, for programs.
#[derive(Debug, Serialize)]
pub(super) struct Report<'a> {
    group: &'a str,
    available: i64,
    max: i64,
    max_percent: Option<u8>,
    members: u64,
    holders: Vec<HolderReport<'a>>,
    waiting: u64,
    /// The first of those who wait, in their order.
    queue: Vec<WaiterReport<'a>>,
    budget: u32,
    budget_left: Option<u32>,
    failures: &'a [Failure],
    halt: Option<&'a Halt>,
    paused: Option<Paused>,
    findings: Vec<String>,
    /// Whether queue, halt, budget and records exist at all; the v2 API of etcd
    /// has only the numbers and the holders.
    document_only: bool,
    revision: i64,
}

/// One who holds a place; without a record only `id` is known.
#[derive(Debug, Serialize)]
pub(super) struct HolderReport<'a> {
    id: &'a str,
    #[serde(flatten)]
    record: Option<RecordReport<'a>>,
}

#[derive(Debug, Serialize)]
struct RecordReport<'a> {
    phase: Phase,
    kind: Kind,
    since: i64,
    from: &'a str,
    to: &'a str,
    mode: Mode,
    reason: &'a str,
    unproven: bool,
    boot_id: &'a str,
    token: i64,
}

#[derive(Debug, Serialize)]
struct WaiterReport<'a> {
    id: &'a str,
    rank: u16,
    since: i64,
    to: &'a str,
}

impl<'a> Report<'a> {
    /// The report on one snapshot; `places` are its places.
    pub(super) fn new(group: &'a str, snapshot: &'a Snapshot, places: &'a Document) -> Self {
        let policy = policy(snapshot);
        Self {
            group,
            available: places.semaphore,
            max: places.max,
            max_percent: policy.max_percent,
            members: snapshot.members,
            holders: holder_reports(snapshot, places),
            waiting: snapshot.queue_length,
            queue: snapshot
                .queue
                .iter()
                .map(|(key, ticket)| WaiterReport {
                    id: key.id.as_str(),
                    rank: key.rank,
                    since: ticket.since,
                    to: &ticket.holder.to,
                })
                .collect(),
            budget: policy.budget,
            budget_left: failures::budget_left(snapshot),
            failures: snapshot
                .failures
                .value
                .as_ref()
                .map_or(&[], |failures| failures.failures.as_slice()),
            halt: snapshot.halt.value.as_ref(),
            paused: policy.paused,
            findings: steering::check(snapshot)
                .0
                .iter()
                .map(ToString::to_string)
                .collect(),
            document_only: snapshot.document_only,
            revision: snapshot.revision,
        }
    }
}

/// The holders, for programs.
pub(super) fn holder_reports<'a>(
    snapshot: &'a Snapshot,
    places: &'a Document,
) -> Vec<HolderReport<'a>> {
    let report = |id: &'a MachineId| HolderReport {
        id: id.as_str(),
        record: snapshot.holders.get(id).and_then(|record| {
            record.value.as_ref().map(|holder| RecordReport {
                phase: holder.phase,
                kind: holder.kind,
                since: holder.since,
                from: &holder.from,
                to: &holder.to,
                mode: holder.mode,
                reason: &holder.reason,
                unproven: holder.unproven,
                boot_id: &holder.boot_id,
                token: record.created,
            })
        }),
    };
    places.holders.iter().map(report).collect()
}

/// What happened between two snapshots, one sentence each.
pub(super) fn changes(before: &Snapshot, after: &Snapshot) -> Vec<String> {
    let (old, new) = (before.places(), after.places());
    let mut out = Vec::new();
    if old.max != new.max {
        out.push(format!("the maximum is {}, was {}", new.max, old.max));
    }
    for id in old.holders.iter().filter(|id| !new.holds(id)) {
        out.push(format!("{id} has given its place back"));
    }
    for id in &new.holders {
        let (was, is) = (record(before, id), record(after, id));
        match is {
            Some(is) if !old.holds(id) => {
                out.push(format!("{id} has a place, {}", doing(is)));
            }
            None if !old.holds(id) => out.push(format!("{id} has a place")),
            Some(is) if was.map(|was| was.phase) != Some(is.phase) => {
                out.push(format!("{id} is {}", doing(is)));
            }
            _ => {}
        }
    }
    let waited: BTreeSet<_> = before.queue.iter().map(|(key, _)| &key.id).collect();
    for (key, _) in after.queue.iter() {
        if !waited.contains(&key.id) && before.queue.len() < Snapshot::QUEUE_WINDOW {
            out.push(format!("{} waits", key.id));
        }
    }
    for (key, _) in before.queue.iter() {
        let there = after.queue.iter().any(|(other, _)| other.id == key.id);
        if !there && !new.holds(&key.id) {
            out.push(format!("{} waits no longer", key.id));
        }
    }
    let (old, new) = (policy(before), policy(after));
    if old.paused != new.paused {
        out.push(match new.paused {
            Some(paused) => format!("paused by {}{}", paused.by, because(&paused.why)),
            None => "the pause is over".to_owned(),
        });
    }
    if old.budget != new.budget {
        out.push(format!("the budget is {}, was {}", new.budget, old.budget));
    }
    if before.halt.value != after.halt.value {
        out.push(match &after.halt.value {
            Some(halt) => format!("HALTED by {}: {}", halt.by, halt.why),
            None => "the halt is cleared".to_owned(),
        });
    }
    out.iter().map(|line| printable(line)).collect()
}

/// The rules of a group.
pub(super) fn policy(snapshot: &Snapshot) -> Policy {
    snapshot.policy.value.clone().unwrap_or_default()
}

/// A time as people write it.
pub(super) fn moment(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| "?".to_owned(), |time| time.to_string())
}

fn record<'a>(snapshot: &'a Snapshot, id: &MachineId) -> Option<&'a Holder> {
    snapshot.holders.get(id)?.value.as_ref()
}

/// Holders that keep their place because something went wrong.
fn troubled(snapshot: &Snapshot) -> impl Iterator<Item = (&MachineId, &Holder)> {
    snapshot.holders.iter().filter_map(|(id, record)| {
        let holder = record.value.as_ref()?;
        matches!(holder.phase, Phase::Overdue | Phase::Failed).then_some((id, holder))
    })
}

fn sentence(holder: &Holder, now: i64) -> String {
    let held = age(now, holder.since);
    match holder.phase {
        Phase::Overdue => format!(
            "is overdue, {held} after it got its place{}",
            because(&holder.reason)
        ),
        _ => format!(
            "is {}, {held} after it got its place{}",
            word(&holder.phase),
            because(&holder.reason)
        ),
    }
}

fn doing(holder: &Holder) -> String {
    match (holder.kind, holder.phase) {
        (Kind::Manual, _) => format!("locked by an operator{}", because(&holder.reason)),
        (_, Phase::Failed | Phase::Overdue) => {
            format!("{}{}", word(&holder.phase), because(&holder.reason))
        }
        (_, phase) => word(&phase),
    }
}

fn because(why: &str) -> String {
    if why.is_empty() {
        String::new()
    } else {
        format!(": {why}")
    }
}

fn versions(holder: &Holder) -> String {
    match (holder.from.as_str(), holder.to.as_str()) {
        ("", "") => "-".to_owned(),
        (from, "") => from.to_owned(),
        ("", to) => format!("to {to}"),
        (from, to) => format!("{from} to {to}"),
    }
}

/// Text from the store without what would move a terminal's cursor, or worse.
fn printable(text: &str) -> String {
    text.replace(|letter: char| letter.is_control(), "?")
}

/// A value's name in JSON, which is its name everywhere.
fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => "?".to_owned(),
    }
}

/// The time since `then`, in its two largest units: `3d4h`, `5m`, `12s`.
fn age(now: i64, then: i64) -> String {
    let seconds = now.saturating_sub(then).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, minutes) => format!("{minutes}m"),
        (0, hours, minutes) => format!("{hours}h{:02}m", minutes % 60),
        (days, hours, _) => format!("{days}d{}h", hours % 24),
    }
}

/// Columns two blanks apart, without blanks at the ends of lines.
fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let mut out = String::new();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            let _ = write!(line, "{cell:width$}  ");
        }
        let _ = writeln!(out, "{}", line.trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::semaphore::{LeaseId, Ticket, TicketKey, Versioned};

    const NOW: i64 = 1_000_000;

    fn versioned<T>(value: T) -> Versioned<T> {
        Versioned {
            value: Some(value),
            created: 3,
            modified: 3,
        }
    }

    fn holder(kind: Kind, phase: Phase) -> Holder {
        Holder {
            phase,
            kind,
            since: NOW - 4000,
            boot_id: String::new(),
            from: "1.0".to_owned(),
            to: "2.0".to_owned(),
            mode: Mode::Kexec,
            reason: String::new(),
            unproven: false,
            nonce: String::new(),
            ticket: None,
        }
    }

    fn group(max: i64, holders: &[(&str, Option<Holder>)]) -> Snapshot {
        let ids = holders.iter().map(|(id, _)| MachineId::new(id));
        Snapshot {
            revision: 9,
            document: versioned(Document::new(max, ids).into()),
            holders: holders
                .iter()
                .filter_map(|(id, holder)| {
                    Some((MachineId::new(id), versioned(holder.clone()?).into()))
                })
                .collect::<BTreeMap<_, _>>()
                .into(),
            ..Snapshot::default()
        }
    }

    fn queued(mut snapshot: Snapshot, id: &str) -> Snapshot {
        let key = TicketKey {
            rank: 100,
            ticket: 1,
            id: id.into(),
        };
        let ticket = Ticket {
            holder: holder(Kind::Reboot, Phase::Draining),
            confirm: true,
            since: NOW,
            lease: LeaseId(1),
        };
        snapshot.queue = vec![(key, ticket.into())].into();
        snapshot.queue_length += 1;
        snapshot
    }

    #[test]
    fn the_originals_status() {
        assert_eq!(status(&Document::default()), "Available: 1\nMax: 1\n");
        assert_eq!(
            status(&Document::new(1, ["b".into(), "a".into()])),
            "Available: -1\nMax: 1\n\nMACHINE ID\na\nb\n"
        );
        let crooked = Document::read(br#"{"semaphore":1,"holders":["z","","a"]}"#).unwrap();
        assert_eq!(
            status(&crooked),
            "Available: 1\nMax: 0\n\nMACHINE ID\nz\n\na\n"
        );
    }

    #[test]
    fn a_quiet_group_has_no_remarks_and_a_loud_one_says_what_to_do() {
        assert_eq!(remarks(&group(1, &[]), NOW), "");
        let mut late = holder(Kind::Reboot, Phase::Overdue);
        late.reason = "did not come back in time".to_owned();
        let mut loud = queued(group(1, &[("a", Some(late))]), "b");
        loud.halt = versioned(Halt {
            by: "a".to_owned(),
            why: "2 of 2 failures".to_owned(),
            at: NOW - 60,
        });
        loud.policy = versioned(Policy {
            paused: Some(Paused {
                by: "root@x".to_owned(),
                why: String::new(),
                at: NOW - 3,
            }),
            ..Policy::default()
        });
        assert_eq!(
            remarks(&loud, NOW),
            "HALTED 1m ago by a: 2 of 2 failures\n\
             \x20 to go on: locksmithctl halt -clear -why REASON\n\
             Paused 3s ago by root@x\n\
             \x20 to go on: locksmithctl resume\n\
             a is overdue, 1h06m after it got its place: did not come back in time\n\
             1 waiting, next is b\n"
        );
    }

    #[test]
    fn holders_are_a_table() {
        let mut manual = holder(Kind::Manual, Phase::Draining);
        manual.from.clear();
        manual.to.clear();
        manual.reason = "new disks".to_owned();
        let group = group(
            3,
            &[
                ("long-name", Some(holder(Kind::Reboot, Phase::Rebooting))),
                ("m", Some(manual)),
                ("old", None),
            ],
        );
        assert_eq!(
            holders(&group, NOW),
            "\
MACHINE ID  PHASE      KIND    AGE    VERSION     MODE   REASON
long-name   rebooting  reboot  1h06m  1.0 to 2.0  kexec
m           held       manual  1h06m  -           -      new disks
old         -          -       -      -           -      no record: an older tool, or a hand
"
        );
    }

    #[test]
    fn json_has_everything() {
        let group = queued(
            group(2, &[("a", Some(holder(Kind::Reboot, Phase::Draining)))]),
            "b",
        );
        let places = group.places();
        let json = serde_json::to_value(Report::new("g", &group, places)).unwrap();
        assert_eq!(json["group"], "g");
        assert_eq!(json["available"], 1);
        assert_eq!(json["holders"][0]["id"], "a");
        assert_eq!(json["holders"][0]["phase"], "draining");
        assert_eq!(json["queue"][0]["id"], "b");
        assert_eq!(json["budget_left"], 2);
        assert_eq!(json["halt"], serde_json::Value::Null);
    }

    #[test]
    fn changes_are_told_once() {
        let empty = group(1, &[]);
        let draining = group(2, &[("a", Some(holder(Kind::Reboot, Phase::Draining)))]);
        let rebooting = group(2, &[("a", Some(holder(Kind::Reboot, Phase::Rebooting)))]);
        let waiting = queued(rebooting.clone(), "b");
        let old_tool = group(2, &[("c", None)]);
        for (before, after, expected) in [
            (&empty, &empty, vec![]),
            (
                &empty,
                &draining,
                vec!["the maximum is 2, was 1", "a has a place, draining"],
            ),
            (&draining, &rebooting, vec!["a is rebooting"]),
            (&rebooting, &waiting, vec!["b waits"]),
            (&waiting, &rebooting, vec!["b waits no longer"]),
            (
                &rebooting,
                &old_tool,
                vec!["a has given its place back", "c has a place"],
            ),
        ] {
            assert_eq!(changes(before, after), expected);
        }
    }

    #[test]
    fn ages_have_two_units() {
        for (seconds, expected) in [
            (-5, "0s"),
            (59, "59s"),
            (60, "1m"),
            (3600, "1h00m"),
            (90_061, "1d1h"),
        ] {
            assert_eq!(age(NOW, NOW - seconds), expected);
        }
    }
}
