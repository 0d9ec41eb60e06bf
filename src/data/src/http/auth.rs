//! Credentials, and the origins that may see them. They are added when a request is sent and stand nowhere else (I20).

use ::http::{HeaderMap, HeaderName, HeaderValue, header};
use base64::{Engine, engine::general_purpose::STANDARD};
use collect_api::source::{Auth, HttpSource};
use url::{Origin, Url};

use crate::http::HttpError;
use crate::http::target::{remove_query, set_query};
use crate::secrets::{Secret, SecretError, Secrets};

/// Origins that requests and credentials may go to: that of `url` and those of `allowOrigins`.
#[derive(Clone, Debug)]
pub struct Origins {
    allowed: Vec<Origin>,
    /// Query parameter that holds the API key. Sources repeat it in their links, and links go into checkpoints.
    key_param: Option<String>,
}

impl Origins {
    /// The origins of a source.
    ///
    /// # Errors
    /// When a URL is malformed.
    pub fn of(source: &HttpSource) -> Result<Self, HttpError> {
        let origin = |text: &String| match Url::parse(text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") => Ok(url.origin()),
            _ => Err(HttpError::BadUrl { url: text.clone() }),
        };
        let allowed =
            std::iter::once(&source.url).chain(&source.allow_origins).map(origin).collect::<Result<_, _>>()?;
        let key_param = match &source.auth {
            Some(Auth::ApiKey(key)) => key.into.strip_prefix("query:").map(str::to_owned),
            Some(Auth::Bearer(_) | Auth::Basic(_)) | None => None,
        };
        Ok(Self { allowed, key_param })
    }

    /// Whether requests may go there.
    pub fn allow(&self, url: &Url) -> bool {
        self.allowed.contains(&url.origin())
    }

    /// Resolves a URL that the source gave and checks where it leads.
    ///
    /// # Errors
    /// When it is malformed or leads elsewhere.
    pub fn follow(&self, base: &Url, reference: &str) -> Result<Url, HttpError> {
        let mut url = base.join(reference).map_err(|_| HttpError::BadUrl { url: path_of(reference).to_owned() })?;
        url.set_fragment(None);
        if let Some(name) = &self.key_param {
            remove_query(&mut url, name);
        }
        let without_credentials = url.username().is_empty() && url.password().is_none();
        if without_credentials && self.allow(&url) {
            return Ok(url);
        }
        Err(HttpError::ForeignOrigin { origin: url.origin().ascii_serialization() })
    }
}

/// A URL's text up to its query.
fn path_of(text: &str) -> &str {
    text.split(['?', '#']).next().unwrap_or_default()
}

/// Credentials, read from files.
#[derive(Clone, Debug)]
pub(crate) enum Credentials {
    None,
    Header(HeaderName, HeaderValue, Vec<Secret>),
    Query(String, Secret),
}

impl Credentials {
    /// The credentials that `auth` names; `field` is its place, for messages.
    pub(crate) fn read(auth: Option<&Auth>, field: &str, secrets: &Secrets) -> Result<Self, SecretError> {
        let mut values = Vec::new();
        for (name, key, field) in auth.iter().flat_map(|auth| auth.secret_keys(field)) {
            values.push((secrets.read(&name, &key, &field)?, name, key));
        }
        let header = |name: HeaderName, text: String| match HeaderValue::from_str(&text) {
            Ok(mut value) => {
                value.set_sensitive(true);
                let secrets = values.iter().map(|(secret, ..)| secret.clone()).chain([Secret::from(text)]).collect();
                Ok(Self::Header(name, value, secrets))
            }
            Err(_) => {
                let (name, key) = values.first().map(|(_, name, key)| (name.clone(), key.clone())).unwrap_or_default();
                Err(SecretError::Unreadable { name, key, cause: "it holds characters that no header may have".into() })
            }
        };
        match (auth, values.as_slice()) {
            (None, _) => Ok(Self::None),
            (Some(Auth::Bearer(_)), [(token, ..), ..]) => {
                header(header::AUTHORIZATION, format!("Bearer {}", token.expose()))
            }
            (Some(Auth::Basic(_)), [(user, ..), (password, ..), ..]) => {
                let pair = STANDARD.encode(format!("{}:{}", user.expose(), password.expose()));
                header(header::AUTHORIZATION, format!("Basic {pair}"))
            }
            (Some(Auth::ApiKey(auth)), [(key, ..), ..]) => match auth.into.split_once(':') {
                Some(("query", name)) => Ok(Self::Query(name.to_owned(), key.clone())),
                Some((_, name)) => match name.parse() {
                    Ok(name) => header(name, key.expose().to_owned()),
                    Err(_) => Ok(Self::None),
                },
                None => Ok(Self::None),
            },
            (Some(_), _) => Ok(Self::None),
        }
    }

