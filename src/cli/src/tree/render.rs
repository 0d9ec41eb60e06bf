//! The tree as text. Pure: the same tree, room and style always give the same lines.

use std::collections::BTreeMap;

use super::model::{Node, Tree, tone};
use crate::{
    output::{Room, Style, Table, Tone},
    pace,
};

/// Cells of a progress bar.
const BAR: usize = 20;
/// Columns that give way where the terminal is narrow, in this order: rate, bar, shards, time left.
const GIVE_WAY: [usize; 4] = [6, 2, 4, 7];

/// The tree, a line for each node. Where the room has an end, what is of least interest is only counted.
pub fn render(tree: &Tree, room: Room, style: Style) -> String {
    let mut table = Table::new(&["NAME", "PHASE", "", "DONE", "SHARDS", "RECORDS", "RATE", "LEFT", "NOTE"]);
    let shown = Shown::of(&tree.root, room.rows.map(|rows| rows.saturating_sub(1)));
    add(&mut table, &shown, Guide::default(), style);
    table.render_in(style, room.columns, &GIVE_WAY)
}

/// `██████▌░░░`, so many cells.
pub fn bar(progress: i32, cells: usize) -> String {
    let eighths = usize::try_from(progress.clamp(0, 100)).unwrap_or(0) * cells * 8 / 100;
    let (full, part) = (eighths / 8, eighths % 8);
    let mut bar = "█".repeat(full);
    bar.extend(["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"].get(part).copied().filter(|part| !part.is_empty()));
    let used = full + usize::from(part > 0);
    bar + &"░".repeat(cells.saturating_sub(used))
}

/// The lines that lead from the root to a node.
#[derive(Clone, Default)]
struct Guide {
    above: String,
    branch: &'static str,
}

impl Guide {
    fn below(&self, last: bool) -> Self {
        let above = match self.branch {
            "" => String::new(),
            "└─ " => format!("{}   ", self.above),
            _ => format!("{}│  ", self.above),
        };
        Self { above, branch: if last { "└─ " } else { "├─ " } }
    }
}

fn add(table: &mut Table, shown: &Shown<'_>, guide: Guide, style: Style) {
    let node = shown.node;
    let label = node.label.as_ref().map(|label| format!(" ({label})")).unwrap_or_default();
    let tone = tone(&node.phase);
    let attempt = node.attempt.filter(|attempt| *attempt > 1).map(|attempt| format!(" a{attempt}")).unwrap_or_default();
    // A bar says something only to somebody who looks at a terminal.
    let bar = node.progress.filter(|_| style.terminal).map(|progress| bar(progress, BAR)).unwrap_or_default();
    let records = node.records.map(|(done, of)| collect_core::text::of(done, of)).unwrap_or_default();
    let matched = node.matched.as_ref().map(|matched| format!("match {matched}"));
    let note: Vec<String> =
        matched.into_iter().chain(Some(node.note.clone()).filter(|note| !note.is_empty())).collect();
    table.toned(vec![
        (Tone::Plain, format!("{}{}{}{label}", guide.above, guide.branch, node.name)),
        (tone, format!("{}{attempt}", node.phase)),
        (tone, bar),
        (Tone::Plain, node.progress.map(|progress| format!("{progress}%")).unwrap_or_default()),
        (Tone::Plain, node.shards.map(|(done, of)| format!("{done}/{of}")).unwrap_or_default()),
        (Tone::Plain, records),
        (Tone::Plain, pace::said(node.per_second)),
        (Tone::Plain, node.left.map(pace::span).unwrap_or_default()),
        (Tone::Faint, note.join("; ")),
    ]);
    let counted = shown.counted();
    for (index, child) in shown.children.iter().enumerate() {
        let last = index + 1 == shown.children.len() && counted.is_none();
        add(table, child, guide.below(last), style);
    }
    if let Some(counted) = counted {
        let guide = guide.below(true);
        table.toned(vec![(Tone::Faint, format!("{}{}{counted}", guide.above, guide.branch))]);
    }
}

