//! The process as /proc shows it: memory, CPU time, start, open files. What can't be read is left out.

use std::fs;

use super::{Sample, table};

/// Ticks a second in which /proc counts time, on every machine that Linux runs on.
const TICKS: f64 = 100.0;

/// Reads this process.
pub fn samples() -> Vec<Sample> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let open = fs::read_dir("/proc/self/fd").ok().map(|files| files.count());
    parse(&read("/proc/self/status"), &read("/proc/self/stat"), &read("/proc/stat"), &read("/proc/self/limits"), open)
}

fn parse(status: &str, stat: &str, system: &str, limits: &str, open: Option<usize>) -> Vec<Sample> {
    let field = |text: &str, name: &str| -> Option<f64> {
        let rest = text.lines().find_map(|line| line.strip_prefix(name))?;
        rest.split_whitespace().next()?.parse().ok()
    };
    // What follows the program's name, which may hold anything: state, parent, …
    let fields: Vec<&str> =
        stat.rsplit_once(") ").map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
    let seconds = |index: usize| Some(fields.get(index)?.parse::<f64>().ok()? / TICKS);
    let found = [
        (&table::RESIDENT_MEMORY, field(status, "VmRSS:").map(|kib| kib * 1024.0)),
        (&table::CPU_SECONDS, seconds(11).zip(seconds(12)).map(|(user, system)| user + system)),
        (&table::START_TIME, field(system, "btime").zip(seconds(19)).map(|(boot, after)| boot + after)),
        (&table::OPEN_FDS, open.map(|open| open as f64)),
        (&table::MAX_FDS, field(limits, "Max open files")),
    ];
    found.into_iter().filter_map(|(row, value)| Some(Sample::new(row, [], value?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_of_proc_are_read() {
        let samples = parse(
            "Name:\tx\nVmHWM:\t  999 kB\nVmRSS:\t   2048 kB\n",
            "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 3 0 1000 1 1",
            "cpu 1 2 3\nbtime 1700000000\n",
            "Limit Soft Hard Units\nMax open files            1024                 4096                 files\n",
            Some(9),
        );
        let found: Vec<_> = samples.iter().map(|sample| (sample.row.name, sample.value)).collect();
        assert_eq!(
            found,
            [
                ("process_resident_memory_bytes", 2_097_152.0),
                ("process_cpu_seconds_total", 2.0),
                ("process_start_time_seconds", 1_700_000_010.0),
                ("process_open_fds", 9.0),
                ("process_max_fds", 1024.0),
            ]
        );
        assert!(parse("", "", "", "Max open files  unlimited unlimited files", None).is_empty());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn this_process_is_readable() {
        assert_eq!(samples().len(), 5);
    }
}
