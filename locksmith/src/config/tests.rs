use super::show::quoted;
use super::sources::*;
use super::*;
use crate::strategy::Strategy;
use crate::window::Window;
use proptest::prelude::{ProptestConfig, any, prop, prop_assert, proptest};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;

const SHIPPED: &str = "/usr/share/flatcar/update.conf";
const FLATCAR: &str = "/etc/flatcar/update.conf";
const COREOS: &str = "/etc/coreos/update.conf";
const USER_DATA: &str = "/var/lib/coreos-install/user_data";
const CLOUD_CONFIG: &str = "/etc/locksmith/cloud-config.yaml";

/// A machine with these files, by their paths on it.
fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = root.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    root
}

fn at(folder: &tempfile::TempDir) -> Root {
    Root::at(folder.path()).unwrap()
}

fn load_with(
    files: &[(&str, &str)],
    program: Program,
    environment: &[(&str, &str)],
    flags: &[(&str, &str)],
) -> Result<Loaded, Problems> {
    let root = machine(files);
    let environment: BTreeMap<&str, &str> = environment.iter().copied().collect();
    let mut fragment = Fragment::default();
    for (name, value) in flags {
        assert!(fragment.flag(name, value), "{name}");
    }
    let variable = |name: &str| environment.get(name).map(|&value| value.to_owned());
    Settings::load(&at(&root), program, variable, fragment)
}

fn load(files: &[(&str, &str)]) -> Result<Loaded, Problems> {
    load_with(files, Program::Daemon, &[], &[])
}

/// A machine with this file of ours alone.
fn own(text: &str) -> Result<Loaded, Problems> {
    load(&[(OWN_FILE, text)])
}

fn lines(problems: &Problems) -> Vec<String> {
    problems.to_string().lines().map(str::to_owned).collect()
}

#[test]
fn without_any_source_everything_is_as_documented() {
    let Loaded {
        settings, warnings, ..
    } = load(&[]).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert_eq!(settings, Settings::default());
    assert_eq!(settings.strategy, Strategy::Reboot);
    assert_eq!(
        settings.etcd.endpoints,
        ["http://127.0.0.1:2379", "http://127.0.0.1:4001"]
    );
    assert_eq!(settings.warn_users, Duration::from_secs(300));
    assert_eq!(
        settings.schedule.describe(),
        ["No configured reboot window"]
    );
}

#[test]
fn a_source_that_counts_more_wins_key_by_key() {
    // Every row adds one source on top of those before it.
    let rows: [(&str, &str); 9] = [
        ("/usr/share/coreos/update.conf", "LOCKSMITHD_GROUP=a"),
        (SHIPPED, "LOCKSMITHD_GROUP=b"),
        (
            "/usr/share/oem/cloud-config.yml",
            "#cloud-config\ncoreos.locksmith.group: c",
        ),
        (USER_DATA, "#cloud-config\ncoreos: {locksmith: {group: d}}"),
        (CLOUD_CONFIG, "#cloud-config\ncoreos.locksmith.group: e"),
        (COREOS, "LOCKSMITHD_GROUP=f\nREBOOT_STRATEGY=etcd-lock"),
        (FLATCAR, "# x\nLOCKSMITHD_GROUP='g'"),
        (OWN_FILE, "group = 'h'"),
        ("/etc/locksmith/conf.d/10-a.toml", "group = 'i'"),
    ];
    for count in 1..=rows.len() {
        let loaded = load(&rows[..count]).unwrap();
        let (path, content) = rows[count - 1];
        let expected = ["a", "b", "c", "d", "e", "f", "g", "h", "i"][count - 1];
        assert_eq!(loaded.settings.group.as_str(), expected, "{path}");
        let line = content
            .lines()
            .position(|line| {
                line.to_lowercase().contains("group: ")
                    || line.contains("GROUP=")
                    || line.starts_with("group ")
            })
            .unwrap()
            + 1;
        assert_eq!(loaded.origin("group").to_string(), format!("{path}:{line}"));
        if count >= 6 {
            assert_eq!(
                loaded.settings.strategy,
                Strategy::EtcdLock,
                "kept from {COREOS}"
            );
        }
    }
    let environment = [("LOCKSMITHD_GROUP", "j"), ("LOCKSMITHCTL_GROUP", "k")];
    for (program, flags, group, origin) in [
        (Program::Daemon, &[][..], "j", "$LOCKSMITHD_GROUP"),
        (Program::Ctl, &[], "k", "$LOCKSMITHCTL_GROUP"),
        (Program::Daemon, &[("group", "l")], "l", "-group"),
    ] {
        let loaded = load_with(&rows, program, &environment, flags).unwrap();
        assert_eq!(loaded.settings.group.as_str(), group);
        assert_eq!(loaded.origin("group").to_string(), origin);
    }
}

