//! Walks the levels and measures the values.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use collect_api::plan::Part;
use collect_api::{
    decompose::{Become, Decompose, Level, RangeShards, Shards},
    plan::{Item, PathStep},
    protocol::IndependentTotal,
    source::HttpSource,
};
use futures::{StreamExt, TryStreamExt, stream};
use serde_json::value::RawValue;

use super::PlanError;
use crate::{
    Error,
    decompose::{self, DecomposeError, Measured, Value, shards},
    http::{
        self, Answer, Client, Endpoint, Fetched, JsonPath, Reader, Variables,
        paginate::{Facts, Rule},
    },
    json, text,
};

const MAX_VALUE_CHARS: usize = 253;

/// Which values of a level are followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// All of them.
    All,
    /// One of each level: the one that is named here, or the first. For previews.
    One(BTreeMap<String, String>),
}

/// A task of the tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// Steps from the root.
    pub path: Vec<PathStep>,
    /// Places of its child tasks.
    pub children: Vec<usize>,
    /// Items of its shards.
    pub shards: Vec<Vec<Item>>,
}

/// The tree of tasks; the root comes first, children behind their parents.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tree {
    /// Tasks.
    pub nodes: Vec<Node>,
    /// Values that a discovery gave twice under one parent.
    pub duplicates: i64,
}

struct Walker<'a> {
    client: &'a Arc<Client>,
    source: &'a HttpSource,
    decompose: &'a Decompose,
    choice: &'a Choice,
    max_children: usize,
    max_shards: usize,
}

/// Walks the levels and makes the shards of every task.
///
/// # Errors
/// When a level can't be read, or a bound is exceeded.
pub async fn walk(
    client: &Arc<Client>,
    source: &HttpSource,
    decompose: &Decompose,
    choice: &Choice,
) -> Result<Tree, Error> {
    let limit = |declared: Option<i32>, default| declared.and_then(|n| usize::try_from(n).ok()).unwrap_or(default);
    let limits = decompose.limits.clone().unwrap_or_default();
    let walker = Walker {
        client,
        source,
        decompose,
        choice,
        max_children: limit(limits.max_children, 1000),
        max_shards: limit(limits.max_shards, 100_000),
    };
    let mut tree = Tree { nodes: vec![Node::default()], duplicates: 0 };
    let mut leaves = vec![0];
    let (tasks, slices): (Vec<&Level>, Vec<&Level>) =
        decompose.levels.iter().partition(|level| level.become_ != Some(Become::Slices));
    for level in &tasks {
        leaves = walker.grow(&mut tree, &leaves, level).await?;
    }
    let combinations = walker.combine(&mut tree, &leaves, &slices).await?;
    walker.make_shards(&mut tree, combinations).await?;
    Ok(tree)
}

/// Level values below a task.
type Values = BTreeMap<String, String>;

