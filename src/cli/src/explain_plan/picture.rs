//! What a plan means: how much of what it makes, under which names, where it lands, what it costs. Pure.

use std::collections::BTreeMap;

use collect_api::{
    CollectTaskSpec,
    plan::{Item, Part, PathStep},
    protocol::{Identity, PlanResult},
    sink::Sink,
    source::{HttpSource, Pagination, Source},
};
use collect_core::{
    admit::lookahead,
    names, resolve,
    tree::{Node, PlanTree},
};
use serde::Serialize;

/// Stands for the uid of a task that does not exist yet.
const NO_UID: &str = "xxxxxxxx";
/// Writes of the operator for each shard, from its creation to the deletion of its Job.
const WRITES_PER_SHARD: i64 = 5;
/// Writes of the operator for each task: its creation, the report's creation and status, and its own status as it goes on.
const WRITES_PER_TASK: i64 = 6;

/// What a plan belongs to.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    /// Namespace; empty if it is not known.
    pub namespace: String,
    /// Name of the root.
    pub root: String,
    /// Its uid; absent for a task that does not exist yet.
    pub uid: Option<String>,
    /// Its spec.
    pub spec: &'a CollectTaskSpec,
    /// What the planner found.
    pub result: PlanResult,
    /// Requests that it took to plan; absent for a plan of the cluster.
    pub requests: Option<i64>,
}

/// The plan of a task, or of a part of its tree.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Picture {
    /// Name of the task that it is about.
    pub task: String,
    /// Run.
    pub run: i64,
    /// Digest of the plan.
    pub digest: String,
    /// Chunks of the plan, each a ConfigMap.
    pub chunks: i32,
    /// What each level holds, from the top down.
    pub levels: Vec<Level>,
    /// Tasks below the task.
    pub tasks: i64,
    /// Shards, its own and those below.
    pub shards: i64,
    /// Items of the shards.
    pub items: i64,
    /// Records expected; absent where the planner could not know.
    pub records: Option<i64>,
    /// The independent total, where one was read.
    pub total: Option<i64>,
    /// Tasks without any work.
    pub empty_tasks: i64,
    /// Values that a discovery gave twice under one parent.
    pub duplicate_values: i64,
    /// Requests that it took to plan.
    pub plan_requests: Option<i64>,
    /// What it costs.
    pub cost: Cost,
    /// Where it lands.
    pub sink: Landing,
    /// All tasks in the order of the plan, the task itself first.
    pub nodes: Vec<PlannedNode>,
}

/// What a level holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Level {
    /// Its name.
    pub name: String,
    /// `tasks` or `slices`.
    #[serde(rename = "as")]
    pub becomes: &'static str,
    /// Tasks of this level; absent for slices.
    pub tasks: Option<i64>,
    /// Distinct combinations of values down to this level; only for slices.
    pub values: Option<i64>,
}

/// What a plan costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Cost {
    /// Workers at once.
    pub workers: i32,
    /// Unfinished shards that exist at a time, at most.
    pub unfinished_shards: i64,
    /// CollectTasks that are left at the end, the root included.
    pub kept_tasks: i64,
    /// CollectShards that are left at the end.
    pub kept_shards: i64,
    /// Jobs of the run if nothing has to be tried again: the planner's, one for each shard, the commit's.
    pub jobs: i64,
    /// Writes to the API server, without progress, about.
    pub api_writes: i64,
    /// Requests for records; absent where the number of pages is not known.
    pub requests: Option<i64>,
    /// Requests a second that the source's limit allows.
    pub requests_per_second: Option<f64>,
    /// Seconds that the requests take at least, by that limit.
    pub least_seconds: Option<f64>,
}

/// Where a plan lands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Landing {
    /// Folder of the run. Where the task does not exist yet, x stands for its uid.
    pub run: String,
    /// Folder of the first slice.
    pub first_slice: Option<String>,
    /// The file that names the valid run.
    pub current: String,
}

