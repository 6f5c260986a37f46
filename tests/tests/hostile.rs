//! Servers that hang and operators that change their mind: what is on the disk,
//! what the daemon remembers and what the server hears stay in agreement.

#![expect(
    clippy::unwrap_used,
    reason = "a test ends where something is not as it must be"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use omaha_protocol::Event;
use system_tests::disk::Slot;
use system_tests::fault_server::{Answer, Fault, FaultServer, Request};
use system_tests::machine::Machine;
use system_tests::omaha::{events, no_update};
use system_tests::release::{Recipe, Release};
use system_tests::update_server::{honest, offer};

const SLOT_SIZE: u64 = 16 << 20;
const LIMIT: Duration = Duration::from_secs(60);
const SECOND_BOOT: &str = "22222222-2222-4333-8444-555555555555";
/// Base code of the event that reports a rollback.
const ROLLED_BACK: u32 = 44;
const OUTBOX: &str = "var/lib/update_engine/prefs/unsent-events";

/// Offers `release`, but never finishes the answer to a post that `hangs`.
fn serve_hanging(release: &Release, hangs: fn(&str) -> bool) -> FaultServer {
    let offer = release.offer("", "update.payload");
    let payload = Arc::clone(&release.payload);
    FaultServer::start(move |request: &Request| {
        let body = String::from_utf8_lossy(&request.body);
        if request.method == "GET" {
            Answer::File(Arc::clone(&payload), Fault::None)
        } else if hangs(&body) {
            Answer::File(Arc::new(vec![0; 10]), Fault::StallAt(0))
        } else if body.contains("<updatecheck") {
            let mut offer = offer.clone();
            offer.codebase = format!("http://{}/files", request.host);
            Answer::Document(offer.to_xml().into_bytes())
        } else {
            Answer::Document(no_update().into_bytes())
        }
    })
    .unwrap()
}

fn is_event(body: &str) -> bool {
    !body.contains("<updatecheck")
}

fn is_applied(body: &str) -> bool {
    is_event(body) && body.contains("eventtype=\"3\" eventresult=\"1\"")
}

fn numbers(events: &[Event]) -> Vec<(i32, i32)> {
    let number = |event: &Event| (event.event_type.number(), event.result.number());
    events.iter().map(number).collect()
}

fn machine(server: &FaultServer) -> Machine {
    Machine::new(SLOT_SIZE, &server.url("/v1/update/"), "ed25519").unwrap()
}

fn update(machine: &Machine) {
    machine.client(&["-follow"]).unwrap().success().unwrap();
}

#[test]
fn a_server_that_hangs_on_events_does_not_hold_up_an_update() {
    let release = Release::make(Recipe::default()).unwrap();
    let server = serve_hanging(&release, is_event);
    let machine = machine(&server);
    let _daemon = machine.start_daemon().unwrap();
    // One post alone may take 90 seconds.
    update(&machine);
    assert_eq!(machine.disk.next_boot().unwrap(), Slot::B);
}

#[test]
fn a_daemon_that_dies_while_it_reports_the_flip_knows_of_it_when_it_comes_back() {
    let release = Release::make(Recipe::default()).unwrap();
    let server = serve_hanging(&release, is_applied);
    let machine = machine(&server);
    let mut daemon = machine.start_daemon().unwrap();
    machine
        .client(&["-check_for_update"])
        .unwrap()
        .success()
        .unwrap();
    server
        .wait_until(LIMIT, |exchanges| {
            let is_applied = |body: &[u8]| is_applied(&String::from_utf8_lossy(body));
            exchanges
                .iter()
                .any(|exchange| is_applied(&exchange.request.body))
        })
        .unwrap();
    daemon.kill().unwrap();

    let _daemon = machine.start_daemon().unwrap();
    let status = machine.status().unwrap();
    assert_eq!(
        status["current_operation"],
        "UPDATE_STATUS_UPDATED_NEED_REBOOT"
    );
    assert_eq!(machine.disk.next_boot().unwrap(), Slot::B);
    assert!(machine.path(OUTBOX).exists(), "the event is kept");
}

#[test]
fn events_kept_for_a_server_that_is_gone_do_not_hold_back_those_for_another() {
    let release = Release::make(Recipe::default()).unwrap();
    let server = serve_hanging(&release, |_| false);
    let machine = machine(&server);
    machine
        .write(
            OUTBOX,
            r#"[{"url":"http://127.0.0.1:1/","body":"<request/>"}]"#,
        )
        .unwrap();
    let _daemon = machine.start_daemon().unwrap();
    update(&machine);
    let heard = numbers(&events(&server.exchanges()).unwrap());
    assert_eq!(heard, [(3, 2), (13, 1), (14, 1), (3, 1)]);
}

#[test]
fn an_update_that_is_reset_stays_the_next_to_boot_after_a_restart_of_the_daemon() {
    let release = Release::make(Recipe::default()).unwrap();
    let server = serve_hanging(&release, |_| false);
    let machine = machine(&server);
    let daemon = machine.start_daemon().unwrap();
    update(&machine);
    machine
        .client(&["-reset_status"])
        .unwrap()
        .success()
        .unwrap();
    drop(daemon);

    // An offer asks for the proof of the running system; the pause then stops it.
    machine
        .write(
            "etc/update-engine/update.conf",
            "FIRST_CHECK_DELAY=1d\nPAUSED=yes\n",
        )
        .unwrap();
    let _daemon = machine.start_daemon().unwrap();
    let held_back = machine.client(&["-follow"]).unwrap();
    assert!(held_back.stderr.contains("paused"), "{}", held_back.stderr);
    assert_eq!(machine.disk.next_boot().unwrap(), Slot::B);
}

#[test]
fn an_update_that_was_overwritten_before_its_first_boot_is_not_taken_for_rolled_back() {
    let release = Release::make(Recipe::default()).unwrap();
    let broken = Arc::new(AtomicBool::new(false));
    let server = offer(&release, honest, {
        let broken = Arc::clone(&broken);
        move |payload, _| {
            let fault = match broken.load(Ordering::Relaxed) {
                true => Fault::FlipBitAt(3_000_000),
                false => Fault::None,
            };
            Answer::File(Arc::clone(payload), fault)
        }
    })
    .unwrap();
    let machine = machine(&server);
    let daemon = machine.start_daemon().unwrap();
    update(&machine);
    machine
        .client(&["-reset_status"])
        .unwrap()
        .success()
        .unwrap();
    broken.store(true, Ordering::Relaxed);
    let failed = machine.client(&["-follow"]).unwrap();
    assert_ne!(failed.status.code(), Some(0), "{}", failed.stderr);
    drop(daemon);

    let slot = machine.reboot(SECOND_BOOT, |_| "1.0.0").unwrap();
    assert_eq!(slot, Slot::A);
    broken.store(false, Ordering::Relaxed);
    let _daemon = machine.start_daemon().unwrap();
    update(&machine);
    let rollbacks = events(&server.exchanges())
        .unwrap()
        .into_iter()
        .filter(|event| {
            event
                .error_code
                .is_some_and(|code| code.base() == ROLLED_BACK)
        })
        .count();
    assert_eq!(rollbacks, 0);
}