#[test]
fn files_of_the_folder_are_read_in_order_of_their_names() {
    let loaded = load(&[
        ("/etc/locksmith/conf.d/20-b.toml", "group = 'b'"),
        (
            "/etc/locksmith/conf.d/10-a.toml",
            "group = 'a'\nqueue_rank = 7",
        ),
        ("/etc/locksmith/conf.d/.30.toml", "group = 'hidden'"),
        ("/etc/locksmith/conf.d/README", "group = 'not ours'"),
    ])
    .unwrap();
    assert_eq!(loaded.settings.group.as_str(), "b");
    assert_eq!(loaded.settings.queue_rank, 7);
}

#[test]
fn the_updaters_keys_are_left_alone() {
    let loaded = load(&[(
        FLATCAR,
        "GROUP=beta\nSERVER=http://x/\nREBOOT_STRATEGY=\"off\"\n",
    )])
    .unwrap();
    assert_eq!(
        loaded.settings.group.as_str(),
        "",
        "GROUP is the update channel"
    );
    assert_eq!(loaded.settings.strategy, Strategy::Off);
    assert!(loaded.warnings.is_empty());
}

#[test]
fn an_empty_value_is_the_default_in_a_file_and_nothing_in_the_environment() {
    let files = [
        (SHIPPED, "REBOOT_STRATEGY=off"),
        (FLATCAR, "REBOOT_STRATEGY="),
    ];
    assert_eq!(load(&files).unwrap().settings.strategy, Strategy::Reboot);
    let environment = [("REBOOT_STRATEGY", "")];
    let loaded = load_with(&files[..1], Program::Daemon, &environment, &[]).unwrap();
    assert_eq!(loaded.settings.strategy, Strategy::Off);
    for key in KEYS
        .iter()
        .filter(|key| matches!(key.form, Form::Text | Form::Secret))
    {
        let loaded = own(&format!("{} = ''", key.name)).unwrap();
        assert_eq!(loaded.settings, Settings::default(), "{}", key.name);
    }
}

#[test]
fn variables_of_windows_have_an_older_name() {
    for (environment, expected) in [
        (
            &[
                ("REBOOT_WINDOW_START", "9:00"),
                ("REBOOT_WINDOW_LENGTH", "1h"),
            ][..],
            r#""9:00" and length is "1h""#,
        ),
        (
            &[
                ("REBOOT_WINDOW_START", "9:00"),
                ("REBOOT_WINDOW_LENGTH", "1h"),
                ("LOCKSMITHD_REBOOT_WINDOW_START", "Thu 10:00"),
            ],
            r#""Thu 10:00" and length is "1h""#,
        ),
        (
            &[
                ("REBOOT_WINDOW_START", "9:00"),
                ("LOCKSMITHD_REBOOT_WINDOW_START", ""),
                ("LOCKSMITHD_REBOOT_WINDOW_LENGTH", "2h"),
            ],
            r#""9:00" and length is "2h""#,
        ),
    ] {
        let expected = [format!("Reboot window start is {expected}")];
        let loaded = load_with(&[], Program::Daemon, environment, &[]).unwrap();
        assert_eq!(loaded.settings.schedule.describe(), expected);
        let file: String = environment
            .iter()
            .map(|(name, value)| format!("{name}={value}\n"))
            .collect();
        assert_eq!(
            load(&[(FLATCAR, &file)])
                .unwrap()
                .settings
                .schedule
                .describe(),
            expected
        );
    }
}

