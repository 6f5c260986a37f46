//! From the texts of all sources to [`Settings`]: values are parsed, and held against each other.

use std::time::Duration;

use jiff::tz::TimeZone;

use super::fragment::{Fragment, Origin, Value, WindowText};
use super::keys::{self, Key};
use super::{
    ClientFiles, Etcd, Fleetlock, Health, Hooks, Loaded, Login, Problem, Problems, Secret,
    Settings, Warning, values,
};
use crate::strategy::Strategy;
use crate::window::{BadWindow, Exclusion, Schedule, Window};

/// Elements of one list.
const MOST_ELEMENTS: usize = 64;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;

/// The sources, laid over each other, and what was said about them so far.
#[derive(Default)]
pub(super) struct Draft {
    pub(super) given: Fragment,
    pub(super) warnings: Vec<Warning>,
    pub(super) problems: Vec<Problem>,
}

impl Draft {
    /// Parses every value; `local` is the machine's time zone.
    pub(super) fn settings(self, local: &TimeZone) -> Result<Loaded, Problems> {
        self.settings_where(local, |_, _| true)
    }

    /// The same, but problems that do not count are warnings. Whether one does may depend on the
    /// strategy, where it is known.
    pub(super) fn settings_where(
        mut self,
        local: &TimeZone,
        counts: impl Fn(&Problem, Option<Strategy>) -> bool,
    ) -> Result<Loaded, Problems> {
        use values::{integer, optional, parsed, path, span, url};
        let random_offset = self.value(&keys::RANDOM_OFFSET, |text| span(text, 0..=WEEK - HOUR));
        let mut settings = Settings {
            strategy: self.value(&keys::STRATEGY, parsed),
            group: self.value(&keys::GROUP, parsed),
            store: self.value(&keys::STORE, values::store),
            etcd: self.etcd(),
            queue_rank: self.value(&keys::QUEUE_RANK, |text| integer(text, 0..=999)),
            schedule: self.schedule(local, random_offset),
            random_offset,
            warn_users: self.value(&keys::WARN_USERS, |text| span(text, 0..=DAY)),
            hooks: Hooks {
                before_dir: self.value(&keys::HOOKS_BEFORE_DIR, path),
                after_dir: self.value(&keys::HOOKS_AFTER_DIR, path),
                timeout: self.value(&keys::HOOKS_TIMEOUT, |text| span(text, 1..=DAY)),
            },
            reboot_method: self.value(&keys::REBOOT_METHOD, values::reboot_method),
            inhibitors: self.value(&keys::INHIBITORS, values::inhibitors),
            health: Health {
                soak: self.value(&keys::HEALTH_SOAK, |text| span(text, 0..=DAY)),
                deadline: self.value(&keys::HEALTH_DEADLINE, |text| span(text, MINUTE..=WEEK)),
            },
            fleetlock: Fleetlock {
                base_url: self.value(&keys::FLEETLOCK_BASE_URL, optional(url)),
                group: self.value(&keys::FLEETLOCK_GROUP, values::fleetlock_group),
            },
            metrics: self.value(&keys::METRICS, values::listen),
            debug: self.debug(),
        };
        if settings.strategy == Strategy::Fleetlock && !self.is_given(&keys::FLEETLOCK_BASE_URL) {
            let reason = format!(
                "the strategy fleetlock needs {}",
                keys::FLEETLOCK_BASE_URL.name
            );
            self.disagree(&keys::STRATEGY, reason);
        }
        let hidden = |problem: &Problem| {
            let key = problem.key();
            key.is_none() || (key == Some(keys::STRATEGY.name) && problem.is_bad_value())
        };
        let strategy = (!self.problems.iter().any(hidden)).then_some(settings.strategy);
        let (problems, passed_over): (Vec<_>, Vec<_>) = self
            .problems
            .into_iter()
            .partition(|problem| counts(problem, strategy));
        if !problems.is_empty() {
            return Err(Problems { problems, strategy });
        }
        if passed_over.iter().any(Problem::is_about_etcd) {
            // Half of what was meant is none of it.
            settings.etcd = Self::default().etcd();
        }
        self.warnings
            .extend(passed_over.iter().filter_map(Problem::warning));
        Ok(Loaded {
            settings,
            warnings: self.warnings,
            given: self.given,
        })
    }