    /// Adds them to a request.
    pub(crate) fn apply(&self, url: &mut Url, headers: &mut HeaderMap) {
        match self {
            Self::None => {}
            Self::Header(name, value, _) => {
                headers.insert(name, value.clone());
            }
            Self::Query(name, key) => set_query(url, name, key.expose()),
        }
    }

    /// The values that must never show.
    pub(crate) fn secrets(&self) -> Vec<&str> {
        match self {
            Self::None => Vec::new(),
            Self::Header(_, _, secrets) => secrets.iter().map(Secret::expose).collect(),
            Self::Query(_, key) => vec![key.expose()],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(json: serde_json::Value) -> HttpSource {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn only_allowed_origins_are_followed() {
        let source =
            source(serde_json::json!({"url": "https://x.example/api", "allowOrigins": ["https://cdn.example:8443"]}));
        let origins = Origins::of(&source).unwrap();
        let base: Url = "https://x.example/api/items?page=1".parse().unwrap();
        for (reference, wanted) in [
            ("?page=2", Some("https://x.example/api/items?page=2")),
            ("/other", Some("https://x.example/other")),
            ("https://cdn.example:8443/p#frag", Some("https://cdn.example:8443/p")),
            ("https://cdn.example/p", None),
            ("http://x.example/api", None),
            ("//evil.example/", None),
            ("https://user:pw@x.example/api", None),
            ("file:///etc/passwd", None),
        ] {
            assert_eq!(origins.follow(&base, reference).ok().map(String::from).as_deref(), wanted, "{reference}");
        }
    }

    #[test]
    fn a_link_that_repeats_the_api_key_is_followed_without_it() {
        let key = serde_json::json!({"apiKey": {"secretRef": {"name": "s", "key": "k"}, "into": "query:key"}});
        let origins = Origins::of(&source(serde_json::json!({"url": "https://x.example/api", "auth": key}))).unwrap();
        let base: Url = "https://x.example/api".parse().unwrap();
        assert_eq!(origins.follow(&base, "?page=2&key=s3cret").unwrap().as_str(), "https://x.example/api?page=2");
        assert_eq!(origins.follow(&base, "?key=s3cret").unwrap().as_str(), "https://x.example/api");
        assert_eq!(origins.follow(&base, "?a=%2F").unwrap().as_str(), "https://x.example/api?a=%2F");
    }

    #[test]
    fn credentials_come_from_files_and_go_where_auth_says() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("s")).unwrap();
        for (key, value) in [("token", "tok"), ("username", "u"), ("password", "p")] {
            std::fs::write(dir.path().join("s").join(key), value).unwrap();
        }
        let secrets = Secrets::below(dir.path());
        let sent = |auth: serde_json::Value| {
            let auth: Auth = serde_json::from_value(auth).unwrap();
            let credentials = Credentials::read(Some(&auth), "f", &secrets).unwrap();
            let (mut url, mut headers) = ("http://x/api?a=1".parse::<Url>().unwrap(), HeaderMap::new());
            credentials.apply(&mut url, &mut headers);
            let header = headers.iter().next().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap()));
            assert!(!format!("{credentials:?}").contains("tok"), "{credentials:?}");
            (url.query().unwrap().to_owned(), header.unwrap_or_default())
        };
        let key = serde_json::json!({"name": "s", "key": "token"});
        assert_eq!(
            sent(serde_json::json!({"bearer": {"secretRef": key}})),
            ("a=1".into(), "authorization: Bearer tok".into())
        );
        assert_eq!(
            sent(serde_json::json!({"basic": {"secretRef": {"name": "s"}}})),
            ("a=1".into(), "authorization: Basic dTpw".into())
        );
        assert_eq!(
            sent(serde_json::json!({"apiKey": {"secretRef": key, "into": "header:X-Key"}})),
            ("a=1".into(), "x-key: tok".into())
        );
        assert_eq!(
            sent(serde_json::json!({"apiKey": {"secretRef": key, "into": "query:k"}})),
            ("a=1&k=tok".into(), String::new())
        );
    }
}
