//! What a machine says to its server.

use crate::ErrorCode;
use crate::error::ProtocolError;
use crate::event::{Event, EventResult, EventType};
use crate::limits;
use crate::reader::{Element, Reader, push_bounded};
use crate::writer::Writer;

/// A `<request>` document.
///
/// Plain texts are empty and flags false when the attribute is missing; an
/// `Option` is used where being there at all means something, and only such
/// attributes are left out in writing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Request {
    /// Attribute `protocol`, `3.0`.
    pub protocol: String,
    /// Attribute `version`: the updater and its version, e.g. `update_engine-0.4.10`.
    pub version: String,
    /// Attribute `updaterversion`: the same text again.
    pub updater_version: String,
    /// Attribute `installsource`: why the request is made.
    pub install_source: InstallSource,
    /// Attribute `ismachine`: the updater serves the machine, not one user.
    pub is_machine: bool,
    /// Attribute `requestid`, `{uuid}`: the same for retries of one request.
    pub request_id: Option<String>,
    /// Attribute `sessionid`, `{uuid}`: the same for all requests of one update.
    pub session_id: Option<String>,
    /// Attribute `testsource`: marks traffic that statistics should leave out.
    pub test_source: Option<String>,
    /// Element `<os>`.
    pub os: Os,
    /// Elements `<app>`, in their order.
    pub apps: Vec<RequestApp>,
}

/// Attribute `installsource`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum InstallSource {
    /// `scheduler`: a periodic check.
    #[default]
    Scheduler,
    /// `ondemandupdate`: somebody asked for it.
    OnDemandUpdate,
    /// Any other text. Made by `From<&str>`.
    Other(String),
}

/// Element `<os>`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Os {
    /// Attribute `platform`, `CoreOS` from `update_engine`.
    pub platform: String,
    /// Attribute `version`, `Chateau` from `update_engine`.
    pub version: String,
    /// Attribute `sp`, `<os version>_<machine>` from `update_engine`.
    pub service_pack: String,
    /// Attribute `arch`; `update_engine` sends none.
    pub arch: Option<String>,
}

/// Element `<app>` of a request: one product on one machine.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestApp {
    /// Attribute `appid`, as spelled by the sender; see [`same_app_id`](crate::same_app_id).
    pub id: String,
    /// Attribute `version`: what is running.
    pub version: String,
    /// Attribute `track`: the group or channel that the machine follows.
    pub track: String,
    /// Attribute `bootid`, `{uuid}`: another one after each boot.
    pub boot_id: String,
    /// Attribute `oem`.
    pub oem: String,
    /// Attribute `oemversion`.
    pub oem_version: String,
    /// Attribute `alephversion`: the version first installed on the disk.
    pub aleph_version: String,
    /// Attribute `machineid`: 32 hex digits.
    pub machine_id: String,
    /// Attribute `machinealias`: free text.
    pub machine_alias: String,
    /// Attribute `lang`.
    pub lang: String,
    /// Attribute `board`, e.g. `amd64-usr`.
    pub board: String,
    /// Attribute `hardware_class`.
    pub hardware_class: String,
    /// Attribute `delta_okay`: the machine can apply a delta to what it runs.
    pub delta_okay: bool,
    /// Attribute `from_track`: the track before the machine was moved.
    pub from_track: Option<String>,
    /// Attribute `nextversion`: the version being installed.
    pub next_version: Option<String>,
    /// Attribute `usr_sha256`: SHA-256 of the running image in lower-case hex. Our own;
    /// servers of the field ignore what they do not know.
    pub usr_sha256: Option<String>,
    /// Attribute `encoders`: library and version of each encoder at hand, separated by
    /// spaces, as in `zlib/1.3.1 zstd/1.5.7`. Our own. Being there at all says that the
    /// machine reads payloads of format version 2.
    pub encoders: Option<String>,
    /// Element `<ping>`: the machine is alive.
    pub ping: Option<Ping>,
    /// Element `<updatecheck>`: the machine asks for an answer.
    pub update_check: Option<UpdateCheckRequest>,
    /// Elements `<event>`, in their order.
    pub events: Vec<Event>,
}

/// Element `<ping>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Ping {
    /// Attribute `active`.
    pub active: bool,
}

/// Element `<updatecheck>` of a request.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpdateCheckRequest {
    /// Attribute `updatedisabled`: the machine will not install anything.
    pub update_disabled: bool,
    /// Attribute `targetversionprefix`; see
    /// [`Version::matches_prefix`](crate::Version::matches_prefix).
    pub target_version_prefix: Option<String>,
}

impl Request {
    /// Reads a request of any known sender.
    pub fn parse(document: &[u8]) -> Result<Self, ProtocolError> {
        Reader::document(document, "request", |reader, root| {
            let mut request = Self {
                protocol: root.text("protocol"),
                version: root.text("version"),
                updater_version: root.text("updaterversion"),
                install_source: root
                    .attribute("installsource")
                    .map(InstallSource::from)
                    .unwrap_or_default(),
                is_machine: root.flag("ismachine"),
                request_id: root.owned("requestid"),
                session_id: root.owned("sessionid"),
                test_source: root.owned("testsource"),
                os: Os::default(),
                apps: Vec::new(),
            };
            reader.children(|reader, child| {
                match child.name() {
                    "os" => request.os = Os::read(child),
                    "app" => {
                        let app = RequestApp::read(reader, child)?;
                        push_bounded(&mut request.apps, app, "apps", limits::APPS, child.position)?;
                    }
                    _ => {}
                }
                Ok(())
            })?;
            Ok(request)
        })
    }

