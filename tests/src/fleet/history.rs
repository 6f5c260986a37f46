//! What happened to a semaphore, revision by revision, as etcd itself tells it
//! through `etcdctl`, and whether the rules were kept.
//!
//! Nothing here uses our own client, documents or decisions: a mistake in them
//! must not hide itself.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::deadline::poll_until;
use crate::programs::system_tool;

/// The watch of a recorder finds another node within ten seconds when its own
/// hangs.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(60);

/// From the end of one watch to the start of the next.
const WATCH_AGAIN: Duration = Duration::from_millis(200);

/// A machine that is about to pass its fence has looked a moment before. If its
/// place is taken away by hand in that moment, it passes; so many revisions later
/// it must not.
const UNNOTICED: i64 = 30;

/// Records every revision of a cluster from the first one on.
///
/// It watches the whole key space. Each transaction that writes anything takes
/// the next revision, so a record without gaps is complete, and one with a gap
/// is refused. A watch that ends, as it may when a cluster has no leader, is
/// followed by another from where it ended. Compaction may not go further than
/// [`Recorder::position`].
#[derive(Debug)]
pub struct Recorder {
    recorded: Arc<Mutex<Recorded>>,
}

#[derive(Debug)]
struct Recorded {
    history: History,
    /// What tells of the next revisions; none once nobody asks any more.
    watch: Option<Child>,
    /// Why nothing more is recorded.
    broken: Option<String>,
}

impl Recorder {
    /// Records what the cluster at `endpoints` does, and did since it was made.
    ///
    /// # Errors
    ///
    /// `etcdctl` is missing.
    pub fn start(endpoints: &[String]) -> Result<Self> {
        let (watch, mut output) = start_watch(endpoints, 1)?;
        let recorded = Arc::new(Mutex::new(Recorded {
            history: History::default(),
            watch: Some(watch),
            broken: None,
        }));
        let recorder = Self {
            recorded: Arc::clone(&recorded),
        };
        let endpoints = endpoints.to_vec();
        std::thread::spawn(move || {
            loop {
                let followed = follow(output, &recorded);
                std::thread::sleep(WATCH_AGAIN);
                let mut recorded = lock(&recorded);
                let Some(ended) = &mut recorded.watch else {
                    return;
                };
                // It may still run when its output made no sense.
                let _ = ended.kill();
                let _ = ended.wait();
                let next = recorded.history.last() + 1;
                match followed.and_then(|()| start_watch(&endpoints, next)) {
                    Ok((watch, its_output)) => {
                        recorded.watch = Some(watch);
                        output = its_output;
                    }
                    Err(error) => {
                        recorded.broken = Some(format!("{error:#}"));
                        return;
                    }
                }
            }
        });
        Ok(recorder)
    }

    /// The last revision that is recorded.
    ///
    /// # Errors
    ///
    /// The record has a gap.
    pub fn position(&self) -> Result<i64> {
        let recorded = lock(&self.recorded);
        match &recorded.broken {
            Some(reason) => bail!("the record is not complete: {reason}"),
            None => Ok(recorded.history.last()),
        }
    }

    /// The complete history up to `revision` at least.
    ///
    /// # Errors
    ///
    /// The record has a gap or does not get there within a minute.
    pub fn up_to(&self, revision: i64) -> Result<History> {
        poll_until("the record of the last revision", CATCH_UP_LIMIT, || {
            Ok((self.position()? >= revision).then_some(()))
        })?;
        Ok(lock(&self.recorded).history.clone())
    }

    /// Ends the watch, as an etcd without a leader does.
    ///
    /// # Errors
    ///
    /// Those of the system.
    pub fn end_watch(&self) -> Result<()> {
        match &mut lock(&self.recorded).watch {
            Some(watch) => Ok(watch.kill()?),
            None => Ok(()),
        }
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Some(mut watch) = lock(&self.recorded).watch.take() {
            // It may have ended already, which is just as well.
            let _ = watch.kill();
            let _ = watch.wait();
        }
    }
}

