//! What has to hold before a boot counts as good, and what becomes of one that does not
//! get there.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use system_tests::deadline::poll_until;
use system_tests::disk::Slot;
use system_tests::fault_server::{Answer, Fault, FaultServer};
use system_tests::machine::Machine;
use system_tests::omaha::{events, no_update};
use system_tests::process::{Running, run};
use system_tests::programs::program;
use system_tests::release::{Recipe, Release};
use system_tests::service_manager::{BootComplete, ServiceManager};
use system_tests::update_server::{honest, offer};

const SLOT_SIZE: u64 = 4 << 20;
const LIMIT: Duration = Duration::from_secs(30);
const SECOND_BOOT: &str = "22222222-2222-4333-8444-555555555555";
const THIRD_BOOT: &str = "33333333-2222-4333-8444-555555555555";

fn version_of(slot: Slot) -> &'static str {
    match slot {
        Slot::A => "1.0.0",
        Slot::B => "2.0.0",
    }
}

fn release() -> Release {
    Release::make(Recipe {
        content_size: 1 << 20,
        ..Recipe::default()
    })
    .unwrap()
}

fn server_of(release: &Release) -> FaultServer {
    offer(release, honest, |payload, _| {
        Answer::File(payload.clone(), Fault::None)
    })
    .unwrap()
}

/// A machine on which the update is applied and waits for the reboot, with no daemon.
fn installed_from(server: &FaultServer) -> Machine {
    let machine = Machine::new(SLOT_SIZE, &server.url("/v1/update/"), "ed25519").unwrap();
    let daemon = machine.start_daemon().unwrap();
    machine.client(&["-update"]).unwrap().success().unwrap();
    drop(daemon);
    machine
}

/// A machine in its first boot of the new version, in slot B, with its daemon not yet
/// started.
fn updated_from(server: &FaultServer) -> Machine {
    let machine = installed_from(server);
    assert_eq!(machine.reboot(SECOND_BOOT, version_of).unwrap(), Slot::B);
    machine
}

/// The same with settings.
fn in_the_new_version(settings: &str) -> Machine {
    let server = server_of(&release());
    let machine = updated_from(&server);
    let settings = format!("FIRST_CHECK_DELAY=1d\nHEALTH_DELAY=0s\nHEALTH_TIMEOUT=1s\n{settings}");
    machine
        .write("etc/update-engine/update.conf", &settings)
        .unwrap();
    machine
}

/// As systemd shows that it runs the machine.
fn run_by_systemd(machine: &Machine, target: BootComplete) -> ServiceManager {
    fs::create_dir_all(machine.path("run/systemd/system")).unwrap();
    ServiceManager::start(machine.bus_address(), target).unwrap()
}

fn attributes(machine: &Machine) -> String {
    machine.disk.attributes(Slot::B).unwrap().to_string()
}

fn wait_for_words(daemon: &Running, words: &str) {
    poll_until(words, LIMIT, || {
        Ok(daemon.stderr()?.contains(words).then_some(()))
    })
    .unwrap();
}

fn wait_until_marked(machine: &Machine) {
    poll_until("marking the new slot successful", LIMIT, || {
        Ok((attributes(machine) == "2/0/1").then_some(()))
    })
    .unwrap();
}

#[test]
fn a_boot_is_good_when_systemd_completes_it_or_knows_no_such_target() {
    let started: &[&str] = &["StartUnit boot-complete.target fail"];
    for (target, asked) in [
        (BootComplete::Idle, started),
        (BootComplete::Reached, &[]),
        (BootComplete::Masked, &[]),
        (BootComplete::Missing, &[]),
    ] {
        let machine = in_the_new_version("");
        let systemd = run_by_systemd(&machine, target);
        let _daemon = machine.start_daemon_in(Slot::B).unwrap();
        wait_until_marked(&machine);
        assert_eq!(systemd.asked(), asked, "{target:?}");
    }
}

#[test]
fn a_boot_that_is_never_good_reboots_and_the_old_version_comes_back() {
    for (target, why) in [
        (BootComplete::Failing, "a unit that it requires failed"),
        (BootComplete::Hanging, "not reached within 1s"),
    ] {
        let machine = in_the_new_version("HEALTH_DEADLINE=2s\n");
        let systemd = run_by_systemd(&machine, target);
        let daemon = machine.start_daemon_in(Slot::B).unwrap();
        poll_until("reboot", LIMIT, || {
            let rebooted = systemd.asked().contains(&"Reboot false".to_owned());
            Ok(rebooted.then_some(()))
        })
        .unwrap_or_else(|error| panic!("{target:?}: {error}: {}", daemon.stderr().unwrap()));
        wait_for_words(&daemon, why);
        assert_eq!(attributes(&machine), "2/0/0", "{target:?}");
        drop(daemon);
        assert_eq!(machine.reboot(THIRD_BOOT, version_of).unwrap(), Slot::A);
    }
}

