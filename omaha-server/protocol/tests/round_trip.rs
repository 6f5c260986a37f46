//! What is written is read back as the same value, and reading never panics.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use omaha_protocol::{
    Action, DayStart, ErrorCode, Event, EventResult, EventType, Manifest, Os, Package, Ping,
    Request, RequestApp, Response, ResponseApp, UpdateCheck, UpdateCheckRequest, UpdateCheckStatus,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

/// Any text without what XML cannot carry through an attribute: control
/// characters, among them tab and line feed, which a reader turns into spaces.
fn text() -> impl Strategy<Value = String> {
    "[^\\p{Cc}\u{fffe}\u{ffff}]{0,12}"
}

fn event() -> impl Strategy<Value = Event> {
    let code = option::of(any::<i64>().prop_map(ErrorCode::new));
    (
        any::<i32>(),
        0..12i32,
        code,
        option::of(text()),
        option::of(text()),
    )
        .prop_map(
            |(event_type, result, error_code, previous_version, next_version)| Event {
                event_type: EventType::from(event_type % 1000),
                result: EventResult::from(result),
                error_code,
                previous_version,
                next_version,
            },
        )
}

fn request_app() -> impl Strategy<Value = RequestApp> {
    let texts = proptest::array::uniform12(text());
    let children = (
        option::of(any::<bool>().prop_map(|active| Ping { active })),
        option::of((any::<bool>(), option::of(text())).prop_map(
            |(update_disabled, target_version_prefix)| UpdateCheckRequest {
                update_disabled,
                target_version_prefix,
            },
        )),
        vec(event(), 0..3),
    );
    let optional = proptest::array::uniform4(option::of(text()));
    (texts, any::<bool>(), optional, children).prop_map(
        |(texts, delta_okay, optional, (ping, update_check, events))| {
            let [from_track, next_version, usr_sha256, encoders] = optional;
            let [
                id,
                version,
                track,
                boot_id,
                oem,
                oem_version,
                aleph_version,
                machine_id,
                machine_alias,
                lang,
                board,
                hardware_class,
            ] = texts;
            RequestApp {
                id,
                version,
                track,
                boot_id,
                oem,
                oem_version,
                aleph_version,
                machine_id,
                machine_alias,
                lang,
                board,
                hardware_class,
                delta_okay,
                from_track,
                next_version,
                usr_sha256,
                encoders,
                ping,
                update_check,
                events,
            }
        },
    )
}

fn request() -> impl Strategy<Value = Request> {
    let texts = proptest::array::uniform7(text());
    let optional = proptest::array::uniform4(option::of(text()));
    (texts, optional, any::<bool>(), vec(request_app(), 0..3)).prop_map(
        |(texts, optional, is_machine, apps)| {
            let [
                protocol,
                version,
                updater_version,
                source,
                platform,
                os_version,
                service_pack,
            ] = texts;
            let [request_id, session_id, test_source, arch] = optional;
            Request {
                protocol,
                version,
                updater_version,
                install_source: source.as_str().into(),
                is_machine,
                request_id,
                session_id,
                test_source,
                os: Os {
                    platform,
                    version: os_version,
                    service_pack,
                    arch,
                },
                apps,
            }
        },
    )
}

fn package() -> impl Strategy<Value = Package> {
    let size = option::of(1..=u64::try_from(i64::MAX).unwrap());
    (
        text(),
        size,
        option::of(text()),
        option::of(text()),
        any::<bool>(),
    )
        .prop_map(|(name, size, sha1, sha256, required)| Package {
            name,
            size,
            sha1,
            sha256,
            required,
        })
}

fn action() -> impl Strategy<Value = Action> {
    (
        text(),
        text(),
        proptest::array::uniform3(any::<bool>()),
        option::of(any::<u32>()),
    )
        .prop_map(
            |(event, sha256, [is_delta, disable_payload_backoff, needs_admin], failures)| Action {
                event: event.as_str().into(),
                sha256,
                is_delta,
                disable_payload_backoff,
                max_failure_count_per_url: failures,
                needs_admin,
            },
        )
}

fn update_check() -> impl Strategy<Value = UpdateCheck> {
    let status = prop_oneof![
        Just(UpdateCheckStatus::Ok),
        Just(UpdateCheckStatus::NoUpdate),
        text().prop_map(|status| status.as_str().into()),
    ];
    let urls = vec(text().prop_map(|url| url + "/"), 0..3);
    // Never the empty manifest, which is padding.
    let manifest = (text(), vec(package(), 1..3), vec(action(), 0..3)).prop_map(
        |(version, packages, actions)| Manifest {
            version,
            packages,
            actions,
        },
    );
    (
        status,
        option::of(any::<i64>()),
        option::of(text()),
        urls,
        vec(manifest, 0..3),
    )
        .prop_map(
            |(status, poll_interval, info, urls, manifests)| UpdateCheck {
                status,
                poll_interval,
                info,
                urls,
                manifests,
            },
        )
}

fn response() -> impl Strategy<Value = Response> {
    let day_start = option::of(
        (option::of(any::<i64>()), option::of(any::<i64>())).prop_map(
            |(elapsed_seconds, elapsed_days)| DayStart {
                elapsed_seconds,
                elapsed_days,
            },
        ),
    );
    let app = (
        text(),
        text(),
        any::<bool>(),
        option::of(update_check()),
        0..4usize,
    )
        .prop_map(|(id, status, ping, update_check, events)| ResponseApp {
            id,
            status: status.as_str().into(),
            ping,
            update_check,
            events,
        });
    (text(), text(), day_start, vec(app, 0..3)).prop_map(|(protocol, server, day_start, apps)| {
        Response {
            protocol,
            server,
            day_start,
            apps,
        }
    })
}

proptest! {
    #[test]
    fn requests_survive_the_wire(request in request()) {
        let xml = request.to_xml();
        prop_assert_eq!(Request::parse(xml.as_bytes()).unwrap(), request);
    }

    #[test]
    fn responses_survive_the_wire(response in response()) {
        let xml = response.to_xml();
        prop_assert_eq!(Response::parse(xml.as_bytes()).unwrap(), response);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..300)) {
        let _ = Request::parse(&bytes);
        let _ = Response::parse(&bytes);
    }

    /// A request with a few bytes overwritten gets much further into the reader.
    #[test]
    fn damaged_requests_are_read_or_refused(
        request in request(),
        damage in vec((any::<prop::sample::Index>(), prop::sample::select(b"<>\"'&;/= \0a\xff!?-[".to_vec())), 1..6),
    ) {
        let mut xml = request.to_xml().into_bytes();
        for (index, byte) in damage {
            let index = index.index(xml.len());
            xml[index] = byte;
        }
        if let Ok(read) = Request::parse(&xml) {
            prop_assert!(Request::parse(read.to_xml().as_bytes()).is_ok());
        }
    }
}