#[test]
fn a_list_of_windows_and_the_only_window_take_each_others_place() {
    let pair = "REBOOT_WINDOW_START=9:00\nREBOOT_WINDOW_LENGTH=1h";
    let list = "time_zone = 'Europe/Berlin'\nexclude = ['sun']\n[[window]]\nstart = '1:00'\nlength = '2h'\n[[window]]\nstart = 'sat 3:00'\nlength = '4h'\n";
    let files = [(FLATCAR, pair), (OWN_FILE, list)];
    let listed = [
        r#"Reboot window start is "1:00" and length is "2h""#,
        r#"Reboot window start is "sat 3:00" and length is "4h""#,
        "No reboots on sun",
    ];
    assert_eq!(load(&files).unwrap().settings.schedule.describe(), listed);
    let environment = [
        ("REBOOT_WINDOW_START", "5:00"),
        ("REBOOT_WINDOW_LENGTH", "6h"),
    ];
    let loaded = load_with(&files, Program::Daemon, &environment, &[]).unwrap();
    assert_eq!(
        loaded.settings.schedule.describe()[0],
        r#"Reboot window start is "5:00" and length is "6h""#
    );
    let emptied = [(FLATCAR, pair), (OWN_FILE, "window = []")];
    assert_eq!(
        load(&emptied).unwrap().settings.schedule.describe(),
        ["No configured reboot window"]
    );
}

#[test]
fn our_file_sets_what_it_says() {
    let text = "strategy = 'fleetlock'\ngroup = 'g'\nstore = 'file:/s.json'\nqueue_rank = 9\nrandom_offset = '30m'\n\
        warn_users = '0s'\ninhibitors = 'ignore'\nreboot_method = 'kexec'\nmetrics = '[::1]:9100'\ndebug = true\n\
        time_zone = 'UTC'\n[[window]]\nstart = '9:00'\nlength = '1h'\n\
        [etcd]\nendpoints = ['https://a:1/', 'https://b:2']\napi = 'v2'\ncafile = '/ca'\ncertfile = '/c'\nkeyfile = '/k'\n\
        username = 'u'\npassword = 'hush'\n[hooks]\nbefore_dir = '/b'\nafter_dir = '/a'\ntimeout = '1m'\n\
        [health]\nsoak = '2m'\ndeadline = '1h'\n[fleetlock]\nbase_url = 'http://f/x/'\ngroup = 'w'\n";
    let loaded = own(text).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let seconds = Duration::from_secs;
    let expected = Settings {
        strategy: Strategy::Fleetlock,
        group: "g".parse().unwrap(),
        store: Store::File("/s.json".into()),
        etcd: Etcd {
            endpoints: vec!["https://a:1".to_owned(), "https://b:2".to_owned()],
            api: EtcdApi::V2,
            cafile: Some("/ca".into()),
            client: Some(ClientFiles {
                cert: "/c".into(),
                key: "/k".into(),
            }),
            login: Some(Login {
                username: "u".to_owned(),
                password: Secret("hush".to_owned()),
            }),
        },
        queue_rank: 9,
        schedule: Schedule::new(
            TimeZone::get("UTC").unwrap(),
            vec![Window::parse("9:00", "1h").unwrap()],
        ),
        random_offset: seconds(1800),
        warn_users: Duration::ZERO,
        hooks: Hooks {
            before_dir: "/b".into(),
            after_dir: "/a".into(),
            timeout: seconds(60),
        },
        reboot_method: RebootMethod::Kexec,
        inhibitors: Inhibitors::Ignore,
        health: Health {
            soak: seconds(120),
            deadline: seconds(3600),
        },
        fleetlock: Fleetlock {
            base_url: Some("http://f/x/".parse().unwrap()),
            group: "w".to_owned(),
        },
        metrics: Some(Listen::Tcp("[::1]:9100".to_owned())),
        debug: true,
    };
    assert_eq!(loaded.settings, expected);
    assert!(!format!("{:?}", loaded.settings).contains("hush"));
}