fn lock(recorded: &Mutex<Recorded>) -> MutexGuard<'_, Recorded> {
    recorded.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A watch of the whole key space that begins with revision `first`.
fn start_watch(endpoints: &[String], first: i64) -> Result<(Child, ChildStdout)> {
    let mut command: Command = system_tool("etcdctl");
    command
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={}", endpoints.join(",")))
        .args(["--keepalive-time=1s", "--keepalive-timeout=2s"])
        .args(["watch", "", "--prefix", "-w", "json"])
        .arg(format!("--rev={first}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut watch = command.spawn().context("cannot start etcdctl")?;
    let output = watch.stdout.take().context("etcdctl has no output")?;
    Ok((watch, output))
}

/// Records what a watch tells until it ends.
fn follow(output: ChildStdout, recorded: &Mutex<Recorded>) -> Result<()> {
    for line in BufReader::new(output).lines() {
        lock(recorded).history.add_answer(&line?)?;
    }
    Ok(())
}

/// All writes of a cluster, in order, from its first revision on.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Element 0 is revision 2: an empty etcd is at 1.
    revisions: Vec<Vec<Write>>,
}

/// One write: the key and its new value, none when it was removed.
type Write = (String, Option<Vec<u8>>);

/// What must be true of each group in a history.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// Revisions at which the test itself changed places; any holder may lose
    /// its place there.
    pub by_hand: &'a BTreeSet<i64>,
}

/// What a history that kept the rules shows of one group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// The most holders at once.
    pub most_holders: usize,
    /// Places that were given.
    pub places_given: usize,
    /// How often each machine passed its fence.
    pub fences: BTreeMap<String, usize>,
    /// Writes of the document.
    pub document_writes: usize,
}

impl History {
    /// The last revision in it.
    #[must_use]
    pub fn last(&self) -> i64 {
        i64::try_from(self.revisions.len()).unwrap_or(i64::MAX) + 1
    }

    /// What was written to `key`, one line for each revision, for people.
    #[must_use]
    pub fn of(&self, key: &str) -> String {
        let mut lines = String::new();
        for (revision, writes) in (2..).zip(&self.revisions) {
            for (_, value) in writes.iter().filter(|(written, _)| written == key) {
                let value = value.as_deref().map(String::from_utf8_lossy);
                let value = value.unwrap_or("removed".into());
                lines += &format!("{revision}: {value}\n");
            }
        }
        lines
    }

    /// Adds one line of `etcdctl watch -w json`.
    ///
    /// # Errors
    ///
    /// It is none, or revisions before it are missing.
    fn add_answer(&mut self, line: &str) -> Result<()> {
        let answer: Value = serde_json::from_str(line).context("no answer to a watch")?;
        let compacted = answer["CompactRevision"].as_i64().unwrap_or(0);
        ensure!(compacted == 0, "revision {compacted} was compacted");
        for event in answer["Events"].as_array().into_iter().flatten() {
            let revision = event["kv"]["mod_revision"].as_i64().context("no event")?;
            let key = event["kv"]["key"]
                .as_str()
                .context("an event without a key")?;
            let key = decode(key)?;
            let key = String::from_utf8_lossy(&key).into_owned();
            let removed = event["type"].as_i64() == Some(1);
            let value = decode(event["kv"]["value"].as_str().unwrap_or_default())?;
            self.add(revision, (key, (!removed).then_some(value)))?;
        }
        Ok(())
    }

    fn add(&mut self, revision: i64, write: Write) -> Result<()> {
        if revision == self.last() + 1 {
            self.revisions.push(Vec::new());
        }
        ensure!(
            revision == self.last(),
            "revision {revision} follows {}",
            self.last()
        );
        if let Some(writes) = self.revisions.last_mut() {
            writes.push(write);
        }
        Ok(())
    }

