//! Hooks: one request, repeated only while it may pass, and messages that a person can act on.

use std::time::Duration;

use collect_api::protocol::{HookEvent, HookResult, HookWork, RateShare};
use collect_data::{Class, Control, Error, Settings, http::Retry};
use collect_registry::{Controlled, Effect, Options, When};
use serde_json::{Value, json};

use crate::{
    clients::{canned, redirect},
    lab::Lab,
};

fn event() -> HookEvent {
    HookEvent {
        hook: "afterSuccess".into(),
        namespace: "default".into(),
        task: "villages".into(),
        run: 2,
        phase: "Succeeded".into(),
        records: 216,
        report: "villages-r2".into(),
        message: "216 of 216".into(),
    }
}

fn settings(lab: &Lab) -> Settings {
    let retry = json!({"maxAttempts": 3, "backoff": {"initial": "1ms", "max": "5ms"}});
    Settings {
        hook_retry: Retry::of(Some(&serde_json::from_value(retry).unwrap())),
        hook_timeout: Duration::from_millis(300),
        ..lab.settings("aaaaaaaa")
    }
}

async fn send(lab: &Lab, http: Value) -> Result<HookResult, Error> {
    let mut declared = json!({"url": format!("{}/api/hooks/t0ken?k=1", lab.registry.url())});
    declared.as_object_mut().unwrap().extend(http.as_object().unwrap().clone());
    let work = HookWork { http: serde_json::from_value(declared).unwrap(), event: event() };
    collect_data::hook(&work, &settings(lab), &Control::new(&RateShare::default())).await
}

fn status(code: u16, retry_after_seconds: Option<u64>) -> Effect {
    Effect::Status { code, retry_after_seconds }
}

fn bearer(key: &str) -> Value {
    json!({"bearer": {"secretRef": {"name": "registry", "key": key}}})
}

#[tokio::test]
async fn a_hook_tells_the_event() {
    let lab = Lab::small().await;
    assert_eq!(send(&lab, json!({})).await.unwrap(), HookResult { code: 204 });
    let log = lab.registry.log();
    assert_eq!((log.len(), log[0].method.as_str(), log[0].query.as_str()), (1, "POST", "k=1"));
    assert_eq!(serde_json::from_str::<HookEvent>(&log[0].body).unwrap(), event());
}

#[tokio::test]
async fn a_body_of_ones_own_is_a_template() {
    let lab = Lab::small().await;
    let body = json!({"json": {"text": "{{ task }} run {{ run }}: {{ phase }}, {{ records }} records"}});
    send(&lab, json!({"body": body})).await.unwrap();
    assert_eq!(lab.registry.log()[0].body, r#"{"text":"villages run 2: Succeeded, 216 records"}"#);
    send(&lab, json!({"method": "GET"})).await.unwrap();
    let last = lab.registry.log().pop().unwrap();
    assert_eq!((last.method.as_str(), last.body.as_str()), ("GET", ""));
}

#[tokio::test]
async fn credentials_are_those_of_auth() {
    let lab = Lab::small().await;
    lab.registry.control.set_options(Options { token: Some("tok-s3cret".into()), ..Options::default() });
    send(&lab, json!({"auth": bearer("token")})).await.unwrap();

    let error = send(&lab, json!({})).await.unwrap_err();
    assert_eq!((error.category(), error.class()), ("HookUnauthorized", Class::Permanent));
    assert!(error.to_string().contains("check spec.hooks.afterSuccess.run.http.auth and the secret"), "{error}");

    let error = send(&lab, json!({"auth": bearer("other")})).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "secret `registry` has no key `other`; add it or change spec.hooks.afterSuccess.run.http.auth.bearer.secretRef.key"
    );
}

