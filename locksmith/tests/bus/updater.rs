//! update_engine as locksmithd sees it.

use std::collections::HashMap;
use std::time::Duration;

use locksmith::bus::{Bus, BusError, Hints, Status, Updater};
use tokio::time::timeout;
use zbus::{Connection, Variant, interface};

use crate::support::{PrivateBus, soon};

const NAME: &str = "com.coreos.update1";
const PATH: &str = "/com/coreos/update1";
const MANAGER: &str = "com.coreos.update1.Manager";

/// The original's interface with this operation.
struct Original(&'static str);

#[interface(name = "com.coreos.update1.Manager")]
impl Original {
    fn get_status(&self) -> (i64, f64, String, String, i64) {
        (1_700_000_000, 0.5, self.0.into(), "2.0.0".into(), 4096)
    }
}

/// The same with a value more than there was.
struct Newer;

#[interface(name = "com.coreos.update1.Manager")]
impl Newer {
    fn get_status(&self) -> (i64, f64, String, String, i64, bool) {
        (0, 0.0, "UPDATE_STATUS_IDLE".into(), "0.0.0".into(), 0, true)
    }
}

/// Something else under the same name.
struct Other;

#[interface(name = "com.coreos.update1.Manager")]
impl Other {
    fn get_status(&self) -> (String, String) {
        ("UPDATE_STATUS_UPDATED_NEED_REBOOT".into(), "2.0.0".into())
    }
}

/// One that says too much.
struct Chatty;

#[interface(name = "com.coreos.update1.Manager")]
impl Chatty {
    fn get_status(&self) -> (i64, f64, String, String, i64) {
        (0, 0.0, "UPDATE_STATUS_IDLE".into(), "9".repeat(1025), 0)
    }
}

/// What ours has besides.
struct Details;

#[interface(name = "com.coreos.update1.Details")]
impl Details {
    fn get_details(&self) -> HashMap<&str, Variant<'static>> {
        [
            ("current-version", Variant::from("1.0.0")),
            ("attempts", Variant::from(3_u64)),
            ("last-outcome", Variant::from("none")),
        ]
        .into()
    }
}

async fn updater(bus: &PrivateBus, operation: &'static str) -> Connection {
    let builder = bus.peer().serve_at(PATH, Original(operation)).name(NAME);
    builder.build().await.unwrap()
}

async fn status_update(from: &Connection, to: Option<&str>) {
    let body = (
        0_i64,
        0.0_f64,
        "UPDATE_STATUS_UPDATED_NEED_REBOOT",
        "9.9.9",
        0_i64,
    );
    from.emit_signal(to, PATH, MANAGER, "StatusUpdate", &body)
        .await
        .unwrap();
}

/// Takes the hints that are there already.
async fn settle(hints: &mut Hints) {
    while timeout(Duration::from_millis(200), hints.next())
        .await
        .is_ok()
    {}
}

async fn hint(hints: &mut Hints) {
    soon("a hint", hints.next()).await;
}

#[tokio::test]
async fn the_status_is_what_get_status_answers() {
    let bus = PrivateBus::start();
    let _engine = updater(&bus, "UPDATE_STATUS_DOWNLOADING").await;
    let status = Updater::new(&bus.bus()).status().await.unwrap();
    assert_eq!(
        status,
        Status {
            last_checked_time: 1_700_000_000,
            progress: 0.5,
            operation: "UPDATE_STATUS_DOWNLOADING".into(),
            new_version: "2.0.0".into(),
            new_size: 4096,
        }
    );
    assert!(!status.needs_reboot());
}

#[tokio::test]
async fn surplus_values_are_skipped_and_strange_answers_are_refused() {
    let bus = PrivateBus::start();
    let peer = bus.peer().serve_at(PATH, Newer).name(NAME);
    let peer = peer.build().await.unwrap();
    let updater = Updater::new(&bus.bus());
    assert_eq!(
        updater.status().await.unwrap().operation,
        "UPDATE_STATUS_IDLE"
    );

    let objects = peer.object_server();
    objects.remove::<Newer, _>(PATH).await.unwrap();
    objects.at(PATH, Other).await.unwrap();
    let error = updater.status().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "com.coreos.update1 answered GetStatus with values of other types"
    );
    objects.remove::<Other, _>(PATH).await.unwrap();
    objects.at(PATH, Chatty).await.unwrap();
    let error = updater.status().await.unwrap_err();
    assert!(matches!(error, BusError::Answer { .. }), "{error}");
}