impl Walker<'_> {
    /// Adds the child tasks of a level and gives their places.
    async fn grow(&self, tree: &mut Tree, parents: &[usize], level: &Level) -> Result<Vec<usize>, Error> {
        let paths: Vec<Vec<PathStep>> =
            parents.iter().filter_map(|place| tree.nodes.get(*place)).map(|node| node.path.clone()).collect();
        let known = paths.iter().map(|path| values_of(path)).collect();
        let found = self.values_below(known, level, Some(self.max_children)).await?;
        let mut children = Vec::new();
        for ((parent, path), (steps, duplicates)) in parents.iter().zip(paths).zip(found) {
            tree.duplicates += duplicates;
            for step in steps {
                let place = tree.nodes.len();
                let path = path.iter().cloned().chain([step]).collect();
                tree.nodes.push(Node { path, ..Node::default() });
                if let Some(node) = tree.nodes.get_mut(*parent) {
                    node.children.push(place);
                }
                children.push(place);
            }
            self.check_shards(children.len())?;
        }
        Ok(children)
    }

    /// The combinations of the slices' level values below every leaf task, in order.
    async fn combine(
        &self,
        tree: &mut Tree,
        leaves: &[usize],
        slices: &[&Level],
    ) -> Result<Vec<(usize, Values)>, Error> {
        let mut combinations: Vec<(usize, Values)> = leaves.iter().map(|leaf| (*leaf, Values::new())).collect();
        for level in slices {
            let known = combinations.iter().map(|(leaf, values)| self.all_values(tree, *leaf, values)).collect();
            let found = self.values_below(known, level, None).await?;
            let mut next = Vec::new();
            for ((leaf, values), (steps, duplicates)) in combinations.into_iter().zip(found) {
                tree.duplicates += duplicates;
                for step in steps {
                    let mut values = values.clone();
                    values.insert(step.level, step.value);
                    next.push((leaf, values));
                }
                self.check_shards(next.len() / collect_api::plan::MAX_ITEMS)?;
            }
            combinations = next;
        }
        Ok(combinations)
    }

    fn check_shards(&self, least: usize) -> Result<(), Error> {
        if least > self.max_shards {
            return Err(DecomposeError::TooManyShards { max: self.max_shards }.into());
        }
        Ok(())
    }

    fn all_values(&self, tree: &Tree, leaf: usize, values: &Values) -> Values {
        let mut all = tree.nodes.get(leaf).map(|node| values_of(&node.path)).unwrap_or_default();
        all.extend(values.clone());
        all
    }

    /// The values of a level below each of these, in order, and how many came twice.
    async fn values_below(
        &self,
        parents: Vec<Values>,
        level: &Level,
        max: Option<usize>,
    ) -> Result<Vec<(Vec<PathStep>, i64)>, Error> {
        let concurrency = self.client.concurrency().clamp(1, 16);
        let read = parents.into_iter().map(|known| self.values(known, level, max));
        stream::iter(read).buffered(concurrency).try_collect().await
    }

    async fn values(&self, known: Values, level: &Level, max: Option<usize>) -> Result<(Vec<PathStep>, i64), Error> {
        let too_many = |count: usize| match max.filter(|max| count > *max) {
            Some(max) => {
                let task = if known.is_empty() { "the task".into() } else { crate::collect::name_of(&known) };
                Err(PlanError::TooManyChildren { task, level: level.name.clone(), max })
            }
            None => Ok(()),
        };
        let mut distinct = Distinct::default();
        match (&level.values, &level.discover) {
            (Some(values), _) => {
                for value in values {
                    distinct.add(step(level, value.clone(), None)?);
                }
                too_many(distinct.steps.len())?;
            }
            (None, Some(discover)) => {
                let names: BTreeSet<String> = known.keys().cloned().collect();
                let endpoint = Arc::new(Endpoint::of_discovery(self.source, &level.name, discover, &names)?);
                let value_path = JsonPath::parse(&discover.value)?;
                let label_path = discover.label.as_deref().map(JsonPath::parse).transpose()?;
                let mut reader =
                    Reader::new(self.client, &endpoint, &Variables::of(known.clone()), &Part::Whole {}, None)?;
                loop {
                    let stop = match reader.fetch().await? {
                        Fetched::PastEnd => reader.advance(&Facts::default())?,
                        Fetched::Page(answer) => {
                            let (records, facts) = http::read(&endpoint, self.client.origins(), &answer)?;
                            for record in records {
                                distinct.add(element(level, record, &value_path, label_path.as_ref())?);
                            }
                            too_many(distinct.steps.len())?;
                            reader.advance(&facts)?
                        }
                    };
                    if stop.is_some() {
                        break;
                    }
                }
                let is_first = self.decompose.levels.first().is_some_and(|first| first.name == level.name);
                if distinct.steps.is_empty() && is_first && discover.allow_empty != Some(true) {
                    return Err(PlanError::EmptyDiscovery { level: level.name.clone() }.into());
                }
            }
            (None, None) => {}
        }
        Ok((self.choose(distinct.steps, level), distinct.duplicates))
    }

    fn choose(&self, steps: Vec<PathStep>, level: &Level) -> Vec<PathStep> {
        let Choice::One(wanted) = self.choice else { return steps };
        let wanted = wanted.get(&level.name);
        steps.into_iter().filter(|step| wanted.is_none_or(|wanted| *wanted == step.value)).take(1).collect()
    }

    /// Measures the combinations where needed and makes the shards of every leaf task.
    async fn make_shards(&self, tree: &mut Tree, combinations: Vec<(usize, Values)>) -> Result<(), Error> {
        let endpoint = Arc::new(Endpoint::of(self.source)?);
        let known: Vec<Values> =
            combinations.iter().map(|(leaf, values)| self.all_values(tree, *leaf, values)).collect();
        // A task of one value costs one request more and gets a progress bar.
        let only = known.len() == 1;
        let concurrency = self.client.concurrency().clamp(1, 16);
        let measured = known.into_iter().map(|values| self.measure(&endpoint, values, only));
        let measured: Vec<(Measured, Vec<_>)> = stream::iter(measured).buffered(concurrency).try_collect().await?;
        let mut by_leaf: BTreeMap<usize, Vec<Value>> = BTreeMap::new();
        for ((leaf, values), (measured, ranges)) in combinations.into_iter().zip(measured) {
            by_leaf.entry(leaf).or_default().push(Value { values, measured, ranges });
        }
        let mut count = 0;
        for (leaf, values) in by_leaf {
            let made = shards(self.decompose.shards.as_ref(), endpoint.rule(), values, self.max_shards)?;
            count += made.len();
            self.check_shards(count)?;
            if let Some(node) = tree.nodes.get_mut(leaf) {
                node.shards = made;
            }
        }
        Ok(())
    }

    /// Size and ranges of a value.
    async fn measure(
        &self,
        endpoint: &Arc<Endpoint>,
        values: Values,
        only: bool,
    ) -> Result<(Measured, Vec<collect_api::plan::KeySpan>), Error> {
        let variables = Variables::of(values);
        match &self.decompose.shards {
            Some(Shards::Range(range)) => {
                let total = self.range_total(endpoint, variables, range).await?;
                Ok((Measured::default(), decompose::ranges(range, total, self.max_shards)?))
            }
            Some(Shards::Count(count)) if count.records_per_shard.is_some() => {
                let (measured, answer) = self.first_page(endpoint, variables).await?;
                self.need_total(measured, &answer)?;
                Ok((measured, Vec::new()))
            }
            _ if only && endpoint.total.is_some() => Ok((self.first_page(endpoint, variables).await?.0, Vec::new())),
            _ => Ok((Measured::default(), Vec::new())),
        }
    }

    async fn range_total(
        &self,
        endpoint: &Arc<Endpoint>,
        mut variables: Variables,
        range: &RangeShards,
    ) -> Result<Option<i64>, Error> {
        if range.records_per_shard.is_none() {
            return Ok(None);
        }
        variables.range = Some(decompose::whole(range)?);
        let (measured, answer) = self.first_page(endpoint, variables).await?;
        self.need_total(measured, &answer)?;
        Ok(measured.total)
    }

    fn need_total(&self, measured: Measured, answer: &Answer) -> Result<(), Error> {
        if measured.total.is_some() {
            return Ok(());
        }
        let locator = self.source.total.clone().unwrap_or_else(|| "spec.source.http.total".into());
        Err(PlanError::NoTotal { what: answer.what.clone(), locator }.into())
    }

    /// Total and page size as the first page has them.
    async fn first_page(&self, endpoint: &Arc<Endpoint>, variables: Variables) -> Result<(Measured, Answer), Error> {
        let (facts, answer) = first(self.client, endpoint, &variables).await?;
        let asked = match endpoint.rule() {
            Rule::Pages { asked } => asked,
            Rule::Offsets { limit } => Some(limit),
            Rule::Once | Rule::Cursor | Rule::Next => None,
        };
        let size = asked.map_or(facts.records, |asked| asked.min(facts.records));
        let is_full = size > 0 && facts.total.is_some_and(|total| total > facts.records);
        Ok((Measured { total: facts.total, size: is_full.then_some(size) }, answer))
    }
}