/// A task of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedNode {
    /// Name of the CollectTask.
    pub name: String,
    /// Steps from the root.
    pub path: Vec<PathStep>,
    /// Depth below the root.
    pub depth: usize,
    /// Direct child tasks.
    pub tasks: usize,
    /// Shards, its own and those below.
    pub shards_below: i32,
    /// Records expected below it.
    pub records: Option<i64>,
    /// Its own shards.
    pub shards: Vec<PlannedShard>,
}

/// A shard of the plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PlannedShard {
    /// Name of the CollectShard.
    pub name: String,
    /// Items.
    pub items: usize,
    /// Records expected.
    pub records: Option<i64>,
    /// Folder at the sink.
    pub folder: String,
}

impl Picture {
    /// The plan of the node `top` of a tree.
    pub fn of(subject: &Subject<'_>, plan: &PlanTree, top: &Node) -> Self {
        let nodes: Vec<&Node> = plan.nodes.iter().filter(|node| node.path.starts_with(&top.path)).collect();
        let items = nodes.iter().flat_map(|node| node.shards.iter().flatten());
        let shards: i64 = nodes.iter().map(|node| length(&node.shards)).sum();
        let is_whole = top.path.is_empty();
        Self {
            task: top.name.clone(),
            run: subject.spec.run_number(),
            digest: plan.digest.clone(),
            chunks: subject.result.chunks,
            levels: levels(subject.spec, &nodes),
            tasks: i64::from(top.tasks_below),
            shards,
            items: i64::try_from(items.count()).unwrap_or(i64::MAX),
            records: top.records,
            total: top.total,
            empty_tasks: length(
                &nodes.iter().filter(|node| node.children.is_empty() && node.shards.is_empty()).collect::<Vec<_>>(),
            ),
            duplicate_values: if is_whole { subject.result.duplicate_values } else { 0 },
            plan_requests: subject.requests,
            cost: cost(subject.spec, plan, top, &nodes),
            sink: landing(subject, &nodes),
            nodes: nodes.iter().map(|node| planned(subject, node)).collect(),
        }
    }
}

fn length<T>(list: &[T]) -> i64 {
    i64::try_from(list.len()).unwrap_or(i64::MAX)
}

fn levels(spec: &CollectTaskSpec, nodes: &[&Node]) -> Vec<Level> {
    let declared = spec.decompose.as_ref().map(|decompose| decompose.levels.as_slice()).unwrap_or_default();
    let mut slices: Vec<&str> = Vec::new();
    declared
        .iter()
        .map(|level| {
            let is_slices = level.become_ == Some(collect_api::decompose::Become::Slices);
            if !is_slices {
                let tasks = nodes.iter().filter(|node| node.path.last().is_some_and(|step| step.level == level.name));
                let tasks = i64::try_from(tasks.count()).unwrap_or(i64::MAX);
                return Level { name: level.name.clone(), becomes: "tasks", tasks: Some(tasks), values: None };
            }
            slices.push(&level.name);
            let values: std::collections::BTreeSet<(&str, Vec<Option<&String>>)> = nodes
                .iter()
                .flat_map(|node| node.shards.iter().flatten().map(move |item| (node.name.as_str(), item)))
                .map(|(task, item)| (task, slices.iter().map(|name| item.values.get(*name)).collect()))
                .collect();
            let values = i64::try_from(values.len()).unwrap_or(i64::MAX);
            Level { name: level.name.clone(), becomes: "slices", tasks: None, values: Some(values) }
        })
        .collect()
}

