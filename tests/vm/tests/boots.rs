//! Machines that boot: updates, and what happens when the new version is bad.

use std::fs::{self, File};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use fastrand::Rng;
use system_tests::deadline::poll_until;
use system_tests::disk::{Disk, Slot};
use system_tests::etcd::Cluster;
use system_tests::process::run;
use system_tests::programs::program;
use tempfile::TempDir;
use vm_lab::chain::Chain;
use vm_lab::debian::Debian;
use vm_lab::guest::Fault;
use vm_lab::layout::{Content, SIZES};
use vm_lab::machine::{BOOT_LIMIT, Machine, SHELL_LIMIT, Up};
use vm_lab::releases::{FIRST, HOST, Releases, Verity, cache};
use vm_lab::write_log::WriteLog;

fn debian() -> Result<Debian> {
    static DEBIAN: OnceLock<Result<Debian, String>> = OnceLock::new();
    DEBIAN
        .get_or_init(|| {
            Debian::unpacked(&cache().join("debian")).map_err(|error| format!("{error:#}"))
        })
        .clone()
        .map_err(anyhow::Error::msg)
}

#[test]
fn updates_are_installed_booted_proven_and_reported() -> Result<()> {
    let releases = Releases::start(&debian()?, Verity::Off)?;
    let parts = releases.parts()?;
    let mut machine = Machine::new("update", Chain::Host, releases.first(&parts))?;
    machine.start()?;
    let mut before = machine.up()?;
    ensure!(before.version == FIRST);
    for (version, slot) in [("2.0.0", Slot::B), ("3.0.0", Slot::A)] {
        releases.publish(version, None)?;
        machine.update()?;
        machine.reboot()?;
        let now = machine.up()?;
        ensure!(now.version == version, "{now:?}: {}", machine.last_words());
        ensure!(now.boot_id != before.boot_id);
        machine.marked(slot)?;
        machine.check()?;
        let event = releases.reported(version, &["update complete", &before.version])?;
        println!("{version} runs in slot {}: {}", slot.letter(), event.words);
        before = now;
    }
    Ok(())
}

#[test]
fn a_bad_version_falls_back_is_reported_once_and_not_installed_again() -> Result<()> {
    let releases = Releases::start(&debian()?, Verity::Off)?;
    let parts = releases.parts()?;
    for (number, fault) in Fault::ALL.into_iter().enumerate() {
        let mut machine = Machine::new(&format!("{fault:?}"), Chain::Host, releases.first(&parts))?;
        let version = format!("2.{number}.0");
        releases.publish(&version, Some(fault))?;
        machine.start()?;
        machine.up()?;
        machine.update()?;
        machine.reboot()?;
        machine.boot_of(Slot::B)?;
        let back = machine.up()?;
        ensure!(back.version == FIRST, "{fault:?}: {back:?}");
        // One boot of the bad version, as it has one try.
        ensure!(machine.boots(Slot::B)? == 1, "{}", machine.last_words());
        for _ in 0..2 {
            machine.check()?;
        }
        println!("{fault:?}: {:?}", releases.events()?);
        machine.power_off()?;
    }
    Ok(())
}

