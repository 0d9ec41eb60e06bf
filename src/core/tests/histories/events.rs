//! What can happen, and histories of it. A failing history prints as one line for each event.

use std::fmt;

use collect_api::DesiredState;
use proptest::prelude::*;

use crate::setup::{Setup, setup};

/// A place in a list whose length is known only when the event happens; it is taken modulo that length.
pub type Pick = u8;

#[derive(Clone, Debug)]
pub enum Event {
    // Everything works as it should.
    /// For so many seconds: all watches deliver, all operators look at everything, the cluster and its workers go on.
    Run(u8),
    // One operator.
    /// It looks at one object of its view.
    Pass(Pick, Pick),
    /// It looks at everything in its view.
    Round(Pick),
    /// Changes of one kind reach it.
    Deliver(Pick, Watched, u8),
    /// Everything reaches it, and it looks at everything.
    CatchUp(Pick),
    /// A watch of it breaks; the new list comes from a replica that is so many changes behind.
    Relist(Pick, Watched, u8),
    /// It loses its memory and starts with lists that are so many changes behind.
    Restart(Pick, u8),
    /// One of its next writes meets this.
    Fault(Pick, Fault),
    /// Its Job creates are held up on their way from now on.
    HoldCreates(Pick),
    /// They arrive, and go through from now on.
    ReleaseCreates(Pick),
    /// Its wall clock jumps.
    ClockStep(Pick, i16),
    // The world around it.
    /// Time passes and nobody does anything.
    Wait(u16),
    /// The Job controller, kubelets, workers and garbage collection do one step.
    Cluster,
    /// The same, but no worker goes on.
    Control,
    /// What becomes of a running worker.
    Worker(Pick, Fate),
    // People.
    Desire(Pick, DesiredState),
    Retry(Pick),
    RetryShard(Pick),
    NewRun,
    Parallelism(Pick, i32),
    DeleteTask(Pick, Foreground),
    DeleteShard(Pick, Foreground),
    DeleteJob(Pick),
    DeletePod(Pick),
    DeletePlan,
    DeleteReport(Pick),
    /// Somebody else's object takes the name that a shard of the tree needs.
    Squat(Pick),
    Unsquat,
}

#[derive(Clone, Copy, Debug)]
pub enum Watched {
    Tasks,
    Shards,
    Reports,
    Jobs,
    Pods,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The request never arrives, and the answer is a timeout.
    Dropped,
    /// The request is carried out, and the answer is lost.
    AnswerLost,
    /// Quota or admission refuses it.
    Refused,
}

#[derive(Clone, Copy, Debug)]
pub enum Fate {
    /// It goes on for so many steps.
    Steps(u8),
    /// It ends with this exit code.
    Exit(i32),
    /// It goes on until its manifest is written, and crashes.
    CommitAndCrash,
    OutOfMemory,
    Evicted,
    /// Its node is lost: the pod is being deleted for ever, and the process goes on.
    NodeLost,
    /// Its pod is deleted by force, and the process goes on.
    ForceDeleted,
    /// It can't reach the operator any more.
    Silent,
    /// It is alive and makes no progress.
    Stuck,
    /// Its pod does not start: no room, or no image.
    NotStarting(NoStart),
}

#[derive(Clone, Copy, Debug)]
pub enum NoStart {
    Room,
    Image,
}

/// Whether a deletion waits for what the object owns.
pub type Foreground = bool;

/// How a history ends, after everything was healed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Everything is left to run, and what failed is retried.
    Finish,
    /// Everything is paused for a while first.
    Pause,
    Cancel,
    DeleteRoot,
}

#[derive(Clone)]
pub struct History {
    pub setup: Setup,
    pub events: Vec<Event>,
    pub ending: Ending,
}

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:?}", self.setup)?;
        for event in &self.events {
            writeln!(f, "  {event:?}")?;
        }
        write!(f, "  then {:?}", self.ending)
    }
}