#[test]
fn without_systemd_the_health_checks_alone_decide_and_sbin_reboot_is_run() {
    let machine = in_the_new_version("HEALTH_DEADLINE=2s\n");
    let script = |path: &str, text: &str| {
        machine
            .write(path, &format!("#!/bin/sh\n{text}\n"))
            .unwrap();
        fs::set_permissions(machine.path(path), fs::Permissions::from_mode(0o755)).unwrap();
    };
    script(
        "etc/update-engine/health.d/10-bad",
        "echo no network; exit 1",
    );
    let mark = machine.path("rebooted");
    script("sbin/reboot", &format!("echo now >>{}", mark.display()));
    let daemon = machine.start_daemon_in(Slot::B).unwrap();
    poll_until("reboot", LIMIT, || Ok(mark.exists().then_some(()))).unwrap();
    wait_for_words(&daemon, "10-bad: ended with status 1: no network");
    assert_eq!(attributes(&machine), "2/0/0");
}

#[test]
fn a_machine_with_no_other_way_and_one_that_was_good_before_are_not_rebooted() {
    let machine = in_the_new_version("HEALTH_DEADLINE=1s\n");
    let systemd = run_by_systemd(&machine, BootComplete::Failing);
    let mut gptprio = program("gptprio").unwrap();
    gptprio
        .arg("mark-unbootable")
        .arg(machine.disk.path())
        .arg("USR-A");
    run(&mut gptprio, LIMIT).unwrap().success().unwrap();
    let daemon = machine.start_daemon_in(Slot::B).unwrap();
    wait_for_words(&daemon, "no other slot could take over: not rebooting");
    drop(daemon);
    assert!(!systemd.asked().contains(&"Reboot false".to_owned()));

    // Slot A runs, is marked successful, and is not well today.
    let machine = Machine::new(SLOT_SIZE, "http://127.0.0.1:1/", "ed25519").unwrap();
    machine
        .write(
            "etc/update-engine/update.conf",
            "FIRST_CHECK_DELAY=1d\nHEALTH_DELAY=0s\nHEALTH_DEADLINE=1s\n",
        )
        .unwrap();
    let systemd = run_by_systemd(&machine, BootComplete::Failing);
    let daemon = machine.start_daemon().unwrap();
    wait_for_words(&daemon, "not rebooting");
    assert!(!systemd.asked().contains(&"Reboot false".to_owned()));
}

#[test]
fn a_reboot_that_led_to_the_same_system_again_is_not_repeated() {
    let machine = in_the_new_version("HEALTH_DEADLINE=1s\n");
    let systemd = run_by_systemd(&machine, BootComplete::Failing);
    let reboots = || {
        let asked = systemd.asked();
        asked
            .iter()
            .filter(|asked| *asked == "Reboot false")
            .count()
    };
    let daemon = machine.start_daemon_in(Slot::B).unwrap();
    poll_until("reboot", LIMIT, || Ok((reboots() == 1).then_some(()))).unwrap();
    drop(daemon);

    machine.reboot_unselected(THIRD_BOOT).unwrap();
    fs::create_dir_all(machine.path("run/systemd/system")).unwrap();
    let daemon = machine.start_daemon_in(Slot::B).unwrap();
    wait_for_words(&daemon, "led here again without a try less: not rebooting");
    assert_eq!(reboots(), 1);
}

#[test]
fn a_soft_reboot_into_the_update_is_a_boot_unless_the_kernel_changes() {
    let server = server_of(&release());
    let machine = installed_from(&server);
    let settings = "FIRST_CHECK_DELAY=1d\nHEALTH_DELAY=0s\n";
    machine
        .write("etc/update-engine/update.conf", settings)
        .unwrap();
    let marker = machine.path("var/run/update_engine_autoupdate_completed");
    assert!(marker.exists());

    // The update waits for a boot, whatever starts the daemon anew.
    let daemon = machine.start_daemon_in(Slot::A).unwrap();
    let status = machine.client(&["-status"]).unwrap().success().unwrap();
    assert!(status.contains("UPDATED_NEED_REBOOT"), "{status}");
    assert_eq!(attributes(&machine), "2/1/0");
    drop(daemon);

    machine.soft_reboot("2.0.0").unwrap();
    let daemon = machine.start_daemon_in(Slot::B).unwrap();
    wait_for_words(
        &daemon,
        "the update has another kernel, which does not run yet",
    );
    drop(daemon);
    assert_eq!(attributes(&machine), "2/1/0");

    let [old, new] = ["vmlinuz-a", "vmlinuz-b"].map(|name| machine.path("boot/flatcar").join(name));
    fs::copy(new, old).unwrap();
    let _daemon = machine.start_daemon_in(Slot::B).unwrap();
    wait_until_marked(&machine);
    let status = machine.client(&["-status"]).unwrap().success().unwrap();
    assert!(status.contains("UPDATE_STATUS_IDLE"), "{status}");
    assert!(!marker.exists());
    machine.client(&["-update"]).unwrap();
    let heard = events(&server.exchanges()).unwrap();
    let last = heard.last().unwrap();
    assert_eq!(last.previous_version.as_deref(), Some("1.0.0"));
}

