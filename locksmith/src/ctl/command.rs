//! The tables of what `locksmithctl` understands: global flags and commands.
//!
//! The original's entries keep its names, summaries and defaults; scripts may
//! compare them. Both tables are sorted by name, as the original prints them.

use super::arguments::{Flag, Kind};

/// Name in messages, whatever the file is called.
pub(super) const PROGRAM: &str = "locksmithctl";

/// A command.
#[derive(Debug)]
pub(super) struct Command {
    /// As it is typed.
    pub(super) name: &'static str,
    /// What runs.
    pub(super) verb: Verb,
    /// One line.
    pub(super) summary: &'static str,
    /// The words that follow it.
    pub(super) usage: &'static str,
    /// Some lines.
    pub(super) description: &'static str,
    /// Its own flags.
    pub(super) flags: &'static [Flag],
}

/// What a command does; see [`COMMANDS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Config,
    Fsck,
    Halt,
    Help,
    Holders,
    Lock,
    Migrate,
    Pause,
    Policy,
    Reboot,
    Resume,
    SendNeedReboot,
    SetMax,
    Status,
    Unlock,
    Watch,
}

/// The command of this name.
pub(super) fn find(name: &str) -> Option<&'static Command> {
    COMMANDS.iter().find(|command| command.name == name)
}

const fn switch(name: &'static str, help: &'static str) -> Flag {
    Flag {
        name,
        kind: Kind::Switch,
        default: "false",
        help,
    }
}

const fn text(name: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag {
        name,
        kind: Kind::Text,
        default,
        help,
    }
}

/// The word that makes the daemon a server.
pub(super) const SERVE_FLEETLOCK: &str = "serve-fleetlock";

/// Flags behind [`SERVE_FLEETLOCK`].
pub(super) const SERVE_FLAGS: &[Flag] = &[
    text(
        "deadline",
        "1h",
        "Time from a yes until the machine counts as overdue",
    ),
    Flag {
        name: "groups",
        kind: Kind::List,
        default: "default",
        help: "Groups that are served; default is the group without a name",
    },
    text(
        "listen",
        "127.0.0.1:9090",
        "Address and port; anybody who reaches it may take places",
    ),
];

/// Flags of the whole program; also taken after the command.
pub(super) const GLOBAL_FLAGS: &[Flag] = &[
    text(
        "api",
        "auto",
        "etcd API: v3, v2, or auto for v3 unless the fleet locks on v2",
    ),
    text("bus", "", "Message bus in place of the system's"),
    switch("debug", "Print out debug information to stderr."),
    Flag {
        name: "endpoint",
        kind: Kind::List,
        default: "http://127.0.0.1:2379,http://127.0.0.1:4001",
        help: "etcd endpoint for locksmith. Specify multiple times to use multiple endpoints.",
    },
    text("etcd-cafile", "", "etcd CA file authentication"),
    text("etcd-certfile", "", "etcd cert file authentication"),
    text("etcd-keyfile", "", "etcd key file authentication"),
    text(
        "etcd-password",
        "",
        "password for secure etcd communication",
    ),
    text(
        "etcd-username",
        "",
        "username for secure etcd communication",
    ),
    text(
        "exit-codes",
        "plain",
        "detailed: another exit code for each cause, see the manual",
    ),
    text("group", "", "locksmith group"),
    switch("json", "Print JSON where there is something to print."),
    text(
        "root",
        "/",
        "Folder with the etc/ of the machine that is meant",
    ),
    text(
        "store",
        "etcd",
        "Where the lock is: etcd, or file:PATH for one machine",
    ),
    switch("version", "Print the version and exit."),
];

const WHY: Flag = text("why", "", "Reason, shown to everybody who asks");

