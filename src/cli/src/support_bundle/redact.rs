//! Takes credentials out of what a person hands over. Two passes: the first goes by the place where a value stands, and remembers
//! what it took; the second goes over every text, by the looks of it, and for everything that the first one took.
//!
//! Rather one value too many than one too few: what is lost here is a detail, what is let through is a credential.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

/// What stands for a value that was taken out.
pub const MASK: &str = "***";
/// Shorter values are not looked for elsewhere: they would match anything.
const SHORTEST: usize = 6;

/// Headers that hold no credentials.
const HARMLESS_HEADERS: [&str; 8] = [
    "accept",
    "accept-language",
    "accept-encoding",
    "content-type",
    "user-agent",
    "cache-control",
    "x-request-id",
    "prefer",
];
/// Environment of ours: never a credential; where they hold much, they are left out all the same.
const OWN_ENVIRONMENT: [&str; 3] = ["COLLECT_", "POD_", "RUST_LOG"];

/// Whether a header, query parameter, variable or member of this name is likely to hold a credential.
pub fn names_a_secret(name: &str) -> bool {
    let plain: String = name.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_lowercase();
    let parts = [
        "password",
        "passwd",
        "passphrase",
        "pwd",
        "secret",
        "token",
        "apikey",
        "accesskey",
        "privatekey",
        "authorization",
        "credential",
        "cookie",
        "bearer",
        "signature",
        "session",
    ];
    let words = ["auth", "xauth", "key", "sig", "pass", "sas", "jwt", "subscriptionkey", "xkey", "appid", "appkey"];
    parts.iter().any(|part| plain.contains(part)) || words.contains(&plain.as_str()) || plain.ends_with("apikey")
}

/// Whether a URL holds a user or password.
pub fn has_userinfo(url: &str) -> bool {
    userinfo(url).is_some()
}

/// Where the user and password of a URL stand.
fn userinfo(url: &str) -> Option<(usize, usize)> {
    let start = url.find("://")? + 3;
    let rest = url.get(start..)?;
    let end = rest
        .find(|c: char| matches!(c, '/' | '?' | '#' | '"' | '\'' | '<' | '>') || c.is_whitespace())
        .unwrap_or(rest.len());
    let at = rest.get(..end)?.rfind('@')?;
    Some((start, start + at))
}

/// Takes credentials out.
#[derive(Debug, Default)]
pub struct Redactor {
    taken: BTreeSet<String>,
}

