//! The scanner on real folders. Time is an argument, so nothing here waits.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use std::cell::Cell;
use std::fs::{self, File, Permissions};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use nix::sys::stat::Mode;
use nix::unistd::{Uid, geteuid, mkfifo, setfsuid};
use omaha_protocol::OS_APP_ID;
use omaha_server::catalogue::Catalogue;
use omaha_server::labels::Defaults;
use omaha_server::scan::{LONGEST_WAIT, SETTLED, Scanner};
use tempfile::TempDir;

const FULL: &[u8] = include_bytes!("../../fixtures/crau-v1/unsigned.payload");
const SIGNED: &[u8] = include_bytes!("../../fixtures/crau-v1/full.payload");
const DELTA: &[u8] = include_bytes!("../../fixtures/crau-v1/delta.payload");

struct Folder {
    folder: TempDir,
    scanner: Scanner,
}

impl Folder {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let scanner = Scanner::new(folder.path(), Defaults::default()).unwrap();
        Self { folder, scanner }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn put(&self, name: &str, content: &[u8]) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// A scan at a time when everything has long rested.
    fn scan(&mut self) -> Catalogue {
        self.scan_at(SystemTime::now() + Duration::from_secs(3600))
    }

    fn scan_at(&mut self, now: SystemTime) -> Catalogue {
        self.scanner.scan(now).unwrap()
    }
}

fn offered(catalogue: &Catalogue) -> Vec<(&str, &str)> {
    let artifacts = catalogue.artifacts.iter();
    artifacts
        .map(|artifact| (artifact.name.as_str(), artifact.labels.version.as_str()))
        .collect()
}

fn reason<'a>(catalogue: &'a Catalogue, name: &str) -> &'a str {
    let left_out = catalogue.left_out.iter().find(|l| l.path.ends_with(name));
    &left_out
        .unwrap_or_else(|| panic!("{name} is in {catalogue:?}"))
        .reason
}

#[test]
fn payloads_are_found_by_content_and_labelled_by_place() {
    let mut folder = Folder::new();
    folder.put("stable/amd64-usr/4152.10.0/update.gz", SIGNED);
    folder.put("beta/flatcar-arm64-4200.1.0.gz", FULL);
    folder.put("README.md", b"CrA is no magic");
    folder.put("empty-1.2.3.payload", b"");
    folder.put(".hidden-1.2.3.payload", FULL);
    let catalogue = folder.scan();
    assert_eq!(
        offered(&catalogue),
        [
            ("flatcar-arm64-4200.1.0.gz", "4200.1.0"),
            ("update.gz", "4152.10.0")
        ]
    );
    assert!(catalogue.left_out.is_empty(), "{:?}", catalogue.left_out);
    let signed = &catalogue.artifacts[1];
    // By sha256sum.
    assert_eq!(
        signed.sha256_hex(),
        "971b029df5635dd465846b522b0c0c688e8ba46512e1f3e4a8b7145b9ae8b7ca"
    );
    assert_eq!(signed.size, u64::try_from(SIGNED.len()).unwrap());
    assert!(!signed.is_delta);
}

#[test]
fn a_copy_under_way_is_never_offered() {
    let mut folder = Folder::new();
    let path = folder.path("update-1.2.3.payload");
    let mut copy = File::create(&path).unwrap();
    for end in [4, 20, 1000, FULL.len() / 2, FULL.len() - 1] {
        let written = usize::try_from(copy.metadata().unwrap().len()).unwrap();
        copy.write_all(&FULL[written..end]).unwrap();
        let catalogue = folder.scan();
        assert!(offered(&catalogue).is_empty(), "{end} bytes are there");
        assert_eq!(catalogue.left_out.len(), 1);
    }
    copy.write_all(&FULL[FULL.len() - 1..]).unwrap();
    assert_eq!(offered(&folder.scan()), [("update-1.2.3.payload", "1.2.3")]);

    // Some programs reserve the room first.
    let reserved = File::create(folder.path("reserved-1.2.3.payload")).unwrap();
    reserved
        .set_len(u64::try_from(FULL.len()).unwrap())
        .unwrap();
    drop(reserved);
    let mut half = FULL.to_vec();
    half[FULL.len() / 2..].fill(0);
    folder.put("half-1.2.3.payload", &half);
    let mut longer = FULL.to_vec();
    longer.push(0);
    folder.put("longer-1.2.3.payload", &longer);
    let catalogue = folder.scan();
    assert_eq!(offered(&catalogue), [("update-1.2.3.payload", "1.2.3")]);
    assert!(reason(&catalogue, "longer-1.2.3.payload").contains("by its manifest"));
    let half = reason(&catalogue, "half-1.2.3.payload");
    assert!(half.starts_with("operation "), "{half}");
}