    /// Checks every revision of the group whose keys begin with `prefix`:
    ///
    /// - no document has more holders than places, one of them twice, or numbers
    ///   that do not agree with them;
    /// - nobody loses a place in which it was at work but by giving it back,
    ///   which leaves an outcome in its history, or by hand;
    /// - nobody passes its fence without a place, or while the group is halted.
    ///
    /// # Errors
    ///
    /// The first revision that breaks a rule, and how.
    pub fn check(&self, prefix: &str, rules: Rules<'_>) -> Result<Seen> {
        let mut group = Group::default();
        for (revision, writes) in (2..).zip(&self.revisions) {
            let by_hand = rules.by_hand.contains(&revision);
            let ours = writes
                .iter()
                .filter_map(|(key, value)| Some((key.strip_prefix(prefix)?, value.as_deref())));
            group
                .apply(revision, ours, by_hand)
                .with_context(|| format!("revision {revision}"))?;
        }
        Ok(group.seen)
    }
}

/// A group at some revision.
#[derive(Debug, Default)]
struct Group {
    holders: BTreeSet<String>,
    /// Phase and boot of each record.
    records: BTreeMap<String, (String, String)>,
    halted: bool,
    /// Whose place was taken away by hand, and when.
    robbed: BTreeMap<String, i64>,
    seen: Seen,
}

impl Group {
    fn apply<'a>(
        &mut self,
        revision: i64,
        writes: impl Iterator<Item = (&'a str, Option<&'a [u8]>)>,
        by_hand: bool,
    ) -> Result<()> {
        let mut fenced = Vec::new();
        let mut outcomes = BTreeSet::new();
        let mut document = None;
        let before = self.records.clone();
        for (key, value) in writes {
            if key == "semaphore" {
                document = Some(value);
            } else if key == "v1/halt" {
                self.halted = value.is_some();
            } else if let Some(id) = key.strip_prefix("v1/history/") {
                outcomes.insert(id.to_owned());
            } else if let Some(id) = key.strip_prefix("v1/holder/") {
                let Some(value) = value else {
                    self.records.remove(id);
                    continue;
                };
                let record: Value = serde_json::from_slice(value).context("no record")?;
                let phase = record["phase"].as_str().context("no phase")?;
                let boot = record["boot_id"].as_str().unwrap_or_default();
                let record = (phase.to_owned(), boot.to_owned());
                // Written again in the same boot it is the same permission.
                if phase == "rebooting" && self.records.get(id) != Some(&record) {
                    fenced.push(id.to_owned());
                }
                self.records.insert(id.to_owned(), record);
            }
        }
        if let Some(value) = document {
            let holders = match value {
                Some(value) => self.read(value)?,
                None => BTreeSet::new(),
            };
            for id in self.holders.difference(&holders) {
                let phase = before.get(id).map_or("", |(phase, _)| phase.as_str());
                let idle = matches!(phase, "" | "granted");
                if by_hand {
                    self.robbed.insert(id.clone(), revision);
                } else if !idle && !outcomes.contains(id) {
                    bail!("{id} lost its place in phase {phase}");
                }
            }
            self.seen.places_given += holders.difference(&self.holders).count();
            self.holders = holders;
        }
        for id in fenced {
            ensure!(!self.halted, "{id} passed its fence in a halted group");
            let robbed = self.robbed.get(&id);
            ensure!(
                self.holders.contains(&id) || robbed.is_some_and(|at| revision - at <= UNNOTICED),
                "{id} passed its fence without a place"
            );
            *self.seen.fences.entry(id).or_default() += 1;
        }
        Ok(())
    }

    fn read(&mut self, document: &[u8]) -> Result<BTreeSet<String>> {
        let text = String::from_utf8_lossy(document);
        let value: Value = serde_json::from_slice(document).with_context(|| text.to_string())?;
        let listed: Vec<String> = match &value["holders"] {
            Value::Null => Vec::new(),
            list => serde_json::from_value(list.clone()).with_context(|| text.to_string())?,
        };
        let count = i64::try_from(listed.len())?;
        let max = value["max"].as_i64().context("no max")?;
        ensure!(count <= max, "more holders than places: {text}");
        ensure!(
            value["semaphore"].as_i64() == Some(max - count),
            "numbers that do not agree: {text}"
        );
        let holders: BTreeSet<_> = listed.iter().cloned().collect();
        ensure!(
            holders.iter().eq(&listed),
            "holders twice or unsorted: {text}"
        );
        self.seen.most_holders = self.seen.most_holders.max(listed.len());
        self.seen.document_writes += 1;
        Ok(holders)
    }
}

