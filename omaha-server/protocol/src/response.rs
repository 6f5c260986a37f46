//! What the server answers.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::error::ProtocolError;
use crate::limits;
use crate::reader::{Element, Reader, push_bounded};
use crate::writer::Writer;

/// A `<response>` document.
///
/// Reading keeps what the wire said, complete or not: a missing text is empty, a
/// missing or unusable number is `None`. Whether that makes an offer is for the
/// client to judge; the methods here find things where `update_engine` looks for
/// them, which is the first of their kind in the *whole* document.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Response {
    /// Attribute `protocol`, `3.0`.
    pub protocol: String,
    /// Attribute `server`: the name of the server.
    pub server: String,
    /// Element `<daystart>`.
    pub day_start: Option<DayStart>,
    /// Elements `<app>`, in the order of the request.
    pub apps: Vec<ResponseApp>,
}

/// Element `<daystart>`: the server's calendar.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DayStart {
    /// Attribute `elapsed_seconds` since midnight.
    pub elapsed_seconds: Option<i64>,
    /// Attribute `elapsed_days` since 2007-01-01.
    pub elapsed_days: Option<i64>,
}

/// Element `<app>` of a response.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResponseApp {
    /// Attribute `appid`, in the spelling of the request.
    pub id: String,
    /// Attribute `status`.
    pub status: AppStatus,
    /// Whether a `<ping>` is acknowledged.
    pub ping: bool,
    /// Element `<updatecheck>`. Should an app carry several, they are read as one:
    /// the first one's attributes, and the urls and manifests of all.
    pub update_check: Option<UpdateCheck>,
    /// How many `<event>` elements are acknowledged.
    pub events: usize,
}

/// Attribute `status` of an app.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AppStatus {
    /// `ok`, and what a missing attribute means.
    #[default]
    Ok,
    /// `restricted`: not to be had from where the machine is.
    Restricted,
    /// `error-unknownApplication`.
    UnknownApplication,
    /// `error-invalidAppId`.
    InvalidAppId,
    /// Any other text. Made by `From<&str>`.
    Other(String),
}

/// Element `<updatecheck>` of a response.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UpdateCheck {
    /// Attribute `status`.
    pub status: UpdateCheckStatus,
    /// Attribute `PollInterval`: seconds until the next check should come.
    pub poll_interval: Option<i64>,
    /// Attribute `info`: why, in words for people.
    pub info: Option<String>,
    /// Attributes `codebase` of the `<url>` elements, in their order. Writing adds
    /// a closing `/` where it lacks.
    pub urls: Vec<String>,
    /// Elements `<manifest>`. More than one is only for servers that mirror this one.
    pub manifests: Vec<Manifest>,
}

/// Attribute `status` of an update check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UpdateCheckStatus {
    /// `ok`: there is an update.
    Ok,
    /// `noupdate`: there is none, for whatever reason.
    NoUpdate,
    /// Any other text, mostly `error-…`; empty when the attribute is missing.
    /// Made by `From<&str>`.
    Other(String),
}

/// Element `<manifest>`: one version and its files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Manifest {
    /// Attribute `version`.
    pub version: String,
    /// Elements `<package>`, the payload first.
    pub packages: Vec<Package>,
    /// Elements `<action>`.
    pub actions: Vec<Action>,
}

/// Element `<package>`: a file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Package {
    /// Attribute `name`: what follows the codebase in the file's URL.
    pub name: String,
    /// Attribute `size` in bytes: the base-10 digits it begins with; `None` unless
    /// that is more than 0.
    pub size: Option<u64>,
    /// Attribute `hash`: SHA-1, base64.
    pub sha1: Option<String>,
    /// Attribute `hash_sha256`: SHA-256, lower-case hex (some servers: base64).
    pub sha256: Option<String>,
    /// Attribute `required`: the update makes no sense without this file.
    pub required: bool,
}

