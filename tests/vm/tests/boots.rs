//! Machines that boot: a short selection. `make vm-series` repeats all of it.
//!
//! Tests begin in the order of their names: the longest have the first.

use anyhow::Result;
use vm_lab::chain::Chain;
use vm_lab::guest::Fault;
use vm_lab::scenario::{Damage, Lab, Trouble};

#[test]
fn a_bad_version_that_does_not_run_falls_back_is_reported_once_and_not_installed_again()
-> Result<()> {
    let lab = Lab::open()?;
    let bad = [Fault::Panics, Fault::Hangs, Fault::ExitsInit];
    lab.troubles(&lab.stage_zero()?, &bad.map(Trouble::Version))
}

#[test]
fn a_bad_version_that_does_not_start_or_get_healthy_falls_back_too() -> Result<()> {
    let lab = Lab::open()?;
    let unhealthy = Trouble::Version(Fault::Unhealthy);
    let bad = [unhealthy, Trouble::NoKernel, Trouble::FlippedByte];
    lab.troubles(&lab.stage_zero()?, &bad)
}

#[test]
fn updates_are_installed_booted_proven_and_reported() -> Result<()> {
    let lab = Lab::open()?;
    lab.updates(&lab.stage_zero()?, 2)
}

#[test]
fn uefi_firmware_starts_the_selector_which_starts_the_slot() -> Result<()> {
    let Some(uefi) = Chain::uefi()? else {
        println!("skipped: needs the target x86_64-unknown-uefi and the package ovmf");
        return Ok(());
    };
    let lab = Lab::open()?;
    lab.updates(&uefi, 1)?;
    lab.troubles(&uefi, &[Trouble::NoKernel, Trouble::Version(Fault::Panics)])
}

#[test]
fn a_damaged_partition_table_is_repaired_by_the_boot() -> Result<()> {
    let lab = Lab::open()?;
    lab.damaged_tables(&lab.stage_zero()?, &[Damage::Primary])
}

#[test]
fn without_any_partition_table_a_rescuer_is_told_and_nothing_resets() -> Result<()> {
    let lab = Lab::open()?;
    lab.no_tables(&lab.stage_zero()?)
}

#[test]
fn a_power_cut_at_any_write_leaves_a_system_that_boots() -> Result<()> {
    Lab::open()?.power_cuts(3, 1)
}

#[test]
fn a_power_cut_inside_of_a_selector_leaves_a_system_that_boots() -> Result<()> {
    let lab = Lab::open()?;
    lab.selector_cuts(&lab.stage_zero()?, 1, 1)
}

#[test]
fn locksmithd_jumps_into_the_new_version_and_keeps_its_place_until_it_is_well() -> Result<()> {
    Lab::open()?.kexec(false)
}

#[test]
fn a_kernel_that_refuses_to_jump_costs_a_reset_and_nothing_else() -> Result<()> {
    Lab::open()?.kexec(true)
}