/// The bytes of a key or value in the JSON of `etcdctl`.
///
/// # Errors
///
/// They are not in base64.
pub fn decode(text: &str) -> Result<Vec<u8>> {
    Ok(STANDARD.decode(text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(revisions: &[&[(&str, Option<&str>)]]) -> History {
        let mut history = History::default();
        for (revision, writes) in (2..).zip(revisions) {
            for (key, value) in *writes {
                let value = value.map(|value| value.as_bytes().to_vec());
                history.add(revision, (format!("p/{key}"), value)).unwrap();
            }
        }
        history
    }

    fn verdict(revisions: &[&[(&str, Option<&str>)]]) -> String {
        let none = BTreeSet::new();
        match history(revisions).check("p/", Rules { by_hand: &none }) {
            Ok(_) => "fine".to_owned(),
            Err(error) => format!("{error:#}"),
        }
    }

    const ONE: &[(&str, Option<&str>)] = &[
        (
            "semaphore",
            Some(r#"{"semaphore":0,"max":1,"holders":["a"]}"#),
        ),
        ("v1/holder/a", Some(r#"{"phase":"draining"}"#)),
    ];
    const FENCE: &[(&str, Option<&str>)] = &[("v1/holder/a", Some(r#"{"phase":"rebooting"}"#))];
    const EMPTY: (&str, Option<&str>) =
        ("semaphore", Some(r#"{"semaphore":1,"max":1,"holders":[]}"#));

    #[test]
    fn every_broken_rule_is_found() {
        let document = |text| [("semaphore", Some(text))];
        for (text, expected) in [
            (r#"{"semaphore":1,"max":1,"holders":null}"#, "fine"),
            (r#"{"semaphore":0,"max":2,"holders":["a","b"]}"#, "fine"),
            (
                r#"{"semaphore":-1,"max":1,"holders":["a","b"]}"#,
                "more holders",
            ),
            (r#"{"semaphore":0,"max":2,"holders":["a","a"]}"#, "twice"),
            (r#"{"semaphore":1,"max":2,"holders":["a","b"]}"#, "agree"),
            ("{", "{"),
        ] {
            let verdict = verdict(&[&document(text)]);
            assert!(verdict.contains(expected), "{text}: {verdict}");
        }
        for (revisions, expected) in [
            (&[ONE, FENCE][..], "fine"),
            (
                &[ONE, FENCE, &[("v1/history/a", Some("[]")), EMPTY]],
                "fine",
            ),
            (&[ONE, FENCE, &[EMPTY]], "lost its place in phase rebooting"),
            (
                &[ONE, &[("semaphore", None)]],
                "lost its place in phase draining",
            ),
            (&[ONE, &[("v1/halt", Some("{}"))], FENCE], "halted"),
            (&[FENCE], "revision 2: a passed its fence without a place"),
        ] {
            let verdict = verdict(revisions);
            assert!(verdict.contains(expected), "{verdict}");
        }
    }

    #[test]
    fn a_gap_and_a_compacted_revision_are_refused() {
        let mut history = History::default();
        let write = || ("k".to_owned(), None);
        history.add(2, write()).unwrap();
        history.add(2, write()).unwrap();
        history.add(3, write()).unwrap();
        let gap = history.add(5, write()).unwrap_err().to_string();
        assert_eq!(gap, "revision 5 follows 3");
        let error = history.add_answer(r#"{"CompactRevision":7}"#).unwrap_err();
        assert_eq!(error.to_string(), "revision 7 was compacted");
    }
}
