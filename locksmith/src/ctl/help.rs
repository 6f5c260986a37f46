//! What `help` prints, in the original's layout: columns are aligned with tabs
//! of eight, to the next stop behind the longest cell.

use super::arguments::Flag;
use super::command::{COMMANDS, Command, GLOBAL_FLAGS, PROGRAM};

/// Distance of the tab stops.
const TAB: usize = 8;

/// The list of commands and global options.
pub(super) fn overview(version: &str) -> String {
    let commands = columns(
        COMMANDS
            .iter()
            .map(|command| (command.name.to_owned(), command.summary)),
    );
    let options = options(GLOBAL_FLAGS);
    format!(
        "\
NAME:
\t{PROGRAM} - Manage the cluster wide reboot lock.

USAGE: \n\t{PROGRAM} [global options] <command> [command options] [arguments...]

VERSION:
\t{version}

COMMANDS:
{commands}
GLOBAL OPTIONS:
{options}
Run \"{PROGRAM} help <command>\" for more details on a specific command.
"
    )
}

/// What one command does.
pub(super) fn of(command: &Command) -> String {
    let Command {
        name,
        summary,
        usage,
        description,
        flags,
        ..
    } = command;
    let description = description.replace('\n', "\n\t");
    let options = match options(flags) {
        none if none.is_empty() => none,
        some => format!("OPTIONS:\n{some}\n"),
    };
    format!(
        "\
NAME:
\t{name} - {summary}

USAGE:
\t{PROGRAM} {name} {usage}

DESCRIPTION:
\t{description}

{options}For help on global options run \"{PROGRAM} help\"
"
    )
}

fn options(flags: &'static [Flag]) -> String {
    columns(
        flags
            .iter()
            .map(|flag| (format!("--{}={}", flag.name, flag.default), flag.help)),
    )
}

/// Two columns behind a tab, each row on a line.
fn columns(rows: impl Iterator<Item = (String, &'static str)>) -> String {
    let rows: Vec<_> = rows.collect();
    let longest = rows.iter().map(|(cell, _)| cell.len()).max().unwrap_or(0);
    let width = (longest + 1).next_multiple_of(TAB);
    rows.iter()
        .map(|(cell, text)| {
            let tabs = "\t".repeat((width - cell.len()).div_ceil(TAB));
            format!("\t{cell}{tabs}{text}\n")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_originals_rows_are_there_byte_for_byte() {
        let help = overview("1.2.3");
        for row in [
            "NAME:\n\tlocksmithctl - Manage the cluster wide reboot lock.\n\nUSAGE: \n\
             \tlocksmithctl [global options] <command> [command options] [arguments...]\n\n\
             VERSION:\n\t1.2.3\n\nCOMMANDS:\n",
            "\n\thelp\t\t\tShow a list of commands or help for one command\n",
            "\n\tlock\t\t\tLock this machine or a given machine-id for reboot.\n",
            "\n\treboot\t\t\tReboot honoring reboot locks.\n",
            "\n\tsend-need-reboot\tsend a 'need reboot' signal over dbus.\n",
            "\n\tset-max\t\t\tSet the maximum number of lock holders\n",
            "\n\tstatus\t\t\tGet the status of the cluster wide reboot lock.\n",
            "\n\tunlock\t\t\tUnlock this machine or a given machine-id for reboot.\n",
            "\n\nGLOBAL OPTIONS:\n",
            "\n\t--debug=false\t\t\t\t\t\tPrint out debug information to stderr.\n",
            "\n\t--endpoint=http://127.0.0.1:2379,http://127.0.0.1:4001\tetcd endpoint for locksmith. \
             Specify multiple times to use multiple endpoints.\n",
            "\n\t--etcd-cafile=\t\t\t\t\t\tetcd CA file authentication\n",
            "\n\t--group=\t\t\t\t\t\tlocksmith group\n",
            "\n\t--version=false\t\t\t\t\t\tPrint the version and exit.\n\n\
             Run \"locksmithctl help <command>\" for more details on a specific command.\n",
        ] {
            assert!(help.contains(row), "{row:?} is not in\n{help}");
        }
    }

    #[test]
    fn a_command_is_explained_in_the_originals_layout() {
        let help = of(super::super::command::find("help").unwrap());
        assert_eq!(
            help,
            "NAME:\n\thelp - Show a list of commands or help for one command\n\n\
             USAGE:\n\tlocksmithctl help [COMMAND]\n\n\
             DESCRIPTION:\n\tLists all commands, or explains the one that is named.\n\n\
             For help on global options run \"locksmithctl help\"\n"
        );
        let help = of(super::super::command::find("status").unwrap());
        assert!(
            help.contains("\tlocksmithctl status \n"),
            "the blank is the original's:\n{help}"
        );
        assert!(help.contains("OPTIONS:\n\t--verbose=false\tTell"), "{help}");
    }
}