#[test]
fn a_typing_error_elsewhere_leaves_the_health_settings_as_they_are() {
    let machine = in_the_new_version("HEALTH_DEADLINE=0\nVERSION_PIN=latest\n");
    let systemd = run_by_systemd(&machine, BootComplete::Failing);
    let daemon = machine.start_daemon_in(Slot::B).unwrap();
    wait_for_words(&daemon, "nothing is installed until it is mended");
    wait_for_words(&daemon, "not marked successful yet");
    drop(daemon);

    fs::remove_dir_all(machine.path("run/systemd")).unwrap();
    drop(systemd);
    let _daemon = machine.start_daemon_in(Slot::B).unwrap();
    wait_until_marked(&machine);
}

/// The first check comes before the deadline, so the server hears of the new version while
/// that is still on trial.
#[test]
fn a_version_that_reported_itself_and_never_got_healthy_is_quarantined() {
    let server = server_of(&release());
    let machine = updated_from(&server);
    let _systemd = run_by_systemd(&machine, BootComplete::Failing);
    let daemon = machine.start_daemon_in(Slot::B).unwrap();
    machine.client(&["-update"]).unwrap();
    let heard = events(&server.exchanges()).unwrap();
    let last = heard.last().unwrap();
    assert_eq!(last.previous_version.as_deref(), Some("1.0.0"));
    drop(daemon);

    assert_eq!(machine.reboot(THIRD_BOOT, version_of).unwrap(), Slot::A);
    let _daemon = machine.start_daemon().unwrap();
    let refused = machine.client(&["-follow"]).unwrap();
    assert!(refused.stderr.contains("rolled back"), "{}", refused.stderr);
    let quarantined = machine.path("var/lib/update_engine/prefs/quarantined-versions");
    assert_eq!(fs::read_to_string(quarantined).unwrap(), "2.0.0");
    machine.still_boots_the_old_image().unwrap();
}

#[test]
fn the_service_manager_hears_that_the_loop_lives_until_it_stands_still() {
    let machine = Machine::new(SLOT_SIZE, "http://127.0.0.1:1/", "ed25519").unwrap();
    let path = machine.path("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(LIMIT)).unwrap();
    let notify = [
        ("NOTIFY_SOCKET", path.to_str().unwrap()),
        ("WATCHDOG_USEC", "300000"),
    ];
    let mut daemon = machine.start_daemon_with(Slot::A, &notify).unwrap();
    let mut message = [0; 64];
    for _ in 0..5 {
        let length = socket.recv(&mut message).unwrap();
        assert_eq!(&message[..length], b"WATCHDOG=1\n");
    }
    daemon.terminate().unwrap();
    // What was still on its way, then silence.
    socket
        .set_read_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    while socket.recv(&mut message).is_ok() {}

    let _daemon = machine.start_daemon_with(Slot::A, &notify[..1]).unwrap();
    assert!(socket.recv(&mut message).is_err(), "nobody wants to hear");
}

/// The first report meets an error, the second is lost on its way back, the third arrives.
#[test]
fn a_rollback_is_reported_until_the_server_has_heard_it_and_then_never_again() {
    let release = release();
    let (payload, package) = (release.payload.clone(), release.offer("", "update.payload"));
    let reports = AtomicUsize::new(0);
    let server = FaultServer::start(move |request| {
        let question = String::from_utf8_lossy(&request.body);
        if request.method == "GET" {
            return Answer::File(payload.clone(), Fault::None);
        }
        if question.contains("errorcode=\"44\"") {
            return match reports.fetch_add(1, Ordering::Relaxed) {
                0 => Answer::Status(500),
                1 => Answer::File(vec![b' '; 100].into(), Fault::TruncateAt(10)),
                _ => Answer::Document(no_update().into_bytes()),
            };
        }
        let offered = question.contains("version=\"1.0.0\"") && question.contains("<updatecheck");
        if !offered {
            return Answer::Document(no_update().into_bytes());
        }
        let mut package = package.clone();
        package.codebase = format!("http://{}/files", request.host);
        Answer::Document(honest(package))
    })
    .unwrap();
    let machine = updated_from(&server);
    assert_eq!(machine.reboot(THIRD_BOOT, version_of).unwrap(), Slot::A);

    let count = || {
        let heard = events(&server.exchanges()).unwrap();
        let code = |event: &omaha_protocol::Event| event.error_code.map(|code| code.base());
        heard.iter().filter(|event| code(event) == Some(44)).count()
    };
    let checks = [1, 2, 3, 3, 3];
    for (number, expected) in checks.into_iter().enumerate() {
        // Every check is by another daemon: what is known must not be in its memory alone.
        let _daemon = machine.start_daemon_in(Slot::A).unwrap();
        machine.client(&["-update"]).unwrap();
        assert_eq!(count(), expected, "after check {}", number + 1);
    }
    let quarantined = machine.path("var/lib/update_engine/prefs/quarantined-versions");
    assert_eq!(fs::read_to_string(quarantined).unwrap(), "2.0.0");
    machine.still_boots_the_old_image().unwrap();
}
