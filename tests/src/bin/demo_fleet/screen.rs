//! What the audience sees: text that scrolls, and below it a table that changes
//! in place. Where there is no terminal, a line for each change instead.

use std::io::{self, IsTerminal, Write};
use std::time::Instant;

/// Longer lines would wrap on a usual terminal, and the table with them.
const WIDTH: usize = 79;

/// How a text looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Look {
    Plain,
    Bold,
    Dim,
    Blue,
    Green,
    Yellow,
    Red,
}

/// One machine in the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) machine: String,
    pub(crate) version: String,
    pub(crate) phase: String,
    pub(crate) look: Look,
}

pub(crate) struct Screen {
    begin: Instant,
    in_place: bool,
    colours: bool,
    /// Lines of the table that stand on the terminal.
    drawn: usize,
    rows: Vec<Row>,
    summary: String,
    steps: u32,
}

impl Screen {
    pub(crate) fn new() -> Self {
        let terminal = io::stdout().is_terminal();
        let dumb = std::env::var("TERM").is_ok_and(|term| term == "dumb");
        Self {
            begin: Instant::now(),
            in_place: terminal && !dumb,
            colours: terminal && !dumb && std::env::var_os("NO_COLOR").is_none(),
            drawn: 0,
            rows: Vec::new(),
            summary: String::new(),
            steps: 0,
        }
    }

    /// A new chapter.
    pub(crate) fn step(&mut self, title: &str) {
        self.steps += 1;
        let title = self.paint(Look::Blue, &format!("{}. {title}", self.steps));
        self.above(&format!("\n{title}\n"));
    }

    /// A remark.
    pub(crate) fn note(&mut self, text: &str) {
        let text = self.paint(Look::Dim, text);
        self.above(&format!("  {text}\n"));
    }

    /// A command as one would type it, and what it printed.
    pub(crate) fn command(&mut self, command: &str, output: &str) {
        let mut text = format!("{}\n", self.paint(Look::Bold, &format!("$ {command}")));
        for line in output.lines() {
            text += "  ";
            text += line;
            text.push('\n');
        }
        self.above(&text);
    }

    pub(crate) fn fail(&mut self, reason: &str) {
        self.leave_table();
        let text = self.paint(Look::Red, &format!("Failed: {reason}"));
        eprintln!("\n{text}");
    }

    /// Shows the machines as they are now.
    pub(crate) fn table(&mut self, rows: Vec<Row>, summary: String) {
        if rows == self.rows && summary == self.summary && (self.drawn > 0 || !self.in_place) {
            return;
        }
        if self.in_place {
            self.rows = rows;
            self.summary = summary;
            self.above("");
            return;
        }
        let seconds = self.begin.elapsed().as_secs();
        for (row, before) in rows
            .iter()
            .zip(self.rows.iter().map(Some).chain(std::iter::repeat(None)))
        {
            if before != Some(row) {
                println!(
                    "  [{seconds:3} s] {} on {}: {}",
                    row.machine, row.version, row.phase
                );
            }
        }
        self.rows = rows;
        self.summary = summary;
    }

    /// Lets the table stand where it is; what follows comes below it.
    pub(crate) fn leave_table(&mut self) {
        self.drawn = 0;
        self.rows.clear();
    }

    /// Prints text, above the table if there is one.
    fn above(&mut self, text: &str) {
        let mut out = String::new();
        if self.drawn > 0 {
            out += &format!("\x1b[{}A\x1b[J", self.drawn);
        }
        out += text;
        if self.in_place && !self.rows.is_empty() {
            let table = self.draw();
            self.drawn = table.lines().count();
            out += &table;
        }
        print!("{out}");
        // Nobody looks if this fails.
        let _ = io::stdout().flush();
    }

    fn draw(&self) -> String {
        let head = format!("  {:<10} {:<9} {}", "MACHINE", "VERSION", "PHASE");
        let mut out = format!("\n{}\n", self.paint(Look::Dim, &head));
        for row in &self.rows {
            let phase: String = row.phase.chars().take(WIDTH - 23).collect();
            out += &format!(
                "  {:<10} {:<9} {}\n",
                row.machine,
                row.version,
                self.paint(row.look, &phase)
            );
        }
        let seconds = self.begin.elapsed().as_secs();
        let summary = format!("  {seconds} s · {}", self.summary);
        let summary: String = summary.chars().take(WIDTH).collect();
        out + &self.paint(Look::Dim, &summary) + "\n"
    }

    fn paint(&self, look: Look, text: &str) -> String {
        let code = match look {
            _ if !self.colours => return text.to_owned(),
            Look::Plain => return text.to_owned(),
            Look::Bold => "1",
            Look::Dim => "2",
            Look::Blue => "1;34",
            Look::Green => "32",
            Look::Yellow => "33",
            Look::Red => "1;31",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}
