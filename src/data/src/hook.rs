//! Sends the request of a hook: once, repeated only while it may pass.
//!
//! A hook's URL is often a secret itself (a chat's webhook), so messages name its host alone, and no answer is followed
//! elsewhere.

use std::{collections::BTreeMap, time::Duration};

use ::http::{Method, StatusCode};
use collect_api::{
    protocol::{HookEvent, HookResult, HookWork},
    source::Method as Verb,
};
use serde_json::Value;
use url::Url;

use crate::{
    Class, Control, Error, Settings,
    http::{
        Body, Draft, Variables, Verdict,
        auth::Credentials,
        classify, render,
        sender::{Failure, GaveUp, Sender},
    },
    secrets::Secrets,
};

/// A hook that was not answered with 2xx. `field` is the place of its declaration, `what` its method and origin.
#[derive(Debug, thiserror::Error)]
pub enum HookError {
    /// No URL.
    #[error("{field}.url is no http or https URL; change it")]
    BadUrl {
        /// Place of the declaration.
        field: String,
    },
    /// No answer.
    #[error(
        "{what} got no answer in {tries} tries: {cause}; check that it can be reached from the cluster, or change {field}.url"
    )]
    Unreachable {
        /// The request.
        what: String,
        /// Place of the declaration.
        field: String,
        /// Tries.
        tries: u32,
        /// What went wrong the last time.
        cause: String,
    },
    /// A status that may pass, too often.
    #[error("{what} answered {status} in {tries} tries: {excerpt:?}; it is overloaded or down: look there, or wait")]
    Unavailable {
        /// The request.
        what: String,
        /// The last status.
        status: StatusCode,
        /// Tries.
        tries: u32,
        /// Beginning of the last answer.
        excerpt: String,
    },
    /// Come back later.
    #[error("{what} answered {status} and asks to come back in {seconds} s; wait, or raise its limits", seconds = .retry_after.as_secs())]
    Limited {
        /// The request.
        what: String,
        /// The status.
        status: StatusCode,
        /// Wait that it asks for.
        retry_after: Duration,
    },
    /// A status that won't pass.
    #[error("{what} answered {status}: {excerpt:?}; {advice}", advice = advice(*.status, field))]
    Refused {
        /// The request.
        what: String,
        /// Place of the declaration.
        field: String,
        /// The status.
        status: StatusCode,
        /// Beginning of the answer.
        excerpt: String,
    },
}

fn advice(status: StatusCode, field: &str) -> String {
    match status.as_u16() {
        300..=399 => format!("a hook follows no redirect: put the final address into {field}.url"),
        401 | 403 => format!("check {field}.auth and the secret that it names"),
        404 | 410 => format!("check {field}.url"),
        405 => format!("change {field}.method"),
        _ => format!("it refuses this request: check headers and body of {field}"),
    }
}

impl HookError {
    /// Short word.
    pub fn category(&self) -> &'static str {
        match self {
            Self::BadUrl { .. } => "HookInvalid",
            Self::Unreachable { .. } | Self::Unavailable { .. } | Self::Limited { .. } => "HookUnavailable",
            Self::Refused { status, .. } => match status.as_u16() {
                401 | 403 => "HookUnauthorized",
                404 | 410 => "HookNotFound",
                _ => "HookRefused",
            },
        }
    }

    /// What it means for the attempt. A hook that asks to come back later costs an attempt: it must end at some time.
    pub fn class(&self) -> Class {
        match self {
            Self::Unreachable { .. } | Self::Unavailable { .. } | Self::Limited { .. } => Class::Retryable,
            Self::BadUrl { .. } | Self::Refused { .. } => Class::Permanent,
        }
    }

    /// Wait that the other side asks for.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Limited { retry_after, .. } => Some(*retry_after),
            Self::BadUrl { .. } | Self::Unreachable { .. } | Self::Unavailable { .. } | Self::Refused { .. } => None,
        }
    }
}

/// Sends the request of a hook until it is answered with 2xx, the tries are used up, or it is refused.
///
/// # Errors
/// Whatever ends the attempt. The request may have been received all the same: hooks are at-least-once.
pub async fn hook(work: &HookWork, settings: &Settings, control: &Control) -> Result<HookResult, Error> {
    let field = field(&work.event);
    let draft = draft(work)?;
    let what = format!("{} {}", draft.method, draft.url.origin().ascii_serialization());
    let secrets = Secrets::below(&settings.secrets_dir);
    let credentials = Credentials::read(work.http.auth.as_ref(), &format!("{field}.auth"), &secrets)?;
    let sender = Sender::new(credentials, hidden(&draft.url), settings.hook_retry, settings.hook_timeout, control)?;
    let gave_up = match sender.repeat(&what, || exchange(&sender, &draft, &what, &field)).await {
        Ok(result) => return Ok(result),
        Err(gave_up) => gave_up,
    };
    Err(Error::Hook(match gave_up {
        GaveUp::Final(error) => error,
        GaveUp::Broken { tries, cause } => HookError::Unreachable { what, field, tries, cause },
        GaveUp::Status { status, tries, excerpt } => HookError::Unavailable { what, status, tries, excerpt },
        GaveUp::Limited { status, retry_after } => HookError::Limited { what, status, retry_after },
    }))
}

/// One request.
async fn exchange(sender: &Sender, draft: &Draft, what: &str, field: &str) -> Result<HookResult, Failure<HookError>> {
    let response = sender.dispatch(draft).await?;
    let status = response.status();
    match classify(status) {
        Verdict::Good => Ok(HookResult { code: status.as_u16() }),
        Verdict::Retryable => Err(sender.may_pass(response).await),
        Verdict::Redirect | Verdict::Permanent => {
            let excerpt = sender.excerpt(response).await;
            let (what, field) = (what.to_owned(), field.to_owned());
            Err(Failure::Final(HookError::Refused { what, field, status, excerpt }))
        }
    }
}

