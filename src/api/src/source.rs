//! Where records come from: declarations only; `collect-data` holds the behaviour.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Duration;

/// Where the records come from. Exactly one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// An HTTP API that answers with JSON.
    Http(HttpSource),
}

/// An HTTP API that answers with JSON.
///
/// `path`, `query`, `headers` and `body` are templates: `{{ district }}` stands for the value of that level,
/// `{{ range.from }}` and `{{ range.to }}` for the bounds of a range slice. Values are percent-encoded in URLs and
/// JSON-encoded in bodies; an unknown variable is an error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpSource {
    /// Base URL, http or https, without a query, such as `https://registry.example/api`.
    #[schemars(length(min = 8, max = 2048), regex(pattern = r"^https?://[^\s/?#]+[^\s?#]*$"))]
    pub url: String,
    /// Appended to `url` (never resolved against it). Template. Default: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub path: Option<String>,
    /// Request method. Default: GET.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// Query parameters. The values are templates.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub query: BTreeMap<String, String>,
    /// Request headers. The values are templates. Credentials belong in `auth`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub headers: BTreeMap<String, String>,
    /// Request body, for POST.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Body>,
    /// Where the records are in the answer: a JSONPath (RFC 9535) that selects one array, such as `$.data`.
    /// Default: the one array in the answer; if it holds several, the task fails and lists them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), regex(pattern = r"^\$"))]
    pub records: Option<String>,
    /// Where the answer says how many records the source holds: a JSONPath such as `$.total`, or `header:X-Total-Count`.
    /// Without it nothing can be compared and the task ends as Collected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), regex(pattern = r"^(\$|header:[A-Za-z0-9-]+$)"))]
    pub total: Option<String>,
    /// How to get the following pages. Default: one request holds everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pagination: Option<Pagination>,
    /// Credentials. They are sent only to the origin of `url` and to `allowOrigins`. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<Auth>,
    /// What the source can bear, shared out to all workers of the task. Default: no limit but parallelism.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// How one request is repeated after 408, 425, 429, 5xx or a broken connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<RequestRetry>,
    /// Time that one request may take, from connecting to the last byte. Default: 60s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Other origins (`https://host[:port]`) that next links and redirects may lead to. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 512), regex(pattern = r"^https?://[^\s/?#]+$")))]
    pub allow_origins: Vec<String>,
}

/// Request method.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Method {
    /// GET
    #[serde(rename = "GET")]
    Get,
    /// POST
    #[serde(rename = "POST")]
    Post,
}

/// Body of a request. Exactly one of `json`, `form` and `text`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("[has(self.json), has(self.form), has(self.text)].filter(x, x).size() == 1").message("set exactly one of: json, form, text"))]
pub struct Body {
    /// A JSON object; strings in it are templates. Sent as application/json.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_json")]
    pub json: Option<serde_json::Value>,
    /// Form fields; the values are templates. Sent as application/x-www-form-urlencoded.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 64))]
    pub form: BTreeMap<String, String>,
    /// A text, as a template. Sent as text/plain unless `headers` says otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16384))]
    pub text: Option<String>,
}

fn any_json(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// How to get the following pages. Exactly one kind.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Pagination {
    /// One request holds everything.
    None {},
    /// Numbered pages.
    Page(PagePagination),
    /// An offset and a limit.
    Offset(OffsetPagination),
    /// A token of the answer goes into the next request.
    Cursor(CursorPagination),
    /// The answer holds the URL of the next request.
    Next(NextPagination),
}

/// Numbered pages.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PagePagination {
    /// Where the page number goes: a query parameter by name, or `query:name`, `header:Name`, `body:/json/pointer`.
    #[schemars(length(min = 1, max = 256))]
    pub param: String,
    /// Number of the first page. Default: 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub start: Option<i64>,
    /// Records per page that are asked for. Default: whatever the source gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub size: Option<i64>,
    /// Where the page size goes, written like `param`. Default: it is not sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub size_param: Option<String>,
}

/// An offset and a limit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OffsetPagination {
    /// Where the offset goes: a query parameter by name, or `query:name`, `header:Name`, `body:/json/pointer`.
    #[schemars(length(min = 1, max = 256))]
    pub param: String,
    /// Records per request.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub limit: i64,
    /// Where the limit goes, written like `param`. Default: it is not sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub limit_param: Option<String>,
}

