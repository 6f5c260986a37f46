//! Settings of the updater: files into values.
//!
//! The files and keys of the original are read as it reads them, with its order: the first file
//! that contains a key wins, even with an empty value. In front of them stands
//! `/etc/update-engine/update.conf`, which overrides every one of their keys and has keys of its
//! own. All files are read anew for every attempt, so that a change needs no restart.
//! `docs/configuration.md` lists every key; a test holds it to [`KEYS`].
//!
//! This module decides nothing about updates; it does not know what the server or the disk is.

mod fragment;
mod identity;
mod keys;
mod trust;
mod values;

use std::fmt;
use std::io;
use std::time::Duration;

use gptprio::Guid;
use omaha_protocol::Version;

use crate::root::Root;
use fragment::{Fragment, Quotes, Setting};

pub use identity::Identity;
pub use keys::{Files, KEYS, Key};
pub use trust::KeyFile;

/// The file that is ours alone.
pub const OWN_FILE: &str = "/etc/update-engine/update.conf";
/// Files that hold the identity of a vendor image, in order.
const OEM_FILES: [&str; 2] = ["/etc/oem-release", "/usr/share/oem/oem-release"];
/// Presence marks a developer's machine.
const DEVELOPER_MARK: &str = "/root/.dev_mode";
/// A configuration file is a few lines; more than this is a mistake.
const FILE_LIMIT: u64 = 1 << 20;

/// Everything that the files say, valid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Which distribution's files were found.
    pub family: Family,
    /// Update channel.
    pub group: String,
    /// Omaha URL.
    pub server: String,
    /// Running version, empty when no file says.
    pub version: String,
    /// Board, empty when no file says.
    pub board: String,
    /// Product GUID in braces.
    pub app_id: String,
    /// Name of the machine for people.
    pub machine_alias: String,
    /// Vendor image.
    pub oem: String,
    /// Version of the vendor image.
    pub oem_version: String,
    /// Where PCR policies are posted.
    pub pcr_policy_server: Option<String>,
    /// Credentials for payload downloads over https.
    pub download_login: Option<Login>,
    /// `false` on a developer's machine (`/root/.dev_mode` exists): no scheduled checks, no
    /// backoff.
    pub official_build: bool,

    /// Which public keys count; [`Settings::key_files`] reads them.
    pub public_keys: PublicKeys,
    /// By how many different keys a payload must be signed.
    pub signature_threshold: u8,
    /// Lowest version that may be installed.
    pub version_floor: Option<Version>,
    /// Beginning of the only versions that may be installed, for [`Version::matches_prefix`].
    pub version_pin: Option<String>,
    /// Whether a version lower than the running one may be installed.
    pub allow_downgrade: bool,
    /// Whether nothing may be installed for now.
    pub paused: bool,

    /// GPT type of the slots.
    pub slot_type: Guid,
    /// Boots that a new slot gets, 1 to 15.
    pub tries: u8,
    /// Certificate authorities in place of the system's, a path on the machine.
    pub ca_file: Option<String>,
    /// Proxy URL in place of the environment's.
    pub proxy: Option<Secret>,
    /// Hosts that are asked without [`Settings::proxy`], separated by commas.
    pub no_proxy: Option<String>,

    /// From start of the daemon to the first check.
    pub first_check_delay: Duration,
    /// Between checks.
    pub check_interval: Duration,
    /// From start of the daemon to the health checks.
    pub health_delay: Duration,
    /// For one health check, and for systemd to complete the boot.
    pub health_timeout: Duration,
    /// From start of the daemon to the reboot of a machine that is not healthy by then; `None`
    /// when it is never rebooted.
    pub health_deadline: Option<Duration>,
    /// For the post-install program.
    pub postinst_timeout: Duration,
    /// Folder of further compression libraries, a path on the machine.
    pub encoders_dir: String,
    /// Folder for state, a path on the machine.
    pub state_dir: String,
    /// Where further partitions of a payload go.
    pub partitions: Vec<PartitionPlace>,
}

/// Where a partition other than `usr` is, for each slot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PartitionPlace {
    /// Its name in payloads.
    pub name: String,
    /// A path on the machine with [`PartitionPlace::SLOT`] in it, so that no two slots share it.
    pub path: String,
}

impl PartitionPlace {
    /// What stands for the letter of a slot, `A` or `B`.
    pub const SLOT: &str = "{slot}";
}

/// Settings with what was odd about their files.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub settings: Settings,
    /// What an operator should know: unknown keys, bad values that were replaced by a default.
    pub warnings: Vec<Warning>,
}

