//! Transcripts of `update_engine_client`: bytes on stdout, sentences on
//! stderr, exit statuses.

use std::sync::Mutex;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::Command as ProcessCommand;
use update_engine::bus::{NAME, PATH};
use update_engine::status::{Command, Operation, Outcome, Snapshot};
use zbus::interface;
use zbus::object_server::SignalEmitter;

use crate::support::{FakeEngine, PrivateBus, Transcript, soon};

const IDLE: &str = "LAST_CHECKED_TIME=0\nPROGRESS=0.000000\nCURRENT_OP=UPDATE_STATUS_IDLE\n\
                    NEW_VERSION=0.0.0\nNEW_SIZE=0\n";
const UPDATED: &str = "LAST_CHECKED_TIME=1700000000\nPROGRESS=0.000000\n\
                       CURRENT_OP=UPDATE_STATUS_UPDATED_NEED_REBOOT\nNEW_VERSION=2.0.0\n\
                       NEW_SIZE=4096\n";
const NULL: &str = "LAST_CHECKED_TIME=0\nPROGRESS=0.000000\nCURRENT_OP=(null)\n\
                    NEW_VERSION=(null)\nNEW_SIZE=0\n";

/// Ends the attempt that is under way, in one step as the real engine does.
fn end(outcome: Outcome, change: fn(&mut Snapshot)) -> impl FnOnce(&mut Snapshot) {
    move |snapshot| {
        snapshot.details.last_outcome = outcome;
        snapshot.details.attempts += 1;
        snapshot.status.operation = Operation::Idle;
        change(snapshot);
    }
}

fn updated(snapshot: &mut Snapshot) {
    snapshot.status.last_checked_time = 1_700_000_000;
    snapshot.status.operation = Operation::UpdatedNeedReboot;
    snapshot.status.new_version = "2.0.0".into();
    snapshot.status.new_size = 4096;
}

fn failed(snapshot: &mut Snapshot) {
    snapshot.details.last_error = Some("download the payload: connection reset".into());
    snapshot.details.last_error_code = Some(9);
}

fn deferred(snapshot: &mut Snapshot) {
    snapshot.details.reason = Some("2.0.0 failed on this machine before".into());
}

fn nothing_more(_: &mut Snapshot) {}

