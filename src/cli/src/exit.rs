//! What the exit code says. Scripts rely on it: a code never changes its meaning.

use std::process::ExitCode;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done, or what was asked is true.
    Done,
    /// The task is over without success, or a check found something.
    Failed,
    /// Wrong usage, or it can't be done: no cluster, no such object, no right.
    Unable,
    /// The time was over before what was waited for came true.
    TimedOut,
}

/// The exit codes, for `--help`.
pub const HELP: &str = "Exit codes:
  0  done, or what was asked is true
  1  the task is over without success, or a check found something
  2  wrong usage, or it can't be done (no cluster, not found, forbidden)
  3  timeout";

impl Exit {
    /// The number.
    pub fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Unable => 2,
            Self::TimedOut => 3,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_help_lists_every_code() {
        for exit in [Exit::Done, Exit::Failed, Exit::Unable, Exit::TimedOut] {
            assert!(HELP.contains(&format!("\n  {}  ", exit.code())), "{exit:?}");
        }
    }
}
