//! How things are written: whole texts to standard output, colours only where they are wanted, real objects as JSON, YAML or names.

use std::{
    fmt::Write as _,
    io::{self, IsTerminal as _, Write as _},
};

use anstyle::{AnsiColor, Color};
use kube::Resource;
use serde::Serialize;
use unicode_width::UnicodeWidthStr as _;

use crate::error::Error;

/// Forms in which commands that show objects can write them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// More columns.
    Wide,
    /// The objects as JSON.
    Json,
    /// The objects as YAML.
    Yaml,
    /// Only kinds and names.
    Name,
}

/// Forms in which commands can write what they found out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Encoding {
    /// Everything as JSON.
    Json,
    /// Everything as YAML.
    Yaml,
}

impl From<Format> for Encoding {
    fn from(format: Format) -> Self {
        match format {
            Format::Yaml => Self::Yaml,
            Format::Wide | Format::Json | Format::Name => Self::Json,
        }
    }
}

/// Form of the output, for commands that show objects.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct OutputArgs {
    /// Form of the output: for people if not given.
    #[arg(short, long, value_enum, value_name = "FORM")]
    pub output: Option<Format>,
}

/// What standard output can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Whether colours are wanted.
    pub color: bool,
    /// Whether somebody looks at a terminal.
    pub terminal: bool,
}

/// Room that a text may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Columns of a line.
    pub columns: Option<usize>,
    /// Lines.
    pub rows: Option<usize>,
}

impl Room {
    /// As much as it takes.
    pub const ENDLESS: Self = Self { columns: None, rows: None };
}

/// Meaning of a coloured word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it is.
    Plain,
    /// It ended well.
    Good,
    /// It goes on.
    Busy,
    /// Somebody should look.
    Warning,
    /// It failed.
    Bad,
    /// Of less interest.
    Faint,
    /// A heading.
    Strong,
}

impl Style {
    /// No terminal, no colours.
    pub const PLAIN: Self = Self { color: false, terminal: false };

    /// What fits standard output and the user's wishes.
    pub fn of_stdout(no_color: bool) -> Self {
        if !io::stdout().is_terminal() {
            return Self::PLAIN;
        }
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self { color: !no_color && !dumb && !set("NO_COLOR"), terminal: true }
    }

    /// A word in its tone.
    pub fn paint(self, tone: Tone, text: &str) -> String {
        let style = match tone {
            _ if !self.color || text.is_empty() => return text.to_owned(),
            Tone::Plain => return text.to_owned(),
            Tone::Good => colored(AnsiColor::Green),
            Tone::Busy => colored(AnsiColor::Cyan),
            Tone::Warning => colored(AnsiColor::Yellow),
            Tone::Bad => colored(AnsiColor::Red),
            Tone::Faint => anstyle::Style::new().dimmed(),
            Tone::Strong => anstyle::Style::new().bold(),
        };
        format!("{style}{text}{style:#}")
    }
}

fn colored(color: AnsiColor) -> anstyle::Style {
    anstyle::Style::new().fg_color(Some(Color::Ansi(color)))
}

/// Columns of the terminal that standard output is; absent where it is none.
pub fn terminal_size() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then(|| (usize::from(size.ws_col), usize::from(size.ws_row)))
}

/// Writes a text to standard output. Whoever reads it may stop reading: that is [`Error::Closed`], no failure.
pub fn print(text: &str) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::BrokenPipe => Error::Closed,
        _ => Error::Output(error),
    })
}

/// Writes a remark to standard error: never part of what a script reads.
pub fn remark(text: &str) {
    // Nothing is left to tell of it if standard error is closed.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Objects to be written as they are, of one kind or of several.
#[derive(Debug, Default)]
pub struct List {
    names: Vec<String>,
    items: Vec<serde_json::Value>,
}

impl List {
    /// Adds objects.
    pub fn add<'a, K>(&mut self, all: impl IntoIterator<Item = &'a K>) -> Result<(), Error>
    where
        K: Resource<DynamicType = ()> + Serialize + 'a,
    {
        for object in all {
            self.names.push(full_name(object));
            self.items.push(typed(object)?);
        }
        Ok(())
    }

    /// As a List, as kubectl writes several objects; or the names.
    pub fn write(&self, format: Format) -> Result<String, Error> {
        match format {
            Format::Name => Ok(self.names.iter().map(|name| format!("{name}\n")).collect()),
            _ => encode(
                format.into(),
                &serde_json::json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": self.items}),
            ),
        }
    }
}

/// One object as it is, as JSON, as YAML or only its name.
pub fn object<K>(format: Format, object: &K) -> Result<String, Error>
where
    K: Resource<DynamicType = ()> + Serialize,
{
    match format {
        Format::Name => Ok(format!("{}\n", full_name(object))),
        _ => encode(format.into(), &typed(object)?),
    }
}

/// Any value as JSON, or as YAML.
pub fn encode(encoding: Encoding, value: &impl Serialize) -> Result<String, Error> {
    let text = match encoding {
        Encoding::Yaml => serde_yaml::to_string(value).map_err(|error| error.to_string()),
        Encoding::Json => serde_json::to_string_pretty(value).map_err(|error| error.to_string()),
    };
    text.map(|text| format!("{}\n", text.trim_end())).map_err(Error::Encode)
}