#[test]
fn a_fresh_file_must_be_the_same_at_two_scans() {
    let mut folder = Folder::new();
    folder.put("update-1.2.3.payload", FULL);
    let now = SystemTime::now();
    let waits = "it is being written";
    assert_eq!(reason(&folder.scan_at(now), "update-1.2.3.payload"), waits);
    folder.put("update-1.2.3.payload", SIGNED);
    let next = now + SETTLED / 2;
    assert_eq!(
        reason(&folder.scan_at(next), "update-1.2.3.payload"),
        waits,
        "changed in between"
    );
    assert_eq!(
        reason(&folder.scan_at(now + SETTLED), "update-1.2.3.payload"),
        waits,
        "looked at again too soon"
    );
    assert_eq!(offered(&folder.scan_at(next + SETTLED)).len(), 1);

    // A clock that was set back does not hold it up for as long.
    folder.put("update-1.2.3.payload", FULL);
    let (late, early) = (now + 100 * SETTLED, now - 100 * SETTLED);
    let future = File::options()
        .write(true)
        .open(folder.path("update-1.2.3.payload"))
        .unwrap();
    future.set_modified(late).unwrap();
    assert!(offered(&folder.scan_at(late)).is_empty());
    assert_eq!(offered(&folder.scan_at(early)).len(), 1);
}

