//! Job controller, kubelets and worker processes in small. A worker reads one record a step, closes a part after every second
//! one, reports to whichever operator answers, and commits by a manifest that is created once.

use collect_api::{
    labels,
    protocol::{
        Checkpoint, ClosedParts, CollectResult, CommitResult, Directive, PlanResult, ProgressReport, Tally,
        TerminationMessage, WorkError, WorkResult, exit,
    },
};
use collect_core::{exit::RULE_EXIT_CODES, observed::terminal_condition};
use k8s_openapi::api::{
    batch::v1::{Job, JobCondition, JobStatus},
    core::v1::{
        ContainerState, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, Pod, PodCondition, PodStatus,
    },
};
use kube::ResourceExt;

use crate::{
    events::{Fate, NoStart},
    operator::Operator,
    sink::{Manifest, SliceId},
    store::{is_deleting, owner_of, uid_of},
    world::World,
};

/// What a worker was told to do.
#[derive(Clone, Debug)]
pub enum Work {
    Collect { slice: SliceId, records: Vec<i64>, checkpoint: Option<Checkpoint> },
    Plan,
    Commit { slices: i64, records: i64 },
    Hook,
}

/// A process in a pod. It may go on when its pod is gone from the API server.
pub struct Worker {
    pub pod: String,
    pod_uid: String,
    pub job_uid: String,
    /// Name and uid of the object whose ledger holds the attempt.
    pub ledger: (String, String),
    pub work: String,
    pub run: i64,
    pub attempt: i32,
    task: Work,
    pub alive: bool,
    pub started: bool,
    /// Its node or pod is out of everybody's reach.
    pub lost: bool,
    silent: bool,
    stuck: bool,
    not_starting: Option<NoStart>,
    told: Option<Directive>,
    reports: i64,
    begun: bool,
    /// Newest checkpoint, and whether an operator has it.
    checkpoint: Checkpoint,
    confirmed: bool,
    read: usize,
    open: Vec<i64>,
    handed_over: bool,
    result: Option<WorkResult>,
}

impl Worker {
    /// Whether it does work that somebody could be waiting to stop.
    pub fn runs(&self) -> bool {
        self.alive && !self.lost
    }

    fn folder(&self) -> String {
        format!("{}-{}", self.attempt, self.pod_uid.chars().take(8).collect::<String>())
    }
}

/// One step of everything around the operators; `work` says whether workers go on too.
pub fn step(world: &mut World, operators: &mut [Operator], work: bool) {
    control(world);
    if work {
        (0..world.workers.len()).for_each(|at| step_worker(world, operators, at));
    }
}

/// Garbage collection, the Job controller, and kubelets that remove pods.
fn control(world: &mut World) {
    world.store.collect_garbage();
    let jobs: Vec<_> = world.store.jobs.live.values().cloned().collect();
    for job in jobs.iter().filter(|job| terminal_condition(job).is_none()) {
        let uid = uid_of(job.as_ref());
        let pod = world.store.pods.live.values().find(|pod| owner_of(pod.as_ref()).is_some_and(|o| o.uid == uid));
        let ran = world.workers.iter().any(|worker| worker.job_uid == uid);
        match pod.cloned() {
            Some(pod) => {
                if let Some(condition) = condition_of(&pod) {
                    end_job(world, job, condition);
                }
            }
            None if ran => end_job(world, job, condition("Failed", "BackoffLimitExceeded", String::new())),
            None if is_deleting(job.as_ref()) => {}
            None => start_pod(world, job),
        }
    }
    let pods: Vec<_> = world.store.pods.live.values().cloned().collect();
    for pod in pods.iter().filter(|pod| is_deleting(pod.as_ref()) && is_over(pod)) {
        let job = owner_of(pod.as_ref()).and_then(|owner| world.store.get::<Job>(&owner.name));
        // The Job controller's finalizer keeps a pod until its end is counted.
        if job.is_none_or(|job| terminal_condition(&job).is_some()) {
            world.store.delete::<Pod>(&pod.name_any());
        }
    }
}

