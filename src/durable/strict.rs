//! Reads JSON and refuses fields that the type does not have. Serde ignores them: a build that stores what a newer one wrote
//! would drop them in silence. Wraps a deserializer and fails where serde would skip a value, so it holds for every type,
//! those included that are added later. Flattened and untagged types hide their fields from it: a stored type has none.

use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, MapAccess, SeqAccess, VariantAccess, Visitor,
};
use std::cell::RefCell;
use std::fmt;

/// Why a document is not read.
#[derive(Debug, thiserror::Error)]
pub(super) enum StrictError {
    /// A name that this build does not have: of a field, or of a variant.
    #[error("{0}")]
    Unknown(String),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// Reads a document whose every field the type must have.
pub(super) fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StrictError> {
    let unknown = RefCell::new(None);
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let place = Place { object: "document", field: "", unknown: &unknown };
    let read = T::deserialize(Strict { inner: &mut json, place }).and_then(|value| json.end().map(|()| value));
    read.map_err(|error| match unknown.take() {
        Some(field) => StrictError::Unknown(field),
        None if error.to_string().starts_with("unknown variant") => StrictError::Unknown(error.to_string()),
        None => StrictError::Json(error),
    })
}

/// Where in the document a value is.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// Type of the innermost object.
    object: &'static str,
    /// Its field.
    field: &'a str,
    /// Receives the first unknown field.
    unknown: &'a RefCell<Option<String>>,
}

/// One of serde's traits, with the place that it reads.
struct Strict<'a, T> {
    inner: T,
    place: Place<'a>,
}

impl<'a, T> Strict<'a, T> {
    fn new(inner: T, place: Place<'a>) -> Self {
        Self { inner, place }
    }
}

/// Calls a macro with the methods that both wrappers of a deserializer pass on alike.
macro_rules! common_methods {
    ($pass_on:ident) => {
        $pass_on! {
            deserialize_any();
            deserialize_bool();
            deserialize_i8();
            deserialize_i16();
            deserialize_i32();
            deserialize_i64();
            deserialize_i128();
            deserialize_u8();
            deserialize_u16();
            deserialize_u32();
            deserialize_u64();
            deserialize_u128();
            deserialize_f32();
            deserialize_f64();
            deserialize_char();
            deserialize_str();
            deserialize_string();
            deserialize_bytes();
            deserialize_byte_buf();
            deserialize_option();
            deserialize_unit();
            deserialize_unit_struct(name: &'static str);
            deserialize_newtype_struct(name: &'static str);
            deserialize_seq();
            deserialize_tuple(len: usize);
            deserialize_tuple_struct(name: &'static str, len: usize);
            deserialize_map();
            deserialize_enum(name: &'static str, variants: &'static [&'static str]);
        }
    };
}

macro_rules! deserialize_as_inner {
    ($($method:ident($($argument:ident: $type:ty),*);)+) => {$(
        fn $method<V: Visitor<'de>>(self, $($argument: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method($($argument,)* Strict::new(visitor, self.place))
        }
    )+};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Strict<'_, D> {
    type Error = D::Error;

    common_methods!(deserialize_as_inner);
    deserialize_as_inner! {
        deserialize_identifier();
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        let place = Place { object: name, ..self.place };
        self.inner.deserialize_struct(name, fields, Strict::new(visitor, place))
    }

    /// Serde skips a value by this.
    fn deserialize_ignored_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, D::Error> {
        let Place { object, field, unknown } = self.place;
        let text = format!("unknown field `{field}` in {object}");
        *unknown.borrow_mut() = Some(text.clone());
        Err(D::Error::custom(text))
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

macro_rules! visit_as_inner {
    ($($method:ident($type:ty);)+) => {$(
        fn $method<E: serde::de::Error>(self, value: $type) -> Result<V::Value, E> {
            self.inner.$method(value)
        }
    )+};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Strict<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.expecting(f)
    }

    visit_as_inner! {
        visit_bool(bool);
        visit_i64(i64);
        visit_i128(i128);
        visit_u64(u64);
        visit_u128(u128);
        visit_f64(f64);
        visit_str(&str);
        visit_borrowed_str(&'de str);
        visit_string(String);
        visit_bytes(&[u8]);
        visit_borrowed_bytes(&'de [u8]);
        visit_byte_buf(Vec<u8>);
    }

    fn visit_none<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }
    fn visit_unit<E: serde::de::Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }
    fn visit_some<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(Strict::new(value, self.place))
    }
    fn visit_newtype_struct<D: Deserializer<'de>>(self, value: D) -> Result<V::Value, D::Error> {
        self.inner.visit_newtype_struct(Strict::new(value, self.place))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<V::Value, A::Error> {
        self.inner.visit_seq(Strict::new(seq, self.place))
    }
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(StrictMap { inner: map, place: self.place, key: String::new() })
    }
    fn visit_enum<A: EnumAccess<'de>>(self, value: A) -> Result<V::Value, A::Error> {
        self.inner.visit_enum(Strict::new(value, self.place))
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Strict<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, value: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Strict::new(value, self.place))
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Strict<'_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.inner.next_element_seed(Strict::new(seed, self.place))
    }
    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

/// The fields of an object, with the name of the last one.
struct StrictMap<'a, A> {
    inner: A,
    place: Place<'a>,
    key: String,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for StrictMap<'_, A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.inner.next_key_seed(FieldName { inner: seed, name: &mut self.key })
    }
    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        let place = Place { object: self.place.object, field: &self.key, unknown: self.place.unknown };
        self.inner.next_value_seed(Strict { inner: seed, place })
    }
    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

