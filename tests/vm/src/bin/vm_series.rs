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
    series.run("updates", "stage-0", || lab.updates(&stage_zero, count));
    for _ in 0..count {
        for trouble in Trouble::ALL {
            series.run("troubles", &format!("stage-0, {trouble:?}"), || {
                lab.troubles(&stage_zero, &[trouble])
            });
        }
    }
    for damage in Damage::ALL {
        series.run("tables", &format!("stage-0, {damage:?}"), || {
            lab.damaged_tables(&stage_zero, &[damage])
        });
    }
    series.run("tables", "stage-0, none", || lab.no_tables(&stage_zero));
    series.run("cuts", "host", || lab.power_cuts(CUTS, fastrand::u64(..)));
    for _ in 0..count {
        series.run("kexec", "done", || lab.kexec(false));
        series.run("kexec", "refused", || lab.kexec(true));
    }
    match Chain::uefi().context("the UEFI selector")? {
        None => println!("uefi: left out, needs the target x86_64-unknown-uefi and ovmf"),
        Some(uefi) => {
            series.run("uefi", "updates", || lab.updates(&uefi, count));
            for trouble in Trouble::ALL {
                series.run("uefi", &format!("{trouble:?}"), || {
                    lab.troubles(&uefi, &[trouble])
                });
            }
            for damage in Damage::ALL {
                series.run("uefi", &format!("{damage:?}"), || {
                    lab.damaged_tables(&uefi, &[damage])
                });
            }
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
    fn run(&mut self, part: &str, what: &str, scenario: impl FnOnce() -> Result<()>) {
        if !self.wanted.is_empty() && !self.wanted.iter().any(|wanted| wanted == part) {
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
