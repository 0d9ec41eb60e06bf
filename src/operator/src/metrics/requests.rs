//! Counts what the client asks of the API server. A layer around the client that looks on: it changes, repeats and holds back nothing.

use std::{
    task::{Context, Poll},
    time::Instant,
};

use axum::http::{Request, Response};
use futures::future::BoxFuture;
use tower::{Layer, Service};

use crate::{clock, metrics::Metrics};

/// Verbs that are told apart, as the client names its calls.
const VERBS: [&str; 6] = ["get", "list", "watch", "create", "patch", "delete"];

/// Counts the requests of a client.
pub struct Counted(pub Metrics);

impl<S> Layer<S> for Counted {
    type Service = CountedService<S>;

    fn layer(&self, inner: S) -> CountedService<S> {
        CountedService { inner, metrics: self.0.clone() }
    }
}

/// A client whose requests are counted.
pub struct CountedService<S> {
    inner: S,
    metrics: Metrics,
}

impl<S, A, B> Service<Request<A>> for CountedService<S>
where
    S: Service<Request<A>, Response = Response<B>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<A>) -> Self::Future {
        let asked = Asked { metrics: self.metrics.clone(), verb: verb(&request), begun: clock::instant(), code: None };
        let answer = self.inner.call(request);
        Box::pin(async move {
            // All of it moves in here, not the field alone.
            let mut asked = asked;
            let answer = answer.await;
            asked.code = answer.as_ref().ok().map(|answer| answer.status().as_u16());
            answer
        })
    }
}

/// A request that is under way. It is counted when this goes, so that one that nobody waits for any more is counted too.
struct Asked {
    metrics: Metrics,
    verb: &'static str,
    begun: Instant,
    code: Option<u16>,
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.metrics.api_request(self.verb, self.code, self.begun.elapsed());
    }
}

/// The client marks each request with the name of the call that made it, such as `patch_status`.
fn verb<A>(request: &Request<A>) -> &'static str {
    let call = request.extensions().get::<&'static str>().copied().unwrap_or_default();
    VERBS.into_iter().find(|verb| call.starts_with(verb)).unwrap_or("other")
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::ready};

    use futures::FutureExt;
    use tower::service_fn;

    use super::*;

    fn request(call: &'static str) -> Request<()> {
        let mut request = Request::new(());
        request.extensions_mut().insert(call);
        request
    }

    #[test]
    fn each_request_is_sent_once_and_counted_with_its_answer() {
        let metrics = Metrics::new();
        let mut sent = 0;
        {
            let mut client = Counted(metrics.clone()).layer(service_fn(|_: Request<()>| {
                sent += 1;
                ready(Ok::<_, Infallible>(Response::builder().status(429).body(()).unwrap()))
            }));
            let answer = client.call(request("patch_status")).now_or_never().unwrap().unwrap();
            assert_eq!(answer.status(), 429);
            client.call(request("watch")).now_or_never().unwrap().unwrap();
            client.call(Request::new(())).now_or_never().unwrap().unwrap();
        }
        assert_eq!(sent, 3);
        let text = metrics.text(Vec::new());
        for expected in [
            r#"collect_api_requests_total{verb="patch",code="429"} 1"#,
            r#"collect_api_requests_total{verb="watch",code="429"} 1"#,
            r#"collect_api_requests_total{verb="other",code="429"} 1"#,
            r#"collect_api_request_duration_seconds_count{verb="patch"} 1"#,
        ] {
            assert!(text.contains(expected), "{expected} in\n{text}");
        }
        assert!(!text.contains(r#"duration_seconds_count{verb="watch"}"#), "a watch lasts as long as it lasts");
    }

    #[test]
    fn a_request_without_an_answer_is_counted_too() {
        let metrics = Metrics::new();
        let mut client = Counted(metrics.clone())
            .layer(service_fn(|_: Request<()>| futures::future::pending::<Result<Response<()>, Infallible>>()));
        drop(client.call(request("create")));
        let text = metrics.text(Vec::new());
        assert!(text.contains(r#"collect_api_requests_total{verb="create",code="none"} 1"#), "{text}");
    }
}
