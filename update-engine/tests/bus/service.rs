//! The service as its callers see it.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use tokio::process::Command as ProcessCommand;
use tokio::sync::{mpsc, watch};
use update_engine::bus::{
    BusError, DETAILS_INTERFACE, MANAGER_INTERFACE, NAME, PATH, Service, serve,
};
use update_engine::status::{Command, Details, Operation, Outcome, Snapshot, Status};
use zbus::{Connection, Proxy};

use crate::support::{FakeEngine, OPEN_POLICY, PrivateBus, Transcript, soon};

async fn manager(connection: &Connection) -> Proxy<'static> {
    Proxy::new(connection, NAME, PATH, MANAGER_INTERFACE)
        .await
        .unwrap()
}

async fn details(connection: &Connection) -> Proxy<'static> {
    Proxy::new(connection, NAME, PATH, DETAILS_INTERFACE)
        .await
        .unwrap()
}

fn downloading() -> Snapshot {
    Snapshot {
        status: Status {
            last_checked_time: 1_700_000_000,
            progress: 0.25,
            operation: Operation::Downloading,
            new_version: "2.0.0".into(),
            new_size: 4096,
        },
        details: Details::default(),
    }
}

/// Name and text of the error reply that a call must get.
async fn refusal(proxy: &Proxy<'_>, method: &str) -> (String, String) {
    match proxy.call_method(method, &()).await {
        Err(zbus::Error::MethodError(name, text, _)) => {
            (name.to_string(), text.unwrap_or_default())
        }
        Err(zbus::Error::FDO(error)) => {
            use zbus::DBusError;
            let text = error.description().unwrap_or_default().to_owned();
            (error.name().to_string(), text)
        }
        other => panic!("{method} was not refused: {other:?}"),
    }
}

#[tokio::test]
async fn introspection_shows_the_published_members_and_signatures() {
    let bus = PrivateBus::open();
    let _engine = FakeEngine::start(&bus, Snapshot::default()).await;
    let connection = bus.connect().await;
    let xml = manager(&connection).await.introspect().await.unwrap();

    for interface in [
        r#"
  <interface name="com.coreos.update1.Manager">
    <method name="AttemptUpdate">
    </method>
    <method name="ResetStatus">
    </method>
    <method name="GetStatus">
      <arg name="last_checked_time" type="x" direction="out"/>
      <arg name="progress" type="d" direction="out"/>
      <arg name="current_operation" type="s" direction="out"/>
      <arg name="new_version" type="s" direction="out"/>
      <arg name="new_size" type="x" direction="out"/>
    </method>
    <signal name="StatusUpdate">
      <arg name="last_checked_time" type="x"/>
      <arg name="progress" type="d"/>
      <arg name="current_operation" type="s"/>
      <arg name="new_version" type="s"/>
      <arg name="new_size" type="x"/>
    </signal>
  </interface>
"#,
        r#"
  <interface name="com.coreos.update1.Details">
    <method name="GetDetails">
      <arg name="details" type="a{sv}" direction="out"/>
    </method>
    <method name="Cancel">
    </method>
  </interface>
"#,
    ] {
        assert!(xml.contains(interface), "{interface}\nis not in\n{xml}");
    }
}