fn field(event: &HookEvent) -> String {
    format!("spec.hooks.{}.run.http", event.hook)
}

/// The request, without credentials.
fn draft(work: &HookWork) -> Result<Draft, Error> {
    let (http, field) = (&work.http, field(&work.event));
    let url = Url::parse(&http.url).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let url = url.ok_or_else(|| HookError::BadUrl { field: field.clone() })?;
    let event = serde_json::to_value(&work.event).unwrap_or_default();
    let variables = Variables::of(texts(&event));
    let headers = render::headers(&http.headers, &format!("{field}.headers"), &variables)?;
    let (method, body) = match (http.method.unwrap_or(Verb::Post), &http.body) {
        (Verb::Post, None) => (Method::POST, Body::Json(event)),
        (verb, declared) => {
            let method = if verb == Verb::Post { Method::POST } else { Method::GET };
            (method, render::body(declared.as_ref(), &format!("{field}.body"), &headers, &variables)?)
        }
    };
    Ok(Draft { method, url, headers, body })
}

/// The event's fields as texts, by their names in JSON.
fn texts(event: &Value) -> BTreeMap<String, String> {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    event.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), text(value))).collect()
}

/// Path and query of the URL, which servers like to repeat in their answers.
fn hidden(url: &Url) -> Vec<String> {
    let path = Some(url.path()).filter(|path| *path != "/");
    path.into_iter().chain(url.query()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn work(http: Value) -> HookWork {
        let mut declared = json!({"url": "https://chat.example/in/t0ken?k=1"});
        declared.as_object_mut().unwrap().extend(http.as_object().unwrap().clone());
        let event = HookEvent {
            hook: "afterSuccess".into(),
            namespace: "default".into(),
            task: "villages".into(),
            run: 3,
            phase: "Succeeded".into(),
            records: 216,
            report: "villages-r3".into(),
            message: "all \"216\"\nthere".into(),
        };
        HookWork { http: serde_json::from_value(declared).unwrap(), event }
    }

    #[test]
    fn a_post_without_a_body_tells_the_event() {
        let draft = draft(&work(json!({}))).unwrap();
        assert_eq!((draft.method.as_str(), draft.url.as_str()), ("POST", "https://chat.example/in/t0ken?k=1"));
        let Body::Json(body) = draft.body else { panic!() };
        assert_eq!(
            body,
            json!({
                "hook": "afterSuccess", "namespace": "default", "task": "villages", "run": 3, "phase": "Succeeded",
                "records": 216, "report": "villages-r3", "message": "all \"216\"\nthere"
            })
        );
    }

    #[test]
    fn strings_are_templates_over_the_event() {
        let text = "{{ namespace }}/{{ task }} r{{ run }}: {{ phase }}, {{ records }}, {{ report }}, {{ hook }}";
        let told = "default/villages r3: Succeeded, 216, villages-r3, afterSuccess";
        let with = |body: Value, headers: Value| draft(&work(json!({"body": body, "headers": headers}))).unwrap();
        let json_body = with(json!({"json": {"text": text, "list": [text], "n": 1}}), json!({"X-Task": text}));
        assert_eq!(json_body.body, Body::Json(json!({"text": told, "list": [told], "n": 1})));
        assert_eq!(json_body.headers["x-task"], told);
        assert_eq!(with(json!({"form": {"t": text}}), json!({})).body, Body::Form(vec![("t".into(), told.into())]));
        let quoted = with(json!({"text": "{\"m\": \"{{ message }}\"}"}), json!({"Content-Type": "application/json"}));
        assert_eq!(quoted.body, Body::Text(r#"{"m": "all \"216\"\nthere"}"#.into()));
        // A branch on what may be empty.
        let branch = with(json!({"text": "{% if report %}see {{ report }}{% else %}no report{% endif %}"}), json!({}));
        assert_eq!(branch.body, Body::Text("see villages-r3".into()));
    }

    #[test]
    fn a_get_has_only_the_body_that_is_declared() {
        let draft = draft(&work(json!({"method": "GET"}))).unwrap();
        assert_eq!((draft.method.as_str(), draft.body), ("GET", Body::None));
    }

    #[test]
    fn mistakes_name_their_field_and_what_is_known() {
        for (http, wanted) in [
            (json!({"url": "mailto:a@b"}), "spec.hooks.afterSuccess.run.http.url is no http or https URL"),
            (
                json!({"headers": {"X-A": "{{ taks }}"}}),
                "spec.hooks.afterSuccess.run.http.headers.X-A `{{ taks }}` uses a variable that is not known here (known: hook, message, namespace, phase, records, report, run, task); use one of these",
            ),
            (json!({"body": {"json": {"a": "{{ x }}"}}}), "spec.hooks.afterSuccess.run.http.body.json `{{ x }}`"),
            (
                json!({"headers": {"X-A": "{{ message }}"}}),
                "spec.hooks.afterSuccess.run.http.headers.X-A can't be sent",
            ),
        ] {
            let error = draft(&work(http)).unwrap_err();
            assert!(error.to_string().contains(wanted), "{error}");
            assert_eq!(error.class(), Class::Permanent);
        }
    }

    #[test]
    fn a_path_of_its_own_is_hidden() {
        let hidden = |url: &str| hidden(&url.parse().unwrap());
        assert_eq!(hidden("https://chat.example/in/t0ken?k=1"), ["/in/t0ken", "k=1"]);
        assert!(hidden("https://chat.example").is_empty());
    }
}
