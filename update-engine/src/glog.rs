//! The flags of glog, the original's log library, which were flags of both its programs.
//! Old scripts and unit drop-ins give them, so they are taken; none of them does anything:
//! logs go to stderr, and `RUST_LOG` says how much.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, Error, FromArgMatches};

const BOOLEAN: [&str; 12] = [
    "alsologtostderr",
    "colorlogtostderr",
    "colorlogtostdout",
    "drop_log_memory",
    "log_prefix",
    "log_utc_time",
    "log_year_in_prefix",
    "logtostderr",
    "logtostdout",
    "stop_logging_if_full_disk",
    "symbolize_stacktrace",
    "timestamp_in_logfile_name",
];
const VALUED: [&str; 14] = [
    "alsologtoemail",
    "log_backtrace_at",
    "log_dir",
    "log_link",
    "logbuflevel",
    "logbufsecs",
    "logemaillevel",
    "logfile_mode",
    "logmailer",
    "max_log_size",
    "minloglevel",
    "stderrthreshold",
    "v",
    "vmodule",
];

/// Takes them all and keeps none.
#[derive(Debug, Clone, Copy, Default)]
pub struct GlogFlags;

impl Args for GlogFlags {
    fn augment_args(command: Command) -> Command {
        let hidden = |name| Arg::new(name).long(name).hide(true);
        command
            .args(BOOLEAN.map(|name| hidden(name).action(ArgAction::SetTrue)))
            .args(VALUED.map(|name| hidden(name).action(ArgAction::Append)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for GlogFlags {
    fn from_arg_matches(_: &ArgMatches) -> Result<Self, Error> {
        Ok(Self)
    }

    fn update_from_arg_matches(&mut self, _: &ArgMatches) -> Result<(), Error> {
        Ok(())
    }
}
