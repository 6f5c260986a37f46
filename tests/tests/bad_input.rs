//! What goes wrong outside of the machine ends in a clear error, the right event
//! at the server, an idle daemon and a disk that boots what it booted before.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use system_tests::disk::Slot;
use system_tests::fault_server::{Answer, Fault, FaultServer};
use system_tests::machine::Machine;
use system_tests::omaha::events;
use system_tests::process::run;
use system_tests::programs::system_tool;
use system_tests::release::{Recipe, Release, public_key};
use system_tests::update_server::{Check, honest, offer};

const SLOT_SIZE: u64 = 16 << 20;
const KEY_FILE: &str = "usr/share/update_engine/update-payload-key.pub.pem";
/// Flag in the code of an event: the server is not the built-in one.
const TEST_OMAHA_URL: u32 = 1 << 28;

/// One way in which an attempt fails.
struct Case {
    name: &'static str,
    /// What is wrong with the machine.
    machine: fn(&Machine) -> Result<()>,
    /// What the server answers to the update check.
    check: Check,
    /// What it answers to the n-th request for the payload.
    payload: fn(&Arc<Vec<u8>>, usize) -> Answer,
    slot_size: u64,
    /// Base code of the failure event.
    code: u32,
    /// What the words of the error must hold: what, and where.
    words: &'static [&'static str],
    /// What is left of the disk.
    disk: Disk,
}

#[derive(Clone, Copy)]
enum Disk {
    /// Not a byte of it changed.
    Untouched,
    /// The target was written to, so it must not boot.
    TargetUnbootable,
}

impl Default for Case {
    fn default() -> Self {
        Self {
            name: "",
            machine: |_| Ok(()),
            check: honest,
            payload: |payload, _| whole(payload, Fault::None),
            slot_size: SLOT_SIZE,
            code: 0,
            words: &[],
            disk: Disk::Untouched,
        }
    }
}

fn whole(payload: &Arc<Vec<u8>>, fault: Fault) -> Answer {
    Answer::File(Arc::clone(payload), fault)
}

/// The connection breaks in the middle; `then` is what the retry gets.
fn cut(payload: &Arc<Vec<u8>>, asked: usize, then: Answer) -> Answer {
    match asked {
        0 => whole(payload, Fault::TruncateAt(3_000_000)),
        _ => then,
    }
}

/// All of them, in the order of an update.
fn cases() -> Vec<Case> {
    vec![
        Case {
            name: "missing key file",
            machine: |machine| Ok(fs::remove_file(machine.path(KEY_FILE))?),
            code: 18,
            words: &["public key", "refus"],
            ..Case::default()
        },
        Case {
            name: "empty key file",
            machine: |machine| machine.write(KEY_FILE, ""),
            code: 18,
            words: &["update-payload-key.pub.pem", "empty"],
            ..Case::default()
        },
        Case {
            name: "disk without slots",
            machine: |machine| {
                let mut sgdisk = system_tool("sgdisk");
                sgdisk
                    .args(["--typecode=3:8300", "--typecode=4:8300"])
                    .arg(machine.disk.path());
                run(&mut sgdisk, Duration::from_secs(30))?.success()?;
                Ok(())
            },
            code: 3,
            words: &["slot", "disk.img", "5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6"],
            ..Case::default()
        },
        Case {
            name: "malformed XML",
            check: |_| b"<response protocol=\"3.0\"><app></response>".to_vec(),
            code: 31,
            words: &["answer of the update server http://"],
            ..Case::default()
        },
        Case {
            name: "DOCTYPE",
            check: |offer| {
                let bomb = r#"<!DOCTYPE r [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]>"#;
                let answer = offer.to_xml();
                answer
                    .replacen('\n', &format!("\n{bomb}\n"), 1)
                    .into_bytes()
            },
            code: 31,
            words: &["answer of the update server http://", "DOCTYPE"],
            ..Case::default()
        },
        Case {
            name: "attribute of 10 MB",
            check: |mut offer| {
                offer.name = "x".repeat(10_000_000);
                honest(offer)
            },
            code: 31,
            words: &["answer of the update server http://", "longer than"],
            ..Case::default()
        },
        Case {
            name: "empty answer",
            check: |_| Vec::new(),
            code: 30,
            words: &["update server http://", "empty"],
            ..Case::default()
        },
        Case {
            name: "wrong URL of the payload",
            payload: |_, _| Answer::Status(404),
            code: 9,
            words: &["/files/update.payload", "404"],
            ..Case::default()
        },
        Case {
            name: "redirect without end",
            payload: |_, _| Answer::Redirect("/files/update.payload".to_owned()),
            code: 9,
            words: &["/files/update.payload", "redirect"],
            ..Case::default()
        },
        Case {
            name: "target too small",
            slot_size: 4 << 20,
            code: 28,
            words: &["bytes, slot B", "4194304"],
            ..Case::default()
        },
        Case {
            name: "no payload at all",
            payload: |payload, _| whole(&Arc::new(vec![b'<'; payload.len()]), Fault::None),
            code: 21,
            words: &["CrAU"],
            ..Case::default()
        },
        Case {
            name: "body cut, then gone",
            payload: |payload, asked| cut(payload, asked, Answer::Status(404)),
            code: 9,
            words: &["/files/update.payload", "byte 3000000", "404"],
            disk: Disk::TargetUnbootable,
            ..Case::default()
        },
        Case {
            name: "body without end",
            payload: |payload, _| whole(payload, Fault::Endless),
            code: 11,
            words: &["/files/update.payload", "bytes"],
            disk: Disk::TargetUnbootable,
            ..Case::default()
        },
        Case {
            name: "200 instead of 206",
            payload: |payload, asked| cut(payload, asked, whole(payload, Fault::IgnoreRange)),
            code: 9,
            words: &["/files/update.payload", "3000000", "200"],
            disk: Disk::TargetUnbootable,
            ..Case::default()
        },
        Case {
            name: "wrong Content-Range",
            payload: |payload, asked| cut(payload, asked, whole(payload, Fault::WrongContentRange)),
            code: 9,
            words: &["/files/update.payload", "bytes 3000001-"],
            disk: Disk::TargetUnbootable,
            ..Case::default()
        },
        Case {
            name: "hash mismatch in the data",
            payload: |payload, _| whole(payload, Fault::FlipBitAt(3_000_000)),
            code: 29,
            words: &["operation 3", "SHA-256", "does not match"],
            disk: Disk::TargetUnbootable,
            ..Case::default()
        },
        Case {
            name: "hash of another file in the offer",
            check: |mut offer| {
                offer.sha256 = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=".to_owned();
                honest(offer)
            },
            code: 10,
            words: &["SHA-256"],
            disk: Disk::TargetUnbootable,
            ..Case::default()
        },
        Case {
            name: "signed by somebody else",
            machine: |machine| {
                let other = fs::read_to_string(public_key("other-ed25519"))?;
                machine.write(KEY_FILE, &other)
            },
            code: 18,
            words: &["signature"],
            disk: Disk::TargetUnbootable,
            ..Case::default()
        },
    ]
}

