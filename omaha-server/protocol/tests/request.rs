//! Requests against recordings of the original client, and tolerance in reading.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

use omaha_protocol::{
    ErrorCode, Event, EventResult, EventType, InstallSource, OS_APP_ID, Os, Ping, Request,
    RequestApp, UpdateCheckRequest,
};

/// The bodies of the recordings in `fixtures/omaha`.
const RECORDINGS: [(&str, &str); 5] = [
    (
        "ordinary check",
        include_str!("../../../fixtures/omaha/request-ordinary-check-1.http"),
    ),
    (
        "check after a successful update",
        include_str!("../../../fixtures/omaha/request-check-after-successful-update-1.http"),
    ),
    (
        "check after a rollback",
        include_str!("../../../fixtures/omaha/request-check-after-rollback-1.http"),
    ),
    (
        "check that the server refused",
        include_str!("../../../fixtures/omaha/request-check-refused-by-server-1.http"),
    ),
    (
        "failure event",
        include_str!("../../../fixtures/omaha/request-check-refused-by-server-2.http"),
    ),
];

fn body(recording: &str) -> &str {
    let (head, body) = recording.split_once("\n\n").unwrap();
    let announced: usize = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(body.len(), announced, "the recording is whole");
    body
}

/// The machine of the recordings.
fn recorded_machine(events: Vec<Event>) -> Request {
    Request {
        protocol: "3.0".into(),
        version: "update_engine-0.4.10".into(),
        updater_version: "update_engine-0.4.10".into(),
        install_source: InstallSource::OnDemandUpdate,
        is_machine: true,
        os: Os {
            platform: "CoreOS".into(),
            version: "Chateau".into(),
            service_pack: "3815.2.0_x86_64".into(),
            arch: None,
        },
        apps: vec![RequestApp {
            id: OS_APP_ID.into(),
            version: "3815.2.0".into(),
            track: "stable".into(),
            boot_id: "{11111111-2222-4333-8444-555555555555}".into(),
            aleph_version: "3815.2.0".into(),
            machine_id: "0123456789abcdef0123456789abcdef".into(),
            lang: "en-US".into(),
            board: "amd64-usr".into(),
            ping: Some(Ping { active: true }),
            update_check: Some(UpdateCheckRequest::default()),
            events,
            ..RequestApp::default()
        }],
        ..Request::default()
    }
}

#[test]
fn recordings_survive_reading_and_writing_byte_for_byte() {
    for (name, recording) in RECORDINGS {
        let body = body(recording);
        let request = Request::parse(body.as_bytes()).unwrap();
        assert_eq!(request.to_xml(), body, "{name}");
    }
}

#[test]
fn requests_made_from_an_identity_equal_the_recordings() {
    let refused = ErrorCode::OMAHA_RESPONSE_INVALID.with_flags(ErrorCode::FLAG_TEST_OMAHA_URL);
    let mut failure = recorded_machine(vec![Event::failure(refused)]);
    failure.apps[0].ping = None;
    failure.apps[0].update_check = None;
    let rollback = Event::failure(ErrorCode::ROLLBACK);
    let made = [
        recorded_machine(vec![Event::update_complete("")]),
        recorded_machine(vec![Event::update_complete("3760.0.0")]),
        recorded_machine(vec![rollback]),
        recorded_machine(vec![Event::update_complete("")]),
        failure,
    ];
    for (request, (name, recording)) in made.iter().zip(RECORDINGS) {
        assert_eq!(request.to_xml(), body(recording), "{name}");
    }
}

