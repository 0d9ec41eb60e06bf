//! Names are derived, never generated: the same parent and value always give the same name, so a repeated create is a 409
//! and never a second object.

use xxhash_rust::xxh3::xxh3_64;

/// Longest name of a child task; leaves room for shard indexes, report and Job suffixes.
pub const MAX_CHILD_NAME: usize = 52;
/// Longest name of a Job, whose name becomes a label value.
pub const MAX_JOB_NAME: usize = 63;

/// Name of the child task for a value.
///
/// `<parent>-<value>` where the value is `[a-z0-9]+` and the name is short enough; otherwise the readable part is cut and a
/// hash of parent and value is appended.
pub fn child_task(parent: &str, value: &str) -> String {
    let plain = !value.is_empty() && value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if plain && parent.len() + 1 + value.len() <= MAX_CHILD_NAME {
        return format!("{parent}-{value}");
    }
    let hash = hash(&[parent, value], 8);
    let readable = readable(value);
    let stem = if readable.is_empty() { parent.to_owned() } else { format!("{parent}-{readable}") };
    format!("{}-{hash}", cut(&stem, MAX_CHILD_NAME - hash.len() - 1))
}

/// Name of a shard of a task.
pub fn shard(task: &str, index: i32) -> String {
    format!("{task}-{index}")
}

/// Name of the report about a task's run.
pub fn report(task: &str, run: i64) -> String {
    format!("{task}-r{run}")
}

/// Name of the Job that carries out an attempt: f(name of the ledger's object, its uid, kind of work, attempt).
pub fn job(owner: &str, owner_uid: &str, work: &str, run: i64, attempt: i32) -> String {
    let suffix = match work {
        "collect" => format!("{}-a{attempt}", hash(&[owner_uid], 5)),
        _ => format!("{}-{work}-r{run}-a{attempt}", hash(&[owner_uid], 5)),
    };
    format!("{}-{suffix}", cut(owner, MAX_JOB_NAME - suffix.len() - 1))
}

/// Name of a ConfigMap that holds a chunk of a plan.
pub fn plan_chunk(root: &str, root_uid: &str, run: i64, attempt: i32, index: i32) -> String {
    format!("{root}-plan-{}-r{run}-a{attempt}-{index}", hash(&[root_uid], 5))
}

/// A number in 0..1 that depends on the texts alone; stands for chance where core needs jitter.
pub fn jitter(parts: &[&str]) -> f64 {
    f64::from((xxh3_64(parts.join("\u{0}").as_bytes()) >> 32) as u32) / f64::from(u32::MAX)
}

fn hash(parts: &[&str], digits: usize) -> String {
    let text = format!("{:016x}", xxh3_64(parts.join("\u{0}").as_bytes()));
    text.chars().take(digits).collect()
}

fn readable(value: &str) -> String {
    let mut out = String::new();
    for c in value.chars() {
        match c {
            'a'..='z' | '0'..='9' => out.push(c),
            'A'..='Z' => out.push(c.to_ascii_lowercase()),
            _ if !out.is_empty() && !out.ends_with('-') => out.push('-'),
            _ => {}
        }
    }
    out.trim_end_matches('-').to_owned()
}

fn cut(text: &str, len: usize) -> String {
    let cut: String = text.chars().take(len).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn plain_values_stay_readable() {
        assert_eq!(child_task("villages", "44"), "villages-44");
        assert_eq!(child_task("villages-44", "4403"), "villages-44-4403");
    }

    #[test]
    fn other_values_get_a_hash() {
        let upper = child_task("villages", "GD");
        assert!(upper.starts_with("villages-gd-") && upper.len() == "villages-gd-".len() + 8, "{upper}");
        assert_ne!(child_task("a", "X"), child_task("a", "x"));
        assert_ne!(child_task("a", "广东"), child_task("a", "深圳"));
    }

    #[test]
    fn a_job_name_differs_by_uid_and_attempt() {
        assert_ne!(job("a-0", "u1", "collect", 1, 1), job("a-0", "u2", "collect", 1, 1));
        assert_ne!(job("a-0", "u1", "collect", 1, 1), job("a-0", "u1", "collect", 1, 2));
        assert_ne!(job("a", "u1", "plan", 1, 1), job("a", "u1", "commit", 1, 1));
    }

    fn is_dns_label_like(name: &str, max: usize) -> bool {
        name.len() <= max
            && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.')
            && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            && name.bytes().last().is_some_and(|b| b.is_ascii_alphanumeric())
    }

    proptest! {
        #[test]
        fn every_value_gives_a_valid_name(value in "\\PC{1,80}", depth in 1..8usize) {
            let mut name = "root".to_owned();
            for _ in 0..depth {
                name = child_task(&name, &value);
                prop_assert!(is_dns_label_like(&name, MAX_CHILD_NAME), "{name}");
            }
            prop_assert!(is_dns_label_like(&job(&shard(&name, 99_999), "uid", "collect", 1, 999), MAX_JOB_NAME));
        }
    }
}
