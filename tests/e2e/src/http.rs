//! As much HTTP as a probe needs.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// GETs a path of `host:port`: status and body.
///
/// # Errors
/// If nobody answers.
pub async fn get(address: &str, path: &str) -> std::io::Result<(u16, String)> {
    request("GET", address, path, "").await
}

/// Sends a request with a JSON body, or none if it is empty, to `host:port`: status and body of the answer.
///
/// # Errors
/// If nobody answers.
pub async fn request(method: &str, address: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
    let mut stream = send(method, address, path, body).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    Ok((status, body.to_owned()))
}

/// Sends a request and gives the connection, on which the answer comes until its end.
///
/// # Errors
/// If nobody listens.
pub async fn send(method: &str, address: &str, path: &str, body: &str) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    let length = body.len();
    // Version 1.0: the body comes as it is, and ends with the connection.
    let head = format!("{method} {path} HTTP/1.0\r\nhost: {address}\r\ncontent-length: {length}\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    Ok(stream)
}
