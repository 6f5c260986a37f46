//! An installation that is killed goes on where it was.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use payload::{Event, Extent, Limits, PayloadStream, Trust};
use system_tests::disk::Slot;
use system_tests::fault_server::{Answer, Exchange, Fault};
use system_tests::machine::Machine;
use system_tests::release::{Recipe, Release};
use system_tests::update_server::{honest, offer};

const KILLS: usize = 10;
const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn ten_kills_at_random_moments_download_nothing_again_that_was_applied() {
    let release = Release::make(Recipe {
        content_size: 48 << 20,
        ..Recipe::default()
    })
    .unwrap();
    let size = u64::try_from(release.payload.len()).unwrap();
    let operations = Operations::of(&release);
    let server = offer(&release, honest, |payload, _| {
        Answer::File(payload.clone(), Fault::Slow(16 << 20))
    })
    .unwrap();
    let machine = Machine::new(64 << 20, &server.url("/v1/update/"), "ed25519").unwrap();

    let moments = random_moments(size);
    println!("killing at the bytes {moments:?} of {size}");
    let mut applied = Vec::new();
    for moment in moments {
        let mut daemon = machine.start_daemon().unwrap();
        machine
            .client(&["-check_for_update"])
            .unwrap()
            .success()
            .unwrap();
        server
            .wait_until(LIMIT, |exchanges| {
                let downloads = downloads(exchanges);
                downloads.len() > applied.len()
                    && downloads.last().is_some_and(|last| reached(last) >= moment)
            })
            .unwrap();
        daemon.kill().unwrap();
        machine.still_boots_the_old_image().unwrap();
        applied.push(operations.applied(&machine, &release));
    }
    let _daemon = machine.start_daemon().unwrap();
    machine.client(&["-follow"]).unwrap().success().unwrap();

    let target = machine
        .disk
        .read_slot(Slot::B, release.image.len())
        .unwrap();
    assert!(target == release.image, "the target is not the new image");
    assert_eq!(machine.disk.next_boot().unwrap(), Slot::B);

    let exchanges = server.exchanges();
    let downloads = downloads(&exchanges);
    assert_eq!(downloads.len(), KILLS + 1, "one download for each start");
    for (resumed, applied) in downloads[1..].iter().zip(applied) {
        // The kill may fall between an operation and the record of it.
        let due = operations.in_payload[applied.saturating_sub(1)];
        let from = begin(resumed);
        assert!(
            from >= due,
            "resumed from {from} though {applied} operations, up to {due}, were applied"
        );
    }
    let sent: u64 = downloads.iter().map(|download| download.sent).sum();
    println!("{KILLS} kills, {sent} bytes sent for a payload of {size}");
}

/// The partition's operations: full ones, which fill the image from its begin on.
struct Operations {
    /// `in_payload[n]` is where the data of the first n operations ends in the
    /// payload file.
    in_payload: Vec<u64>,
    /// `in_image[n]` is what the first n operations have filled.
    in_image: Vec<usize>,
}

impl Operations {
    fn of(release: &Release) -> Self {
        let mut stream = PayloadStream::new(Limits::default(), &Trust::allow_unsigned(Vec::new()));
        stream.push(&release.payload);
        let Ok(Some(Event::Metadata { manifest, raw })) = stream.next_event() else {
            panic!("the release has no manifest");
        };
        let data = u64::try_from(raw.len()).unwrap();
        let mut ends = Self {
            in_payload: vec![0],
            in_image: vec![0],
        };
        let mut filled = 0;
        for operation in &manifest.partition.operations {
            let blob = operation.blob;
            ends.in_payload.push(data + blob.offset + blob.length);
            filled += operation
                .destination
                .iter()
                .map(Extent::length)
                .sum::<u64>();
            let filled = usize::try_from(filled).unwrap();
            ends.in_image.push(filled.min(release.image.len()));
        }
        ends
    }

    /// How many operations, from the first on, have reached the disk.
    fn applied(&self, machine: &Machine, release: &Release) -> usize {
        let target = machine
            .disk
            .read_slot(Slot::B, release.image.len())
            .unwrap();
        self.in_image
            .windows(2)
            .take_while(|ends| target[ends[0]..ends[1]] == release.image[ends[0]..ends[1]])
            .count()
    }
}

fn downloads(exchanges: &[Exchange]) -> Vec<&Exchange> {
    exchanges
        .iter()
        .filter(|exchange| exchange.request.method == "GET")
        .collect()
}

fn begin(download: &Exchange) -> u64 {
    download.request.range.map_or(0, |(first, _)| first)
}

fn reached(download: &Exchange) -> u64 {
    begin(download) + download.sent
}

/// Positions in a payload of `size` bytes, in rising order; none in its last
/// part, where the installation could be over before the kill arrives.
fn random_moments(size: u64) -> Vec<u64> {
    let mut moments: Vec<u64> = (0..KILLS)
        .map(|_| RandomState::new().build_hasher().finish() % (size - (4 << 20)))
        .collect();
    moments.sort_unstable();
    moments
}