#[test]
fn a_power_cut_at_any_write_leaves_a_system_that_boots() -> Result<()> {
    let releases = Releases::start(&debian()?, Verity::Off)?;
    let parts = releases.parts()?;
    releases.publish("2.0.0", None)?;
    let mut machine = Machine::new("logged", Chain::Host, releases.first(&parts))?;
    let folder = TempDir::new()?;
    let (base, log) = (folder.path().join("base"), folder.path().join("log"));
    fs::copy(machine.disk.path(), &base)?;
    File::create(&log)?;
    machine.log_writes(&log);
    machine.start()?;
    machine.up()?;
    machine.update()?;
    machine.power_off()?;

    let length = fs::metadata(&base)?.len();
    let log_of = || WriteLog::read(&log, length);
    println!("{:?}", log_of()?.totals());
    let rng = &mut Rng::with_seed(1);
    let boots = |log: &WriteLog, moment, rng: &mut Rng| -> Result<Up> {
        let mut machine = Machine::of_disk(&format!("cut-{moment}"), Chain::Host, |disk| {
            log.cut(&base, moment, disk, rng)
        })?;
        machine.start()?;
        machine.up()
    };
    for moment in log_of()?.moments(cuts(), rng) {
        let up = boots(&log_of()?, moment, rng)
            .with_context(|| format!("a cut after entry {moment} of the log"))?;
        println!("cut after entry {moment}: {} comes up", up.version);
        ensure!(up.version == FIRST || up.version == "2.0.0", "{up:?}");
    }

    // The same cuts would not all be survived without the sync between the two copies.
    let careless = log_of()?.without_flushes_between_tables();
    let lost = careless.table_moments().into_iter().any(|moment| {
        (0..20).any(|_| {
            let disk = folder.path().join("careless");
            let disk = careless
                .cut(&base, moment, &disk, rng)
                .map(|()| Disk::at(&disk, SIZES));
            disk.is_ok_and(|disk| disk.next_boot().is_err())
        })
    });
    ensure!(
        lost,
        "no cut was lost without the sync: the check cannot fail"
    );
    Ok(())
}

/// How many moments the power is cut at.
fn cuts() -> usize {
    let set = std::env::var("VM_CUTS").ok();
    set.and_then(|set| set.parse().ok()).unwrap_or(4)
}

/// How locksmithd of a machine is set, given etcd's address on the host.
fn locksmith(etcd: &Cluster) -> String {
    let endpoint = etcd.endpoint(0).replace("127.0.0.1", HOST);
    format!(
        "strategy = \"etcd-lock\"\nreboot_method = \"kexec\"\nwarn_users = \"0s\"\n\
         [etcd]\nendpoints = [\"{endpoint}\"]\n[health]\nsoak = \"1s\"\n"
    )
}

/// What `locksmithctl status` says of the semaphore.
fn semaphore(etcd: &Cluster) -> Result<String> {
    let mut status = program("locksmithctl")?;
    status.args(["-endpoint", &etcd.endpoint(0), "status"]);
    run(&mut status, SHELL_LIMIT)?.success()
}

#[test]
fn locksmithd_jumps_into_the_new_version_and_keeps_its_place_until_it_is_well() -> Result<()> {
    let releases = Releases::start(&debian()?, Verity::Off)?;
    let parts = releases.parts()?;
    releases.publish("2.0.0", None)?;
    for refused in [false, true] {
        let etcd = Cluster::start()?;
        let settings = locksmith(&etcd);
        let files = [("etc/locksmith/locksmith.toml", settings.as_str())];
        let content = Content {
            files: &files,
            ..releases.first(&parts)
        };
        let name = if refused { "refused" } else { "kexec" };
        let mut machine = Machine::new(name, Chain::Host, content)?;
        machine.start()?;
        machine.up()?;
        if refused {
            machine.shell("echo 1 >/proc/sys/kernel/kexec_load_disabled")?;
        }
        // It reboots by itself as soon as the update is applied.
        machine.shell("update_engine_client -check_for_update")?;
        let up = machine.up_within(2 * BOOT_LIMIT)?;
        ensure!(up.version == "2.0.0", "{up:?} {}", machine.last_words());
        ensure!(
            machine.resets() == usize::from(refused),
            "{}",
            machine.last_words()
        );
        // Not before the new version has proven itself.
        let taken = semaphore(&etcd)?;
        ensure!(taken.starts_with("Available: 0\n"), "{taken}");
        machine.marked(Slot::B)?;
        let given_back = poll_until("the place given back", SHELL_LIMIT, || {
            Ok(semaphore(&etcd)?
                .starts_with("Available: 1\n")
                .then_some(()))
        });
        given_back.with_context(|| machine.last_words())?;
        println!("{name}: {} runs, {} resets", up.version, machine.resets());
    }
    Ok(())
}
