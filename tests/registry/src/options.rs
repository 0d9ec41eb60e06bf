//! What can be set when the server starts and changed while it runs (`PUT /_control`): who is let in, how fast, and
//! which faults are injected.

use serde::{Deserialize, Serialize};

use crate::trigger::When;

/// Everything that can be changed at run time. The default lets everyone in and injects nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Options {
    /// Seed of all draws.
    pub seed: u64,
    /// Accepted bearer token. With several kinds of credentials set, any one of them is enough.
    pub token: Option<String>,
    /// Accepted `user:password`.
    pub basic: Option<String>,
    /// Accepted API key header.
    pub api_key: Option<ApiKey>,
    /// Requests per second let through; above it 429 with Retry-After.
    pub requests_per_second: Option<f64>,
    /// Requests let through at once after a pause; one second's worth if unset.
    pub burst: Option<u32>,
    /// Faults; all that hit a request are applied, in this order.
    pub faults: Vec<Fault>,
}

/// A header that carries an API key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ApiKey {
    /// Name of the header.
    pub header: String,
    /// The key.
    pub value: String,
}

/// A fault and the requests it hits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What happens.
    pub effect: Effect,
    /// To which requests; to every one if absent.
    #[serde(default)]
    pub when: When,
}

/// What an injected fault does. In JSON `"cut"` or `{"status": {"code": 503}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Effect {
    /// This status with a JSON error instead of the answer: 500, 503, 429, 401, 404, 410, …
    Status {
        /// HTTP status.
        code: u16,
        /// Value of a Retry-After header, in seconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        retry_after_seconds: Option<u64>,
    },
    /// Wait before anything else.
    Delay {
        /// How long.
        milliseconds: u64,
    },
    /// Wait before anything else until the options are set anew.
    Hold,
    /// Never answer; the request ends when the client leaves.
    Stuck,
    /// Reset the connection before the first byte of the answer.
    Reset,
    /// Reset the connection after half of the body. Content-Length announces all of it.
    Cut,
    /// 200 with an HTML page.
    Html,
    /// 200 with the first half of the JSON, in a complete HTTP message.
    TruncatedJson,
    /// Add to every total: of lists, of summaries, of X-Total-Count.
    WrongTotal {
        /// How many; totals stay at or above 0.
        add: i64,
    },
    /// Cap the page size without a word about it, other than `size` in the answer.
    ClampSize {
        /// Most rows of a page, at least 1.
        max: usize,
    },
    /// Send every n-th row of a list twice in a row.
    Duplicate {
        /// n, by place in the whole list.
        every: usize,
    },
    /// Leave rows out of the list and its total. With `skip` in `when` a source that shrinks while it is read, with
    /// `first` one that grows.
    HideRows {
        /// How many.
        rows: usize,
        /// At the start of the list instead of the end, so that later pages shift.
        #[serde(default)]
        at_start: bool,
    },
    /// Answer every request for a page with the first one, which claims that more follow.
    FirstPageForever,
}

impl Effect {
    /// Short name for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Status { .. } => "status",
            Self::Delay { .. } => "delay",
            Self::Hold => "hold",
            Self::Stuck => "stuck",
            Self::Reset => "reset",
            Self::Cut => "cut",
            Self::Html => "html",
            Self::TruncatedJson => "truncatedJson",
            Self::WrongTotal { .. } => "wrongTotal",
            Self::ClampSize { .. } => "clampSize",
            Self::Duplicate { .. } => "duplicate",
            Self::HideRows { .. } => "hideRows",
            Self::FirstPageForever => "firstPageForever",
        }
    }

    /// A fault with this effect on every request that `when` selects.
    pub fn when(self, when: When) -> Fault {
        Fault { effect: self, when }
    }

    /// A fault with this effect on every request.
    pub fn always(self) -> Fault {
        self.when(When::default())
    }

    /// A fault with this effect on the first `n` requests.
    pub fn first(self, n: u64) -> Fault {
        self.when(When { first: Some(n), ..When::default() })
    }

    /// A fault with this effect on every n-th request.
    pub fn every(self, n: u64) -> Fault {
        self.when(When { every: Some(n), ..When::default() })
    }
}

impl Options {
    /// Options with these faults and nothing else.
    pub fn faults(faults: impl Into<Vec<Fault>>) -> Self {
        Self { faults: faults.into(), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_written_as_documented() {
        let options: Options = serde_json::from_str(
            r#"{"token": "t", "requestsPerSecond": 50, "faults": [
                {"effect": {"status": {"code": 429, "retryAfterSeconds": 2}}, "when": {"every": 10, "prefix": "/api/districts"}},
                {"effect": "cut", "when": {"first": 3}},
                {"effect": {"hideRows": {"rows": 5, "atStart": true}}, "when": {"skip": 4}},
                {"effect": {"clampSize": {"max": 50}}}]}"#,
        )
        .unwrap();
        assert_eq!(options.faults.len(), 4);
        assert_eq!(options.faults[1], Effect::Cut.first(3));
        assert_eq!(serde_json::from_str::<Options>(&serde_json::to_string(&options).unwrap()).unwrap(), options);
        assert!(serde_json::from_str::<Options>(r#"{"tokn": "t"}"#).is_err());
        assert!(serde_json::from_str::<Options>(r#"{"faults": [{"effect": "cut", "when": {"evry": 3}}]}"#).is_err());
    }
}
