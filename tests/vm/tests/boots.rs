//! Machines that boot: updates, and what happens when the new version is bad.

use std::sync::OnceLock;

use anyhow::{Result, ensure};
use system_tests::disk::Slot;
use vm_lab::chain::Chain;
use vm_lab::debian::Debian;
use vm_lab::guest::Fault;
use vm_lab::machine::Machine;
use vm_lab::releases::{FIRST, Releases, Verity, cache};

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