fn cost(spec: &CollectTaskSpec, plan: &PlanTree, top: &Node, nodes: &[&Node]) -> Cost {
    let workers = resolve::root_parallelism(spec).max(0);
    let shards: i64 = nodes.iter().map(|node| length(&node.shards)).sum();
    let window = i64::from(workers) + i64::from(lookahead(workers));
    let (kept_tasks, kept_shards) = kept(plan, top, resolve::history(spec));
    let limits = source(spec).and_then(|source| source.limits.as_ref());
    let requests = requests(spec, nodes);
    let rate = limits.and_then(|limits| limits.requests_per_second).filter(|rate| *rate > 0.0);
    let is_whole = top.path.is_empty();
    Cost {
        workers,
        unfinished_shards: window.min(shards),
        kept_tasks,
        kept_shards,
        jobs: shards + if is_whole { 2 } else { 0 },
        api_writes: shards * WRITES_PER_SHARD + length(nodes) * WRITES_PER_TASK,
        requests,
        requests_per_second: rate,
        least_seconds: requests.zip(rate).map(|(requests, rate)| requests as f64 / rate),
    }
}

/// Tasks and shards that are left as objects at the end: each task keeps so many finished children of both kinds; with the
/// largest branches if it is to be the most that there can be.
fn kept(plan: &PlanTree, node: &Node, history: usize) -> (i64, i64) {
    let mut below: Vec<(i64, i64)> = plan.children(node).map(|child| kept(plan, child, history)).collect();
    below.sort_by_key(|(tasks, shards)| std::cmp::Reverse(tasks + shards));
    below.truncate(history);
    let shards = i64::try_from(node.shards.len().min(history)).unwrap_or(i64::MAX);
    below
        .into_iter()
        .fold((1, shards), |(tasks, shards), (more_tasks, more_shards)| (tasks + more_tasks, shards + more_shards))
}

fn source(spec: &CollectTaskSpec) -> Option<&HttpSource> {
    spec.source.as_ref().map(|Source::Http(source)| source)
}

/// Requests for records, where the number of pages follows from what is declared and expected.
fn requests(spec: &CollectTaskSpec, nodes: &[&Node]) -> Option<i64> {
    let size = match source(spec)?.pagination.as_ref() {
        None | Some(Pagination::None {}) => None,
        Some(Pagination::Page(page)) => Some(page.size?),
        Some(Pagination::Offset(offset)) => Some(offset.limit),
        Some(Pagination::Cursor(_) | Pagination::Next(_)) => return None,
    };
    let mut sum = 0;
    for item in nodes.iter().flat_map(|node| node.shards.iter().flatten()) {
        sum += match size {
            None => 1,
            Some(size) => pages(item, size)?,
        };
    }
    Some(sum)
}

fn pages(item: &Item, size: i64) -> Option<i64> {
    if let Part::Pages(span) = &item.part
        && let Some(to) = span.to
    {
        return Some(to - span.from);
    }
    let size = match &item.part {
        Part::Pages(span) => span.size,
        _ => size,
    };
    let records = item.records?;
    Some((records.max(1) + size.max(1) - 1) / size.max(1))
}

fn identity(subject: &Subject<'_>, path: &[PathStep], index: i32) -> Identity {
    Identity {
        namespace: subject.namespace.clone(),
        root: subject.root.clone(),
        root_uid: subject.uid.clone().unwrap_or_else(|| NO_UID.to_owned()),
        run: subject.spec.run_number(),
        path: path.to_vec(),
        index,
        plan_digest: String::new(),
    }
}

fn sink_url(spec: &CollectTaskSpec) -> String {
    match &spec.sink {
        Some(Sink::ObjectStore(store)) => store.url.trim_end_matches('/').to_owned(),
        None => String::new(),
    }
}

fn landing(subject: &Subject<'_>, nodes: &[&Node]) -> Landing {
    let url = sink_url(subject.spec);
    let first = nodes.iter().find(|node| !node.shards.is_empty());
    Landing {
        run: format!("{url}/{}/", identity(subject, &[], 0).run_folder()),
        first_slice: first.map(|node| format!("{url}/{}/", identity(subject, &node.path, 0).slice_folder())),
        current: format!("{url}/{}", collect_data::plan::CURRENT),
    }
}

