//! HTTP sources: from the declaration to one page after another.
//!
//! [`paginate`] decides, purely; [`Client`] sends; [`Reader`] joins both for one item.

pub(crate) mod auth;
mod client;
mod endpoint;
mod limiter;
mod locate;
mod page;
pub mod paginate;
mod path;
mod reader;
pub(crate) mod render;
mod retry;
mod roots;
pub(crate) mod sender;
mod target;
mod template;

pub use auth::Origins;
pub use client::{Answer, Client, HttpError};
pub use endpoint::{Endpoint, Style};
pub use limiter::Limiter;
pub use locate::{LocateError, Locator, link};
pub use page::{PageError, read};
pub use paginate::PaginateError;
pub use path::JsonPath;
pub use reader::{Fetched, Reader};
pub use retry::{Retry, Verdict, classify};
pub use roots::certificates;
pub use target::{Body, Draft, Target};
pub use template::{TemplateError, Variables};
