//! Every key that locksmith knows, as one table: the readers of all kinds of files, the defaults and
//! `docs/locksmith-configuration.md` come from it.

/// One setting.
#[derive(Debug)]
pub struct Key {
    /// Name in our own files, with its table in front: `etcd.endpoints`.
    pub name: &'static str,
    /// What a value looks like, in words.
    pub kind: &'static str,
    /// How a value is written.
    pub form: Form,
    /// The value when no source has the key, as one would write it; lists have commas between their
    /// elements. Empty means not set.
    pub default: &'static str,
    /// Name of the flag of both programs, without dashes. The variables `LOCKSMITHD_…` and
    /// `LOCKSMITHCTL_…` are named after it.
    pub flag: Option<&'static str>,
    /// Other variables, the one that counts more first.
    pub variables: &'static [&'static str],
    /// Path in a cloud-config file.
    pub cloud: Option<&'static str>,
    /// What it does.
    pub meaning: &'static str,
}

/// How a value is written in our own files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Text in quotes.
    Text,
    /// Text in quotes that is not shown to anybody.
    Secret,
    /// A number or a truth value.
    Bare,
    /// A list of texts.
    List,
    /// `[[window]]` tables.
    Windows,
    /// A variable or a cloud-config key alone: our own files have something better.
    Elsewhere,
}

impl Key {
    /// A key of our own files and nothing else.
    const fn own(
        name: &'static str,
        kind: &'static str,
        default: &'static str,
        meaning: &'static str,
    ) -> Self {
        Self {
            name,
            kind,
            form: Form::Text,
            default,
            flag: None,
            variables: &[],
            cloud: None,
            meaning,
        }
    }

    const fn form(mut self, form: Form) -> Self {
        self.form = form;
        self
    }

    const fn flag(mut self, flag: &'static str) -> Self {
        self.flag = Some(flag);
        self
    }

    const fn variables(mut self, variables: &'static [&'static str]) -> Self {
        self.variables = variables;
        self
    }

    const fn cloud(mut self, path: &'static str) -> Self {
        self.cloud = Some(path);
        self
    }

    /// All variables that set it for a program whose variables begin with `prefix`, the one that
    /// counts more first.
    pub(super) fn all_variables(&self, prefix: &str) -> Vec<String> {
        let named = self
            .flag
            .map(|flag| format!("{prefix}_{}", flag.to_uppercase().replace('-', "_")));
        let others = self.variables.iter().map(|&name| name.to_owned());
        named.into_iter().chain(others).collect()
    }
}

pub(super) const STRATEGY: Key = Key::own(
    "strategy",
    "`reboot`, `etcd-lock`, `best-effort`, `fleetlock` or `off`",
    "reboot",
    "What happens once an update is applied: reboot at once, with a place in the semaphore, with one only where etcd runs on this machine, with leave of a FleetLock server, or nothing.",
)
.variables(&["REBOOT_STRATEGY"])
.cloud("coreos.update.reboot-strategy");
pub(super) const GROUP: Key = Key::own(
    "group",
    "text",
    "",
    "Group of machines that share a semaphore. Not the update channel, which update.conf calls `GROUP`.",
)
.flag("group")
.cloud("coreos.locksmith.group");
pub(super) const STORE: Key = Key::own(
    "store",
    "`etcd` or `file:` and an absolute path",
    "etcd",
    "Where the semaphore is. A file is for one machine alone, or for a trial: never on a network file system.",
)
.flag("store");
pub(super) const QUEUE_RANK: Key = Key::own(
    "queue_rank",
    "integer, 0 to 999",
    "500",
    "Machines of a lower rank get a place before those of a higher one.",
)
.form(Form::Bare);

pub(super) const WINDOW: Key = Key::own(
    "window",
    "tables with `start` and `length`",
    "",
    "Reboot windows. Without one a machine may reboot at any time.",
)
.form(Form::Windows);
pub(super) const WINDOW_START: Key = Key::own(
    "window_start",
    "`HH:MM` or `Day HH:MM`",
    "",
    "Start of the only window, in place of `window`.",
)
.form(Form::Elsewhere)
.variables(&["LOCKSMITHD_REBOOT_WINDOW_START", "REBOOT_WINDOW_START"])
.cloud("coreos.locksmith.window_start");
pub(super) const WINDOW_LENGTH: Key = Key::own(
    "window_length",
    "duration below 24h, or below 168h with a day",
    "",
    "Length of the only window.",
)
.form(Form::Elsewhere)
.variables(&["LOCKSMITHD_REBOOT_WINDOW_LENGTH", "REBOOT_WINDOW_LENGTH"])
.cloud("coreos.locksmith.window_length");
pub(super) const TIME_ZONE: Key = Key::own(
    "time_zone",
    "`local` or a name such as `Europe/Berlin`",
    "local",
    "Time zone of windows and excluded days.",
);
pub(super) const EXCLUDE: Key = Key::own(
    "exclude",
    "list of `YYYY-MM-DD`, `YYYY-MM-DD..YYYY-MM-DD` or days such as `sat`",
    "",
    "Days without reboots, window or not.",
)
.form(Form::List);
pub(super) const RANDOM_OFFSET: Key = Key::own(
    "random_offset",
    "duration, 0s to 167h",
    "0s",
    "How far into a window this machine's turn may begin: a fixed time for each machine and window, never past the window's end.",
);

