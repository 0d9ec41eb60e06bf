//! Shows a text made of live objects: once, or again and again until the task is over. On a terminal it is drawn in place.

use std::time::{Duration, Instant};

use collect_api::CollectTask;
use futures::StreamExt;
use jiff::Timestamp;
use kube::ResourceExt;

use crate::{
    error::Error,
    exit::Exit,
    live::{self, Scope, Seen},
    output::{self, Room, Style},
    session::Session,
    state,
};

/// Time between two pictures on a terminal.
const FRAME: Duration = Duration::from_millis(250);
/// Time between two pictures elsewhere: a log must not drown in them.
const PAGE: Duration = Duration::from_secs(10);

/// Whether a picture is kept current.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub struct FollowArgs {
    /// Keep it current until the task is over. Default on a terminal.
    #[arg(short, long, conflicts_with = "once")]
    watch: bool,
    /// Show it once. Default where standard output is no terminal.
    #[arg(long)]
    once: bool,
}

impl FollowArgs {
    /// Whether to follow, given where the output goes.
    pub fn follows(self, style: Style) -> bool {
        self.watch || (style.terminal && !self.once)
    }
}

/// What a picture is made of.
pub struct Picture<'a> {
    /// The task that was asked for.
    pub top: &'a CollectTask,
    /// All there is to know.
    pub seen: &'a Seen,
    /// Time of the picture.
    pub now: Timestamp,
    /// Room for it.
    pub room: Room,
    /// Where it goes.
    pub style: Style,
}

/// Shows the picture of a task as it is now. The exit code says how it ended, if it did.
pub async fn once(session: &Session, top: &CollectTask, draw: impl Fn(&Picture<'_>) -> String) -> Result<Exit, Error> {
    let name = top.name_any();
    let seen = Seen::read(session, &Scope::of(top)).await?;
    let newest = seen.task(&name);
    let top = newest.as_deref().unwrap_or(top);
    let style = session.style();
    let columns = output::terminal_size().filter(|_| style.terminal).map(|(columns, _)| columns);
    let room = Room { columns, ..Room::ENDLESS };
    output::print(&draw(&Picture { top, seen: &seen, now: Timestamp::now(), room, style }))?;
    Ok(exit(top))
}

/// Keeps the picture of a task current until it is over or is deleted, or the user has seen enough.
pub async fn follow(
    session: &Session,
    top: &CollectTask,
    draw: impl Fn(&Picture<'_>) -> String,
) -> Result<Exit, Error> {
    let (name, scope) = (top.name_any(), Scope::of(top));
    let style = session.style();
    let mut screen = Screen::new(style);
    let mut seen = Seen::nothing(&scope);
    let mut said = live::watch(session, &scope).await?;
    let mut tick = tokio::time::interval(if style.terminal { FRAME } else { Duration::from_secs(1) });
    let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
    loop {
        tokio::select! {
            next = said.next() => match next {
                Some(said) => drop(seen.take(said?)),
                None => return Err(Error::Unreachable(format!("watching {name}"), "the watch ended".into())),
            },
            _ = tick.tick() => {}
            _ = &mut interrupted => return Ok(Exit::Done),
        }
        if !seen.is_ready() {
            continue;
        }
        let Some(top) = seen.task(&name) else {
            output::remark(&format!("{name} is gone: it was deleted"));
            return Ok(Exit::Unable);
        };
        let over = state::is_over(&top);
        if over || screen.is_due() {
            let room = screen.room(over);
            screen.show(&draw(&Picture { top: &top, seen: &seen, now: Timestamp::now(), room, style }), over)?;
        }
        if over {
            return Ok(exit(&top));
        }
    }
}

fn exit(top: &CollectTask) -> Exit {
    if state::is_over(top) && !state::is_good(&state::phase(top)) { Exit::Failed } else { Exit::Done }
}

/// Where pictures are drawn over each other, or else one below the other.
struct Screen {
    style: Style,
    lines: usize,
    last: Option<(Instant, String)>,
}

impl Screen {
    fn new(style: Style) -> Self {
        Self { style, lines: 0, last: None }
    }

    fn is_due(&self) -> bool {
        let pause = if self.style.terminal { FRAME } else { PAGE };
        self.last.as_ref().is_none_or(|(at, _)| at.elapsed() >= pause)
    }

    /// The last picture may take more lines than the terminal has: nothing is drawn over it any more.
    fn room(&self, last: bool) -> Room {
        let size = output::terminal_size().filter(|_| self.style.terminal);
        Room {
            columns: size.map(|(columns, _)| columns),
            rows: size.map(|(_, rows)| rows.saturating_sub(1)).filter(|_| !last),
        }
    }

    fn show(&mut self, picture: &str, last: bool) -> Result<(), Error> {
        let same = self.last.as_ref().is_some_and(|(_, text)| text == picture);
        if self.style.terminal && same && !last {
            return Ok(());
        }
        if self.style.terminal {
            output::print(&over(self.lines, picture))?;
            self.lines = if last { 0 } else { picture.lines().count() };
        } else if !same {
            let gap = if self.last.is_some() { "\n" } else { "" };
            output::print(&format!("{gap}{picture}"))?;
        }
        self.last = Some((Instant::now(), picture.to_owned()));
        Ok(())
    }
}

/// A picture over the one before, which took so many lines: up, and each line to its end, so that nothing flickers.
fn over(lines: usize, picture: &str) -> String {
    let up = if lines > 0 { format!("\u{1b}[{lines}A") } else { String::new() };
    let body: String = picture.lines().map(|line| format!("{line}\u{1b}[K\n")).collect();
    format!("\r{up}{body}\u{1b}[J")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_drawn_over_the_one_before() {
        assert_eq!(over(0, "a\nb\n"), "\ra\u{1b}[K\nb\u{1b}[K\n\u{1b}[J");
        assert_eq!(over(2, "a\n"), "\r\u{1b}[2Aa\u{1b}[K\n\u{1b}[J");
    }

    #[test]
    fn a_terminal_is_followed_unless_asked_not_to() {
        let terminal = Style { color: false, terminal: true };
        assert!(FollowArgs::default().follows(terminal) && !FollowArgs::default().follows(Style::PLAIN));
        assert!(!FollowArgs { once: true, watch: false }.follows(terminal));
        assert!(FollowArgs { once: false, watch: true }.follows(Style::PLAIN));
    }
}
