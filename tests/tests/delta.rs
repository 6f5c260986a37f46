//! A machine and its update server agree on a delta, and on the full payload where the
//! delta is of no use.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use system_tests::deadline::poll_until;
use system_tests::disk::Slot;
use system_tests::machine::Machine;
use system_tests::process::Running;
use system_tests::programs::program;
use system_tests::release::{SmallRelease, Workshop, compressed_squashfs, content};

const SLOT_SIZE: u64 = 16 << 20;
const LIMIT: Duration = Duration::from_secs(60);
const KEY: &str = "ed25519";

/// The server over a folder of payloads, and the URL for update checks.
fn serve(folder: &Path) -> (Running, String) {
    let mut serve = program("omaha-server").unwrap();
    serve
        .arg("serve")
        .arg(folder)
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
    (server, url)
}

/// Puts a release with its delta into the folder; `from` goes into the delta's sidecar.
fn publish(folder: &Path, release: &SmallRelease, version: &str, from: Option<&str>) {
    let put = |name: String, content: &[u8]| fs::write(folder.join(name), content).unwrap();
    if let Some(from) = from {
        let sidecar = format!("{{\"from_version\": \"{from}\"}}");
        put(format!("delta-{version}.payload.json"), sidecar.as_bytes());
    }
    put(format!("delta-{version}.payload"), &release.delta);
    put(format!("full-{version}.payload"), &release.full_v1);
    put(format!("newer_full-{version}.payload"), &release.full_v2);
}

/// What the server logged of checks and events, each from the words on that tell it.
fn heard(server: &Running) -> Vec<String> {
    let log = server.stderr().unwrap();
    let told = log.lines().filter_map(|line| {
        let start = line.find("check: ").or_else(|| line.find("event: "))?;
        Some(line[start..].to_owned())
    });
    told.collect()
}

fn assert_holds(machine: &Machine, slot: Slot, image: &[u8]) {
    let held = machine.disk.read_slot(slot, image.len()).unwrap();
    assert!(held == image, "slot {slot:?} does not hold the new image");
    assert_eq!(machine.disk.next_boot().unwrap(), slot);
}

#[test]
fn a_delta_is_chosen_by_version_first_and_by_the_installed_image_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    let (server, url) = serve(folder.path());
    let machine = Machine::new(SLOT_SIZE, &url, KEY).unwrap();
    let second = SmallRelease::over(&machine.old_image, "2.0.0", KEY).unwrap();
    assert!(second.delta.len() < second.full_v2.len() / 2);
    publish(folder.path(), &second, "2.0.0", Some("1.0.0"));
    wait_for_offers(&server, 3);

    let daemon = machine.start_daemon().unwrap();
    machine.client(&["-follow"]).unwrap().success().unwrap();
    println!(
        "{} bytes in place of {}; peak of the daemon: {} KiB",
        second.delta.len(),
        second.full_v2.len(),
        daemon.peak_memory().unwrap() >> 10
    );
    let heard_first = heard(&server);
    assert!(
        heard_first
            .iter()
            .any(|line| line.contains("offered 2.0.0 (delta from 1.0.0, v2")),
        "{heard_first:?}"
    );
    assert_holds(&machine, Slot::B, &second.image);
    drop(daemon);

    // No sidecar says over what the next delta goes; the machine knows what it runs.
    let third = SmallRelease::over(&second.image, "3.0.0", KEY).unwrap();
    publish(folder.path(), &third, "3.0.0", None);
    wait_for_offers(&server, 6);
    let slot = machine
        .reboot("22222222-2222-4333-8444-555555555555", |slot| match slot {
            Slot::A => "1.0.0",
            Slot::B => "2.0.0",
        })
        .unwrap();
    assert_eq!(slot, Slot::B);
    machine
        .write(
            "etc/update-engine/update.conf",
            "FIRST_CHECK_DELAY=1d\nHEALTH_DELAY=0s\n",
        )
        .unwrap();
    let _daemon = machine.start_daemon_in(slot).unwrap();
    machine.client(&["-follow"]).unwrap().success().unwrap();
    let heard = heard(&server);
    assert!(
        heard
            .iter()
            .any(|line| line.contains("offered 3.0.0 (delta from image ")),
        "{heard:?}"
    );
    assert_holds(&machine, Slot::A, &third.image);
}