impl Redactor {
    /// First pass: goes by places. Every object has to be passed before the second pass begins.
    pub fn object(&mut self, object: &mut Value) {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
            if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
                // It repeats the whole object as it was typed.
                annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
                self.named(annotations);
            }
        }
        let own_work = ["collect", "plan", "commit"];
        let work = object.pointer("/metadata/labels/collect.dev~1work").and_then(Value::as_str);
        let is_hook = work.is_some_and(|work| !own_work.contains(&work));
        self.walk("", object, is_hook);
    }

    /// Second pass: every text of an object.
    pub fn texts(&self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.texts(item)),
            Value::Object(members) => {
                // A key may be a text that somebody typed, too.
                for (key, mut value) in std::mem::take(members) {
                    self.texts(&mut value);
                    members.insert(self.text(&key), value);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    /// Second pass: a text.
    pub fn text(&self, text: &str) -> String {
        let mut text = mask_urls(text);
        text = mask_assignments(&text);
        text = mask_words(&text);
        // The longest first: one may be a part of another.
        let mut taken: Vec<&String> = self.taken.iter().collect();
        taken.sort_by_key(|value| std::cmp::Reverse(value.len()));
        for value in taken {
            if text.contains(value.as_str()) {
                text = text.replace(value.as_str(), MASK);
            }
        }
        text
    }

    fn take(&mut self, value: &mut Value) {
        match value {
            Value::String(text) => {
                self.remember(text);
                *text = MASK.to_owned();
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.take(item)),
            Value::Object(members) => members.values_mut().for_each(|member| self.take(member)),
            Value::Null => {}
            other => *other = Value::String(MASK.to_owned()),
        }
    }

    fn remember(&mut self, text: &str) {
        // The credential alone, without the word before it.
        let words = text.split(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | ':' | '='));
        for word in words.chain([text]).filter(|word| !word.starts_with("//")) {
            let value = word.trim().trim_matches('"');
            let is_template = value.contains("{{");
            if value.len() >= SHORTEST && value.len() <= 4096 && !is_template && !is_common(value) {
                self.taken.insert(value.to_owned());
            }
        }
    }

    /// Members of a map whose names tell what they hold.
    fn named(&mut self, members: &mut Map<String, Value>) {
        for (name, value) in members.iter_mut() {
            if names_a_secret(name) {
                self.take(value);
            }
        }
    }

    fn walk(&mut self, key: &str, value: &mut Value, is_hook: bool) {
        match value {
            Value::Object(members) => {
                match key {
                    "headers" => {
                        for (name, header) in members.iter_mut() {
                            if !HARMLESS_HEADERS.contains(&name.to_ascii_lowercase().as_str()) {
                                self.take(header);
                            }
                        }
                    }
                    "query" | "form" | "data" | "stringData" | "labels" => self.named(members),
                    "env" => members.values_mut().for_each(|variable| self.take(variable)),
                    "job" => {
                        if let Some(args) = members.get_mut("args") {
                            self.take(args);
                        }
                        self.take_arguments(members.get_mut("command"));
                    }
                    "body" => {
                        if let Some(text) = members.get_mut("text") {
                            self.take(text);
                        }
                        if let Some(json) = members.get_mut("json") {
                            self.named_deep(json);
                        }
                    }
                    "binaryData" => members.values_mut().for_each(|data| *data = Value::String(MASK.to_owned())),
                    _ => {}
                }
                for (name, inner) in members.iter_mut() {
                    let is_reference =
                        ["Ref", "Name", "File", "Token"].iter().any(|end| name.ends_with(end)) || name == "key";
                    if inner.is_string() && !is_reference && names_a_secret(name) {
                        self.take(inner);
                    } else {
                        self.walk(name, inner, is_hook);
                    }
                }
            }
            Value::Array(items) => {
                if key == "containers" || key == "initContainers" {
                    for container in items.iter_mut().filter_map(Value::as_object_mut) {
                        self.container(container, is_hook);
                    }
                }
                items.iter_mut().for_each(|item| self.walk("", item, is_hook));
            }
            Value::String(text) => {
                // What stands in a URL is looked for elsewhere too.
                if let Some((from, to)) = userinfo(text) {
                    let found = text.get(from..to).unwrap_or_default().to_owned();
                    found.split(':').for_each(|part| self.remember(part));
                }
                for (name, given) in parameters(text) {
                    if names_a_secret(&name) {
                        self.remember(&given);
                    }
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn container(&mut self, container: &mut Map<String, Value>, is_hook: bool) {
        for variable in container.get_mut("env").and_then(Value::as_array_mut).into_iter().flatten() {
            let name = variable.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
            let Some(value) = variable.get_mut("value") else { continue };
            if OWN_ENVIRONMENT.iter().any(|own| name.starts_with(own)) {
                *value = Value::String(MASK.to_owned());
            } else {
                self.take(value);
            }
        }
        if is_hook {
            if let Some(args) = container.get_mut("args") {
                self.take(args);
            }
            self.take_arguments(container.get_mut("command"));
        }
    }

    /// All but the program itself.
    fn take_arguments(&mut self, command: Option<&mut Value>) {
        for argument in command.and_then(Value::as_array_mut).into_iter().flatten().skip(1) {
            self.take(argument);
        }
    }

    fn named_deep(&mut self, value: &mut Value) {
        match value {
            Value::Object(members) => {
                self.named(members);
                members.values_mut().for_each(|member| self.named_deep(member));
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.named_deep(item)),
            _ => {}
        }
    }
}

/// Words that stand in credentials' places without being any.
fn is_common(value: &str) -> bool {
    let lower = value.to_ascii_lowercase();
    let words = [
        "bearer",
        "basic",
        "digest",
        "application/json",
        "default",
        "password",
        "secret",
        "apikey",
        "api-key",
        "token",
    ];
    words.contains(&lower.as_str()) || value == MASK
}

/// Names and values of a query, wherever in a text a URL has one.
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for part in text.split(['?', '&']).skip(1) {
        let end = part
            .find(|c: char| c.is_whitespace() || matches!(c, '&' | '#' | '"' | '\'' | '`' | ')' | '<' | '>' | ','))
            .unwrap_or(part.len());
        if let Some((name, value)) = part.get(..end).unwrap_or_default().split_once('=') {
            found.push((name.to_owned(), value.to_owned()));
        }
    }
    found
}

/// Users and passwords of URLs, and query parameters whose names tell what they hold.
fn mask_urls(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + 3);
        out.push_str(before);
        rest = match userinfo(&format!("://{url}")) {
            Some((from, to)) => {
                out.push_str(MASK);
                url.get(to - from..).unwrap_or_default()
            }
            None => url,
        };
    }
    out.push_str(rest);
    for (name, value) in parameters(&out) {
        if names_a_secret(&name) && !value.is_empty() && !value.contains("{{") {
            out = out.replace(&format!("{name}={value}"), &format!("{name}={MASK}"));
        }
    }
    out
}

/// `Authorization: Bearer abc`, `password=abc`, `"token": "abc"`, wherever they stand in a text.
fn mask_assignments(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find([':', '=']) {
        let (before, after) = rest.split_at(at);
        let mut chars = after.chars();
        let sign = chars.next().map_or(0, char::len_utf8);
        let name_start = before
            .trim_end_matches(['"', '\\'])
            .rfind(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '-' | '_')))
            .map_or(0, |at| at + before.get(at..).and_then(|s| s.chars().next()).map_or(1, char::len_utf8));
        let name = before.get(name_start..).unwrap_or_default().trim_end_matches(['"', '\\']);
        out.push_str(before);
        out.push_str(after.get(..sign).unwrap_or_default());
        rest = after.get(sign..).unwrap_or_default();
        // Field paths such as secretRef.key: and reasons such as SecretMissing: name no value.
        let names = !name.is_empty() && names_a_secret(name) && !name.ends_with("Ref") && !name.ends_with("Name");
        if !names
            || name.starts_with(|c: char| c.is_ascii_uppercase())
                && !name.eq_ignore_ascii_case("authorization")
                && !name.contains('-')
        {
            continue;
        }
        let lead: usize = rest.len() - rest.trim_start_matches([' ', '"', '\\', '\'']).len();
        let value = rest.get(lead..).unwrap_or_default();
        let (scheme, value_start) = match value.split_once(' ') {
            Some((scheme, _)) if matches!(scheme.to_ascii_lowercase().as_str(), "bearer" | "basic" | "token") => {
                (scheme.len() + 1, value)
            }
            _ => (0, value),
        };
        let body = value_start.get(scheme..).unwrap_or_default();
        let end = body
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ';' | '&' | '}' | ')' | '`' | '\\'))
            .unwrap_or(body.len());
        if end == 0 || body.starts_with("{{") || body.starts_with('{') || body.starts_with('[') {
            continue;
        }
        out.push_str(rest.get(..lead + scheme).unwrap_or_default());
        out.push_str(MASK);
        rest = body.get(end..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

/// Words that look like credentials by themselves: JSON web tokens, access keys, private keys, `Bearer abc`.
fn mask_words(text: &str) -> String {
    let mut text = mask_private_keys(text);
    for scheme in ["Bearer ", "bearer ", "Basic "] {
        text = mask_after(&text, scheme);
    }
    let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let mut out = String::new();
    let mut word = String::new();
    for c in text.chars().chain(['\u{0}']) {
        if is_part(c) {
            word.push(c);
            continue;
        }
        out.push_str(if looks_like_a_credential(&word) { MASK } else { &word });
        word.clear();
        if c != '\u{0}' {
            out.push(c);
        }
    }
    out
}

fn mask_after(text: &str, lead: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(lead) {
        let (before, after) = rest.split_at(at + lead.len());
        out.push_str(before);
        let end = after
            .find(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ';' | '\\' | '<' | '`'))
            .unwrap_or(after.len());
        let value = after.get(..end).unwrap_or_default();
        // `Bearer <token>` in a sentence is no token.
        let is_one =
            value.len() >= SHORTEST && value.chars().all(|c| c.is_ascii_alphanumeric() || "-_.+/=~".contains(c));
        out.push_str(if is_one { MASK } else { value });
        rest = after.get(end..).unwrap_or_default();
    }
    out.push_str(rest);
    out
}