/// Element `<action>`: what to do with the files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Action {
    /// Attribute `event`: when.
    pub event: ActionEvent,
    /// Attribute `sha256`: base64 SHA-256 of the whole payload file. It is a text
    /// because `update_engine` compares it as one.
    pub sha256: String,
    /// Attribute `IsDeltaPayload`, only by the literal `true`.
    pub is_delta: bool,
    /// Attribute `DisablePayloadBackoff`, only by the literal `true`: a machine
    /// that failed may try again at once.
    pub disable_payload_backoff: bool,
    /// Attribute `MaxFailureCountPerUrl`; clients take 10 without it.
    pub max_failure_count_per_url: Option<u32>,
    /// Attribute `needsadmin`.
    pub needs_admin: bool,
}

/// Attribute `event` of an action.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ActionEvent {
    /// `preinstall`
    PreInstall,
    /// `install`
    Install,
    /// `postinstall`: the one that update clients of the OS read.
    #[default]
    PostInstall,
    /// `update`
    Update,
    /// Any other text, empty when the attribute is missing. Made by `From<&str>`.
    Other(String),
}

impl Response {
    /// Reads a response of any known server.
    pub fn parse(document: &[u8]) -> Result<Self, ProtocolError> {
        Reader::document(document, "response", |reader, root| {
            let mut response = Self {
                protocol: root.text("protocol"),
                server: root.text("server"),
                day_start: None,
                apps: Vec::new(),
            };
            reader.children(|reader, child| {
                match child.name() {
                    "daystart" => {
                        response.day_start = Some(DayStart {
                            elapsed_seconds: child.integer("elapsed_seconds"),
                            elapsed_days: child.integer("elapsed_days"),
                        });
                    }
                    "app" => {
                        let app = ResponseApp::read(reader, child)?;
                        push_bounded(
                            &mut response.apps,
                            app,
                            "apps",
                            limits::APPS,
                            child.position,
                        )?;
                    }
                    _ => {}
                }
                Ok(())
            })?;
            Ok(response)
        })
    }

    /// The response in a form that `update_engine`, `ue-rs` and the Go clients all
    /// accept. Beyond what the values say:
    /// - an update check without an offer carries an empty list of urls and an
    ///   empty manifest, for `ue-rs` insists on both; [`Response::parse`] takes
    ///   that padding off again;
    /// - every codebase ends with `/`, for clients differ in how they join it
    ///   with a name.
    pub fn to_xml(&self) -> String {
        let mut xml = Writer::new();
        xml.tag("response")
            .attribute("protocol", &self.protocol)
            .attribute("server", &self.server)
            .parent();
        if let Some(day_start) = self.day_start {
            xml.tag("daystart")
                .optional_number("elapsed_seconds", day_start.elapsed_seconds)
                .optional_number("elapsed_days", day_start.elapsed_days)
                .leaf();
        }
        for app in &self.apps {
            app.write(&mut xml);
        }
        xml.finish()
    }

    /// The update check that counts: the first one of any app.
    pub fn update_check(&self) -> Option<&UpdateCheck> {
        self.update_checks().next()
    }

    /// The codebases of all update checks, in document order.
    pub fn urls(&self) -> impl Iterator<Item = &str> {
        self.update_checks()
            .flat_map(|check| check.urls.iter().map(String::as_str))
    }

    /// The manifest that counts: the first one.
    pub fn manifest(&self) -> Option<&Manifest> {
        self.manifests().next()
    }

    /// The package that counts: the first one of any manifest.
    pub fn package(&self) -> Option<&Package> {
        self.manifests()
            .flat_map(|manifest| &manifest.packages)
            .next()
    }

    /// The actions of all manifests, in document order.
    pub fn actions(&self) -> impl Iterator<Item = &Action> {
        self.manifests().flat_map(|manifest| &manifest.actions)
    }

    /// The action that counts: the first one for `postinstall`.
    pub fn postinstall(&self) -> Option<&Action> {
        self.actions()
            .find(|action| action.event == ActionEvent::PostInstall)
    }

    fn update_checks(&self) -> impl Iterator<Item = &UpdateCheck> {
        self.apps.iter().filter_map(|app| app.update_check.as_ref())
    }

    fn manifests(&self) -> impl Iterator<Item = &Manifest> {
        self.update_checks().flat_map(|check| &check.manifests)
    }
}

