//! Headers and body of a declaration, rendered. `field` names the declaration's place for error messages.

use std::collections::BTreeMap;

use ::http::{HeaderMap, HeaderName, HeaderValue, header};
use collect_api::source;
use serde_json::Value;

use crate::{
    Error,
    http::{
        Body, HttpError, Variables,
        template::{Escape, TemplateError, render},
    },
};

/// The headers of a declaration.
///
/// # Errors
/// When a template can't be rendered or makes no header.
pub(crate) fn headers(
    declared: &BTreeMap<String, String>,
    field: &str,
    variables: &Variables,
) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    for (name, template) in declared {
        let field = format!("{field}.{name}");
        let text = render(&field, template, Escape::Plain, variables)?;
        let pair = name.parse::<HeaderName>().ok().zip(HeaderValue::from_str(&text).ok());
        let (name, value) = pair.ok_or(HttpError::BadHeader { field })?;
        headers.insert(name, value);
    }
    Ok(headers)
}

/// The body of a declaration; a text is JSON if the headers say so.
///
/// # Errors
/// When a template can't be rendered.
pub(crate) fn body(
    declared: Option<&source::Body>,
    field: &str,
    headers: &HeaderMap,
    variables: &Variables,
) -> Result<Body, TemplateError> {
    let Some(body) = declared else { return Ok(Body::None) };
    if let Some(value) = &body.json {
        return json(value, &format!("{field}.json"), variables).map(Body::Json);
    }
    if let Some(text) = &body.text {
        let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let escape = if kind.contains("json") { Escape::Json } else { Escape::Plain };
        return render(field, text, escape, variables).map(Body::Text);
    }
    let fields = body
        .form
        .iter()
        .map(|(name, template)| render(field, template, Escape::Plain, variables).map(|text| (name.clone(), text)));
    fields.collect::<Result<_, _>>().map(Body::Form)
}

/// A JSON value whose strings are templates.
fn json(value: &Value, field: &str, variables: &Variables) -> Result<Value, TemplateError> {
    Ok(match value {
        Value::String(template) => Value::String(render(field, template, Escape::Plain, variables)?),
        Value::Array(array) => {
            Value::Array(array.iter().map(|value| json(value, field, variables)).collect::<Result<_, _>>()?)
        }
        Value::Object(object) => Value::Object(
            object
                .iter()
                .map(|(name, value)| Ok((name.clone(), json(value, field, variables)?)))
                .collect::<Result<_, TemplateError>>()?,
        ),
        other => other.clone(),
    })
}
