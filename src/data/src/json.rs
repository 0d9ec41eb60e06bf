//! JSON by its exact text: members and elements are slices of the answer, never copies.

use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

/// What the text of a value says that it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// null
    Null,
    /// true or false
    Boolean,
    /// A number.
    Number,
    /// A string.
    String,
    /// An array.
    Array,
    /// An object.
    Object,
}

/// Kind of a value.
pub fn kind(raw: &RawValue) -> Kind {
    match raw.get().as_bytes().first() {
        Some(b'{') => Kind::Object,
        Some(b'[') => Kind::Array,
        Some(b'"') => Kind::String,
        Some(b't' | b'f') => Kind::Boolean,
        Some(b'n') => Kind::Null,
        _ => Kind::Number,
    }
}

/// The members of an object with these names, in the order of `names`; of members with one name the last counts, as in
/// most readers. `None` if it is no object.
pub fn members<'a>(raw: &'a RawValue, names: &[&str]) -> Option<Vec<Option<&'a RawValue>>> {
    struct Wanted<'n>(&'n [&'n str]);
    impl<'de> Visitor<'de> for Wanted<'_> {
        type Value = Vec<Option<&'de RawValue>>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut found = vec![None; self.0.len()];
            while let Some(place) = map.next_key_seed(Name(self.0))? {
                match place.and_then(|place| found.get_mut(place)) {
                    Some(slot) => *slot = Some(map.next_value()?),
                    None => {
                        map.next_value::<IgnoredAny>()?;
                    }
                }
            }
            Ok(found)
        }
    }
    serde_json::Deserializer::from_str(raw.get()).deserialize_map(Wanted(names)).ok()
}

/// A member of an object; `None` if it is no object or has no such member.
pub fn member<'a>(raw: &'a RawValue, name: &str) -> Option<&'a RawValue> {
    members(raw, &[name])?.into_iter().next().flatten()
}

/// Every member of an object in order; `None` if it is no object.
pub fn entries(raw: &RawValue) -> Option<Vec<(String, &RawValue)>> {
    struct All;
    impl<'de> Visitor<'de> for All {
        type Value = Vec<(String, &'de RawValue)>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut all = Vec::new();
            while let Some(entry) = map.next_entry()? {
                all.push(entry);
            }
            Ok(all)
        }
    }
    serde_json::Deserializer::from_str(raw.get()).deserialize_map(All).ok()
}

/// The elements of an array; `None` if it is no array.
pub fn elements(raw: &RawValue) -> Option<Vec<&RawValue>> {
    serde_json::from_str(raw.get()).ok()
}

/// An element of an array.
pub fn element(raw: &RawValue, place: usize) -> Option<&RawValue> {
    struct Nth(usize);
    impl<'de> Visitor<'de> for Nth {
        type Value = Option<&'de RawValue>;
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("an array")
        }
        fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
            for _ in 0..self.0 {
                if array.next_element::<IgnoredAny>()?.is_none() {
                    return Ok(None);
                }
            }
            let found = array.next_element()?;
            while array.next_element::<IgnoredAny>()?.is_some() {}
            Ok(found)
        }
    }
    serde_json::Deserializer::from_str(raw.get()).deserialize_seq(Nth(place)).ok()?
}

/// The text of a scalar: a string without quotes and escapes, a number or boolean as written. `None` for null, an
/// object or an array.
pub fn scalar(raw: &RawValue) -> Option<String> {
    match kind(raw) {
        Kind::String => serde_json::from_str(raw.get()).ok(),
        Kind::Number | Kind::Boolean => Some(raw.get().to_owned()),
        Kind::Null | Kind::Object | Kind::Array => None,
    }
}

/// Where arrays are that can be reached through objects alone, as JSONPaths with the arrays themselves.
pub fn arrays(raw: &RawValue) -> Vec<(String, &RawValue)> {
    fn walk<'a>(raw: &'a RawValue, path: &str, depth: usize, found: &mut Vec<(String, &'a RawValue)>) {
        match kind(raw) {
            Kind::Array => found.push((path.to_owned(), raw)),
            Kind::Object if depth < 8 => {
                for (name, value) in entries(raw).unwrap_or_default() {
                    walk(
                        value,
                        &format!("{path}['{}']", name.replace('\\', "\\\\").replace('\'', "\\'")),
                        depth + 1,
                        found,
                    );
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(raw, "$", 0, &mut found);
    found
}

/// Tells the place of a member's name among the wanted ones, without copying it.
struct Name<'n>(&'n [&'n str]);

impl<'de> DeserializeSeed<'de> for Name<'_> {
    type Value = Option<usize>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Name<'_> {
    type Value = Option<usize>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }
    fn visit_str<E: de::Error>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().position(|wanted| *wanted == name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> &RawValue {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn members_keep_their_exact_text() {
        let doc = raw(r#"{"a": 1.50, "b\u0063": {"x": [1,  2]}, "a": 1.500}"#);
        let found = members(doc, &["bc", "a", "none"]).unwrap();
        assert_eq!(
            found.iter().map(|m| m.map(RawValue::get)).collect::<Vec<_>>(),
            [Some(r#"{"x": [1,  2]}"#), Some("1.500"), None]
        );
        assert!(members(raw("[1]"), &["a"]).is_none());
    }

    #[test]
    fn elements_are_found_by_place() {
        let doc = raw(r#"[1, {"a":2}, "x"]"#);
        assert_eq!(element(doc, 1).map(RawValue::get), Some(r#"{"a":2}"#));
        assert!(element(doc, 3).is_none());
        assert!(element(raw("{}"), 0).is_none());
        assert_eq!(elements(doc).unwrap().len(), 3);
    }

    #[test]
    fn arrays_are_found_through_objects_only() {
        let doc = raw(r#"{"data": {"items": [[1], [2]]}, "meta": {"tags": []}, "n": 1}"#);
        let paths: Vec<String> = arrays(doc).into_iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["$['data']['items']", "$['meta']['tags']"]);
        assert_eq!(arrays(raw("[1]")).len(), 1);
    }

    #[test]
    fn scalars_become_text() {
        let texts: Vec<_> = [r#""a\n""#, "44", "1e3", "true", "null", "{}"].map(|text| scalar(raw(text))).into();
        assert_eq!(texts, [Some("a\n".into()), Some("44".into()), Some("1e3".into()), Some("true".into()), None, None]);
    }
}