fn planned(subject: &Subject<'_>, node: &Node) -> PlannedNode {
    let url = sink_url(subject.spec);
    let shards = node.shards.iter().zip(0..).map(|(items, index)| PlannedShard {
        name: names::shard(&node.name, index),
        items: items.len(),
        records: items.iter().map(|item| item.records).sum(),
        folder: format!("{url}/{}/", identity(subject, &node.path, index).slice_folder()),
    });
    PlannedNode {
        name: node.name.clone(),
        path: node.path.clone(),
        depth: node.path.len(),
        tasks: node.children.len(),
        shards_below: node.shards_below,
        records: node.records,
        shards: shards.collect(),
    }
}

/// The picture as text; of each level and of the shards at most `limit` lines.
pub fn render(picture: &Picture, limit: usize, style: crate::output::Style) -> String {
    use crate::output::Table;
    let known = |number: Option<i64>| number.map_or_else(|| "?".to_owned(), |number| number.to_string());
    let mut text = format!("{}, run {}: ", picture.task, picture.run);
    text.push_str(&format!(
        "{} tasks below it, {} shards, {} items, {} records\n",
        picture.tasks,
        picture.shards,
        picture.items,
        known(picture.records)
    ));
    for (count, words) in [
        (picture.empty_tasks, "tasks have no work"),
        (picture.duplicate_values, "values came twice under one parent and count once"),
    ] {
        if count > 0 {
            text.push_str(&format!("  {count} {words}\n"));
        }
    }
    if let Some(total) = picture.total {
        text.push_str(&format!("  the independent total is {total}\n"));
    }
    if !picture.levels.is_empty() {
        let mut table = Table::new(&["LEVEL", "AS", "COUNT"]);
        for level in &picture.levels {
            table.row([level.name.clone(), level.becomes.to_owned(), known(level.tasks.or(level.values))]);
        }
        text.push_str(&format!("\n{}", table.render(style)));
    }
    text.push_str(&format!("\n{}", tasks(picture, limit, style)));
    text.push_str(&format!("\n{}", shards(picture, limit, style)));
    text.push_str(&format!("\n{}", cost_text(picture, style)));
    text
}

fn tasks(picture: &Picture, limit: usize, style: crate::output::Style) -> String {
    let mut by_depth: BTreeMap<usize, Vec<&PlannedNode>> = BTreeMap::new();
    for node in &picture.nodes {
        by_depth.entry(node.depth).or_default().push(node);
    }
    let mut table = crate::output::Table::new(&["TASK", "LABEL", "TASKS", "SHARDS", "RECORDS"]);
    let mut more = Vec::new();
    for (depth, nodes) in &by_depth {
        for node in nodes.iter().take(limit) {
            table.row([
                node.name.clone(),
                node.path.last().and_then(|step| step.label.clone()).unwrap_or_default(),
                node.tasks.to_string(),
                node.shards_below.to_string(),
                node.records.map_or_else(|| "?".to_owned(), |records| records.to_string()),
            ]);
        }
        if nodes.len() > limit {
            more.push(format!("… and {} more at depth {depth}\n", nodes.len() - limit));
        }
    }
    table.render(style) + &more.concat()
}

fn shards(picture: &Picture, limit: usize, style: crate::output::Style) -> String {
    let all: Vec<&PlannedShard> = picture.nodes.iter().flat_map(|node| &node.shards).collect();
    if all.is_empty() {
        return "no shards: there is no work\n".into();
    }
    let mut table = crate::output::Table::new(&["SHARD", "ITEMS", "RECORDS", "LANDS IN"]);
    for shard in all.iter().take(limit) {
        table.row([
            shard.name.clone(),
            shard.items.to_string(),
            shard.records.map_or_else(|| "?".to_owned(), |records| records.to_string()),
            shard.folder.clone(),
        ]);
    }
    let more = all.len().saturating_sub(limit);
    let rest = if more > 0 { format!("… and {more} more\n") } else { String::new() };
    table.render(style) + &rest
}

