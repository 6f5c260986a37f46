use super::testing::{FailingStore, Fault, MemoryStore};
use super::*;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

const KEY: Key = Key::new("payload-attempt-number");
const OTHER: Key = Key::new("full-response");

fn folder() -> (tempfile::TempDir, Prefs) {
    let dir = tempfile::tempdir().unwrap();
    let prefs = Prefs::open(dir.path().join("lib/prefs")).unwrap();
    (dir, prefs)
}

/// What every store must do.
fn check_contract(store: &dyn StateStore) {
    assert_eq!(store.load(KEY).unwrap(), None);
    assert_eq!(store.committed_at(KEY).unwrap(), None);
    store.remove(KEY).unwrap();

    store.commit(KEY, b"one").unwrap();
    store.commit(OTHER, b"").unwrap();
    assert_eq!(store.load_text(KEY).unwrap().as_deref(), Some("one"));
    assert_eq!(
        store.load(OTHER).unwrap(),
        Some(vec![]),
        "an empty value is a value"
    );
    assert!(store.committed_at(OTHER).unwrap() >= store.committed_at(KEY).unwrap());
    store.commit(KEY, b"one").unwrap();
    let (again, before) = (
        store.committed_at(KEY).unwrap(),
        store.committed_at(OTHER).unwrap(),
    );
    assert!(again >= before, "same bytes, but younger");

    store.commit_integer(KEY, -7).unwrap();
    assert_eq!(store.load_integer(KEY).unwrap(), Some(-7));
    store.remove(KEY).unwrap();
    assert_eq!(store.load_integer(KEY).unwrap(), None);

    let limit = usize::try_from(MAX_VALUE).unwrap();
    store.commit(KEY, &vec![1; limit]).unwrap();
    let refused = store.commit(KEY, &vec![2; limit + 1]);
    assert!(matches!(refused, Err(StoreError::TooLarge { key: KEY })));
    assert_eq!(store.load(KEY).unwrap().unwrap().len(), limit);
}

#[test]
fn every_store_keeps_the_contract() {
    let (_dir, prefs) = folder();
    check_contract(&prefs);
    check_contract(&MemoryStore::default());
    check_contract(&FailingStore::new(
        MemoryStore::default(),
        u64::MAX,
        Fault::Lost,
    ));
}

#[test]
fn a_failing_store_has_the_old_or_the_new_value_whole() {
    for (fault, expected) in [(Fault::Lost, "old"), (Fault::Landed, "new")] {
        let store = FailingStore::new(MemoryStore::default(), 1, fault);
        store.commit(KEY, b"old").unwrap();
        assert!(matches!(
            store.commit(KEY, b"new"),
            Err(StoreError::Commit { key: KEY, .. })
        ));
        assert_eq!(
            store.into_inner().load_text(KEY).unwrap().as_deref(),
            Some(expected)
        );
    }
}

#[test]
fn values_are_files_of_their_owner_under_the_keys_names() {
    let (dir, prefs) = folder();
    prefs.commit(KEY, b"3").unwrap();
    prefs.commit(KEY, b"4").unwrap();
    let folder = dir.path().join("lib/prefs");
    let entries = fs::read_dir(&folder).unwrap();
    let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["payload-attempt-number"], "nothing else is left");
    assert_eq!(fs::read(folder.join(KEY.name())).unwrap(), b"4");
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(folder.join(KEY.name())), 0o600);
    assert_eq!(mode(folder), 0o700);
}

#[test]
fn values_of_the_original_are_read() {
    let (dir, prefs) = folder();
    let file = dir.path().join("lib/prefs").join(KEY.name());
    for (text, expected) in [("12", 12), (" -1\n", -1), ("9223372036854775807", i64::MAX)] {
        fs::write(&file, text).unwrap();
        assert_eq!(prefs.load_integer(KEY).unwrap(), Some(expected), "{text:?}");
    }
}

#[test]
fn garbage_is_an_error_that_names_the_key() {
    let (dir, prefs) = folder();
    let file = dir.path().join("lib/prefs").join(KEY.name());
    for garbage in [
        &b""[..],
        b"1 2",
        b"9223372036854775808",
        b"0x10",
        b"\xff\xfe",
    ] {
        fs::write(&file, garbage).unwrap();
        let error = prefs.load_integer(KEY).unwrap_err();
        assert!(
            matches!(error, StoreError::Garbage { key: KEY, .. }),
            "{garbage:?}: {error}"
        );
    }
    fs::write(&file, vec![0; usize::try_from(MAX_VALUE).unwrap() + 1]).unwrap();
    assert!(matches!(
        prefs.load(KEY),
        Err(StoreError::TooLarge { key: KEY })
    ));
}

#[test]
fn links_fifos_and_folders_are_refused_and_never_followed() {
    let (dir, prefs) = folder();
    let file = dir.path().join("lib/prefs").join(KEY.name());
    let outside = dir.path().join("outside");
    fs::write(&outside, "secret").unwrap();

    symlink(&outside, &file).unwrap();
    assert!(matches!(
        prefs.load(KEY),
        Err(StoreError::Read { key: KEY, .. })
    ));
    assert!(prefs.committed_at(KEY).is_err());
    prefs.commit(KEY, b"new").unwrap();
    assert_eq!(
        fs::read(&outside).unwrap(),
        b"secret",
        "the link was replaced, not written through"
    );
    assert_eq!(prefs.load_text(KEY).unwrap().as_deref(), Some("new"));

    fs::remove_file(&file).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(matches!(prefs.load(KEY), Err(StoreError::Read { .. })));

    fs::remove_file(&file).unwrap();
    fs::create_dir(&file).unwrap();
    assert!(matches!(prefs.load(KEY), Err(StoreError::Read { .. })));
    assert!(matches!(
        prefs.commit(KEY, b"x"),
        Err(StoreError::Commit { .. })
    ));
}

#[test]
fn what_a_killed_commit_left_behind_does_no_harm() {
    let (dir, prefs) = folder();
    let outside = dir.path().join("outside");
    fs::write(&outside, "secret").unwrap();
    symlink(
        &outside,
        dir.path().join("lib/prefs/.payload-attempt-number.new"),
    )
    .unwrap();
    prefs.commit(KEY, b"1").unwrap();
    assert_eq!(prefs.load_integer(KEY).unwrap(), Some(1));
    assert_eq!(fs::read(&outside).unwrap(), b"secret");
}

#[test]
fn commits_at_the_same_time_leave_one_of_the_values_whole() {
    let (_dir, prefs) = folder();
    let values: Vec<Vec<u8>> = (0..8).map(|number| vec![b'a' + number; 10_000]).collect();
    std::thread::scope(|scope| {
        for value in &values {
            scope.spawn(|| prefs.commit(KEY, value).unwrap());
        }
    });
    assert!(values.contains(&prefs.load(KEY).unwrap().unwrap()));
}

#[test]
fn a_folder_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("file"), "").unwrap();
    let error = Prefs::open(dir.path().join("file/prefs")).unwrap_err();
    assert!(error.to_string().ends_with("file/prefs"), "{error}");
}

#[test]
fn the_first_version_ever_seen_is_kept() {
    let store = MemoryStore::default();
    assert_eq!(store.aleph_version("1.0.0").unwrap(), "1.0.0");
    assert_eq!(store.aleph_version("2.0.0").unwrap(), "1.0.0");
}
