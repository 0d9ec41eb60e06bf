//! What a status means, and how long to wait before a request is repeated. Pure; randomness is a parameter.

use std::time::Duration;

use ::http::{HeaderMap, StatusCode, header};
use collect_api::source::RequestRetry;
use jiff::{Timestamp, fmt::rfc2822};

/// Longest Retry-After that a worker waits out itself.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// What a status means for the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It worked.
    Good,
    /// Look elsewhere.
    Redirect,
    /// It may work if repeated.
    Retryable,
    /// It will not.
    Permanent,
}

/// What a status means for the request.
pub fn classify(status: StatusCode) -> Verdict {
    match status.as_u16() {
        200..=299 => Verdict::Good,
        301 | 302 | 303 | 307 | 308 => Verdict::Redirect,
        408 | 425 | 429 | 500..=599 => Verdict::Retryable,
        _ => Verdict::Permanent,
    }
}

/// How one request is repeated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Retry {
    /// Tries, the first included.
    pub tries: u32,
    initial: Duration,
    factor: f64,
    max: Duration,
}

impl Retry {
    /// The declaration with its defaults: 6 tries, 500 ms, factor 2, at most 30 s.
    pub fn of(declared: Option<&RequestRetry>) -> Self {
        let backoff = declared.and_then(|retry| retry.backoff.as_ref());
        let duration =
            |found: Option<collect_api::Duration>, default| found.map_or(default, collect_api::Duration::get);
        Self {
            tries: declared
                .and_then(|retry| retry.max_attempts)
                .and_then(|n| u32::try_from(n).ok())
                .unwrap_or(6)
                .max(1),
            initial: duration(backoff.and_then(|b| b.initial), Duration::from_millis(500)),
            factor: backoff.and_then(|b| b.factor).unwrap_or(2.0).max(1.0),
            max: duration(backoff.and_then(|b| b.max), Duration::from_secs(30)),
        }
    }

    /// Wait after the `failed`-th failed try (from 1), with `jitter` from 0 to 1: full jitter.
    pub fn wait(&self, failed: u32, jitter: f64) -> Duration {
        let exponent = i32::try_from(failed.saturating_sub(1).min(64)).unwrap_or(64);
        let ceiling = (self.initial.as_secs_f64() * self.factor.powi(exponent)).min(self.max.as_secs_f64());
        Duration::try_from_secs_f64(ceiling * jitter.clamp(0.0, 1.0)).unwrap_or(self.max)
    }
}

/// Wait that a Retry-After header asks for, in seconds or as an HTTP date.
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let date = rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_status_has_its_meaning() {
        for (statuses, wanted) in [
            (vec![200, 201, 204, 206], Verdict::Good),
            (vec![301, 302, 303, 307, 308], Verdict::Redirect),
            (vec![408, 425, 429, 500, 502, 503, 504, 520, 599], Verdict::Retryable),
            (vec![300, 304, 400, 401, 403, 404, 405, 409, 410, 418, 422, 451], Verdict::Permanent),
        ] {
            for status in statuses {
                assert_eq!(classify(StatusCode::from_u16(status).unwrap()), wanted, "{status}");
            }
        }
    }

    #[test]
    fn waits_grow_and_are_bounded() {
        let retry = Retry::of(None);
        let ceilings: Vec<u128> = (1..=9).map(|n| retry.wait(n, 1.0).as_millis()).collect();
        assert_eq!(ceilings, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
        assert_eq!(retry.wait(3, 0.0), Duration::ZERO);
        assert_eq!(retry.wait(u32::MAX, 1.0), Duration::from_secs(30));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "2015-10-21T07:27:00Z".parse().unwrap();
        for (text, wanted) in [
            ("120", Some(120)),
            ("Wed, 21 Oct 2015 07:28:00 GMT", Some(60)),
            ("Wed, 21 Oct 2015 07:00:00 GMT", Some(0)),
            ("soon", None),
            ("-1", None),
        ] {
            let headers = HeaderMap::from_iter([(header::RETRY_AFTER, text.parse().unwrap())]);
            assert_eq!(retry_after(&headers, now).map(|wait| wait.as_secs()), wanted, "{text}");
        }
    }
}
