//! Text for people: short, on one line, without secrets.

/// At most `max` characters; what was cut off is replaced by `…`.
pub(crate) fn shorten(text: &str, max: usize) -> String {
    if text.chars().count() <= max {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(max.saturating_sub(1)).collect();
    short.push('…');
    short
}

/// The beginning of a body for an error message: at most 100 characters, runs of white space and control characters
/// as one space, every secret as `***`.
pub(crate) fn excerpt<'a>(body: &[u8], secrets: impl IntoIterator<Item = &'a str>) -> String {
    let head = body.get(..body.len().min(4096)).unwrap_or_default();
    let text = mask(&String::from_utf8_lossy(head), secrets);
    let plain: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words: Vec<&str> = plain.split_whitespace().collect();
    shorten(&words.join(" "), 100)
}

/// The text with every secret as `***`.
pub(crate) fn mask<'a>(text: &str, secrets: impl IntoIterator<Item = &'a str>) -> String {
    secrets
        .into_iter()
        .filter(|secret| !secret.is_empty())
        .fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
}

/// An error with its causes, joined by `: `, without a cause that its parent repeats.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

/// The kind of the I/O error among an error and its causes, if there is one that says more than "other".
pub(crate) fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<std::io::ErrorKind> {
    let causes = std::iter::successors(Some(error), |cause| cause.source());
    causes
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .map(std::io::Error::kind)
        .find(|kind| *kind != std::io::ErrorKind::Other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_excerpt_is_one_short_line_without_secrets() {
        let body = format!("<html>\n\t\u{7}bad token s3cret {}", "x".repeat(300));
        let excerpt = excerpt(body.as_bytes(), ["s3cret", ""]);
        assert!(excerpt.starts_with("<html> bad token *** xxx"), "{excerpt}");
        assert_eq!(excerpt.chars().count(), 100);
        assert!(excerpt.ends_with('…'));
    }

    #[test]
    fn shortening_counts_characters_not_bytes() {
        assert_eq!(shorten("广东省深圳市", 4), "广东省…");
        assert_eq!(shorten("广东省", 3), "广东省");
    }
}
