//! Numbers and texts for people, bounded.

/// `63%`, never 100 before the end.
pub fn percent(done: i64, of: i64) -> i32 {
    if of <= 0 {
        return 0;
    }
    i32::try_from((i128::from(done.max(0)) * 100 / i128::from(of)).min(99)).unwrap_or(99)
}

/// `391204/620573`, or `391204` where the total is unknown.
pub fn of(done: i64, total: Option<i64>) -> String {
    match total {
        Some(total) => format!("{done}/{total}"),
        None => done.to_string(),
    }
}

/// `2.1k/s`.
pub fn rate(records: i64, seconds: f64) -> Option<String> {
    if seconds < 1.0 || records <= 0 {
        return None;
    }
    let rate = records as f64 / seconds;
    Some(match rate {
        r if r >= 1e6 => format!("{:.1}M/s", r / 1e6),
        r if r >= 1e3 => format!("{:.1}k/s", r / 1e3),
        r if r >= 10.0 => format!("{r:.0}/s"),
        r => format!("{r:.1}/s"),
    })
}

/// Collected against source in percent: `100%` only when they are equal.
pub fn matched(source: i64, collected: i64) -> String {
    if source == collected {
        return "100%".into();
    }
    if source <= 0 {
        return "0%".into();
    }
    let off = (collected - source).abs();
    format!("{:.2}%", (((source - off).max(0) as f64 / source as f64 * 10_000.0).floor() / 100.0).min(99.99))
}

/// Cut at a character boundary so that at most `max` bytes remain.
pub fn cut(text: &str, max: usize) -> String {
    if text.len() <= max {
        return text.to_owned();
    }
    let mut end = max.saturating_sub('…'.len_utf8());
    while end > 0 && !text.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}…", text.get(..end).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hundred_percent_is_said_only_at_the_end() {
        assert_eq!(percent(999_999, 1_000_000), 99);
        assert_eq!(percent(5, 5), 99);
        assert_eq!(percent(0, 0), 0);
        assert_eq!(matched(620_573, 620_572), "99.99%");
        assert_eq!(matched(620_573, 620_573), "100%");
        assert_eq!(matched(0, 5), "0%");
    }

    #[test]
    fn rates_are_short() {
        assert_eq!(rate(21_000, 10.0).unwrap(), "2.1k/s");
        assert_eq!(rate(0, 10.0), None);
    }

    #[test]
    fn cuts_between_characters() {
        assert_eq!(cut("深圳市", 6), "深…");
        assert_eq!(cut("abc", 3), "abc");
    }
}
