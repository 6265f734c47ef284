//! How the shape of a JSON body is described: a Go struct with its fields, their types, and whether skep supports them.

/// A Go struct.
pub struct Struct {
    /// Its name within the path of a field in Go's errors.
    pub name: &'static str,
    /// Its package and name, in the error for a body that is not an object.
    pub package: &'static str,
    pub fields: &'static [Field],
}

/// A field of a Go struct.
pub struct Field {
    pub(super) name: &'static str,
    pub(super) ty: FieldType,
    pub(super) support: Support,
}

/// Whether skep does what a field asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Support {
    Full,
    /// Any value but the zero value is refused.
    OnlyZero,
    /// Refused if present, even with its zero value: its presence selects another kind of object.
    Absent,
}

/// Type of a field.
pub enum FieldType {
    /// `string`
    Str,
    /// `bool`
    Bool,
    /// An integer: name of the Go type, least and greatest value.
    Int(&'static str, i128, i128),
    /// `float32`
    Float,
    /// `[]string`
    Strings,
    /// `[][]string`
    StringLists,
    /// `[]byte`: base64
    Bytes,
    /// `map[string]string`
    Labels,
    /// A struct: name of the Go type, fields.
    Object(&'static str, &'static [Field]),
    /// A list of structs: name of the Go type of an element, its fields.
    Objects(&'static str, &'static [Field]),
    /// Not checked.
    Any,
}

impl FieldType {
    pub(super) const U64: Self = Self::Int("uint64", 0, u64::MAX as i128);
    pub(super) const U32: Self = Self::Int("uint32", 0, u32::MAX as i128);
    pub(super) const I64: Self = Self::Int("int64", i64::MIN as i128, i64::MAX as i128);
    pub(super) const FILE_MODE: Self = Self::Int("fs.FileMode", 0, u32::MAX as i128);
    pub(super) const INT: Self = Self::Int("int", i64::MIN as i128, i64::MAX as i128);
    pub(super) const DURATION: Self = Self::Int("time.Duration", i64::MIN as i128, i64::MAX as i128);

    /// The Go type as Go's errors name it.
    pub(super) fn go_name(&self) -> String {
        match self {
            Self::Str => "string".to_owned(),
            Self::Bool => "bool".to_owned(),
            Self::Float => "float32".to_owned(),
            Self::Int(name, _, _) | Self::Object(name, _) => (*name).to_owned(),
            Self::Strings => "[]string".to_owned(),
            Self::StringLists => "[][]string".to_owned(),
            Self::Bytes => "[]uint8".to_owned(),
            Self::Labels => "map[string]string".to_owned(),
            Self::Objects(name, _) => format!("[]{name}"),
            Self::Any => "interface {}".to_owned(),
        }
    }
}

/// A field that skep supports.
pub(super) const fn supported(name: &'static str, ty: FieldType) -> Field {
    Field { name, ty, support: Support::Full }
}
/// A field of which skep supports the zero value only.
pub(super) const fn unsupported(name: &'static str, ty: FieldType) -> Field {
    Field { name, ty, support: Support::OnlyZero }
}
/// A field that must be absent.
pub(super) const fn refused(name: &'static str, ty: FieldType) -> Field {
    Field { name, ty, support: Support::Absent }
}
