//! Responses: what the known clients insist on, and what they tolerate.

#![allow(clippy::unwrap_used, reason = "a test may fail by panic")]

mod ue_rs;

use omaha_protocol::{
    Action, ActionEvent, AppStatus, DayStart, Manifest, Package, Response, ResponseApp,
    UpdateCheck, UpdateCheckStatus,
};

fn offer() -> UpdateCheck {
    UpdateCheck {
        status: UpdateCheckStatus::Ok,
        poll_interval: Some(3600),
        info: None,
        urls: vec![
            "http://127.0.0.1:8000/p/ab/".into(),
            "https://mirror/a?b&c".into(),
        ],
        manifests: vec![Manifest {
            version: "4152.10.0".into(),
            packages: vec![
                Package::new("flatcar.gz", 123_123_123_123_123, &[0xfb; 20], &[0xab; 32]),
                Package {
                    required: false,
                    ..Package::new("oem-ami.gz", 1, &[0; 20], &[1; 32])
                },
            ],
            actions: vec![Action::postinstall(&[0xab; 32], false)],
        }],
    }
}

fn reply(checks: Vec<Option<UpdateCheck>>) -> Response {
    Response {
        protocol: "3.0".into(),
        server: "omaha-server".into(),
        day_start: Some(DayStart {
            elapsed_seconds: Some(0),
            elapsed_days: None,
        }),
        apps: checks
            .into_iter()
            .map(|update_check| ResponseApp {
                id: "{App}".into(),
                status: AppStatus::Ok,
                ping: true,
                update_check,
                events: 2,
            })
            .collect(),
    }
}

#[test]
fn an_offer_is_written_in_this_form() {
    assert_eq!(
        reply(vec![Some(offer())]).to_xml(),
        r#"<?xml version="1.0" encoding="UTF-8"?>
<response protocol="3.0" server="omaha-server">
    <daystart elapsed_seconds="0"></daystart>
    <app appid="{App}" status="ok">
        <ping status="ok"></ping>
        <updatecheck status="ok" PollInterval="3600">
            <urls>
                <url codebase="http://127.0.0.1:8000/p/ab/"></url>
                <url codebase="https://mirror/a?b&amp;c/"></url>
            </urls>
            <manifest version="4152.10.0">
                <packages>
                    <package name="flatcar.gz" hash="+/v7+/v7+/v7+/v7+/v7+/v7+/s=" hash_sha256="abababababababababababababababababababababababababababababababab" size="123123123123123" required="true"></package>
                    <package name="oem-ami.gz" hash="AAAAAAAAAAAAAAAAAAAAAAAAAAA=" hash_sha256="0101010101010101010101010101010101010101010101010101010101010101" size="1" required="false"></package>
                </packages>
                <actions>
                    <action event="postinstall" sha256="q6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=" needsadmin="false" IsDeltaPayload="false" DisablePayloadBackoff="true"></action>
                </actions>
            </manifest>
        </updatecheck>
        <event status="ok"></event>
        <event status="ok"></event>
    </app>
</response>
"#
    );
}

#[test]
fn a_refusal_is_padded_in_writing_and_bare_in_reading() {
    let refused = UpdateCheck {
        info: Some("already at the newest version".into()),
        ..UpdateCheck::no_update()
    };
    let response = reply(vec![Some(refused)]);
    let xml = response.to_xml();
    assert!(xml.contains("<manifest version=\"\">"), "{xml}");
    assert_eq!(Response::parse(xml.as_bytes()).unwrap(), response);
}

#[test]
fn ue_rs_accepts_every_kind_of_our_replies_to_its_checks() {
    let with_status = |status: &str| UpdateCheck {
        status: status.into(),
        ..UpdateCheck::no_update()
    };
    let delta = UpdateCheck {
        manifests: vec![Manifest {
            actions: vec![Action::postinstall(&[9; 32], true)],
            ..offer().manifests.remove(0)
        }],
        ..offer()
    };
    for check in [
        offer(),
        delta,
        with_status("noupdate"),
        with_status("error-internal"),
    ] {
        let xml = reply(vec![Some(check)]).to_xml();
        ue_rs::check(&xml).unwrap_or_else(|reason| panic!("{reason}:\n{xml}"));
    }
}