#[tokio::test]
async fn answers_end_as_they_should_after_the_right_number_of_tries() {
    for (effect, category, class, retry_after_ms, tries) in [
        (status(408, None), "HookUnavailable", Class::Retryable, None, 3),
        (status(425, None), "HookUnavailable", Class::Retryable, None, 3),
        (status(429, Some(0)), "HookUnavailable", Class::Retryable, None, 3),
        (status(503, None), "HookUnavailable", Class::Retryable, None, 3),
        (status(429, Some(3600)), "HookUnavailable", Class::Retryable, Some(3_600_000), 1),
        (Effect::Reset, "HookUnavailable", Class::Retryable, None, 3),
        (Effect::Stuck, "HookUnavailable", Class::Retryable, None, 3),
        (status(400, None), "HookRefused", Class::Permanent, None, 1),
        (status(401, None), "HookUnauthorized", Class::Permanent, None, 1),
        (status(403, None), "HookUnauthorized", Class::Permanent, None, 1),
        (status(404, None), "HookNotFound", Class::Permanent, None, 1),
        (status(405, None), "HookRefused", Class::Permanent, None, 1),
        (status(410, None), "HookNotFound", Class::Permanent, None, 1),
        (status(422, None), "HookRefused", Class::Permanent, None, 1),
    ] {
        let name = format!("{effect:?}");
        let lab = Lab::faulty(effect).await;
        let error = send(&lab, json!({})).await.unwrap_err();
        assert_eq!((error.category(), error.class(), lab.requests()), (category, class, tries), "{name}: {error}");
        assert_eq!(error.to_work_error().retry_after_ms, retry_after_ms, "{name}");
        // The host, and nothing of a URL that may be a secret.
        let host = format!("POST {} ", lab.registry.url());
        assert!(error.to_string().starts_with(&host) && !error.to_string().contains("t0ken"), "{name}: {error}");
    }
}

#[tokio::test]
async fn a_fault_that_passes_costs_a_try() {
    let lab = Lab::with(collect_registry::Registry::small(), Options::faults([status(503, None).first(2)])).await;
    assert_eq!((send(&lab, json!({})).await.unwrap().code, lab.requests()), (204, 3));
    let any_success = Effect::Html.when(When::default());
    lab.registry.control.set_options(Options::faults([any_success]));
    assert_eq!(send(&lab, json!({})).await.unwrap().code, 200, "what a hook answers is of no interest");
}

#[tokio::test]
async fn no_redirect_is_followed() {
    let other = canned(vec![]).await;
    for to in ["/b", &format!("{}/b", other.url)] {
        let server = canned(vec![("/in/t0ken", redirect(307, to))]).await;
        let lab = Lab::small().await;
        let http = json!({"url": format!("{}/in/t0ken", server.url), "auth": bearer("token")});
        let error = send(&lab, http).await.unwrap_err();
        assert_eq!((error.category(), error.class()), ("HookRefused", Class::Permanent));
        assert!(
            error.to_string().contains("put the final address into spec.hooks.afterSuccess.run.http.url"),
            "{error}"
        );
        assert_eq!(server.asked.lock().unwrap().len(), 1);
    }
    assert!(other.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn messages_hold_no_secret_even_if_the_answer_repeats_it() {
    let echo = "cannot POST /in/t0ken?k=1 with Bearer tok-s3cret";
    let answer = format!("HTTP/1.1 400 Bad\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{echo}", echo.len());
    let server = canned(vec![("/in/t0ken?k=1", answer)]).await;
    let lab = Lab::small().await;
    let url = format!("{}/in/t0ken?k=1", server.url);
    let error = send(&lab, json!({"url": url, "auth": bearer("token")})).await.unwrap_err();
    assert!(error.to_string().contains("answered 400 Bad Request: \"cannot POST ***?*** with Bearer ***\""), "{error}");
    let key = json!({"apiKey": {"secretRef": {"name": "registry", "key": "token"}, "into": "query:key"}});
    let error = send(&lab, json!({"url": "http://127.0.0.1:1/in/t0ken", "auth": key})).await.unwrap_err();
    assert!(error.to_string().starts_with("POST http://127.0.0.1:1 got no answer in 3 tries"), "{error}");
    assert!(!format!("{error} {error:?}").contains("s3cret") && !format!("{error:?}").contains("t0ken"), "{error:?}");
}