/// `collecttask.collect.dev/villages`.
pub fn full_name<K: Resource<DynamicType = ()>>(object: &K) -> String {
    let name = object.meta().name.as_deref().unwrap_or_default();
    match K::group(&()).as_ref() {
        "" => format!("{}/{name}", K::kind(&()).to_ascii_lowercase()),
        group => format!("{}.{group}/{name}", K::kind(&()).to_ascii_lowercase()),
    }
}

/// An object with its kind and API version, which items of lists lack.
fn typed<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Result<serde_json::Value, Error> {
    let mut value = serde_json::to_value(object).map_err(|error| Error::Encode(error.to_string()))?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert("apiVersion".into(), K::api_version(&()).as_ref().into());
        fields.insert("kind".into(), K::kind(&()).as_ref().into());
        if let Some(metadata) = fields.get_mut("metadata").and_then(serde_json::Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    }
    Ok(value)
}

/// A table for people: columns as wide as they need, two spaces between them, nothing behind the last.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<Vec<(Tone, String)>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|heading| (Tone::Strong, (*heading).to_owned())).collect()] }
    }

    /// Adds a row of words as they are.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) {
        self.rows.push(cells.into_iter().map(|cell| (Tone::Plain, cell.into())).collect());
    }

    /// Adds a row of words in their tones.
    pub fn toned(&mut self, cells: Vec<(Tone, String)>) {
        self.rows.push(cells);
    }

    /// Whether there are only headings.
    pub fn is_empty(&self) -> bool {
        self.rows.len() <= 1
    }

    /// The text, as wide as it is.
    pub fn render(&self, style: Style) -> String {
        self.render_in(style, None, &[])
    }

    /// The text, no wider than this. Columns give way in the order of `give_way`; what stands in the last one is cut, and the
    /// first one where nothing else helps.
    pub fn render_in(&self, style: Style, columns: Option<usize>, give_way: &[usize]) -> String {
        let widths = self.widths(columns, give_way);
        let last = widths.len().saturating_sub(1);
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            let (mut owed, mut used) = (0, 0);
            for (column, ((tone, cell), width)) in row.iter().zip(&widths).enumerate() {
                let Some(width) = *width else { continue };
                let room = columns.map_or(usize::MAX, |columns| columns.saturating_sub(used + owed));
                let cell = cut(cell, if column == last { room } else { width });
                if !cell.is_empty() {
                    // Writing to a String can't fail.
                    let _ = write!(line, "{}{}", " ".repeat(owed), style.paint(*tone, &cell));
                    used += owed + cell.width();
                    owed = 0;
                }
                owed += width.saturating_sub(cell.width()) + 2;
            }
            text.push_str(&line);
            text.push('\n');
        }
        text
    }

    /// Width of each column that is shown. One that may give way and has nothing in it is not.
    fn widths(&self, columns: Option<usize>, give_way: &[usize]) -> Vec<Option<usize>> {
        let count = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let has_heading = self.rows.first().is_some_and(|row| row.iter().any(|(tone, _)| *tone == Tone::Strong));
        let mut widths: Vec<Option<usize>> = (0..count)
            .map(|column| {
                let cells = || self.rows.iter().filter_map(|row| row.get(column)).map(|(_, cell)| cell.width());
                let filled = cells().skip(usize::from(has_heading)).any(|width| width > 0);
                cells().max().filter(|_| filled || !give_way.contains(&column))
            })
            .collect();
        let Some(columns) = columns else { return widths };
        // The last column takes what is left.
        let taken = |widths: &[Option<usize>]| {
            let before = widths.len().saturating_sub(1);
            widths.iter().take(before).flatten().map(|width| width + 2).sum::<usize>()
        };
        for column in give_way {
            if taken(&widths) > columns
                && let Some(width) = widths.get_mut(*column)
            {
                *width = None;
            }
        }
        let over = taken(&widths).saturating_sub(columns);
        if let Some(Some(first)) = widths.first_mut() {
            *first = first.saturating_sub(over).max(8);
        }
        widths
    }
}

/// Cuts a text to so many columns; what is lost shows as `…`.
pub fn cut(text: &str, columns: usize) -> String {
    if text.width() <= columns {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut used = 0;
    for c in text.chars() {
        let width = unicode_width::UnicodeWidthChar::width(c).unwrap_or(0);
        if used + width + 1 > columns {
            break;
        }
        kept.push(c);
        used += width;
    }
    if columns > 0 {
        kept.push('…');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_they_show() {
        let mut table = Table::new(&["NAME", "PHASE"]);
        table.row(["深圳市", "Running"]);
        table.row(["a", ""]);
        assert_eq!(table.render(Style::PLAIN), "NAME    PHASE\n深圳市  Running\na\n");
    }

    #[test]
    fn colours_take_no_room() {
        let mut table = Table::new(&["PHASE", "NAME"]);
        table.toned(vec![(Tone::Bad, "Failed".into()), (Tone::Plain, "a".into())]);
        let text = table.render(Style { color: true, terminal: true });
        assert!(text.contains("\u{1b}[31mFailed\u{1b}[0m  a\n"), "{text:?}");
    }

    #[test]
    fn texts_are_cut_between_characters() {
        assert_eq!(cut("深圳市", 5), "深圳…");
        assert_eq!(cut("深圳市", 4), "深…");
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abc", 0), "");
    }
}
