//! What can't be done, and what to do about it.

use crate::exit::Exit;

/// Why a command could not do what it was asked for. The text ends with the way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line asks for something that makes no sense.
    #[error("{0}")]
    Usage(String),
    /// There is no kubeconfig, or it is broken, and this is no pod.
    #[error("there is no cluster to talk to: {0}; set KUBECONFIG or give --kubeconfig and --context")]
    NoConfig(String),
    /// The API server does not answer.
    #[error("the cluster can't be reached while {0}: {1}; is it up, and does `kubectl version` work?")]
    Unreachable(String, String),
    /// No such object.
    #[error("{kind} {name} is not in namespace {namespace}; `kubectl get {plural} -A` lists what there is")]
    NotFound {
        /// Kind.
        kind: String,
        /// Its plural, as kubectl knows it.
        plural: String,
        /// Name.
        name: String,
        /// Namespace.
        namespace: String,
    },
    /// The API server does not serve the kinds.
    #[error("this cluster serves no {0}; install the operator's chart first, or choose another cluster with --context")]
    NoKinds(String),
    /// A right is missing. The API server's own words name it: user, verb, resource, namespace.
    #[error(
        "{0}; ask for that right: the roles `view` (to look) and `edit` (to change) have it where the chart is installed"
    )]
    Forbidden(String),
    /// The API server refuses the change, by its schema or its rules.
    #[error("refused while {0}: {1}")]
    Refused(String, String),
    /// Somebody else changed the object at the same moment.
    #[error("{0} was changed by somebody else at the same moment; look at it and try again")]
    Conflict(String),
    /// An answer or an end did not come in time.
    #[error("{what} did not come to an end within {limit}; allow more time with --timeout or --request-timeout")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        limit: collect_api::Duration,
    },
    /// A file.
    #[error("{0}: {1}")]
    File(String, #[source] std::io::Error),
    /// Standard output is closed: whoever reads it has read enough.
    #[error("the output was closed")]
    Closed,
    /// Standard output can't be written.
    #[error("the output can't be written")]
    Output(#[source] std::io::Error),
    /// An object that can't be written as JSON or YAML.
    #[error("{0}")]
    Encode(String),
}

impl Error {
    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::TimedOut { .. } => Exit::TimedOut,
            Self::Closed => Exit::Done,
            Self::Usage(_)
            | Self::NoConfig(_)
            | Self::Unreachable(..)
            | Self::NotFound { .. }
            | Self::NoKinds(_)
            | Self::Forbidden(_)
            | Self::Refused(..)
            | Self::Conflict(_)
            | Self::File(..)
            | Self::Output(_)
            | Self::Encode(_) => Exit::Unable,
        }
    }
}

/// An error with all its causes, each told once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

/// An error of the client, said so that a person can act on it.
pub fn of_api(error: &kube::Error, doing: &str, about: About<'_>) -> Error {
    let kube::Error::Api(status) = error else {
        return Error::Unreachable(doing.to_owned(), chain(error));
    };
    let message = status.message.clone();
    match status.code {
        401 => Error::Forbidden(format!("the cluster does not know who you are while {doing}: {message}")),
        403 => Error::Forbidden(message),
        // The path itself is unknown: the API server says so in plain text, without the object's name.
        404 if about.name.is_empty() || !message.contains(about.name) => Error::NoKinds(about.plural.to_owned()),
        404 => Error::NotFound {
            kind: about.kind.to_owned(),
            plural: about.plural.to_owned(),
            name: about.name.to_owned(),
            namespace: about.namespace.to_owned(),
        },
        409 => Error::Conflict(format!("{} {}", about.kind, about.name)),
        400 | 422 => Error::Refused(doing.to_owned(), message),
        _ => Error::Unreachable(doing.to_owned(), format!("{message} (status {})", status.code)),
    }
}

/// What a request is about.
#[derive(Clone, Copy, Debug, Default)]
pub struct About<'a> {
    /// Kind of the objects.
    pub kind: &'a str,
    /// Its plural.
    pub plural: &'a str,
    /// Name of the object; empty for lists.
    pub name: &'a str,
    /// Namespace; empty for all.
    pub namespace: &'a str,
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn api(code: u16, message: &str) -> kube::Error {
        kube::Error::Api(Box::new(Status::failure(message, "").with_code(code)))
    }

    const ABOUT: About<'_> =
        About { kind: "CollectTask", plural: "collecttasks", name: "villages", namespace: "default" };

    #[test]
    fn a_missing_right_is_named() {
        let server =
            "collecttasks.collect.dev \"villages\" is forbidden: User \"eve\" cannot patch resource \"collecttasks\"";
        let error = of_api(&api(403, server), "pausing villages", ABOUT);
        assert!(error.to_string().contains("cannot patch") && error.to_string().contains("`edit`"), "{error}");
        assert_eq!(error.exit(), Exit::Unable);
    }

    #[test]
    fn no_such_object_and_no_such_kind_differ() {
        let none = of_api(&api(404, "collecttasks.collect.dev \"villages\" not found"), "reading", ABOUT);
        assert!(matches!(none, Error::NotFound { .. }), "{none}");
        let kind = of_api(&api(404, "404 page not found"), "reading", ABOUT);
        assert!(matches!(kind, Error::NoKinds(_)), "{kind}");
    }
}
