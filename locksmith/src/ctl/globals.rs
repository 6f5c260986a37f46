//! The global flags as types: what was on the command line, in the environment
//! and in the machine's files.

use gptprio::machine::Root;

use super::arguments::{Values, boolean};
use super::command::GLOBAL_FLAGS;
use super::error::CtlError;
use crate::config::{Fragment, Loaded, Program, Settings};
use crate::store::SharedStore;

/// Beginning of the names of our variables.
const PREFIX: &str = "LOCKSMITHCTL";

/// What holds for every command.
#[derive(Debug)]
pub(super) struct Globals {
    /// Folder that the files of the machine are in.
    pub(super) root: Root,
    /// Message bus in place of the system's.
    pub(super) bus: Option<String>,
    /// Say more on stderr.
    pub(super) debug: bool,
    /// Print JSON.
    pub(super) json: bool,
    /// Exit codes tell causes apart.
    pub(super) detailed_exit_codes: bool,
    /// The flags that are settings too.
    flags: Fragment,
}

impl Globals {
    /// Takes the flags that were given, and the variables for those of our own;
    /// settings come when they are needed.
    pub(super) fn new(mut values: Values) -> Result<Self, CtlError> {
        let flags = settings_of(&values);
        values.fill(GLOBAL_FLAGS, PREFIX, variable);
        let detailed_exit_codes = match values.text("exit-codes") {
            None | Some("" | "plain") => false,
            Some("detailed") => true,
            Some(other) => {
                return Err(CtlError::Usage(format!(
                    "invalid value {other:?} for -exit-codes: plain or detailed is expected"
                )));
            }
        };
        let given = |name| values.text(name).filter(|text| !text.is_empty());
        Ok(Self {
            root: Root::at(given("root").unwrap_or("/"))
                .map_err(|error| CtlError::Usage(format!("cannot use -root: {error}")))?,
            bus: given("bus").map(str::to_owned),
            debug: values.is_on("debug"),
            json: values.is_on("json"),
            detailed_exit_codes,
            flags,
        })
    }

    /// Reads the settings: flags over environment over files.
    pub(super) fn load(&self) -> Result<Loaded, CtlError> {
        let loaded = Settings::load(&self.root, Program::Ctl, sound_variable, self.flags.clone());
        loaded.map_err(CtlError::Settings)
    }

    /// Opens the store that the settings name; nothing is asked yet.
    pub(super) fn store(&self) -> Result<SharedStore, CtlError> {
        self.settings()?.open_store().map_err(CtlError::contact)
    }

    /// The settings as far as they tell where the semaphore is.
    pub(super) fn settings(&self) -> Result<Settings, CtlError> {
        let loaded = Settings::load_for_lock(&self.root, sound_variable, self.flags.clone())
            .map_err(CtlError::Settings)?;
        for warning in &loaded.warnings {
            tracing::debug!(%warning, "odd configuration");
        }
        Ok(loaded.settings)
    }
}

/// Those of the given flags that are settings.
pub(super) fn settings_of(values: &Values) -> Fragment {
    let mut flags = Fragment::default();
    for flag in GLOBAL_FLAGS {
        for value in values.list(flag.name) {
            // The others are ours.
            let _ = flags.flag(flag.name, value);
        }
    }
    flags
}

/// A variable of the environment, as far as it is text.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// As in the original, a switch that is neither on nor off is ignored.
fn sound_variable(name: &str) -> Option<String> {
    let value = variable(name)?;
    let is_switch = name == "LOCKSMITHCTL_DEBUG";
    (!is_switch || boolean(&value).is_some()).then_some(value)
}
