//! The transcripts.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use crate::server::Server;
use crate::transcript::Session;

/// A folder with the files of a machine.
fn machine() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("etc")).unwrap();
    let id = "0123456789abcdef0123456789abcdef\n";
    std::fs::write(root.path().join("etc/machine-id"), id).unwrap();
    root
}

fn session(root: &Path) -> Session {
    Session::new().word(root.to_str().unwrap(), "{ROOT}")
}

fn in_file(root: &Path) -> Session {
    let store = format!("file:{}", root.join("lock").display());
    session(root).variable("LOCKSMITHCTL_STORE", store)
}

fn in_etcd(root: &Path, etcd: &Server, api: &str) -> Session {
    session(root)
        .variable("LOCKSMITHCTL_API", api)
        .variable("LOCKSMITHCTL_ENDPOINT", etcd.endpoint(0))
}

#[test]
fn a_file_answers_like_the_original() {
    let root = machine();
    in_file(root.path()).play("original.txt");
}

#[test]
fn etcd_v3_answers_like_the_original() {
    let (root, etcd) = (machine(), Server::start());
    in_etcd(root.path(), &etcd, "v3").play("original.txt");
}

#[test]
fn etcd_v2_answers_like_the_original() {
    let (root, etcd) = (machine(), Server::start());
    in_etcd(root.path(), &etcd, "v2").play("original.txt");
}

#[test]
fn a_file_is_steered() {
    let root = machine();
    with_operator(in_file(root.path())).play("steering.txt");
}

#[test]
fn etcd_v3_is_steered() {
    let (root, etcd) = (machine(), Server::start());
    with_operator(in_etcd(root.path(), &etcd, "v3")).play("steering.txt");
}

#[test]
fn a_fleet_moves_from_v2_to_v3() {
    let (root, etcd) = (machine(), Server::start());
    in_etcd(root.path(), &etcd, "auto").play("migrate.txt");
}

/// One that also has a lock on v3, from before anybody noticed.
#[test]
fn a_fleet_of_the_original_is_met_on_v2() {
    let (root, etcd) = (machine(), Server::start());
    in_etcd(root.path(), &etcd, "auto").play("auto.txt");
}

#[test]
fn mistakes_in_files_are_told() {
    let root = machine();
    let folder = root.path().join("etc/locksmith");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("locksmith.toml"), "\nstrategy = 'etcd'\n").unwrap();
    in_file(root.path())
        .variable("LOCKSMITHCTL_ROOT", root.path().to_str().unwrap())
        .play("config.txt");
}

#[test]
fn the_grammar_is_gos() {
    let bare = Session::new();
    let dump = bare.run(&["-help"]).stderr;
    let dump = String::from_utf8(dump).unwrap();
    assert!(dump.starts_with("Usage of locksmithctl:\n  -api string\n"));
    let dump: Vec<_> = dump.lines().map(|line| format!("2> {line}")).collect();
    bare.word(dump.join("\n"), "{HELP}")
        .word(env!("CARGO_PKG_VERSION"), "{VERSION}")
        .play("usage.txt");
}

/// The daemon is the same program by another name.
#[test]
fn the_daemon_explains_itself_and_refuses_a_mistyped_server() {
    let folder = tempfile::tempdir().unwrap();
    let daemon = folder.path().join("locksmithd");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_locksmithctl"), &daemon).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(&daemon);
        let output = command.args(arguments).env_clear().output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        (output.status.code(), text)
    };
    let (code, help) = run(&["--help"]);
    assert_eq!(code, Some(0));
    assert!(help.starts_with("Usage of locksmithd:\n"), "{help}");
    assert!(help.contains("locksmithd serve-fleetlock"), "{help}");
    let (code, help) = run(&["serve-fleetlock", "-help"]);
    assert_eq!(code, Some(0));
    assert!(help.contains("-listen"), "{help}");

    let (code, told) = run(&["serve-fleetlok"]);
    assert!(
        code != Some(0) && told.contains("locksmithd serve-fleetlock"),
        "{told}"
    );
    // Other words are ignored, as ever.
    let root = folder.path().to_str().unwrap();
    let off = &["-root", root, "now"];
    std::fs::create_dir_all(folder.path().join("etc/locksmith")).unwrap();
    let file = folder.path().join("etc/locksmith/locksmith.toml");
    std::fs::write(&file, "strategy = 'off'\n").unwrap();
    let (code, told) = run(off);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("ignores \"now\""), "{told}");
    // So is what else is wrong with the settings of a machine that never reboots.
    std::fs::write(&file, "strategy = 'off'\nqueue_rank = -1\n").unwrap();
    let (code, told) = run(off);
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("queue_rank"), "{told}");
    let held = folder.path().join("var/lib/locksmith/held");
    std::fs::create_dir_all(held.parent().unwrap()).unwrap();
    std::fs::write(held, "").unwrap();
    assert_eq!(run(off).0, Some(1));
}

#[test]
fn nobody_there() {
    let root = machine();
    let (first, second) = (free_port(), free_port());
    let endpoints = format!("http://127.0.0.1:{first},http://127.0.0.1:{second}");
    session(root.path())
        .variable("LOCKSMITHCTL_ENDPOINT", endpoints.clone())
        .word(endpoints, "{ENDPOINTS}")
        .play("nobody.txt");
}

/// Who the program says did something, and how many seconds ago.
fn with_operator(mut session: Session) -> Session {
    for seconds in 0..10 {
        session = session.word(format!("{seconds}s"), "{AGE}");
    }
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::current());
    let host = nix::unistd::gethostname().unwrap();
    let user = user.unwrap().unwrap().name;
    session.word(format!("{user}@{}", host.to_str().unwrap()), "{OPERATOR}")
}

/// A port on which nobody listens, as of a moment ago.
fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}
