//! The sources of a machine: reads its files and variables and lays what they say over each other.
//!
//! The only part of the configuration that touches the disk. It judges no value.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::sync::Arc;

use gptprio::machine::Root;
use jiff::tz::TimeZone;

use super::fragment::{Fragment, Origin, Value};
use super::keys::{self, KEYS};
use super::validate::Draft;
use super::{Problem, Program, Warning, cloud_config, env_file, own_file};

/// Files of the distribution's image, the one that counts more last.
pub(super) const SHIPPED_FILES: [&str; 2] = [
    "/usr/share/coreos/update.conf",
    "/usr/share/flatcar/update.conf",
];
/// Where cloud-config files are looked for, the one that counts more last.
pub(super) const CLOUD_CONFIG_FILES: [&str; 3] = [
    "/usr/share/oem/cloud-config.yml",
    "/var/lib/coreos-install/user_data",
    "/etc/locksmith/cloud-config.yaml",
];
/// Files of the machine's operator, the one that counts more last.
pub(super) const UPDATE_FILES: [&str; 2] = ["/etc/coreos/update.conf", "/etc/flatcar/update.conf"];
/// The file that is ours alone.
pub(super) const OWN_FILE: &str = "/etc/locksmith/locksmith.toml";
/// More files of ours, `*.toml` in order of their names.
pub(super) const OWN_FOLDER: &str = "/etc/locksmith/conf.d";
pub(super) const LOCAL_TIME: &str = "/etc/localtime";

/// A configuration file is a few lines; more bytes than this are a mistake.
pub(super) const MOST_BYTES: usize = 256 << 10;
const LIMIT: u64 = 256 << 10;
/// More files in [`OWN_FOLDER`] than this are a mistake.
pub(super) const MOST_FILES: usize = 64;
/// The files of a machine.
pub(super) struct Sources<'a> {
    pub(super) root: &'a Root,
    pub(super) program: Program,
}