#[test]
fn response_helpers_find_the_first_of_each_kind_over_the_document() {
    let document = br#"<response>
        <app appid="no check"/>
        <app appid="first">
          <updatecheck status="ok" PollInterval="2700s"><urls><url codebase="a"/></urls>
            <manifest version="1"/></updatecheck>
          <updatecheck status="noupdate" PollInterval="1"><urls><url codebase="b"/><url/></urls></updatecheck>
        </app>
        <app appid="second">
          <updatecheck status="noupdate"><urls><url codebase="c"/></urls>
            <manifest version="2">
              <actions><action event="install" sha256="no"/><action event="postinstall" sha256="yes" IsDeltaPayload="True" DisablePayloadBackoff="true" MaxFailureCountPerUrl="7"/></actions>
              <packages><package name="p" size="17 bytes"/></packages></manifest>
          </updatecheck>
        </app>
      </response>"#;
    let response = Response::parse(document).unwrap();
    let check = response.update_check().unwrap();
    assert_eq!(check.status, UpdateCheckStatus::Ok);
    assert_eq!(check.poll_interval, Some(2700));
    assert_eq!(response.urls().collect::<Vec<_>>(), ["a", "b", "", "c"]);
    assert_eq!(response.manifest().unwrap().version, "1");
    let package = response.package().unwrap();
    assert_eq!((package.name.as_str(), package.size), ("p", Some(17)));
    let action = response.postinstall().unwrap();
    assert_eq!(action.sha256, "yes");
    assert!(!action.is_delta, "only the literal `true` makes a delta");
    assert!(action.disable_payload_backoff);
    assert_eq!(action.max_failure_count_per_url, Some(7));
}

#[test]
fn what_is_missing_can_be_told() {
    let response = Response::parse(b"<response/>").unwrap();
    assert_eq!(response, Response::default());
    assert!(response.update_check().is_none());
    assert!(response.postinstall().is_none());

    let response = Response::parse(
        b"<response><app><updatecheck><manifest><packages><package/></packages>\
          <actions><action/></actions></manifest></updatecheck></app></response>",
    )
    .unwrap();
    let check = response.update_check().unwrap();
    assert_eq!(check.status, UpdateCheckStatus::Other(String::new()));
    assert_eq!(check.poll_interval, None);
    assert_eq!(response.urls().count(), 0);
    assert_eq!(response.package(), Some(&Package::default()));
    assert_eq!(response.postinstall(), None);
    let action = response.actions().next().unwrap();
    assert_eq!(action.event, ActionEvent::Other(String::new()));
}

#[test]
fn sizes_are_read_by_their_leading_digits() {
    for (text, size) in [
        ("1", Some(1)),
        ("67546213", Some(67_546_213)),
        ("123123123123123", Some(123_123_123_123_123)),
        (" +5\n", Some(5)),
        ("5.9", Some(5)),
        ("5 MB", Some(5)),
        ("0", None),
        ("-5", None),
        ("", None),
        ("five", None),
        ("0x10", None),
        (
            "99999999999999999999",
            Some(u64::try_from(i64::MAX).unwrap()),
        ),
    ] {
        let document = format!(
            "<response><app><updatecheck><manifest><packages><package size=\"{text}\"/>\
             </packages></manifest></updatecheck></app></response>"
        );
        let response = Response::parse(document.as_bytes()).unwrap();
        assert_eq!(response.package().unwrap().size, size, "{text:?}");
    }
}

#[test]
fn status_texts_are_kept_raw() {
    for text in [
        "ok",
        "noupdate",
        "error-internal",
        "OK",
        " ok",
        "error-hash",
    ] {
        let document = format!(
            "<response><app status=\"{text}\"><updatecheck status=\"{text}\"/></app></response>"
        );
        let response = Response::parse(document.as_bytes()).unwrap();
        let app = &response.apps[0];
        assert_eq!(app.status.as_str(), text);
        assert_eq!(app.update_check.as_ref().unwrap().status.as_str(), text);
    }
}

/// The reply of a public development server, with attributes of older days.
#[test]
fn old_spellings_are_tolerated() {
    let document = br#"<?xml version="1.0" encoding="UTF-8"?>
<response protocol="3.0" server="go-omaha">
  <daystart elapsed_seconds="garbage"/>
  <app appid="{e96281a6-d1af-4bde-9a0a-97b76e56dc57}" status="ok">
    <updatecheck status="ok">
      <urls><url codebase="http://localhost:3000/static/?a=1&amp;b="></url></urls>
      <manifest version="9999.0.0">
        <packages>
          <package hash="+LXvjiaPkeYDLHoNKlf9qbJwvnk=" name="update.gz" size="67546213" required="True"/>
        </packages>
        <actions>
          <action event="postinstall" ChromeOSVersion="9999.0.0" sha256="0VAlQW3RE99SGtSB5R4m08antAHO8XDoBMKDyxQT/Mg=" needsadmin="false" IsDelta="True"/>
        </actions>
      </manifest>
    </updatecheck>
  </app>
</response>"#;
    let response = Response::parse(document).unwrap();
    assert_eq!(
        response.day_start,
        Some(DayStart::default()),
        "an unusable number is as good as none"
    );
    assert_eq!(
        response.urls().collect::<Vec<_>>(),
        ["http://localhost:3000/static/?a=1&b="]
    );
    let package = response.package().unwrap();
    assert!(package.required);
    assert_eq!(
        package.sha1.as_deref(),
        Some("+LXvjiaPkeYDLHoNKlf9qbJwvnk=")
    );
    assert_eq!(package.sha256, None);
    assert!(!response.postinstall().unwrap().is_delta);
}
