//! What can go wrong in a pass, and what that means for the next one.

use collect_core::{assignment::AssignmentError, ranges::NotASet, tree::PlanError};

/// An error of a pass over one object.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API server refused or did not answer.
    #[error("{verb} {kind} {name}")]
    Api {
        /// What was tried.
        verb: &'static str,
        /// Kind of the object.
        kind: &'static str,
        /// Its namespace and name.
        name: String,
        /// What came back.
        #[source]
        source: Box<kube::Error>,
    },
    /// A sealed plan can't be read.
    #[error("the plan of {root} can't be read")]
    Plan {
        /// Namespace and name of the root.
        root: String,
        /// Why.
        #[source]
        source: PlanError,
    },
    /// What a task's status says to be folded can't be read.
    #[error(
        "status.folded of CollectTask {task} can't be read; it was changed by hand: raise spec.run to collect anew"
    )]
    Folded {
        /// Name of the task.
        task: String,
        /// Why.
        #[source]
        source: NotASet,
    },
    /// A worker's assignment can't be made.
    #[error(transparent)]
    Assignment(#[from] AssignmentError),
    /// An object can't be written as JSON.
    #[error("an object can't be written as JSON")]
    Json(#[from] serde_json::Error),
}

/// What an error means for the next pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Try again with growing waits.
    Transient,
    /// Trying again changes nothing until the object changes.
    Terminal,
    /// Somebody else was faster: look again.
    Conflict,
}

impl Error {
    /// Wraps an answer of the API server.
    pub fn api(verb: &'static str, kind: &'static str, name: impl Into<String>, source: kube::Error) -> Self {
        Self::Api { verb, kind, name: name.into(), source: Box::new(source) }
    }

    /// A short word for metrics.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Api { .. } if self.class() == Class::Conflict => "conflict",
            Self::Api { .. } => "api",
            Self::Plan { .. } => "plan",
            Self::Folded { .. } => "folded",
            Self::Assignment(_) => "assignment",
            Self::Json(_) => "json",
        }
    }

    /// What it means for the next pass.
    pub fn class(&self) -> Class {
        match self {
            // 422 is what a failed `test` of a JSON Patch answers; 404, the object is gone and its event is on the way.
            Self::Api { source, .. } => match code(source) {
                Some(404 | 409 | 422) => Class::Conflict,
                _ => Class::Transient,
            },
            Self::Plan { .. } => Class::Transient,
            Self::Folded { .. } | Self::Assignment(_) | Self::Json(_) => Class::Terminal,
        }
    }
}

/// Status code of an answer, if there was one.
pub fn code(error: &kube::Error) -> Option<u16> {
    match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    }
}

/// The error and all its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let said = inner.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = inner.source();
    }
    text
}
