//! What was done and what came of it.

use std::{collections::BTreeMap, fmt, time::Duration};

use super::Blow;

/// Figures of a campaign.
#[derive(Debug, Default)]
pub struct Tally {
    /// What repeats it: seed and goals.
    pub orders: String,
    /// Blows that hit, and what is known of the recoveries.
    pub blows: BTreeMap<Blow, Blows>,
    /// Runs that ended, by how they ended.
    pub runs: BTreeMap<String, usize>,
    /// Tasks that were deleted and created again between runs.
    pub created_anew: usize,
    /// Records that were read at the sink, over all runs.
    pub records: usize,
    /// Jobs that were created.
    pub jobs: usize,
    /// Jobs that were created twice for an attempt.
    pub jobs_twice: usize,
    /// Versions of our objects that were compared with the ones before.
    pub versions: usize,
    /// Objects that were left when the last task was deleted; unknown if it never came to that.
    pub left: Option<usize>,
    /// How long it took.
    pub took: Duration,
}

/// Blows of one kind.
#[derive(Debug, Default)]
pub struct Blows {
    /// How many hit.
    pub hit: usize,
    /// Times until all was as before, where they could be told.
    pub recoveries: Vec<Duration>,
}

impl Tally {
    /// Kills so far.
    pub fn kills(&self) -> usize {
        self.blows.iter().filter(|(blow, _)| blow.is_kill()).map(|(_, blows)| blows.hit).sum()
    }

    fn longest(&self) -> Option<(Blow, Duration)> {
        let all = self.blows.iter().filter_map(|(blow, blows)| Some((*blow, *blows.recoveries.iter().max()?)));
        all.max_by_key(|(_, time)| *time)
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<18} {:>5}   {:>6}   {:>7}", "blow", "hits", "median", "longest")?;
        for (blow, blows) in &self.blows {
            let mut times = blows.recoveries.clone();
            times.sort();
            let seconds =
                |time: Option<&Duration>| time.map_or("-".into(), |time| format!("{:.1} s", time.as_secs_f64()));
            let (median, longest) = (seconds(times.get(times.len() / 2)), seconds(times.last()));
            writeln!(f, "{:<18} {:>5} {median:>8} {longest:>9}", blow.name(), blows.hit)?;
        }
        writeln!(f, "{:<18} {:>5}", "kills", self.kills())?;
        let runs: Vec<_> = self.runs.iter().map(|(end, count)| format!("{count} {end}")).collect();
        let count: usize = self.runs.values().sum();
        writeln!(f, "runs: {count} ({}; {} of them after delete and create)", runs.join(", "), self.created_anew)?;
        writeln!(f, "records read at the sink: {}, each run exactly the source's, none twice", self.records)?;
        writeln!(f, "Jobs created: {}, twice for an attempt: {}", self.jobs, self.jobs_twice)?;
        writeln!(f, "versions of objects compared: {}", self.versions)?;
        writeln!(f, "objects left: {}", self.left.map_or("unknown".into(), |left| left.to_string()))?;
        if let Some((blow, time)) = self.longest() {
            writeln!(f, "longest recovery: {:.1} s ({})", time.as_secs_f64(), blow.name())?;
        }
        write!(f, "{} took {:.1} minutes", self.orders, self.took.as_secs_f64() / 60.0)
    }
}
