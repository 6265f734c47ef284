//! For tests: which of the names that documents may have occur in recorded documents. A field or variant without a recording
//! is one that no test would miss if it were renamed. The names come from the types themselves, so a new field without a
//! recording is found without anybody listing it. Flattened, untagged and internally tagged types hide theirs.

use serde::de::value::StrDeserializer;
use serde::de::{
    DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use serde::{Serialize, forward_to_deserialize_any};
use serde_json::{Error, Map, Value};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Names of the types that documents were read as: `Task.slot`, `TaskState::Running`, and whether a document had them.
#[derive(Default, Debug)]
pub struct RecordedNames(RefCell<BTreeMap<String, bool>>);

impl RecordedNames {
    /// Reads a document as serde does, and notes its names.
    ///
    /// # Errors
    /// It is no document of the type.
    pub fn read<T: DeserializeOwned>(&self, document: &Value) -> Result<T, Error> {
        T::deserialize(Noting { value: document, names: self })
    }

    /// Reads the recorded documents of a kind: each is written the same again.
    ///
    /// # Panics
    /// One is read as no document of the type, or written otherwise.
    pub fn read_all<T: Serialize + DeserializeOwned>(&self, recorded: &Value, kind: &str) {
        for document in recorded[kind].as_array().expect("a list") {
            let read = self.read::<T>(document).unwrap_or_else(|error| panic!("{kind} {document}: {error}"));
            assert_eq!(serde_json::to_value(read).expect("JSON"), *document, "{kind}");
        }
    }

    /// Names that no document had: fields that were `null` or an empty list in all of them, too.
    #[must_use]
    pub fn missing(&self) -> Vec<String> {
        self.0.borrow().iter().filter(|(_, is_recorded)| !**is_recorded).map(|(name, _)| name.clone()).collect()
    }

    fn note(&self, name: String, is_recorded: bool) {
        *self.0.borrow_mut().entry(name).or_default() |= is_recorded;
    }

    fn note_fields(&self, object: &str, fields: &[&str], content: &Map<String, Value>) {
        let says_something = |value: &Value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty());
        for field in fields {
            self.note(format!("{object}.{field}"), content.get(*field).is_some_and(says_something));
        }
    }

    fn note_variants(&self, object: &str, variants: &[&str], recorded: &str) {
        for variant in variants {
            self.note(format!("{object}::{variant}"), *variant == recorded);
        }
    }
}

/// A value of a document.
#[derive(Clone, Copy)]
struct Noting<'a> {
    value: &'a Value,
    names: &'a RecordedNames,
}

impl<'a> Noting<'a> {
    fn of(self, value: &'a Value) -> Self {
        Self { value, ..self }
    }
}

impl<'de> Deserializer<'de> for Noting<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Number(number) => number.deserialize_any(visitor),
            Value::String(text) => visitor.visit_str(text),
            Value::Array(items) => visitor.visit_seq(NotingList { parent: self, items: items.iter() }),
            Value::Object(content) => visitor.visit_map(NotingMap { parent: self, entries: content.iter(), value: None }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        if self.value.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if let Some(content) = self.value.as_object() {
            self.names.note_fields(name, fields, content);
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        let (variant, content) = match self.value {
            Value::String(variant) => (variant, &Value::Null),
            Value::Object(content) if content.len() == 1 => content.iter().next().ok_or_else(|| Error::custom("no variant"))?,
            other => return Err(Error::custom(format!("{other} is no variant of {name}"))),
        };
        self.names.note_variants(name, variants, variant);
        visitor.visit_enum(NotingVariant { object: name, variant, content: self.of(content) })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple
        tuple_struct map identifier ignored_any
    }
}

struct NotingList<'a> {
    parent: Noting<'a>,
    items: std::slice::Iter<'a, Value>,
}

impl<'de> SeqAccess<'de> for NotingList<'_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        self.items.next().map(|item| seed.deserialize(self.parent.of(item))).transpose()
    }
}

struct NotingMap<'a> {
    parent: Noting<'a>,
    entries: serde_json::map::Iter<'a>,
    value: Option<&'a Value>,
}

impl<'de> MapAccess<'de> for NotingMap<'_> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Error> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(NotingKey { key, names: self.parent.names }).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Error> {
        let value = self.value.take().ok_or_else(|| Error::custom("a value without a key"))?;
        seed.deserialize(self.parent.of(value))
    }
}

/// A key of a map, which JSON has as text whatever its type.
struct NotingKey<'a> {
    key: &'a str,
    names: &'a RecordedNames,
}

impl<'de> Deserializer<'de> for NotingKey<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_str(self.key)
    }

    fn deserialize_u16<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_u16(self.key.parse().map_err(Error::custom)?)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.names.note_variants(name, variants, self.key);
        let variant: StrDeserializer<'_, Error> = self.key.into_deserializer();
        variant.deserialize_enum(name, variants, visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct seq tuple
        tuple_struct map struct identifier ignored_any
    }
}

struct NotingVariant<'a> {
    object: &'static str,
    variant: &'a str,
    content: Noting<'a>,
}

impl<'de, 'a> EnumAccess<'de> for NotingVariant<'a> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Error> {
        let name: StrDeserializer<'a, Error> = self.variant.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for NotingVariant<'_> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        Ok(())
    }
    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Error> {
        seed.deserialize(self.content)
    }
    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.content.deserialize_any(visitor)
    }
    fn struct_variant<V: Visitor<'de>>(self, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        if let Some(content) = self.content.value.as_object() {
            self.content.names.note_fields(&format!("{}::{}", self.object, self.variant), fields, content);
        }
        self.content.deserialize_any(visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::sync::Arc;

    #[derive(Debug, PartialEq, Deserialize, Default)]
    #[serde(rename_all = "PascalCase", default)]
    struct Inner {
        name: Option<String>,
        ports: BTreeMap<u16, (String, i8)>,
        more: Vec<u8>,
    }

    #[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
    enum Choice {
        Unit,
        One(bool),
        Two(u8, u8),
        Fields { a: u8, b: Option<u8> },
        Never,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    struct Outer {
        list: Vec<Arc<Inner>>,
        choices: Vec<Choice>,
        keys: BTreeMap<Choice, f64>,
    }

    #[test]
    fn a_document_is_read_as_serde_reads_it_and_what_it_does_not_have_is_missing() {
        let text = r#"{"list":[{"Name":null,"Ports":{"80":["tcp",-1]}},{"Name":"n","More":[]}],
            "choices":[{"One":true},{"Fields":{"a":1}},{"Two":[1,2]}],"keys":{"Unit":1.5}}"#;
        let names = RecordedNames::default();
        assert_eq!(names.read::<Outer>(&serde_json::from_str(text).unwrap()).unwrap(), serde_json::from_str(text).unwrap());
        assert_eq!(names.missing(), ["Choice::Fields.b", "Choice::Never", "Inner.More"]);
        names.read::<Inner>(&serde_json::json!({ "More": [1] })).unwrap();
        names.read::<Choice>(&serde_json::json!({ "Fields": { "a": 1, "b": 2 } })).unwrap();
        assert_eq!(names.missing(), ["Choice::Never"]);
        assert!(names.read::<Choice>(&serde_json::json!(["Unit"])).is_err());
    }
}