fn is_over(pod: &Pod) -> bool {
    matches!(pod.status.as_ref().and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"))
}

fn condition(type_: &str, reason: &str, message: String) -> JobCondition {
    JobCondition {
        type_: type_.into(),
        status: "True".into(),
        reason: Some(reason.into()),
        message: Some(message),
        ..JobCondition::default()
    }
}

/// How a pod's end becomes that of its Job.
fn condition_of(pod: &Pod) -> Option<JobCondition> {
    let status = pod.status.as_ref()?;
    match status.phase.as_deref() {
        Some("Succeeded") => return Some(condition("Complete", "CompletionsReached", String::new())),
        Some("Failed") => {}
        _ => return None,
    }
    let disrupted = status.conditions.iter().flatten().any(|condition| condition.type_ == "DisruptionTarget");
    let code = status.container_statuses.as_ref()?.first()?.state.as_ref()?.terminated.as_ref().map(|t| t.exit_code);
    let rule = match code {
        _ if disrupted => Some(0),
        Some(code) => RULE_EXIT_CODES.iter().position(|known| *known == code).map(|at| at + 1),
        None => None,
    };
    Some(match rule {
        Some(rule) => condition("Failed", "PodFailurePolicy", format!("matching FailJob rule at index {rule}")),
        None => condition("Failed", "BackoffLimitExceeded", String::new()),
    })
}

fn end_job(world: &mut World, job: &Job, condition: JobCondition) {
    world.store.edit::<Job>(&job.name_any(), |job| {
        job.status = Some(JobStatus { conditions: Some(vec![condition]), ..JobStatus::default() });
    });
}

fn start_pod(world: &mut World, job: &Job) {
    let uid = uid_of(job);
    let Some(task) = world.assignments.get(&uid).cloned() else { return };
    let owner = owner_of(job).unwrap().clone();
    let label = |label: &str| job.labels().get(label).cloned().unwrap_or_default();
    let name = format!("{}-p", job.name_any());
    let mut pod = Pod::default();
    pod.metadata.name = Some(name.clone());
    pod.metadata.labels = job.metadata.labels.clone();
    pod.metadata.owner_references = Some(vec![crate::operator::reference("Job", &job.name_any(), &uid)]);
    pod.status = Some(pod_status("Pending", ContainerState::default()));
    let Some(pod) = world.store.create(pod) else { return };
    world.workers.push(Worker {
        pod: name,
        pod_uid: uid_of(pod.as_ref()),
        job_uid: uid,
        ledger: (owner.name, owner.uid),
        work: label(labels::WORK),
        run: label(labels::RUN).parse().unwrap(),
        attempt: label(labels::ATTEMPT).parse().unwrap(),
        task,
        alive: true,
        started: false,
        lost: false,
        silent: false,
        stuck: false,
        not_starting: None,
        told: None,
        reports: 0,
        begun: false,
        checkpoint: Checkpoint::default(),
        confirmed: true,
        read: 0,
        open: Vec::new(),
        handed_over: false,
        result: None,
    });
}

fn pod_status(phase: &str, state: ContainerState) -> PodStatus {
    let container =
        ContainerStatus { name: collect_core::job::CONTAINER.into(), state: Some(state), ..ContainerStatus::default() };
    PodStatus { phase: Some(phase.into()), container_statuses: Some(vec![container]), ..PodStatus::default() }
}

/// One step of one worker.
pub fn step_worker(world: &mut World, operators: &mut [Operator], at: usize) {
    let Some(worker) = world.workers.get(at).filter(|worker| worker.alive) else { return };
    let pod = world.store.get::<Pod>(&worker.pod).filter(|pod| uid_of(pod.as_ref()) == worker.pod_uid);
    let leaving = !worker.lost && pod.as_ref().is_none_or(|pod| is_deleting(pod.as_ref()));
    match (worker.started, worker.not_starting) {
        (false, _) if leaving => return end(world, at, None, TerminationMessage::default()),
        (false, Some(_)) => return,
        (false, None) => {
            world.workers[at].started = true;
            let pod = world.workers[at].pod.clone();
            world.store.edit::<Pod>(&pod, |pod| pod.status = Some(pod_status("Running", ContainerState::default())));
            return;
        }
        (true, _) => {}
    }
    if worker.stuck {
        report(world, operators, at);
        if leaving {
            end(world, at, Some(137), TerminationMessage::default());
        }
        return;
    }
    if worker.told == Some(Directive::Abort) {
        return end(world, at, Some(exit::FENCED), TerminationMessage::default());
    }
    let leave = leaving || worker.told == Some(Directive::CheckpointAndExit);
    if let Some(result) = worker.result.clone() {
        return end(world, at, Some(exit::DONE), TerminationMessage { result: Some(result), ..Default::default() });
    }
    match worker.task.clone() {
        Work::Collect { slice, records, checkpoint } => {
            collect(world, operators, at, (&slice, &records), checkpoint, leave);
        }
        _ if leave => end(world, at, Some(exit::CHECKPOINTED), TerminationMessage::default()),
        Work::Plan => plan(world, operators, at),
        Work::Commit { slices, records } => commit_run(world, at, slices, records),
        Work::Hook => end(world, at, Some(exit::DONE), TerminationMessage::default()),
    }
}

fn collect(
    world: &mut World,
    operators: &mut [Operator],
    at: usize,
    (slice, records): (&SliceId, &[i64]),
    adopted: Option<Checkpoint>,
    leave: bool,
) {
    if !world.workers[at].begun {
        world.workers[at].begun = true;
        if world.sink.manifests.contains_key(slice) {
            return already_committed(world, at, slice);
        }
        if let Some(adopted) = adopted {
            let worker = &mut world.workers[at];
            if world.sink.holds(slice, &adopted) {
                worker.read = adopted.paginator.as_deref().map_or(0, |read| read.parse().unwrap());
                worker.checkpoint = adopted;
            } else {
                // Parts of it were removed meanwhile: the slice starts again, and its checkpoints go on counting.
                worker.checkpoint.seq = adopted.seq;
            }
        }
        return;
    }
    let read = world.workers[at].read;
    if read < records.len() {
        if leave {
            close_part(world, at, slice);
            let worker = &world.workers[at];
            let checkpoint = Some(worker.checkpoint.clone()).filter(|_| !worker.confirmed);
            let message = TerminationMessage { checkpoint, ..Default::default() };
            return end(world, at, Some(exit::CHECKPOINTED), message);
        }
        let worker = &mut world.workers[at];
        worker.open.push(records[read]);
        worker.read += 1;
        if worker.open.len() == 2 || worker.read == records.len() {
            close_part(world, at, slice);
        }
        return report(world, operators, at);
    }
    let count = i64::try_from(records.len()).unwrap();
    let manifest = Manifest { parts: world.workers[at].checkpoint.parts.clone(), records: count };
    if !world.sink.manifests.contains_key(slice) {
        if world.sink.read(slice, &manifest.parts).is_none() {
            // The run was committed without this slice, and what it had written was removed.
            return end(world, at, Some(exit::RETRYABLE), TerminationMessage::default());
        }
        world.check_commit(slice, records, &manifest);
    }
    if world.sink.commit(slice, manifest) {
        world.workers[at].result = Some(WorkResult::Collect(result(count)));
    } else {
        already_committed(world, at, slice);
    }
}

fn result(records: i64) -> CollectResult {
    let tally =
        Tally { records, bytes: records * 100, source: records, items: 1, duplicates: Some(0), ..Tally::default() };
    CollectResult { tally, files: 1, file_bytes: records * 10, manifest: "manifest.json".into() }
}

fn already_committed(world: &mut World, at: usize, slice: &SliceId) {
    let records = world.sink.manifests[slice].records;
    let message =
        TerminationMessage { result: Some(WorkResult::Collect(result(records))), ..TerminationMessage::default() };
    end(world, at, Some(exit::ALREADY_COMMITTED), message);
}

/// Closes the open part and makes a checkpoint of it.
fn close_part(world: &mut World, at: usize, slice: &SliceId) {
    let worker = &mut world.workers[at];
    if worker.open.is_empty() {
        return;
    }
    let (folder, records) = (worker.folder(), std::mem::take(&mut worker.open));
    let count = world.sink.close_part(slice, &folder, records);
    let checkpoint = &mut worker.checkpoint;
    checkpoint.parts.retain(|part| part.folder != folder);
    checkpoint.parts.push(ClosedParts { folder, count });
    checkpoint.seq += 1;
    checkpoint.paginator = Some(worker.read.to_string());
    worker.confirmed = false;
}

fn report(world: &mut World, operators: &mut [Operator], at: usize) {
    let worker = &mut world.workers[at];
    worker.reports += 1;
    let reachable = !worker.silent && !worker.lost;
    let records = i64::try_from(worker.read).unwrap();
    let report = ProgressReport {
        attempt: worker.attempt,
        seq: worker.reports,
        stage: "reading".into(),
        records,
        bytes: records * 100,
        expected: None,
        checkpoint: Some(worker.checkpoint.clone()).filter(|_| !worker.confirmed),
        requests: 0,
        retries: 0,
    };
    let Some(pod) = world.store.get::<Pod>(&world.workers[at].pod) else { return };
    if !reachable || uid_of(pod.as_ref()) != world.workers[at].pod_uid {
        return;
    }
    let who = usize::try_from(report.seq).unwrap() % operators.len();
    let (name, uid) = world.workers[at].ledger.clone();
    if let Some(directive) = operators[who].progress(world, &name, &uid, &report) {
        let worker = &mut world.workers[at];
        worker.confirmed = worker.confirmed || directive != Directive::Abort;
        worker.told = Some(directive).filter(|told| *told != Directive::Continue);
    }
}

fn plan(world: &mut World, operators: &mut [Operator], at: usize) {
    let data = world.setup.plan();
    if !world.workers[at].handed_over {
        let worker = &world.workers[at];
        let (uid, run, attempt) = (worker.ledger.1.clone(), worker.run, worker.attempt);
        let reachable = !worker.silent && !worker.lost;
        let who = world.now.unsigned_abs() as usize % operators.len();
        let taken = reachable && operators[who].take_chunk(world, &uid, run, attempt, &data);
        world.workers[at].handed_over = taken;
        return;
    }
    let tree = collect_core::tree::PlanTree::read(crate::setup::ROOT, &[data], "").unwrap();
    let result = PlanResult {
        digest: tree.digest.clone(),
        chunks: 1,
        tasks: tree.root().unwrap().tasks_below,
        shards: tree.root().unwrap().shards_below,
        records: tree.root().unwrap().records,
        ..PlanResult::default()
    };
    world.workers[at].result = Some(WorkResult::Plan(result));
}

/// The commit Job: every slice has to be there, then the run's list is written and what no manifest names is removed.
fn commit_run(world: &mut World, at: usize, slices: i64, records: i64) {
    let (uid, run) = (world.workers[at].ledger.1.clone(), world.workers[at].run);
    let found: Vec<i64> = world.sink.of_run(&uid, run).map(|(_, manifest)| manifest.records).collect();
    if (found.len() as i64, found.iter().sum::<i64>()) != (slices, records) {
        let error = WorkError { reason: "ManifestMismatch".into(), message: "changed".into(), retry_after_ms: None };
        let message = TerminationMessage { error: Some(error), ..Default::default() };
        return end(world, at, Some(exit::PERMANENT), message);
    }
    world.sink.list_run(&uid, run);
    let result = CommitResult { files: slices, records, ..CommitResult::default() };
    world.workers[at].result = Some(WorkResult::Commit(result));
}

/// A worker ends; its pod says how, if it is still there.
fn end(world: &mut World, at: usize, code: Option<i32>, message: TerminationMessage) {
    let worker = &mut world.workers[at];
    worker.alive = false;
    let (name, uid) = (worker.pod.clone(), worker.pod_uid.clone());
    if world.store.get::<Pod>(&name).is_none_or(|pod| uid_of(pod.as_ref()) != uid) {
        return;
    }
    world.store.edit::<Pod>(&name, |pod| {
        let terminated = code.map(|exit_code| ContainerStateTerminated {
            exit_code,
            message: serde_json::to_string(&message).ok(),
            ..ContainerStateTerminated::default()
        });
        let conditions = pod.status.take().and_then(|status| status.conditions);
        let phase = if code == Some(exit::DONE) { "Succeeded" } else { "Failed" };
        let status = pod_status(phase, ContainerState { terminated, ..ContainerState::default() });
        pod.status = Some(PodStatus { conditions, ..status });
    });
}

/// What becomes of a worker by an event.
pub fn meet(world: &mut World, operators: &mut [Operator], at: usize, fate: Fate) {
    let pod = world.workers[at].pod.clone();
    let started = world.workers[at].started;
    match fate {
        Fate::Steps(steps) => (0..steps).for_each(|_| step_worker(world, operators, at)),
        Fate::Exit(code) if started => {
            let error = match code {
                exit::RETRYABLE => Some(("SourceUnavailable", None)),
                exit::PERMANENT => Some(("NotFound", None)),
                exit::SOURCE_LIMITED => Some(("SourceLimited", Some(120_000))),
                _ => None,
            };
            let error = error.map(|(reason, retry_after_ms)| WorkError {
                reason: reason.into(),
                message: "the source says so".into(),
                retry_after_ms,
            });
            let worker = &world.workers[at];
            let checkpoint = Some(worker.checkpoint.clone()).filter(|_| !worker.confirmed && code == exit::RETRYABLE);
            end(world, at, Some(code), TerminationMessage { error, checkpoint, ..Default::default() });
        }
        Fate::CommitAndCrash => {
            for _ in 0..12 {
                if world.workers[at].result.is_none() {
                    step_worker(world, operators, at);
                }
            }
            end(world, at, Some(1), TerminationMessage::default());
        }
        Fate::OutOfMemory if started => {
            end(world, at, Some(137), TerminationMessage::default());
            world.store.edit::<Pod>(&pod, |pod| {
                let state = pod.status.iter_mut().flat_map(|status| status.container_statuses.iter_mut().flatten());
                for terminated in state.filter_map(|status| status.state.as_mut()?.terminated.as_mut()) {
                    terminated.reason = Some("OOMKilled".into());
                }
            });
        }
        Fate::Evicted => {
            end(world, at, started.then_some(143), TerminationMessage::default());
            let disrupted =
                PodCondition { type_: "DisruptionTarget".into(), status: "True".into(), ..PodCondition::default() };
            world.store.edit::<Pod>(&pod, |pod| {
                pod.status.as_mut().unwrap().conditions = Some(vec![disrupted]);
            });
        }
        Fate::NodeLost => {
            world.workers[at].lost = true;
            world.store.mark_deleted::<Pod>(&pod);
        }
        Fate::ForceDeleted => {
            world.workers[at].lost = true;
            world.store.delete::<Pod>(&pod);
        }
        Fate::Silent => world.workers[at].silent = true,
        Fate::Stuck => world.workers[at].stuck = true,
        Fate::NotStarting(why) if !started => not_starting(world, at, why),
        Fate::Exit(_) | Fate::OutOfMemory | Fate::NotStarting(_) => {}
    }
}

fn not_starting(world: &mut World, at: usize, why: NoStart) {
    world.workers[at].not_starting = Some(why);
    let pod = world.workers[at].pod.clone();
    world.store.edit::<Pod>(&pod, |pod| {
        let waiting = ContainerStateWaiting { reason: Some("ErrImagePull".into()), message: None };
        let mut status = pod_status("Pending", ContainerState::default());
        match why {
            NoStart::Image => {
                status = pod_status("Pending", ContainerState { waiting: Some(waiting), ..ContainerState::default() });
            }
            NoStart::Room => {
                let unscheduled =
                    PodCondition { type_: "PodScheduled".into(), status: "False".into(), ..PodCondition::default() };
                status.conditions = Some(vec![unscheduled]);
            }
        }
        pod.status = Some(status);
    });
}

/// Everything that was wrong with workers is over; a process whose pod is gone is killed when its node comes back.
pub fn heal(world: &mut World) {
    let store = &world.store;
    for worker in &mut world.workers {
        let pod = store.get::<Pod>(&worker.pod).filter(|pod| uid_of(pod.as_ref()) == worker.pod_uid);
        worker.alive &= !worker.lost || pod.is_some();
        (worker.lost, worker.silent, worker.stuck, worker.not_starting) = (false, false, false, None);
    }
}