impl ResponseApp {
    fn read(reader: &mut Reader<'_>, element: &Element) -> Result<Self, ProtocolError> {
        let mut app = Self {
            id: element.text("appid"),
            status: element
                .attribute("status")
                .map(AppStatus::from)
                .unwrap_or_default(),
            ping: false,
            update_check: None,
            events: 0,
        };
        reader.children(|reader, child| {
            match child.name() {
                "ping" => app.ping = true,
                "event" if app.events == limits::EVENTS => {
                    return Err(ProtocolError::TooMany {
                        what: "events in one app",
                        limit: limits::EVENTS,
                        position: child.position,
                    });
                }
                "event" => app.events += 1,
                "updatecheck" => app
                    .update_check
                    .get_or_insert_with(|| UpdateCheck::read_attributes(child))
                    .read_children(reader)?,
                _ => {}
            }
            Ok(())
        })?;
        if let Some(check) = &mut app.update_check {
            check.take_off_padding();
        }
        Ok(app)
    }

    fn write(&self, xml: &mut Writer) {
        xml.tag("app")
            .attribute("appid", &self.id)
            .attribute("status", self.status.as_str())
            .parent();
        if self.ping {
            xml.tag("ping").attribute("status", "ok").leaf();
        }
        if let Some(check) = &self.update_check {
            check.write(xml);
        }
        for _ in 0..self.events {
            xml.tag("event").attribute("status", "ok").leaf();
        }
        xml.end();
    }
}

impl UpdateCheck {
    /// The answer that there is no update.
    pub fn no_update() -> Self {
        Self::default()
    }

    fn read_attributes(element: &Element) -> Self {
        Self {
            status: UpdateCheckStatus::from(element.attribute("status").unwrap_or_default()),
            poll_interval: element.integer("PollInterval"),
            info: element.owned("info"),
            urls: Vec::new(),
            manifests: Vec::new(),
        }
    }

    fn read_children(&mut self, reader: &mut Reader<'_>) -> Result<(), ProtocolError> {
        reader.children(|reader, child| match child.name() {
            "urls" => reader.children(|_, url| {
                if url.name() != "url" {
                    return Ok(());
                }
                let codebase = url.text("codebase");
                push_bounded(&mut self.urls, codebase, "urls", limits::URLS, url.position)
            }),
            "manifest" => {
                let manifest = Manifest::read(reader, child)?;
                push_bounded(
                    &mut self.manifests,
                    manifest,
                    "manifests",
                    limits::MANIFESTS,
                    child.position,
                )
            }
            _ => Ok(()),
        })
    }

    fn take_off_padding(&mut self) {
        if self.status != UpdateCheckStatus::Ok && self.manifests == [Manifest::default()] {
            self.manifests.clear();
        }
    }

    fn write(&self, xml: &mut Writer) {
        xml.tag("updatecheck")
            .attribute("status", self.status.as_str())
            .optional_number("PollInterval", self.poll_interval)
            .optional("info", self.info.as_deref())
            .parent();
        xml.tag("urls").parent();
        for codebase in &self.urls {
            let slash = if codebase.ends_with('/') { "" } else { "/" };
            xml.tag("url")
                .attribute("codebase", &format!("{codebase}{slash}"))
                .leaf();
        }
        xml.end();
        for manifest in &self.manifests {
            manifest.write(xml);
        }
        if self.manifests.is_empty() && self.status != UpdateCheckStatus::Ok {
            Manifest::default().write(xml);
        }
        xml.end();
    }
}

impl Manifest {
    fn read(reader: &mut Reader<'_>, element: &Element) -> Result<Self, ProtocolError> {
        let mut manifest = Self {
            version: element.text("version"),
            packages: Vec::new(),
            actions: Vec::new(),
        };
        reader.children(|reader, child| match child.name() {
            "packages" => reader.children(|_, package| {
                if package.name() != "package" {
                    return Ok(());
                }
                push_bounded(
                    &mut manifest.packages,
                    Package::read(package),
                    "packages in one manifest",
                    limits::PACKAGES,
                    package.position,
                )
            }),
            "actions" => reader.children(|_, action| {
                if action.name() != "action" {
                    return Ok(());
                }
                push_bounded(
                    &mut manifest.actions,
                    Action::read(action),
                    "actions in one manifest",
                    limits::ACTIONS,
                    action.position,
                )
            }),
            _ => Ok(()),
        })?;
        Ok(manifest)
    }

