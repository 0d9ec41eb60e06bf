//! What can be set when the server starts and changed while it runs: the faults to inject.

use collect_registry::When;
use serde::{Deserialize, Serialize};

/// Everything that can be changed at run time. The default injects nothing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
pub struct Options {
    /// Seed of all draws.
    pub seed: u64,
    /// Faults; all that hit a request are applied, in this order.
    pub faults: Vec<Fault>,
}

/// A fault and the requests it hits. The path in `when` is `/bucket/key`, percent-encoded as on the wire.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What happens.
    pub effect: Effect,
    /// To which requests; to every one if absent.
    #[serde(default)]
    pub when: When,
}

/// What an injected fault does. In JSON `"slowDown"` or `{"status": {"code": 500}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Effect {
    /// 503 SlowDown; nothing is done.
    SlowDown,
    /// An S3 error with this status; nothing is done. 409 is a ConditionalRequestConflict, 403 AccessDenied.
    Status {
        /// HTTP status.
        code: u16,
    },
    /// Wait before anything else.
    Delay {
        /// How long.
        milliseconds: u64,
    },
    /// Wait before anything else until the options are set anew.
    Hold,
    /// Never answer, do nothing; the request ends when the client leaves.
    Stuck,
    /// Reset the connection; nothing is done.
    ResetBefore,
    /// Do what is asked, completely, then reset the connection instead of answering: the ambiguous write.
    ResetAfter,
    /// Do what is asked, then reset the connection after half of the answer's body.
    Cut,
    /// Ignore If-None-Match and If-Match, as a store does that has no conditional writes.
    IgnoreConditions,
}

impl Effect {
    /// Short name for logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::SlowDown => "slowDown",
            Self::Status { .. } => "status",
            Self::Delay { .. } => "delay",
            Self::Hold => "hold",
            Self::Stuck => "stuck",
            Self::ResetBefore => "resetBefore",
            Self::ResetAfter => "resetAfter",
            Self::Cut => "cut",
            Self::IgnoreConditions => "ignoreConditions",
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
    /// Options with these faults.
    pub fn faults(faults: impl Into<Vec<Fault>>) -> Self {
        Self { faults: faults.into(), ..Self::default() }
    }
}