#[test]
fn all_that_is_wrong_is_told_at_once_with_its_place() {
    let files = [
        (FLATCAR, "REBOOT_STRATEGY=never\nREBOOT_WINDOW_START=9:00"),
        (
            OWN_FILE,
            "queue_rank = 1000\nexclude = ['sat', 'x']\n[hooks]\ntimeout = '5'\n",
        ),
        ("/etc/locksmith/conf.d/a.toml", "a = b"),
    ];
    let environment = [("LOCKSMITHD_ENDPOINT", "unix:///x,http://u:hush@y")];
    let problems =
        load_with(&files, Program::Daemon, &environment, &[("group", "..")]).unwrap_err();
    let expected = [
        "/etc/locksmith/conf.d/a.toml:1: not TOML: string values must be quoted, expected literal string",
        "/etc/flatcar/update.conf:1: bad value of strategy: unknown strategy: never (known are reboot, etcd-lock, best-effort, fleetlock, off)",
        "-group: bad value of group: invalid group \"..\": \".\" and \"..\" would stand for the default group's keys",
        "$LOCKSMITHD_ENDPOINT: bad value of etcd.endpoints: unsupported protocol scheme \"unix\"",
        "$LOCKSMITHD_ENDPOINT: bad value of etcd.endpoints: a URL must not have a user name or password in it",
        "/etc/locksmith/locksmith.toml:1: bad value of queue_rank: 1000 is not between 0 and 999",
        "/etc/flatcar/update.conf:2: Either both or neither $REBOOT_WINDOW_START and $REBOOT_WINDOW_LENGTH must be set",
        "/etc/locksmith/locksmith.toml:2: bad value of exclude: \"x\" is no date such as 2027-12-24, range such as 2027-12-20..2028-01-02, or day such as sat",
        "/etc/locksmith/locksmith.toml:4: bad value of hooks.timeout: time: missing unit in duration \"5\"",
    ];
    assert_eq!(lines(&problems), expected);
}

#[test]
fn a_bad_value_that_does_not_count_is_no_problem() {
    let files = [
        (SHIPPED, "REBOOT_STRATEGY=never"),
        (FLATCAR, "REBOOT_STRATEGY=off"),
    ];
    assert_eq!(load(&files).unwrap().settings.strategy, Strategy::Off);
}

#[test]
fn values_that_do_not_go_together_are_refused() {
    for (text, expected) in [
        (
            "strategy = 'fleetlock'",
            "1: the strategy fleetlock needs fleetlock.base_url",
        ),
        (
            "etcd.certfile = '/c'\netcd.endpoints = 'https://a'",
            "1: etcd.certfile needs etcd.keyfile",
        ),
        (
            "etcd.endpoints = 'https://a'\netcd.keyfile = '/k'",
            "2: etcd.keyfile needs etcd.certfile",
        ),
        (
            "\netcd.endpoints = 'https://a,http://b'",
            "2: http and https must not be mixed, as in http://b and https://a",
        ),
        (
            "etcd.password = 'hush'",
            "1: a password needs etcd.username",
        ),
        (
            "etcd.endpoints = []",
            "1: bad value of etcd.endpoints: there is no endpoint",
        ),
        (
            "[[window]]\nstart = '9:00'\nlength = '1h'\n[[window]]\nstart = '25:00'\nlength = '1h'",
            "4: bad value of window: unable to parse start: invalid time of day \"25:00\": hour must be >= 0 and <= 23",
        ),
    ] {
        let files = [(SHIPPED, "REBOOT_STRATEGY=etcd-lock"), (OWN_FILE, text)];
        let problems = load(&files).unwrap_err();
        assert_eq!(lines(&problems), [format!("{OWN_FILE}:{expected}")]);
    }
    for (start, length, expected) in [
        (
            "14",
            "1h",
            "2: bad value of window_start: unable to parse start: invalid time of day \"14\": unexpected EOF",
        ),
        (
            "14:00",
            "24h",
            "1: bad value of window_length: duration cannot exceed period",
        ),
    ] {
        let text = format!("REBOOT_WINDOW_LENGTH={length}\nREBOOT_WINDOW_START={start}");
        let problems = load(&[(FLATCAR, &text)]).unwrap_err();
        assert_eq!(lines(&problems), [format!("{FLATCAR}:{expected}")]);
    }
}