#[test]
fn what_goes_or_is_relabelled_is_noticed_before_anything_new_is_read() {
    let mut folder = Folder::new();
    folder.put("bad-1.2.3.payload", FULL);
    folder.put("good-1.2.2.payload", SIGNED);
    folder.scan();
    fs::remove_file(folder.path("bad-1.2.3.payload")).unwrap();
    folder.put("good-1.2.2.payload.json", br#"{"track": "beta"}"#);
    for name in ["README", "new-1.2.4.payload", "new-1.2.5.payload"] {
        folder.put(name, if name == "README" { b"text" } else { FULL });
    }
    let now = SystemTime::now() + Duration::from_secs(3600);
    folder.scanner.survey(now).unwrap();
    let catalogue = folder.scanner.catalogue();
    assert_eq!(offered(&catalogue), [("good-1.2.2.payload", "1.2.2")]);
    assert_eq!(catalogue.artifacts[0].labels.track.as_deref(), Some("beta"));
    assert_eq!(catalogue.left_out.len(), 2, "{:?}", catalogue.left_out);
    assert_eq!(reason(&catalogue, "new-1.2.4.payload"), "it is being read");

    for count in [2, 3] {
        assert!(folder.scanner.read_next(|| now));
        assert_eq!(offered(&folder.scanner.catalogue()).len(), count);
    }
    assert!(!folder.scanner.read_next(|| now));
}

#[test]
fn a_payload_with_new_attributes_stays_on_offer_while_it_is_read_again() {
    let mut folder = Folder::new();
    folder.put("update-1.2.3.payload", FULL);
    let path = folder.path("update-1.2.3.payload");
    let before = folder.scan();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let now = SystemTime::now() + Duration::from_secs(3600);
    folder.scanner.survey(now).unwrap();
    assert_eq!(folder.scanner.catalogue(), before);
    assert!(folder.scanner.read_next(|| now));
    assert_eq!(folder.scanner.catalogue(), before);
    assert!(!folder.scanner.read_next(|| now));

    // A change that hides behind its old time is found by reading.
    write_behind_its_time(&path);
    assert!(offered(&folder.scan()).is_empty());
}

#[test]
fn a_suspect_is_read_again_though_nothing_tells_of_a_change() {
    let mut folder = Folder::new();
    folder.put("update-1.2.3.payload", FULL);
    let path = folder.path("update-1.2.3.payload");
    let before = folder.scan();
    let now = SystemTime::now() + Duration::from_secs(3600);
    folder.scanner.suspects().add(&path);
    folder.scanner.suspects().add(&folder.path("unknown"));
    folder.scanner.survey(now).unwrap();
    assert_eq!(folder.scanner.catalogue(), before);
    // After the look, for only a rotting disk could do it unseen before.
    write_behind_its_time(&path);
    assert!(folder.scanner.read_next(|| now));
    let catalogue = folder.scanner.catalogue();
    assert!(catalogue.artifacts.is_empty());
    let reason = reason(&catalogue, "update-1.2.3.payload");
    assert!(reason.starts_with("operation "), "{reason}");

    // The suspicion is over with that.
    fs::write(&path, FULL).unwrap();
    assert_eq!(folder.scan().artifacts.len(), 1);
    folder.scanner.survey(now).unwrap();
    assert!(!folder.scanner.read_next(|| now));
}

/// Changes a byte of the file, which is a copy of [`FULL`], and sets its time back.
fn write_behind_its_time(path: &Path) {
    let modified = path.metadata().unwrap().modified().unwrap();
    let mut content = FULL.to_vec();
    content[FULL.len() / 2] ^= 1;
    fs::write(path, &content).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(modified).unwrap();
}

#[test]
fn a_scan_that_is_told_to_stop_reads_no_further() {
    let mut folder = Folder::new();
    folder.put("update-1.2.3.payload", FULL);
    folder.scanner.stop().store(true, Ordering::Relaxed);
    let catalogue = folder.scan();
    assert_eq!(
        reason(&catalogue, "update-1.2.3.payload"),
        "it is being read"
    );
}

/// Something is at `path` meanwhile that is neither gone nor can be looked at.
fn while_blocked(path: &Path, test: impl FnOnce()) {
    let aside = tempfile::tempdir_in("/tmp").unwrap();
    let aside = aside.path().join("aside");
    fs::rename(path, &aside).unwrap();
    symlink(path.file_name().unwrap(), path).unwrap();
    test();
    fs::remove_file(path).unwrap();
    fs::rename(&aside, path).unwrap();
}

#[test]
fn what_cannot_be_looked_at_for_a_moment_stays_on_offer() {
    let mut folder = Folder::new();
    let root = folder.path("top");
    folder.put("top/stable/amd64-usr/update-1.2.3.payload", FULL);
    folder.put("top/beta-1.2.4.payload", SIGNED);
    folder.put("top/beta-1.2.4.payload.json", br#"{"track": "beta"}"#);
    folder.scanner = Scanner::new(&root, Defaults::default()).unwrap();
    let all = folder.scan();
    assert_eq!(all.artifacts.len(), 2);

    for blocked in [
        "stable",
        "stable/amd64-usr/update-1.2.3.payload",
        "beta-1.2.4.payload",
    ] {
        while_blocked(&root.join(blocked), || {
            let catalogue = folder.scan();
            assert_eq!(catalogue.artifacts, all.artifacts, "{blocked}");
            let reason = reason(&catalogue, blocked);
            assert!(reason.contains("Too many levels"), "{reason}");
            assert!(reason.ends_with("what was known of it stays as it was"));
        });
        assert_eq!(folder.scan(), all);
    }
    while_blocked(&root.join("beta-1.2.4.payload.json"), || {
        assert_eq!(folder.scan().artifacts, all.artifacts);
    });
    assert_eq!(folder.scan(), all);
    while_blocked(&root, || {
        let error = folder.scanner.survey(SystemTime::now()).unwrap_err();
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("Too many levels"), "{cause}");
        assert_eq!(folder.scanner.catalogue(), all);
    });

    // What is gone is gone.
    fs::rename(root.join("stable"), folder.path("hidden")).unwrap();
    assert_eq!(offered(&folder.scan()), [("beta-1.2.4.payload", "1.2.4")]);
    fs::rename(&root, folder.path("gone")).unwrap();
    assert!(folder.scanner.survey(SystemTime::now()).is_err());
    assert_eq!(folder.scanner.catalogue(), Catalogue::default());
}

/// Runs `scan` as somebody who may look at everything in `folder` and open only what
/// its mode lets everybody open; root could open all.
fn as_nobody<T>(folder: &Path, scan: impl FnOnce() -> T) -> T {
    /// Counts for this thread alone.
    struct Restored(Uid);
    impl Drop for Restored {
        fn drop(&mut self) {
            setfsuid(self.0);
        }
    }
    fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    let _restored = geteuid()
        .is_root()
        .then(|| Restored(setfsuid(Uid::from_raw(65534))));
    scan()
}

/// Moves a file that nobody may open to `path`.
fn replace_with_closed(path: &Path, content: &[u8]) {
    let closed = path.with_file_name(".closed");
    fs::write(&closed, content).unwrap();
    fs::set_permissions(&closed, Permissions::from_mode(0o000)).unwrap();
    fs::rename(&closed, path).unwrap();
}

fn open_again(path: &Path) {
    fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
}

#[test]
fn what_is_replaced_by_something_closed_is_not_offered_until_it_can_be_read() {
    let mut folder = Folder::new();
    let (payload, sidecar) = ("update-1.2.3.payload", "update-1.2.3.payload.json");
    let root = folder.folder.path().to_owned();
    folder.put(payload, FULL);
    assert_eq!(offered(&folder.scan()), [(payload, "1.2.3")]);

    replace_with_closed(&folder.path(payload), SIGNED);
    for _ in 0..2 {
        let catalogue = as_nobody(&root, || folder.scan());
        assert!(offered(&catalogue).is_empty());
        let reason = reason(&catalogue, payload);
        assert!(
            reason.starts_with("it cannot be read: Permission"),
            "{reason}"
        );
        assert!(!reason.contains("as it was"), "{reason}");
    }
    open_again(&folder.path(payload));
    let signed = u64::try_from(SIGNED.len()).unwrap();
    assert_eq!(folder.scan().artifacts[0].size, signed);

    // With the labels of before it might go to more machines than it should now.
    for before in [None, Some(&b"{}"[..])] {
        if let Some(before) = before {
            folder.put(sidecar, before);
        }
        assert_eq!(folder.scan().artifacts.len(), 1);
        replace_with_closed(&folder.path(sidecar), br#"{"track": "beta"}"#);
        for _ in 0..2 {
            let catalogue = as_nobody(&root, || folder.scan());
            assert!(offered(&catalogue).is_empty());
            let why = reason(&catalogue, payload);
            assert!(why.contains(".json: cannot be read: Permission"), "{why}");
            assert!(reason(&catalogue, sidecar).contains("cannot be read"));
        }
        open_again(&folder.path(sidecar));
        let catalogue = folder.scan();
        assert_eq!(catalogue.artifacts[0].labels.track.as_deref(), Some("beta"));
        assert!(catalogue.left_out.is_empty(), "{:?}", catalogue.left_out);
        fs::remove_file(folder.path(sidecar)).unwrap();
    }
}

#[test]
fn a_sidecar_that_is_no_file_here_keeps_its_payload_back() {
    let mut folder = Folder::new();
    let outside = tempfile::NamedTempFile::new().unwrap();
    folder.put("update-1.2.3.payload", FULL);
    let path = folder.path("update-1.2.3.payload.json");
    let make: [&dyn Fn(); 4] = [
        &|| fs::create_dir(&path).unwrap(),
        &|| mkfifo(&path, Mode::S_IRUSR).unwrap(),
        &|| symlink(outside.path(), &path).unwrap(),
        &|| symlink("nowhere", &path).unwrap(),
    ];
    for make in make {
        assert_eq!(folder.scan().artifacts.len(), 1);
        make();
        let catalogue = folder.scan();
        let why = reason(&catalogue, "update-1.2.3.payload");
        assert!(
            why.ends_with(".json: is no file in the payload folder"),
            "{why}"
        );
        let _ = fs::remove_dir(&path).or_else(|_| fs::remove_file(&path));
    }
}

#[test]
fn a_file_that_fails_again_and_again_holds_up_no_other() {
    let mut folder = Folder::new();
    let root = folder.folder.path().to_owned();
    folder.put("known-1.2.3.payload", FULL);
    folder.scan();
    write_behind_its_time(&folder.path("known-1.2.3.payload"));
    replace_with_closed(&folder.path("failing-1.2.4.payload"), FULL);
    folder.put("new-1.2.5.payload", FULL);

    let time = Cell::new(SystemTime::now() + Duration::from_secs(3600));
    // Each reading takes longer than the wait for the next one.
    let asked = Cell::new(0);
    let clock = || {
        asked.set(asked.get() + 1);
        if asked.get() % 2 == 0 {
            time.set(time.get() + 2 * SETTLED);
        }
        time.get()
    };
    as_nobody(&root, || {
        folder.scanner.survey(time.get()).unwrap();
        time.set(time.get() + SETTLED);
        assert!(folder.scanner.read_next(clock));
        assert_eq!(offered(&folder.scanner.catalogue()).len(), 2);
        assert!(folder.scanner.read_next(clock));
        let catalogue = folder.scanner.catalogue();
        assert_eq!(offered(&catalogue), [("new-1.2.5.payload", "1.2.5")]);
        assert!(folder.scanner.read_next(clock));
        assert!(
            !folder.scanner.read_next(clock),
            "it waits before it is tried again"
        );
    });
}

#[test]
fn the_longer_a_file_cannot_be_read_the_longer_it_is_let_alone() {
    let mut folder = Folder::new();
    let root = folder.folder.path().to_owned();
    let path = folder.path("update-1.2.3.payload");
    replace_with_closed(&path, FULL);
    let mut now = SystemTime::now() + Duration::from_secs(3600);
    let scanner = &mut folder.scanner;
    as_nobody(&root, || {
        scanner.survey(now).unwrap();
        for wait in (0..12).map(|n| LONGEST_WAIT.min(SETTLED * 2_u32.pow(n))) {
            assert!(!scanner.read_next(|| now + wait / 2), "before {wait:?}");
            now += wait;
            // A look changes nothing about it.
            scanner.survey(now).unwrap();
            assert!(scanner.read_next(|| now), "after {wait:?}");
        }
        assert!(!scanner.read_next(|| now + LONGEST_WAIT / 2));
        // A clock that was set back does not make it longer.
        now -= 2 * LONGEST_WAIT;
        assert!(scanner.read_next(|| now));
        assert!(!scanner.read_next(|| now));
    });
    // Whoever does something about it need not wait.
    open_again(&path);
    scanner.survey(now).unwrap();
    assert!(scanner.read_next(|| now));
    assert_eq!(offered(&folder.scanner.catalogue()).len(), 1);
    // Nor is the next failure the last of many.
    replace_with_closed(&path, SIGNED);
    as_nobody(&root, || {
        folder.scanner.survey(now).unwrap();
        assert!(folder.scanner.read_next(|| now + SETTLED));
    });
}

#[test]
fn a_suspect_that_cannot_be_read_is_not_offered() {
    let mut folder = Folder::new();
    let root = folder.folder.path().to_owned();
    folder.put("update-1.2.3.payload", FULL);
    let path = folder.path("update-1.2.3.payload");
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    let before = folder.scan();
    if geteuid().is_root() {
        let now = SystemTime::now() + Duration::from_secs(3600);
        folder.scanner.suspects().add(&path);
        // Who looks is another one, as if its disk did not give it any more.
        let catalogue = as_nobody(&root, || folder.scan_at(now));
        assert!(catalogue.artifacts.is_empty());
        let reason = reason(&catalogue, "update-1.2.3.payload");
        assert!(reason.starts_with("it cannot be read: "), "{reason}");
        assert_eq!(folder.scan_at(now + SETTLED), before);
    }
}

#[test]
fn a_sidecar_that_is_the_same_but_cannot_be_opened_counts_and_is_told() {
    let mut folder = Folder::new();
    let (payload, sidecar) = ("update-1.2.3.payload", "update-1.2.3.payload.json");
    let root = folder.folder.path().to_owned();
    folder.put(payload, FULL);
    folder.put(sidecar, br#"{"track": "beta"}"#);
    // Its mode is what it was; who looks is another one.
    fs::set_permissions(folder.path(sidecar), Permissions::from_mode(0o600)).unwrap();
    let before = folder.scan();
    if geteuid().is_root() {
        let catalogue = as_nobody(&root, || folder.scan());
        assert_eq!(catalogue.artifacts, before.artifacts);
        let reason = reason(&catalogue, sidecar);
        assert!(reason.ends_with("stays as it was"), "{reason}");
    }
    assert_eq!(folder.scan(), before);
}

#[test]
fn an_app_stays_known_while_its_payloads_are_away_or_kept_back() {
    let mut folder = Folder::new();
    let sidecar = |id: &str| format!(r#"{{"app_id": "{id}"}}"#);
    folder.put("a-1.2.3.payload", FULL);
    folder.put("a-1.2.3.payload.json", sidecar("io.example.A").as_bytes());
    folder.put("b-1.2.3.payload", &FULL[..FULL.len() / 2]);
    folder.put("b-1.2.3.payload.json", sidecar("io.example.B").as_bytes());
    folder.scan();
    fs::remove_file(folder.path("a-1.2.3.payload")).unwrap();
    let catalogue = folder.scan();
    assert!(catalogue.artifacts.is_empty());
    for (id, known) in [
        ("io.example.A", true),
        ("io.example.B", true),
        ("io.example.C", false),
        (OS_APP_ID, true),
    ] {
        assert_eq!(catalogue.knows_app(id), known, "{id}");
    }
}

#[test]
fn a_file_that_goes_or_changes_is_noticed() {
    let mut folder = Folder::new();
    folder.put("update-1.2.3.payload", FULL);
    let before = folder.scan().artifacts.remove(0);
    assert_eq!(
        folder.scan().artifacts,
        std::slice::from_ref(&before),
        "nothing has changed"
    );
    folder.put("update-1.2.3.payload", SIGNED);
    let after = folder.scan().artifacts.remove(0);
    assert_ne!(before.sha256, after.sha256);
    fs::remove_file(folder.path("update-1.2.3.payload")).unwrap();
    assert_eq!(folder.scan(), Catalogue::default());
}

#[test]
fn a_delta_needs_a_sidecar_that_says_over_what() {
    let mut folder = Folder::new();
    folder.put("update-4152.10.0.payload", DELTA);
    let catalogue = folder.scan();
    assert!(offered(&catalogue).is_empty());
    assert!(reason(&catalogue, "update-4152.10.0.payload").contains("from_version"));
    folder.put(
        "update-4152.10.0.payload.json",
        br#"{"from_version": "4152.2.0"}"#,
    );
    let catalogue = folder.scan();
    let delta = &catalogue.artifacts[0];
    assert!(delta.is_delta);
    assert_eq!(delta.labels.from_version, Some("4152.2.0".parse().unwrap()));
    assert_eq!(delta.labels.version, "4152.10.0".parse().unwrap());
}

/// A delta of version 2 as the `payload` command makes it, with a fact about its release.
fn delta_v2(encoders: &[&str]) -> (Vec<u8>, [u8; 32]) {
    use payload::make::delta::Delta;
    use payload::make::{Parts, Profile, Scratch};
    let image = |fill: u8| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[[1; 4096], [fill; 4096]].concat()).unwrap();
        file
    };
    let mut scratch = Scratch::new(std::io::Cursor::new(Vec::new()));
    let delta = Delta {
        what: "image",
        old: Some(&image(2)),
        new: &image(3),
        encoders: &payload::recompress::Encoders::carried(),
        profile: Profile::V2,
        threads: std::num::NonZeroUsize::MIN,
    };
    let (part, _) = delta
        .part(&mut scratch, &mut Vec::new(), &mut |_| {})
        .unwrap();
    let source = part.old.unwrap().sha256;
    let parts = Parts {
        partition: Some(part),
        encoders: encoders.iter().map(|&name| name.to_owned()).collect(),
        release: Some(payload::Release {
            version: Some("4152.10.0".to_owned()),
            board: Some("amd64-usr".to_owned()),
            min_source_version: Some("4152.2.0".to_owned()),
            expires: Some(1_800_000_000),
            ..payload::Release::default()
        }),
        ..Parts::default()
    };
    let mut payload = Vec::new();
    let mut draft = parts.draft(Profile::V2, scratch).unwrap();
    draft.sign(&[], &mut payload).unwrap();
    (payload, source)
}

#[test]
fn a_delta_of_version_2_says_itself_what_it_needs() {
    let mut folder = Folder::new();
    let (delta, source) = delta_v2(&["zstd/1.5.4/level=19", "zstd/1.5.4/level=3"]);
    folder.put("u.payload", &delta);
    let catalogue = folder.scan();
    assert!(catalogue.left_out.is_empty(), "{:?}", catalogue.left_out);
    let artifact = &catalogue.artifacts[0];
    assert!(artifact.is_delta);
    assert_eq!(artifact.format, payload::Format::V2);
    assert_eq!(artifact.source_sha256, Some(source));
    assert_eq!(artifact.encoders, ["zstd/1.5.4"]);
    assert_eq!(artifact.labels.version.as_str(), "4152.10.0");
    assert_eq!(artifact.labels.board.as_deref(), Some("amd64-usr"));
    let hash: String = source.iter().map(|byte| format!("{byte:02x}")).collect();
    let facts = "v2, needs zstd/1.5.4, over 4152.2.0 or newer, expires 2027-01-15T08:00:00Z";
    let kind = format!("delta from image {}, {facts}", &hash[..12]);
    assert_eq!(artifact.kind(), kind);
    assert!(catalogue.table(folder.scanner.folder()).contains(&kind));
    let json = &catalogue.json()["artifacts"][0];
    assert_eq!(json["source_sha256"], hash);
    assert_eq!(json["min_source_version"], "4152.2.0");
    assert_eq!(json["expires"], 1_800_000_000);

    folder.put("u.payload.json", br#"{"from_version": "4152.2.0"}"#);
    let kind = folder.scan().artifacts[0].kind();
    assert_eq!(kind, format!("delta from 4152.2.0, {facts}"));

    folder.put("u.payload.json", br#"{"version": "4152.11.0"}"#);
    let catalogue = folder.scan();
    assert!(reason(&catalogue, "u.payload").contains("its signed manifest as `4152.10.0`"));
}

#[test]
fn a_broken_sidecar_keeps_its_payload_back() {
    let mut folder = Folder::new();
    folder.put("update-1.2.3.payload", FULL);
    for (sidecar, expected) in [
        ("", "EOF"),
        ("{", "EOF"),
        ("[]", "invalid"),
        (
            r#"{"from-version": "1.0.0"}"#,
            "unknown field `from-version`",
        ),
        (r#"{"version": "latest"}"#, "`latest`"),
        (
            &format!("{{}}{}", " ".repeat(100_000)),
            "longer than 65536 bytes",
        ),
    ] {
        folder.put("update-1.2.3.payload.json", sidecar.as_bytes());
        let catalogue = folder.scan();
        assert!(offered(&catalogue).is_empty(), "{sidecar}");
        let reason = reason(&catalogue, "update-1.2.3.payload");
        assert!(reason.contains(expected), "{reason}");
        assert!(reason.contains("update-1.2.3.payload.json"), "{reason}");
    }
    folder.put("update-1.2.3.payload.json", br#"{"track": "beta"}"#);
    let catalogue = folder.scan();
    assert_eq!(catalogue.artifacts[0].labels.track.as_deref(), Some("beta"));
}

#[test]
fn links_out_of_the_folder_are_not_followed() {
    let outside = tempfile::tempdir().unwrap();
    fs::write(outside.path().join("secret-1.2.3.payload"), FULL).unwrap();
    let mut folder = Folder::new();
    symlink(outside.path(), folder.path("folder")).unwrap();
    symlink(
        outside.path().join("secret-1.2.3.payload"),
        folder.path("file-1.2.3.payload"),
    )
    .unwrap();
    symlink("/nowhere", folder.path("dangling")).unwrap();
    symlink(".", folder.path("circle")).unwrap();
    folder.put("data/update-1.2.3.payload", FULL);
    symlink(
        "data/update-1.2.3.payload",
        folder.path("inside-1.2.3.payload"),
    )
    .unwrap();
    let catalogue = folder.scan();
    for artifact in &catalogue.artifacts {
        let real = artifact.path.canonicalize().unwrap();
        assert!(
            real.starts_with(folder.folder.path().canonicalize().unwrap()),
            "{real:?}"
        );
    }
    assert!(offered(&catalogue).contains(&("inside-1.2.3.payload", "1.2.3")));
    for name in ["folder", "file-1.2.3.payload"] {
        assert_eq!(
            reason(&catalogue, name),
            "it is a link out of the payload folder"
        );
    }
}

#[test]
fn a_missing_folder_is_an_error_with_its_name() {
    let error = Scanner::new(Path::new("/nowhere/payloads"), Defaults::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "cannot read the payload folder /nowhere/payloads"
    );
    assert!(std::error::Error::source(&error).is_some());
    let mut folder = Folder::new();
    fs::remove_dir(folder.folder.path()).unwrap();
    assert!(folder.scanner.scan(SystemTime::now()).is_err());
}

#[test]
fn the_table_and_the_json_tell_the_same() {
    let mut folder = Folder::new();
    folder.put("stable/update-1.2.3.payload", FULL);
    folder.put("unknown.payload", SIGNED);
    let catalogue = folder.scan();
    let table = catalogue.table(folder.scanner.folder());
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].starts_with("VERSION"), "{table}");
    let row: Vec<_> = lines[1].split_whitespace().collect();
    let artifact = &catalogue.artifacts[0];
    let size = FULL.len().to_string();
    let digest = artifact.sha256_hex();
    assert_eq!(
        row,
        [
            "1.2.3",
            "stable",
            "any",
            "full",
            &size,
            &digest[..12],
            "stable/update-1.2.3.payload"
        ]
    );
    assert!(
        lines[2].starts_with("not offered: unknown.payload: its version is unknown"),
        "{table}"
    );
    let json = catalogue.json();
    assert_eq!(json["artifacts"][0]["version"], "1.2.3");
    assert_eq!(json["artifacts"][0]["sha256"], digest);
    assert_eq!(json["artifacts"][0]["board"], serde_json::Value::Null);
    assert!(
        json["left_out"][0]["path"]
            .as_str()
            .unwrap()
            .ends_with("unknown.payload")
    );
}