    fn write(&self, xml: &mut Writer) {
        xml.tag("manifest")
            .attribute("version", &self.version)
            .parent();
        xml.tag("packages").parent();
        for package in &self.packages {
            package.write(xml);
        }
        xml.end();
        xml.tag("actions").parent();
        for action in &self.actions {
            action.write(xml);
        }
        xml.end();
        xml.end();
    }
}

impl Package {
    /// A required file with both digests in the spelling that all clients read.
    pub fn new(name: impl Into<String>, size: u64, sha1: &[u8; 20], sha256: &[u8; 32]) -> Self {
        Self {
            name: name.into(),
            size: Some(size),
            sha1: Some(BASE64.encode(sha1)),
            sha256: Some(hex(sha256)),
            required: true,
        }
    }

    fn read(element: &Element) -> Self {
        Self {
            name: element.text("name"),
            size: element
                .integer("size")
                .and_then(|size| u64::try_from(size).ok())
                .filter(|&size| size > 0),
            sha1: element.owned("hash"),
            sha256: element.owned("hash_sha256"),
            required: element.flag("required"),
        }
    }

    fn write(&self, xml: &mut Writer) {
        xml.tag("package")
            .attribute("name", &self.name)
            .optional("hash", self.sha1.as_deref())
            .optional("hash_sha256", self.sha256.as_deref())
            .optional_number("size", self.size)
            .boolean("required", self.required)
            .leaf();
    }
}

impl Action {
    /// The one action of an offer: `sha256` is the digest of the payload file.
    pub fn postinstall(sha256: &[u8; 32], is_delta: bool) -> Self {
        Self {
            event: ActionEvent::PostInstall,
            sha256: BASE64.encode(sha256),
            is_delta,
            disable_payload_backoff: true,
            max_failure_count_per_url: None,
            needs_admin: false,
        }
    }

    fn read(element: &Element) -> Self {
        Self {
            event: ActionEvent::from(element.attribute("event").unwrap_or_default()),
            sha256: element.text("sha256"),
            is_delta: element.exactly_true("IsDeltaPayload"),
            disable_payload_backoff: element.exactly_true("DisablePayloadBackoff"),
            max_failure_count_per_url: element
                .integer("MaxFailureCountPerUrl")
                .and_then(|count| u32::try_from(count).ok()),
            needs_admin: element.flag("needsadmin"),
        }
    }

    fn write(&self, xml: &mut Writer) {
        xml.tag("action")
            .attribute("event", self.event.as_str())
            .attribute("sha256", &self.sha256)
            .boolean("needsadmin", self.needs_admin)
            .boolean("IsDeltaPayload", self.is_delta)
            .boolean("DisablePayloadBackoff", self.disable_payload_backoff)
            .optional_number("MaxFailureCountPerUrl", self.max_failure_count_per_url)
            .leaf();
    }
}

/// Declares the text forms of an open enumeration of texts.
macro_rules! wire_text {
    ($name:ident { $($variant:ident $text:literal)* }) => {
        impl $name {
            /// The text on the wire.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $text,)*
                    Self::Other(text) => text,
                }
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                match text {
                    $($text => Self::$variant,)*
                    other => Self::Other(other.to_owned()),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

wire_text! { AppStatus {
    Ok "ok"
    Restricted "restricted"
    UnknownApplication "error-unknownApplication"
    InvalidAppId "error-invalidAppId"
}}

wire_text! { UpdateCheckStatus {
    Ok "ok"
    NoUpdate "noupdate"
}}

wire_text! { ActionEvent {
    PreInstall "preinstall"
    Install "install"
    PostInstall "postinstall"
    Update "update"
}}

impl Default for UpdateCheckStatus {
    /// Nothing is offered unless somebody says so.
    fn default() -> Self {
        Self::NoUpdate
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
