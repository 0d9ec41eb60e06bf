//! What the process used, as /proc has it.

use std::fs;

/// Clock ticks a second in /proc; Linux has had no other value for user space on any platform since 2.6.
const TICKS_PER_SECOND: f64 = 100.0;

/// Largest resident memory so far, in bytes; 0 where /proc does not say.
pub fn peak_memory_bytes() -> i64 {
    fs::read_to_string("/proc/self/status").ok().and_then(|text| high_water_mark(&text)).unwrap_or(0)
}

/// CPU time so far, in seconds; 0 where /proc does not say.
pub fn cpu_seconds() -> f64 {
    fs::read_to_string("/proc/self/stat").ok().and_then(|text| cpu_time(&text)).unwrap_or(0.0)
}

fn high_water_mark(status: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<i64>().ok()?.checked_mul(1024)
}

/// utime and stime are the 14th and 15th field; the second, the name, may hold blanks and brackets.
fn cpu_time(stat: &str) -> Option<f64> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace().skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_proc() {
        assert_eq!(high_water_mark("Name:\tx\nVmHWM:\t   1234 kB\nVmRSS: 1 kB\n"), Some(1234 * 1024));
        let stat = "7 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 50 0 0 20 0";
        assert_eq!(cpu_time(stat), Some(2.0));
        assert!(peak_memory_bytes() > 0);
    }
}
