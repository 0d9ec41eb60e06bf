//! The table at the end, and whether its targets are met.

use std::fmt::Display;

use collect_e2e::say;

/// What a figure should be.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    AtMost(f64),
    AtLeast(f64),
    /// Like `AtLeast`, but nobody is held to it.
    Hoped(f64),
}

impl Target {
    fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtMost(most) => value <= most,
            Self::AtLeast(least) | Self::Hoped(least) => value >= least,
        }
    }
}

impl Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(most) => write!(f, "<= {most}"),
            Self::AtLeast(least) | Self::Hoped(least) => write!(f, ">= {least}"),
        }
    }
}

#[derive(Debug)]
struct Row {
    name: String,
    value: String,
    target: Option<(Target, bool)>,
}

/// Rows in the order of printing.
#[derive(Debug, Default)]
pub struct Table(Vec<Row>);

impl Table {
    /// A line between groups of rows.
    pub fn heading(&mut self, text: &str) {
        self.0.push(Row { name: text.into(), value: String::new(), target: None });
    }

    /// A figure without a target.
    pub fn figure(&mut self, name: impl Into<String>, value: impl Display) {
        self.0.push(Row { name: format!("  {}", name.into()), value: value.to_string(), target: None });
    }

    /// A figure with a target. What can't be a number misses it.
    pub fn judged(&mut self, name: impl Into<String>, value: f64, unit: &str, target: Target) {
        let digits = if value.fract() == 0.0 { 0 } else { 2 };
        let value_text = format!("{value:.digits$}{}{unit}", if unit.is_empty() { "" } else { " " });
        let met = target.is_met(value);
        self.0.push(Row { name: format!("  {}", name.into()), value: value_text, target: Some((target, met)) });
    }

    /// Prints all and gives back whether every target is met.
    pub fn print(&self) -> bool {
        let rows = || self.0.iter().filter(|row| !row.value.is_empty());
        let width = |text: fn(&Row) -> &str| rows().map(|row| text(row).chars().count()).max().unwrap_or(0);
        let (names, values) = (width(|row| &row.name), width(|row| &row.value));
        for row in &self.0 {
            let verdict = match row.target {
                None => String::new(),
                Some((target, true)) => format!("{target}  ok"),
                Some((target @ Target::Hoped(_), false)) => {
                    format!("{target}  below, no more than a hint")
                }
                Some((target, false)) => format!("{target}  MISSED"),
            };
            say(format!("{:names$}  {:>values$}  {verdict}", row.name, row.value).trim_end());
        }
        let missed = |row: &&Row| matches!(row.target, Some((Target::AtMost(_) | Target::AtLeast(_), false)));
        let missed: Vec<_> = self.0.iter().filter(missed).map(|row| row.name.trim()).collect();
        match missed.as_slice() {
            [] => say("every target is met"),
            missed => say(&format!("MISSED: {}", missed.join("; "))),
        }
        missed.is_empty()
    }
}
