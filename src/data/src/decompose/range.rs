//! Half-open ranges of a numeric or time key.

use collect_api::{decompose::RangeShards, plan::KeySpan};
use jiff::Timestamp;

use super::DecomposeError;

/// A key as a number, with the way to write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Axis {
    /// Integers.
    Integer,
    /// Milliseconds since the epoch, written as RFC 3339 in UTC.
    Time,
}

/// The ranges that cover `from` to `to`, each key exactly once. `total` is the number of records in all of it, needed
/// for `recordsPerShard`.
///
/// # Errors
/// When the bounds are malformed, or there would be more than `max` ranges.
pub fn ranges(declared: &RangeShards, total: Option<i64>, max: usize) -> Result<Vec<KeySpan>, DecomposeError> {
    let (axis, from, to) = bounds(declared)?;
    let span = to - from;
    let width = match (declared.records_per_shard, declared.step, declared.every) {
        (Some(per_shard), None, None) => {
            let count = i128::from(total.unwrap_or(0).max(0)).div_ceil_positive(i128::from(per_shard.max(1)));
            whole_units(axis, span.div_ceil_positive(count.max(1)))
        }
        (None, Some(step), None) if axis == Axis::Integer => i128::from(step.max(1)),
        (None, None, Some(every)) if axis == Axis::Time => {
            i128::try_from(every.get().as_millis()).unwrap_or(i128::MAX).max(1)
        }
        (None, Some(_), None) => return Err(bad("step is for integer keys; use every for times")),
        (None, None, Some(_)) => return Err(bad("every is for time keys; use step for integers")),
        _ => return Err(bad("set exactly one of recordsPerShard, step and every")),
    };
    let count = span.div_ceil_positive(width);
    if usize::try_from(count).map_or(true, |count| count > max) {
        return Err(DecomposeError::TooManyShards { max });
    }
    let range = |nth: i128| {
        let start = from + nth * width;
        Some(KeySpan { from: write(axis, start)?, to: write(axis, (start + width).min(to))? })
    };
    (0..count).map(range).collect::<Option<_>>().ok_or_else(|| bad("a bound is out of range"))
}

/// The whole range as one.
///
/// # Errors
/// When the bounds are malformed.
pub fn whole(declared: &RangeShards) -> Result<KeySpan, DecomposeError> {
    let (axis, from, to) = bounds(declared)?;
    let bound = |key| write(axis, key).ok_or_else(|| bad("a bound is out of range"));
    Ok(KeySpan { from: bound(from)?, to: bound(to)? })
}

fn bad(what: &str) -> DecomposeError {
    DecomposeError::BadRange(what.to_owned())
}

fn bounds(declared: &RangeShards) -> Result<(Axis, i128, i128), DecomposeError> {
    let (axis, from, to) = match (key(&declared.from), key(&declared.to)) {
        (Some((first, from)), Some((second, to))) if first == second => (first, from, to),
        (Some(_), Some(_)) => return Err(bad("from and to must both be integers or both be times")),
        _ => return Err(bad("from and to must be integers or RFC 3339 times such as 2024-01-01T00:00:00Z")),
    };
    if from >= to {
        return Err(bad("from must lie before to"));
    }
    Ok((axis, from, to))
}

fn key(text: &str) -> Option<(Axis, i128)> {
    if let Ok(number) = text.parse::<i64>() {
        return Some((Axis::Integer, number.into()));
    }
    text.parse::<Timestamp>().ok().map(|at| (Axis::Time, at.as_millisecond().into()))
}

fn write(axis: Axis, key: i128) -> Option<String> {
    let key = i64::try_from(key).ok()?;
    match axis {
        Axis::Integer => Some(key.to_string()),
        Axis::Time => Timestamp::from_millisecond(key).ok().map(|at| at.to_string()),
    }
}

/// Times are cut at whole seconds where ranges are longer than that.
fn whole_units(axis: Axis, width: i128) -> i128 {
    match axis {
        Axis::Time if width > 1000 => width.div_ceil_positive(1000) * 1000,
        Axis::Integer | Axis::Time => width.max(1),
    }
}

trait DivCeil {
    /// Division of a number from 0 by one from 1, rounded up.
    fn div_ceil_positive(self, by: Self) -> Self;
}

impl DivCeil for i128 {
    fn div_ceil_positive(self, by: Self) -> Self {
        (self + by - 1) / by
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn declared(json: &str) -> RangeShards {
        serde_json::from_str(&format!(r#"{{"field":"f",{json}}}"#)).unwrap()
    }

    fn texts(json: &str, total: Option<i64>) -> Vec<String> {
        ranges(&declared(json), total, 1000).unwrap().iter().map(|r| format!("{}..{}", r.from, r.to)).collect()
    }

    #[test]
    fn ranges_are_written_as_the_source_reads_them() {
        assert_eq!(texts(r#""from":"-5","to":"10","step":7"#, None), ["-5..2", "2..9", "9..10"]);
        assert_eq!(texts(r#""from":"0","to":"100","recordsPerShard":40"#, Some(100)), ["0..34", "34..68", "68..100"]);
        assert_eq!(texts(r#""from":"0","to":"100","recordsPerShard":40"#, Some(0)), ["0..100"]);
        assert_eq!(
            texts(r#""from":"2024-01-01T00:00:00+08:00","to":"2024-01-03T00:00:00Z","every":"1d""#, None),
            [
                "2023-12-31T16:00:00Z..2024-01-01T16:00:00Z",
                "2024-01-01T16:00:00Z..2024-01-02T16:00:00Z",
                "2024-01-02T16:00:00Z..2024-01-03T00:00:00Z"
            ]
        );
        let thirds = texts(r#""from":"2024-01-01T00:00:00Z","to":"2024-01-01T00:00:10Z","recordsPerShard":1"#, Some(3));
        assert_eq!(thirds[0], "2024-01-01T00:00:00Z..2024-01-01T00:00:04Z");
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for json in [
            r#""from":"5","to":"5","step":1"#,
            r#""from":"5","to":"2024-01-01T00:00:00Z","step":1"#,
            r#""from":"a","to":"b","step":1"#,
            r#""from":"1","to":"5","every":"1d""#,
            r#""from":"2024-01-01T00:00:00Z","to":"2024-01-02T00:00:00Z","step":1"#,
            r#""from":"1","to":"5""#,
        ] {
            assert!(matches!(ranges(&declared(json), None, 10), Err(DecomposeError::BadRange(_))), "{json}");
        }
        let wide = declared(r#""from":"0","to":"9223372036854775807","step":1"#);
        assert_eq!(ranges(&wide, None, 10), Err(DecomposeError::TooManyShards { max: 10 }));
    }

    proptest! {
        /// The ranges follow one another without gap or overlap from `from` to `to`.
        #[test]
        fn ranges_cover_every_key_once(from in -1000i64..1000, span in 1i64..5000, width in 1i64..700, total in 0i64..10_000, by_total: bool) {
            let kind = if by_total { format!(r#""recordsPerShard":{}"#, width) } else { format!(r#""step":{width}"#) };
            let found = ranges(&declared(&format!(r#""from":"{from}","to":"{}",{kind}"#, from + span)), Some(total), 20_000).unwrap();
            let mut next = from;
            for range in &found {
                prop_assert_eq!(range.from.parse::<i64>().unwrap(), next);
                let to: i64 = range.to.parse().unwrap();
                prop_assert!(to > next);
                next = to;
            }
            prop_assert_eq!(next, from + span);
        }
    }
}