/// What of a node is shown.
struct Shown<'a> {
    node: &'a Node,
    children: Vec<Shown<'a>>,
    hidden: BTreeMap<&'a str, usize>,
}

impl<'a> Shown<'a> {
    /// The whole tree below a node, or so much of it that it needs no more than these lines.
    fn of(root: &'a Node, lines: Option<usize>) -> Self {
        let mut flat = Vec::new();
        flatten(root, None, 0, &mut flat);
        let mut visible = vec![lines.is_none(); flat.len()];
        if let Some(lines) = lines {
            choose(&flat, &mut visible, lines);
        }
        build(&flat, &visible, 0, root)
    }

    /// What is not shown below the node, in words.
    fn counted(&self) -> Option<String> {
        let unseen = &self.node.unseen;
        let mut parts: Vec<String> = self.hidden.iter().map(|(phase, count)| format!("{count} {phase}")).collect();
        let words = [(unseen.done, "done"), (unseen.undone, "failed or cancelled"), (unseen.waiting, "to come")];
        parts.extend(words.iter().filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")));
        (!parts.is_empty()).then(|| format!("… and {}", parts.join(", ")))
    }
}

struct Flat<'a> {
    node: &'a Node,
    parent: Option<usize>,
    children: Vec<usize>,
    depth: usize,
}

fn flatten<'a>(node: &'a Node, parent: Option<usize>, depth: usize, flat: &mut Vec<Flat<'a>>) -> usize {
    let index = flat.len();
    flat.push(Flat { node, parent, children: Vec::new(), depth });
    for child in &node.children {
        let child = flatten(child, Some(index), depth + 1, flat);
        if let Some(flat) = flat.get_mut(index) {
            flat.children.push(child);
        }
    }
    index
}