impl Sources<'_> {
    /// Lays all sources over each other, and finds the machine's time zone.
    pub(super) fn read(
        &self,
        environment: &impl Fn(&str) -> Option<String>,
        flags: Fragment,
        draft: &mut Draft,
    ) -> TimeZone {
        self.read_files(draft);
        draft
            .given
            .cover(from_environment(self.program, environment));
        draft.given.cover(flags);
        self.local_zone(environment, draft)
    }

    fn read_files(&self, draft: &mut Draft) {
        for path in SHIPPED_FILES {
            self.update_conf(path, draft);
        }
        for path in CLOUD_CONFIG_FILES {
            self.cloud_config(path, draft);
        }
        for path in UPDATE_FILES {
            self.update_conf(path, draft);
        }
        self.own_file(OWN_FILE, draft);
        match self.names_in(OWN_FOLDER) {
            Ok(names) => {
                for name in names {
                    self.own_file(&format!("{OWN_FOLDER}/{name}"), draft);
                }
            }
            Err(error) => self.unreadable(OWN_FOLDER, error, draft),
        }
    }

    fn update_conf(&self, path: &str, draft: &mut Draft) {
        if let Some(text) = self.text(path, draft) {
            let (fragment, warnings) = from_update_conf(&path.into(), &text);
            draft.given.cover(fragment);
            draft.warnings.extend(warnings);
        }
    }

    fn own_file(&self, path: &str, draft: &mut Draft) {
        if let Some(text) = self.text(path, draft) {
            let file = own_file::parse(&path.into(), &text);
            draft.given.cover(file.fragment);
            draft.warnings.extend(file.warnings);
            draft.problems.extend(file.problems);
        }
    }

    /// User data can be anything of any size; only what has the header is looked at.
    fn cloud_config(&self, path: &str, draft: &mut Draft) {
        let (text, is_whole) = match self.head(path) {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err(error) => return self.unreadable(path, error, draft),
        };
        if !cloud_config::is_cloud_config(&text) {
            tracing::debug!(path, "not a cloud-config file, it does not count");
        } else if !is_whole {
            self.unreadable(path, too_long(), draft);
        } else {
            let path = path.into();
            match cloud_config::parse(&path, &text) {
                Ok(fragment) => draft.given.cover(fragment),
                Err((line, reason)) => draft.problems.push(Problem::Statement {
                    origin: Origin::File(path, line),
                    key: None,
                    reason,
                }),
            }
        }
    }

    fn text(&self, path: &str, draft: &mut Draft) -> Option<String> {
        match self.head(path) {
            Ok(Some((text, true))) => return Some(text),
            Ok(None) => {}
            Ok(Some((_, false))) => self.unreadable(path, too_long(), draft),
            Err(error) => self.unreadable(path, error, draft),
        }
        None
    }

    fn unreadable(&self, path: &str, reason: io::Error, draft: &mut Draft) {
        if self.program == Program::Ctl && reason.kind() == io::ErrorKind::PermissionDenied {
            tracing::debug!(path, "this user cannot read the file, it does not count");
            return;
        }
        draft.problems.push(Problem::Read {
            file: path.to_owned(),
            reason,
        });
    }

    /// The beginning of a file and whether that is all of it; `None` when there is no such file.
    /// Bytes that are no UTF-8 become U+FFFD.
    fn head(&self, path: &str) -> io::Result<Option<(String, bool)>> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        match self.root.read(path, LIMIT) {
            Ok(bytes) => Ok(bytes.map(|bytes| (text(&bytes), true))),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                let mut bytes = Vec::new();
                let file = File::open(self.root.path(path)?)?;
                file.take(LIMIT).read_to_end(&mut bytes)?;
                Ok(Some((text(&bytes), false)))
            }
            Err(error) => Err(error),
        }
    }

    /// Names of the `*.toml` files in a folder, sorted. Hidden ones are an editor's.
    fn names_in(&self, folder: &str) -> io::Result<Vec<String>> {
        let entries = match fs::read_dir(self.root.path(folder)?) {
            Ok(entries) => entries,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(Vec::new());
            }
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.ends_with(".toml") && !name.starts_with('.') {
                names.push(name);
            }
            if names.len() > MOST_FILES {
                let reason = format!("there are more than {MOST_FILES} files in it");
                return Err(io::Error::other(reason));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The machine's time zone, as the original finds it: `TZ`, where the empty text is UTC, else
    /// `/etc/localtime`, else UTC. A file that `TZ` names must be a time zone's, unless another
    /// zone is set.
    fn local_zone(
        &self,
        environment: &impl Fn(&str) -> Option<String>,
        draft: &mut Draft,
    ) -> TimeZone {
        let origin = Origin::Variable("TZ".to_owned());
        let mut in_doubt = |origin, text: String| {
            draft.warnings.push(Warning {
                origin,
                text: format!("{text}, so local time is UTC"),
            });
            TimeZone::UTC
        };
        if let Some(name) = environment("TZ") {
            let name = name.strip_prefix(':').unwrap_or(&name);
            if !name.starts_with('/') {
                return match name {
                    "" => TimeZone::UTC,
                    _ => TimeZone::get(name).unwrap_or_else(|_| {
                        in_doubt(origin, format!("there is no time zone '{name}'"))
                    }),
                };
            }
            let problem = match self.zone_in(name) {
                Ok(Some(zone)) => return zone,
                Ok(None) => format!("there is no file {name}"),
                Err(error) => format!("cannot use {name}: {error}"),
            };
            if draft.given.get(&keys::TIME_ZONE).is_none() {
                draft.problems.push(Problem::Value {
                    origin,
                    key: keys::TIME_ZONE.name,
                    reason: problem,
                });
            }
            return TimeZone::UTC;
        }
        match self.zone_in(LOCAL_TIME) {
            Ok(zone) => zone.unwrap_or(TimeZone::UTC),
            Err(error) => in_doubt(Origin::File(LOCAL_TIME.into(), 1), error.to_string()),
        }
    }

    /// The time zone of a file such as `/etc/localtime`; `None` when there is none.
    fn zone_in(&self, path: &str) -> io::Result<Option<TimeZone>> {
        // A link is read first: it names the zone, and below another root its target may not be
        // there.
        let (folder, name) = path.rsplit_once('/').unwrap_or_default();
        let folder = self.root.path(format!("{folder}/"))?;
        let named = fs::read_link(folder.join(name)).ok().and_then(|target| {
            let target = target.to_string_lossy().into_owned();
            TimeZone::get(target.split_once("zoneinfo/")?.1).ok()
        });
        if named.is_some() {
            return Ok(named);
        }
        let bytes = self.root.read(path, LIMIT)?;
        let zone = bytes.map(|bytes| TimeZone::tzif("Local", &bytes));
        zone.transpose().map_err(io::Error::other)
    }
}

fn too_long() -> io::Error {
    io::Error::new(
        io::ErrorKind::FileTooLarge,
        format!("it has more than {MOST_BYTES} bytes"),
    )
}

/// What the environment says. An empty variable says nothing, as for the original.
fn from_environment(program: Program, get: &impl Fn(&str) -> Option<String>) -> Fragment {
    let mut fragment = Fragment::default();
    for key in KEYS {
        let found = key
            .all_variables(program.prefix())
            .into_iter()
            .find_map(|name| {
                let value = get(&name).filter(|value| !value.is_empty())?;
                Some((name, value))
            });
        if let Some((name, value)) = found {
            fragment.set(key, Value::Text(value), Origin::Variable(name));
        }
    }
    fragment
}

/// What an `update.conf` says, and its variables that look like ours and are not. An empty value
/// takes back what files below said.
fn from_update_conf(path: &Arc<str>, text: &str) -> (Fragment, Vec<Warning>) {
    let assignments = env_file::parse(text);
    let mut known = Vec::new();
    let mut fragment = Fragment::default();
    for key in KEYS {
        let names = key.all_variables(Program::Daemon.prefix());
        let last = |name: &String| assignments.iter().rev().find(|found| found.name == *name);
        let mut found: Vec<_> = names.iter().filter_map(last).collect();
        // The name that counts more comes first, but an empty value leaves it to the other one.
        found.sort_by_key(|assignment| assignment.value.is_empty());
        if let Some(assignment) = found.first() {
            let origin = Origin::File(path.clone(), assignment.line);
            fragment.set(key, Value::Text(assignment.value.clone()), origin);
        }
        known.extend(names);
    }
    let looks_like_ours = |name: &str| name.starts_with("LOCKSMITH") || name.starts_with("REBOOT_");
    let warnings = assignments
        .iter()
        .filter(|found| looks_like_ours(&found.name) && !known.contains(&found.name))
        .map(|found| Warning {
            origin: Origin::File(path.clone(), found.line),
            text: format!("unknown variable '{}', it sets nothing", found.name),
        });
    (fragment, warnings.collect())
}

impl Program {
    /// What the names of its variables begin with.
    pub(super) fn prefix(self) -> &'static str {
        match self {
            Self::Daemon => "LOCKSMITHD",
            Self::Ctl => "LOCKSMITHCTL",
        }
    }
}