fn mask_private_keys(text: &str) -> String {
    let mut out = text.to_owned();
    while let Some(from) = out.find("-----BEGIN ").filter(|from| {
        out.get(*from..).is_some_and(|rest| rest.lines().next().unwrap_or_default().contains("PRIVATE KEY-----"))
    }) {
        let rest = out.get(from..).unwrap_or_default();
        let to = rest
            .find("-----END ")
            .and_then(|end| rest.get(end + 9..)?.find("-----").map(|more| end + 9 + more + 5))
            .unwrap_or(rest.len());
        out.replace_range(from..from + to, MASK);
    }
    out
}

fn looks_like_a_credential(word: &str) -> bool {
    let is_jwt = word.starts_with("eyJ") && word.matches('.').count() == 2 && word.len() > 30;
    let is_access_key = word.len() == 20
        && (word.starts_with("AKIA") || word.starts_with("ASIA"))
        && word.chars().all(|c| c.is_ascii_uppercase() || c.is_ascii_digit());
    let known = ["ghp_", "gho_", "ghs_", "github_pat_", "glpat-", "xoxb-", "xoxp-", "sk-", "sk_live_", "sk_test_"];
    let has_prefix = word.len() >= 20 && known.iter().any(|prefix| word.starts_with(prefix));
    is_jwt || is_access_key || has_prefix
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn whole(mut objects: Vec<Value>) -> String {
        let mut redactor = Redactor::default();
        objects.iter_mut().for_each(|object| redactor.object(object));
        objects.iter_mut().for_each(|object| redactor.texts(object));
        serde_json::to_string_pretty(&objects).unwrap()
    }

    #[test]
    fn names_tell_what_they_hold() {
        for name in [
            "Authorization",
            "X-Api-Key",
            "api_key",
            "access_token",
            "password",
            "key",
            "sig",
            "Cookie",
            "AWS_SECRET_ACCESS_KEY",
        ] {
            assert!(names_a_secret(name), "{name}");
        }
        for name in ["Accept", "page", "lang", "author", "keyword", "passage", "design", "records"] {
            assert!(!names_a_secret(name), "{name}");
        }
    }

    /// Every place of a CollectTask where a person can type a text, each with a credential of its own; and where they come back.
    #[test]
    fn nothing_that_was_typed_as_a_credential_comes_through() {
        let body = |n: u8| {
            json!({
                "json": {"query": "{ a }", "variables": {"apiToken": format!("planted{n}json")}},
                "form": {"client_secret": format!("planted{n}form")},
                "text": format!("user=me planted{n}text"),
            })
        };
        let task = json!({
            "kind": "CollectTask",
            "metadata": {
                "name": "villages",
                "annotations": {
                    "kubectl.kubernetes.io/last-applied-configuration": "{\"planted0applied\":1}",
                    "example.org/api-token": "planted0annotation",
                },
                "managedFields": [{"manager": "planted0manager"}],
            },
            "spec": {
                "source": {"http": {
                    "url": "https://me:planted1userinfo@x.example/api",
                    "path": "/d/{{ district }}?api_key=planted1path&page=1",
                    "headers": {"Accept": "application/json", "X-Whatever": "planted1header", "Authorization": "Bearer planted1bearer"},
                    "query": {"token": "planted1query", "lang": "zh"},
                    "body": body(1),
                    "auth": {"bearer": {"secretRef": {"name": "registry", "key": "token"}}},
                    "allowOrigins": ["https://u:planted1origin@y.example"],
                }},
                "decompose": {"levels": [{"name": "district", "discover": {"path": "/ds?access_token=planted1discover", "value": "$.code"}}]},
                "validation": {"total": {"path": "/summary?sig=planted1total", "value": "$.n"}},
                "sink": {"objectStore": {"url": "s3://lake/x", "endpoint": "http://k:planted1endpoint@minio:9000", "secretRef": {"name": "lake"}}},
                "hooks": {
                    "beforeStart": {"run": {"http": {"url": "https://h.example/x?token=planted2url", "headers": {"X-Hook": "planted2header"}, "body": body(2)}}},
                    "afterFailure": {"run": {"job": {
                        "image": "example.org/notify:1", "command": ["notify", "--to", "planted2command"],
                        "args": ["-u", "me:planted2args"], "env": {"CHAT": "planted2env"}, "secretRef": {"name": "chat"},
                    }}},
                },
            },
            "status": {"message": "GET https://x.example/d?page=1 answered 401: token planted1query is not valid (planted1header)"},
        });
        let pod = json!({
            "kind": "Pod",
            "metadata": {"name": "p", "labels": {"collect.dev/work": "afterFailure"}},
            "spec": {"containers": [{
                "name": "worker", "command": ["notify", "planted3command"], "args": ["planted3args"],
                "env": [{"name": "COLLECT_ASSIGNMENT", "value": "{\"headers\":{\"X-Whatever\":\"planted1header\"}}"}, {"name": "CHAT", "value": "planted2env"}],
            }]},
        });
        let event = json!({"kind": "Event", "message": "the hook failed: planted2args, and Authorization: Bearer planted4event"});
        let text = whole(vec![task, pod, event]);
        let left: Vec<&str> = text.lines().filter(|line| line.contains("planted")).collect();
        assert!(left.is_empty(), "{left:#?}");
        for kept in [
            "application/json",
            "\"token\"",
            "registry",
            "lang",
            "\"zh\"",
            "s3://lake/x",
            "x.example/api",
            "{{ district }}",
            "example.org/notify:1",
            "page=1",
            "\"notify\"",
            "answered 401",
        ] {
            assert!(text.contains(kept), "{kept} is lost:\n{text}");
        }
    }

    #[test]
    fn texts_lose_what_looks_like_a_credential() {
        let redactor = Redactor::default();
        for (text, expected) in [
            (
                "GET https://a:b@x.example/p?q=1&api_key=abc&z=2 failed",
                "GET https://***@x.example/p?q=1&api_key=***&z=2 failed",
            ),
            ("authorization: Bearer abc.def-123 sent", "authorization: Bearer *** sent"),
            ("{\"password\": \"hunter2\", \"user\": \"me\"}", "{\"password\": \"***\", \"user\": \"me\"}"),
            ("with AKIAIOSFODNN7EXAMPLE there", "with *** there"),
            ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.abc", "***"),
            ("-----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY-----\nrest", "***\nrest"),
            ("secret `registry` has no key `token`; add it", "secret `registry` has no key `token`; add it"),
            ("SecretMissing: secret `a` has no key `b`", "SecretMissing: secret `a` has no key `b`"),
            ("change spec.source.http.auth.bearer.secretRef.key", "change spec.source.http.auth.bearer.secretRef.key"),
            ("`Authorization: Bearer <token>`.", "`Authorization: Bearer ***`."),
            ("深圳市 https://u:p@广东.example/x", "深圳市 https://***@广东.example/x"),
        ] {
            assert_eq!(redactor.text(text), expected);
        }
    }

    #[test]
    fn what_was_taken_is_not_found_anywhere_else() {
        let mut redactor = Redactor::default();
        let mut task = json!({"spec": {"source": {"http": {"headers": {"X-A": "first-second", "X-B": "first"}}}}});
        redactor.object(&mut task);
        assert_eq!(
            redactor.text("it said first-second and first"),
            "it said *** and first",
            "short words are left alone"
        );
        let mut message = json!({"log": "value first-second", "first-second": 1});
        redactor.texts(&mut message);
        assert_eq!(message, json!({"log": "value ***", "***": 1}));
    }
}