pub(super) const WARN_USERS: Key = Key::own(
    "warn_users",
    "duration, 0s to 24h",
    "5m",
    "How long logged-in users are warned before the machine asks for its place, and so before the reboot at least; they are told again when the place comes more than this later. `0s` tells and waits for nobody.",
);
pub(super) const INHIBITORS: Key = Key::own(
    "inhibitors",
    "`respect` or `ignore`",
    "respect",
    "What logind's shutdown inhibitors of other programs count for.",
);
pub(super) const REBOOT_METHOD: Key = Key::own(
    "reboot_method",
    "`firmware` or `kexec`",
    "firmware",
    "How the new version is started: through the firmware, or straight into its kernel.",
);
pub(super) const METRICS: Key = Key::own(
    "metrics",
    "`none`, an absolute path or `host:port`",
    "none",
    "Unix socket or address at which metrics are served.",
);
pub(super) const DEBUG: Key = Key::own("debug", "true or false", "false", "Whether to log more.")
    .form(Form::Bare)
    .flag("debug");

pub(super) const ETCD_ENDPOINTS: Key = Key::own(
    "etcd.endpoints",
    "list of http or https URLs without a path",
    "http://127.0.0.1:2379,http://127.0.0.1:4001",
    "Members of the etcd cluster; the next one is tried when one does not answer. In a variable they have commas between them.",
)
.form(Form::List)
.flag("endpoint")
.cloud("coreos.locksmith.endpoint");
pub(super) const ETCD_API: Key = Key::own(
    "etcd.api",
    "`auto`, `v2` or `v3`",
    "auto",
    "Which API to speak; `auto` is v3, but v2 where only v2 answers or [the fleet still locks there](reboot-coordination.md#from-the-original).",
)
.flag("api");
pub(super) const ETCD_CAFILE: Key = Key::own(
    "etcd.cafile",
    "path",
    "",
    "PEM bundle of the authorities that sign etcd's certificates, in place of the system's.",
)
.flag("etcd-cafile")
.cloud("coreos.locksmith.etcd_cafile");
pub(super) const ETCD_CERTFILE: Key = Key::own(
    "etcd.certfile",
    "path",
    "",
    "PEM certificate of this client.",
)
.flag("etcd-certfile")
.cloud("coreos.locksmith.etcd_certfile");
pub(super) const ETCD_KEYFILE: Key =
    Key::own("etcd.keyfile", "path", "", "PEM key of that certificate.")
        .flag("etcd-keyfile")
        .cloud("coreos.locksmith.etcd_keyfile");
pub(super) const ETCD_USERNAME: Key = Key::own(
    "etcd.username",
    "text",
    "",
    "User of etcd's own authentication.",
)
.flag("etcd-username")
.cloud("coreos.locksmith.etcd_username");
pub(super) const ETCD_PASSWORD: Key = Key::own(
    "etcd.password",
    "text",
    "",
    "Password of that user; never shown.",
)
.form(Form::Secret)
.flag("etcd-password")
.cloud("coreos.locksmith.etcd_password");

pub(super) const HOOKS_BEFORE_DIR: Key = Key::own(
    "hooks.before_dir",
    "absolute path",
    "/etc/locksmith/before-reboot.d",
    "Folder of programs that must succeed before a reboot.",
);
pub(super) const HOOKS_AFTER_DIR: Key = Key::own(
    "hooks.after_dir",
    "absolute path",
    "/etc/locksmith/after-reboot.d",
    "Folder of programs that must succeed after a reboot, before the place is given back.",
);
pub(super) const HOOKS_TIMEOUT: Key = Key::own(
    "hooks.timeout",
    "duration, 1s to 24h",
    "10m",
    "How long one of these programs may take.",
);

pub(super) const HEALTH_SOAK: Key = Key::own(
    "health.soak",
    "duration, 0s to 24h",
    "1m",
    "How long a machine must have been well after a reboot before it gives its place back.",
);
pub(super) const HEALTH_DEADLINE: Key = Key::own(
    "health.deadline",
    "duration, 1m to 168h",
    "30m",
    "How long after it asked for a reboot a machine that did not come back well counts as overdue; `health.soak` comes on top, the programs before the reboot do not count.",
);

pub(super) const FLEETLOCK_BASE_URL: Key = Key::own(
    "fleetlock.base_url",
    "http or https URL",
    "",
    "FleetLock server for the strategy `fleetlock`.",
);
pub(super) const FLEETLOCK_GROUP: Key = Key::own(
    "fleetlock.group",
    "letters, digits, `.` and `-`",
    "default",
    "Group to name to the FleetLock server.",
);

/// Every key, in the order of the documentation.
pub const KEYS: &[&Key] = &[
    &STRATEGY,
    &GROUP,
    &STORE,
    &QUEUE_RANK,
    &WINDOW,
    &WINDOW_START,
    &WINDOW_LENGTH,
    &TIME_ZONE,
    &EXCLUDE,
    &RANDOM_OFFSET,
    &WARN_USERS,
    &INHIBITORS,
    &REBOOT_METHOD,
    &METRICS,
    &DEBUG,
    &ETCD_ENDPOINTS,
    &ETCD_API,
    &ETCD_CAFILE,
    &ETCD_CERTFILE,
    &ETCD_KEYFILE,
    &ETCD_USERNAME,
    &ETCD_PASSWORD,
    &HOOKS_BEFORE_DIR,
    &HOOKS_AFTER_DIR,
    &HOOKS_TIMEOUT,
    &HEALTH_SOAK,
    &HEALTH_DEADLINE,
    &FLEETLOCK_BASE_URL,
    &FLEETLOCK_GROUP,
];
