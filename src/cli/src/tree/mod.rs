//! `tree`: a task with everything below it, a line each, live on a terminal.

mod model;
mod render;

use collect_api::CollectTask;

pub use model::{Tree, tone};
pub use render::bar;

use crate::{
    args::TaskName,
    error::Error,
    exit::Exit,
    follow::{self, FollowArgs, Picture},
    live::{Scope, Seen},
    output::{self, Format, OutputArgs},
    session::Session,
};

/// Arguments of `tree`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of a task: of the root, or of a child to see its branch.
    name: TaskName,
    #[command(flatten)]
    follow: FollowArgs,
    #[command(flatten)]
    output: OutputArgs,
}

/// Shows the tree.
pub async fn run(args: &Args, session: &Session) -> Result<Exit, Error> {
    let top: CollectTask = session.get(args.name.as_ref()).await?;
    match args.output.output {
        Some(format @ (Format::Json | Format::Yaml | Format::Name)) => objects(format, &top, session).await,
        Some(Format::Wide) | None if args.follow.follows(session.style()) => follow::follow(session, &top, draw).await,
        Some(Format::Wide) | None => follow::once(session, &top, draw).await,
    }
}

fn draw(picture: &Picture<'_>) -> String {
    let seen = picture.seen;
    let tree = Tree::of(picture.top, &seen.tasks(), &seen.shards(), &seen.reports(), picture.now);
    render::render(&tree, picture.room, picture.style)
}

/// The real objects of the tree: tasks, shards, reports.
async fn objects(format: Format, top: &CollectTask, session: &Session) -> Result<Exit, Error> {
    let seen = Seen::read(session, &Scope::of(top)).await?;
    let tree = Tree::of(top, &seen.tasks(), &seen.shards(), &seen.reports(), jiff::Timestamp::now());
    let names = tree.names();
    let of_tree = |name: Option<&String>| name.is_some_and(|name| names.contains(name.as_str()));
    let tasks: Vec<_> = seen.tasks().into_iter().filter(|task| of_tree(task.metadata.name.as_ref())).collect();
    let shards: Vec<_> = seen.shards().into_iter().filter(|shard| of_tree(shard.metadata.name.as_ref())).collect();
    let reports: Vec<_> = seen.reports().into_iter().filter(|report| of_tree(Some(&report.spec.task))).collect();
    let mut list = output::List::default();
    list.add(tasks.iter().map(AsRef::as_ref))?;
    list.add(shards.iter().map(AsRef::as_ref))?;
    list.add(reports.iter().map(AsRef::as_ref))?;
    output::print(&list.write(format)?)?;
    Ok(Exit::Done)
}