/// Which distribution's names the files and keys have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// `/etc/flatcar`, `FLATCAR_RELEASE_…`; also when there are no files at all.
    Flatcar,
    /// `/etc/coreos`, `COREOS_RELEASE_…`.
    Coreos,
}

/// Which public keys payloads may be signed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicKeys {
    /// The distribution's key and every `*.pem` in `/etc/update-engine/keys.d`.
    Installed,
    /// These files alone, paths on the machine.
    Listed(Vec<String>),
}

/// User name and password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Login {
    /// Name.
    pub user: String,
    /// Password.
    pub password: Secret,
}

/// Text that must not get into logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The text, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Something odd in a configuration file that does not stop the updater.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Path on the machine.
    pub file: String,
    /// Counted from 1.
    pub line: usize,
    /// What is odd and what happens instead.
    pub text: String,
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.text)
    }
}

/// Configuration that the updater must not run with: it cannot know what the operator meant.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file is there but cannot be read.
    #[error("cannot read the configuration file {file}")]
    Read {
        /// Path on the machine.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A key of trust or policy has a value that says nothing valid.
    #[error("{file}:{line}: bad value of {key}: {reason}")]
    Value {
        /// Path on the machine.
        file: String,
        /// Counted from 1.
        line: usize,
        /// Name of the key.
        key: &'static str,
        /// What is wrong with the value.
        reason: String,
    },
    /// A public key file cannot be read, or the folder of key files.
    #[error("cannot read the public key {file}")]
    PublicKey {
        /// Path on the machine.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// There is no public key at all.
    #[error(
        "there is no public key to check payloads with: neither {} nor {}/*.pem exists, \
         and PUBLIC_KEYS is not set in {OWN_FILE}",
        trust::DEFAULT_KEY,
        trust::KEY_FOLDER
    )]
    NoPublicKey,
}

impl Loaded {
    /// Reads all files of the machine at `root`.
    ///
    /// A missing file is no error; one that cannot be read is, and so is a bad value of a key with
    /// [`Key::strict`].
    pub fn read(root: &Root) -> Result<Self, ConfigError> {
        Reader::open(root)?.settings(is_official_build(root))
    }

    /// As [`Loaded::read`], but a bad value of any key is replaced by its default: for what
    /// must go on while an operator mends the file. Nothing may be installed by it.
    pub fn read_leniently(root: &Root) -> Result<Self, ConfigError> {
        let reader = Reader {
            is_lenient: true,
            ..Reader::open(root)?
        };
        reader.settings(is_official_build(root))
    }
}

fn is_official_build(root: &Root) -> bool {
    !root.path(DEVELOPER_MARK).is_ok_and(|mark| mark.exists())
}

/// The settings of a machine without any configuration file.
impl Default for Settings {
    fn default() -> Self {
        let reader = Reader::over(Family::Flatcar, Vec::new(), Vec::new(), None);
        reader
            .settings(true)
            .expect("without files there are no bad values")
            .settings
    }
}

impl Settings {
    /// Whether [`Settings::server`] is the distribution's own, which error reports tell.
    pub fn is_default_server(&self) -> bool {
        self.server == self.family.default_of(&keys::SERVER)
    }
}

impl Family {
    /// The folder name of this family in `/etc`, `/usr/share` and `/boot`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flatcar => "flatcar",
            Self::Coreos => "coreos",
        }
    }

    /// The files of the original in its order.
    fn files(self) -> [String; 3] {
        let name = self.name();
        [
            format!("/etc/{name}/update.conf"),
            format!("/usr/share/{name}/update.conf"),
            format!("/usr/share/{name}/release"),
        ]
    }

    fn quotes(self) -> Quotes {
        match self {
            Self::Flatcar => Quotes::Strip,
            Self::Coreos => Quotes::Keep,
        }
    }

    /// The name of `key` in this family's files.
    fn name_of(self, key: &Key) -> String {
        match (self, key.name.strip_prefix("FLATCAR_")) {
            (Self::Coreos, Some(rest)) => format!("COREOS_{rest}"),
            _ => key.name.to_owned(),
        }
    }

    fn default_of(self, key: &Key) -> &'static str {
        match self {
            Self::Coreos if key.name == keys::SERVER.name => {
                "https://public.update.core-os.net/v1/update/"
            }
            _ => key.default,
        }
    }
}

/// One file that exists.
struct SourceFile {
    path: String,
    fragment: Fragment,
}

