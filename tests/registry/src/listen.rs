//! The accept loop of the test servers: plain HTTP/1.1, with the one thing that no framework offers: an answer that is a
//! connection reset.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Response extension: send nothing of this answer, reset the connection instead.
#[derive(Clone, Copy, Debug)]
pub struct Reset;

impl fmt::Display for Reset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("connection reset on purpose")
    }
}

impl std::error::Error for Reset {}

/// The first half of a body, on the wire for sure, then an error, which resets the connection.
pub fn cut(mut bytes: Bytes) -> axum::body::Body {
    bytes.truncate(bytes.len() / 2);
    let end = stream::once(async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        Err(Reset)
    });
    axum::body::Body::from_stream(stream::iter([Ok(bytes)]).chain(end))
}

/// Serves connections until dropped; dropping it also drops every open connection.
///
/// A body that ends in an error resets its connection where it stands.
pub async fn listen<S, F, B>(listener: TcpListener, service: S) -> Infallible
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, service.clone()));
                }
                // Out of file descriptors, most likely: let some connections end first.
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            },
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection<S, F, B>(stream: TcpStream, service: S)
where
    S: Fn(Request<Incoming>) -> F + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request| {
        let answer = service(request);
        async move {
            let response = answer.await;
            match response.extensions().get::<Reset>() {
                Some(reset) => Err(*reset),
                None => Ok(response),
            }
        }
    });
    let mut connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    if Pin::new(&mut connection).await.is_err() {
        // Linger 0 turns the close into a reset: the client must not take it for an orderly end.
        let _ = connection.into_parts().io.into_inner().set_zero_linger();
    }
}