/// The first page of an endpoint.
async fn first(
    client: &Arc<Client>,
    endpoint: &Arc<Endpoint>,
    variables: &Variables,
) -> Result<(Facts, Answer), Error> {
    let state = http::paginate::State::start(endpoint.rule(), http::paginate::Span::default());
    let answer = client.send(&endpoint.page(&endpoint.draft(variables)?, &state)?).await?;
    let facts = http::read(endpoint, client.origins(), &answer)?.1;
    Ok((facts, answer))
}

/// Reads an independent total.
///
/// # Errors
/// When it is not where it should be.
pub async fn independent_total(client: &Client, source: &HttpSource, total: &IndependentTotal) -> Result<i64, Error> {
    let endpoint = Endpoint::of_total(source, total)?;
    let answer = client.send(&endpoint.draft(&Variables::default())?).await?;
    let found =
        endpoint.total.as_ref().map(|locator| locator.find_number(&answer.body, &answer.headers)).transpose()?;
    found
        .flatten()
        .ok_or_else(|| PlanError::NoIndependentTotal { what: answer.what, locator: total.value.clone() }.into())
}

fn values_of(path: &[PathStep]) -> Values {
    path.iter().map(|step| (step.level.clone(), step.value.clone())).collect()
}

fn element(level: &Level, record: &RawValue, value: &JsonPath, label: Option<&JsonPath>) -> Result<PathStep, Error> {
    let found = value.select(record)?.and_then(json::scalar).filter(|value| !value.is_empty());
    let Some(found) = found else {
        let element = text::excerpt(record.get().as_bytes(), []);
        return Err(PlanError::NoValue { level: level.name.clone(), path: value.to_string(), element }.into());
    };
    let label = match label {
        Some(label) => label.select(record)?.and_then(json::scalar),
        None => None,
    };
    Ok(step(level, found, label)?)
}

fn step(level: &Level, value: String, label: Option<String>) -> Result<PathStep, PlanError> {
    if value.chars().count() > MAX_VALUE_CHARS {
        let value = text::shorten(&value, 60);
        return Err(PlanError::LongValue { level: level.name.clone(), value, max: MAX_VALUE_CHARS });
    }
    let label = label.filter(|label| !label.is_empty()).map(|label| text::shorten(&label, MAX_VALUE_CHARS));
    Ok(PathStep { level: level.name.clone(), value, label })
}

/// Values in order of their first appearance.
#[derive(Default)]
struct Distinct {
    seen: BTreeSet<String>,
    steps: Vec<PathStep>,
    duplicates: i64,
}

impl Distinct {
    fn add(&mut self, step: PathStep) {
        if self.seen.insert(step.value.clone()) { self.steps.push(step) } else { self.duplicates += 1 }
    }
}
