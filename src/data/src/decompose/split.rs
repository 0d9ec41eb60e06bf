//! Splits one value by whole pages or offsets. The last part is open-ended: a total that lies loses nothing.

use collect_api::plan::{OffsetSpan, PageSpan, Part};

use crate::http::paginate::Rule;

/// What one request told about a value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Records that the source says it holds.
    pub total: Option<i64>,
    /// Records per page, where the first page was full.
    pub size: Option<i64>,
}

/// Parts of a value with the records that each should give.
pub fn split(rule: Rule, measured: Measured, per_shard: Option<i64>) -> Vec<(Part, Option<i64>)> {
    let whole = vec![(Part::Whole {}, measured.total)];
    let (Some(total), Some(size), Some(per_shard)) = (measured.total, measured.size, per_shard) else { return whole };
    let size = size.max(1);
    let pages_per_part = (per_shard.max(1) + size - 1) / size;
    let step = pages_per_part.saturating_mul(size);
    if total <= step {
        return whole;
    }
    let part = |nth: i64| {
        let (from, to) = (nth * step, (nth + 1).saturating_mul(step));
        let is_last = to >= total;
        let records = to.min(total) - from;
        let part = match rule {
            Rule::Pages { .. } => Part::Pages(PageSpan {
                from: nth * pages_per_part,
                to: (!is_last).then_some((nth + 1) * pages_per_part),
                size,
            }),
            Rule::Offsets { .. } => Part::Offsets(OffsetSpan { from, to: (!is_last).then_some(to) }),
            Rule::Once | Rule::Cursor | Rule::Next => return None,
        };
        Some((part, Some(records)))
    };
    let count = (total + step - 1) / step;
    (0..count).map(part).collect::<Option<_>>().unwrap_or(whole)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::http::paginate::Span;

    #[test]
    fn large_values_are_split_by_whole_pages() {
        let measured = Measured { total: Some(45), size: Some(10) };
        let parts = split(Rule::Pages { asked: Some(10) }, measured, Some(15));
        let span = |from, to| Part::Pages(PageSpan { from, to, size: 10 });
        assert_eq!(parts, [(span(0, Some(2)), Some(20)), (span(2, Some(4)), Some(20)), (span(4, None), Some(5))]);
        let parts = split(Rule::Offsets { limit: 10 }, measured, Some(40));
        let span = |from, to| Part::Offsets(OffsetSpan { from, to });
        assert_eq!(parts, [(span(0, Some(40)), Some(40)), (span(40, None), Some(5))]);
    }

    #[test]
    fn what_can_not_or_need_not_be_split_stays_whole() {
        let measured = Measured { total: Some(45), size: Some(10) };
        let whole = |records| vec![(Part::Whole {}, records)];
        let rule = Rule::Pages { asked: Some(10) };
        assert_eq!(split(rule, measured, Some(45)), whole(Some(45)));
        assert_eq!(split(rule, measured, None), whole(Some(45)));
        assert_eq!(split(rule, Measured { size: None, ..measured }, Some(5)), whole(Some(45)));
        assert_eq!(split(Rule::Cursor, measured, Some(5)), whole(Some(45)));
        assert_eq!(split(rule, Measured::default(), Some(5)), whole(None));
    }

    proptest! {
        /// Every record lies in exactly one part, the parts are in order, only the last is open, and shares and expected
        /// records add up to the total.
        #[test]
        fn parts_cover_a_value_once(total in 0i64..5000, size in 1i64..60, per in 1i64..700, by_page: bool) {
            let rule = if by_page { Rule::Pages { asked: Some(size) } } else { Rule::Offsets { limit: size } };
            let parts = split(rule, Measured { total: Some(total), size: Some(size) }, Some(per));
            let spans: Vec<Span> = parts.iter().map(|(part, _)| Span::of(rule, part).unwrap()).collect();
            let mut next = 0;
            for (n, span) in spans.iter().enumerate() {
                prop_assert_eq!(span.first, next);
                prop_assert_eq!(span.end.is_none(), n + 1 == spans.len());
                next = span.end.unwrap_or(i64::MAX);
            }
            let expected: i64 = parts.iter().map(|(_, records)| records.unwrap()).sum();
            prop_assert_eq!(expected, total);
            prop_assert_eq!(spans.iter().map(|span| span.share(total)).sum::<i64>(), total);
            let step = (per + size - 1) / size * size;
            prop_assert!(parts.iter().all(|(_, records)| records.unwrap() <= step.max(per)));
        }
    }
}