    fn etcd(&mut self) -> Etcd {
        use values::{any_path, optional, parsed};
        let endpoints = self.list(&keys::ETCD_ENDPOINTS, values::endpoint);
        if endpoints.is_empty() && !self.is_bad(&keys::ETCD_ENDPOINTS) {
            self.bad(&keys::ETCD_ENDPOINTS, "there is no endpoint".to_owned());
        }
        let cafile = self.value(&keys::ETCD_CAFILE, optional(any_path));
        let cert = self.value(&keys::ETCD_CERTFILE, optional(any_path));
        let key = self.value(&keys::ETCD_KEYFILE, optional(any_path));
        self.check_tls(&endpoints);
        let username: String = self.value(&keys::ETCD_USERNAME, parsed);
        let password = Secret(self.value(&keys::ETCD_PASSWORD, parsed));
        if username.is_empty() && self.is_given(&keys::ETCD_PASSWORD) {
            let reason = format!("a password needs {}", keys::ETCD_USERNAME.name);
            self.disagree(&keys::ETCD_PASSWORD, reason);
        }
        Etcd {
            endpoints,
            api: self.value(&keys::ETCD_API, values::api),
            cafile,
            client: cert.zip(key).map(|(cert, key)| ClientFiles { cert, key }),
            login: (!username.is_empty()).then_some(Login { username, password }),
        }
    }

    /// One client speaks to all endpoints, so they are all in the clear or none is. Files for TLS
    /// are of no use in the clear, as with the original.
    fn check_tls(&mut self, endpoints: &[String]) {
        let pair = [&keys::ETCD_CERTFILE, &keys::ETCD_KEYFILE];
        let clear = endpoints.iter().find(|url| url.starts_with("http:"));
        let secret = endpoints.iter().find(|url| url.starts_with("https:"));
        if let (Some(clear), Some(secret)) = (clear, secret) {
            let reason = format!("http and https must not be mixed, as in {clear} and {secret}");
            self.disagree(&keys::ETCD_ENDPOINTS, reason);
        } else if let Some(clear) = clear {
            let files = [&keys::ETCD_CAFILE, pair[0], pair[1]];
            if let Some(key) = files.into_iter().find(|key| self.is_given(key)) {
                self.warnings.push(Warning {
                    origin: self.origin(key),
                    text: format!(
                        "{} does nothing: {clear} is in the clear, TLS needs endpoints with https",
                        key.name
                    ),
                });
            }
            return;
        }
        for (one, other) in [(pair[0], pair[1]), (pair[1], pair[0])] {
            if self.is_given(one) && !self.is_given(other) {
                self.disagree(one, format!("{} needs {}", one.name, other.name));
            }
        }
    }

    fn schedule(&mut self, local: &TimeZone, random_offset: Duration) -> Schedule {
        let windows = self.windows();
        let exclusions: Vec<Exclusion> = self.list(&keys::EXCLUDE, values::parsed);
        let zone = self.value(&keys::TIME_ZONE, |name| match name {
            "local" => Ok(local.clone()),
            _ => TimeZone::get(name).map_err(|_| format!("there is no time zone '{name}'")),
        });
        if windows.is_empty() && !random_offset.is_zero() {
            self.warnings.push(Warning {
                origin: self.origin(&keys::RANDOM_OFFSET),
                text: "without a window it does nothing".to_owned(),
            });
        }
        Schedule::new(zone, windows).without(exclusions)
    }

    fn windows(&mut self) -> Vec<Window> {
        let texts = match self.given.get(&keys::WINDOW).map(|given| &given.value) {
            Some(Value::Windows(windows)) => windows.clone(),
            _ => Vec::new(),
        };
        if texts.len() > MOST_ELEMENTS {
            self.bad(
                &keys::WINDOW,
                format!("there are more than {MOST_ELEMENTS} windows"),
            );
            return Vec::new();
        }
        let mut windows = Vec::new();
        for WindowText {
            start,
            length,
            origin,
        } in texts
        {
            match Window::parse(&start, &length) {
                Ok(window) => windows.push(window),
                Err(error) => self.problems.push(Problem::Value {
                    origin,
                    key: keys::WINDOW.name,
                    reason: error.to_string(),
                }),
            }
        }
        windows.extend(self.only_window());
        windows
    }

