//! The main job: a signed payload becomes the running system, and a system that
//! does not come up gives way to the one before.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

use std::fs;
use std::time::Duration;

use anyhow::Result;
use omaha_protocol::{Event, InstallSource};
use system_tests::deadline::poll_until;
use system_tests::disk::Slot;
use system_tests::fault_server::{Answer, Exchange, Fault, FaultServer};
use system_tests::machine::Machine;
use system_tests::omaha::{events, requests};
use system_tests::process::{Running, run};
use system_tests::programs::{program, system_tool};
use system_tests::release::{Recipe, Release};
use system_tests::update_server::{honest, offer};

const SLOT_SIZE: u64 = 16 << 20;
const LIMIT: Duration = Duration::from_secs(30);
const SECOND_BOOT: &str = "22222222-2222-4333-8444-555555555555";
const THIRD_BOOT: &str = "33333333-2222-4333-8444-555555555555";

fn serve(release: &Release) -> FaultServer {
    offer(release, honest, |payload, _| {
        Answer::File(payload.clone(), Fault::None)
    })
    .unwrap()
}

/// A machine on which the update is applied and waits for the reboot, with no daemon.
fn installed_from(server: &FaultServer) -> Machine {
    let machine = Machine::new(SLOT_SIZE, &server.url("/v1/update/"), "ed25519").unwrap();
    let daemon = machine.start_daemon().unwrap();
    machine.client(&["-follow"]).unwrap().success().unwrap();
    drop(daemon);
    machine
}

/// The events in `exchanges` as `type/result`, with previous version or error code.
fn told(exchanges: &[Exchange]) -> Result<Vec<String>> {
    let words = |event: &Event| {
        let mut text = format!("{}/{}", event.event_type.number(), event.result.number());
        if let Some(version) = &event.previous_version {
            text.push_str(&format!(" from {version:?}"));
        }
        if let Some(code) = event.error_code {
            text.push_str(&format!(" code {}", code.base()));
        }
        text
    };
    Ok(events(exchanges)?.iter().map(words).collect())
}

fn version_of(slot: Slot) -> &'static str {
    match slot {
        Slot::A => "1.0.0",
        Slot::B => "2.0.0",
    }
}

/// The selector of the next boot finds everything that the kernel needs.
#[test]
fn a_hash_tree_that_the_machine_built_is_one_that_veritysetup_accepts() {
    let release = Release::make(Recipe {
        options: &["--verity"],
        ..Recipe::default()
    })
    .unwrap();
    let server = serve(&release);
    let machine = Machine::new(SLOT_SIZE, &server.url("/v1/update/"), "ed25519").unwrap();
    let stale = machine.path("boot/flatcar/usrhash-b");
    fs::write(&stale, "of the image before\n").unwrap();
    let _daemon = machine.start_daemon().unwrap();
    machine.client(&["-update"]).unwrap().success().unwrap();
    assert_eq!(machine.disk.next_boot().unwrap(), Slot::B);

    let line = fs::read_to_string(&stale).unwrap();
    let root_hash = line.strip_suffix('\n').unwrap();
    assert_eq!(root_hash.len(), 64);
    let data = release.image.len();
    let slot = machine.path("slot-b");
    let whole = usize::try_from(SLOT_SIZE).unwrap();
    fs::write(&slot, machine.disk.read_slot(Slot::B, whole).unwrap()).unwrap();
    let mut verify = system_tool("veritysetup");
    verify
        .arg("verify")
        .arg(format!("--hash-offset={data}"))
        .args([&slot, &slot])
        .arg(root_hash);
    run(&mut verify, LIMIT).unwrap().success().unwrap();
    assert!(fs::read(&slot).unwrap()[..data] == release.image);
}