/// Marks the most urgent nodes, each with all above it, as long as there is room.
fn choose(flat: &[Flat<'_>], visible: &mut [bool], lines: usize) {
    let mut order: Vec<usize> = (0..flat.len()).collect();
    order.sort_by_key(|index| flat.get(*index).map(|flat| (flat.node.urgency(), flat.depth, *index)));
    // The root is shown in any case.
    for index in std::iter::once(0).chain(order) {
        let mut added = Vec::new();
        let mut at = Some(index);
        while let Some(index) = at.filter(|index| visible.get(*index) == Some(&false)) {
            added.push(index);
            at = flat.get(index).and_then(|flat| flat.parent);
        }
        set(visible, &added, true);
        if index > 0 && needed(flat, visible) > lines {
            set(visible, &added, false);
            return;
        }
    }
}

fn set(visible: &mut [bool], indexes: &[usize], value: bool) {
    for index in indexes {
        if let Some(slot) = visible.get_mut(*index) {
            *slot = value;
        }
    }
}

/// Lines that the visible nodes take, with one more for each that has something to count.
fn needed(flat: &[Flat<'_>], visible: &[bool]) -> usize {
    let mut counting = vec![false; flat.len()];
    let mut lines = 0;
    for (index, (flat, is_visible)) in flat.iter().zip(visible).enumerate() {
        if *is_visible {
            lines += 1;
            if flat.node.unseen != super::model::Unseen::default()
                && let Some(slot) = counting.get_mut(index)
            {
                *slot = true;
            }
        } else if let Some(slot) = flat.parent.and_then(|parent| counting.get_mut(parent)) {
            *slot = true;
        }
    }
    lines + counting.iter().zip(visible).filter(|(counts, is_visible)| **counts && **is_visible).count()
}

/// What is marked, and counts of the rest.
fn build<'a>(flat: &[Flat<'a>], visible: &[bool], index: usize, node: &'a Node) -> Shown<'a> {
    let mut shown = Shown { node, children: Vec::new(), hidden: BTreeMap::new() };
    for child in flat.get(index).iter().flat_map(|flat| &flat.children) {
        let Some(node) = flat.get(*child).map(|flat| flat.node) else { continue };
        if visible.get(*child) == Some(&true) {
            shown.children.push(build(flat, visible, *child, node));
        } else {
            *shown.hidden.entry(node.phase.as_str()).or_default() += 1;
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::samples;

    fn sample() -> Tree {
        let root = samples::with_status(
            samples::task("villages", None, "Running", 63, (630, Some(1000))),
            json!({
                "shards": {"total": 6, "pending": 1, "running": 1, "succeeded": 3, "failed": 1, "cancelled": 0},
                "tasks": {"total": 3, "pending": 1, "active": 1, "succeeded": 1, "collected": 0, "failed": 0, "cancelled": 0},
            }),
        );
        let running = samples::with_status(
            samples::task("villages-44", Some("villages"), "Running", 50, (330, Some(700))),
            json!({
                "shards": {"total": 4, "pending": 0, "running": 1, "succeeded": 2, "failed": 1, "cancelled": 0},
                "folded": {"done": {"shards": "0"}},
            }),
        );
        let done = samples::with_status(
            samples::task("villages-11", Some("villages"), "Succeeded", 100, (300, Some(300))),
            json!({"shards": {"total": 1, "pending": 0, "running": 0, "succeeded": 1, "failed": 0, "cancelled": 0}}),
        );
        let tasks = [running, done].map(Arc::new);
        let shards = [
            samples::shard("villages-44-3", "Failed", 3, 0, None),
            samples::shard("villages-44-2", "Running", 2, 30, Some(400)),
            samples::shard("villages-44-1", "Succeeded", 1, 300, None),
            samples::shard("villages-11-0", "Succeeded", 0, 300, None),
        ]
        .map(Arc::new);
        let report = Arc::new(samples::report("villages-11", 1, "Pass"));
        Tree::of(&root, &tasks, &shards, &[report], samples::now())
    }

    #[test]
    fn a_tree_is_one_line_a_node_in_the_order_of_the_plan() {
        insta::assert_snapshot!(render(&sample(), Room::ENDLESS, Style::PLAIN));
    }

    #[test]
    fn a_terminal_gets_bars_and_colours() {
        let style = Style { color: true, terminal: true };
        insta::assert_snapshot!(
            render(&sample(), Room { columns: Some(200), rows: None }, style).replace('\u{1b}', "␛")
        );
    }

    #[test]
    fn what_does_not_fit_is_counted_and_what_failed_is_kept() {
        let room = Room { columns: Some(60), rows: Some(7) };
        let text = render(&sample(), room, Style::PLAIN);
        assert!(text.lines().count() <= 7, "{text}");
        assert!(text.contains("villages-44-3") && text.contains("Failed"), "{text}");
        assert!(text.contains("1 Succeeded"), "what is hidden is counted: {text}");
        let widest = text.lines().map(unicode_width::UnicodeWidthStr::width).max().unwrap();
        assert!(widest <= 60, "{widest}: {text}");
    }

    #[test]
    fn a_bar_is_as_long_as_it_should_be() {
        for progress in [-5, 0, 1, 33, 50, 99, 100, 250] {
            assert_eq!(bar(progress, 20).chars().count(), 20, "{progress}");
        }
        assert_eq!(bar(50, 4), "██░░");
        assert_eq!(bar(56, 4), "██▏░", "to an eighth of a cell, never more than is done");
        assert!(!bar(99, 20).ends_with('█'), "full only at the end");
    }

    #[test]
    fn owner_references_in_a_circle_come_to_an_end() {
        let a = Arc::new(samples::task("a", Some("b"), "Running", 0, (0, None)));
        let b = Arc::new(samples::task("b", Some("a"), "Running", 0, (0, None)));
        let none: [Arc<collect_api::CollectShard>; 0] = [];
        let tree = Tree::of(&a, &[a.clone(), b], &none, &[] as &[Arc<collect_api::ValidationReport>], samples::now());
        assert!(render(&tree, Room::ENDLESS, Style::PLAIN).lines().count() < 100);
    }
}
