use super::*;
use std::collections::BTreeSet;
use std::error::Error;
use std::fs;

/// A machine with these files, by their paths on it.
fn machine(files: &[(&str, &str)]) -> (tempfile::TempDir, Root) {
    let dir = tempfile::tempdir().unwrap();
    for (path, content) in files {
        let path = dir.path().join(path.trim_start_matches('/'));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    let root = Root::at(dir.path()).unwrap();
    (dir, root)
}

fn load(files: &[(&str, &str)]) -> Result<Loaded, ConfigError> {
    let (_dir, root) = machine(files);
    Loaded::read(&root)
}

fn settings_of(files: &[(&str, &str)]) -> Settings {
    load(files).unwrap().settings
}

/// The settings with this text as the file that is ours.
fn own(text: &str) -> Result<Loaded, ConfigError> {
    load(&[(OWN_FILE, text)])
}

/// The whole error as a main prints it.
fn words(error: &dyn Error) -> String {
    let causes = std::iter::successors(error.source(), |&cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

const A: &str = "/etc/flatcar/update.conf";
const B: &str = "/usr/share/flatcar/update.conf";
const C: &str = "/usr/share/flatcar/release";

#[test]
fn the_first_file_with_the_key_wins_even_when_its_value_is_empty() {
    let table: [(&[(&str, &str)], &str); 7] = [
        (&[], "stable"),
        (&[(C, "GROUP=c")], "c"),
        (&[(B, "GROUP=b"), (C, "GROUP=c")], "b"),
        (&[(A, "SERVER=x"), (B, "GROUP=b"), (C, "GROUP=c")], "b"),
        (&[(A, "GROUP="), (B, "GROUP=b")], ""),
        (&[(A, "GROUP=a\nGROUP=\"a2\""), (B, "GROUP=b")], "a2"),
        (&[(OWN_FILE, "GROUP=own"), (A, "GROUP=a")], "own"),
    ];
    for (files, expected) in table {
        assert_eq!(settings_of(files).group, expected, "{files:?}");
    }
}

#[test]
fn coreos_files_count_only_when_there_are_no_flatcar_files() {
    let coreos = (
        "/usr/share/coreos/release",
        "COREOS_RELEASE_VERSION=1.0.0\nGROUP=\"beta\"",
    );
    let found = settings_of(&[coreos]);
    assert_eq!(found.family, Family::Coreos);
    assert_eq!(found.version, "1.0.0");
    assert_eq!(found.group, "\"beta\"", "CoreOS keeps quotes");
    assert_eq!(found.server, "https://public.update.core-os.net/v1/update/");
    assert!(found.is_default_server());

    let both = settings_of(&[coreos, (C, "FLATCAR_RELEASE_VERSION=2.0.0")]);
    assert_eq!(
        (both.family, both.version.as_str()),
        (Family::Flatcar, "2.0.0")
    );
    assert_eq!(
        both.server,
        "https://public.update.flatcar-linux.net/v1/update/"
    );

    let own = settings_of(&[coreos, (OWN_FILE, "COREOS_RELEASE_VERSION=3.0.0")]);
    assert_eq!(own.version, "3.0.0");
}

#[test]
fn another_server_is_told_apart_from_the_default_one() {
    assert!(settings_of(&[]).is_default_server());
    assert!(!settings_of(&[(A, "SERVER=http://example.org/")]).is_default_server());
}

#[test]
fn our_file_sets_what_it_says() {
    let text = "# a comment, with = in it\n\
        PUBLIC_KEYS=/k/a.pem /k/b.pem\nSIGNATURE_THRESHOLD=2\nVERSION_FLOOR=10.0\nVERSION_PIN=10\n\
        ALLOW_DOWNGRADE=yes\nPAUSED=on\nCA_FILE=/ca.pem\nTRIES=3\nPROXY=http://p:1\nNO_PROXY=a,b\n\
        SLOT_TYPE_GUID=C95DC21A-DF0E-4340-8D7B-26CBFA9A03E0\nSTATE_DIR=/s\nENCODERS_DIR=/e\nFIRST_CHECK_DELAY=0\n\
        CHECK_INTERVAL=1h\nHEALTH_DELAY=1m\nHEALTH_TIMEOUT=5s\nHEALTH_DEADLINE=0\nPARTITIONS=oem=/d/OEM-{slot} x=/x{slot}\nPOSTINST_TIMEOUT=10m\n\
        DOWNLOAD_USER=u\nDOWNLOAD_PASSWORD=hush\nPCR_POLICY_SERVER=http://pcr/\n";
    let Loaded { settings, warnings } = own(text).unwrap();
    assert_eq!(warnings, []);
    let expected = Settings {
        public_keys: PublicKeys::Listed(vec!["/k/a.pem".to_owned(), "/k/b.pem".to_owned()]),
        signature_threshold: 2,
        version_floor: Some("10.0".parse().unwrap()),
        version_pin: Some("10".to_owned()),
        allow_downgrade: true,
        paused: true,
        ca_file: Some("/ca.pem".to_owned()),
        tries: 3,
        proxy: Some(Secret("http://p:1".to_owned())),
        no_proxy: Some("a,b".to_owned()),
        slot_type: "c95dc21a-df0e-4340-8d7b-26cbfa9a03e0".parse().unwrap(),
        state_dir: "/s".to_owned(),
        encoders_dir: "/e".to_owned(),
        partitions: [("oem", "/d/OEM-{slot}"), ("x", "/x{slot}")]
            .map(|(name, path)| PartitionPlace {
                name: name.to_owned(),
                path: path.to_owned(),
            })
            .into(),
        first_check_delay: Duration::ZERO,
        check_interval: Duration::from_secs(3600),
        health_delay: Duration::from_secs(60),
        health_timeout: Duration::from_secs(5),
        health_deadline: None,
        postinst_timeout: Duration::from_secs(600),
        download_login: Some(Login {
            user: "u".to_owned(),
            password: Secret("hush".to_owned()),
        }),
        pcr_policy_server: Some("http://pcr/".to_owned()),
        ..settings_of(&[])
    };
    assert_eq!(settings, expected);
    assert!(!format!("{settings:?}").contains("hush"));
}

#[test]
fn a_bad_value_of_trust_or_policy_stops_the_updater() {
    for line in [
        "PUBLIC_KEYS=",
        "PUBLIC_KEYS=key.pem",
        "SIGNATURE_THRESHOLD=0",
        "SIGNATURE_THRESHOLD=two",
        "VERSION_FLOOR=new",
        "VERSION_PIN=10.x",
        "ALLOW_DOWNGRADE=maybe",
        "PAUSED=nope",
        "CA_FILE=ca.pem",
        "SLOT_TYPE_GUID=usr",
        "STATE_DIR=state",
    ] {
        let error = words(&own(&format!("\n{line}\n")).unwrap_err());
        let key = line.split('=').next().unwrap();
        assert!(
            error.starts_with(&format!("{OWN_FILE}:2: bad value of {key}: ")),
            "{error}"
        );
    }
}

#[test]
fn any_other_bad_value_is_replaced_by_the_default_with_a_warning() {
    for line in [
        "TRIES=16",
        "PROXY=ftp://user:hush@host",
        "FIRST_CHECK_DELAY=soon",
        "CHECK_INTERVAL=1s",
        "HEALTH_DELAY=2d",
        "HEALTH_TIMEOUT=0",
        "POSTINST_TIMEOUT=0s",
    ] {
        let Loaded { settings, warnings } = own(&format!("\n\n{line}")).unwrap();
        let key = line.split('=').next().unwrap();
        assert_eq!(settings, settings_of(&[]), "{line}");
        let [warning] = warnings.as_slice() else {
            panic!("{line}: {warnings:?}")
        };
        let text = warning.to_string();
        assert!(
            text.starts_with(&format!("{OWN_FILE}:3: bad value of {key}: ")),
            "{text}"
        );
        assert!(!text.contains("hush"), "{text}");
    }
}

#[test]
fn typing_errors_in_our_file_are_pointed_out() {
    let warnings =
        own("PAUSE=yes\n PAUSED=yes\nPAUSED yes\n#PAUSED=yes\n# x\n\nREBOOT_STRATEGY=off")
            .unwrap()
            .warnings;
    let lines: Vec<_> = warnings.iter().map(|warning| warning.line).collect();
    assert_eq!(lines, [1, 2, 7, 3], "{warnings:?}");
    assert_eq!(
        warnings[0].to_string(),
        format!("{OWN_FILE}:1: unknown key 'PAUSE'")
    );
    assert_eq!(
        load(&[(A, "REBOOT_STRATEGY=off\nx")]).unwrap().warnings,
        [],
        "others' keys may stand there"
    );
}

#[test]
fn an_empty_value_of_our_keys_is_the_default() {
    for key in KEYS
        .iter()
        .filter(|key| key.files == Files::Own && key.name != "PUBLIC_KEYS")
    {
        let Loaded { settings, warnings } = own(&format!("{}=", key.name)).unwrap();
        assert_eq!(settings, settings_of(&[]), "{}", key.name);
        assert_eq!(warnings, [], "{}", key.name);
    }
}

#[test]
fn the_table_of_keys_holds_the_defaults_as_one_would_write_them() {
    let spelled: Vec<_> = KEYS
        .iter()
        .filter(|key| key.files != Files::Oem && !key.default.is_empty())
        .map(|key| format!("{}={}", key.name, key.default))
        .collect();
    let Loaded { settings, warnings } = own(&spelled.join("\n")).unwrap();
    assert_eq!(warnings, []);
    assert_eq!(settings, settings_of(&[]));
    assert_eq!(settings.slot_type, gptprio::USR_TYPE);
}

#[test]
fn a_file_that_cannot_be_read_stops_the_updater() {
    for path in [OWN_FILE, A, B, C, "/etc/oem-release"] {
        let (dir, root) = machine(&[]);
        fs::create_dir_all(dir.path().join(path.trim_start_matches('/'))).unwrap();
        let error = words(&Loaded::read(&root).unwrap_err());
        assert!(
            error.starts_with(&format!("cannot read the configuration file {path}: ")),
            "{error}"
        );
    }
    let long = "X".repeat(usize::try_from(FILE_LIMIT).unwrap() + 1);
    assert!(words(&own(&long).unwrap_err()).contains("more than"));
}

#[test]
fn a_bad_value_leaves_the_others_to_those_who_install_nothing() {
    let text = "STATE_DIR=/s\nHEALTH_DEADLINE=0\nVERSION_PIN=latest\nPUBLIC_KEYS=x\nTRIES=99\n";
    let (_dir, root) = machine(&[(OWN_FILE, text)]);
    assert!(Loaded::read(&root).is_err());
    let Loaded { settings, warnings } = Loaded::read_leniently(&root).unwrap();
    let expected = Settings {
        state_dir: "/s".to_owned(),
        health_deadline: None,
        public_keys: PublicKeys::Listed(vec![]),
        ..settings_of(&[])
    };
    assert_eq!(settings, expected);
    assert_eq!(warnings.len(), 2, "{warnings:?}");
}

#[test]
fn a_developers_machine_is_marked_by_a_file() {
    assert!(settings_of(&[]).official_build);
    assert!(!settings_of(&[(DEVELOPER_MARK, "")]).official_build);
}

const KEY: &str = "/usr/share/update_engine/update-payload-key.pub.pem";

/// Paths of the key files, or the error in words.
fn key_files(files: &[(&str, &str)]) -> Result<Vec<String>, String> {
    let (_dir, root) = machine(files);
    let settings = Loaded::read(&root).unwrap().settings;
    let found = settings.key_files(&root).map_err(|error| words(&error))?;
    Ok(found.into_iter().map(|file| file.path).collect())
}

#[test]
fn the_installed_keys_are_the_distributions_and_the_folders() {
    let folder = [
        ("/etc/update-engine/keys.d/b.pem", "b"),
        ("/etc/update-engine/keys.d/a.pem", "a"),
        ("/etc/update-engine/keys.d/.hidden.pem", "x"),
        ("/etc/update-engine/keys.d/README", "x"),
    ];
    let [b, a, ..] = folder.map(|(path, _)| path);
    assert_eq!(key_files(&folder).unwrap(), [a, b]);
    let with_default: Vec<_> = folder.into_iter().chain([(KEY, "k")]).collect();
    assert_eq!(key_files(&with_default).unwrap(), [KEY, a, b]);
}

#[test]
fn listed_keys_are_the_only_ones() {
    let own = (OWN_FILE, "PUBLIC_KEYS=/etc/k.pem");
    assert_eq!(
        key_files(&[own, (KEY, "k"), ("/etc/k.pem", "l")]).unwrap(),
        ["/etc/k.pem"]
    );
    let error = key_files(&[own, (KEY, "k")]).unwrap_err();
    assert!(
        error.starts_with("cannot read the public key /etc/k.pem: "),
        "{error}"
    );
}

#[test]
fn no_key_at_all_is_refused_with_the_places_that_were_searched() {
    let error = key_files(&[]).unwrap_err();
    for place in [KEY, "/etc/update-engine/keys.d", "PUBLIC_KEYS"] {
        assert!(error.contains(place), "{error}");
    }
}

#[test]
fn a_key_that_cannot_be_read_is_never_left_out() {
    let folder = "/etc/update-engine/keys.d/x.pem";
    let (dir, root) = machine(&[(KEY, "k")]);
    fs::create_dir_all(dir.path().join(folder.trim_start_matches('/'))).unwrap();
    let settings = Loaded::read(&root).unwrap().settings;
    let error = words(&settings.key_files(&root).unwrap_err());
    assert!(
        error.starts_with(&format!("cannot read the public key {folder}: ")),
        "{error}"
    );
}

/// The row that documents `key`.
fn row(key: &Key) -> String {
    let default = if key.default.is_empty() {
        "–".to_owned()
    } else {
        format!("`{}`", key.default)
    };
    match key.files {
        Files::Own => {
            let bad = if key.strict { "refuse" } else { "warn" };
            format!(
                "| `{}` | {} | {default} | {bad} | {} |",
                key.name, key.kind, key.meaning
            )
        }
        Files::All | Files::Oem => {
            format!(
                "| `{}` | {} | {default} | {} |",
                key.name, key.kind, key.meaning
            )
        }
    }
}

#[test]
fn the_documentation_lists_exactly_the_keys_that_are_read() {
    let document = include_str!("../../../docs/configuration.md");
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
}