#[test]
fn order_unknown_parts_comments_and_white_space_do_not_matter() {
    let document = br#"
        <!-- before --><?pi ?>
        <request futureattribute="1" ismachine="TRUE" protocol='3.0'>
          <app board="amd64-usr" appid="a" unknown="x" delta_okay="True">
            <data name="untrusted">text &amp; &#65; <![CDATA[<more>]]></data>
            <event eventresult="1" eventtype="13" download_time_ms="17"/>
            <updatecheck targetversionprefix="4152." updatedisabled="true"><future><app appid="no"/></future></updatecheck>
            <ping a="-1" active="1"></ping>
          </app>
          <hw physmemory="17"/>
          <x:app xmlns:x="urn:x" appid="another vocabulary"/>
          <os platform="CoreOS"/>
          <app appid="b"/>
        </request>
        <!-- after -->"#;
    let request = Request::parse(document).unwrap();
    assert_eq!(
        request,
        Request {
            protocol: "3.0".into(),
            is_machine: true,
            os: Os {
                platform: "CoreOS".into(),
                ..Os::default()
            },
            apps: vec![
                RequestApp {
                    id: "a".into(),
                    board: "amd64-usr".into(),
                    delta_okay: true,
                    ping: Some(Ping { active: true }),
                    update_check: Some(UpdateCheckRequest {
                        update_disabled: true,
                        target_version_prefix: Some("4152.".into()),
                    }),
                    events: vec![Event::new(
                        EventType::UpdateDownloadStarted,
                        EventResult::Success
                    )],
                    ..RequestApp::default()
                },
                RequestApp {
                    id: "b".into(),
                    ..RequestApp::default()
                },
            ],
            ..Request::default()
        }
    );
}

#[test]
fn a_byte_order_mark_and_any_spelling_of_utf_8_are_tolerated() {
    for prolog in [
        "\u{feff}",
        "\u{feff}<?xml version=\"1.0\" encoding=\"UTF-8\"?>",
        "<?xml version='1.0'?>",
        "<?xml version='1.0' encoding='utf-8' standalone='yes'?>\r\n",
        "<?xml version='1.0' encoding='US-ASCII'?>",
    ] {
        let document = format!("{prolog}<request protocol=\"3.0\"/>");
        let request = Request::parse(document.as_bytes()).unwrap();
        assert_eq!(request.protocol, "3.0", "{prolog:?}");
    }
}

#[test]
fn codes_are_read_like_the_peers_do() {
    for (attributes, event_type, result, code) in [
        ("", 0, 0, None),
        (r#"eventtype="x" eventresult="" errorcode="y""#, 0, 0, None),
        (r#"eventtype="800" eventresult="42""#, 800, 42, None),
        (r#"eventtype="3junk" eventresult=" 0""#, 3, 0, None),
        (
            r#"eventtype="99999999999" eventresult="-99999999999""#,
            i32::MAX,
            i32::MIN,
            None,
        ),
        (r#"errorcode="-2147483639""#, 0, 0, Some(-2_147_483_639)),
        (r#"errorcode="2147483657""#, 0, 0, Some(2_147_483_657)),
        (r#"errorcode="-99999999999999999999""#, 0, 0, Some(i64::MIN)),
        (r#"errorcode="99999999999999999999""#, 0, 0, Some(i64::MAX)),
    ] {
        let document = format!("<request><app><event {attributes}/></app></request>");
        let request = Request::parse(document.as_bytes()).unwrap();
        let event = &request.apps[0].events[0];
        assert_eq!(event.event_type.number(), event_type, "{attributes}");
        assert_eq!(event.result.number(), result, "{attributes}");
        assert_eq!(
            event.error_code.map(ErrorCode::number),
            code,
            "{attributes}"
        );
    }
}

#[test]
fn special_characters_are_escaped_as_the_original_does_and_quotes_too() {
    let mut request = recorded_machine(Vec::new());
    request.apps[0].machine_alias = "<a> & \"b\" 'c' é\u{1f980} \r\u{1}\u{7f}".into();
    let xml = request.to_xml();
    assert!(
        xml.contains(concat!(
            r#" machinealias="&lt;a&gt; &amp; &quot;b&quot; 'c' &#xE9;&#x1F980; &#13;"#,
            "\u{7f}\" "
        )),
        "{xml}"
    );
    let read = Request::parse(xml.as_bytes()).unwrap();
    assert_eq!(
        read.apps[0].machine_alias,
        "<a> & \"b\" 'c' é\u{1f980} \r\u{7f}"
    );
}
