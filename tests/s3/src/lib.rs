//! A real S3 server for tests: s3s speaks the protocol and checks signatures, s3s-fs keeps objects as files in a folder,
//! and this crate adds what a test of exactly-once sinks cannot do without.
//!
//! - **Creates exclude each other.** s3s-fs looks whether an object is there and then renames the new one into place, so
//!   two racing `If-None-Match: *` puts can both win. Here every write to a key (put, copy onto it, completion of an
//!   upload, delete) is alone with that key, and reads of it wait.
//! - **Writes are whole.** A body is received before the lock is taken and before anything is written; from then on the
//!   write is completed even if the client leaves.
//! - **Faults on demand**, see [`Effect`], by the handle or by `PUT /_control` on a second port; a log of requests by
//!   `GET /_log` there.
//!
//! What it cannot do, all for s3s-fs: in a bucket of four letters a key may have 164 bytes, or 131 if it is uploaded in
//! parts (longer ones are refused as KeyTooLongError; Amazon takes 1,024); `a` and `a/b` cannot both be objects; a list reads the whole bucket for every
//! page and gives no ETags. Deletes of several objects in one request and the source of a copy take no lock. A body is
//! held in memory, 1 GiB at most.

mod locks;
mod options;
mod server;

pub use collect_registry::{Controlled, Entry, Stats, When};
pub use options::{Effect, Fault, Options};
pub use server::{Control, MAX_BODY_BYTES, Running, S3Server};