/// The files and what was odd about them so far.
struct Reader {
    family: Family,
    own: SourceFile,
    originals: Vec<SourceFile>,
    oem: Vec<SourceFile>,
    warnings: Vec<Warning>,
    /// Whether a bad value of a [`Key::strict`] is only warned of.
    is_lenient: bool,
}

impl Reader {
    fn open(root: &Root) -> Result<Self, ConfigError> {
        let flatcar = read_files(root, &Family::Flatcar.files(), Quotes::Strip)?;
        let (family, originals) = if flatcar.is_empty() {
            let coreos = read_files(root, &Family::Coreos.files(), Quotes::Keep)?;
            (
                if coreos.is_empty() {
                    Family::Flatcar
                } else {
                    Family::Coreos
                },
                coreos,
            )
        } else {
            (Family::Flatcar, flatcar)
        };
        let oem = read_files(root, &OEM_FILES.map(str::to_owned), family.quotes())?;
        let own = read_file(root, OWN_FILE, Quotes::Strip)?;
        Ok(Self::over(family, originals, oem, own))
    }

    fn over(
        family: Family,
        originals: Vec<SourceFile>,
        oem: Vec<SourceFile>,
        own: Option<SourceFile>,
    ) -> Self {
        let own = own.unwrap_or_else(|| SourceFile {
            path: OWN_FILE.to_owned(),
            fragment: Fragment::default(),
        });
        Self {
            family,
            own,
            originals,
            oem,
            warnings: Vec::new(),
            is_lenient: false,
        }
    }

    fn settings(mut self, official_build: bool) -> Result<Loaded, ConfigError> {
        use values::{boolean, duration, integer, optional};
        self.warn_of_odd_lines();
        let user = self.text(&keys::DOWNLOAD_USER);
        let password = Secret(self.text(&keys::DOWNLOAD_PASSWORD));
        let settings = Settings {
            family: self.family,
            group: self.text(&keys::GROUP),
            server: self.text(&keys::SERVER),
            version: self.text(&keys::RELEASE_VERSION),
            board: self.text(&keys::RELEASE_BOARD),
            app_id: self.text(&keys::RELEASE_APPID),
            machine_alias: self.text(&keys::MACHINE_ALIAS),
            oem: self.text(&keys::OEM_ID),
            oem_version: self.text(&keys::OEM_VERSION_ID),
            pcr_policy_server: Some(self.text(&keys::PCR_POLICY_SERVER))
                .filter(|url| !url.is_empty()),
            download_login: (!user.is_empty()).then_some(Login { user, password }),
            official_build,

            public_keys: self.public_keys()?,
            signature_threshold: self
                .value(&keys::SIGNATURE_THRESHOLD, |text| integer(text, 1..=16))?,
            version_floor: self.value(&keys::VERSION_FLOOR, optional(values::version))?,
            version_pin: self.value(&keys::VERSION_PIN, optional(values::version_prefix))?,
            allow_downgrade: self.value(&keys::ALLOW_DOWNGRADE, boolean)?,
            paused: self.value(&keys::PAUSED, boolean)?,

            slot_type: self.value(&keys::SLOT_TYPE_GUID, values::guid)?,
            tries: self.value(&keys::TRIES, |text| integer(text, 1..=15))?,
            ca_file: self.value(&keys::CA_FILE, optional(values::path))?,
            proxy: self
                .value(&keys::PROXY, optional(values::proxy))?
                .map(Secret),
            no_proxy: self.value(&keys::NO_PROXY, optional(|text| Ok(text.to_owned())))?,

            first_check_delay: self.value(&keys::FIRST_CHECK_DELAY, |text| {
                duration(text, 0..=values::DAY)
            })?,
            check_interval: self.value(&keys::CHECK_INTERVAL, |text| {
                duration(text, 60..=7 * values::DAY)
            })?,
            health_delay: self
                .value(&keys::HEALTH_DELAY, |text| duration(text, 0..=values::DAY))?,
            health_timeout: self.value(&keys::HEALTH_TIMEOUT, |text| {
                duration(text, 1..=values::DAY)
            })?,
            health_deadline: self
                .value(&keys::HEALTH_DEADLINE, |text| {
                    duration(text, 0..=values::DAY)
                })
                .map(|limit| Some(limit).filter(|limit| !limit.is_zero()))?,
            postinst_timeout: self.value(&keys::POSTINST_TIMEOUT, |text| {
                duration(text, 1..=values::DAY)
            })?,
            encoders_dir: self.value(&keys::ENCODERS_DIR, values::path)?,
            state_dir: self.value(&keys::STATE_DIR, values::path)?,
            partitions: self.value(&keys::PARTITIONS, values::partitions)?,
        };
        Ok(Loaded {
            settings,
            warnings: self.warnings,
        })
    }