#[test]
fn a_signed_payload_updates_the_other_slot_and_the_server_hears_of_it() {
    let release = Release::make(Recipe::default()).unwrap();
    let server = serve(&release);
    let machine = Machine::new(SLOT_SIZE, &server.url("/v1/update/"), "ed25519").unwrap();
    let daemon = machine.start_daemon().unwrap();

    let output = machine
        .client(&["-update", "--poll-seconds", "1"])
        .unwrap()
        .success()
        .unwrap();
    let last_block: Vec<&str> = output.lines().rev().take(5).collect();
    assert_eq!(
        last_block[..3],
        [
            &*format!("NEW_SIZE={}", release.payload.len()),
            "NEW_VERSION=2.0.0",
            "CURRENT_OP=UPDATE_STATUS_UPDATED_NEED_REBOOT",
        ]
    );

    let target = machine
        .disk
        .read_slot(Slot::B, release.image.len())
        .unwrap();
    assert!(target == release.image, "the target is not the new image");
    let source = machine
        .disk
        .read_slot(Slot::A, machine.old_image.len())
        .unwrap();
    assert!(
        source == machine.old_image,
        "the running slot was written to"
    );
    let kernel = fs::read(machine.path("boot/flatcar/vmlinuz-b")).unwrap();
    assert!(kernel == release.kernel, "the kernel is not the new one");
    let running_kernel = fs::read(machine.path("boot/flatcar/vmlinuz-a")).unwrap();
    assert_eq!(running_kernel, b"the running kernel");
    machine.disk.verify_table().unwrap();
    let attributes = |slot| machine.disk.attributes(slot).unwrap().to_string();
    assert_eq!(attributes(Slot::A), "1/0/1");
    assert_eq!(attributes(Slot::B), "2/1/0");
    assert_eq!(machine.disk.next_boot().unwrap(), Slot::B);

    let heard = told(&server.exchanges()).unwrap();
    assert_eq!(heard, ["3/2 from \"0.0.0.0\"", "13/1", "14/1", "3/1"]);
    let first = &requests(&server.exchanges()).unwrap()[0];
    assert_eq!(first.install_source, InstallSource::OnDemandUpdate);
    assert_eq!(first.apps[0].version, "1.0.0");
    assert_eq!(first.apps[0].track, "stable");
    drop(daemon);

    // The state outlives a restart of the daemon, and nothing is installed twice.
    let _daemon = machine.start_daemon().unwrap();
    let status = machine.status().unwrap();
    assert_eq!(
        status["current_operation"],
        "UPDATE_STATUS_UPDATED_NEED_REBOOT"
    );
    machine
        .client(&["-check_for_update"])
        .unwrap()
        .success()
        .unwrap();
    assert_eq!(told(&server.exchanges()).unwrap().len(), 4);
}

#[test]
fn a_reboot_into_the_new_version_is_reported_and_marked_successful() {
    let release = Release::make(Recipe::default()).unwrap();
    let server = serve(&release);
    let machine = installed_from(&server);

    let slot = machine.reboot(SECOND_BOOT, version_of).unwrap();
    assert_eq!(slot, Slot::B);
    let attributes = || Ok::<_, anyhow::Error>(machine.disk.attributes(Slot::B)?.to_string());
    assert_eq!(attributes().unwrap(), "2/0/0");
    machine
        .write(
            "etc/update-engine/update.conf",
            "FIRST_CHECK_DELAY=1d\nHEALTH_DELAY=0s\n",
        )
        .unwrap();
    let _daemon = machine.start_daemon_in(slot).unwrap();
    poll_until("marking the new slot successful", LIMIT, || {
        Ok((attributes()? == "2/0/1").then_some(()))
    })
    .unwrap();

    machine.client(&["-follow"]).unwrap().success().unwrap();
    machine.client(&["-follow"]).unwrap().success().unwrap();
    let heard = told(&server.exchanges()).unwrap();
    assert_eq!(heard[4..], ["3/2 from \"1.0.0\"", "3/2 from \"\""]);
}

#[test]
fn a_new_slot_that_says_the_version_of_the_old_one_is_no_rollback() {
    let release = Release::make(Recipe::default()).unwrap();
    let server = serve(&release);
    let machine = installed_from(&server);
    let slot = machine.reboot(SECOND_BOOT, |_| "1.0.0").unwrap();
    assert_eq!(slot, Slot::B);
    let _daemon = machine.start_daemon_in(Slot::B).unwrap();
    machine.client(&["-update"]).unwrap();
    let heard = told(&server.exchanges()).unwrap();
    assert!(heard.iter().any(|event| event == "3/2 from \"1.0.0\""));
    assert!(
        !machine
            .path("var/lib/update_engine/prefs/quarantined-versions")
            .exists()
    );
}

