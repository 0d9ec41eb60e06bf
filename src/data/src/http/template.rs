//! Templates over level values and range bounds, or over the event of a hook. An undefined variable is an error, never an empty text.

use std::collections::{BTreeMap, BTreeSet};

use collect_api::plan::KeySpan;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, value::ValueKind};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// RFC 3986 unreserved characters stand for themselves.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// What a template may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Variables {
    /// Level values by name.
    pub values: BTreeMap<String, String>,
    /// Bounds of a range slice, as `range.from` and `range.to`.
    pub range: Option<KeySpan>,
}

impl Variables {
    /// Variables of these level values.
    pub fn of(values: BTreeMap<String, String>) -> Self {
        Self { values, range: None }
    }

    fn context(&self) -> Value {
        let mut context: BTreeMap<&str, Value> =
            self.values.iter().map(|(name, value)| (name.as_str(), Value::from(value.as_str()))).collect();
        if let Some(range) = &self.range {
            let bounds = [("from", Value::from(range.from.as_str())), ("to", Value::from(range.to.as_str()))];
            context.insert("range", Value::from_pairs(bounds));
        }
        Value::from_pairs(context)
    }

    fn names(&self) -> String {
        let mut names: Vec<&str> = self.values.keys().map(String::as_str).collect();
        if self.range.is_some() {
            names.extend(["range.from", "range.to"]);
        }
        if names.is_empty() { "none".to_owned() } else { names.join(", ") }
    }
}

/// How a value is written where a template puts it. The template's own text is never changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Escape {
    /// As it is: headers, query and form values (which are encoded as a whole afterwards), strings of a JSON body.
    Plain,
    /// Percent-encoded: paths.
    Percent,
    /// As the inside of a JSON string: text bodies that are JSON.
    Json,
}

fn advice(field: &str) -> &'static str {
    if field.starts_with("spec.hooks.") {
        return "use one of these";
    }
    "name a level of spec.decompose.levels, or range.from and range.to with shards.range"
}

/// A template that can't be rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// It uses a variable that is not there.
    #[error(
        "{field} `{template}` uses a variable that is not known here (known: {known}); {advice}",
        advice = advice(field)
    )]
    Undefined {
        /// Field of the task.
        field: String,
        /// The template.
        template: String,
        /// Variables that are known.
        known: String,
    },
    /// A value can't be part of a path.
    #[error(
        "{field} `{template}` puts the value `{value}` into a path, where it would mean another folder; leave that value out of the level"
    )]
    DotSegment {
        /// Field of the task.
        field: String,
        /// The template.
        template: String,
        /// The value.
        value: String,
    },
    /// It is no template.
    #[error("{field} `{template}` is no valid template: {cause}; write values as {{{{ name }}}}")]
    Invalid {
        /// Field of the task.
        field: String,
        /// The template.
        template: String,
        /// What is wrong with it.
        cause: String,
    },
}

impl TemplateError {
    /// Short word.
    pub fn category(&self) -> &'static str {
        "TemplateInvalid"
    }
}

/// Renders a template. `field` names its place for the error message.
///
/// # Errors
/// When the template is malformed or uses an unknown variable.
pub fn render(field: &str, template: &str, escape: Escape, variables: &Variables) -> Result<String, TemplateError> {
    if !template.contains('{') {
        return Ok(template.to_owned());
    }
    environment(escape).render_str(template, variables.context()).map_err(|error| {
        let (field, template) = (field.to_owned(), template.to_owned());
        match error.kind() {
            ErrorKind::UndefinedError => TemplateError::Undefined { field, template, known: variables.names() },
            ErrorKind::BadEscape => {
                TemplateError::DotSegment { field, template, value: error.detail().unwrap_or_default().to_owned() }
            }
            _ => TemplateError::Invalid { field, template, cause: error.to_string() },
        }
    })
}

/// Names of the variables that a template uses.
pub fn uses(template: &str) -> BTreeSet<String> {
    let env = Environment::new();
    env.template_from_str(template).map(|t| t.undeclared_variables(false).into_iter().collect()).unwrap_or_default()
}

fn environment(escape: Escape) -> Environment<'static> {
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_formatter(move |out, _, value| {
        if value.kind() == ValueKind::Undefined {
            return Err(ErrorKind::UndefinedError.into());
        }
        let text = value.to_string();
        let text = match escape {
            Escape::Plain => text,
            Escape::Percent if text == "." || text == ".." => {
                return Err(minijinja::Error::new(ErrorKind::BadEscape, text));
            }
            Escape::Percent => utf8_percent_encode(&text, SEGMENT).to_string(),
            Escape::Json => {
                let quoted = serde_json::Value::String(text).to_string();
                quoted.get(1..quoted.len() - 1).unwrap_or_default().to_owned()
            }
        };
        out.write_str(&text).map_err(minijinja::Error::from)
    });
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables() -> Variables {
        Variables {
            values: BTreeMap::from([
                ("city".into(), "a b/ü\"".into()),
                ("n".into(), "44".into()),
                ("up".into(), "..".into()),
            ]),
            range: Some(KeySpan { from: "10".into(), to: "20".into() }),
        }
    }

    #[test]
    fn values_are_encoded_for_where_they_stand() {
        let cases = [
            ("/cities/{{ city }}/x y", Escape::Percent, "/cities/a%20b%2F%C3%BC%22/x y"),
            ("{{ city }}", Escape::Plain, "a b/ü\""),
            (r#"{"c":"{{ city }}","n":{{ n }}}"#, Escape::Json, r#"{"c":"a b/ü\"","n":44}"#),
            ("[{{ range.from }},{{ range.to }})", Escape::Plain, "[10,20)"),
            ("no variable", Escape::Percent, "no variable"),
        ];
        for (template, escape, wanted) in cases {
            let wanted = if escape == Escape::Json { wanted.replace("ü\"\"", "ü\\\"\"") } else { wanted.to_owned() };
            assert_eq!(render("f", template, escape, &variables()).unwrap(), wanted);
        }
    }

    #[test]
    fn an_undefined_variable_is_an_error_that_names_the_known_ones() {
        for template in ["/{{ distric }}", "{{ range.form }}", "{% if distric %}x{% endif %}"] {
            let error = render("spec.source.http.path", template, Escape::Percent, &variables()).unwrap_err();
            assert!(error.to_string().contains("known: city, n, up, range.from, range.to"), "{error}");
        }
        let error = render("f", "{{ range.from }}", Escape::Plain, &Variables::default()).unwrap_err();
        assert!(matches!(error, TemplateError::Undefined { known, .. } if known == "none"));
    }

    #[test]
    fn a_value_never_leaves_its_path_segment() {
        let error = render("f", "/a/{{ up }}/b", Escape::Percent, &variables()).unwrap_err();
        assert!(matches!(error, TemplateError::DotSegment { value, .. } if value == ".."));
    }

    #[test]
    fn a_malformed_template_is_an_error() {
        let error = render("f", "/{{ city", Escape::Percent, &variables()).unwrap_err();
        assert!(matches!(error, TemplateError::Invalid { .. }), "{error}");
    }

    #[test]
    fn used_variables_are_known_before_rendering() {
        assert_eq!(uses("/{{ a }}/{{ range.from }}"), BTreeSet::from(["a".to_owned(), "range".to_owned()]));
    }
}