type Attempt = (Outcome, fn(&mut Snapshot), &'static str, i32, i32);

/// Outcome, what goes with it, the sentence for it, exit status of -update and
/// of -follow.
const ATTEMPTS: [Attempt; 5] = [
    (
        Outcome::Updated,
        updated,
        "Update succeeded -- reboot needed.\n",
        0,
        0,
    ),
    (
        Outcome::NoUpdate,
        nothing_more,
        "No update available\n",
        0,
        0,
    ),
    (
        Outcome::Failed,
        failed,
        "Update failed: download the payload: connection reset (error code 9)\n",
        0,
        1,
    ),
    (
        Outcome::Deferred,
        deferred,
        "Update deferred: 2.0.0 failed on this machine before\n",
        0,
        3,
    ),
    (
        Outcome::Cancelled,
        nothing_more,
        "Update cancelled; the next attempt resumes it.\n",
        0,
        4,
    ),
];

#[tokio::test]
async fn status_prints_the_five_lines() {
    let bus = PrivateBus::open();
    let engine = FakeEngine::start(&bus, Snapshot::default()).await;
    bus.run_client(&["-status"]).await.assert(0, IDLE, "");

    engine.change(updated);
    for form in ["--status", "-status=true"] {
        bus.run_client(&[form]).await.assert(0, UPDATED, "");
    }
}

#[tokio::test]
async fn status_tells_the_last_error_in_words_on_stderr() {
    let bus = PrivateBus::open();
    let engine = FakeEngine::start(&bus, Snapshot::default()).await;
    engine.change(end(Outcome::Failed, failed));
    engine.change(deferred);
    bus.run_client(&["-status"]).await.assert(
        0,
        IDLE,
        "Last attempt failed: download the payload: connection reset (error code 9)\n\
         Nothing is installed now: 2.0.0 failed on this machine before\n",
    );
    bus.run_client(&["-status", "-json"]).await.assert(
        0,
        "{\"last_checked_time\":0,\"progress\":0.0,\"current_operation\":\"UPDATE_STATUS_IDLE\",\
         \"new_version\":\"0.0.0\",\"new_size\":0,\"details\":{\"last_outcome\":\"failed\",\
         \"last_error\":\"download the payload: connection reset\",\"last_error_code\":9,\
         \"reason\":\"2.0.0 failed on this machine before\",\"attempts\":1}}\n",
        "",
    );
}

#[tokio::test]
async fn update_waits_for_the_end_and_tells_what_came_of_it() {
    for (outcome, change, sentence, status, _) in ATTEMPTS {
        let bus = PrivateBus::open();
        let mut engine = FakeEngine::start(&bus, Snapshot::default()).await;
        let client = bus.run_client(&["-update"]);
        let attempt = async {
            assert!(matches!(
                engine.next_command().await,
                Command::AttemptUpdate
            ));
            engine.change(end(outcome, change));
        };
        let (transcript, ()) = tokio::join!(client, attempt);
        let last = if outcome == Outcome::Updated {
            UPDATED
        } else {
            IDLE
        };
        assert!(
            transcript.stdout.ends_with(last),
            "{outcome}: {transcript:?}"
        );
        assert_eq!(transcript.stdout.lines().count() % 5, 0, "{transcript:?}");
        assert_eq!(transcript.stderr, sentence);
        assert_eq!(transcript.status, Some(status), "{outcome}");
    }
}

#[tokio::test]
async fn update_polls_until_the_engine_is_done() {
    let bus = PrivateBus::open();
    let mut engine = FakeEngine::start(&bus, Snapshot::default()).await;
    let mut client = bus.client(&["-update"]).spawn().unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    engine.next_command().await;
    for operation in [
        Operation::CheckingForUpdate,
        Operation::Downloading,
        Operation::Finalizing,
    ] {
        engine.change(|snapshot| snapshot.status.operation = operation);
        let expected = format!("CURRENT_OP={operation}");
        loop {
            let line = soon("a poll", lines.next_line()).await.unwrap().unwrap();
            if line == expected {
                break;
            }
        }
    }
    engine.change(end(Outcome::NoUpdate, nothing_more));
    while soon("the end", lines.next_line()).await.unwrap().is_some() {}
    assert_eq!(client.wait().await.unwrap().code(), Some(0));
}

#[tokio::test]
async fn update_reports_an_update_that_already_waits() {
    let bus = PrivateBus::open();
    let engine = FakeEngine::start(&bus, Snapshot::default()).await;
    engine.change(updated);
    bus.run_client(&["-update"])
        .await
        .assert(0, UPDATED, "Update succeeded -- reboot needed.\n");
}

#[tokio::test]
async fn follow_shows_each_state_and_exits_by_the_outcome() {
    for (outcome, change, sentence, _, status) in ATTEMPTS {
        let bus = PrivateBus::open();
        let mut engine = FakeEngine::start(&bus, Snapshot::default()).await;
        // Signals must do: the next poll is an hour away.
        let mut client = bus
            .client(&["-follow", "-poll-seconds=3600"])
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(client.stderr.take().unwrap()).lines();
        let mut expect = async |expected: &str| {
            let line = soon(expected, lines.next_line()).await.unwrap();
            assert_eq!(line.as_deref(), Some(expected), "{outcome}");
        };

        engine.next_command().await;
        expect("the daemon is idle").await;
        engine.change(|snapshot| snapshot.status.operation = Operation::CheckingForUpdate);
        expect("checking for an update").await;
        engine.change(|snapshot| {
            snapshot.status.operation = Operation::Downloading;
            snapshot.status.new_version = "2.0.0".into();
            snapshot.status.progress = 0.5;
            snapshot.details.bytes_done = Some(2048);
            snapshot.details.bytes_total = Some(4096);
        });
        expect("downloading 2.0.0: 50 %, 2.00 KiB of 4.00 KiB").await;
        engine.change(end(outcome, change));
        expect(match outcome {
            Outcome::Updated => "2.0.0 waits for a reboot",
            _ => "the daemon is idle",
        })
        .await;
        expect(sentence.trim_end()).await;
        let ended = soon("the end of the client", client.wait()).await.unwrap();
        assert_eq!(ended.code(), Some(status), "{outcome}");
    }
}

#[tokio::test]
async fn follow_as_json_ends_with_a_line_that_has_the_outcome() {
    let bus = PrivateBus::open();
    let mut engine = FakeEngine::start(&bus, Snapshot::default()).await;
    let client = bus.run_client(&["-follow", "-json"]);
    let attempt = async {
        engine.next_command().await;
        engine.change(end(Outcome::Failed, failed));
    };
    let (transcript, ()) = tokio::join!(client, attempt);
    let lines: Vec<serde_json::Value> = transcript
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let (last, earlier) = lines.split_last().unwrap();
    assert!(earlier.iter().all(|line| line.get("outcome").is_none()));
    assert_eq!(last["outcome"], "failed");
    assert_eq!(last["details"]["last_error_code"], 9);
    assert_eq!(transcript.status, Some(1));
}

#[tokio::test]
async fn a_restarted_daemon_is_no_success() {
    let bus = PrivateBus::open();
    let mut engine = FakeEngine::start(&bus, Snapshot::default()).await;
    engine.change(|snapshot| snapshot.details.attempts = 7);
    let client = bus.run_client(&["-update"]);
    let restart = async {
        engine.next_command().await;
        engine.snapshots.send_replace(Snapshot::default());
    };
    let (transcript, ()) = tokio::join!(client, restart);
    assert!(transcript.stdout.ends_with(IDLE), "{transcript:?}");
    assert_eq!(
        transcript.stderr,
        "The update daemon was restarted during the attempt.\n"
    );
    assert_eq!(transcript.status, Some(1));
}

#[tokio::test]
async fn check_for_update_asks_and_returns() {
    let bus = PrivateBus::open();
    let mut engine = FakeEngine::start(&bus, Snapshot::default()).await;
    bus.run_client(&["-check_for_update"])
        .await
        .assert(0, "", "");
    assert!(matches!(
        engine.next_command().await,
        Command::AttemptUpdate
    ));
}

#[tokio::test]
async fn a_request_that_is_not_taken_ends_as_the_originals_abort() {
    let bus = PrivateBus::open();
    let engine = FakeEngine::start(&bus, Snapshot::default()).await;
    drop((engine.snapshots, engine.commands));
    let stopped = "org.freedesktop.DBus.Error.Failed: the update engine has stopped; its daemon \
                   is ending";
    bus.run_client(&["-check_for_update"]).await.assert(
        134,
        "",
        &format!("error: call AttemptUpdate: {stopped}\n"),
    );
    bus.run_client(&["-update"]).await.assert(
        134,
        "",
        &format!("error: call GetDetails: {stopped}\n"),
    );
    bus.run_client(&["-follow"]).await.assert(
        1,
        "",
        &format!("error: call GetDetails: {stopped}\n"),
    );
}

#[tokio::test]
async fn status_of_a_daemon_that_fails_is_zeros_for_scripts_and_an_error_for_programs() {
    let bus = PrivateBus::open();
    let engine = FakeEngine::start(&bus, Snapshot::default()).await;
    drop((engine.snapshots, engine.commands));
    let script = bus.run_client(&["-status"]).await;
    assert_eq!((script.stdout.as_str(), script.status), (NULL, Some(0)));
    assert!(script.stderr.starts_with("error: call GetStatus: "));
    let program = bus.run_client(&["-status", "-json"]).await;
    assert_eq!((program.stdout.as_str(), program.status), ("", Some(1)));
}

/// What the client says of a reset that the daemon does.
async fn granted_reset(bus: &PrivateBus, engine: &mut FakeEngine) -> Transcript {
    let client = bus.run_client(&["-reset_status"]);
    let answer = async {
        match engine.next_command().await {
            Command::ResetStatus(answer) => answer.send(true).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    tokio::join!(client, answer).0
}

#[tokio::test]
async fn reset_status_succeeds_or_is_refused() {
    let bus = PrivateBus::open();
    let mut engine = FakeEngine::start(&bus, Snapshot::default()).await;
    engine.change(updated);
    let transcript = granted_reset(&bus, &mut engine).await;
    assert_eq!(transcript.status, Some(0), "{transcript:?}");
    assert!(transcript.stdout.is_empty());
    let hint = "\"gptprio prioritize DISK SLOT\"";
    assert!(transcript.stderr.contains(hint), "{transcript:?}");

    engine.change(|snapshot| snapshot.status.operation = Operation::Idle);
    let transcript = granted_reset(&bus, &mut engine).await;
    transcript.assert(0, "", "There was no finished update to forget.\n");

    engine.change(|snapshot| snapshot.status.operation = Operation::Downloading);
    bus.run_client(&["-reset_status"]).await.assert(
        1,
        "",
        "error: call ResetStatus: org.freedesktop.DBus.GLib.ErrorError: Method invoked for \
         ResetStatus returned FALSE but did not set error\n",
    );
}

#[tokio::test]
async fn cancel_reaches_the_engine() {
    let bus = PrivateBus::open();
    let mut engine = FakeEngine::start(&bus, Snapshot::default()).await;
    for (operation, words) in [
        (Operation::Downloading, "Cancellation requested.\n"),
        (
            Operation::Idle,
            "No attempt is under way: there is nothing to cancel.\n",
        ),
        (
            Operation::CheckingForUpdate,
            "Nothing is being installed: there is nothing to cancel.\n",
        ),
        (
            Operation::Finalizing,
            "The update is being finished: it is too late to cancel.\n",
        ),
    ] {
        engine.change(|snapshot| snapshot.status.operation = operation);
        bus.run_client(&["-cancel"]).await.assert(0, "", words);
        assert!(matches!(engine.next_command().await, Command::Cancel));
    }
}

#[tokio::test]
async fn watch_prints_every_signal() {
    let bus = PrivateBus::open();
    let engine = FakeEngine::start(&bus, Snapshot::default()).await;
    let mut client = bus.client(&["-watch_for_updates"]).spawn().unwrap();
    let mut lines = BufReader::new(client.stderr.take().unwrap()).lines();
    let first = soon("the watch", lines.next_line()).await.unwrap();
    assert_eq!(
        first.as_deref(),
        Some("Watching the update daemon; Ctrl-C ends.")
    );
    let mut block = async || {
        let mut block = String::new();
        for _ in 0..6 {
            let line = soon("a status line", lines.next_line()).await.unwrap();
            block += &line.unwrap();
            block += "\n";
        }
        block
    };
    engine.change(|snapshot| {
        updated(snapshot);
        snapshot.status.progress = 0.5;
    });
    assert_eq!(
        block().await,
        "Got status update:\n  last_checked_time: 1700000000\n  progress: 0.5\n  \
         current_operation: UPDATE_STATUS_UPDATED_NEED_REBOOT\n  new_version: 2.0.0\n  \
         new_size: 4096\n"
    );
}

#[tokio::test]
async fn a_missing_daemon_is_waited_for_and_then_an_error() {
    let bus = PrivateBus::open();
    let transcript = bus.run_client(&["-status", "-retry-seconds=0.02"]).await;
    let expected: String = (1..4)
        .map(|attempt| {
            format!(
                "Waiting up to 0.02 s for the update daemon: nobody owns com.coreos.update1 on \
                 the message bus (try {attempt} of 4). Is update-engine.service running?\n"
            )
        })
        .collect();
    transcript.assert(
        1,
        "",
        &format!(
            "{expected}error: no update daemon: nobody owns com.coreos.update1 on the message \
             bus\n"
        ),
    );
}

#[tokio::test]
async fn a_daemon_that_appears_ends_the_wait() {
    let bus = PrivateBus::open();
    let mut client = bus
        .client(&["-status", "-retry-seconds=3600"])
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(client.stderr.take().unwrap()).lines();
    let line = soon("the wait", lines.next_line()).await.unwrap().unwrap();
    assert!(line.starts_with("Waiting up to 3600 s"), "{line}");
    let _engine = FakeEngine::start(&bus, Snapshot::default()).await;
    let mut stdout = String::new();
    let mut reader = client.stdout.take().unwrap();
    soon("the status", reader.read_to_string(&mut stdout))
        .await
        .unwrap();
    assert_eq!(stdout, IDLE);
}

#[tokio::test]
async fn the_bus_is_the_one_given_or_that_of_the_environment() {
    let bus = PrivateBus::open();
    let _engine = FakeEngine::start(&bus, Snapshot::default()).await;
    let mut by_environment = ProcessCommand::new(env!("CARGO_BIN_EXE_update_engine_client"));
    by_environment
        .arg("-status")
        .env("DBUS_SYSTEM_BUS_ADDRESS", &bus.address);
    Transcript::of(by_environment).await.assert(0, IDLE, "");

    // The last of two counts, as the original has it.
    let nowhere = bus.run_client(&["-status", "-bus=unix:path=/nonexistent/bus"]);
    let nowhere = nowhere.await;
    assert_eq!((nowhere.stdout.as_str(), nowhere.status), ("", Some(1)));
    assert!(
        nowhere
            .stderr
            .starts_with("error: connect to the message bus at unix:path=/nonexistent/bus: "),
        "{nowhere:?}"
    );
}

#[tokio::test]
async fn without_a_flag_there_is_nothing_to_do() {
    let bus = PrivateBus::open();
    bus.run_client(&[]).await.assert(0, "", "Done.\n");
    bus.run_client(&["-nostatus"])
        .await
        .assert(0, "", "Done.\n");
}

#[tokio::test]
async fn the_first_action_of_the_originals_order_wins() {
    let bus = PrivateBus::open();
    let mut engine = FakeEngine::start(&bus, Snapshot::default()).await;
    let args = ["-watch_for_updates", "-update", "-status"];
    bus.run_client(&args).await.assert(0, IDLE, "");
    assert!(engine.commands.try_recv().is_err());
}

#[tokio::test]
async fn a_closed_pipe_is_no_panic() {
    let bus = PrivateBus::open();
    let _engine = FakeEngine::start(&bus, Snapshot::default()).await;
    for args in [["-status", "-nojson"], ["-status", "-json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut client = bus.client(&args).stdout(writer).spawn().unwrap();
        let mut stderr = String::new();
        let mut reader = client.stderr.take().unwrap();
        soon("the end", reader.read_to_string(&mut stderr))
            .await
            .unwrap();
        assert_eq!(stderr, "");
        assert_eq!(client.wait().await.unwrap().code(), Some(141));
    }
}

/// The C++ daemon: the first interface only, and idle after whatever happened.
#[derive(Default)]
struct Original {
    operation: Mutex<&'static str>,
}

#[interface(name = "com.coreos.update1.Manager")]
impl Original {
    async fn attempt_update(&self, #[zbus(signal_emitter)] emitter: SignalEmitter<'_>) {
        for operation in [
            "UPDATE_STATUS_CHECKING_FOR_UPDATE",
            "UPDATE_STATUS_REPORTING_ERROR_EVENT",
            "UPDATE_STATUS_IDLE",
        ] {
            *self.operation.lock().unwrap() = operation;
            Self::status_update(&emitter, 0, 0.0, operation, "0.0.0", 0)
                .await
                .unwrap();
        }
    }

    fn reset_status(&self) {}

    fn get_status(&self) -> (i64, f64, String, String, i64) {
        let operation = match *self.operation.lock().unwrap() {
            "" => "UPDATE_STATUS_IDLE",
            operation => operation,
        };
        (0, 0.0, operation.to_owned(), "0.0.0".to_owned(), 0)
    }

    #[zbus(signal)]
    async fn status_update(
        emitter: &SignalEmitter<'_>,
        last_checked_time: i64,
        progress: f64,
        current_operation: &str,
        new_version: &str,
        new_size: i64,
    ) -> zbus::Result<()>;
}

#[tokio::test]
async fn the_original_daemon_works_too() {
    let bus = PrivateBus::open();
    let _connection = zbus::connection::Builder::address(bus.address.as_str())
        .serve_at(PATH, Original::default())
        .name(NAME)
        .build()
        .await
        .unwrap();

    bus.run_client(&["-status"]).await.assert(0, IDLE, "");
    let json = bus.run_client(&["-status", "-json"]).await;
    assert!(json.stdout.ends_with("\"details\":null}\n"), "{json:?}");
    // Polls cannot tell a failure from "no update", signals can.
    bus.run_client(&["-update"])
        .await
        .assert(0, IDLE, "No update available\n");
    let follow = bus.run_client(&["-follow", "-poll-seconds=3600"]).await;
    assert!(
        follow
            .stderr
            .ends_with("Update failed: the daemon does not say why, its log may\n"),
        "{follow:?}"
    );
    assert_eq!(follow.status, Some(1));
    bus.run_client(&["-cancel"])
        .await
        .assert(1, "", "error: this daemon does not offer Cancel\n");
}