#[tokio::test]
async fn who_is_not_there_is_named() {
    let bus = PrivateBus::start();
    let error = Updater::new(&bus.bus()).status().await.unwrap_err();
    assert!(matches!(error, BusError::Absent { .. }), "{error}");
    assert!(error.to_string().contains(NAME), "{error}");

    let nowhere = Bus::new(Some("unix:path=/nonexistent/socket"));
    let error = Updater::new(&nowhere).status().await.unwrap_err();
    assert!(matches!(error, BusError::Connect { .. }), "{error}");
    assert!(error.to_string().contains("/nonexistent/socket"), "{error}");
}

#[tokio::test]
async fn ours_tells_the_running_version_and_the_original_does_not() {
    let bus = PrivateBus::start();
    let engine = updater(&bus, "UPDATE_STATUS_IDLE").await;
    let updater = Updater::new(&bus.bus());
    assert_eq!(updater.current_version().await.unwrap(), None);
    engine.object_server().at(PATH, Details).await.unwrap();
    assert_eq!(
        updater.current_version().await.unwrap().as_deref(),
        Some("1.0.0")
    );
}

#[tokio::test]
async fn a_signal_counts_only_from_the_owner_of_the_name() {
    let bus = PrivateBus::start();
    let engine = updater(&bus, "UPDATE_STATUS_IDLE").await;
    let stranger = bus.connect().await;
    let ours = bus.bus();
    let updater = Updater::new(&ours);
    let mut hints = updater.hints();
    settle(&mut hints).await;

    status_update(&engine, None).await;
    hint(&mut hints).await;

    // To all, and to every connection alone: the second needs no match rule.
    settle(&mut hints).await;
    status_update(&stranger, None).await;
    let names = zbus::fdo::DBusProxy::new(&stranger).await.unwrap();
    for name in names.list_names().await.unwrap() {
        if name.starts_with(':') {
            status_update(&stranger, Some(name.as_str())).await;
        }
    }
    let heard = timeout(Duration::from_millis(500), hints.next()).await;
    assert!(heard.is_err(), "a stranger was heard");
    assert!(!updater.status().await.unwrap().needs_reboot());

    status_update(&engine, None).await;
    hint(&mut hints).await;
}

#[tokio::test]
async fn signals_that_nobody_waits_for_become_one_and_hold_nothing_up() {
    let bus = PrivateBus::start();
    let engine = updater(&bus, "UPDATE_STATUS_IDLE").await;
    let updater = Updater::new(&bus.bus());
    let mut hints = updater.hints();
    settle(&mut hints).await;
    // More than any queue on the connection takes.
    for _ in 0..2000 {
        status_update(&engine, None).await;
    }
    soon("an answer", updater.status()).await.unwrap();
    hint(&mut hints).await;
}

#[tokio::test]
async fn an_updater_that_comes_back_is_asked_again() {
    let bus = PrivateBus::start();
    let engine = updater(&bus, "UPDATE_STATUS_IDLE").await;
    let watched = Updater::new(&bus.bus());
    let mut hints = watched.hints();
    settle(&mut hints).await;

    engine.close().await.unwrap();
    hint(&mut hints).await;
    assert!(matches!(
        watched.status().await,
        Err(BusError::Absent { .. })
    ));
    settle(&mut hints).await;

    let engine = updater(&bus, "UPDATE_STATUS_UPDATED_NEED_REBOOT").await;
    hint(&mut hints).await;
    assert!(watched.status().await.unwrap().needs_reboot());

    // The new owner is heard.
    settle(&mut hints).await;
    status_update(&engine, None).await;
    hint(&mut hints).await;
}

#[tokio::test]
async fn a_bus_that_comes_back_is_found_again() {
    let mut bus = PrivateBus::start();
    let engine = updater(&bus, "UPDATE_STATUS_IDLE").await;
    let watched = Updater::new(&bus.bus());
    let mut hints = watched.hints();
    settle(&mut hints).await;

    bus.stop();
    hint(&mut hints).await;
    assert!(matches!(
        watched.status().await,
        Err(BusError::Connect { .. } | BusError::Call { .. })
    ));
    drop(engine);
    settle(&mut hints).await;

    bus.start_again();
    let engine = updater(&bus, "UPDATE_STATUS_UPDATED_NEED_REBOOT").await;
    hint(&mut hints).await;
    assert!(watched.status().await.unwrap().needs_reboot());
    settle(&mut hints).await;
    status_update(&engine, None).await;
    hint(&mut hints).await;
}