    /// The request as `update_engine` 0.4.10 writes it, byte for byte: order of
    /// attributes, indentation and the stray space in the open tag of an app. The
    /// one difference is that `"` in a value is escaped.
    /// Attributes that the original does not send stand behind its own ones.
    pub fn to_xml(&self) -> String {
        let mut xml = Writer::new();
        xml.tag("request")
            .attribute("protocol", &self.protocol)
            .attribute("version", &self.version)
            .attribute("updaterversion", &self.updater_version)
            .attribute("installsource", self.install_source.as_str())
            .attribute("ismachine", if self.is_machine { "1" } else { "0" })
            .optional("requestid", self.request_id.as_deref())
            .optional("sessionid", self.session_id.as_deref())
            .optional("testsource", self.test_source.as_deref())
            .parent();
        xml.tag("os")
            .attribute("version", &self.os.version)
            .attribute("platform", &self.os.platform)
            .attribute("sp", &self.os.service_pack)
            .optional("arch", self.os.arch.as_deref())
            .leaf();
        for app in &self.apps {
            app.write(&mut xml);
        }
        xml.finish()
    }
}

impl Os {
    fn read(element: &Element) -> Self {
        Self {
            platform: element.text("platform"),
            version: element.text("version"),
            service_pack: element.text("sp"),
            arch: element.owned("arch"),
        }
    }
}

impl RequestApp {
    fn read(reader: &mut Reader<'_>, element: &Element) -> Result<Self, ProtocolError> {
        let mut app = Self {
            id: element.text("appid"),
            version: element.text("version"),
            track: element.text("track"),
            boot_id: element.text("bootid"),
            oem: element.text("oem"),
            oem_version: element.text("oemversion"),
            aleph_version: element.text("alephversion"),
            machine_id: element.text("machineid"),
            machine_alias: element.text("machinealias"),
            lang: element.text("lang"),
            board: element.text("board"),
            hardware_class: element.text("hardware_class"),
            delta_okay: element.flag("delta_okay"),
            from_track: element.owned("from_track"),
            next_version: element.owned("nextversion"),
            usr_sha256: element.owned("usr_sha256"),
            encoders: element.owned("encoders"),
            ping: None,
            update_check: None,
            events: Vec::new(),
        };
        reader.children(|_, child| {
            match child.name() {
                "ping" => {
                    let active = child.flag("active");
                    app.ping = Some(Ping { active });
                }
                "updatecheck" => {
                    app.update_check = Some(UpdateCheckRequest {
                        update_disabled: child.flag("updatedisabled"),
                        target_version_prefix: child.owned("targetversionprefix"),
                    });
                }
                "event" => push_bounded(
                    &mut app.events,
                    Event::read(child),
                    "events in one app",
                    limits::EVENTS,
                    child.position,
                )?,
                _ => {}
            }
            Ok(())
        })?;
        Ok(app)
    }

    fn write(&self, xml: &mut Writer) {
        xml.tag("app")
            .attribute("appid", &self.id)
            .attribute("version", &self.version)
            .attribute("track", &self.track)
            .attribute("bootid", &self.boot_id)
            .attribute("oem", &self.oem)
            .attribute("oemversion", &self.oem_version)
            .attribute("alephversion", &self.aleph_version)
            .attribute("machineid", &self.machine_id)
            .attribute("machinealias", &self.machine_alias)
            .attribute("lang", &self.lang)
            .attribute("board", &self.board)
            .attribute("hardware_class", &self.hardware_class)
            .boolean("delta_okay", self.delta_okay)
            .optional("from_track", self.from_track.as_deref())
            .optional("nextversion", self.next_version.as_deref())
            .optional("usr_sha256", self.usr_sha256.as_deref())
            .optional("encoders", self.encoders.as_deref())
            .spaced_parent();
        if let Some(ping) = self.ping {
            xml.tag("ping")
                .attribute("active", if ping.active { "1" } else { "0" })
                .leaf();
        }
        if let Some(check) = &self.update_check {
            let tag = xml.tag("updatecheck");
            let tag = if check.update_disabled {
                tag.boolean("updatedisabled", true)
            } else {
                tag
            };
            tag.optional(
                "targetversionprefix",
                check.target_version_prefix.as_deref(),
            )
            .leaf();
        }
        for event in &self.events {
            event.write(xml);
        }
        xml.end();
    }
}

impl Event {
    fn read(element: &Element) -> Self {
        Self {
            event_type: EventType::from(element.code("eventtype")),
            result: EventResult::from(element.code("eventresult")),
            error_code: element.integer("errorcode").map(ErrorCode::new),
            previous_version: element.owned("previousversion"),
            next_version: element.owned("nextversion"),
        }
    }

    fn write(&self, xml: &mut Writer) {
        xml.tag("event")
            .number("eventtype", self.event_type.number())
            .number("eventresult", self.result.number())
            .optional_number("errorcode", self.error_code.map(ErrorCode::number))
            .optional("previousversion", self.previous_version.as_deref())
            .optional("nextversion", self.next_version.as_deref())
            .leaf();
    }
}

impl InstallSource {
    /// The text on the wire.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Scheduler => "scheduler",
            Self::OnDemandUpdate => "ondemandupdate",
            Self::Other(text) => text,
        }
    }
}

impl From<&str> for InstallSource {
    fn from(text: &str) -> Self {
        match text {
            "scheduler" => Self::Scheduler,
            "ondemandupdate" => Self::OnDemandUpdate,
            other => Self::Other(other.to_owned()),
        }
    }
}