#[tokio::test]
async fn get_status_reads_the_same_in_every_tool() {
    let bus = PrivateBus::open();
    let _engine = FakeEngine::start(&bus, Snapshot::default()).await;
    let tools: [(&str, Vec<String>, &str); 3] = [
        (
            "busctl",
            vec![
                format!("--address={}", bus.address),
                "call".into(),
                NAME.into(),
                PATH.into(),
                MANAGER_INTERFACE.into(),
                "GetStatus".into(),
            ],
            "xdssx 0 0 \"UPDATE_STATUS_IDLE\" \"0.0.0\" 0\n",
        ),
        (
            "dbus-send",
            vec![
                format!("--bus={}", bus.address),
                "--print-reply=literal".into(),
                format!("--dest={NAME}"),
                PATH.into(),
                format!("{MANAGER_INTERFACE}.GetStatus"),
            ],
            "   int64 0\n   double 0\n   UPDATE_STATUS_IDLE   0.0.0   int64 0\n",
        ),
        (
            "gdbus",
            vec![
                "call".into(),
                format!("--address={}", bus.address),
                format!("--dest={NAME}"),
                format!("--object-path={PATH}"),
                format!("--method={MANAGER_INTERFACE}.GetStatus"),
            ],
            "(int64 0, 0.0, 'UPDATE_STATUS_IDLE', '0.0.0', int64 0)\n",
        ),
    ];
    for (tool, args, expected) in tools {
        let installed = ProcessCommand::new(tool).arg("--help").output().await;
        if installed.is_err() {
            eprintln!("{tool} is not installed, not compared");
            continue;
        }
        let mut command = ProcessCommand::new(tool);
        command.args(args);
        let transcript = Transcript::of(command).await;
        assert_eq!(transcript.stdout, expected, "{tool}: {transcript:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_answers_within_100_ms_while_the_engine_is_blocked() {
    let bus = PrivateBus::open();
    let engine = FakeEngine::start(&bus, downloading()).await;
    // An engine that blocks its thread and never takes a command.
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let engine_task = tokio::spawn(async move {
        let _ = blocked.recv();
        drop(engine);
    });

    let connection = bus.connect().await;
    let (manager, details) = (manager(&connection).await, details(&connection).await);
    let calls = [
        (&manager, "GetStatus"),
        (&manager, "AttemptUpdate"),
        (&manager, "ResetStatus"),
        (&details, "GetDetails"),
        (&details, "Cancel"),
    ];
    for (proxy, method) in calls {
        // The quickest of a few, since the machine may be busy with others; one
        // that waits for the engine is never quick.
        let mut quickest = Duration::MAX;
        for _ in 0..5 {
            let start = Instant::now();
            let _ = soon(method, proxy.call_method(method, &())).await;
            quickest = quickest.min(start.elapsed());
        }
        let limit = Duration::from_millis(100);
        assert!(quickest < limit, "{method} took {quickest:?}");
    }
    drop(release);
    engine_task.await.unwrap();
}

#[tokio::test]
async fn status_update_comes_at_the_start_and_with_every_change() {
    let bus = PrivateBus::open();
    let connection = bus.connect().await;
    let proxy = manager(&connection).await;
    let mut signals = proxy.receive_signal("StatusUpdate").await.unwrap();
    let mut next = async || {
        let signal = soon("a signal", signals.next()).await.unwrap();
        assert_eq!(signal.body().signature().to_string(), "(xdssx)");
        let body: (i64, f64, String, String, i64) = signal.body().deserialize().unwrap();
        body
    };

    let engine = FakeEngine::start(&bus, Snapshot::default()).await;
    let idle = (0, 0.0, "UPDATE_STATUS_IDLE".into(), "0.0.0".into(), 0);
    assert_eq!(next().await, idle);

    engine.snapshots.send_replace(downloading());
    let quarter = (
        1_700_000_000,
        0.25,
        "UPDATE_STATUS_DOWNLOADING".to_owned(),
        "2.0.0".to_owned(),
        4096,
    );
    assert_eq!(next().await, quarter);

    // What is below one percent is not announced: the throttle's own tests.
    engine.change(|snapshot| snapshot.status.progress = 0.26);
    assert_eq!(next().await.1, 0.26);
}

#[tokio::test]
async fn attempt_update_reaches_the_engine_from_idle_alone() {
    let bus = PrivateBus::open();
    let mut engine = FakeEngine::start(&bus, Snapshot::default()).await;
    let connection = bus.connect().await;
    let proxy = manager(&connection).await;

    for operation in Operation::ALL {
        engine.change(|snapshot| snapshot.status.operation = operation);
        let _: () = proxy.call("AttemptUpdate", &()).await.unwrap();
        if operation == Operation::Idle {
            assert!(matches!(
                engine.next_command().await,
                Command::AttemptUpdate
            ));
        }
        assert!(engine.commands.try_recv().is_err(), "{operation}");
    }
}

#[tokio::test]
async fn reset_status_is_the_engines_decision_and_refused_as_by_the_original() {
    let bus = PrivateBus::open();
    let mut engine = FakeEngine::start(&bus, Snapshot::default()).await;
    let connection = bus.connect().await;
    let proxy = manager(&connection).await;
    let original = (
        "org.freedesktop.DBus.GLib.ErrorError".to_owned(),
        "Method invoked for ResetStatus returned FALSE but did not set error".to_owned(),
    );

    for allowed in [true, false] {
        engine.change(|snapshot| snapshot.status.operation = Operation::UpdatedNeedReboot);
        let call = proxy.call_method("ResetStatus", &());
        let answer = async {
            match engine.next_command().await {
                Command::ResetStatus(answer) => answer.send(allowed).unwrap(),
                other => panic!("{other:?}"),
            }
        };
        let (result, ()) = tokio::join!(call, answer);
        assert_eq!(result.is_ok(), allowed);
    }

    engine.change(|snapshot| snapshot.status.operation = Operation::Finalizing);
    assert_eq!(refusal(&proxy, "ResetStatus").await, original);
    assert!(
        engine.commands.try_recv().is_err(),
        "the engine is not asked while it works"
    );
}

#[tokio::test]
async fn requests_beyond_the_engines_queue_are_refused_not_lost() {
    let bus = PrivateBus::open();
    let mut engine = FakeEngine::start(&bus, Snapshot::default()).await;
    let connection = bus.connect().await;
    let proxy = details(&connection).await;
    let _: () = proxy.call("Cancel", &()).await.unwrap();
    let (name, text) = refusal(&proxy, "Cancel").await;
    assert_eq!(name, "org.freedesktop.DBus.Error.LimitsExceeded", "{text}");
    engine.next_command().await;
    let _: () = proxy.call("Cancel", &()).await.unwrap();
}

#[tokio::test]
async fn details_and_cancel_pass_through() {
    let bus = PrivateBus::open();
    let mut engine = FakeEngine::start(&bus, Snapshot::default()).await;
    engine.change(|snapshot| {
        snapshot.details = Details {
            last_outcome: Outcome::Failed,
            last_error: Some("no space".into()),
            attempts: 3,
            ..Details::default()
        };
    });
    let connection = bus.connect().await;
    let proxy = details(&connection).await;
    let dict: update_engine::bus::DetailsDict = proxy.call("GetDetails", &()).await.unwrap();
    assert_eq!(
        Details::from(dict),
        engine.snapshots.borrow().details.clone()
    );
    let _: () = proxy.call("Cancel", &()).await.unwrap();
    assert!(matches!(engine.next_command().await, Command::Cancel));
}

#[tokio::test]
async fn a_stopped_engine_is_said_to_be_stopped() {
    let bus = PrivateBus::open();
    let engine = FakeEngine::start(&bus, Snapshot::default()).await;
    let connection = bus.connect().await;
    let (manager, details) = (manager(&connection).await, details(&connection).await);
    drop((engine.snapshots, engine.commands));
    for (proxy, method) in [
        (&manager, "GetStatus"),
        (&manager, "AttemptUpdate"),
        (&manager, "ResetStatus"),
        (&details, "GetDetails"),
        (&details, "Cancel"),
    ] {
        let (name, text) = refusal(proxy, method).await;
        assert_eq!(name, "org.freedesktop.DBus.Error.Failed", "{method}");
        assert!(text.contains("has stopped"), "{method}: {text}");
    }
    assert!(!engine.service.is_finished());
}

#[tokio::test]
async fn a_second_daemon_is_refused_and_told_who_owns_the_name() {
    let bus = PrivateBus::open();
    let _engine = FakeEngine::start(&bus, Snapshot::default()).await;
    let (_snapshots, seen) = watch::channel(Snapshot::default());
    let (queue, _commands) = mpsc::channel(1);
    let error = serve(Some(&bus.address), seen, queue).await;
    let text = error.to_string();
    assert!(matches!(error, BusError::NameTaken { .. }), "{text}");
    assert!(
        text.contains("com.coreos.update1 is already owned by connection :")
            && text.contains(&format!("process {}", std::process::id())),
        "{text}"
    );
}

#[tokio::test]
async fn a_policy_that_forbids_the_name_is_named() {
    let forbidding =
        format!("{OPEN_POLICY}\n  <policy context=\"mandatory\"><deny own=\"{NAME}\"/></policy>");
    let bus = PrivateBus::start(&forbidding);
    let (_snapshots, seen) = watch::channel(Snapshot::default());
    let (queue, _commands) = mpsc::channel(1);
    let error = Service::connect(Some(&bus.address), seen, queue)
        .await
        .unwrap_err();
    assert!(matches!(error, BusError::NameRefused(_)), "{error:?}");
    assert!(error.to_string().contains("com.coreos.update1.conf"));
}

#[tokio::test]
async fn no_bus_is_an_error_with_its_address() {
    let (_snapshots, seen) = watch::channel(Snapshot::default());
    let (queue, _commands) = mpsc::channel(1);
    let error = serve(Some("unix:path=/nonexistent/bus"), seen, queue).await;
    assert!(matches!(error, BusError::Connect { .. }), "{error:?}");
    assert_eq!(
        error.to_string(),
        "connect to the message bus at unix:path=/nonexistent/bus"
    );
}

#[tokio::test]
async fn the_service_ends_with_its_bus() {
    let bus = PrivateBus::open();
    let engine = FakeEngine::start(&bus, Snapshot::default()).await;
    drop(bus);
    let ended = soon("the end of the service", engine.service).await;
    assert!(matches!(ended.unwrap(), BusError::Closed));
}
