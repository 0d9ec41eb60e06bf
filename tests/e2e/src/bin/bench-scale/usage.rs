//! CPU time of everything that has a part in the run, from /proc.

use std::{collections::BTreeMap, fs};

use collect_e2e::{Cluster, Operator};
use serde_json::Value;

const COMPONENTS: [&str; 5] = ["kube-apiserver", "etcd", "kube-controller-manager", "kube-scheduler", "node"];

/// CPU seconds used so far.
#[derive(Clone, Debug)]
pub struct Usage {
    /// By process of ours; what is not running is not there.
    pub by_process: BTreeMap<&'static str, f64>,
    /// All processes of the machine.
    pub busy: f64,
    /// What the machine could have given.
    pub capacity: f64,
}

impl Usage {
    /// As of now.
    pub fn now(cluster: &Cluster, operator: &Operator) -> Self {
        let mut by_process = BTreeMap::from([("this program, its source and sink", cpu_seconds(std::process::id()))]);
        by_process.extend(operator.pid().map(|pid| ("operator", cpu_seconds(pid))));
        by_process.extend(COMPONENTS.map(|component| (component, cpu_seconds(pid(cluster, component)))));
        let stat = fs::read_to_string("/proc/stat").expect("the kernel tells the machine's time");
        let times: Vec<f64> =
            stat.lines().next().into_iter().flat_map(str::split_whitespace).skip(1).map(seconds).collect();
        // user nice system idle iowait irq softirq steal; guest times are part of user time.
        let all: f64 = times.iter().take(8).sum();
        let idle: f64 = times.iter().skip(3).take(2).sum();
        Self { by_process, busy: all - idle, capacity: all }
    }

    /// What was used since.
    pub fn since(&self, before: &Self) -> Self {
        let by_process = self.by_process.iter().map(|(name, now)| (*name, now - before.of(name))).collect();
        Self { by_process, busy: self.busy - before.busy, capacity: self.capacity - before.capacity }
    }

    /// CPU seconds of a process of ours, 0 if it does not run.
    pub fn of(&self, name: &str) -> f64 {
        self.by_process.get(name).copied().unwrap_or_default()
    }

    /// CPU seconds of all processes of ours together.
    pub fn of_all(&self) -> f64 {
        self.by_process.values().sum()
    }

    /// CPU seconds of processes that have no part in the run.
    pub fn of_others(&self) -> f64 {
        (self.busy - self.of_all()).max(0.0)
    }
}

fn seconds(ticks: &str) -> f64 {
    ticks.parse::<f64>().expect("the kernel counts in ticks") / rustix::param::clock_ticks_per_second() as f64
}

/// Fields 14 and 15 of /proc/PID/stat, counted from the end of the name, which may hold anything.
fn cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process runs");
    let (_, fields) = stat.rsplit_once(") ").expect("the kernel writes the name in parentheses");
    fields.split_whitespace().skip(11).take(2).map(seconds).sum()
}

fn pid(cluster: &Cluster, component: &str) -> u32 {
    let record = fs::read(cluster.state.join("pids").join(component)).expect("the launcher records its processes");
    let record: Value = serde_json::from_slice(&record).expect("the record is JSON");
    record["pid"].as_u64().and_then(|pid| pid.try_into().ok()).expect("it has a pid")
}

/// Flags of a component that bound how fast it works.
pub fn limits(cluster: &Cluster, component: &str) -> String {
    let arguments = fs::read_to_string(format!("/proc/{}/cmdline", pid(cluster, component))).unwrap_or_default();
    let bounds = |argument: &&str| ["--concurrent-", "--kube-api-"].iter().any(|prefix| argument.starts_with(prefix));
    let limits: Vec<_> = arguments.split('\0').filter(bounds).collect();
    if limits.is_empty() { "as Kubernetes ships it".into() } else { limits.join(" ") }
}