#[test]
fn what_is_odd_is_told_and_stops_nothing() {
    let files = [
        (
            FLATCAR,
            "LOCKSMITHD_ENDPIONT=http://a\nREBOOT_WINDOW=x\nFOO=bar",
        ),
        (OWN_FILE, "stratgy = 'off'\nrandom_offset = '5m'"),
    ];
    let environment = [("LOCKSMITHD_DEBUG", "notabool"), ("TZ", "Mars/Olympus")];
    let loaded = load_with(&files, Program::Daemon, &environment, &[]).unwrap();
    let told: Vec<String> = loaded.warnings.iter().map(Warning::to_string).collect();
    let expected = [
        "/etc/flatcar/update.conf:1: unknown variable 'LOCKSMITHD_ENDPIONT', it sets nothing",
        "/etc/flatcar/update.conf:2: unknown variable 'REBOOT_WINDOW', it sets nothing",
        "/etc/locksmith/locksmith.toml:1: unknown key 'stratgy', it sets nothing",
        "$TZ: there is no time zone 'Mars/Olympus', so local time is UTC",
        "/etc/locksmith/locksmith.toml:2: without a window it does nothing",
        "$LOCKSMITHD_DEBUG: 'notabool' is neither true nor false, it sets nothing",
    ];
    assert_eq!(told, expected);
}

#[test]
fn user_data_that_is_no_cloud_config_does_not_count_whatever_its_size() {
    let ignition = r#"{"ignition": {"version": "3.4.0"}}"#;
    let long = format!("#!/bin/sh\n{}", "x".repeat(2 * MOST_BYTES));
    for content in [ignition, &long, "", "#cloud-config-archive\n- x"] {
        let loaded = load(&[(USER_DATA, content)]).unwrap();
        assert_eq!(loaded.settings, Settings::default());
        assert!(loaded.warnings.is_empty());
    }
    for (content, expected) in [
        ("#cloud-config\ncoreos: [", format!("{USER_DATA}:2: ")),
        (
            &format!("#cloud-config\n{long}"),
            format!("cannot read {USER_DATA}: it has more than"),
        ),
    ] {
        let problems = load(&[(USER_DATA, content)]).unwrap_err();
        assert!(problems.to_string().starts_with(&expected), "{problems}");
    }
}

#[test]
fn what_is_wrong_with_etcd_stops_nobody_who_does_not_need_it() {
    let bad = "etcd.endpoints = ['http://a', 'b c']\netcd.api = 'v4'\netcd.cafile = '/ca'\n";
    for strategy in Strategy::ALL {
        let conf = format!("REBOOT_STRATEGY={}", strategy.word());
        let url = "\nfleetlock.base_url = 'http://f'\n";
        let text = format!("{bad}{url}");
        let files = [(FLATCAR, conf.as_str()), (OWN_FILE, &text)];
        match load(&files) {
            Ok(loaded) => {
                assert!(!strategy.needs_etcd(), "{strategy}");
                assert_eq!(loaded.settings.etcd, Settings::default().etcd);
                let warnings = loaded.warnings.iter().map(ToString::to_string);
                assert_eq!(warnings.filter(|text| text.contains("etcd.")).count(), 3);
            }
            Err(problems) => {
                assert!(strategy.needs_etcd(), "{strategy}");
                assert_eq!(problems.problems.len(), 2);
            }
        }
        let root = machine(&files);
        let server = Settings::load_with_etcd(&at(&root), |_| None, Fragment::default());
        server.unwrap_err();
    }
}