#[test]
fn a_version_that_does_not_come_up_is_rolled_back_reported_once_and_not_installed_again() {
    let release = Release::make(Recipe::default()).unwrap();
    let server = serve(&release);
    let machine = installed_from(&server);

    let slot = machine.reboot(SECOND_BOOT, version_of).unwrap();
    assert_eq!(slot, Slot::B, "the new version gets its try");
    // It hangs: no daemon, nothing marks it successful.
    let slot = machine.reboot(THIRD_BOOT, version_of).unwrap();
    assert_eq!(slot, Slot::A, "the old version comes back");

    let _daemon = machine.start_daemon_in(slot).unwrap();
    for _ in 0..2 {
        let refused = machine.client(&["-follow"]).unwrap();
        assert_eq!(refused.status.code(), Some(3), "{}", refused.stderr);
        assert!(refused.stderr.contains("rolled back"), "{}", refused.stderr);
    }
    let heard = told(&server.exchanges()).unwrap();
    assert_eq!(
        heard[4..],
        ["3/0 code 44", "3/9 code 35", "3/2 from \"\"", "3/9 code 35"]
    );
    machine.still_boots_the_old_image().unwrap();
}

/// The record of an update is made before the flip. What a cut in between leaves is made
/// here by hand: the slot is as it was before.
#[test]
fn a_power_cut_between_the_record_and_the_flip_is_no_rollback() {
    let release = Release::make(Recipe::default()).unwrap();
    let server = serve(&release);
    let machine = installed_from(&server);
    let mut unflip = program("gptprio").unwrap();
    unflip
        .args(["set", "--priority", "0", "--tries", "0"])
        .arg(machine.disk.path())
        .arg(Slot::B.number().to_string());
    run(&mut unflip, LIMIT).unwrap().success().unwrap();

    let slot = machine.reboot(SECOND_BOOT, version_of).unwrap();
    assert_eq!(slot, Slot::A);
    let _daemon = machine.start_daemon_in(slot).unwrap();
    machine.client(&["-follow"]).unwrap().success().unwrap();
    assert_eq!(machine.disk.next_boot().unwrap(), Slot::B);
    let heard = told(&server.exchanges()).unwrap();
    assert_eq!(
        heard[4..],
        ["3/2 from \"\"", "13/1", "14/1", "3/1"],
        "no rollback is told, and the version is installed again"
    );
}

/// The next attempt fails, and the new slot does not become active.
fn is_not_updated(machine: &Machine) {
    let failed = machine.client(&["-follow"]).unwrap();
    assert!(failed.success().is_err());
    assert_eq!(
        machine.disk.attributes(Slot::B).unwrap().to_string(),
        "0/0/0"
    );
}

#[test]
fn an_update_that_cannot_be_recorded_does_not_become_active() {
    let release = Release::make(Recipe::default()).unwrap();
    let server = serve(&release);
    let machine = Machine::new(SLOT_SIZE, &server.url("/v1/update/"), "ed25519").unwrap();
    let record = "var/lib/update_engine/prefs/installed-version";
    machine.write(&format!("{record}/in-the-way"), "").unwrap();
    let _daemon = machine.start_daemon().unwrap();
    is_not_updated(&machine);
    machine.still_boots_the_old_image().unwrap();

    fs::remove_dir_all(machine.path(record)).unwrap();
    machine.client(&["-follow"]).unwrap().success().unwrap();
    assert_eq!(machine.disk.next_boot().unwrap(), Slot::B);
}

/// Once it has booted, no older release may follow.
#[test]
fn a_release_whose_security_epoch_cannot_be_recorded_does_not_become_active() {
    let release = Release::make(Recipe {
        options: &["--security-epoch", "3"],
        ..Recipe::default()
    })
    .unwrap();
    let server = serve(&release);
    let machine = Machine::new(SLOT_SIZE, &server.url("/v1/update/"), "ed25519").unwrap();
    // It can be read, as none, and not be replaced.
    let draft = "var/lib/update_engine/prefs/.security-epoch.new";
    machine.write(&format!("{draft}/in-the-way"), "").unwrap();
    let _daemon = machine.start_daemon().unwrap();
    is_not_updated(&machine);

    fs::remove_dir_all(machine.path(draft)).unwrap();
    machine.client(&["-follow"]).unwrap().success().unwrap();
    assert_eq!(machine.disk.next_boot().unwrap(), Slot::B);
    let epoch = machine.path("var/lib/update_engine/prefs/security-epoch");
    assert_eq!(fs::read_to_string(epoch).unwrap(), "3");
}

