//! Processes of a real node's containers, found by their pods' cgroups and killed by identity, never by a bare number or a name.

use std::fs;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::Cluster;

/// Names as the kernel cuts them, to 15 letters.
pub const WORKER: &str = "collect-worker";
/// The operator's.
pub const OPERATOR: &str = "collect-operato";
const SANDBOX: &str = "pause";
const SHIM: &str = "containerd-shim";

/// A process of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its parent: the shim, for the first process of a container.
    pub parent: i32,
    /// Name of its program, at most 15 letters.
    pub name: String,
    /// Uid of its pod.
    pub pod: String,
}

/// All processes of the pods of this cluster.
pub fn processes(cluster: &Cluster) -> Vec<Process> {
    let numbers = fs::read_dir("/proc").expect("/proc is there").filter_map(Result::ok);
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(|pid| identify(cluster, pid)).collect()
}

/// Those that run this program.
pub fn running(cluster: &Cluster, name: &str) -> Vec<Process> {
    let mut found = processes(cluster);
    found.retain(|process| process.name == name);
    found
}

fn identify(cluster: &Cluster, pid: i32) -> Option<Process> {
    // The node's own cgroup is collect-<name>-<id>.
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let mine = format!("/collect-{}-", cluster.name);
    let pod = groups.lines().find(|line| line.contains(&mine)).and_then(pod_of)?;
    let (name, parent) = name_and_parent(pid)?;
    Some(Process { pid, parent, name, pod: pod.to_owned() })
}

/// Uid of the pod in a cgroup's path: `…/kubepods/burstable/pod<uid>/<container>`.
fn pod_of(path: &str) -> Option<&str> {
    let (pod, _container) = path.rsplit_once('/')?;
    Some(pod.rsplit_once("/pod")?.1).filter(|uid| uid.len() == 36)
}

fn name_and_parent(pid: i32) -> Option<(String, i32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in brackets and may hold any letter.
    let (head, tail) = stat.rsplit_once(") ")?;
    let name = head.split_once('(')?.1.to_owned();
    Some((name, tail.split(' ').nth(1)?.parse().ok()?))
}

/// SIGKILL to a process; false if it has ended by itself.
pub fn kill(cluster: &Cluster, process: &Process) -> bool {
    kill_if(process.pid, || identify(cluster, process.pid).as_ref() == Some(process))
}

/// SIGKILL to the shim of a pod; gives its number, or nothing if the pod has none any more.
pub fn kill_shim(cluster: &Cluster, pod: &str) -> Option<i32> {
    let sandbox = processes(cluster).into_iter().find(|process| process.name == SANDBOX && process.pod == pod)?;
    let is_shim = || {
        identify(cluster, sandbox.pid).as_ref() == Some(&sandbox)
            && name_and_parent(sandbox.parent).is_some_and(|(name, _)| name == SHIM)
    };
    kill_if(sandbox.parent, is_shim).then_some(sandbox.parent)
}

/// The check comes after the process is held: its number may have been given to another one since it was found.
fn kill_if(pid: i32, is_it: impl FnOnce() -> bool) -> bool {
    let Some(held) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else { return false };
    is_it() && pidfd_send_signal(held, Signal::KILL).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_read_from_the_path_of_a_cgroup() {
        let uid = "0a1b2c3d-0000-4000-8000-0123456789ab";
        assert_eq!(pod_of(&format!("4:memory:/collect-c-1/kubepods/burstable/pod{uid}/4f2a")), Some(uid));
        assert_eq!(pod_of(&format!("0::/collect-c-1/kubepods/pod{uid}/4f2a")), Some(uid));
        assert_eq!(pod_of("0::/collect-c-1/kubepods/burstable"), None);
    }

    #[test]
    fn name_and_parent_are_those_of_the_kernel() {
        let pid = std::process::id().cast_signed();
        let (name, parent) = name_and_parent(pid).unwrap();
        assert!(!name.is_empty());
        assert_eq!(parent, std::os::unix::process::parent_id().cast_signed());
    }
}