/// Notes the name of a field. Keys of maps are not fields: they are read as they are.
struct FieldName<'k, T> {
    inner: T,
    name: &'k mut String,
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for FieldName<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, key: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(FieldName { inner: key, name: self.name })
    }
}

macro_rules! key_as_inner {
    ($($method:ident($($argument:ident: $type:ty),*);)+) => {$(
        fn $method<V: Visitor<'de>>(self, $($argument: $type,)* visitor: V) -> Result<V::Value, D::Error> {
            self.inner.$method($($argument,)* visitor)
        }
    )+};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for FieldName<'_, D> {
    type Error = D::Error;

    common_methods!(key_as_inner);
    key_as_inner! {
        deserialize_struct(name: &'static str, fields: &'static [&'static str]);
        deserialize_ignored_any();
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        *self.name = <String as serde::Deserialize>::deserialize(self.inner)?;
        visitor.visit_str(self.name)
    }

    fn is_human_readable(&self) -> bool {
        self.inner.is_human_readable()
    }
}

impl<'a, 'de, A: EnumAccess<'de>> EnumAccess<'de> for Strict<'a, A> {
    type Error = A::Error;
    type Variant = Strict<'a, A::Variant>;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self::Variant), A::Error> {
        let (name, content) = self.inner.variant_seed(seed)?;
        Ok((name, Strict::new(content, self.place)))
    }
}

impl<'de, A: VariantAccess<'de>> VariantAccess<'de> for Strict<'_, A> {
    type Error = A::Error;

    fn unit_variant(self) -> Result<(), A::Error> {
        self.inner.unit_variant()
    }
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, A::Error> {
        self.inner.newtype_variant_seed(Strict::new(seed, self.place))
    }
    fn tuple_variant<V: Visitor<'de>>(self, len: usize, visitor: V) -> Result<V::Value, A::Error> {
        self.inner.tuple_variant(len, Strict::new(visitor, self.place))
    }
    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, A::Error> {
        self.inner.struct_variant(fields, Strict::new(visitor, self.place))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;
    use std::sync::Arc;

    #[derive(Debug, PartialEq, Deserialize, Default)]
    #[serde(rename_all = "PascalCase", default)]
    struct Inner {
        name: Option<String>,
        ports: BTreeMap<u16, (String, u8)>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    enum Choice {
        Unit,
        One(Box<Inner>),
        Fields { a: u8 },
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Outer {
        labels: BTreeMap<String, String>,
        list: Vec<Arc<Inner>>,
        choices: Vec<Choice>,
    }

    fn read(text: &str) -> Result<Outer, StrictError> {
        from_slice(text.as_bytes())
    }

    #[test]
    fn a_known_document_is_read_as_serde_reads_it() {
        let text = r#"{"labels":{"any":"key"},"list":[{"Name":"n","Ports":{"80":["tcp",1]}},{"Name":null}],
            "choices":["Unit",{"One":{"Name":"x"}},{"Fields":{"a":1}}]}"#;
        assert_eq!(read(text).unwrap(), serde_json::from_str(text).unwrap());
        assert!(matches!(read("{} {}"), Err(StrictError::Json(_))));
        assert!(matches!(read(r#"{"labels":{},"list":[],"choices":[]} x"#), Err(StrictError::Json(_))));
    }

    #[test]
    fn an_unknown_name_at_any_depth_is_an_error_that_names_it() {
        for (text, expected) in [
            (r#"{"labels":{},"list":[],"choices":[],"more":1}"#, "unknown field `more` in Outer"),
            (r#"{"more":{"a":[1]},"labels":{},"list":[],"choices":[]}"#, "unknown field `more` in Outer"),
            (r#"{"labels":{},"list":[{"Name":"n","Secrets":[{}]}],"choices":[]}"#, "unknown field `Secrets` in Inner"),
            (r#"{"labels":{},"list":[],"choices":[{"One":{"More":null}}]}"#, "unknown field `More` in Inner"),
            (r#"{"labels":{},"list":[],"choices":[{"Fields":{"a":1,"b":2}}]}"#, "unknown field `b` in Outer"),
            (r#"{"labels":{},"list":[],"choices":["Two"]}"#, "unknown variant `Two`"),
        ] {
            match read(text) {
                Err(StrictError::Unknown(why)) => assert!(why.starts_with(expected), "{why}"),
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