#[test]
fn files_for_tls_do_nothing_in_the_clear() {
    let loaded = load(&[
        (FLATCAR, "REBOOT_STRATEGY=etcd-lock"),
        (OWN_FILE, "etcd.cafile = '/ca'\netcd.certfile = '/c'"),
    ])
    .unwrap();
    let warnings: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(
        warnings,
        [format!(
            "{OWN_FILE}:1: etcd.cafile does nothing: http://127.0.0.1:2379 is in the clear, \
             TLS needs endpoints with https"
        )]
    );
}

#[test]
fn the_strategy_is_known_though_something_else_is_wrong() {
    for (text, strategy) in [
        ("strategy = 'off'\nqueue_rank = -1", Some(Strategy::Off)),
        ("strategy = 'fleetlock'", Some(Strategy::Fleetlock)),
        ("strategy = 'of'", None),
        ("strategy = 'off'\nx = y", None),
    ] {
        assert_eq!(own(text).unwrap_err().strategy, strategy, "{text}");
    }
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem_and_never_hangs() {
    for path in [
        SHIPPED,
        FLATCAR,
        USER_DATA,
        CLOUD_CONFIG,
        OWN_FILE,
        "/etc/locksmith/conf.d/a.toml",
    ] {
        let root = machine(&[]);
        let place = root.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        nix::unistd::mkfifo(&place, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let load = || Settings::load(&at(&root), Program::Daemon, |_| None, Fragment::default());
        let expected = format!("cannot read {path}: not a regular file");
        assert_eq!(lines(&load().unwrap_err()), [expected]);
        fs::remove_file(&place).unwrap();
        std::os::unix::fs::symlink("/dev/null", &place).unwrap();
        assert_eq!(
            load().unwrap().settings,
            Settings::default(),
            "{path} is masked"
        );
    }
    let many: Vec<String> = (0..=MOST_FILES)
        .map(|number| format!("{OWN_FOLDER}/{number}.toml"))
        .collect();
    let files: Vec<(&str, &str)> = many.iter().map(|path| (path.as_str(), "")).collect();
    assert!(lines(&load(&files).unwrap_err())[0].contains("more than 64 files"));
    let long = "x".repeat(MOST_BYTES + 1);
    assert!(lines(&own(&long).unwrap_err())[0].contains("more than 262144 bytes"));
}

#[test]
fn windows_are_in_the_machines_own_time_unless_a_zone_is_named() {
    let berlin = fs::read("/usr/share/zoneinfo/Europe/Berlin").unwrap();
    let window = "[[window]]\nstart = '9:00'\nlength = '1h'\n";
    let named = format!("time_zone = 'Asia/Kolkata'\n{window}");
    let now: jiff::Timestamp = "2027-11-25T00:00:00Z".parse().unwrap();
    let linked = "../usr/share/zoneinfo/America/New_York";
    for (link, file, variable, text, opens) in [
        (None, None, None, window, "09:00"),
        (Some(linked), None, None, window, "14:00"),
        (None, Some(&berlin), None, window, "08:00"),
        (None, Some(&berlin), Some("Asia/Tokyo"), window, "00:00"),
        (
            None,
            Some(&berlin),
            Some(":America/New_York"),
            window,
            "14:00",
        ),
        (None, Some(&berlin), Some(""), window, "09:00"),
        (
            None,
            Some(&berlin),
            Some(":/etc/localtime"),
            window,
            "08:00",
        ),
        (None, Some(&berlin), Some("/etc/localtime"), window, "08:00"),
        (Some(linked), None, Some(":/etc/localtime"), window, "14:00"),
        (None, None, Some("/no/such"), named.as_str(), "03:30"),
        (
            None,
            Some(&berlin),
            Some("Asia/Tokyo"),
            named.as_str(),
            "03:30",
        ),
    ] {
        let root = machine(&[(OWN_FILE, text)]);
        let localtime = root.path().join("etc/localtime");
        if let Some(target) = link {
            std::os::unix::fs::symlink(target, &localtime).unwrap();
        }
        if let Some(bytes) = file {
            fs::write(&localtime, bytes).unwrap();
        }
        let environment = |name: &str| {
            (name == "TZ")
                .then(|| variable.map(str::to_owned))
                .flatten()
        };
        let loaded = Settings::load(
            &at(&root),
            Program::Daemon,
            environment,
            Fragment::default(),
        )
        .unwrap();
        assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
        let found = match loaded.settings.schedule.state(now) {
            crate::window::State::Closed { opens: Some(opens) } => opens,
            crate::window::State::Open { .. } => now,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            found.to_string(),
            format!("2027-11-25T{opens}:00Z"),
            "{variable:?} {link:?}"
        );
    }
    let problems = own("time_zone = 'Mars/Olympus'").unwrap_err();
    assert!(lines(&problems)[0].ends_with("there is no time zone 'Mars/Olympus'"));
}

#[test]
fn what_is_shown_is_a_file_of_ours_that_says_the_same() {
    let files = [
        (FLATCAR, "REBOOT_STRATEGY=etcd-lock\n"),
        (
            OWN_FILE,
            "queue_rank = 3\nexclude = ['sat']\n[[window]]\nstart = 'sat 1:00'\nlength = '1h'\n",
        ),
    ];
    let environment = [
        ("LOCKSMITHD_ETCD_USERNAME", "u"),
        ("LOCKSMITHD_ETCD_PASSWORD", "hush"),
    ];
    let loaded = load_with(
        &files,
        Program::Daemon,
        &environment,
        &[("endpoint", "http://a:1")],
    )
    .unwrap();
    let shown = loaded.show();
    for line in [
        "strategy = \"etcd-lock\"  # /etc/flatcar/update.conf:1",
        "group = \"\"  # default",
        "queue_rank = 3  # /etc/locksmith/locksmith.toml:1",
        "window = [{ start = \"sat 1:00\", length = \"1h\" }]  # /etc/locksmith/locksmith.toml:3",
        "exclude = [\"sat\"]  # /etc/locksmith/locksmith.toml:2",
        "etcd.endpoints = [\"http://a:1\"]  # -endpoint",
        "etcd.username = \"u\"  # $LOCKSMITHD_ETCD_USERNAME",
        "etcd.password = \"(set)\"  # $LOCKSMITHD_ETCD_PASSWORD",
        "debug = false  # default",
    ] {
        assert!(
            shown.lines().any(|found| found == line),
            "{line} in\n{shown}"
        );
    }
    assert!(!shown.contains("hush"));
    let again = own(&shown).unwrap();
    assert!(again.warnings.is_empty(), "{:?}", again.warnings);
    let mut expected = loaded.settings;
    expected.etcd.login.as_mut().unwrap().password = Secret("(set)".to_owned());
    assert_eq!(again.settings, expected);
}

#[test]
fn the_table_of_keys_holds_the_defaults_as_one_would_write_them() {
    let mut spelled = String::new();
    for key in KEYS.iter().filter(|key| !key.default.is_empty()) {
        let value = if key.form == Form::Bare {
            key.default.to_owned()
        } else {
            quoted(key.default)
        };
        spelled.push_str(&format!("{} = {value}\n", key.name));
    }
    let loaded = own(&spelled).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    assert_eq!(loaded.settings, Settings::default());
    let names: BTreeSet<&str> = KEYS.iter().map(|key| key.name).collect();
    assert_eq!(names.len(), KEYS.len(), "no name stands twice");
}

/// The row that documents `key`.
fn row(key: &Key) -> String {
    let default = if key.default.is_empty() {
        "–".to_owned()
    } else {
        format!("`{}`", key.default.replace(',', "`, `"))
    };
    let mut elsewhere: Vec<String> = key.all_variables(Program::Daemon.prefix());
    elsewhere.extend(key.flag.map(|flag| format!("-{flag}")));
    elsewhere.extend(key.cloud.map(str::to_owned));
    let elsewhere: Vec<String> = elsewhere.iter().map(|name| format!("`{name}`")).collect();
    let elsewhere = if elsewhere.is_empty() {
        "–".to_owned()
    } else {
        elsewhere.join(", ")
    };
    format!(
        "| `{}` | {} | {default} | {elsewhere} | {} |",
        key.name, key.kind, key.meaning
    )
}

#[test]
fn the_documentation_lists_exactly_the_keys_that_are_read() {
    let document = include_str!("../../../docs/locksmith-configuration.md");
    let documented: BTreeSet<&str> = document
        .lines()
        .filter(|line| line.starts_with("| `"))
        .collect();
    let rows: Vec<String> = KEYS.iter().map(|key| row(key)).collect();
    let expected: BTreeSet<&str> = rows.iter().map(String::as_str).collect();
    let missing: Vec<_> = expected.difference(&documented).collect();
    let surplus: Vec<_> = documented.difference(&expected).collect();
    assert!(
        missing.is_empty() && surplus.is_empty(),
        "missing rows: {missing:#?}\nrows of no key: {surplus:#?}"
    );
    for path in SHIPPED_FILES
        .iter()
        .chain(&CLOUD_CONFIG_FILES)
        .chain(&UPDATE_FILES)
        .chain([&OWN_FILE, &OWN_FOLDER])
    {
        assert!(document.contains(path), "{path} is not mentioned");
    }
}

/// The code blocks of the documentation in this language.
fn examples(language: &str) -> Vec<&'static str> {
    let document = include_str!("../../../docs/locksmith-configuration.md");
    let fence = format!("```{language}\n");
    let blocks = document.split(fence.as_str()).skip(1);
    blocks
        .map(|block| block.split("```").next().unwrap())
        .collect()
}

#[test]
fn the_examples_of_the_documentation_say_something_valid() {
    let [toml] = examples("toml")[..] else {
        panic!("one example")
    };
    let loaded = own(toml).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    assert_eq!(loaded.settings.schedule.describe().len(), 3);
    for yaml in examples("yaml") {
        let loaded = load(&[(CLOUD_CONFIG, yaml)]).unwrap();
        assert_eq!(loaded.settings.strategy, Strategy::EtcdLock, "{yaml}");
    }
    assert_eq!(examples("yaml").len(), 2);
}

#[test]
fn a_file_that_is_no_time_zone_is_an_error() {
    for (name, expected) in [
        ("/no/such", "there is no file /no/such"),
        (
            ":/etc/flatcar/update.conf",
            "cannot use /etc/flatcar/update.conf: ",
        ),
    ] {
        let files = [(FLATCAR, "REBOOT_STRATEGY=reboot")];
        let told = load_with(&files, Program::Daemon, &[("TZ", name)], &[]);
        let told = told.unwrap_err().to_string();
        let expected = format!("$TZ: bad value of time_zone: {expected}");
        assert!(told.starts_with(&expected), "{told}");
    }
}

#[test]
fn links_of_the_machine_lead_to_its_own_files() {
    let root = machine(&[("/etc/real.conf", "REBOOT_STRATEGY=off")]);
    fs::create_dir_all(root.path().join("etc/flatcar")).unwrap();
    let link = root.path().join(FLATCAR.trim_start_matches('/'));
    std::os::unix::fs::symlink("/etc/real.conf", link).unwrap();
    let loaded = Settings::load(&at(&root), Program::Daemon, |_| None, Fragment::default());
    assert_eq!(loaded.unwrap().settings.strategy, Strategy::Off);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_in_any_file_are_loaded_or_refused(
        bytes in prop::collection::vec(any::<u8>(), 0..200),
        head in prop::sample::select(vec!["", "#cloud-config\n", "strategy = ", "REBOOT_STRATEGY="]),
        path in prop::sample::select(vec![SHIPPED, FLATCAR, USER_DATA, OWN_FILE, LOCAL_TIME]),
    ) {
        let root = machine(&[]);
        let place = root.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::write(&place, [head.as_bytes(), bytes.as_slice()].concat()).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let environment = |name: &str| (name != "TZ" && path == LOCAL_TIME).then(|| text.clone());
        match Settings::load(&at(&root), Program::Daemon, environment, Fragment::default()) {
            Ok(loaded) => prop_assert!(loaded.show().lines().count() >= KEYS.len() - 2),
            Err(problems) => prop_assert!(!problems.problems.is_empty()),
        }
    }
}