/// All commands.
pub(super) const COMMANDS: &[Command] = &[
    Command {
        name: "config",
        verb: Verb::Config,
        summary: "Show or check this machine's configuration",
        usage: "show|check",
        description: "\
\"show\" prints each setting with its value and where the value comes from.
\"check\" prints what is wrong with the configuration, and exits with 1 if
something is. Neither needs etcd.",
        flags: &[],
    },
    Command {
        name: "fsck",
        verb: Verb::Fsck,
        summary: "Look for what is wrong in the stored lock",
        usage: "",
        description: "\
Looks for unsorted or repeated holders, a wrong count and records of machines
that hold nothing. Exits with 1 if something is left wrong.",
        flags: &[switch("fix", "Put it right.")],
    },
    Command {
        name: "halt",
        verb: Verb::Halt,
        summary: "Stop all further reboots until it is cleared",
        usage: "",
        description: "\
Sets the halt that a spent failure budget sets too: nobody gets the lock, and
machines that hold it do not reboot any more. With -clear the halt is taken
away and the failures that led to it are forgotten. Both want a reason.",
        flags: &[
            switch("clear", "Let the group go on and forget its failures."),
            WHY,
        ],
    },
    Command {
        name: "help",
        verb: Verb::Help,
        summary: "Show a list of commands or help for one command",
        usage: "[COMMAND]",
        description: "Lists all commands, or explains the one that is named.",
        flags: &[],
    },
    Command {
        name: "holders",
        verb: Verb::Holders,
        summary: "List who holds the lock, since when and what for",
        usage: "",
        description: "\
One line for each holder: how far its reboot is, what the lock is for, its age,
the versions before and after, how it reboots, and its reason if it has one.",
        flags: &[],
    },
    Command {
        name: "lock",
        verb: Verb::Lock,
        summary: "Lock this machine or a given machine-id for reboot.",
        usage: "<machine-id>",
        description: "\
Takes the reboot lock for the machine-id, by default this machine's. It is kept
until \"unlock\": an agent that finds its machine locked this way leaves the lock
alone. Fails if no place is free or the machine holds one already.",
        flags: &[WHY],
    },
    Command {
        name: "migrate",
        verb: Verb::Migrate,
        summary: "Move the lock from the v2 to the v3 API of etcd",
        usage: "",
        description: "\
Copies the maximum to v3, closes the lock on v2 and, once its last holder has
gone, opens the one on v3. Until then nobody gets either. Safe to repeat.",
        flags: &[switch(
            "wait",
            "Wait for the last holder instead of telling who it is.",
        )],
    },
    Command {
        name: "pause",
        verb: Verb::Pause,
        summary: "Give the lock to nobody until resume",
        usage: "",
        description: "\
Machines that hold the lock go on; the others keep their turn in the queue.",
        flags: &[WHY],
    },
    Command {
        name: "policy",
        verb: Verb::Policy,
        summary: "Show or set the rules of the group",
        usage: "show|set budget=N",
        description: "\
budget: that many failed machines halt the group; 0 never halts it.
The maximum is set by \"set-max\".",
        flags: &[],
    },
    Command {
        name: "reboot",
        verb: Verb::Reboot,
        summary: "Reboot honoring reboot locks.",
        usage: "",
        description: "\
Takes the lock for this machine, or finds it taken, and asks logind for a
reboot. If logind refuses, a lock that was taken is given back. After the
reboot locksmithd gives it back.",
        flags: &[],
    },
    Command {
        name: "resume",
        verb: Verb::Resume,
        summary: "End a pause",
        usage: "",
        description: "Lets machines take the lock again after \"pause\".",
        flags: &[],
    },
    Command {
        name: "send-need-reboot",
        verb: Verb::SendNeedReboot,
        summary: "send a 'need reboot' signal over dbus.",
        usage: "",
        description: "\
Sends the signal with which update_engine asks for a reboot. The original
locksmithd believes it; ours asks update_engine itself and does not reboot
unless an update is installed.",
        flags: &[],
    },
    Command {
        name: "set-max",
        verb: Verb::SetMax,
        summary: "Set the maximum number of lock holders",
        usage: "UNIT",
        description: "\
UNIT is a number, or a share of the machines that take part such as 10%.
Whoever holds the lock keeps it. 0 lets nobody take it.",
        flags: &[],
    },
    Command {
        name: "status",
        verb: Verb::Status,
        summary: "Get the status of the cluster wide reboot lock.",
        usage: "",
        description: "\
Prints how many may hold the lock at once, how many more can take it now, and
who holds it. What else is known goes to stderr, for people.",
        flags: &[switch(
            "verbose",
            "Tell people more even if stdout is no terminal.",
        )],
    },
    Command {
        name: "unlock",
        verb: Verb::Unlock,
        summary: "Unlock this machine or a given machine-id for reboot.",
        usage: "<machine-id>",
        description: "\
Gives back the reboot lock of the machine-id, by default this machine's. Any
machine can be named: for one that will not come back use -lost, so that it
counts as failed.",
        flags: &[switch("lost", "The machine is gone: count it as failed.")],
    },
    Command {
        name: "watch",
        verb: Verb::Watch,
        summary: "Print what changes, as it changes",
        usage: "",
        description: "\
One line for each change of holders, queue, maximum, pause and halt; with -json
the whole status each time. Ctrl-C ends it.",
        flags: &[],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_sorted_and_unambiguous() {
        assert!(GLOBAL_FLAGS.is_sorted_by(|a, b| a.name < b.name));
        assert!(COMMANDS.is_sorted_by(|a, b| a.name < b.name));
        for command in COMMANDS {
            assert!(command.flags.is_sorted_by(|a, b| a.name < b.name));
            for flag in command.flags {
                let same = |other: &Flag| other.name == flag.name;
                assert!(!GLOBAL_FLAGS.iter().any(same), "{}", flag.name);
            }
        }
    }
}
