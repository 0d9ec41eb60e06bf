//! One error for the whole data plane, and what it means for the attempt.

use std::time::Duration;

use collect_api::protocol::{WorkError, exit};

use crate::{
    collect::CollectError,
    commit::CommitError,
    hook::HookError,
    http::{HttpError, LocateError, PageError, PaginateError, TemplateError},
    plan::PlanError,
    record::RecordError,
    secrets::SecretError,
    sink::SinkError,
    text,
};

/// What an error means for the attempt that met it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// It may pass: try again.
    Retryable,
    /// No repetition mends it: configuration, credentials, schema.
    Permanent,
    /// The source asked to come back later than a worker should wait.
    SourceLimited(Duration),
}

impl Class {
    /// Exit code of a worker that ends with such an error.
    pub fn exit_code(self) -> i32 {
        match self {
            Self::Retryable => exit::RETRYABLE,
            Self::Permanent => exit::PERMANENT,
            Self::SourceLimited(_) => exit::SOURCE_LIMITED,
        }
    }
}

/// Longest message that goes into a termination message, in characters.
const MAX_MESSAGE: usize = 1024;

/// Anything that can end work.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
#[allow(missing_docs, reason = "each variant wraps the error of the module that it names")]
pub enum Error {
    Secret(#[from] SecretError),
    Template(#[from] TemplateError),
    Locate(#[from] LocateError),
    Http(#[from] HttpError),
    Page(#[from] PageError),
    Paginate(#[from] PaginateError),
    Record(#[from] RecordError),
    Sink(#[from] SinkError),
    Collect(#[from] CollectError),
    Plan(#[from] PlanError),
    Commit(#[from] CommitError),
    Hook(#[from] HookError),
}

impl Error {
    /// Short static word, used as reason and metric label.
    pub fn category(&self) -> &'static str {
        match self {
            Self::Secret(error) => error.category(),
            Self::Template(error) => error.category(),
            Self::Locate(error) => error.category(),
            Self::Http(error) => error.category(),
            Self::Page(error) => error.category(),
            Self::Paginate(error) => error.category(),
            Self::Record(error) => error.category(),
            Self::Sink(error) => error.category(),
            Self::Collect(error) => error.category(),
            Self::Plan(error) => error.category(),
            Self::Commit(error) => error.category(),
            Self::Hook(error) => error.category(),
        }
    }

    /// What it means for the attempt.
    pub fn class(&self) -> Class {
        match self {
            Self::Http(error) => error.class(),
            Self::Sink(error) => error.class(),
            Self::Collect(error) => error.class(),
            Self::Commit(error) => error.class(),
            Self::Hook(error) => error.class(),
            Self::Secret(_)
            | Self::Template(_)
            | Self::Locate(_)
            | Self::Page(_)
            | Self::Paginate(_)
            | Self::Record(_)
            | Self::Plan(_) => Class::Permanent,
        }
    }

    /// The same for the termination message.
    pub fn to_work_error(&self) -> WorkError {
        let retry_after = match (self, self.class()) {
            (_, Class::SourceLimited(wait)) => Some(wait),
            (Self::Hook(error), _) => error.retry_after(),
            (_, Class::Retryable | Class::Permanent) => None,
        };
        let retry_after_ms = retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        let message = text::shorten(&self.to_string(), MAX_MESSAGE);
        WorkError { reason: self.category().to_owned(), message, retry_after_ms }
    }
}
