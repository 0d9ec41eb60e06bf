//! The table of metrics: name, type, labels and help of each stand here and nowhere else. /metrics, docs/reference/metrics.md and
//! the checks of dashboards and alert rules all go by it.

/// A metric.
#[derive(Debug)]
pub struct Row {
    /// Heading under which the reference shows it.
    #[cfg_attr(not(test), expect(dead_code, reason = "the reference is written by a test"))]
    pub group: &'static str,
    /// Name as queries use it; a histogram's without `_bucket`, `_sum` and `_count`.
    pub name: &'static str,
    /// Type.
    pub kind: Kind,
    /// Names of its labels; each takes few values.
    pub labels: &'static [&'static str],
    /// What it counts or measures, and in which unit if the name does not say.
    pub help: &'static str,
}

/// Type of a metric.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Only grows, from 0 at the start of the process.
    Counter,
    /// May rise and fall.
    Gauge,
    /// Counts observations, by these upper bounds.
    Histogram(&'static [f64]),
    /// Always 1; its labels tell.
    Info,
}

impl Row {
    /// The name without the ending that the exposition format adds for the type.
    pub fn family(&self) -> &'static str {
        let ending = match self.kind {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram(_) => "",
        };
        self.name.strip_suffix(ending).unwrap_or(self.name)
    }
}

macro_rules! table {
    ($($group:literal { $($row:ident: $name:literal $kind:expr, [$($label:literal),*], $help:literal;)+ })+) => {
        $($(
            #[doc = $help]
            pub static $row: Row =
                Row { group: $group, name: $name, kind: $kind, labels: &[$($label),*], help: $help };
        )+)+

        /// All of them, in the order of the reference.
        pub static TABLE: &[&Row] = &[$($(&$row,)+)+];
    };
}

use Kind::{Counter, Gauge, Histogram, Info};

const PASS: Kind = Histogram(&[0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0]);
const REQUEST: Kind = Histogram(&[0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0]);
/// 1 s to 6 h.
const LONG: Kind = Histogram(&[1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0, 21600.0]);
/// 16 MiB to 4 GiB.
const MEMORY: Kind = Histogram(&[
    16_777_216.0,
    33_554_432.0,
    67_108_864.0,
    134_217_728.0,
    268_435_456.0,
    536_870_912.0,
    1_073_741_824.0,
    2_147_483_648.0,
    4_294_967_296.0,
]);