fn cost_text(picture: &Picture, style: crate::output::Style) -> String {
    let cost = &picture.cost;
    let mut table = crate::output::Table::new(&["COST", ""]);
    table.row([
        "workers at once".to_owned(),
        format!("{}, with {} unfinished shards as objects at most", cost.workers, cost.unfinished_shards),
    ]);
    table.row(["Jobs".to_owned(), format!("{}, one for each shard, planner and commit included", cost.jobs)]);
    table.row([
        "objects at the end".to_owned(),
        format!("{} CollectTasks and {} CollectShards at most", cost.kept_tasks, cost.kept_shards),
    ]);
    table.row(["plan".to_owned(), format!("{} ConfigMaps", picture.chunks)]);
    table.row(["API writes".to_owned(), format!("about {}, and progress", cost.api_writes)]);
    let requests = match (cost.requests, cost.requests_per_second, cost.least_seconds) {
        (Some(requests), Some(rate), Some(seconds)) => {
            format!(
                "about {requests}; at {rate} a second they take {} at least",
                collect_api::Duration::from_secs(seconds.ceil().clamp(0.0, 1e12) as u64)
            )
        }
        (Some(requests), ..) => format!("about {requests}; spec.source.http.limits sets no pace"),
        (None, ..) => "not known: the number of pages does not follow from the totals".to_owned(),
    };
    table.row(["requests for records".to_owned(), requests]);
    if let Some(requests) = picture.plan_requests {
        table.row(["requests of the plan".to_owned(), requests.to_string()]);
    }
    table.row(["lands in".to_owned(), picture.sink.run.clone()]);
    table.row(["valid run".to_owned(), picture.sink.current.clone()]);
    table.render(style)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::output::Style;

    fn spec(changes: impl FnOnce(&mut serde_json::Value)) -> CollectTaskSpec {
        let mut spec = json!({
            "source": {"http": {
                "url": "http://x", "path": "/{{ district }}", "total": "$.total",
                "pagination": {"page": {"param": "page", "size": 100}}, "limits": {"requestsPerSecond": 2},
            }},
            "record": {"key": ["code"]},
            "decompose": {"levels": [
                {"name": "province", "discover": {"path": "/p", "value": "$.code"}},
                {"name": "district", "as": "slices", "discover": {"path": "/d", "value": "$.code"}},
            ]},
            "sink": {"objectStore": {"url": "s3://lake/v/"}},
            "parallelism": 2, "history": 2,
        });
        changes(&mut spec);
        serde_json::from_value(spec).unwrap()
    }

    /// Two provinces: 44 with three shards of two districts each, `x y` with one of a district that is read by pages.
    fn tree() -> collect_data::plan::Tree {
        use collect_data::plan::{Node, Tree};
        let step =
            |value: &str| PathStep { level: "province".into(), value: value.into(), label: Some("广东".into()) };
        let item = |district: &str, part: Part, records| Item {
            values: BTreeMap::from([("district".to_owned(), district.to_owned())]),
            part,
            records: Some(records),
        };
        let whole = |district: &str| item(district, Part::Whole {}, 150);
        let pages = |from, to| Part::Pages(collect_api::plan::PageSpan { from, to, size: 100 });
        let nodes = vec![
            Node { path: vec![], children: vec![1, 2], shards: vec![] },
            Node {
                path: vec![step("44")],
                children: vec![],
                shards: vec![vec![whole("1"), whole("2")], vec![whole("3"), whole("4")], vec![whole("5"), whole("6")]],
            },
            Node {
                path: vec![step("x y")],
                children: vec![],
                shards: vec![vec![item("7", pages(0, Some(3)), 300)], vec![item("7", pages(3, None), 50)]],
            },
        ];
        Tree { nodes, duplicates: 1 }
    }

    fn picture(spec: &CollectTaskSpec) -> Picture {
        let plan = collect_data::plan::write(&tree(), Some(1250)).unwrap();
        let read = PlanTree::read("villages", &plan.chunks, &plan.result.digest).unwrap();
        let subject = Subject {
            namespace: "n".into(),
            root: "villages".into(),
            uid: None,
            spec,
            result: plan.result,
            requests: Some(9),
        };
        Picture::of(&subject, &read, read.root().unwrap())
    }

    #[test]
    fn a_plan_is_counted() {
        let picture = picture(&spec(|_| ()));
        assert_eq!((picture.tasks, picture.shards, picture.items, picture.records), (2, 5, 8, Some(1250)));
        let levels: Vec<_> = picture.levels.iter().map(|l| (l.name.as_str(), l.becomes, l.tasks, l.values)).collect();
        assert_eq!(levels, [("province", "tasks", Some(2), None), ("district", "slices", None, Some(7))]);
        assert_eq!((picture.duplicate_values, picture.total), (1, Some(1250)));
        let cost = &picture.cost;
        assert_eq!((cost.workers, cost.unfinished_shards, cost.jobs), (2, 4, 7));
        assert_eq!((cost.kept_tasks, cost.kept_shards), (3, 4), "history 2 keeps two of three shards");
        assert_eq!(cost.requests, Some(6 * 2 + 3 + 1));
        assert_eq!(cost.least_seconds, Some(8.0));
        assert_eq!(picture.sink.run, "s3://lake/v/runs/1-xxxxxxxx/");
        assert_eq!(picture.sink.first_slice.as_deref(), Some("s3://lake/v/runs/1-xxxxxxxx/44/0/"));
        assert_eq!(picture.nodes[2].shards[1].folder, "s3://lake/v/runs/1-xxxxxxxx/x=20y/1/");
        assert_eq!(picture.nodes[1].shards[2].name, "villages-44-2");
    }

    #[test]
    fn what_is_not_known_is_not_made_up() {
        let cursor = spec(|spec| {
            spec["source"]["http"]["pagination"] = json!({"cursor": {"next": "$.n", "into": "c"}});
        });
        let picture = picture(&cursor);
        assert_eq!((picture.cost.requests, picture.cost.least_seconds), (None, None));
        assert!(render(&picture, 9, Style::PLAIN).contains("not known"), "{}", render(&picture, 9, Style::PLAIN));
    }

    #[test]
    fn a_part_of_the_tree_has_its_own_picture() {
        let spec = spec(|_| ());
        let plan = collect_data::plan::write(&tree(), None).unwrap();
        let read = PlanTree::read("villages", &plan.chunks, "").unwrap();
        let subject = Subject {
            namespace: "n".into(),
            root: "villages".into(),
            uid: Some("3f9c2a71-0000".into()),
            spec: &spec,
            result: plan.result,
            requests: None,
        };
        let picture = Picture::of(&subject, &read, &read.nodes[1]);
        assert_eq!((picture.task.as_str(), picture.tasks, picture.shards, picture.cost.jobs), ("villages-44", 0, 3, 3));
        assert_eq!(picture.nodes[0].shards[0].folder, "s3://lake/v/runs/1-3f9c2a71/44/0/");
    }

    #[test]
    fn the_text_is_bounded() {
        let text = render(&picture(&spec(|_| ())), 1, Style::PLAIN);
        assert!(text.contains("… and 1 more at depth 1\n") && text.contains("… and 4 more\n"), "{text}");
        assert!(text.contains("villages-44 ") && !text.contains("villages-x-y"), "{text}");
        assert!(text.contains("2 tasks below it, 5 shards, 8 items, 1250 records"), "{text}");
        assert!(text.contains("about 16; at 2 a second they take 8s at least"), "{text}");
        let whole = render(&picture(&spec(|_| ())), 50, Style::PLAIN);
        assert!(whole.contains("villages-x-y-") && !whole.contains("more"), "{whole}");
    }
}