    /// The value of a key of the original, as it stands: the first file that contains it wins.
    fn text(&self, key: &Key) -> String {
        let name = self.family.name_of(key);
        let searched: Vec<&SourceFile> = match key.files {
            Files::All => std::iter::once(&self.own).chain(&self.originals).collect(),
            Files::Own => vec![&self.own],
            Files::Oem => self.oem.iter().collect(),
        };
        let found = searched
            .into_iter()
            .find_map(|file| file.fragment.get(&name));
        found.map_or_else(
            || self.family.default_of(key).to_owned(),
            |setting| setting.value.clone(),
        )
    }

    /// The value of a key of ours; an empty one means the default.
    fn value<T>(
        &mut self,
        key: &Key,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        match self
            .own
            .fragment
            .get(key.name)
            .filter(|setting| !setting.value.is_empty())
        {
            None => {}
            Some(setting) => match parse(&setting.value) {
                Ok(value) => return Ok(value),
                Err(reason) if key.strict && !self.is_lenient => {
                    return Err(self.own.bad_value(key, setting, reason));
                }
                Err(reason) => {
                    let text = format!(
                        "bad value of {}: {reason}; using {}",
                        key.name,
                        or_none(key.default)
                    );
                    self.warnings.push(self.own.warning(setting.line, text));
                }
            },
        }
        Ok(parse(key.default).expect("a test reads every default"))
    }

    /// Unlike other keys an empty list is not the default: whoever writes it cannot have meant more
    /// trust.
    fn public_keys(&self) -> Result<PublicKeys, ConfigError> {
        match self.own.fragment.get(keys::PUBLIC_KEYS.name) {
            None => Ok(PublicKeys::Installed),
            Some(setting) => match values::paths(&setting.value) {
                Ok(paths) => Ok(PublicKeys::Listed(paths)),
                // No keys, no trust.
                Err(_) if self.is_lenient => Ok(PublicKeys::Listed(Vec::new())),
                Err(reason) => Err(self.own.bad_value(&keys::PUBLIC_KEYS, setting, reason)),
            },
        }
    }

    /// Typing errors in our own file. The files of the original hold other programs' keys too, so
    /// nothing can be said about theirs.
    fn warn_of_odd_lines(&mut self) {
        let is_known = |name: &str| {
            let own = KEYS.iter().filter(|key| key.files != Files::Oem);
            own.into_iter()
                .any(|key| name == key.name || name == self.family.name_of(key))
        };
        for setting in self.own.fragment.settings() {
            if !setting.key.trim_start().starts_with('#') && !is_known(&setting.key) {
                let text = format!("unknown key '{}'", setting.key);
                self.warnings.push(self.own.warning(setting.line, text));
            }
        }
        for &line in self.own.fragment.stray_lines() {
            self.warnings.push(
                self.own
                    .warning(line, "no '=' in this line, it sets nothing".to_owned()),
            );
        }
    }
}

impl SourceFile {
    fn warning(&self, line: usize, text: String) -> Warning {
        Warning {
            file: self.path.clone(),
            line,
            text,
        }
    }

    fn bad_value(&self, key: &Key, setting: &Setting, reason: String) -> ConfigError {
        ConfigError::Value {
            file: self.path.clone(),
            line: setting.line,
            key: key.name,
            reason,
        }
    }
}

fn read_files(
    root: &Root,
    paths: &[String],
    quotes: Quotes,
) -> Result<Vec<SourceFile>, ConfigError> {
    paths
        .iter()
        .filter_map(|path| read_file(root, path, quotes).transpose())
        .collect()
}

fn read_file(root: &Root, path: &str, quotes: Quotes) -> Result<Option<SourceFile>, ConfigError> {
    let content = root
        .read(path, FILE_LIMIT)
        .map_err(|source| ConfigError::Read {
            file: path.to_owned(),
            source,
        })?;
    Ok(content.map(|bytes| SourceFile {
        path: path.to_owned(),
        fragment: Fragment::parse(&String::from_utf8_lossy(&bytes), quotes),
    }))
}

fn or_none(value: &str) -> &str {
    if value.is_empty() { "none" } else { value }
}

#[cfg(test)]
mod tests;
