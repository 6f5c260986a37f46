//! Repeats every scenario of the lab and counts: `vm_series [N] [PART…]`.
//!
//! N (default 20) is how many updates are made in a row and how often each kind of bad
//! version is tried. Parts: updates, troubles, tables, cuts, kexec, uefi; all of them if
//! none is named. Ends with status 1 if anything went otherwise than it should.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result};
use vm_lab::chain::Chain;
use vm_lab::scenario::{Damage, Lab, Trouble};

/// Moments at which an update's power is cut.
const CUTS: usize = 100;
/// Moments at which the power of a boot selector is cut.
const SELECTOR_CUTS: usize = 10;
const PARTS: [&str; 6] = ["updates", "troubles", "tables", "cuts", "kexec", "uefi"];

fn main() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1).peekable();
    let count = match arguments.peek().map(|first| first.parse()) {
        Some(Ok(count)) => {
            arguments.next();
            count
        }
        _ => 20,
    };
    let wanted: Vec<_> = arguments.collect();
    if let Some(unknown) = wanted.iter().find(|part| !PARTS.contains(&&***part)) {
        anyhow::bail!("{unknown}: no such part; there are {}", PARTS.join(", "));
    }
    let lab = Lab::open()?;
    let mut series = Series {
        wanted,
        good: 0,
        bad: 0,
    };
    let stage_zero = lab.stage_zero()?;
    let parts = ["updates", "troubles", "tables"];
    series.selector(&lab, "stage-0", &stage_zero, parts, count, count);
    // UEFI firmware does not find its program without a partition table.
    series.run("tables", "stage-0, none", || lab.no_tables(&stage_zero));
    series.run("cuts", "host", || lab.power_cuts(CUTS, fastrand::u64(..)));
    series.run("cuts", "inside of stage-0", || {
        lab.selector_cuts(&stage_zero, SELECTOR_CUTS, fastrand::u64(..))
    });
    for _ in 0..count {
        series.run("kexec", "done", || lab.kexec(false));
        series.run("kexec", "refused", || lab.kexec(true));
    }
    if series.wants("uefi") {
        match Chain::uefi().context("the UEFI selector")? {
            Some(uefi) => {
                series.selector(&lab, "UEFI", &uefi, ["uefi"; 3], count, 1);
                series.run("uefi", "cuts inside of it", || {
                    lab.selector_cuts(&uefi, SELECTOR_CUTS, fastrand::u64(..))
                });
            }
            None => println!("uefi: left out, needs the target x86_64-unknown-uefi and ovmf"),
        }
    }
    println!("{} good, {} bad", series.good, series.bad);
    Ok(match series.bad {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

struct Series {
    wanted: Vec<String>,
    good: usize,
    bad: usize,
}

impl Series {
    /// What both selectors go through: updates in a row, rounds of bad versions, damaged
    /// tables; `parts` is what an operator calls them.
    fn selector(
        &mut self,
        lab: &Lab,
        name: &str,
        chain: &Chain,
        [updates, troubles, tables]: [&str; 3],
        count: usize,
        rounds: usize,
    ) {
        self.run(updates, name, || lab.updates(chain, count));
        for round in 0..rounds {
            // One machine meets all of them, each time in another order.
            let mut kinds = Trouble::ALL;
            kinds.rotate_left(round % Trouble::ALL.len());
            let what = format!("{name}, all six, round {} of {rounds}", round + 1);
            self.run(troubles, &what, || lab.troubles(chain, &kinds));
        }
        for damage in Damage::ALL {
            self.run(tables, &format!("{name}, {damage:?}"), || {
                lab.damaged_tables(chain, &[damage])
            });
        }
    }

    fn wants(&self, part: &str) -> bool {
        self.wanted.is_empty() || self.wanted.iter().any(|wanted| wanted == part)
    }

    fn run(&mut self, part: &str, what: &str, scenario: impl FnOnce() -> Result<()>) {
        if !self.wants(part) {
            return;
        }
        let start = Instant::now();
        let words = match scenario() {
            Ok(()) => {
                self.good += 1;
                "good".to_owned()
            }
            Err(error) => {
                self.bad += 1;
                format!("BAD: {error:?}")
            }
        };
        let seconds = start.elapsed().as_secs();
        println!("{part}: {what}: {words} ({seconds} s)");
    }
}