table! {
    "Operator" {
        BUILD_INFO: "collect_build_info" Info, ["version"], "Version of the operator";
        LEADER: "collect_leader" Gauge, [], "1 while this process holds the lease or needs none";
        RECONCILES: "collect_reconciles_total" Counter, ["kind", "outcome"],
            "Passes over one object; outcome is ok, conflict (somebody else was faster: harmless) or error";
        RECONCILE_DURATION: "collect_reconcile_duration_seconds" PASS, ["kind"], "Time of one pass over an object";
        RECONCILES_RUNNING: "collect_reconciles_running" Gauge, ["kind"], "Passes that are under way, of at most 16 of each kind";
        LAST_RECONCILE: "collect_last_reconcile_timestamp_seconds" Gauge, ["kind"],
            "When a pass last went well; every object is looked at at least every six minutes";
        BACKOFF_OBJECTS: "collect_backoff_objects" Gauge, [], "Objects whose last pass failed and that wait for the next one";
        API_REQUESTS: "collect_api_requests_total" Counter, ["verb", "code"],
            "Requests to the API server; verb is get, list, watch, create, patch, delete or other, code is none where no answer came";
        API_REQUEST_DURATION: "collect_api_request_duration_seconds" REQUEST, ["verb"],
            "Time until the API server began to answer; watches are not counted";
        API_WRITES: "collect_api_writes_total" Counter, ["verb", "kind", "code"],
            "Writes to the API server by kind of object; code is ok, a status code, or none where no answer came";
        WATCH_ERRORS: "collect_watch_errors_total" Counter, ["kind"], "Watches that broke and were started again";
        UNDECODABLE: "collect_undecodable_objects_total" Counter, ["kind"],
            "Events about objects that could not be read; the objects are ignored";
        WORKER_CALLS: "collect_worker_calls_total" Counter, ["path", "code"], "Calls of the worker endpoint by status code of the answer";
        SPANS_LOST: "collect_trace_spans_lost_total" Counter, [],
            "Spans of the operator that the OTLP endpoint did not take, or that came too fast; 0 where no endpoint is set";
        RESIDENT_MEMORY: "process_resident_memory_bytes" Gauge, [], "Resident memory of the operator";
        CPU_SECONDS: "process_cpu_seconds_total" Counter, [], "CPU time of the operator";
        START_TIME: "process_start_time_seconds" Gauge, [], "When the operator was started";
        OPEN_FDS: "process_open_fds" Gauge, [], "Open files and sockets of the operator";
        MAX_FDS: "process_max_fds" Gauge, [], "Most files and sockets that the operator may open";
    }
    "Work" {
        OBJECTS: "collect_objects" Gauge, ["kind", "phase"], "Objects by phase, those of all trees; what is folded is no object any more";
        ATTEMPTS: "collect_attempts_total" Counter, ["work", "outcome"],
            "Attempts that ended; work is collect, plan, commit, before-start, after-success or after-failure";
        ATTEMPT_FAILURES: "collect_attempt_failures_total" Counter, ["work", "cause"],
            "Attempts that failed, by where the cause lies: source, sink, spec, hook, cluster or worker";
        ATTEMPT_DURATION: "collect_attempt_duration_seconds" LONG, ["work"],
            "Time from the start of a worker's container until the end of its attempt was recorded";
        ATTEMPT_MEMORY: "collect_attempt_peak_memory_bytes" MEMORY, ["work"],
            "Largest resident memory of a worker, by its own last words";
        SOURCE_REQUESTS: "collect_worker_source_requests_total" Counter, [], "Requests that workers sent to sources, as far as they told of them";
        SOURCE_RETRIES: "collect_worker_source_retries_total" Counter, [], "Requests to sources that workers had to repeat";
        PHASE_DURATION: "collect_phase_duration_seconds" LONG, ["phase"], "Time that a root task stayed in a phase that it has left";
    }
    "Root tasks" {
        TASK_PHASE: "collect_task_phase" Gauge, ["namespace", "task", "phase"], "1 for the phase that the task is in";
        TASK_SHARDS: "collect_task_shards" Gauge, ["namespace", "task", "phase"],
            "Shards of the whole tree by phase, those not created yet as Pending; phase total is all that the plan has";
        TASK_RECORDS: "collect_task_records" Gauge, ["namespace", "task"],
            "Records of the present run, in committed slices and by running workers";
        TASK_RECORDS_EXPECTED: "collect_task_records_expected" Gauge, ["namespace", "task"],
            "Records that the plan expects; absent where it could not know";
        TASK_BYTES: "collect_task_bytes" Gauge, ["namespace", "task"], "Bytes of these records, before compression";
        TASK_WORKERS: "collect_task_workers" Gauge, ["namespace", "task"], "Workers that are authorised at the moment";
        TASK_PROGRESS: "collect_task_progress_ratio" Gauge, ["namespace", "task"], "Share of the work that is done, 0 to 1";
        TASK_RETRIES: "collect_task_retries" Gauge, ["namespace", "task"], "Attempts of the present run that failed and were tried again";
        TASK_STRAGGLERS: "collect_task_stragglers" Gauge, ["namespace", "task"],
            "Running shards that take much longer than their siblings took; at most five of each task of the tree are counted";
        TASK_MATCH: "collect_task_match_ratio" Gauge, ["namespace", "task"],
            "Records collected over records that the source says it holds, by the newest report; above 1 there are more than it says, absent where nothing was compared";
        TASK_VERIFIED: "collect_task_verified" Gauge, ["namespace", "task"],
            "1 if the newest report passed, 0 if it failed; absent where nothing could be compared";
        TASK_STALLED: "collect_task_stalled" Gauge, ["namespace", "task"], "1 while the condition Stalled is True: nothing goes on without somebody's help";
        TASK_START: "collect_task_start_timestamp_seconds" Gauge, ["namespace", "task"], "When the present run began";
        TASK_END: "collect_task_end_timestamp_seconds" Gauge, ["namespace", "task"], "When the present run ended; absent until then";
        TASK_LAST_SUCCESS: "collect_task_last_success_timestamp_seconds" Gauge, ["namespace", "task"],
            "When a run's data was last made the valid one (Succeeded, PartiallySucceeded or Collected)";
        TASK_DEADLINE: "collect_task_deadline_ratio" Gauge, ["namespace", "task"],
            "Share of spec.deadline that the present run has used up; absent without a deadline";
        TASK_LAST_PROGRESS: "collect_task_last_progress_timestamp_seconds" Gauge, ["namespace", "task"],
            "When the number of records last changed, as this process saw it; absent once the task is over";
        TASK_CHECKPOINT_AGE: "collect_task_checkpoint_age_seconds" Gauge, ["namespace", "task"],
            "Time since the running shard that has been silent longest was last heard of; absent while none runs";
        TASKS_UNLISTED: "collect_tasks_unlisted" Gauge, [], "Root tasks beyond the first 1000; they have no series of their own";
    }
}