/// As that of Flatcar, which calls cgpt for it. What follows at the end of an installation
/// follows at the next start then.
#[test]
fn a_release_whose_post_install_program_flips_and_dies_still_raises_the_security_epoch() {
    let gptprio = program("gptprio").unwrap();
    let gptprio = gptprio.get_program().to_str().unwrap();
    let script = format!(
        "#!/bin/sh\n\
             disk=$(losetup --noheadings --output BACK-FILE \"$1\")\n\
             {gptprio} set \"$disk\" 4 -P 3 -T 1 -S 0\n\
             umount --lazy \"${{0%/*}}\"\n\
             kill -KILL $PPID\n"
    );
    let release = Release::make(Recipe {
        options: &["--security-epoch", "3"],
        postinst: Some(&script),
        ..Recipe::default()
    })
    .unwrap();
    let server = serve(&release);
    let machine = Machine::new(SLOT_SIZE, &server.url("/v1/update/"), "ed25519").unwrap();
    let mut daemon = machine.start_daemon().unwrap();
    let client = machine.start_client(&["-follow"]).unwrap();
    poll_until("the end of the daemon or of the update", LIMIT, || {
        let is_done = machine
            .path("var/run/update_engine_autoupdate_completed")
            .exists();
        Ok((is_done || !daemon.is_running()?).then_some(()))
    })
    .unwrap();
    if daemon.is_running().unwrap() {
        eprintln!("images cannot be mounted here: no post-install program ran");
        return;
    }
    drop(client);
    let pref = |name| fs::read_to_string(machine.path("var/lib/update_engine/prefs").join(name));
    assert!(pref("security-epoch").is_err());

    let slot = machine.reboot(SECOND_BOOT, version_of).unwrap();
    assert_eq!(slot, Slot::B);
    let _daemon = machine.start_daemon_in(slot).unwrap();
    assert_eq!(pref("security-epoch").unwrap(), "3");
    assert!(pref("pending-security-epoch").is_err());
}

/// It took nothing over, so that releases of a lower epoch may still come.
#[test]
fn a_post_install_program_that_refuses_leaves_the_security_epoch_as_it_was() {
    let release = Release::make(Recipe {
        options: &["--security-epoch", "3"],
        postinst: Some("#!/bin/sh\nexit 1\n"),
        ..Recipe::default()
    })
    .unwrap();
    let server = serve(&release);
    let machine = Machine::new(SLOT_SIZE, &server.url("/v1/update/"), "ed25519").unwrap();
    let _daemon = machine.start_daemon().unwrap();
    if machine.client(&["-follow"]).unwrap().success().is_ok() {
        eprintln!("images cannot be mounted here: no post-install program ran");
        return;
    }
    for pref in ["security-epoch", "pending-security-epoch"] {
        let path = machine.path("var/lib/update_engine/prefs").join(pref);
        assert!(!path.exists(), "{pref}");
    }
}

#[test]
fn a_folder_of_payloads_and_the_omaha_server_are_enough() {
    for key in ["ed25519", "rsa-2048", "rsa-4096"] {
        let release = Release::make(Recipe {
            key,
            ..Recipe::default()
        })
        .unwrap();
        let folder = tempfile::tempdir().unwrap();
        fs::write(
            folder.path().join("update-2.0.0.payload"),
            &*release.payload,
        )
        .unwrap();
        let mut serve = program("omaha-server").unwrap();
        serve
            .arg("serve")
            .arg(folder.path())
            .args(["--listen", "127.0.0.1:0"]);
        let server = Running::start(&mut serve).unwrap();
        let url = poll_until("start of the server", LIMIT, || {
            let output = server.stdout()?;
            Ok(output
                .strip_prefix("listening on ")
                .and_then(|rest| rest.strip_suffix('\n'))
                .map(|url| format!("{url}/v1/update/")))
        })
        .unwrap();

        let machine = Machine::new(SLOT_SIZE, &url, key).unwrap();
        let _daemon = machine.start_daemon().unwrap();
        machine.client(&["-follow"]).unwrap().success().unwrap();
        let target = machine
            .disk
            .read_slot(Slot::B, release.image.len())
            .unwrap();
        assert!(
            target == release.image,
            "{key}: the target is not the new image"
        );
        assert_eq!(machine.disk.next_boot().unwrap(), Slot::B, "{key}");
    }
}
