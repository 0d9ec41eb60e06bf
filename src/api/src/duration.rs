//! A span of time as people write it in Kubernetes objects: `500ms`, `90s`, `5m`, `1h30m`, `7d`.

use std::{fmt, str::FromStr, time};

use serde::{Deserialize, Serialize};

/// A span of time written as one or more numbers with a unit (`ms`, `s`, `m`, `h`, `d`), such as `1h30m`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Duration(time::Duration);

/// What a text must look like to be a [`Duration`].
pub const PATTERN: &str = "^([0-9]{1,9}(ms|s|m|h|d))+$";

/// A text that is no duration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("`{0}` is no duration; write a number and a unit (ms, s, m, h, d), such as 90s or 1h30m")]
pub struct NotADuration(String);

impl Duration {
    /// A duration of whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(time::Duration::from_secs(seconds))
    }

    /// A duration of milliseconds.
    pub const fn from_millis(millis: u64) -> Self {
        Self(time::Duration::from_millis(millis))
    }

    /// The same span as the standard library's type.
    pub const fn get(self) -> time::Duration {
        self.0
    }
}

impl FromStr for Duration {
    type Err = NotADuration;

    fn from_str(text: &str) -> Result<Self, NotADuration> {
        let wrong = || NotADuration(text.chars().take(40).collect());
        let mut total_ms: u64 = 0;
        let mut rest = text;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let (number, tail) = rest.split_at(digits);
            let number: u64 = number.parse().map_err(|_| wrong())?;
            let (unit_ms, unit_len) = match tail {
                t if t.starts_with("ms") => (1, 2),
                t if t.starts_with('s') => (1_000, 1),
                t if t.starts_with('m') => (60_000, 1),
                t if t.starts_with('h') => (3_600_000, 1),
                t if t.starts_with('d') => (86_400_000, 1),
                _ => return Err(wrong()),
            };
            total_ms = number.checked_mul(unit_ms).and_then(|ms| total_ms.checked_add(ms)).ok_or_else(wrong)?;
            rest = tail.get(unit_len..).unwrap_or_default();
        }
        Ok(Self(time::Duration::from_millis(total_ms)))
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut ms = self.0.as_millis();
        if ms == 0 {
            return f.write_str("0s");
        }
        for (unit_ms, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s"), (1, "ms")] {
            if ms >= unit_ms {
                write!(f, "{}{unit}", ms / unit_ms)?;
                ms %= unit_ms;
            }
        }
        Ok(())
    }
}

impl TryFrom<String> for Duration {
    type Error = NotADuration;
    fn try_from(text: String) -> Result<Self, NotADuration> {
        text.parse()
    }
}

impl From<Duration> for String {
    fn from(duration: Duration) -> String {
        duration.to_string()
    }
}

impl schemars::JsonSchema for Duration {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Duration".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": PATTERN, "maxLength": 32})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_people_write() {
        for (text, ms) in [("500ms", 500), ("90s", 90_000), ("1h30m", 5_400_000), ("7d", 604_800_000), ("0s", 0)] {
            assert_eq!(text.parse::<Duration>().unwrap().get().as_millis(), ms, "{text}");
        }
    }

    #[test]
    fn refuses_what_is_none() {
        for text in ["", "5", "s", "5 s", "-1s", "5w", "1.5s", "99999999999999999999d", "5s "] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }

    #[test]
    fn writes_what_it_reads() {
        for text in ["500ms", "1m30s", "1h30m", "7d", "0s"] {
            assert_eq!(text.parse::<Duration>().unwrap().to_string(), text);
        }
    }
}
