//! What one attempt works with, read anew from the files each time, so that a
//! changed setting needs no restart.

use std::sync::Arc;

use omaha_protocol::{Event, Request};

use super::World;
use crate::config::{Identity, Loaded, Settings};
use crate::error::UpdateError;
use crate::machine::Trigger;
use crate::net::{HttpOptions, HttpTransport, Proxies, Transport};
use crate::omaha::{self, Abilities, Flags};
use crate::prefs;

/// Ceiling for a file of CA certificates.
const CA_LIMIT: u64 = 4 * 1024 * 1024;

/// Settings, identity and network of one attempt.
pub(super) struct Attempt {
    pub(super) trigger: Trigger,
    pub(super) settings: Settings,
    pub(super) identity: Identity,
    pub(super) transport: Arc<dyn Transport>,
    aleph_version: String,
    abilities: Abilities,
}

impl Attempt {
    /// Reads everything. Blocking.
    pub(super) fn load(world: &World, trigger: Trigger) -> Result<Self, UpdateError> {
        let configuration = |error| UpdateError::Configuration(Box::new(error));
        let Loaded { settings, warnings } = Loaded::read(&world.root).map_err(configuration)?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        let identity = Identity::load(&world.root, &settings);
        let transport: Arc<dyn Transport> = Arc::new(transport(world, &settings)?);
        let aleph_version = world.aleph_version(&identity.version)?;
        let slots = world.discover(&settings).ok();
        let abilities = Abilities {
            delta_okay: slots.is_some() && world.delta_history().takes_deltas(),
            usr_sha256: slots
                .and_then(|slots| world.installed_image(&slots.source, &identity.version)),
            encoders: Some(world.encoders(&settings).names()),
        };
        Ok(Self {
            trigger,
            settings,
            identity,
            transport,
            aleph_version,
            abilities,
        })
    }

    /// The update check.
    pub(super) fn check(&self, running: Event) -> Request {
        omaha::check(
            &self.identity,
            &self.aleph_version,
            self.trigger,
            &self.abilities,
            running,
        )
    }

    /// One event.
    pub(super) fn event(&self, event: Event) -> Request {
        omaha::event_only(
            &self.identity,
            &self.aleph_version,
            self.trigger,
            self.abilities.delta_okay,
            event,
        )
    }

    /// The sign of life while waiting for the reboot.
    pub(super) fn ping(&self) -> Request {
        omaha::ping_only(
            &self.identity,
            &self.aleph_version,
            self.abilities.delta_okay,
        )
    }

    /// The circumstances that go with an error code.
    pub(super) fn flags(&self, resumed: bool) -> Flags {
        Flags {
            resumed,
            test_image: !self.settings.official_build,
            private_server: !self.settings.is_default_server(),
        }
    }
}

impl World {
    /// The version first seen on this disk; an unknown one is not written down.
    fn aleph_version(&self, running: &str) -> Result<String, UpdateError> {
        if running.is_empty() {
            return Ok(self.read(prefs::ALEPH_VERSION)?.unwrap_or_default());
        }
        self.prefs
            .aleph_version(running)
            .map_err(World::state_error)
    }
}

fn transport(world: &World, settings: &Settings) -> Result<HttpTransport, UpdateError> {
    let ca_pem = match &settings.ca_file {
        None => None,
        Some(path) => {
            let content = world.root.read(path, CA_LIMIT).and_then(|content| {
                content.ok_or_else(|| {
                    std::io::Error::new(std::io::ErrorKind::NotFound, format!("{path} is missing"))
                })
            });
            Some(content.map_err(|error| UpdateError::Device {
                operation: "read the CA file",
                object: path.clone(),
                source: Box::new(error),
            })?)
        }
    };
    let options = HttpOptions {
        ca_pem,
        proxies: match &settings.proxy {
            Some(proxy) => Proxies::for_everything(proxy.expose(), settings.no_proxy.clone()),
            None => Proxies::of_environment(),
        },
        credentials: settings
            .download_login
            .as_ref()
            .map(|login| (login.user.clone(), login.password.expose().to_owned())),
    };
    HttpTransport::new(options).map_err(|error| UpdateError::Configuration(Box::new(error)))
}