pub fn history(longest: usize) -> impl Strategy<Value = History> {
    let ending = prop_oneof![
        5 => Just(Ending::Finish),
        2 => Just(Ending::Pause),
        2 => Just(Ending::Cancel),
        1 => Just(Ending::DeleteRoot),
    ];
    let events = proptest::collection::vec(event(), 0..longest);
    (setup(), events, ending).prop_map(|(setup, events, ending)| History { setup, events, ending })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        10 => (1..25u8).prop_map(Event::Run),
        26 => operators(),
        18 => cluster(),
        9 => people(),
    ]
}

fn operators() -> impl Strategy<Value = Event> {
    let watched = || {
        prop_oneof![
            Just(Watched::Tasks),
            Just(Watched::Shards),
            Just(Watched::Reports),
            Just(Watched::Jobs),
            Just(Watched::Pods)
        ]
    };
    let fault = prop_oneof![Just(Fault::Dropped), Just(Fault::AnswerLost), Just(Fault::Refused)];
    let who = || 0..3u8;
    prop_oneof![
        6 => (who(), any::<u8>()).prop_map(|(who, object)| Event::Pass(who, object)),
        5 => who().prop_map(Event::Round),
        6 => (who(), watched(), 1..6u8).prop_map(|(who, kind, changes)| Event::Deliver(who, kind, changes)),
        5 => who().prop_map(Event::CatchUp),
        1 => (who(), watched(), 0..12u8).prop_map(|(who, kind, behind)| Event::Relist(who, kind, behind)),
        2 => (who(), 0..12u8).prop_map(|(who, behind)| Event::Restart(who, behind)),
        3 => (who(), fault).prop_map(|(who, fault)| Event::Fault(who, fault)),
        2 => who().prop_map(Event::HoldCreates),
        1 => who().prop_map(Event::ReleaseCreates),
        1 => (who(), -600..600i16).prop_map(|(who, seconds)| Event::ClockStep(who, seconds)),
    ]
}

fn cluster() -> impl Strategy<Value = Event> {
    let codes = proptest::sample::select(vec![1, 10, 10, 11, 12, 13, 14]);
    let fate = prop_oneof![
        5 => (1..5u8).prop_map(Fate::Steps),
        5 => codes.prop_map(Fate::Exit),
        2 => Just(Fate::CommitAndCrash),
        1 => Just(Fate::OutOfMemory),
        2 => Just(Fate::Evicted),
        2 => Just(Fate::NodeLost),
        2 => Just(Fate::ForceDeleted),
        2 => Just(Fate::Silent),
        1 => Just(Fate::Stuck),
        1 => prop_oneof![Just(NoStart::Room), Just(NoStart::Image)].prop_map(Fate::NotStarting),
    ];
    prop_oneof![
        3 => prop_oneof![4 => 1..40u16, 2 => 40..400u16, 1 => 400..4000u16].prop_map(Event::Wait),
        5 => Just(Event::Cluster),
        3 => Just(Event::Control),
        8 => (any::<u8>(), fate).prop_map(|(worker, fate)| Event::Worker(worker, fate)),
    ]
}

fn people() -> impl Strategy<Value = Event> {
    let pick = || any::<u8>();
    let desired = prop_oneof![3 => Just(DesiredState::Paused), 1 => Just(DesiredState::Cancelled), 4 => Just(DesiredState::Running)];
    prop_oneof![
        8 => (prop_oneof![Just(0u8), any::<u8>()], desired).prop_map(|(task, state)| Event::Desire(task, state)),
        4 => prop_oneof![Just(0u8), any::<u8>()].prop_map(Event::Retry),
        3 => pick().prop_map(Event::RetryShard),
        1 => Just(Event::NewRun),
        2 => (pick(), 0..4i32).prop_map(|(task, workers)| Event::Parallelism(task, workers)),
        2 => (pick(), any::<bool>()).prop_map(|(task, foreground)| Event::DeleteTask(task, foreground)),
        3 => (pick(), any::<bool>()).prop_map(|(shard, foreground)| Event::DeleteShard(shard, foreground)),
        3 => pick().prop_map(Event::DeleteJob),
        2 => pick().prop_map(Event::DeletePod),
        1 => Just(Event::DeletePlan),
        1 => pick().prop_map(Event::DeleteReport),
        1 => pick().prop_map(Event::Squat),
        1 => Just(Event::Unsquat),
    ]
}
