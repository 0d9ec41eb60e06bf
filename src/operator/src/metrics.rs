//! The operator's metrics. Labels are bounded: kinds, verbs, codes, phases and root tasks; never shards, urls or error texts.

use std::sync::{Arc, atomic::AtomicI64};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct WriteLabels {
    verb: &'static str,
    kind: &'static str,
    code: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PassLabels {
    kind: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    kind: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct OutcomeLabels {
    outcome: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PhaseLabels {
    kind: &'static str,
    phase: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct CallLabels {
    path: &'static str,
    code: u16,
}

/// The operator's metrics; clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    writes: Family<WriteLabels, Counter>,
    passes: Family<PassLabels, Counter>,
    pass_seconds: Family<KindLabels, Histogram>,
    watch_errors: Family<KindLabels, Counter>,
    undecodable: Family<KindLabels, Counter>,
    attempts: Family<OutcomeLabels, Counter>,
    objects: Family<PhaseLabels, Gauge>,
    calls: Family<CallLabels, Counter>,
    leader: Gauge,
    resident: Gauge,
    cpu: Gauge<f64, std::sync::atomic::AtomicU64>,
}

impl Metrics {
    /// All metrics, at zero.
    pub fn new() -> Self {
        let mut registry = Registry::default();
        let collect = registry.sub_registry_with_prefix("collect");
        let writes = Family::default();
        collect.register("api_writes", "Writes to the API server by verb, kind and status code", writes.clone());
        let passes = Family::default();
        collect.register(
            "reconciles",
            "Passes over one object by kind and outcome; alert on outcome=error that keeps growing",
            passes.clone(),
        );
        let histogram: fn() -> Histogram = || Histogram::new([0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0]);
        let pass_seconds = Family::new_with_constructor(histogram);
        collect.register_with_unit("reconcile_duration", "Time of one pass", Unit::Seconds, pass_seconds.clone());
        let watch_errors = Family::default();
        collect.register("watch_errors", "Watches that broke and were started again", watch_errors.clone());
        let undecodable = Family::default();
        collect.register(
            "undecodable_objects",
            "Events about objects that could not be read; the objects are ignored",
            undecodable.clone(),
        );
        let attempts = Family::default();
        collect.register("attempts", "Attempts that ended, by outcome", attempts.clone());
        let objects = Family::default();
        collect.register("objects", "Objects by kind and phase", objects.clone());
        let calls = Family::default();
        collect.register("worker_calls", "Calls of the worker endpoint by path and status code", calls.clone());
        let leader = Gauge::default();
        collect.register("leader", "1 while this process holds the lease or needs none", leader.clone());
        collect.register("build", "Version of the operator", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let resident = Gauge::<i64, AtomicI64>::default();
        registry.register("process_resident_memory_bytes", "Resident memory of the operator", resident.clone());
        let cpu = Gauge::<f64, std::sync::atomic::AtomicU64>::default();
        registry.register("process_cpu_seconds", "CPU time of the operator so far", cpu.clone());
        Self {
            registry: Arc::new(registry),
            writes,
            passes,
            pass_seconds,
            watch_errors,
            undecodable,
            attempts,
            objects,
            calls,
            leader,
            resident,
            cpu,
        }
    }

    /// Counts a write.
    pub fn api_write(&self, verb: &'static str, kind: &'static str, code: String) {
        self.writes.get_or_create(&WriteLabels { verb, kind, code }).inc();
    }

    /// Counts a pass.
    pub fn pass(&self, kind: &'static str, outcome: &'static str, seconds: f64) {
        self.passes.get_or_create(&PassLabels { kind, outcome }).inc();
        self.pass_seconds.get_or_create(&KindLabels { kind }).observe(seconds);
    }

    /// Counts a watch that broke.
    pub fn watch_error(&self, kind: &'static str) {
        self.watch_errors.get_or_create(&KindLabels { kind }).inc();
    }

    /// Counts an object that could not be read.
    pub fn undecodable(&self, kind: &'static str) {
        self.undecodable.get_or_create(&KindLabels { kind }).inc();
    }

    /// Counts an attempt that ended.
    pub fn attempt(&self, outcome: &str) {
        self.attempts.get_or_create(&OutcomeLabels { outcome: outcome.to_owned() }).inc();
    }

    /// Counts a call of the worker endpoint.
    pub fn call(&self, path: &'static str, code: u16) {
        self.calls.get_or_create(&CallLabels { path, code }).inc();
    }

    /// Says whether this process leads.
    pub fn leading(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// Sets the number of objects by phase; what is not named is gone.
    pub fn objects(&self, counts: &std::collections::BTreeMap<(&'static str, String), i64>) {
        self.objects.clear();
        for ((kind, phase), count) in counts {
            self.objects.get_or_create(&PhaseLabels { kind, phase: phase.clone() }).set(*count);
        }
    }

    /// The metrics as text of the OpenMetrics format.
    pub fn text(&self) -> String {
        let (resident, cpu) = process();
        self.resident.set(resident);
        self.cpu.set(cpu);
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            Err(error) => format!("# {error}\n"),
        }
    }
}

/// Resident bytes and CPU seconds of this process, from /proc; 0 where there is none.
fn process() -> (i64, f64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kib| kib.parse::<i64>().ok())
        .unwrap_or(0)
        * 1024;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let ticks: f64 = stat
        .rsplit_once(") ")
        .map(|(_, rest)| rest.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum())
        .unwrap_or(0.0);
    (resident, ticks / 100.0)
}