#[test]
fn bad_input_is_told_and_reported_and_leaves_a_bootable_disk() {
    let release = Release::make(Recipe::default()).unwrap();
    let cases = cases();
    let wrong: Vec<String> = cases
        .iter()
        .filter_map(|case| Some(format!("{}: {:#}", case.name, play(case, &release).err()?)))
        .collect();
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    println!("{} kinds of bad input", cases.len());
}

fn play(case: &Case, release: &Release) -> Result<()> {
    let server = offer(release, case.check, case.payload)?;
    let machine = Machine::new(case.slot_size, &server.url("/v1/update/"), "ed25519")?;
    (case.machine)(&machine)?;
    let disk_before = fs::read(machine.disk.path())?;
    let _daemon = machine.start_daemon()?;

    let attempt = machine.client(&["-follow"])?;
    let talk = &attempt.stderr;
    ensure!(
        attempt.status.code() == Some(1),
        "{}: {talk}",
        attempt.status
    );
    for words in case.words {
        ensure!(talk.contains(words), "{words:?} is not in: {talk}");
    }

    let status = machine.status()?;
    ensure!(
        status["current_operation"] == "UPDATE_STATUS_IDLE",
        "{status}"
    );
    let heard = events(&server.exchanges())?;
    let failure = heard.last().context("the server heard nothing")?;
    ensure!(
        (failure.event_type.number(), failure.result.number()) == (3, 0),
        "the last event is {failure:?}"
    );
    let code = failure.error_code.context("an event without a code")?;
    ensure!(
        (code.base(), code.flags()) == (case.code, TEST_OMAHA_URL),
        "the event's code is {code:?}: {talk}"
    );

    match case.disk {
        Disk::Untouched => ensure!(
            fs::read(machine.disk.path())? == disk_before,
            "the disk was written to"
        ),
        Disk::TargetUnbootable => {
            machine.still_boots_the_old_image()?;
            let attributes = machine.disk.attributes(Slot::B)?.to_string();
            ensure!(attributes == "0/0/0", "the target has {attributes}");
        }
    }
    Ok(())
}

#[test]
fn a_server_that_cannot_be_reached_is_named_and_the_disk_left_alone() {
    // Nobody listens on a port that was free a moment ago.
    let url = FaultServer::start(|_| Answer::Status(404))
        .map(|server| server.url("/v1/update/"))
        .unwrap();
    let machine = Machine::new(SLOT_SIZE, &url, "ed25519").unwrap();
    let disk_before = fs::read(machine.disk.path()).unwrap();
    let _daemon = machine.start_daemon().unwrap();
    let attempt = machine.client(&["-follow"]).unwrap();
    assert_eq!(attempt.status.code(), Some(1));
    assert!(attempt.stderr.contains(&url), "{}", attempt.stderr);
    assert!(fs::read(machine.disk.path()).unwrap() == disk_before);
}