    /// The window of the original's two variables.
    fn only_window(&mut self) -> Option<Window> {
        let (start, length) = (&keys::WINDOW_START, &keys::WINDOW_LENGTH);
        match (self.is_given(start), self.is_given(length)) {
            (false, false) => return None,
            (true, true) => {}
            (has_start, _) => {
                let reason = "Either both or neither $REBOOT_WINDOW_START and $REBOOT_WINDOW_LENGTH must be set";
                self.disagree(if has_start { start } else { length }, reason.to_owned());
                return None;
            }
        }
        match Window::parse(&self.text(start), &self.text(length)) {
            Ok(window) => Some(window),
            Err(error) => {
                let key = if matches!(error, BadWindow::Start(_)) {
                    start
                } else {
                    length
                };
                self.bad(key, error.to_string());
                None
            }
        }
    }

    /// The original passes over a truth value that it cannot read.
    fn debug(&mut self) -> bool {
        values::boolean(&self.text(&keys::DEBUG)).unwrap_or_else(|reason| {
            self.warnings.push(Warning {
                origin: self.origin(&keys::DEBUG),
                text: format!("{reason}, it sets nothing"),
            });
            false
        })
    }

    /// The value of a key. A bad one is remembered as a problem and stands for the default until
    /// then.
    fn value<T>(&mut self, key: &'static Key, parse: impl Fn(&str) -> Result<T, String>) -> T {
        parse(&self.text(key)).unwrap_or_else(|reason| {
            self.bad(key, reason);
            parse(key.default).expect("a test reads every default")
        })
    }

    /// The elements of a list that are good; bad ones are remembered as problems.
    fn list<T>(&mut self, key: &'static Key, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let items: Vec<String> = match self.given.get(key).map(|given| &given.value) {
            Some(Value::List(items)) => items.clone(),
            _ => elements(&self.text(key)).map(str::to_owned).collect(),
        };
        if items.len() > MOST_ELEMENTS {
            self.bad(key, format!("it has more than {MOST_ELEMENTS} elements"));
            return Vec::new();
        }
        let mut good = Vec::new();
        for item in items {
            match parse(item.trim()) {
                Ok(value) => good.push(value),
                Err(reason) => self.bad(key, reason),
            }
        }
        good
    }

    /// The text of a key; its default when no source has it, or only an empty text.
    fn text(&self, key: &Key) -> String {
        match self.given.get(key).map(|given| &given.value) {
            Some(Value::Text(text)) if !text.is_empty() => text.clone(),
            _ => key.default.to_owned(),
        }
    }

    fn is_given(&self, key: &Key) -> bool {
        self.given
            .get(key)
            .is_some_and(|given| given.value != Value::Text(String::new()))
    }

    fn origin(&self, key: &Key) -> Origin {
        self.given
            .get(key)
            .map_or(Origin::Default, |given| given.origin.clone())
    }

    fn bad(&mut self, key: &Key, reason: String) {
        self.problems.push(Problem::Value {
            origin: self.origin(key),
            key: key.name,
            reason,
        });
    }

    fn is_bad(&self, key: &Key) -> bool {
        self.problems
            .iter()
            .any(|problem| matches!(problem, Problem::Value { key: bad, .. } if *bad == key.name))
    }

    /// Remembers that a value does not go with another one.
    fn disagree(&mut self, key: &Key, reason: String) {
        self.problems.push(Problem::Statement {
            origin: self.origin(key),
            key: Some(key.name),
            reason,
        });
    }
}

/// What a text in place of a list stands for.
pub(super) fn elements(text: &str) -> impl Iterator<Item = &str> {
    text.split(',')
        .map(str::trim)
        .filter(|item| !item.is_empty())
}