#[test]
fn a_changed_running_slot_gets_the_full_payload_in_the_same_attempt() {
    let folder = tempfile::tempdir().unwrap();
    let (server, url) = serve(folder.path());
    let machine = Machine::new(SLOT_SIZE, &url, KEY).unwrap();
    let release = SmallRelease::over(&machine.old_image, "2.0.0", KEY).unwrap();
    publish(folder.path(), &release, "2.0.0", Some("1.0.0"));
    wait_for_offers(&server, 3);
    let mut changed = machine.old_image.clone();
    changed[SmallRelease::MOVED.start + 1_000_001] ^= 1;
    machine.disk.write_slot(Slot::A, &changed).unwrap();

    let _daemon = machine.start_daemon().unwrap();
    machine.client(&["-follow"]).unwrap().success().unwrap();
    assert_holds(&machine, Slot::B, &release.image);
    let status = machine.status().unwrap();
    assert_eq!(status["details"]["attempts"], 1, "{status}");

    let heard = heard(&server);
    let position = |what: &dyn Fn(&str) -> bool| {
        let found: Vec<_> = (0..heard.len()).filter(|&at| what(&heard[at])).collect();
        assert_eq!(found.len(), 1, "{heard:#?}");
        found[0]
    };
    let delta = position(&|line| line.contains("offered 2.0.0 (delta from 1.0.0, v2"));
    let failure = position(&|line| line.starts_with("event: ") && line.contains("(20"));
    let full = position(&|line| line.contains("offered 2.0.0 (full, v2"));
    assert!(delta < failure && failure < full, "{heard:#?}");
}

/// Puts a delta from 1.0.0 into the server's folder: first what it is, then the payload.
fn publish_delta(folder: &Path, delta: &[u8]) {
    let label = "{\"from_version\": \"1.0.0\"}";
    fs::write(folder.join("delta-2.0.0.payload.json"), label).unwrap();
    fs::write(folder.join("delta-2.0.0.payload"), delta).unwrap();
}

/// Each operation of this delta takes more than twenty MiB.
#[test]
fn a_delta_is_installed_within_64_mib_of_memory() {
    const LIMIT: u64 = 64 << 20;
    let folder = tempfile::tempdir().unwrap();
    let (server, url) = serve(folder.path());
    let machine = Machine::new(40 << 20, &url, KEY).unwrap();
    let mut file = machine.old_image[..32 << 20].to_vec();
    for byte in file.iter_mut().step_by(3001) {
        *byte ^= 0x40;
    }
    let workshop = Workshop::new(&machine.old_image, &file, KEY).unwrap();
    let delta = workshop.delta().unwrap();
    publish_delta(folder.path(), &delta);
    wait_for_offers(&server, 1);

    let daemon = machine.start_daemon().unwrap();
    machine.client(&["-follow"]).unwrap().success().unwrap();
    assert_holds(&machine, Slot::B, &workshop.image);
    let peak = daemon.peak_memory().unwrap();
    println!("{} bytes of delta, peak {} KiB", delta.len(), peak >> 10);
    assert!(peak < LIMIT, "{peak}");
}

/// Half text, half noise, as of programs: what compresses to about half.
fn program_like(size: usize) -> Vec<u8> {
    let noise = content("noise", size);
    let mut bytes = Vec::with_capacity(size + 64);
    for (number, chunk) in noise.chunks(16).enumerate() {
        if bytes.len() >= size {
            break;
        }
        bytes.extend_from_slice(chunk);
        bytes.extend_from_slice(format!("mov rax, {:08}\n", number % 5000).as_bytes());
    }
    bytes.truncate(size);
    bytes
}

/// The compressed blocks of the image are unpacked, patched and packed again.
#[test]
fn a_delta_of_compressed_images_is_installed_within_64_mib_of_memory() {
    const LIMIT: u64 = 64 << 20;
    let folder = tempfile::tempdir().unwrap();
    let (server, url) = serve(folder.path());
    let machine = Machine::new(32 << 20, &url, KEY).unwrap();
    let old_file = program_like(40 << 20);
    let mut new_file = old_file.clone();
    for byte in new_file.iter_mut().step_by(30_011) {
        *byte ^= 0x40;
    }
    let old = compressed_squashfs(&old_file).unwrap();
    let new = compressed_squashfs(&new_file).unwrap();
    machine.disk.write_slot(Slot::A, &old).unwrap();
    let workshop = Workshop::of_images(&old, new, KEY).unwrap();
    let delta = workshop.delta().unwrap();
    publish_delta(folder.path(), &delta);
    wait_for_offers(&server, 1);

    let daemon = machine.start_daemon().unwrap();
    machine.client(&["-follow"]).unwrap().success().unwrap();
    let heard = heard(&server);
    assert!(
        heard.iter().any(|line| line.contains(", needs zstd/")),
        "{heard:?}"
    );
    assert_holds(&machine, Slot::B, &workshop.image);
    let peak = daemon.peak_memory().unwrap();
    println!(
        "{} bytes of delta for {}, peak {} KiB",
        delta.len(),
        workshop.image.len(),
        peak >> 10
    );
    assert!(peak < LIMIT, "{peak}");
}

fn wait_for_offers(server: &Running, count: usize) {
    poll_until("the payloads in the catalogue", LIMIT, || {
        let offers = server.stderr()?.matches("on offer: ").count();
        Ok((offers >= count).then_some(()))
    })
    .unwrap();
}
