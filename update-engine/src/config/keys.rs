//! Every key that the updater knows, as one table: the parser, the defaults and
//! `docs/configuration.md` all come from it.

use payload::recompress::Encoders;

/// One key of the configuration.
#[derive(Debug)]
pub struct Key {
    /// Name as it is written in a file.
    pub name: &'static str,
    /// What a value looks like, in words.
    pub kind: &'static str,
    /// The value when no file has the key, as one would write it. Empty means not set.
    pub default: &'static str,
    /// Which files are searched.
    pub files: Files,
    /// Whether a bad value stops the updater. For the keys of trust and policy a default in place
    /// of what was meant could install what must not be installed; for the others a warning is
    /// enough.
    pub strict: bool,
    /// What it does.
    pub meaning: &'static str,
}

/// Which files hold a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Files {
    /// `/etc/update-engine/update.conf`, then the files of the original in their order.
    All,
    /// `/etc/update-engine/update.conf` alone.
    Own,
    /// The two `oem-release` files.
    Oem,
}

/// A key that the original update_engine has too.
const fn original(
    name: &'static str,
    kind: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> Key {
    Key {
        name,
        kind,
        default,
        files: Files::All,
        strict: false,
        meaning,
    }
}

/// A key of the original's `oem-release` files.
const fn oem(name: &'static str, meaning: &'static str) -> Key {
    Key {
        name,
        kind: "text",
        default: "",
        files: Files::Oem,
        strict: false,
        meaning,
    }
}

/// A key of ours whose bad value stops the updater.
const fn strict(
    name: &'static str,
    kind: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> Key {
    Key {
        name,
        kind,
        default,
        files: Files::Own,
        strict: true,
        meaning,
    }
}

/// A key of ours whose bad value is replaced by its default, with a warning.
const fn lenient(
    name: &'static str,
    kind: &'static str,
    default: &'static str,
    meaning: &'static str,
) -> Key {
    Key {
        name,
        kind,
        default,
        files: Files::Own,
        strict: false,
        meaning,
    }
}

pub(super) const GROUP: Key = original(
    "GROUP",
    "text",
    "stable",
    "Update channel, sent as `track`.",
);
pub(super) const SERVER: Key = original(
    "SERVER",
    "URL",
    "https://public.update.flatcar-linux.net/v1/update/",
    "Omaha server. `SERVER=disabled` is the traditional way to stop updates; `PAUSED=yes` is the clearer one.",
);
pub(super) const RELEASE_VERSION: Key = original(
    "FLATCAR_RELEASE_VERSION",
    "version",
    "",
    "The running version, as sent to the server. Distributions set it in the `release` file.",
);
pub(super) const RELEASE_BOARD: Key = original(
    "FLATCAR_RELEASE_BOARD",
    "text",
    "",
    "Board, for example `amd64-usr`.",
);
pub(super) const RELEASE_APPID: Key = original(
    "FLATCAR_RELEASE_APPID",
    "GUID in braces",
    "{e96281a6-d1af-4bde-9a0a-97b76e56dc57}",
    "Product, as the server knows it.",
);
pub(super) const MACHINE_ALIAS: Key = original(
    "MACHINE_ALIAS",
    "text",
    "",
    "A name of this machine for people, sent to the server.",
);
pub(super) const PCR_POLICY_SERVER: Key = original(
    "PCR_POLICY_SERVER",
    "URL",
    "",
    "Where the PCR policy of a new version is posted before it is activated.",
);
pub(super) const DOWNLOAD_USER: Key = original(
    "DOWNLOAD_USER",
    "text",
    "",
    "User name for payload downloads over https.",
);
pub(super) const DOWNLOAD_PASSWORD: Key = original(
    "DOWNLOAD_PASSWORD",
    "text",
    "",
    "Password for payload downloads over https; never logged.",
);

pub(super) const OEM_ID: Key = oem("ID", "Vendor image, sent as `oem`.");
pub(super) const OEM_VERSION_ID: Key = oem(
    "VERSION_ID",
    "Version of the vendor image, sent as `oemversion`.",
);

pub(super) const PUBLIC_KEYS: Key = strict(
    "PUBLIC_KEYS",
    "absolute paths, separated by spaces",
    "",
    "PEM files with the keys that payloads may be signed with. When set, only these count.",
);
pub(super) const SIGNATURE_THRESHOLD: Key = strict(
    "SIGNATURE_THRESHOLD",
    "integer, 1 to 16",
    "1",
    "By how many of the keys a payload must be signed.",
);
pub(super) const VERSION_FLOOR: Key = strict(
    "VERSION_FLOOR",
    "version",
    "",
    "No version below this one is installed.",
);
pub(super) const VERSION_PIN: Key = strict(
    "VERSION_PIN",
    "version prefix",
    "",
    "Only versions that begin with these numbers are installed: `4230.2` allows `4230.2.3`, not `4230.20.0`.",
);
pub(super) const ALLOW_DOWNGRADE: Key = strict(
    "ALLOW_DOWNGRADE",
    "yes or no",
    "no",
    "Whether a version lower than the running one may be installed.",
);
pub(super) const PAUSED: Key = strict(
    "PAUSED",
    "yes or no",
    "no",
    "Install nothing. The server is still asked, and the client shows what waits and why.",
);
pub(super) const CA_FILE: Key = strict(
    "CA_FILE",
    "absolute path",
    "",
    "PEM bundle of certificate authorities to trust in place of the system's.",
);
pub(super) const SLOT_TYPE_GUID: Key = strict(
    "SLOT_TYPE_GUID",
    "GUID",
    "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6",
    "GPT type of the partitions that hold the system.",
);
pub(super) const STATE_DIR: Key = strict(
    "STATE_DIR",
    "absolute path",
    "/var/lib/update_engine",
    "Where state is kept, in `prefs/`. Read at start only.",
);
pub(super) const PARTITIONS: Key = strict(
    "PARTITIONS",
    "NAME=PATH pairs, separated by spaces",
    "",
    "Devices or files of fixed size that further partitions of a payload are installed to, each path with `{slot}` in the place of the slot's letter, `A` or `B`: `oem=/dev/disk/by-partlabel/OEM-{slot}`. A payload with a partition that is not here is refused.",
);
pub(super) const ENCODERS_DIR: Key = lenient(
    "ENCODERS_DIR",
    "absolute path",
    Encoders::DIRECTORY,
    "Folder of further compression libraries (`libzstd*.so*`, `liblz4*.so*`), for deltas of images that other versions than the system's own have compressed. Looked at when first needed, and again when this setting changes.",
);
pub(super) const TRIES: Key = lenient(
    "TRIES",
    "integer, 1 to 15",
    "1",
    "How many boots a new version gets to prove itself before the machine returns to the old one.",
);
pub(super) const PROXY: Key = lenient(
    "PROXY",
    "http or https URL",
    "",
    "Proxy for all requests and for the post-install program. Not set: the daemon's environment decides.",
);
pub(super) const NO_PROXY: Key = lenient(
    "NO_PROXY",
    "host names, separated by commas",
    "",
    "Hosts that are asked without `PROXY`.",
);
pub(super) const FIRST_CHECK_DELAY: Key = lenient(
    "FIRST_CHECK_DELAY",
    "duration, 0s to 1d",
    "7m",
    "Time from start of the daemon to the first check, before random spread.",
);
pub(super) const CHECK_INTERVAL: Key = lenient(
    "CHECK_INTERVAL",
    "duration, 1m to 7d",
    "45m",
    "Time between checks, before random spread, unless the server asks for another.",
);
pub(super) const HEALTH_DELAY: Key = lenient(
    "HEALTH_DELAY",
    "duration, 0s to 1d",
    "45s",
    "How long the daemon must have run before the health checks decide whether this boot was successful.",
);
pub(super) const HEALTH_TIMEOUT: Key = lenient(
    "HEALTH_TIMEOUT",
    "duration, 1s to 1d",
    "1m",
    "How long one program of `/etc/update-engine/health.d`, or systemd's `boot-complete.target`, may take.",
);
pub(super) const HEALTH_DEADLINE: Key = lenient(
    "HEALTH_DEADLINE",
    "duration, 0s to 1d",
    "10m",
    "How long after its start the daemon reboots a machine whose boot has not proved healthy, if another slot can take over. 0 means never.",
);
pub(super) const POSTINST_TIMEOUT: Key = lenient(
    "POSTINST_TIMEOUT",
    "duration, 1s to 1d",
    "1h",
    "How long the new version's post-install program may take. It may download, so be generous.",
);

/// Every key, in the order of the documentation.
pub const KEYS: &[&Key] = &[
    &GROUP,
    &SERVER,
    &RELEASE_VERSION,
    &RELEASE_BOARD,
    &RELEASE_APPID,
    &MACHINE_ALIAS,
    &PCR_POLICY_SERVER,
    &DOWNLOAD_USER,
    &DOWNLOAD_PASSWORD,
    &PUBLIC_KEYS,
    &SIGNATURE_THRESHOLD,
    &VERSION_FLOOR,
    &VERSION_PIN,
    &ALLOW_DOWNGRADE,
    &PAUSED,
    &CA_FILE,
    &SLOT_TYPE_GUID,
    &STATE_DIR,
    &PARTITIONS,
    &ENCODERS_DIR,
    &TRIES,
    &PROXY,
    &NO_PROXY,
    &FIRST_CHECK_DELAY,
    &CHECK_INTERVAL,
    &HEALTH_DELAY,
    &HEALTH_TIMEOUT,
    &HEALTH_DEADLINE,
    &POSTINST_TIMEOUT,
    &OEM_ID,
    &OEM_VERSION_ID,
];