/// A token of the answer goes into the next request. Exactly one of `next` and `lastOf`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CursorPagination {
    /// Where the answer holds the token: a JSONPath such as `$.meta.next`, or `header:Name`. No token, null or an empty one ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), regex(pattern = r"^(\$|header:[A-Za-z0-9-]+$)"))]
    pub next: Option<String>,
    /// JSONPath within the last record of the page that gives the token, such as `$.id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), regex(pattern = r"^\$"))]
    pub last_of: Option<String>,
    /// Where the answer says whether more follows (a boolean). Default: it does while there is a token and the page holds records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512), regex(pattern = r"^(\$|header:[A-Za-z0-9-]+$)"))]
    pub more: Option<String>,
    /// Where the token goes: `query:name` (or just the name), `header:Name`, `body:/json/pointer`.
    #[schemars(length(min = 1, max = 256))]
    pub into: String,
}

/// The answer holds the URL of the next request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NextPagination {
    /// Where the URL is: a JSONPath such as `$.next`, `header:Name`, or `link:next` for the Link header of RFC 8288.
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^(\$|header:[A-Za-z0-9-]+$|link:[A-Za-z0-9-]+$)"))]
    pub url: String,
}

/// Credentials of an HTTP source. Exactly one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Auth {
    /// `Authorization: Bearer <token>`.
    Bearer(BearerAuth),
    /// HTTP basic authentication.
    Basic(BasicAuth),
    /// A key in a header or query parameter.
    ApiKey(ApiKeyAuth),
}

/// `Authorization: Bearer <token>`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BearerAuth {
    /// The secret's key that holds the token.
    pub secret_ref: SecretKeyRef,
}

/// HTTP basic authentication.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BasicAuth {
    /// The secret with the keys `username` and `password`.
    pub secret_ref: SecretRef,
}

/// A key in a header or query parameter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApiKeyAuth {
    /// The secret's key that holds the API key.
    pub secret_ref: SecretKeyRef,
    /// Where it goes: `header:X-Api-Key` or `query:name`.
    #[schemars(length(max = 256), regex(pattern = r"^(header:[A-Za-z0-9-]+|query:.+)$"))]
    pub into: String,
}

/// A key of a Secret of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretKeyRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key within the Secret.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[-._a-zA-Z0-9]+$"))]
    pub key: String,
}

/// A Secret of the same namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretRef {
    /// Name of the Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What the source can bear, in all, shared out to the workers that run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Requests a second, all workers together. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0.01, max = 1_000_000.0))]
    pub requests_per_second: Option<f64>,
    /// Requests at once, all workers together. Default: 4 for each worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub concurrency: Option<i32>,
}

/// How one request is repeated.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RequestRetry {
    /// Tries of one request, the first included. Default: 6.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub max_attempts: Option<i32>,
    /// Wait between the tries; a Retry-After header of up to 60 s is obeyed instead. Default: 500ms, factor 2, at most 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Backoff>,
}

/// Exponential backoff with full jitter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Backoff {
    /// First wait. Default: 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub initial: Option<Duration>,
    /// Each wait is this many times the one before. Default: 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1.0, max = 10.0))]
    pub factor: Option<f64>,
    /// Longest wait. Default: 60s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Duration>,
}

impl HttpSource {
    /// Secrets and keys that a worker needs, each with the field that asks for it.
    pub fn secret_keys(&self) -> Vec<(String, String, String)> {
        self.auth.iter().flat_map(|auth| auth.secret_keys("spec.source.http.auth")).collect()
    }
}

impl Auth {
    /// Secrets and keys that a worker needs, each with the field that asks for it; `field` is where the credentials stand.
    pub fn secret_keys(&self, field: &str) -> Vec<(String, String, String)> {
        let one = |secret: &SecretKeyRef, kind: &str| {
            vec![(secret.name.clone(), secret.key.clone(), format!("{field}.{kind}.secretRef.key"))]
        };
        match self {
            Auth::Bearer(a) => one(&a.secret_ref, "bearer"),
            Auth::ApiKey(a) => one(&a.secret_ref, "apiKey"),
            Auth::Basic(a) => ["username", "password"]
                .into_iter()
                .map(|key| (a.secret_ref.name.clone(), key.to_owned(), format!("{field}.basic.secretRef.name")))
                .collect(),
        }
    }
}
